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
def count_ranking(order, last, above, probability, tested, labels, patients, patient_counts,  # type: ignore[no-untyped-def]
                  counts):  # fmt: skip
    """Fill counts [fields of Counts, R, D] for R replicates, from the rankings of N test images in D draws.

    order: [D, N], images by descending decision value. last: [D, N], the last of equal values. above: [D, N], value
    above 0. probability: [D, N]. tested: [D, N], members of the draw's test set. labels, patients: [N], by image.
    patient_counts: [R, P], how often each patient is taken.
    """
    sums = np.empty(BINS)
    for replicate in range(len(patient_counts)):
        for draw in range(len(order)):
            sums[:] = 0.0
            # True and false positives down to here, and at the previous threshold.
            true, false, true_before, false_before, area, precision = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
            true_above, false_above = 0.0, 0.0
            for place in range(order.shape[1]):
                row = order[draw, place]
                weight = patient_counts[replicate, patients[row]] if tested[draw, place] else 0
                if weight > 0:
                    label = labels[row]
                    if label == 1:
                        true += weight
                        true_above += weight * above[draw, place]
                    else:
                        false += weight
                        false_above += weight * above[draw, place]
                    bin = min(int(probability[draw, place] * BINS), BINS - 1)
                    sums[bin] += weight * (probability[draw, place] - label)
                if last[draw, place] and true + false > true_before + false_before:
                    area += (false - false_before) * (true + true_before) / 2
                    precision += (true - true_before) * true / (true + false)
                    true_before, false_before = true, false
            error = 0.0
            for bin in range(BINS):
                error += abs(sums[bin])
            counts[0, replicate, draw], counts[1, replicate, draw] = true, false
            counts[2, replicate, draw], counts[3, replicate, draw] = true_above, false_above
            counts[4, replicate, draw], counts[5, replicate, draw] = area, precision
            counts[6, replicate, draw] = error
