"""What one run of bench.archive consists of: its size, its folders, and how it runs commands."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.archive.command import Cost, run_command
from bench.archive.tree import ROOT, split_sizes

SAMPLE = 10_000  # images of the smaller archive for raw shards, of which 224,316 would take 15 GB


@dataclass(frozen=True)
class Archive:
    """One run: the number of images, and the folder that everything is written to.

    parts: of the build in parts. ranks: of which at_once run at the same time. report_minutes: limit of the report.
    """

    out: Path
    images: int
    parts: int
    ranks: int
    at_once: int
    report_minutes: float

    @property
    def source(self) -> Path:
        """The archive."""
        return self.out / ROOT

    @property
    def shards(self) -> Path:
        """Its shards."""
        return self.out / "shards"

    @property
    def training_images(self) -> int:
        """The number of training images."""
        return split_sizes(self.images)["train"].images

    @property
    def shard_size(self) -> int:
        """Images per shard: 1,000, or fewer for 20 shards of a small archive."""
        return max(5, min(1000, self.images // 20))

    def run(self, *words: str, log: str = "", **limits: Any) -> Cost:
        """Run python -m WORDS. limits: arguments of run_command. log: name of its log, by default the command's."""
        return run_command(list(words), self.out / "logs" / f"{log or '-'.join(words[:2])}.log", **limits)


@dataclass(frozen=True)
class Result:
    """The result of a step: what its commands took, the images that they processed, and what was checked.

    figures: more numbers for the JSON. seconds: of what the rate is about; None for the sum over the commands.
    """

    costs: list[Cost]
    images: int
    checked: str
    figures: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None
