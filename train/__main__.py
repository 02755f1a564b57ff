"""python -m train --dali --shards=DIR --out=DIR"""

from __future__ import annotations

from pathlib import Path

from pipeline.loader import Where
from shard.cli import run
from train.config import Arch, Config, Device, Precision
from train.loop import pretrain


def train(
    *, shards: Path, out: Path, dali: bool = False, arch: Arch = "resnet50", size: int = 224, epochs: int = 100,
    batch_size: int = 64, lr: float = 3e-4, temperature: float = 0.5, precision: Precision = "auto",
    device: Device = "auto", views: Where = "auto", workers: int = 0, seed: int = 0, limit_steps: int = 0,
    log_every: int = 50,
) -> None:  # fmt: skip
    """Pre-train an encoder with SimCLR on the shards' training split; run again, it goes on where it stopped.

    The defaults are the published recipe. --dali makes the views with NVIDIA DALI, without it torchvision makes them;
    --views says where, auto choosing the CPU where it has cores enough to feed the GPU. --precision=auto is fp16 with
    a gradient scaler on a GPU, bf16 on a CPU that has it. --workers: loader threads, 0 for one a core. --limit-steps
    ends the run early, for a trial.
    """
    pretrain(Config(shards, out, dali, arch, size, epochs, batch_size, lr, temperature, precision, device, views,
                    workers, seed, limit_steps, log_every))  # fmt: skip


if __name__ == "__main__":
    run("python -m train", train)
