"""python -m probe report RUN --shards=DIR; compare A B --shards=DIR; merge OUT; embed RUN SRC --out=FILE"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from probe.embed.settings import EmbedSettings
from probe.settings import Settings
from shard.address import Place
from shard.cache import CacheFlags
from shard.cli import run
from shard.flags import PART, PARTS, Command, Flag, flag_in, takes_settings
from shard.machine import choose_part


@takes_settings
def report(
    settings: Settings, *, part: Annotated[int | None, PART] = None, parts: Annotated[int | None, PARTS] = None
) -> None:
    """Compare frozen encoders by few-shot probes with random weights, the image's own pixels and ImageNet's weights.

    A probe is a logistic regression on k positive and k negative images of 2k training patients. It is tested on
    patients that no probe was trained on. The report is one web page, with its tables, figures and support sets as
    files next to it. docs/design.md has the details.

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


def embed(
    encoder: Annotated[str, flag_in(Settings, "encoders", help="Run (newest checkpoint), checkpoint or weights, as for "
                                    "python -m probe report.", positional=False)],
    src: Annotated[Place, Flag("Folder of shards or their address; or folder of radiographs: with a table that python "
                               "-m shard build reads, or image files alone.", metavar="SRC")],
    cache: CacheFlags,
    settings: EmbedSettings,
) -> None:  # fmt: skip
    """Write the features of images to a Parquet file: one row per image, with its key, patient, split and labels.

    The images are read as for a report, and the features are the same as there. The same command resumes one that
    was stopped. docs/features.md shows how to read the file.

        python -m probe embed runs/a shards --out=features.parquet
        python -m probe embed model.safetensors exports --out=features.parquet --splits=test
    """
    cache.use()
    from probe.embed.embed import embed

    embed(encoder, src, settings)


# compare is an alias of report, for users who look for it.
COMMANDS: dict[str, Command] = {"report": report, "compare": report, "merge": merge, "embed": embed}

if __name__ == "__main__":
    run("python -m probe", COMMANDS)
