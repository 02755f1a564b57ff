"""Drawing a chest: a state of health and a body to the radiograph that would show them.

Bodies are drawn in a frame of their own: a = |u| is 0 at the midline and 1 at the chest wall, v is 0 at the
lung's apex and about 1 at the diaphragm. Values are attenuation: air is dark, bone is bright.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Plane = NDArray[Any]  # float32 all through: [HEIGHT, WIDTH], or one row or column of it
HEIGHT, WIDTH = 352, 376  # the body frame, pixels
V: Plane = ((np.arange(HEIGHT, dtype=np.float32) - 57) / 189)[:, None]
U: Plane = ((np.arange(WIDTH, dtype=np.float32) - 187.5) / 118)[None, :]
# The patient's right is the image's left.
HALVES = ((-1, np.s_[:, : WIDTH // 2]), (1, np.s_[:, WIDTH // 2 :]))


class State(NamedTuple):
    """A study's health: each severity runs over 0–1, is positive above 0.5, subtle there and plain at 1."""

    heart: float
    opacity: float
    effusion: float
    mediastinum: float
    device: bool = False


def _ramp(distance: Plane, width: float) -> Plane:
    """0 outside, 1 inside, a soft edge `width` wide between."""
    soft: Plane = np.clip(distance * np.float32(1 / width) + np.float32(0.5), 0, 1)
    return soft


def _bump(x: Plane, centre: float, width: float, power: int = 2) -> Plane:
    return np.asarray(np.exp(-(((x - centre) / width) ** power)))


def _grow(severity: float, start: float) -> float:
    """How far a sign has come, 0–1: nothing is there below `start`."""
    return max(0.0, severity - start) / (1 - start)


