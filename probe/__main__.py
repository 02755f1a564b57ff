"""python -m probe report RUN --shards=DIR; python -m probe compare A B --shards=DIR; python -m probe merge OUT"""

from __future__ import annotations

from pathlib import Path

from probe.fewshot import Blank, Uncertain
from probe.names import split_spec, split_tasks
from probe.settings import BASELINES, Protocol, Settings
from shard.cli import run
from shard.errors import InputError
from shard.machine import choose_part
from shard.manifest import parse_manifest
from train.config import Device


def report(
    *encoders: str, shards: Path, out: Path | None = None, baselines: tuple[str, ...] = BASELINES,
    shots: tuple[str, ...] = ("1", "5", "10", "50", "all"), draws: int = 50, tasks: str | None = None,
    uncertain: Uncertain = "exclude", blank: Blank = "exclude", draws_file: Path | None = None,
    protocol: Protocol = "ours", finetune: int = 0, imagenet_weights: Path | None = None, size: int = 0,
    input: str = "", cache: Path | None = None, seed: int = 0, batch_size: int = 128, device: Device = "auto",
    workers: int = 0, part: int | None = None, parts: int | None = None,
) -> None:  # fmt: skip
    """Probe frozen encoders with few labels against random weights, the image's own pixels and ImageNet's weights.

    ENCODERS: runs (their newest checkpoint), checkpoints, or files of weights of torchvision or timm; NAME=PATH gives
    one a name, PATH::KEY takes the network under a key of a file that holds several. A probe is one logistic regression
    learned from k positives and k negatives of as many training patients, and tested on patients never trained on;
    --shots=1,5,10,50,all says with which k, --draws=N how often. Leaves
    report.html, table.md, table.csv, table.tex, differences.csv, draws.csv and figures/ in --out (RUN/report).

    --tasks=A,B names findings of the shards, by default those of the published table; one with a comma is quoted as in
    a CSV. --uncertain and --blank say what
    becomes of such labels; left out, if nothing is said. --draws-file: another report's draws.csv, instead of drawing
    anew. --baselines: of scratch, thumbnail, imagenet, whose weights are downloaded or --imagenet-weights=FILE.
    --finetune=N fine-tunes whole encoders as well, on the first N draws. --protocol=paper puts the published protocol,
    which is shown in any case, first. --cache: where features are kept (OUT/features). --size: the images' side, 0 for
    what each encoder was trained at. --seed: of the draws, the bootstrap and random weights. --batch-size, --device,
    --workers (0: one a core): for the features.

    --input says how images are made for weights beside which no config.json says it: NAME:imagenet,
    NAME:torchxrayvision, or NAME:mean=M,std=S and size=N, range=LOW/HIGH, interpolation=bilinear|bicubic, all after
    commas; more encoders after another comma.

    --part=K --parts=N measures a part, as tasks of a Slurm job array do; then: python -m probe merge OUT.
    """
    settings = locals()
    part, parts = choose_part(settings.pop("part"), settings.pop("parts"))
    if not encoders:
        raise InputError("no encoder; give a run, a checkpoint or a file of weights")
    if out is None:
        _, first = split_spec(encoders[0])
        if len(encoders) > 1 or not first.is_dir():
            raise InputError("--out=DIR: is wanted where the report is not of one run")
        settings["out"] = first / "report"
    settings["tasks"] = split_tasks(tasks, parse_manifest(shards).findings) if tasks else ()
    checked = Settings(**settings)
    from probe.report import make_report

    make_report(checked, part, parts)


def merge(out: Path) -> None:
    """Write the report of the parts in OUT, which `report --part=K --parts=N --out=OUT` measured."""
    from probe.report import merge_report

    merge_report(out)


if __name__ == "__main__":
    # A report of several is a report: the second word is there for who looks for it.
    run("python -m probe", {"report": report, "compare": report, "merge": merge})
