"""The online probe: how well the encoder's features predict the labels during training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from pipeline.augmentation import Augmentation
from pipeline.loader import image_loader
from shard.manifest import Manifest
from shard.read import read_labels
from train.config import Config
from train.device import autocast
from train.distributed.ranks import Ranks
from train.frozen_features import Features, knn_vote, standardise
from train.signals import StopRequest
from train.state import TrainState

MAX_IMAGES = 2000
HELD_OUT = 0.25  # fraction of patients
MIN_PER_CLASS = 10  # positives, and negatives, that a finding needs in each part to be scored
BATCH_SIZE = 64


class Interrupted(Exception):
    """A stop signal arrived during a probe."""


class OnlineProbe:
    """kNN and logistic regression on frozen features of up to 2,000 labelled training images.

    Tested on a held-out quarter of their patients. No image of the splits valid and test is used, so that the choice of
    the best checkpoint by this probe does not bias a report.
    """

    def __init__(self, config: Config, manifest: Manifest, augmentation: Augmentation, device: torch.device) -> None:
        self._config, self._manifest, self._augmentation, self._device = config, manifest, augmentation, device
        self._warned = False

    @cached_property
    def images(self) -> ProbeImages:
        """The images to fit and test the probe on, chosen on first use."""
        return choose_images(self._config.folder, self._manifest, self._config.seed)

    def score_if_due(self, state: TrainState, ranks: Ranks, stop: StopRequest) -> dict[str, float] | None:
        """Return the scores after the epoch that ends now, {} if no probe is due, None if a stop signal interrupted it.

        The first rank computes them for all.
        """
        every, scores, interrupted = self._config.online_every, dict[str, float](), False
        if not every or (state.epoch + 1) % every:
            return scores
        if ranks.first:
            try:
                scores = self.score(state.model.encoder, lambda: stop.requested)
            except Interrupted:
                interrupted = True
        interrupted, scores = ranks.broadcast((interrupted, scores))
        return None if interrupted else scores

    def score(self, encoder: nn.Module, stopped: Callable[[], bool]) -> dict[str, float]:
        """Return the AUROC of both probes, averaged over the findings with enough examples; {} if none has enough.

        Raises Interrupted as soon as `stopped` returns True.
        """
        if not self.images.findings:
            if not self._warned:
                print(f"no online probe: no finding has {MIN_PER_CLASS} positive and {MIN_PER_CLASS} negative training "
                      "images to fit and as many held out to test", flush=True)  # fmt: skip
            self._warned = True
            return {}
        return score_features(self.embed(encoder, stopped), self.images)

    def embed(self, encoder: nn.Module, stopped: Callable[[], bool]) -> Features:
        """Return the encoder's features of the probe's images, [N, F] float32. Raises Interrupted as score does."""
        config, augmentation = self._config, self._augmentation
        images = image_loader(config.backend, config.folder, self._manifest, split="train", size=augmentation.size,
                              mean=augmentation.mean, std=augmentation.std, batch_size=BATCH_SIZE, device=self._device,
                              workers=config.workers, samples=self.images.samples)  # fmt: skip
        rows = []
        training = [module for module in encoder.modules() if module.training]  # all but a frozen BatchNorm
        encoder.eval()
        try:
            with torch.inference_mode(), autocast(config.device, config.precision):
                for batch in images:
                    if stopped():
                        raise Interrupted
                    rows.append(encoder(batch).float().cpu())
        finally:
            for module in training:
                module.training = True
        return torch.cat(rows).numpy()


@dataclass(frozen=True)
class ProbeImages:
    """Images of the training split, by number, with their labels.

    held_out: [N] bool, the images of the patients that the probe is tested on. findings: those with enough examples.
    """

    samples: list[int]
    labels: pd.DataFrame
    held_out: Any
    findings: list[str]


def choose_images(shards: Path, manifest: Manifest, seed: int) -> ProbeImages:
    """Choose at random up to 2,000 labeled training images, and a quarter of their patients to hold out."""
    names = list(manifest.findings)
    labels = read_labels(shards, manifest, ("train",))
    numbers = np.flatnonzero(labels[names].isin([0, 1]).any(axis=1)) if names else np.empty(0, int)
    rng = np.random.default_rng(seed)
    samples = np.sort(rng.permutation(numbers)[:MAX_IMAGES])
    labels = labels.iloc[samples]
    patients = rng.permutation(np.sort(labels["patient"].unique()))
    held_out = labels["patient"].isin(patients[: round(len(patients) * HELD_OUT)]).to_numpy()

    def has_enough(finding: str) -> bool:
        parts = (labels[finding][held_out], labels[finding][~held_out])
        return all((part == value).sum() >= MIN_PER_CLASS for part in parts for value in (0, 1))

    return ProbeImages(samples.tolist(), labels, held_out, [name for name in names if has_enough(name)])


def score_features(features: Features, images: ProbeImages) -> dict[str, float]:
    """Return the mean AUROC over the findings of kNN and of logistic regression on features [N, F] of the images."""
    from sklearn.linear_model import LogisticRegression  # imported here because it takes a second
    from sklearn.metrics import roc_auc_score

    features = standardise(features, ~images.held_out)
    scores = dict[str, list[float]](knn_auroc=[], linear_auroc=[])
    for finding in images.findings:
        truth = images.labels[finding].to_numpy()
        known = np.isin(truth, (0, 1))
        fit, test = known & ~images.held_out, known & images.held_out
        votes = knn_vote(features[fit], truth[fit], features[test])
        probe = LogisticRegression(max_iter=1000).fit(features[fit], truth[fit])
        scores["knn_auroc"].append(roc_auc_score(truth[test], votes))
        scores["linear_auroc"].append(roc_auc_score(truth[test], probe.decision_function(features[test])))
    return {name: float(np.mean(values)) for name, values in scores.items()}
