"""Show the structure of a feature space: nearest neighbours of a few test images, and a t-SNE map of many."""

from __future__ import annotations

import textwrap

import numpy as np
import pandas as pd
import torch
from sklearn.manifold import TSNE

from probe.features import read_images
from probe.fewshot import Rows
from probe.measure import Curve
from probe.page.figures import Picture, plot_map, plot_neighbours
from probe.study import Study
from train.frozen_features import Features
from train.weights.preprocessing import Input

NEIGHBOURS = 5
SIDE = 112  # width and height of the radiographs shown, in pixels
MOST = 1000  # maximum number of points in a map


def neighbours(study: Study, features: Features) -> Picture:
    """Show a positive test image of each task with its nearest training images by cosine. features: standardised."""
    rng = np.random.default_rng(study.settings.seed)
    train = np.flatnonzero((study.labels["split"] == "train").to_numpy())
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    rows, shares = [], []
    for task, draws in study.drawn.items():
        query = int(rng.choice(draws.test[draws.test_labels == 1]))
        cosine = unit[train] @ unit[query]
        nearest = np.argsort(-cosine, kind="stable")[:NEIGHBOURS]
        numbers = [query, *train[nearest].tolist()]
        images = read_images(
            study.settings.folder, study.manifest, tuple(study.manifest.counts), study.rows[numbers].tolist(),
            Input(SIDE, 0.0, 1.0), batch_size=len(numbers), device=torch.device("cpu"), workers=1,
        )  # fmt: skip
        names = [_findings(study, number) for number in numbers]
        near = [f"cosine {cosine[place]:.2f}\n{name}" for place, name in zip(nearest, names[1:], strict=True)]
        captions = [f"TEST\n{names[0]}", *near]
        rows.append(list(zip(images[:, 0].numpy(), captions, strict=True)))
        share = np.mean([study.labels[task].iloc[number] == 1 for number in numbers[1:]])
        shares.append(f"{task}: {share:.0%} of the {NEIGHBOURS} nearest are labelled with it too")
    return plot_neighbours(rows, f"Test radiographs, each with its {NEIGHBOURS} nearest training radiographs in "
                                 f"feature space. {'; '.join(shares)}.")  # fmt: skip


def _findings(study: Study, row: int) -> str:
    """The findings that an image is labelled with, truncated to fit a caption."""
    labels = study.labels.iloc[row]
    positive = [name for name in study.manifest.findings if labels[name] == 1 and name != "No Finding"]
    lines = textwrap.wrap(", ".join(positive) or "no finding labelled", width=26, max_lines=3, placeholder=" …")
    return "\n".join(lines)


def map_test_images(study: Study, features: Features) -> list[Picture]:
    """Map up to MOST test images by t-SNE, a picture per task, coloured by its labels. features: standardised."""
    held_out = np.flatnonzero((study.labels["split"] != "train").to_numpy())
    chosen: Rows = np.sort(np.random.default_rng(study.settings.seed).permutation(held_out)[:MOST])
    if len(chosen) < 5:  # too few for a map
        return []
    if not np.ptp(features[chosen], axis=0).any():  # one point: scikit-learn crashes on 0 / 0
        return []
    perplexity = min(30.0, (len(chosen) - 1) / 3)
    points: Curve = TSNE(perplexity=perplexity, init="pca", random_state=study.settings.seed).fit_transform(
        features[chosen].astype(np.float64))  # fmt: skip
    labels: pd.DataFrame = study.labels.iloc[chosen]
    return [plot_map(points, labels[task].to_numpy(), task) for task in study.drawn]