def _clouds(rng: np.random.Generator, cells: int, width: int = WIDTH, height: int = HEIGHT) -> Plane:
    """Smooth noise of about unit deviation, [height, width]."""
    coarse = Image.fromarray(rng.standard_normal((cells, cells), dtype=np.float32))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def _vessels(rng: np.random.Generator) -> Plane:
    """Vessels branching from both hila, [HEIGHT, WIDTH] in 0–1."""
    film = Image.new("L", (WIDTH // 2, HEIGHT // 2))  # half size: the way back up softens the strokes
    draw = ImageDraw.Draw(film)
    for side in (-1, 1):
        angles = np.linspace(-1.5, 1.4, 10) + rng.normal(0, 0.12, 10) + rng.normal(0, 0.16, (7, 10)).cumsum(0)
        steps = rng.uniform(5, 8, 10) * (side * np.cos(angles) + 1.5j * np.sin(angles))  # x + iy
        ends = 94 + side * 12 + 1j * (66 - side * 3) + np.vstack([np.zeros((1, 10)), steps.cumsum(0)])
        twigs = ends[1:] + 1.1 * steps * np.exp(1j * rng.choice((-0.8, 0.8), (7, 10)))
        for part in range(7):
            for start, end, twig in np.stack([ends[part], ends[part + 1], twigs[part]], 1).tolist():
                draw.line((end.real, end.imag, twig.real, twig.imag), 130 - 12 * part)
                draw.line((start.real, start.imag, end.real, end.imag), 220 - 22 * part, max(1, 3 - part))
    drawn: Plane = np.asarray(film.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR), np.float32) / np.float32(255)
    return drawn


def _ribs(rng: np.random.Generator) -> Plane:
    """Back ribs falling outwards, fainter front ribs falling inwards, [HEIGHT, WIDTH]."""
    a, count = np.abs(U), rng.uniform(7.5, 9.5)
    fall = rng.uniform(0.2, 0.4) * a**2 - 0.1 * a
    rise = rng.uniform(0.3, 0.5) * np.clip(1.1 - a, 0, 1) ** 1.5
    bands = np.zeros((HEIGHT, WIDTH), np.float32)
    front = 0.05 * np.clip(3 * a - 1, 0, 1)
    for phase, weight in ((count * (V - fall), np.float32(0.08)), (0.8 * count * (V - rise), front)):
        off = np.abs(phase - np.floor(phase) - np.float32(0.5))  # 0 on a rib's axis
        bands += weight * (_ramp(0.22 - off, 0.14) - np.float32(0.4) * _ramp(0.11 - off, 0.14))  # bright rims
    return bands


def device(rng: np.random.Generator) -> Plane:
    """A catheter, electrodes with their leads, or a pacemaker, [HEIGHT, WIDTH] in 0–1."""
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


def _patches(rng: np.random.Generator, severity: float) -> Plane:
    """Patchy shadows whose number, size and density grow with severity, [HEIGHT, WIDTH] in 0–1."""
    grown, shadow = _grow(severity, 0.35), np.zeros((HEIGHT, WIDTH), np.float32)
    places = rng.uniform((0.25, 0.15, 0.7, -1), (0.85, 0.95, 1.3, 1), (9, 4)).tolist()
    for u, v, size, side in places[: 2 + round(7 * grown)]:
        radius = size * (0.11 + 0.14 * grown)
        shadow += _bump(V, v, radius) * _bump(U, u if side > 0 else -u, 1.3 * radius)
    grain: Plane = 1 + np.float32(0.5) * _clouds(rng, 16) + np.float32(0.25) * _clouds(rng, 40)
    depth: Plane = np.float32(3.5 * grown) * shadow * np.maximum(grain, np.float32(0.1))
    return np.asarray(1 - np.exp(-depth))


def heart_edge(state: State, side: int, breath: float = 0.0) -> Plane:
    """The heart's border on one side (-1 right, 1 left) as a fraction of the half thorax, [HEIGHT, 1].

    Both borders sum to twice the heart-to-thorax ratio: 0.3 at severity 0, 0.5 at 0.5, 0.7 at 1.
    """
    low, reach = (0.80, 0.44) if side > 0 else (0.72, 0.34)
    widest = (0.30 + 0.40 * state.heart) * (1 - 0.03 * breath) * (1.3 if side > 0 else 0.7)
    return np.asarray(widest * np.sqrt(np.clip(1 - ((V - low) / reach) ** 2, 0, 1)))


def frontal(state: State, body: np.random.Generator, female: bool, breath: float, turn: float) -> Plane:
    """Attenuation of a body seen from the front, [HEIGHT, WIDTH]; `breath` and `turn` run about -1 to 1."""
    lean, tall, fat, knob, hila, base = body.uniform(-1, 1, 6).tolist()
    wet_sides = ((-1, 1), (-1, 1), (-1, 1), (-1, 1), (-1,), (1,))[body.integers(6)]
    a, curve = np.abs(U), 0.03 * lean * np.sin(3 * V) + 0.05 * turn
    heights, widths = (-0.3, -0.16, -0.08, 0.02, 0.15, 0.4, 0.7), (0.4, 0.42, 0.6, 1.15, 1.5, 1.42, 1.18)
    skin = np.interp(V, heights, widths).astype(np.float32) + (0.1 + 0.1 * fat) * _ramp(V, 0.3)
    image: Plane = np.sqrt(np.clip(1 - (U / skin) ** 2, 0, 1)) * _ramp(skin - a, 0.03)
    image *= 0.69 + 0.06 * fat + 0.1 * V  # thicker downwards
    wall = 0.99 * np.sqrt(np.clip(1 - (np.maximum(0.95 - V, 0) / 0.97) ** (2.6 + 0.5 * tall), 0, 1))
    lungs, solid = np.zeros_like(image), np.zeros_like(image)
    for side, half in HALVES:
        x, bend, heart = a[half], side * curve, heart_edge(state, side, breath)
        stem = 0.15 + 0.02 * base + 0.08 * V + 0.26 * _grow(state.mediastinum, 0.2) * _bump(V, 0.2, 0.26, 4)
        stem += (0.05 + 0.02 * knob) * (side > 0) * _bump(V, 0.28, 0.06)  # the aortic knob
        inner = 0.5 * (heart + stem + np.sqrt((heart - stem) ** 2 + 0.003)) + bend  # a smooth maximum
        floor = (0.26 + 0.05 * tall) * np.clip((x - 0.42) / 0.55, -0.6, 1) ** 2  # a dome falling outwards
        floor += 0.92 + 0.02 * side + 0.06 * breath
        below = _ramp(V - floor, 0.03)
        if side in wet_sides and (height := 0.95 * _grow(state.effusion, 0.42) ** 0.7):
            surface = float(floor.max()) - height + 0.22 * (1 - np.exp((x - 1) / 0.22))  # higher at the wall
            below = np.maximum(below, _ramp(V - surface, 0.05) * _ramp(wall + 0.03 - x, 0.02))
        lungs[half] = _ramp(x - inner, 0.05) * _ramp(wall - x, 0.035) * (1 - below)
        solid[half] = np.maximum(below, _ramp(heart + bend - x, 0.1) * (V > 0.3))
    image *= 1 + np.float32(0.13) * solid
    air = np.float32(0.42) - np.float32(0.28) * _patches(body, state.opacity)
    image -= lungs * (air - np.float32(0.13 + 0.03 * hila) * _vessels(body))
    image += _ribs(body) * (_ramp(wall + 0.05 - a, 0.05) * _ramp(1.15 - V, 0.4))
    image += _ramp(0.11 - np.abs(U - curve), 0.05) * (0.12 + 0.02 * np.sin(54 * V))  # the spine
    collar = (V - 0.1) + ((0.10 + 0.03 * tall) * a - 0.06 * np.sin(4 * a))
    image += _ramp(0.035 - np.abs(collar), 0.025) * (0.09 * _ramp(a - 0.13, 0.05) * _ramp(0.9 - a, 0.1))
    image += 0.08 * _ramp(0.02 - (a - 1.25) ** 2 - (V - 0.2) ** 2, 0.015)  # the heads of the arms
    if female:
        image += 0.08 * _ramp(0.14 + 0.04 * fat - (a - 0.6) ** 2 - (V - 0.75) ** 2, 0.05)
    return image


def lateral(state: State, body: np.random.Generator, breath: float) -> Plane:
    """Attenuation of a body seen from its left, front to the image's left, [HEIGHT, WIDTH]; plainly drawn."""
    tall, fat, base = body.uniform(-1, 1, 3).tolist()
    front = 0.42 + 0.03 * tall + 0.38 * _ramp(V - 0.3, 0.7)  # inside the breast bone
    back = 0.62 + 0.22 * np.sin(np.clip(2.2 * V + 0.3, 0, np.pi))  # inside the back ribs
    skin = 0.12 + 0.06 * fat
    image: Plane = _ramp(U + front + skin, 0.06) * _ramp(back + skin - U, 0.06) * np.float32(0.8 + 0.04 * base)
    below = _ramp(V - (0.85 + 0.06 * breath + 0.3 * np.clip((U + 0.3) / 1.1, 0, 1) ** 2), 0.03)
    if height := 0.75 * _grow(state.effusion, 0.42) ** 0.7:  # fluid lies behind first
        below = np.maximum(below, _ramp(V - (1.15 - height + 0.2 * (1 - np.exp((U - 0.85) / 0.2))), 0.05))
    size, wide = 0.28 + 0.22 * state.heart, 0.10 + 0.2 * _grow(state.mediastinum, 0.2)
    heart = _ramp(1 - ((U + 0.38 - 0.3 * size) / size) ** 2 - ((V - 0.70) / 0.32) ** 2, 0.3)
    stem = _ramp(wide - np.abs(U + (0.02 + 0.1 * V)), 0.1) * _ramp(0.5 - V, 0.2)
    air = 0.46 - np.float32(0.22) * _patches(body, state.opacity) - np.float32(0.1) * _vessels(body)
    lung = _ramp(U + front, 0.05) * _ramp(back - U, 0.05) * _ramp(V - 0.02, 0.15) * (1 - below)
    phase = 7 * (V - 0.35 * U)
    ribs = np.float32(0.05) * _ramp(0.2 - np.abs(phase - np.floor(phase) - np.float32(0.5)), 0.15)
    image *= 1 + ribs + np.float32(0.1) * below + 0.12 * _ramp(0.1 * U - V, 0.2)  # last: the raised arms
    image -= lung * (air - np.maximum(0.3 * heart, 0.18 * stem))
    spine = _ramp(0.12 - np.abs(U - back + 0.16), 0.06) * (0.12 + 0.05 * np.sin(46 * V))
    film: Plane = image + spine
    return film


def expose(image: Plane, rng: np.random.Generator, loose: float) -> Image.Image:
    """Lay a body on the film, the `loose`r the more askew, and develop it to 8-bit grey."""
    long = int(rng.integers(350, 400))
    width, height = (long, 320) if rng.random() < 0.65 else (320, long)
    zoom = max(width / WIDTH, height / HEIGHT) * rng.uniform(1.0, 1.25)
    tilt, squeeze = 0.035 * loose * rng.standard_normal(), np.exp(0.04 * rng.standard_normal((2, 1)))
    turn = np.array(((np.cos(tilt), np.sin(tilt)), (-np.sin(tilt), np.cos(tilt)))) * squeeze / zoom
    shift = (WIDTH / 2, HEIGHT / 2 - 6) + 9 * loose * rng.standard_normal(2) - turn @ (width / 2, height / 2)
    affine = np.column_stack([turn, shift]).ravel().tolist()
    size, bilinear = (width, height), Image.Resampling.BILINEAR
    laid = Image.fromarray(image).transform(size, Image.Transform.AFFINE, affine, bilinear)
    low, high, bend = rng.uniform((0.02, 0.95, -0.4), (0.25, 1.35, 0.7)).tolist()
    film = (np.asarray(laid) - np.float32(low)) * np.float32(1 / (high - low))
    film += np.float32(rng.uniform(0.01, 0.05)) * _clouds(rng, 5, width, height)  # scatter
    film += np.linspace(-1, 1, width, dtype=np.float32) * np.float32(rng.normal(0, 0.04))  # a tube off-centre
    film = np.clip(film, 0, 1)
    film += np.float32(bend) * film * (1 - film)
    film += np.float32(rng.uniform(0.008, 0.035)) * rng.standard_normal(film.shape, np.float32)  # quanta
    top, bottom, left, right = (rng.integers(0, 24, 4) * (rng.random(4) < 0.25)).tolist()
    film[:top] = film[height - bottom :] = film[:, :left] = film[:, width - right :] = 0.02  # collimation
    picture = Image.fromarray((np.clip(film, 0, 1) * np.float32(255)).astype(np.uint8))
    if rng.random() < 0.6:  # an L to the patient's left; drawn blind to his health
        x, y, tall = (int(n) for n in rng.integers((14, 12, 9), (60, 90, 15)))
        x = width - x
        ImageDraw.Draw(picture).line((x, y, x, y + tall, x + 0.6 * tall, y + tall), fill=250, width=3)
    return picture
