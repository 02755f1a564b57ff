"""Render the attenuation of a chest from its pathology, in frontal or lateral view.

The coordinates are those of `shard.phantom.structures`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from shard.phantom.structures import (
    HEIGHT,
    WIDTH,
    Plane,
    U,
    V,
    gaussian,
    render_opacities,
    render_ribs,
    render_vessels,
    soft_step,
    visibility,
)

# (side, its columns); -1 is the patient's right, which is the image's left.
HALVES = ((-1, np.s_[:, : WIDTH // 2]), (1, np.s_[:, WIDTH // 2 :]))


class Pathology(NamedTuple):
    """The findings of a study as severities of 0 to 1. Positive above 0.5: subtle just above it, obvious at 1."""

    heart: float
    opacity: float
    effusion: float
    mediastinum: float
    device: bool = False


class Body(NamedTuple):
    """The anatomy of a patient. All but effusion_sides, the sides where fluid gathers, are -1 to 1."""

    lean: float
    height: float
    fat: float
    aortic_knob: float
    hila: float
    mediastinum: float
    effusion_sides: tuple[int, ...]


def heart_border(pathology: Pathology, side: int, breath: float = 0.0) -> Plane:
    """Return |u| of the heart's border on one side (-1 right, 1 left), [HEIGHT, 1].

    The mean of both maximums is the cardiothoracic ratio: 0.3 at severity 0, 0.5 at 0.5 and 0.7 at 1.
    """
    centre, radius = (0.80, 0.44) if side > 0 else (0.72, 0.34)
    width = (0.30 + 0.40 * pathology.heart) * (1 - 0.03 * breath) * (1.3 if side > 0 else 0.7)
    return np.asarray(width * np.sqrt(np.clip(1 - ((V - centre) / radius) ** 2, 0, 1)))


def render_frontal(
    pathology: Pathology, rng: np.random.Generator, female: bool, breath: float, rotation: float
) -> Plane:
    """Render the attenuation of a body in frontal view, [HEIGHT, WIDTH].

    rng: must be seeded by patient, because it samples the body. breath and rotation: about -1 to 1.
    """
    body = _sample_body(rng)
    a, midline = np.abs(U), 0.03 * body.lean * np.sin(3 * V) + 0.05 * rotation
    image = _render_soft_tissue(body)
    wall = 0.99 * np.sqrt(np.clip(1 - (np.maximum(0.95 - V, 0) / 0.97) ** (2.6 + 0.5 * body.height), 0, 1))
    lungs, dense = _render_lungs(pathology, body, midline, wall, breath)
    image *= 1 + np.float32(0.13) * dense
    air = np.float32(0.42) - np.float32(0.28) * render_opacities(rng, pathology.opacity)
    image -= lungs * (air - np.float32(0.13 + 0.03 * body.hila) * render_vessels(rng))
    image += render_ribs(rng) * (soft_step(wall + 0.05 - a, 0.05) * soft_step(1.15 - V, 0.4))
    image += soft_step(0.11 - np.abs(U - midline), 0.05) * (0.12 + 0.02 * np.sin(54 * V))  # spine
    clavicles = (V - 0.1) + ((0.10 + 0.03 * body.height) * a - 0.06 * np.sin(4 * a))
    image += soft_step(0.035 - np.abs(clavicles), 0.025) * (
        0.09 * soft_step(a - 0.13, 0.05) * soft_step(0.9 - a, 0.1)
    )
    image += 0.08 * soft_step(0.02 - (a - 1.25) ** 2 - (V - 0.2) ** 2, 0.015)  # humeral heads
    if female:
        image += 0.08 * soft_step(0.14 + 0.04 * body.fat - (a - 0.6) ** 2 - (V - 0.75) ** 2, 0.05)  # breasts
    return image


def _sample_body(rng: np.random.Generator) -> Body:
    lean, height, fat, aortic_knob, hila, mediastinum = rng.uniform(-1, 1, 6).tolist()
    effusion_sides = ((-1, 1), (-1, 1), (-1, 1), (-1, 1), (-1,), (1,))[rng.integers(6)]
    return Body(lean, height, fat, aortic_knob, hila, mediastinum, effusion_sides)


def _render_soft_tissue(body: Body) -> Plane:
    """Render trunk, neck and shoulders, [HEIGHT, WIDTH]."""
    heights, widths = (-0.3, -0.16, -0.08, 0.02, 0.15, 0.4, 0.7), (0.4, 0.42, 0.6, 1.15, 1.5, 1.42, 1.18)
    skin = np.interp(V, heights, widths).astype(np.float32) + (0.1 + 0.1 * body.fat) * soft_step(V, 0.3)
    image: Plane = np.sqrt(np.clip(1 - (U / skin) ** 2, 0, 1)) * soft_step(skin - np.abs(U), 0.03)
    image *= 0.69 + 0.06 * body.fat + 0.1 * V  # thicker downwards
    return image


def _render_lungs(
    pathology: Pathology, body: Body, midline: Plane, wall: Plane, breath: float
) -> tuple[Plane, Plane]:
    """Return [HEIGHT, WIDTH] masks, 0 to 1, of the aerated lungs, and of heart, abdomen and effusion.

    midline: u of the spine, [HEIGHT, 1]. wall: |u| of the chest wall, [HEIGHT, 1].
    """
    a = np.abs(U)
    lungs, dense = np.zeros((HEIGHT, WIDTH), np.float32), np.zeros((HEIGHT, WIDTH), np.float32)
    for side, half in HALVES:
        x, shift, heart = a[half], side * midline, heart_border(pathology, side, breath)
        widened = 0.26 * visibility(pathology.mediastinum, 0.2) * gaussian(V, 0.2, 0.26, 4)
        mediastinum = 0.15 + 0.02 * body.mediastinum + 0.08 * V + widened
        mediastinum += (0.05 + 0.02 * body.aortic_knob) * (side > 0) * gaussian(V, 0.28, 0.06)
        inner = 0.5 * (heart + mediastinum + np.sqrt((heart - mediastinum) ** 2 + 0.003)) + shift  # a smooth maximum
        floor = (0.26 + 0.05 * body.height) * np.clip((x - 0.42) / 0.55, -0.6, 1) ** 2  # a dome
        floor += 0.92 + 0.02 * side + 0.06 * breath
        below = soft_step(V - floor, 0.03)
        if side in body.effusion_sides and (depth := 0.95 * visibility(pathology.effusion, 0.42) ** 0.7):
            surface = float(floor.max()) - depth + 0.22 * (1 - np.exp((x - 1) / 0.22))  # higher at the wall
            below = np.maximum(below, soft_step(V - surface, 0.05) * soft_step(wall + 0.03 - x, 0.02))
        lungs[half] = soft_step(x - inner, 0.05) * soft_step(wall - x, 0.035) * (1 - below)
        dense[half] = np.maximum(below, soft_step(heart + shift - x, 0.1) * (V > 0.3))
    return lungs, dense


def render_lateral(pathology: Pathology, rng: np.random.Generator, breath: float) -> Plane:
    """Render the attenuation of a body seen from its left, [HEIGHT, WIDTH]. Anterior is left."""
    height, fat, density = rng.uniform(-1, 1, 3).tolist()
    sternum = 0.42 + 0.03 * height + 0.38 * soft_step(V - 0.3, 0.7)
    back = 0.62 + 0.22 * np.sin(np.clip(2.2 * V + 0.3, 0, np.pi))  # inner surface of the posterior ribs
    skin = 0.12 + 0.06 * fat
    image: Plane = (
        soft_step(U + sternum + skin, 0.06) * soft_step(back + skin - U, 0.06) * np.float32(0.8 + 0.04 * density)
    )
    below = soft_step(V - (0.85 + 0.06 * breath + 0.3 * np.clip((U + 0.3) / 1.1, 0, 1) ** 2), 0.03)
    if depth := 0.75 * visibility(pathology.effusion, 0.42) ** 0.7:  # fluid gathers posteriorly first
        below = np.maximum(below, soft_step(V - (1.15 - depth + 0.2 * (1 - np.exp((U - 0.85) / 0.2))), 0.05))
    size, width = 0.28 + 0.22 * pathology.heart, 0.10 + 0.2 * visibility(pathology.mediastinum, 0.2)
    heart = soft_step(1 - ((U + 0.38 - 0.3 * size) / size) ** 2 - ((V - 0.70) / 0.32) ** 2, 0.3)
    mediastinum = soft_step(width - np.abs(U + (0.02 + 0.1 * V)), 0.1) * soft_step(0.5 - V, 0.2)
    opacities = np.float32(0.22) * render_opacities(rng, pathology.opacity)
    air = 0.46 - opacities - np.float32(0.1) * render_vessels(rng)
    lung = soft_step(U + sternum, 0.05) * soft_step(back - U, 0.05) * soft_step(V - 0.02, 0.15) * (1 - below)
    phase = 7 * (V - 0.35 * U)
    ribs = np.float32(0.05) * soft_step(0.2 - np.abs(phase - np.floor(phase) - np.float32(0.5)), 0.15)
    arms = 0.12 * soft_step(0.1 * U - V, 0.2)  # raised
    image *= 1 + ribs + np.float32(0.1) * below + arms
    image -= lung * (air - np.maximum(0.3 * heart, 0.18 * mediastinum))
    spine = soft_step(0.12 - np.abs(U - back + 0.16), 0.06) * (0.12 + 0.05 * np.sin(46 * V))
    film: Plane = image + spine
    return film
