"""The online probe: how much of the labels the encoder's features tell, while it is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

from pipeline.augmentation import Augmentation
from pipeline.loader import image_loader
from shard.manifest import Manifest
from shard.read import read_labels
from train.config import Config
from train.device import autocast
from train.frozen_features import NEIGHBOURS, TEMPERATURE, standardise

MOST_IMAGES = 2000
HELD_OUT = 0.25  # of the patients
LEAST = 10  # positives and as many negatives, in each part, for a finding to be scored
BATCH = 64


class Interrupted(Exception):
    """The run was told to stop in the middle of a probe."""


class OnlineProbe:
    """kNN and logistic regression on frozen features, of up to 2,000 labelled training images.

    A quarter of the patients is held out; no image of split valid or test is looked at, so that the best checkpoint
    by this probe is not chosen on what a report is tested on.
    """

    def __init__(self, config: Config, manifest: Manifest, augmentation: Augmentation, device: torch.device) -> None:
        self._config, self._manifest, self._augmentation, self._device = config, manifest, augmentation, device
        self._said = False

    @cached_property
    def _chosen(self) -> _Chosen:
        """Read when the first probe is due."""
        return _choose(self._config.shards, self._manifest, self._config.seed)

    def score(self, encoder: nn.Module, stopped: Callable[[], bool]) -> dict[str, float]:
        """AUROC of both probes, the mean over the findings that have enough examples; {} where none has.

        Raises Interrupted as soon as `stopped` says so.
        """
        from sklearn.linear_model import LogisticRegression  # takes a second: only a probe waits for it
        from sklearn.metrics import roc_auc_score

        chosen, scores = self._chosen, dict[str, list[float]](knn_auroc=[], linear_auroc=[])
        if not chosen.findings:
            if not self._said:
                print(f"no online probe: no finding has {LEAST} positive and {LEAST} negative training images to learn "
                      "from and as many held out", flush=True)  # fmt: skip
            self._said = True
            return {}
        features = standardise(self._embed(encoder, stopped), ~chosen.held_out)
        for finding in chosen.findings:
            truth = chosen.labels[finding].to_numpy()
            known = np.isin(truth, (0, 1))
            fit, test = known & ~chosen.held_out, known & chosen.held_out
            votes = _vote(features[fit], truth[fit], features[test])
            probe = LogisticRegression(max_iter=1000).fit(features[fit], truth[fit])
            scores["knn_auroc"].append(roc_auc_score(truth[test], votes))
            scores["linear_auroc"].append(roc_auc_score(truth[test], probe.decision_function(features[test])))
        return {name: float(np.mean(values)) for name, values in scores.items()}

    def _embed(self, encoder: nn.Module, stopped: Callable[[], bool]) -> Any:
        """Features of the chosen images, [N, F] float32."""
        config, augmentation = self._config, self._augmentation
        images = image_loader(config.backend, config.shards, self._manifest, split="train", size=augmentation.size,
                              mean=augmentation.mean, std=augmentation.std, batch_size=BATCH, device=self._device,
                              workers=config.workers, samples=self._chosen.samples)  # fmt: skip
        rows = []
        encoder.eval()
        try:
            with torch.inference_mode(), autocast(config.device, config.precision):
                for batch in images:
                    if stopped():
                        raise Interrupted
                    rows.append(encoder(batch).float().cpu())
        finally:
            encoder.train()
        return torch.cat(rows).numpy()


@dataclass(frozen=True)
class _Chosen:
    """Images of the training split by number, their labels, which of them are held out, and what can be scored."""

    samples: list[int]
    labels: pd.DataFrame
    held_out: Any
    findings: list[str]


def _choose(shards: Path, manifest: Manifest, seed: int) -> _Chosen:
    names = list(manifest.findings)
    labels = read_labels(shards, manifest, ("train",))
    numbers = np.flatnonzero(labels[names].isin([0, 1]).any(axis=1)) if names else np.empty(0, int)
    chance = np.random.default_rng(seed)
    samples = np.sort(chance.permutation(numbers)[:MOST_IMAGES])
    labels = labels.iloc[samples]
    patients = chance.permutation(np.sort(labels["patient"].unique()))
    held_out = labels["patient"].isin(patients[: round(len(patients) * HELD_OUT)]).to_numpy()

    def has_enough(finding: str) -> bool:
        parts = (labels[finding][held_out], labels[finding][~held_out])
        return all((part == value).sum() >= LEAST for part in parts for value in (0, 1))

    return _Chosen(samples.tolist(), labels, held_out, [name for name in names if has_enough(name)])


def _vote(known: Any, truth: Any, asked: Any) -> Any:
    """The weighted share of positives among each one's nearest neighbours by cosine."""
    cosine = F.normalize(torch.from_numpy(asked), dim=1) @ F.normalize(torch.from_numpy(known), dim=1).T
    nearest, which = cosine.topk(min(NEIGHBOURS, len(known)), dim=1)
    weight = torch.softmax(nearest / TEMPERATURE, dim=1)
    return (weight * torch.from_numpy(truth.astype(np.float32))[which]).sum(1).numpy()
