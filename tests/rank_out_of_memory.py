"""A rank that trains, and on which memory runs out in step 2: python -m tests.rank_out_of_memory RANK FLAGS."""

from __future__ import annotations

import os
import sys
from typing import Any

import torch

from shard.cli import run
from train.config import Config
from train.loop import pretrain
from train.model import SimCLR


def main() -> None:
    """Train as python -m train does. RANK: the one without memory."""
    forward, calls = SimCLR.forward, 0

    def fail_in_step_2(self: SimCLR, x: torch.Tensor) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2 and os.environ["RANK"] == sys.argv[1]:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(self, x)

    SimCLR.forward = fail_in_step_2  # type: ignore[method-assign]

    def train(config: Config) -> None:
        pretrain(config)

    run("python -m train", train, sys.argv[2:])


if __name__ == "__main__":
    main()
