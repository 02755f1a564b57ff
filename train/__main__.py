"""python -m train --dali --shards=DIR --out=DIR; python -m train status RUN; python -m train export RUN"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from shard.cache import CacheFlags
from shard.cli import run
from shard.flags import Command, Flag, takes_settings
from train.config import Config, check_batch
from train.export.library import Format

# Each command imports what it runs: PyTorch takes seconds to import, and a wrong flag is reported before that.


@takes_settings
def train(config: Config, cache: CacheFlags) -> None:
    """Pre-train an encoder with SimCLR on the training split of shards.

    The same command resumes a run that was stopped. SIGUSR1 and SIGTERM make the run write a checkpoint and exit with
    status 75, for a scheduler to requeue it. Start several ranks with torchrun or srun. docs/design.md has the details.

        python -m train --dali --shards=shards --out=runs/a
        python -m train --dali --shards=shards --out=runs/b --preset=patient --epochs=30 --batch-size=128
        python -m train --settings=runs/b/run.toml --out=runs/c --seed=1
    """
    cache.use()
    check_batch(config.shards, config.batch_size)
    from train.loop import pretrain

    pretrain(config)


def status(run: Annotated[Path, Flag("Folder of a run, or folder of several runs.")]) -> None:
    """Print how far a run has come and the command to run next.

    It only reads files, so it is safe while the run trains. For a folder of several runs it prints a line for each.

        python -m train status runs/a
    """
    from train.status import status

    status(run)


def export(
    run: Annotated[Path, Flag("Folder of a run.")], *,
    format: Annotated[Format | None, Flag(
        "File format. torchvision is a state dict for torchvision.models, timm a folder for "
        'timm.create_model("local-dir:DIR") and the Hugging Face hub, safetensors one file, onnx a graph from a grey '
        "image in 0…1 to features.", default="torchvision; timm for --arch=timm/NAME")] = None,
    out: Annotated[Path | None, Flag("File or folder to write.", default="RUN/export")] = None,
    checkpoint: Annotated[Path | None, Flag("Checkpoint to export.", metavar="FILE", default="newest")] = None,
) -> None:  # fmt: skip
    """Write the encoder of a run in a format that other libraries load, with its model card.

    python -m train export runs/a --format=timm
    """
    from train.export.export import export

    export(run, format=format, out=out, checkpoint=checkpoint)


COMMANDS: dict[str, Command] = {"": train, "status": status, "export": export}

if __name__ == "__main__":
    run("python -m train", COMMANDS)
