"""What features see of the test images: the nearest neighbours of a few, and a map of many."""

from __future__ import annotations

import textwrap

import numpy as np
import pandas as pd
import torch
from sklearn.manifold import TSNE

from probe.features import read_images
from probe.fewshot import Rows
from probe.measure import Curve
from probe.page.figures import Picture, draw_map, draw_neighbours
from probe.preprocessing import Input
from probe.study import Study
from train.frozen_features import Features

NEIGHBOURS = 5
SHOWN = 112  # pixels a side
MOST = 1000  # points of a map


def neighbours(study: Study, features: Features) -> Picture:
    """A positive test image of each task beside its nearest training images by cosine; features standardised."""
    rng = np.random.default_rng(study.settings.seed)
    train = np.flatnonzero((study.labels["split"] == "train").to_numpy())
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    rows, said = [], []
    for task, draws in study.drawn.items():
        query = int(rng.choice(draws.test[draws.test_labels == 1]))
        cosine = unit[train] @ unit[query]
        nearest = np.argsort(-cosine, kind="stable")[:NEIGHBOURS]
        numbers = [query, *train[nearest].tolist()]
        images = read_images(
            study.settings.shards, study.manifest, tuple(study.manifest.counts), numbers, Input(SHOWN, 0.0, 1.0),
            batch_size=len(numbers), device=torch.device("cpu"), workers=1,
        )  # fmt: skip
        names = [_findings(study, number) for number in numbers]
        near = [f"cosine {cosine[place]:.2f}\n{name}" for place, name in zip(nearest, names[1:], strict=True)]
        captions = [f"TEST\n{names[0]}", *near]
        rows.append(list(zip(images[:, 0].numpy(), captions, strict=True)))
        share = np.mean([study.labels[task].iloc[number] == 1 for number in numbers[1:]])
        said.append(f"{task}: {share:.0%} of the {NEIGHBOURS} nearest are marked with it too")
    return draw_neighbours(rows, f"Test radiographs, each beside its {NEIGHBOURS} nearest training radiographs in "
                                 f"feature space. {'; '.join(said)}.")  # fmt: skip


def _findings(study: Study, row: int) -> str:
    """The findings marked in an image, as many as a caption holds."""
    labels = study.labels.iloc[row]
    found = [name for name in study.manifest.findings if labels[name] == 1 and name != "No Finding"]
    lines = textwrap.wrap(", ".join(found) or "no finding marked", width=26, max_lines=3, placeholder=" …")
    return "\n".join(lines)


def map_test_images(study: Study, features: Features) -> list[Picture]:
    """A t-SNE map of up to MOST test images, a picture a task coloured by its labels; features standardised."""
    held_out = np.flatnonzero((study.labels["split"] != "train").to_numpy())
    chosen: Rows = np.sort(np.random.default_rng(study.settings.seed).permutation(held_out)[:MOST])
    if len(chosen) < 5:  # a map of fewer says nothing
        return []
    if not np.ptp(features[chosen], axis=0).any():  # all in one place, where scikit-learn's start is 0 / 0: it crashes
        return []
    perplexity = min(30.0, (len(chosen) - 1) / 3)
    points: Curve = TSNE(perplexity=perplexity, init="pca", random_state=study.settings.seed).fit_transform(
        features[chosen].astype(np.float64))  # fmt: skip
    labels: pd.DataFrame = study.labels.iloc[chosen]
    return [draw_map(points, labels[task].to_numpy(), task) for task in study.drawn]
