"""python -m probe report RUN --shards=DIR; python -m probe compare A B --shards=DIR; python -m probe merge OUT"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from probe.settings import Settings
from shard.cli import run
from shard.flags import PART, PARTS, Command, Flag
from shard.machine import choose_part


def report(
    settings: Settings, *, part: Annotated[int | None, PART] = None, parts: Annotated[int | None, PARTS] = None
) -> None:
    """Compare frozen encoders by few-shot probes with random weights, the image's own pixels and ImageNet's weights.

    A probe is a logistic regression on k positive and k negative images of 2k training patients. It is tested on
    patients that no probe was trained on. The report is one web page, with its tables, figures and support sets as
    files next to it. docs/guide.md has the details.

        python -m probe report runs/a --shards=shards
        python -m probe compare A=runs/a B=runs/b chexpert.pth --shards=shards --out=reports/ab --shots=10
    """
    part, parts = choose_part(part, parts)
    from probe.report import make_report

    make_report(settings, part, parts)


def merge(out: Annotated[Path, Flag("Folder given as --out to python -m probe report --part=K --parts=N.")]) -> None:
    """Write the report from the parts that a job array measured.

    python -m probe merge reports/ab
    """
    from probe.report import merge_report

    merge_report(out)


# compare is an alias of report, for users who look for it.
COMMANDS: dict[str, Command] = {"report": report, "compare": report, "merge": merge}

if __name__ == "__main__":
    run("python -m probe", COMMANDS)
