"""The run's journal: metrics.jsonl, TensorBoard beside it, and loss.png drawn from it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import IO, Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from torch.utils.tensorboard import SummaryWriter

from shard.files import replacing, write_bytes

NAME = "metrics.jsonl"


class Journal:
    """Appends one JSON line a step-interval and an epoch; what a resumed run will do again is dropped first."""

    def __init__(self, run: Path, step: int) -> None:
        self._path = run / NAME
        kept = [line for line in read_journal(run) if line["step"] <= step]
        write_bytes(self._path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self._file: IO[str] = self._path.open("a")
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def write(self, kind: str, **values: float) -> None:
        """Append a line of the given kind, "step" or "epoch"; values holds step, epoch and what was measured."""
        self._file.write(json.dumps({"kind": kind, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            if name != "step":
                self._board.add_scalar(f"{kind}/{name}", value, values["step"])

    def close(self) -> None:
        """Flush and close both files."""
        self._file.close()
        self._board.close()


def read_journal(run: Path) -> list[dict[str, Any]]:
    """The journal's lines; a last line that a killed run left unfinished is not one."""
    path = run / NAME
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def draw_loss(run: Path, batch_size: int) -> None:
    """Draw loss.png: NT-Xent against epochs, with the loss of a model that can't tell 2B views apart."""
    lines = read_journal(run)
    steps = [line for line in lines if line["kind"] == "step"]
    epochs = [line for line in lines if line["kind"] == "epoch"]
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.plot([line["epoch"] for line in steps], [line["loss"] for line in steps], color="0.7", lw=1, label="interval")
    axes.plot([line["epoch"] for line in epochs], [line["loss"] for line in epochs], "o-", ms=3, label="epoch mean")
    axes.axhline(math.log(2 * batch_size - 1), color="0.4", ls="--", lw=1, label=f"chance, ln {2 * batch_size - 1}")
    axes.set(xlabel="epoch", ylabel="NT-Xent loss", title="Pre-training loss")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    with replacing(run / "loss.png") as file:
        figure.savefig(file, dpi=120, format="png")
    plt.close(figure)
