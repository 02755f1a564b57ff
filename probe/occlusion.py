"""Occlusion maps: how the probes' decision on a test image changes where a patch of it is replaced by grey."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from probe.encoder import Encoder
from probe.features import read_images
from probe.fewshot import Rows
from probe.full_precision import full_precision
from probe.linear import fit_all, probe_draws
from probe.study import Study
from shard.progress import Progress
from train.frozen_features import Features, standardise

CELLS, PATCH = 12, 3  # a map has CELLS × CELLS cells; a patch covers PATCH × PATCH of them
Map = npt.NDArray[np.float64]


class OcclusionMap(NamedTuple):
    """A test image of a task, [S, S] grey levels in 0…1, and how much each cell of it [CELLS, CELLS] adds.

    change: the fall of the decision value when the cell is covered, mean over the patches that cover it and over draws,
    in standard deviations of the decision over the task's test images. label: of the image, 1 or 0.
    """

    task: str
    label: int
    image: npt.NDArray[np.float32]
    change: Map


def occlusion_maps(study: Study, encoder: Encoder, features: Features, device: torch.device) -> list[OcclusionMap]:
    """Map `study.settings.maps` test images of each task, in turn with and without the finding, chosen at random.

    features: the encoder's, of all images of the study. Any network can be mapped, whatever its layers: each image is
    embedded once for each of (CELLS - PATCH + 1)² places of the patch. Source: Zeiler and Fergus, 2014, section 4.2.
    """
    rng = np.random.default_rng([study.settings.seed, 1])
    chosen = {task: _choose(draws.test, draws.test_labels, study.settings.maps, rng)
              for task, draws in study.drawn.items() if study.headline in study.measured[task]}  # fmt: skip
    standard, known = standardise(features, study.reference), features[study.reference]
    maps = []
    with Progress("occlusion maps", sum(map(len, chosen.values()))) as progress:
        for task, rows in chosen.items():
            if not rows:
                continue
            images, covered = _read(study, encoder, rows, device), list[Features]()
            for image in images:
                covered.append(_embed(encoder, cover(image), device, study.settings.batch_size))
                progress.advance(1)
            falls = _falls(study, task, rows, standard, known, covered)
            for row, image, of_image in zip(rows, images, falls, strict=True):
                grey = (image[0].cpu().numpy() * encoder.input.std + encoder.input.mean).clip(0, 1)
                maps.append(OcclusionMap(task, int(study.labels[task].iloc[row]), grey, spread(of_image)))
    return maps


def _read(study: Study, encoder: Encoder, rows: list[int], device: torch.device) -> torch.Tensor:
    return read_images(study.settings.folder, study.manifest, tuple(study.manifest.counts), study.rows[rows].tolist(),
                       encoder.input, batch_size=study.settings.batch_size, device=device, workers=1)  # fmt: skip


def _falls(
    study: Study, task: str, rows: list[int], standard: Features, known: Features, covered: list[Features]
) -> list[Map]:
    """Return by how much the decision falls for each covered copy of each image, in SDs over the test images.

    known: the features that others are standardised by. covered: the features of the copies of each image.
    """
    new = np.concatenate([known, *covered])
    copies = standardise(new, np.arange(len(new)) < len(known))[len(known) :]
    test = study.drawn[task].test
    decisions = _decide(study, task, standard, np.concatenate([standard[test], standard[rows], copies]))
    whole, of_images, of_copies = np.split(decisions, [len(test), len(test) + len(rows)])
    return [(of_image - of_copy) / max(whole.std(), 1e-12)
            for of_image, of_copy in zip(of_images, np.split(of_copies, len(rows)), strict=True)]  # fmt: skip


def _decide(study: Study, task: str, standard: Features, tested: Features) -> Map:
    """Return the decision values of `tested` [n, F], mean over the task's draws: [n]. All are standardised."""
    draws = study.drawn[task]
    rows, labels = (draws.train[None], draws.train_labels[None]) if study.headline == "all" else draws.support(
        study.headline)  # fmt: skip
    examples, places = np.unique(rows, return_inverse=True)
    joint = np.concatenate([standard[examples], tested])
    places, queries = places.reshape(rows.shape), np.arange(len(examples), len(joint))
    decisions = (fit_all(joint, places[0], labels[0], queries) if study.headline == "all" else
                 probe_draws(joint, places, labels, queries))  # fmt: skip
    mean: Map = decisions.mean(axis=0)
    return mean


def _choose(test: Rows, labels: Rows, count: int, rng: np.random.Generator) -> list[int]:
    """Choose images at random, in turn of those with the finding and those without."""
    classes = [rng.permutation(test[labels == label]) for label in (1, 0)]
    return [int(classes[number % 2][number // 2]) for number in range(count) if number // 2 < len(classes[number % 2])]


def cover(image: torch.Tensor) -> torch.Tensor:
    """Cover a normalised image [1, S, S] with a patch of 0, the mean grey, at each place in turn: [n, 1, S, S]."""
    edges = [round(cell * image.shape[-1] / CELLS) for cell in range(CELLS + 1)]
    places = CELLS - PATCH + 1
    covered = image.repeat(places**2, 1, 1, 1)
    for place in range(places**2):
        row, column = divmod(place, places)
        covered[place, :, edges[row] : edges[row + PATCH], edges[column] : edges[column + PATCH]] = 0
    return covered


def spread(falls: Map) -> Map:
    """Return the mean of the falls [n] over the patches that cover each cell: [CELLS, CELLS]."""
    places = CELLS - PATCH + 1
    total, count = np.zeros((2, CELLS, CELLS))
    for place, fall in enumerate(falls):
        row, column = divmod(place, places)
        total[row : row + PATCH, column : column + PATCH] += fall
        count[row : row + PATCH, column : column + PATCH] += 1
    return total / count


def _embed(encoder: Encoder, images: torch.Tensor, device: torch.device, batch_size: int) -> Features:
    assert encoder.module is not None
    module = encoder.module.to(device).eval()
    with full_precision(), torch.inference_mode():
        return np.concatenate([module(batch).float().cpu().numpy() for batch in images.split(batch_size)])
