"""Detect a collapsed run, whose embeddings are all alike, from its journal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

EPOCHS = 3  # consecutive: at the start of training the embeddings of any run are nearly alike
AT_CHANCE = 0.995  # fraction of the chance loss from which the loss counts as chance
LOW_RANK = 2.0  # effective rank of the uncentred embeddings; 1 if all point in one direction


def detect_collapse(lines: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> str:
    """Return a warning with advice if the encoder was collapsed in the run's last three epochs, else "".

    lines: of metrics.jsonl. Collapsed means that the loss is at chance, ln(2B - 1) if all other views are negatives, or
    that the effective rank of the embeddings (RankMe, Garrido et al., 2023) is near 1.
    """
    epochs = [line for line in lines if line["kind"] == "epoch"][-EPOCHS:]
    steps = [[line for line in lines if line["kind"] == "step" and last["epoch"] - 1 < line["epoch"] <= last["epoch"]]
             for last in epochs]  # fmt: skip
    if len(epochs) < EPOCHS:
        return ""
    ranks = [_mean(epoch, "embedding_rank") for epoch in steps]
    chances = [_chance_loss(settings, epoch) for epoch in steps]
    at_chance = all(line["loss"] >= AT_CHANCE * chance for line, chance in zip(epochs, chances, strict=True))
    if not (at_chance or all(rank < LOW_RANK for rank in ranks)):
        return ""
    decay = settings.get("weight_decay", 0)
    advice = [f"a lower --lr (now {settings['lr']:g})", *([f"a lower --weight-decay (now {decay:g})"] if decay else []),
             "--warmup-epochs", "--clip=1"]  # fmt: skip
    rank = "" if math.isnan(ranks[-1]) else f"; embedding rank {ranks[-1]:.1f}"
    return (f"collapsed: in epochs {epochs[0]['epoch']} to {epochs[-1]['epoch']} the encoder did not tell images apart "
            f"(loss {epochs[-1]['loss']:.3f}, chance is {chances[-1]:.3f}{rank}); train again with {', '.join(advice)}"
            " or a larger --batch-size")  # fmt: skip


def _chance_loss(settings: Mapping[str, Any], steps: Sequence[Mapping[str, Any]]) -> float:
    """Return the loss if all embeddings are alike: the log of the number of views an anchor is compared with."""
    images = settings["batch_size"]
    masked = _mean(steps, "same_patient_pairs") if settings.get("same_patient") == "masked" else 0.0
    return math.log(2 * images - 1 - 2 * (images - 1) * (0.0 if math.isnan(masked) else masked))


def _mean(lines: Sequence[Mapping[str, Any]], name: str) -> float:
    found = [line[name] for line in lines if name in line]
    return float(np.mean(found)) if found else math.nan
