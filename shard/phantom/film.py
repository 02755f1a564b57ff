"""Expose a rendered body on a film: projection, contrast, noise, collimation and markers."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from shard.phantom.structures import HEIGHT, WIDTH, Plane, smooth_noise


def expose_film(image: Plane, rng: np.random.Generator, misalignment: float) -> Image.Image:
    """Project a body onto a film of random size, and develop it to 8-bit grey.

    misalignment: scales the random tilt and shift.
    """
    long = int(rng.integers(350, 400))
    width, height = (long, 320) if rng.random() < 0.65 else (320, long)
    zoom = max(width / WIDTH, height / HEIGHT) * rng.uniform(1.0, 1.25)
    tilt, squeeze = 0.035 * misalignment * rng.standard_normal(), np.exp(0.04 * rng.standard_normal((2, 1)))
    turn = np.array(((np.cos(tilt), np.sin(tilt)), (-np.sin(tilt), np.cos(tilt)))) * squeeze / zoom
    shift = (WIDTH / 2, HEIGHT / 2 - 6) + 9 * misalignment * rng.standard_normal(2) - turn @ (width / 2, height / 2)
    affine = np.column_stack([turn, shift]).ravel().tolist()
    size, bilinear = (width, height), Image.Resampling.BILINEAR
    projected = Image.fromarray(image).transform(size, Image.Transform.AFFINE, affine, bilinear)
    low, high, curvature = rng.uniform((0.02, 0.95, -0.4), (0.25, 1.35, 0.7)).tolist()
    film = (np.asarray(projected) - np.float32(low)) * np.float32(1 / (high - low))
    film += np.float32(rng.uniform(0.01, 0.05)) * smooth_noise(rng, 5, width, height)  # scatter
    film += np.linspace(-1, 1, width, dtype=np.float32) * np.float32(rng.normal(0, 0.04))  # off-centre tube
    film = np.clip(film, 0, 1)
    film += np.float32(curvature) * film * (1 - film)
    film += np.float32(rng.uniform(0.008, 0.035)) * rng.standard_normal(film.shape, np.float32)  # quantum noise
    top, bottom, left, right = (rng.integers(0, 24, 4) * (rng.random(4) < 0.25)).tolist()
    film[:top] = film[height - bottom :] = film[:, :left] = film[:, width - right :] = 0.02  # collimation
    radiograph = Image.fromarray((np.clip(film, 0, 1) * np.float32(255)).astype(np.uint8))
    if rng.random() < 0.6:  # an L marker at the patient's left, independent of the pathology
        x, y, marker_size = (int(n) for n in rng.integers((14, 12, 9), (60, 90, 15)))
        x = width - x
        strokes = (x, y, x, y + marker_size, x + 0.6 * marker_size, y + marker_size)
        ImageDraw.Draw(radiograph).line(strokes, fill=250, width=3)
    return radiograph
