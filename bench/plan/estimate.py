"""StepEstimate: the resources of one step of the workflow."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class StepEstimate:
    """The estimated resources of one step; None if a figure is unknown.

    hours: wall clock, from start to end. disk_gb: in 10**9 bytes. memory_mb: main memory of a node in 2**20 bytes.
    cores: per task or per GPU. shape: nodes, GPUs, tasks and cores as text. assumed: the basis of each figure.
    missing: why figures are unknown. at_most: the figures that are upper bounds.
    """

    name: str
    hours: float | None = None
    core_hours: float | None = None
    gpu_hours: float | None = None
    disk_gb: float | None = None
    memory_mb: float | None = None
    cores: int | None = None
    shape: str = ""
    assumed: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    at_most: list[str] = field(default_factory=list)


def count(number: int, noun: str) -> str:
    """Format a count, such as "1 node" or "8 GPUs"."""
    return f"{number:,} {noun}{'s' * (number != 1)}"
