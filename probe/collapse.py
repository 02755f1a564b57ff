"""Detect collapsed encoders, whose features are nearly the same for all images, from features or a run's journal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from probe.encoder import Encoder
from probe.study import Study
from train.collapse import detect_collapse
from train.frozen_features import Features
from train.journal import read_journal

# An effective rank below LOW_SHARE of the largest possible, or below LOW_RANK, is a collapse. A ResNet with random
# weights has a quarter of the largest possible rank, collapsed runs a thirtieth or less.
LOW_SHARE, LOW_RANK = 0.02, 1.5
MOST_CONSTANT = 0.95  # share of constant features from which an encoder counts as collapsed
MOST_ROWS = 1000  # images used for the rank, evenly spaced
ROUNDING = 1e-5  # a feature whose range is below this share of its size is constant up to float32's rounding


def mark_collapsed(study: Study, features: Mapping[str, Features]) -> Study:
    """Set `collapsed` of each collapsed encoder of the study, and print a warning for it."""
    encoders = [replace(encoder, collapsed=_describe(encoder, features[encoder.name])) if encoder.name in features
                else encoder for encoder in study.encoders]  # fmt: skip
    for encoder in encoders:
        if encoder.collapsed:
            print(f"warning: {encoder.name} has collapsed: {encoder.collapsed}")
    return replace(study, encoders=encoders)


def _describe(encoder: Encoder, features: Features) -> str:
    if evidence := describe_collapse(features):
        return evidence
    if encoder.run is None or encoder.state is None:
        return ""
    lines = [line for line in read_journal(encoder.run) if line["step"] <= encoder.state["step"]]
    return detect_collapse(lines, encoder.state["config"]).removeprefix("collapsed: ")


def describe_collapse(features: Features) -> str:
    """Describe the collapse of features [N, F] by constant features or a low effective rank; "" if not collapsed.

    The effective rank is the exponential of the entropy of the singular values (Garrido et al., 2023), of centred
    features of up to 1,000 images.
    """
    width = features.shape[1]
    spread, size = np.ptp(features, axis=0), np.abs(features).max(axis=0)
    constant = int((spread <= ROUNDING * size).sum())
    if constant == width:
        return f"its {width} features are the same for all images"
    rows = features[:: math.ceil(len(features) / MOST_ROWS)].astype(np.float64)
    singular = np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False)
    share = singular[singular > 0] / max(float(singular.sum()), np.finfo(float).tiny)
    rank = float(np.exp(-(share * np.log(share)).sum()))
    if rank >= max(LOW_RANK, LOW_SHARE * min(len(rows), width)) and constant < MOST_CONSTANT * width:
        return ""
    same = f", and {constant} of them are the same for all images" if constant else ""
    return f"its {width} features have an effective rank of {rank:.1f}{same}"
