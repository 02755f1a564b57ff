"""Render single structures of a chest: vessels, ribs, opacities and support devices.

Coordinates are those of the body: |u| is 0 at the midline and 1 at the chest wall, v is 0 at the lung's apex and about
1 at the diaphragm. Values are attenuation: air is dark, bone is bright.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Plane = NDArray[Any]  # float32: [HEIGHT, WIDTH], or one row or column of it
HEIGHT, WIDTH = 352, 376  # pixels of the rendered body, before exposure
V: Plane = ((np.arange(HEIGHT, dtype=np.float32) - 57) / 189)[:, None]
U: Plane = ((np.arange(WIDTH, dtype=np.float32) - 187.5) / 118)[None, :]


def soft_step(distance: Plane, width: float) -> Plane:
    """0 where `distance` is negative, 1 where it is positive, with a linear ramp of `width` between."""
    step: Plane = np.clip(distance * np.float32(1 / width) + np.float32(0.5), 0, 1)
    return step


def gaussian(x: Plane, centre: float, width: float, power: int = 2) -> Plane:
    """exp(-((x - centre) / width)^power): a higher power has a flatter top."""
    return np.asarray(np.exp(-(((x - centre) / width) ** power)))


def visibility(severity: float, start: float) -> float:
    """How visible a sign is, 0 to 1: it is 0 up to the severity `start`."""
    return max(0.0, severity - start) / (1 - start)


def smooth_noise(rng: np.random.Generator, cells: int, width: int = WIDTH, height: int = HEIGHT) -> Plane:
    """Sample [height, width] smooth noise with a standard deviation of about 1."""
    coarse = Image.fromarray(rng.standard_normal((cells, cells), dtype=np.float32))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def render_vessels(rng: np.random.Generator) -> Plane:
    """Render vessels that branch from both hila, [HEIGHT, WIDTH] in 0 to 1."""
    film = Image.new("L", (WIDTH // 2, HEIGHT // 2))  # half size, because upsampling softens the strokes
    draw = ImageDraw.Draw(film)
    for side in (-1, 1):
        angles = np.linspace(-1.5, 1.4, 10) + rng.normal(0, 0.12, 10) + rng.normal(0, 0.16, (7, 10)).cumsum(0)
        steps = rng.uniform(5, 8, 10) * (side * np.cos(angles) + 1.5j * np.sin(angles))  # complex: x + iy
        ends = 94 + side * 12 + 1j * (66 - side * 3) + np.vstack([np.zeros((1, 10)), steps.cumsum(0)])
        twigs = ends[1:] + 1.1 * steps * np.exp(1j * rng.choice((-0.8, 0.8), (7, 10)))
        for part in range(7):
            for start, end, twig in np.stack([ends[part], ends[part + 1], twigs[part]], 1).tolist():
                draw.line((end.real, end.imag, twig.real, twig.imag), 130 - 12 * part)
                draw.line((start.real, start.imag, end.real, end.imag), 220 - 22 * part, max(1, 3 - part))
    drawn: Plane = np.asarray(film.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR), np.float32) / np.float32(255)
    return drawn


def render_ribs(rng: np.random.Generator) -> Plane:
    """Render posterior ribs, which slope down laterally, and fainter anterior ribs, which slope down medially.

    Returns [HEIGHT, WIDTH].
    """
    a, count = np.abs(U), rng.uniform(7.5, 9.5)
    posterior = rng.uniform(0.2, 0.4) * a**2 - 0.1 * a
    anterior = rng.uniform(0.3, 0.5) * np.clip(1.1 - a, 0, 1) ** 1.5
    bands = np.zeros((HEIGHT, WIDTH), np.float32)
    anterior_weight = 0.05 * np.clip(3 * a - 1, 0, 1)
    for phase, weight in (
        (count * (V - posterior), np.float32(0.08)),
        (0.8 * count * (V - anterior), anterior_weight),
    ):
        distance = np.abs(phase - np.floor(phase) - np.float32(0.5))  # 0 on a rib's axis
        # The inner part is darker, as cortical bone is denser.
        bands += weight * (soft_step(0.22 - distance, 0.14) - np.float32(0.4) * soft_step(0.11 - distance, 0.14))
    return bands


def render_device(rng: np.random.Generator) -> Plane:
    """Render a random support device: a catheter, electrodes with leads, or a pacemaker; [HEIGHT, WIDTH] in 0 to 1."""
    film, middle = Image.new("L", (WIDTH, HEIGHT)), WIDTH / 2
    draw, kind, side = ImageDraw.Draw(film), int(rng.integers(3)), 1 - 2 * int(rng.integers(2))
    out = middle + side * rng.uniform(55, 85)
    if kind == 0:
        path = (out, 15, out - side * 25, 60, middle + 5, 88, middle - 14, 105, middle - 20, 170)
        draw.line(path, fill=170, width=3, joint="curve")
    elif kind == 1:
        for x, y in ((middle - 68, 90.0), (middle + 72, 95.0), (middle + 60 * side, 200.0)):
            x, y = x + rng.uniform(-15, 15), y + rng.uniform(-20, 20)
            draw.ellipse((x - 5, y - 5, x + 5, y + 5), fill=230)
            draw.line((x, y, x + rng.uniform(-50, 50), y + 70, middle + 110 * side, HEIGHT), fill=120)
    else:
        draw.rounded_rectangle((out - 17, 54, out + 17, 80), 8, fill=255)
        path = (out, 67, middle + side * 20, 74, middle - 8, 100, middle, 170, middle + 32, 220)
        draw.line(path, fill=190, width=2, joint="curve")
    drawn: Plane = np.asarray(film, np.float32) / np.float32(255)
    return drawn


def render_opacities(rng: np.random.Generator, severity: float) -> Plane:
    """Render patchy opacities whose number, size and density increase with severity, [HEIGHT, WIDTH] in 0 to 1."""
    extent, shadow = visibility(severity, 0.35), np.zeros((HEIGHT, WIDTH), np.float32)
    centres = rng.uniform((0.25, 0.15, 0.7, -1), (0.85, 0.95, 1.3, 1), (9, 4)).tolist()
    for u, v, size, side in centres[: 2 + round(7 * extent)]:
        radius = size * (0.11 + 0.14 * extent)
        shadow += gaussian(V, v, radius) * gaussian(U, u if side > 0 else -u, 1.3 * radius)
    grain: Plane = 1 + np.float32(0.5) * smooth_noise(rng, 16) + np.float32(0.25) * smooth_noise(rng, 40)
    depth: Plane = np.float32(3.5 * extent) * shadow * np.maximum(grain, np.float32(0.1))
    return np.asarray(1 - np.exp(-depth))
