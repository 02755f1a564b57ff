"""python -m train --dali --shards=DIR --out=DIR; python -m train status RUN; python -m train export RUN"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pipeline.augmentation import ViewDevice
from shard.cli import run
from train.config import Arch, Config, Device, Optimizer, Precision, Schedule, check_batch
from train.export.model_card import Format
from train.presets import Preset, SamePatient, with_preset

# What the commands do is imported by who does it: PyTorch takes seconds, and a flag that is wrong is told of before.


def train(
    *, shards: Path, out: Path, dali: bool = False, preset: Preset = "published", arch: Arch = "resnet50",
    size: int = 224, epochs: int = 100, batch_size: int = 64, lr: float = 3e-4, temperature: float | None = None,
    crop_min: float | None = None, flip: float | None = None, blur: float | None = None,
    patient_positive: float | None = None, same_patient: SamePatient | None = None, optimizer: Optimizer = "adam",
    schedule: Schedule | None = None, warmup_epochs: float | None = None, weight_decay: float = 0.0, clip: float = 0.0,
    recompute: bool = False, micro_batch: int = 0, sync_batchnorm: bool = True, precision: Precision = "auto",
    device: Device = "auto", compile: bool = False, views: ViewDevice = "auto", workers: int = 0, seed: int = 0,
    limit_steps: int = 0, log_every: int = 50, checkpoint_minutes: float = 10.0, online_every: int = 10,
    resume: str = "auto", accept: tuple[str, ...] = (),
) -> None:  # fmt: skip
    """Pre-train an encoder with SimCLR on the shards' training split; run again, it goes on where it stopped.

    The recipe: the defaults are the published one; --preset=patient is the one that docs/recipe.md found. Flags for
    which no default is shown are as the preset has them and, given, override it. --temperature: of NT-Xent.
    --crop-min: the least share of an image in a view. --flip, --blur: probabilities. --patient-positive: how often view
    2 is of another image of the patient, for which the shards are built with --partners. --same-patient: what a
    patient's other images in the batch are to the loss. --lr: at its highest; --schedule: what becomes of it after
    --warmup-epochs, which may be a part of one. --clip: the longest that a gradient may be, 0 for any.

    Views are made by NVIDIA DALI with --dali, else by torchvision; --views says where, auto choosing the CPU where it
    has cores enough to feed the GPU. --workers: loader threads, 0 for one a core. --precision=auto is fp16 with a
    gradient scaler on a GPU, bf16 on a CPU that has it. --compile: by torch.compile.

    --batch-size counts the images of a step over all ranks, which torchrun or srun starts. A batch too large for
    memory: --recompute, exact; or --micro-batch=M, M images at a time in constant memory, exact but for BatchNorm,
    which then sees M images (2M views); --sync-batchnorm=false has it see a rank's views alone.

    A checkpoint is written every epoch, every --checkpoint-minutes (0: never between), and on SIGUSR1 or SIGTERM,
    which end the run with status 75 for the scheduler to requeue. Kept are the last two, every tenth epoch, and the
    best by the online probe (every --online-every epochs, on training patients; 0: none). --resume=auto goes on from
    --out's newest; never ends with an error where --out has one; PATH begins from another run's. A run goes on under
    the settings, shards and code it began with; --accept=NAME,… lets differences through. --limit-steps ends early, for
    a trial. --log-every: steps from line to line of the journal. --seed: of weights, order and views.
    """
    settings = with_preset(locals())
    check_batch(shards, batch_size)
    config = Config(**settings)
    from train.loop import pretrain

    pretrain(config)


def status(run: Path) -> None:
    """Say where RUN stands, or each run in the folder RUN of a sweep, and what to run next.

    Reads their files alone, and may be asked at any time.
    """
    from train.status import status

    status(run)


def export(
    run: Path, *, format: Format = "torchvision", out: Path | None = None, checkpoint: Path | None = None
) -> None:
    """Write RUN's encoder as others load it, with its model card inside and beside it, into --out (RUN/export).

    torchvision: a state dict for torchvision.models.resnet50(); timm: a folder for timm.create_model("local-dir:…");
    safetensors: one file of the same weights; onnx: a graph from a grey image in 0…1 to features. The newest
    checkpoint is taken, or --checkpoint=FILE.
    """
    from train.export.export import export

    export(run, format=format, out=out, checkpoint=checkpoint)


COMMANDS: dict[str, Callable[..., None]] = {"": train, "status": status, "export": export}

if __name__ == "__main__":
    run("python -m train", COMMANDS)
