"""Detect collapsed encoders, whose features are nearly the same for all images, from features or a run's journal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from probe.encoders import Encoder
from probe.study import Study
from train.collapse import say_collapse
from train.frozen_features import Features
from train.journal import read_journal

# Of what the rank could be, and a rank that is low for any width: a ResNet with random weights has a quarter, one whose
# run collapsed a thirtieth and less.
LOW_SHARE, LOW_RANK = 0.02, 1.5
MOST_CONSTANT = 0.95  # of the features
MOST_ROWS = 1000  # images that a rank is taken of, evenly spaced
ROUNDING = 1e-5  # a feature that varies by less of its size does so by float32's rounding


def mark_collapsed(study: Study, features: Mapping[str, Features]) -> Study:
    """The study, with what is wrong in `collapsed` of each encoder that has collapsed; says so on stdout."""
    encoders = [replace(one, collapsed=_say(one, features[one.name])) if one.name in features else one
                for one in study.encoders]  # fmt: skip
    for one in encoders:
        if one.collapsed:
            print(f"warning: {one.name} has collapsed: {one.collapsed}")
    return replace(study, encoders=encoders)


def _say(encoder: Encoder, features: Features) -> str:
    if said := say_collapsed_features(features):
        return said
    if encoder.run is None or encoder.state is None:
        return ""
    lines = [line for line in read_journal(encoder.run) if line["step"] <= encoder.state["step"]]
    return say_collapse(lines, encoder.state["config"]).removeprefix("collapsed: ")


def say_collapsed_features(features: Features) -> str:
    """What is wrong with features [N, F] that tell no images apart, by how many are constant and by their effective
    rank; "" where they do.

    The rank is the exponential of the entropy of the singular values (Garrido et al., 2023), of centred features of up
    to 1,000 rows.
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
