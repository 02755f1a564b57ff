"""The metrics of a report. To add one, add an entry to METRICS."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from shard.caches import numba_can_cache

Floats = npt.NDArray[np.float64]
BINS = 10  # equal-width probability bins of the calibration error
LANES = 16  # replicates that count_ranking counts at a time


class Counts(NamedTuple):
    """Sums over a weighted test set, all of the same shape: everything that a metric may depend on.

    positives, negatives: the weight of each class. true_positives, false_positives: its part with a decision value
    above 0. roc_area: under the curve of true over false positives (not rates). precision_sum: the precision at each
    threshold times the positives gained there. calibration_sum: over bins, |Σ (probability - label)|.
    """

    positives: Floats
    negatives: Floats
    true_positives: Floats
    false_positives: Floats
    roc_area: Floats
    precision_sum: Floats
    calibration_sum: Floats


Metric = Callable[[Counts], Floats]
# The column `metric` of table.csv → the metric. Return NaN if it is undefined, as 0 / 0 does.
METRICS: dict[str, Metric] = {
    "accuracy": lambda n: (n.true_positives + n.negatives - n.false_positives) / (n.positives + n.negatives),
    "balanced_accuracy": lambda n: (n.true_positives / n.positives
                                    + (n.negatives - n.false_positives) / n.negatives) / 2,
    "auroc": lambda n: n.roc_area / (n.positives * n.negatives),
    "auprc": lambda n: np.where(n.negatives > 0, n.precision_sum / n.positives, np.nan),
    "ece": lambda n: n.calibration_sum / (n.positives + n.negatives),
}  # fmt: skip


# Without annotations: numba infers the types from the arguments.
@numba.njit(cache=numba_can_cache(), nogil=True, error_model="numpy")
def _balance_classes(positive, patient, weights, balanced, gain):  # type: ignore[no-untyped-def]
    """Fill gain [2, LANES], by label: 1, or if balanced, what gives both classes half of the weights [P, LANES]."""
    gain[:] = 0.0 if balanced else 1.0
    if not balanced:
        return
    for place in range(len(positive)):
        weight, of_class = weights[patient[place]], gain[int(positive[place])]
        for lane in range(LANES):
            of_class[lane] += weight[lane]
    for lane in range(LANES):
        half = (gain[0, lane] + gain[1, lane]) / 2
        for label in range(2):
            gain[label, lane] = half / gain[label, lane] if gain[label, lane] > 0 else 0.0


@numba.njit(cache=numba_can_cache(), nogil=True, error_model="numpy")
def count_ranking(order, last, above, probability, tested, labels, patients, weights, balanced, counts):  # type: ignore[no-untyped-def]
    """Fill counts [fields of Counts, R, D] for R replicates, from the rankings of N test images in D draws.

    order: [D, N], images by descending decision value. last: [D, N], the last of equal values. above: [D, N], value
    above 0. probability: [D, N]. tested: [D, N], members of the draw's test set. labels, patients: [N], by image.
    weights: [R / LANES, P, LANES] float64, how often each patient is taken (from stack_lanes). balanced: whether the
    classes have equal weights in every replicate. LANES replicates are counted at a time, by vector instructions, each
    in the order of the ranking.
    """
    images = order.shape[1]
    patient, bins, ends = np.empty(images, np.int32), np.empty(images, np.int32), np.empty(images, np.bool_)
    positive, predicted, error = np.empty(images), np.empty(images), np.empty(images)
    sums, total = np.empty((BINS, LANES)), np.empty((8, LANES))
    gain = np.empty((2, LANES))  # factors of the weights of negatives and of positives
    # True and false positives down to here, those with a value above 0, and those at the previous threshold.
    true, false, true_above, false_above, true_before, false_before, area, precision = total
    for draw in range(len(order)):
        n = 0  # images of the draw's test set
        for place in range(images):
            row = order[draw, place]
            if tested[draw, place]:
                patient[n], positive[n], predicted[n] = patients[row], labels[row], above[draw, place]
                bins[n] = min(int(probability[draw, place] * BINS), BINS - 1)
                error[n], ends[n] = probability[draw, place] - labels[row], last[draw, place]
                n += 1
            elif last[draw, place] and n > 0:
                ends[n - 1] = True
        for block in range(len(weights)):
            total[:], sums[:] = 0.0, 0.0
            _balance_classes(positive[:n], patient[:n], weights[block], balanced, gain)
            for place in range(n):
                weight, label, value = weights[block, patient[place]], positive[place], predicted[place]
                error_sum, factor = sums[bins[place]], gain[int(label)]
                for lane in range(LANES):
                    taken = weight[lane] * factor[lane]
                    of_positive = taken * label
                    of_negative = taken - of_positive
                    true[lane] += of_positive
                    false[lane] += of_negative
                    true_above[lane] += of_positive * value
                    false_above[lane] += of_negative * value
                    error_sum[lane] += taken * error[place]
                if ends[place]:
                    for lane in range(LANES):
                        both = true[lane] + false[lane]
                        area[lane] += (false[lane] - false_before[lane]) * (true[lane] + true_before[lane]) / 2
                        precision[lane] += (true[lane] - true_before[lane]) * true[lane] / (both if both > 0 else 1.0)
                        true_before[lane], false_before[lane] = true[lane], false[lane]
            for lane in range(min(LANES, counts.shape[1] - block * LANES)):
                replicate = block * LANES + lane
                counts[0, replicate, draw], counts[1, replicate, draw] = true[lane], false[lane]
                counts[2, replicate, draw], counts[3, replicate, draw] = true_above[lane], false_above[lane]
                counts[4, replicate, draw], counts[5, replicate, draw] = area[lane], precision[lane]
                counts[6, replicate, draw] = 0.0
                for bin in range(BINS):
                    counts[6, replicate, draw] += abs(sums[bin, lane])


def stack_lanes(patient_counts: npt.NDArray[np.integer]) -> Floats:
    """Arrange how often each replicate takes each patient, [R, P], for count_ranking."""
    replicates, patients = patient_counts.shape
    blocks = -(-replicates // LANES)
    weights = np.zeros((blocks * LANES, patients))  # those of the last block that are too many take no patient
    weights[:replicates] = patient_counts
    return np.ascontiguousarray(weights.reshape(blocks, LANES, patients).transpose(0, 2, 1))
