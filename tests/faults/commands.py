"""The four commands under test: how each is run, what it reads and leaves, and when two of its results are the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shard.manifest import MANIFEST
from shard.verify import verify
from tests.conftest import DALI, ROOT, SMALL, same_run
from train.checkpoint import list_checkpoints, load_checkpoint

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
TRAIN = (*SMALL, DALI, "--epochs=2", "--checkpoint-minutes=0.005", "--online-every=1", "--workers=1")
REPORT = ("--draws=2", "--shots=1,2", "--baselines=scratch,thumbnail", "--device=cpu", "--workers=1", "--batch-size=16")


@dataclass(frozen=True)
class Place:
    """A folder with a command's inputs, and the folder `out` that it is to make."""

    folder: Path

    @property
    def source(self) -> Path:
        """Radiographs."""
        return self.folder / "radiographs"

    @property
    def shards(self) -> Path:
        """Their shards."""
        return self.folder / "shards"

    @property
    def run(self) -> Path:
        """A run trained on them."""
        return self.folder / "run"

    @property
    def out(self) -> Path:
        """What the command makes; its folder can be a small disk."""
        return self.folder / "disk" / "out"


@dataclass(frozen=True)
class Command:
    """A command by name. reads: the inputs it wants."""

    name: str
    reads: tuple[str, ...]

    def words(self, place: Place) -> list[str]:
        """As a user types it."""
        words = {
            "build": ["shard", "build", place.source, place.out, "--size=64", "--shard-size=20", "--workers=1",
                      "--max-rejects=0"],
            "train": ["train", f"--shards={place.shards}", f"--out={place.out}", *TRAIN],
            "probe": ["probe", "report", place.run, f"--shards={place.shards}", f"--out={place.out}", *REPORT,
                      "--part=0", "--parts=2"],
            "report": ["probe", "report", place.run, f"--shards={place.shards}", f"--out={place.out}", *REPORT],
        }[self.name]  # fmt: skip
        return [sys.executable, "-m", *map(str, words)]

    def start(
        self, place: Place, *, before: Sequence[str] = (), environment: Mapping[str, str | None] | None = None
    ) -> subprocess.Popen[str]:
        """Start it from the root of the repository. before: words before it, as taskset's; None unsets a variable."""
        merged = {**os.environ, **ENVIRONMENT, **(environment or {})}
        return subprocess.Popen([*before, *self.words(place)], cwd=ROOT, text=True, errors="replace",
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
                                env={name: value for name, value in merged.items() if value is not None})  # fmt: skip

    def is_begun(self, place: Place) -> bool:
        """Whether it has written something, and is at work."""
        wanted = {"build": "*.tar", "train": "metrics.jsonl", "probe": "features/*.npy", "report": "features/*.npy"}
        return any(place.out.glob(wanted[self.name]))

    def check_whole(self, place: Place) -> None:
        """What has its final name is whole, whatever has happened."""
        out = place.out
        if self.name == "build" and (out / MANIFEST).exists():
            verify(out, workers=1)
        for path in list_checkpoints(out):
            load_checkpoint(path)
        for path in out.glob("*.json"):
            json.loads(path.read_text())
        for path in (*out.glob("features/*.npy"), *out.glob("parts/*.npz")):
            np.load(path)
        if (out / "report.html").exists():
            assert (out / "report.html").read_text().rstrip().endswith("</html>")

    def is_same(self, one: Place, other: Place) -> bool:
        """Whether two finished ones left the same."""
        if self.name == "train":
            return same_run(one.out, other.out)
        left = [self._left(place) for place in (one, other)]
        return bool(left[0]) and left[0] == left[1]

    def _left(self, place: Place) -> dict[str, bytes]:
        if self.name == "probe":  # its head holds the paths it was asked with
            with np.load(place.out / "parts" / "0-of-2.npz") as part:
                return {name: part[name].tobytes() for name in part.files if name != "head"}
        names = {"build": ("*",), "report": ("*.csv", "figures/*", "table.md", "table.tex")}[self.name]
        return {str(file.relative_to(place.out)): file.read_bytes() for pattern in names
                for file in place.out.glob(pattern) if file.is_file() and not file.name.startswith(".")}  # fmt: skip


COMMANDS = {
    "build": Command("build", ("radiographs",)), "train": Command("train", ("shards",)),
    "probe": Command("probe", ("shards", "run")), "report": Command("report", ("shards", "run")),
}  # fmt: skip
