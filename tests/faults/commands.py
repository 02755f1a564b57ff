"""The four commands under test: how each is run, its inputs and outputs, and the comparison of two results."""

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
class Workspace:
    """A folder with a command's inputs and its output folder `out`."""

    folder: Path

    @property
    def source(self) -> Path:
        """The radiographs."""
        return self.folder / "radiographs"

    @property
    def shards(self) -> Path:
        """The shards of the radiographs."""
        return self.folder / "shards"

    @property
    def run(self) -> Path:
        """A run trained on the shards."""
        return self.folder / "run"

    @property
    def out(self) -> Path:
        """The output folder. Its parent can be mounted as a small disk."""
        return self.folder / "disk" / "out"


@dataclass(frozen=True)
class Command:
    """A command by name. reads: the folders of its inputs."""

    name: str
    reads: tuple[str, ...]

    def words(self, workspace: Workspace) -> list[str]:
        """Return the command line."""
        report = ["probe", "report", workspace.run, f"--shards={workspace.shards}", f"--out={workspace.out}", *REPORT]
        words = {
            "build": ["shard", "build", workspace.source, workspace.out, "--size=64", "--shard-size=20", "--workers=1",
                      "--max-rejects=0"],
            "train": ["train", f"--shards={workspace.shards}", f"--out={workspace.out}", *TRAIN],
            "probe": [*report, "--part=0", "--parts=2"],
            "report": report,
        }[self.name]  # fmt: skip
        return [sys.executable, "-m", *map(str, words)]

    def start(
        self, workspace: Workspace, *, before: Sequence[str] = (), environment: Mapping[str, str | None] | None = None
    ) -> subprocess.Popen[str]:
        """Start the command in the root of the repository.

        before: a prefix such as taskset. environment: changes to the variables; None unsets one.
        """
        merged = {**os.environ, **ENVIRONMENT, **(environment or {})}
        return subprocess.Popen([*before, *self.words(workspace)], cwd=ROOT, text=True, errors="replace",
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
                                env={name: value for name, value in merged.items() if value is not None})  # fmt: skip

    def has_started(self, workspace: Workspace) -> bool:
        """Return whether the command has written some of its output."""
        patterns = {"build": "*.tar", "train": "metrics.jsonl", "probe": "features/*.npy", "report": "features/*.npy"}
        return any(workspace.out.glob(patterns[self.name]))

    def check_complete(self, workspace: Workspace) -> None:
        """Check that every file with its final name is complete."""
        out = workspace.out
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

    def is_same(self, one: Workspace, other: Workspace) -> bool:
        """Return whether two finished commands wrote the same output."""
        if self.name == "train":
            return same_run(one.out, other.out)
        outputs = [self._read_output(workspace) for workspace in (one, other)]
        return bool(outputs[0]) and outputs[0] == outputs[1]

    def _read_output(self, workspace: Workspace) -> dict[str, bytes]:
        if self.name == "probe":  # its head contains the paths of the command line
            with np.load(workspace.out / "parts" / "0-of-2.npz") as part:
                return {name: part[name].tobytes() for name in part.files if name != "head"}
        names = {"build": ("*",), "report": ("*.csv", "figures/*", "table.md", "table.tex")}[self.name]
        files = (file for pattern in names for file in workspace.out.glob(pattern))
        return {str(file.relative_to(workspace.out)): file.read_bytes() for file in files
                if file.is_file() and not file.name.startswith(".")}  # fmt: skip


COMMANDS = {
    "build": Command("build", ("radiographs",)), "train": Command("train", ("shards",)),
    "probe": Command("probe", ("shards", "run")), "report": Command("report", ("shards", "run")),
}  # fmt: skip
