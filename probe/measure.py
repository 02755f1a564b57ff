"""Measure the encoders of a study on its tasks, in units of work that any number of processes can share.

The results of a block of draws add up to those of all draws, so that any division into parts gives the same bits.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import roc_curve

from probe.encoder import Encoder
from probe.features import read_images
from probe.fewshot import FRACTION_DRAWS, Shots
from probe.finetune import STEPS, finetune
from probe.knn import knn_draws
from probe.linear import INVERSE_L2, fit_all, probe_draws
from probe.published_protocol import NOISE, Peaks, noise_features, published_draws
from probe.slices import count_in_slice, is_large_enough
from probe.statistics import Resamples, Scores, Supports, join, resample, score
from probe.study import Study
from shard.errors import InputError
from shard.progress import Progress
from train.frozen_features import Features, standardise
from train.out_of_memory import explain_out_of_memory

LINEAR, KNN, FINETUNE, PUBLISHED = "linear", "knn", "finetune", "published"
STRENGTHS = {f"linear, C = {strength:g}": strength for strength in (0.1, 10.0)}  # beside INVERSE_L2
BALANCED, ALL = "balanced", "all"  # test sets; slices of ALL are further ones
BLOCK = 50  # draws in a unit
GRID = np.linspace(0, 1, 101)  # false positive rates of the mean ROC curves
Curve = npt.NDArray[np.float64]


class Key(NamedTuple):
    """What a score belongs to: encoder, probe, number of shots (or share_name of a fraction), task and test set."""

    encoder: str
    probe: str
    shots: Shots | str
    task: str
    test: str


class Unit(NamedTuple):
    """A unit of work, independent of all others: some draws of an encoder on a task, or its probe of all labels.

    first, last: of the draws; for kind "fractions" of the random parts of the labels.
    """

    kind: Literal["draws", "all", "fractions", "finetune"]
    encoder: str
    task: str
    first: int
    last: int


@dataclass(frozen=True)
class Measured:
    """The results of one or more units.

    rocs: true positive rates on GRID, summed over draws, by encoder and task. peaks: the published protocol, by
    encoder, task and test set. Both are at the headline's number of shots.
    """

    scores: dict[Key, Scores]
    rocs: dict[tuple[str, str], Curve]
    peaks: dict[tuple[str, str, str], Peaks]


def list_units(study: Study) -> list[Unit]:
    """List all units of work, encoder by encoder."""
    units = []
    for encoder in [*(encoder.name for encoder in study.available), NOISE]:
        for task in study.drawn:
            units += [Unit("draws", encoder, task, first, min(first + BLOCK, study.draws))
                      for first in range(0, study.draws, BLOCK)]  # fmt: skip
            if encoder != NOISE and "all" in study.measured[task]:
                units.append(Unit("all", encoder, task, 0, 1))
            if encoder != NOISE and study.drawn[task].fractions:
                units += [Unit("fractions", encoder, task, part, part + 1) for part in range(FRACTION_DRAWS)]
            if encoder in _trainable(study) and study.headline in study.measured[task]:
                units += [Unit("finetune", encoder, task, draw, draw + 1)
                          for draw in range(min(study.settings.finetune, study.draws))]  # fmt: skip
    return units


def _trainable(study: Study) -> list[str]:
    """Names of the encoders that have parameters to fine-tune."""
    return [encoder.name for encoder in study.available
            if encoder.module is not None and any(True for _ in encoder.module.parameters())]  # fmt: skip


def measure(
    study: Study, units: Sequence[Unit], features: Mapping[str, Features], device: torch.device
) -> list[Measured]:
    """Measure each unit, in order. features: from read_features.

    Raises InputError if a probe does not converge.
    """
    raw: dict[str, Features] = {}
    standard: dict[str, Features] = {}
    results: dict[int, Measured] = {}
    probes, trainings = ([number for number, unit in enumerate(units) if (unit.kind == "finetune") == tunes]
                         for tunes in (False, True))  # fmt: skip
    total = sum(len(_steps(study, units[number])) * _draws_in(units[number]) for number in probes)
    with Progress("probing", total, "probes") as progress:
        for number in probes:
            unit = units[number]
            if unit.encoder not in raw:  # keep one encoder at a time: an archive's features take gigabytes
                raw = {unit.encoder: _features(unit.encoder, features, study)}
                standard = {unit.encoder: standardise(raw[unit.encoder], study.reference)}
            try:
                results[number] = _measure(study, unit, raw[unit.encoder], standard[unit.encoder], progress)
            except ArithmeticError as reason:
                raise InputError(f"{unit.encoder}, {unit.task}: {reason}; omit the encoder, or choose other tasks with "
                                 "--tasks") from reason  # fmt: skip
    with Progress("fine-tuning", len(trainings) * STEPS, "steps") as progress:
        for number in trainings:
            results[number] = _measure_finetuned(study, units[number], device, progress)
    return [results[number] for number in range(len(units))]


def _draws_in(unit: Unit) -> int:
    return unit.last - unit.first


def _steps(study: Study, unit: Unit) -> list[Shots | str]:
    """List what is measured on the draws of a unit: linear probes by their shots, KNN, STRENGTHS, PUBLISHED."""
    if unit.kind == "all":
        return ["all"]
    if unit.kind == "fractions":
        return [share_name(share) for share in study.drawn[unit.task].fractions]
    numbers: list[Shots | str] = [shots for shots in study.measured[unit.task] if shots != "all"]
    at_headline = study.headline in numbers
    own = [*numbers, *[KNN, *STRENGTHS] * at_headline] if unit.encoder != NOISE else []
    return [*own, *[PUBLISHED] * at_headline]


def combine(units: Sequence[Unit], results: Sequence[Measured]) -> Measured:
    """Combine the results of all units, in the order of list_units whatever order they come in."""
    order = sorted(range(len(units)), key=lambda number: units[number].first)
    scores: dict[Key, list[Scores]] = defaultdict(list)
    rocs: dict[tuple[str, str], list[Curve]] = defaultdict(list)
    peaks: dict[tuple[str, str, str], list[Peaks]] = defaultdict(list)
    for number in order:
        for key, part in results[number].scores.items():
            scores[key].append(part)
        for pair, curve in results[number].rocs.items():
            rocs[pair].append(curve)
        for triple, part_peaks in results[number].peaks.items():
            peaks[triple].append(part_peaks)
    return Measured(
        {key: join(parts) for key, parts in scores.items()},
        {pair: np.sum(curves, axis=0) for pair, curves in rocs.items()},
        {triple: Peaks(*map(np.concatenate, zip(*parts, strict=True))) for triple, parts in peaks.items()},
    )


def _features(encoder: str, features: Mapping[str, Features], study: Study) -> Features:
    if encoder != NOISE:
        return features[encoder]
    return noise_features(features[study.encoders[-1].name], study.settings.seed)


def _resample(study: Study, draws: int) -> Resamples:
    return _resample_once(draws, int(study.patients.max()) + 1, study.settings.seed)


@functools.lru_cache(maxsize=4)  # seconds for thousands of patients, and the same for all units
def _resample_once(draws: int, patients: int, seed: int) -> Resamples:
    return resample(draws, patients, seed=seed)


def _measure(study: Study, unit: Unit, raw: Features, features: Features, progress: Progress) -> Measured:
    """Measure a block of draws, or the probe of all labels.

    raw: the encoder's features, for the published protocol; features: standardised.
    """
    draws, block, measured = study.drawn[unit.task], slice(unit.first, unit.last), Measured({}, {}, {})
    if unit.kind == "fractions":
        _measure_fractions(measured, study, unit, features)
        progress.advance(len(draws.fractions))
        return measured
    for step in _steps(study, unit):
        if step == PUBLISHED:
            _measure_published(measured, study, unit, raw)
        elif step == "all":
            _measure_all(measured, study, unit, features)
        else:
            name, shots = (step, study.headline) if isinstance(step, str) else (LINEAR, step)
            assert isinstance(shots, int)
            rows, classes = (part[block] for part in draws.support(shots))
            decisions = (knn_draws(features, rows, classes, draws.test) if name == KNN else
                         probe_draws(features, rows, classes, draws.test, inverse_l2=STRENGTHS.get(name, INVERSE_L2)))
            if step == study.headline:
                measured.rocs[unit.encoder, unit.task] = _sum_of_rocs(decisions, draws.test_labels)
            key = Key(unit.encoder, name, shots, unit.task, ALL)
            _score(measured, study, key, decisions, _resample(study, study.draws), block)
        progress.advance(_draws_in(unit))
    return measured


def _measure_published(measured: Measured, study: Study, unit: Unit, raw: Features) -> None:
    draws, block = study.drawn[unit.task], slice(unit.first, unit.last)
    rows, classes = (part[block] for part in draws.support(study.headline))
    sets = {ALL: np.ones((len(rows), len(draws.test)), bool), BALANCED: draws.balanced[block]}
    peaks = published_draws(raw, rows, classes, draws.test, draws.test_labels, list(sets.values()),
                            seed=study.settings.seed, first=unit.first)  # fmt: skip
    for test, set_peaks in zip(sets, peaks, strict=True):
        measured.peaks[unit.encoder, unit.task, test] = set_peaks


def _measure_all(measured: Measured, study: Study, unit: Unit, features: Features) -> None:
    """Measure one probe trained on all labels: without draws, so intervals are over patients."""
    draws = study.drawn[unit.task]
    decisions = fit_all(features, draws.train, draws.train_labels, draws.test)
    if study.headline == "all":
        measured.rocs[unit.encoder, unit.task] = study.draws * _sum_of_rocs(decisions, draws.test_labels)
    key = Key(unit.encoder, LINEAR, "all", unit.task, ALL)
    _score(measured, study, key, decisions, _resample(study, 1), slice(0, 1))


def share_name(share: float) -> str:
    """Name a share of the labels, as tables do: "1%"."""
    return f"{100 * share:g}%"


def _measure_fractions(measured: Measured, study: Study, unit: Unit, features: Features) -> None:
    """Measure the probes of one random part of the labels for each fraction."""
    draws = study.drawn[unit.task]
    for share, (rows, classes) in draws.fractions.items():
        decisions = fit_all(features, rows[unit.first], classes[unit.first], draws.test)
        scores = score(decisions, draws.test_labels, study.patients[draws.test], _resample(study, FRACTION_DRAWS),
                       first=unit.first)  # fmt: skip
        supports = Supports(study.people[rows[unit.first]][None], share=share)
        measured.scores[Key(unit.encoder, LINEAR, share_name(share), unit.task, ALL)] = replace(
            scores, supports=supports)  # fmt: skip


def _measure_finetuned(study: Study, unit: Unit, device: torch.device, progress: Progress) -> Measured:
    draws, measured = study.drawn[unit.task], Measured({}, {}, {})
    (encoder,) = (encoder for encoder in study.encoders if encoder.name == unit.encoder)
    rows, classes = (part[unit.first] for part in draws.support(study.headline))
    assert encoder.module is not None
    settings, size = study.settings, encoder.input.size
    lower = f"lower --batch-size to {settings.batch_size // 2}, " if settings.batch_size > 1 else ""
    with explain_out_of_memory(
        device.type, lambda: f"fine-tuning {unit.encoder} on {len(rows)} images of {size} px, and testing it on "
                             f"{len(draws.test)}, {settings.batch_size} at a time,",
        lambda: f"{lower}use fewer --shots or a smaller --size, or omit --finetune",
    ):  # fmt: skip
        examples, tested = (_images(study, encoder, numbers, device) for numbers in (rows, draws.test))
        decisions = finetune(encoder.module, examples, torch.from_numpy(classes).to(device), tested,
                             seed=settings.seed + unit.first, batch_size=settings.batch_size,
                             progress=progress)[None]  # fmt: skip
    resamples = _resample(study, min(study.settings.finetune, study.draws))
    key = Key(unit.encoder, FINETUNE, study.headline, unit.task, ALL)
    _score(measured, study, key, decisions, resamples, slice(unit.first, unit.last))
    return measured


def _images(study: Study, encoder: Encoder, rows: npt.NDArray[np.int64], device: torch.device) -> torch.Tensor:
    return read_images(study.settings.folder, study.manifest, tuple(study.manifest.counts),
                       study.rows[rows].tolist(),
                       encoder.input, batch_size=study.settings.batch_size, device=device,
                       workers=study.settings.workers)  # fmt: skip


def _score(
    measured: Measured, study: Study, key: Key, decisions: Curve, resamples: Resamples, block: slice
) -> None:
    """Score decision values on all test images; at the headline's shots also on balanced test sets and on slices."""
    draws = study.drawn[key.task]
    patients = study.patients[draws.test]
    supports = None if isinstance(key.shots, str) else study.people[draws.support(key.shots)[0][block]]
    measured.scores[key] = score(decisions, draws.test_labels, patients, resamples, first=block.start,
                                 supports=supports)  # fmt: skip
    if key.shots != study.headline or key.probe in STRENGTHS:
        return
    if key.shots != "all":  # the probe of all labels has no draws, and so no balanced test sets
        measured.scores[key._replace(test=BALANCED)] = score(
            decisions, draws.test_labels, patients, resamples, draws.balanced[block], block.start, supports
        )
    if key.probe != LINEAR:
        return
    for part in study.slices:
        if is_large_enough(count_in_slice(part, draws.test, draws.test_labels, study.patients)):
            inside = part.members[draws.test]
            measured.scores[key._replace(test=part.name)] = score(
                decisions[:, inside], draws.test_labels[inside], patients[inside], resamples, first=block.start,
                supports=supports,
            )


def _sum_of_rocs(decisions: Curve, labels: npt.NDArray[np.int64]) -> Curve:
    """True positive rates on GRID, summed over draws."""
    curves = []
    for decision in decisions:
        false_rates, true_rates, _ = roc_curve(labels, decision)
        curves.append(np.interp(GRID, false_rates, true_rates))
    total: Curve = np.sum(curves, axis=0)
    return total
