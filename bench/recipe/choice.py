"""The choice of the recipe study: what validation patients choose, and how large a difference the claim can see."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy.stats import norm

from bench.recipe.comparison import MEAN, Seeds, paired, with_mean
from bench.recipe.design import BASELINE_SIZES, IMAGENET, SCRATCH, SMALL, THUMBNAIL, Study
from bench.recipe.grid import CONTINUED, LITE0, RANDOM, Arm
from probe.statistics import estimate, mean_of
from shard.errors import PARSE_ERRORS, InputError
from shard.files import write_bytes

CHOICE = "choice.json"
POWER = 0.8
# What the continued encoder is compared with, and the sizes of their images; ImageNet's is chosen.
RIVALS = {IMAGENET: 0, THUMBNAIL: SMALL, SCRATCH[LITE0]: SMALL}


@dataclass(frozen=True)
class Candidate:
    """A cell or baseline on validation patients, tested on images of one size: its scores, and seconds of training."""

    name: str
    size: int
    scores: Seeds
    seconds: float = 0.0

    @property
    def means(self) -> list[float]:
        """The mean AUROC over tasks, of each seed."""
        return [float(scores[MEAN].both[0]) for scores in self.scores]


NONE = Candidate("", 0, [])


@dataclass(frozen=True)
class Choice:
    """What validation patients chose: the cell of each arm with the size of its images, and ImageNet's size.

    power: rival → the difference of the mean over tasks that a claim of five seeds finds in 80 % of studies.
    """

    cells: dict[Arm, tuple[str, int]]
    imagenet_size: int
    power: dict[str, float]


def find_candidates(study: Study) -> dict[tuple[str, int], Candidate]:
    """Return the candidates by name and size of their images. Seeds without a result are left out."""
    found: dict[tuple[str, int], Candidate] = {}
    evaluation_set = study.evaluation_set(None)
    for job in study.choice_jobs():
        result = study.read(job)
        if result is None:
            continue
        for size in job.sizes:
            key = study.name(job), size
            candidate = found.setdefault(key, Candidate(*key, [], result.seconds))
            candidate.scores.append(with_mean(evaluation_set.complete(result.scores[size])))
    return found


def choose(study: Study, claim_seeds: int) -> Choice:
    """Return the choice: in each arm the best mean over tasks and seeds, of the cells with every seed.

    It is made once, before the claim's runs are trained, and kept in the folder of results. Raises InputError if an arm
    has no such cell.
    """
    kept = read_choice(study.results / CHOICE)
    if kept is not None:
        return kept
    candidates = find_candidates(study)
    cells: dict[Arm, tuple[str, int]] = {}
    for arm in (CONTINUED, RANDOM):
        own = [candidates[cell.name, size]
               for cell in study.cells if cell.arm == arm for size in cell.sizes()
               if len(candidates.get((cell.name, size), NONE).scores) == study.seeds]  # fmt: skip
        if not own:
            raise InputError(f"--claim: no cell {arm!r} has a result of each of {study.seeds} seeds; run the study "
                             "without --claim first, or with fewer --seeds")  # fmt: skip
        best = max(own, key=lambda candidate: float(np.mean(candidate.means)))
        cells[arm] = best.name, best.size
    size = max(BASELINE_SIZES, key=lambda size: candidates[IMAGENET, size].means[0])
    chosen = candidates[cells[CONTINUED]].scores
    power = {rival: detectable_difference(study, chosen, candidates[rival, own_size or size].scores, claim_seeds)
             for rival, own_size in RIVALS.items()}  # fmt: skip
    choice = Choice(cells, size, power)
    study.results.mkdir(parents=True, exist_ok=True)
    write_bytes(study.results / CHOICE, json.dumps(asdict(choice), indent=1, allow_nan=False).encode())
    return choice


def read_choice(path: Path) -> Choice | None:
    """Read a kept choice, if there is one. Raises InputError if it is corrupt."""
    if not path.exists():
        return None
    try:
        plain = json.loads(path.read_text())
        return Choice({arm: (str(name), int(size)) for arm, (name, size) in plain["cells"].items()},
                      int(plain["imagenet_size"]), {name: float(value) for name, value in plain["power"].items()})
    except PARSE_ERRORS as error:
        raise InputError(f"{path}: not a choice ({type(error).__name__}: {error}); restore the original file: another "
                         "choice would test the patients a second time") from None  # fmt: skip


def detectable_difference(study: Study, scores: Seeds, reference: Seeds, seeds: int) -> float:
    """Estimate the difference of the mean over tasks that a claim of some seeds finds with a probability of POWER.

    The variance of patients and draws is that on validation patients, divided by how many times as many patients the
    claim tests; the variance between seeds is divided by the number of seeds.
    """
    differences = paired(scores, reference, MEAN)
    ratio = study.patients(choosing=False) / study.patients(choosing=True)
    within = estimate(mean_of(differences)).error ** 2 / ratio
    values = [float(one.both[0]) for one in differences]
    between = float(np.var(values, ddof=1)) if len(values) > 1 else 0.0
    return float((norm.ppf(0.975) + norm.ppf(POWER)) * math.sqrt(within + between / seeds))
