"""Collapse: a run whose embeddings are all alike, told from its journal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

EPOCHS = 3  # in a row: at the start of training, embeddings are nearly alike in any run
AT_CHANCE = 0.995  # of the loss of guessing, and more
LOW_RANK = 2.0  # of the embeddings, uncentred: 1 where all point one way


def say_collapse(lines: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> str:
    """Whether a run's last three epochs were those of a collapsed encoder, and what to try, in words; else "".

    lines: of metrics.jsonl. The loss is at that of guessing, ln(2B - 1) where all other views are negatives, in each of
    them; or the embeddings' effective rank (RankMe, Garrido et al., 2023) is near 1.
    """
    epochs = [line for line in lines if line["kind"] == "epoch"][-EPOCHS:]
    steps = [[line for line in lines if line["kind"] == "step" and last["epoch"] - 1 < line["epoch"] <= last["epoch"]]
             for last in epochs]  # fmt: skip
    if len(epochs) < EPOCHS:
        return ""
    ranks = [_mean(some, "embedding_rank") for some in steps]
    chances = [_chance(settings, some) for some in steps]
    at_chance = all(line["loss"] >= AT_CHANCE * chance for line, chance in zip(epochs, chances, strict=True))
    if not (at_chance or all(rank < LOW_RANK for rank in ranks)):
        return ""
    decay = settings.get("weight_decay", 0)
    tries = [f"a lower --lr (now {settings['lr']:g})", *([f"a lower --weight-decay (now {decay:g})"] if decay else []),
             "--warmup-epochs", "--clip=1"]  # fmt: skip
    rank = "" if math.isnan(ranks[-1]) else f"; embedding rank {ranks[-1]:.1f}"
    return (f"collapsed: in epochs {epochs[0]['epoch']} to {epochs[-1]['epoch']} the encoder did not tell images apart "
            f"(loss {epochs[-1]['loss']:.3f}, guessing has {chances[-1]:.3f}{rank}); train anew with {', '.join(tries)}"
            " or a larger --batch-size")  # fmt: skip


def _chance(settings: Mapping[str, Any], steps: Sequence[Mapping[str, Any]]) -> float:
    """The loss of embeddings that are all alike: the log of how many views an anchor is compared with."""
    images = settings["batch_size"]
    masked = _mean(steps, "same_patient_pairs") if settings.get("same_patient") == "masked" else 0.0
    return math.log(2 * images - 1 - 2 * (images - 1) * (0.0 if math.isnan(masked) else masked))


def _mean(lines: Sequence[Mapping[str, Any]], name: str) -> float:
    found = [line[name] for line in lines if name in line]
    return float(np.mean(found)) if found else math.nan
