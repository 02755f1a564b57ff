"""One job of the recipe study: train a run, or take a baseline, evaluate it, and write the result to a small file.

python -m bench.recipe.job reads jobs from standard input, each as a line of JSON.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from bench.recipe.evaluation import make_evaluation_set, read_all_labels
from bench.recipe.folds import assign_folds
from bench.recipe.pooling import with_pooling
from bench.recipe.result import RunResult, loss_curve, training_seconds, write_result
from probe.baselines import imagenet_encoder, scratch_encoder, thumbnail_encoder
from probe.encoder import Encoder
from probe.encoders import open_encoder
from probe.features import read_features
from shard.cli import run as run_command
from shard.errors import InputError
from shard.machine import commit, cpu_name, version_of
from shard.manifest import read_manifest
from shard.record import first_difference
from train.checkpoint import load_newest_intact
from train.config import Config
from train.loop import pretrain
from train.weights.preprocessing import Input

Kind = Literal["run", "scratch", "thumbnail", "imagenet"]


@dataclass(frozen=True)
class Job:
    """What is trained and evaluated, and where the result goes. cell: the name of a run's recipe.

    settings: of a run, the flags of python -m train; of a baseline, its arch and, for imagenet, its weights. seed: of
    the run or of random weights. sizes: of the images that the encoder is evaluated on, in pixels. fold: whose patients
    are tested; None for those of split valid. shards: of all images. train_shards: what the run is trained on. folder:
    of the run. features: folder that keeps computed features. pooling: of POOLINGS, if features are not means.
    """

    kind: Kind
    cell: str
    settings: dict[str, Any]
    seed: int
    sizes: tuple[int, ...]
    fold: int | None
    shards: str
    train_shards: str
    folder: str
    features: str
    result: str
    tasks: tuple[str, ...]
    curve: dict[int, tuple[str, ...]]
    draws: int
    workers: int
    pooling: str = ""

    @property
    def result_path(self) -> Path:
        """The file of the result."""
        return Path(self.result)

    @property
    def name(self) -> str:
        """The name of the result, for people."""
        return self.result_path.stem

    def identity(self) -> dict[str, Any]:
        """Return everything that the result depends on, but for the machine: the contents of files, not their paths."""
        settings = dict(self.settings)
        for name in ("init", "weights"):
            if settings.get(name):
                settings[name] = _hash_file(settings[name])
        shards = {"shards": read_manifest(Path(self.shards)).fingerprint()}  # those of a fold follow from them
        evaluation = {"sizes": [*self.sizes], "fold": self.fold, "tasks": [*self.tasks], "draws": self.draws,
                      "curve": {str(pool): [*tasks] for pool, tasks in self.curve.items()}}  # fmt: skip
        pooling = {"pooling": self.pooling} if self.pooling else {}  # results of means were written without it
        return {"kind": self.kind, "settings": settings, "seed": self.seed, **shards, **evaluation, **pooling}

    def json(self) -> str:
        """Encode as JSON, for `from_json`."""
        return json.dumps(asdict(self), allow_nan=False)

    @staticmethod
    def from_json(text: str) -> Job:
        """Restore a job from the output of `json`."""
        plain = json.loads(text)
        plain["curve"] = {int(pool): tuple(tasks) for pool, tasks in plain["curve"].items()}
        return Job(**{**plain, "sizes": tuple(plain["sizes"]), "tasks": tuple(plain["tasks"])})

    def run(self) -> None:
        """Train what is not trained yet, evaluate it, and write the result."""
        if self.kind == "run":
            train(self)
        shards, device = Path(self.shards), torch.device("cuda" if torch.cuda.is_available() else "cpu")
        manifest = read_manifest(shards)
        folds = assign_folds(read_all_labels(shards, manifest), manifest.findings)
        evaluation_set = make_evaluation_set(shards, self.fold, folds, self.tasks, self.curve, self.draws)
        scores, curve = {}, {}
        for size in self.sizes:
            encoder = open_job(self, Input(size, manifest.pixel_mean, manifest.pixel_std))
            features = read_features([encoder], shards, manifest, tuple(manifest.counts),
                                     cache=Path(self.features), batch_size=128, device=device,
                                     workers=self.workers)  # fmt: skip
            scores[size] = evaluation_set.score(features[encoder.name])
            curve = evaluation_set.score_curve(features[encoder.name])
        trained = self.kind == "run"
        result = RunResult(training_seconds(Path(self.folder)) if trained else 0.0,
                           loss_curve(Path(self.folder) if trained else None), scores, curve, describe_machine())
        write_result(self.result_path, self.identity(), result)
        if trained:
            shutil.rmtree(self.features, ignore_errors=True)  # nothing reads them again, and they are large


@functools.cache
def _hash_file(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def describe_machine() -> dict[str, str]:
    """Describe what computed a result: the processor, and the libraries."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return {"processor": gpu or cpu_name(), "torch": torch.__version__, "dali": version_of("nvidia-dali-cuda120"),
            "commit": commit()}  # fmt: skip


def open_job(job: Job, images: Input) -> Encoder:
    """Open the encoder of a job, for images of a size."""
    encoder = _open_encoder(job, images)
    return with_pooling(encoder, job.pooling) if job.pooling else encoder


def _open_encoder(job: Job, images: Input) -> Encoder:
    if job.kind == "run":
        return open_encoder(Path(job.folder), "run", images, images.size)[1]
    if job.kind == "scratch":
        return scratch_encoder(job.settings["arch"], job.seed, images)
    if job.kind == "thumbnail":
        return thumbnail_encoder(images)
    return imagenet_encoder(job.settings["arch"], images, Path(job.settings["weights"]))


def is_trained(job: Job) -> bool:
    """Return whether all epochs are trained. Raises InputError if the checkpoint has other settings or shards."""
    newest = load_newest_intact(Path(job.folder))
    if newest is None:
        return False
    path, state, _ = newest
    expected = {**job.settings, "seed": job.seed, "shards": read_manifest(Path(job.train_shards)).fingerprint()}
    found = {**state["config"], "shards": state["shards"], "init": job.settings.get("init")}  # its file may move
    if differing := first_difference({name: found.get(name) for name in expected}, expected):
        raise InputError(f"{path}: belongs to another run ({differing}); choose another --out or remove {job.folder}")
    return bool(state["epoch"] >= job.settings["epochs"])


def train(job: Job) -> None:
    """Train the run to its end, or resume it, and append what it prints to its log. Raises InputError if it fails."""
    if is_trained(job):
        return
    folder = Path(job.folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = Config(shards=Path(job.train_shards), out=folder, dali=True, seed=job.seed, workers=job.workers,
                    **job.settings)  # fmt: skip
    with (folder / "log.txt").open("a") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        pretrain(config)


def main() -> None:
    """Run the jobs that standard input encodes, one a line, and answer each with its error, or an empty text."""
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a job prints must not get between the answers
        for line in sys.stdin:
            job = Job.from_json(line)
            try:
                job.run()
                error = ""
            except InputError as reason:
                error = str(reason)
            print(json.dumps(error, allow_nan=False), file=answers, flush=True)


if __name__ == "__main__":
    run_command("python -m bench.recipe", main, [])
