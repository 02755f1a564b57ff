"""One rank of test_ranks.py, in a separate process: python -m tests.one_rank SHARDS OUT [CASE …]."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from tests.small import SmallModel
from train.config import Config
from train.distributed.batchnorm import convert_sync_batchnorm
from train.distributed.process_group import init_distributed
from train.distributed.ranks import Ranks
from train.large_batch import apply_activation_checkpointing
from train.optim import make_optimizer
from train.setup import set_up
from train.step import forward_backward, update

IMAGES = 12  # in the joint batch
# Case → settings, and whether BatchNorm is in training mode.
CASES: dict[str, tuple[dict[str, Any], bool]] = {
    "synchronised": ({}, True),
    "eval": ({"sync_batchnorm": False}, False),
    "recompute": ({"recompute": True}, True),
    "micro-batches": ({"micro_batch": 2}, True),
    "clipped": ({"clip": 0.01}, True),
    "masked": ({"same_patient": "masked"}, True),
    "positives": ({"same_patient": "positives"}, True),
    "masked by micro-batches": ({"same_patient": "masked", "micro_batch": 2}, True),
    # timm's BatchNorm with an activation, in place of SmallModel
    "timm": ({"arch": "timm/test_efficientnet", "recompute": True}, True),
}
# Models whose step takes seconds.
LONG_CASES: dict[str, tuple[dict[str, Any], bool]] = {
    name: ({"arch": f"timm/{name}"}, True) for name in ("densenet121", "efficientnet_b0")
}
PATIENTS = torch.arange(IMAGES) % 5  # of the joint batch


def joint_batch() -> torch.Tensor:
    """Return both views of all images, [2, 12, 1, 32, 32]."""
    torch.manual_seed(1)
    return torch.randn(2, IMAGES, 1, 32, 32, dtype=torch.float64)


def small_model(config: Config, ranks: Ranks) -> SmallModel:
    """Return a SmallModel, set up for the ranks and --recompute as set_up does."""
    model = SmallModel(dropout=0.0)
    if ranks.world > 1 and config.sync_batchnorm:
        convert_sync_batchnorm(model, torch.device("cpu"))
    if config.recompute:
        apply_activation_checkpointing(model)
    return model


def take_step(
    shards: Path, case: str, ranks: Ranks, views: torch.Tensor, patients: torch.Tensor, micro_batch: int = 0
) -> dict[str, Any]:
    """Take one step on this rank's views; return loss, gradients and updated weights. patients: of the joint batch."""
    settings, training = (CASES | LONG_CASES)[case]
    micro_batch = micro_batch or settings.get("micro_batch", 0)
    config = Config(shards=shards, out=shards / "none", size=32, batch_size=IMAGES, lr=1e-3, device="cpu",
                    precision="fp32", **{"arch": "resnet18", **settings, "micro_batch": micro_batch})  # fmt: skip
    state = set_up(config, ranks).state
    model: Any = state.model.double() if "arch" in settings else small_model(config, ranks)
    model.train(training)
    state.model = state.forward = model
    state.optimizer = make_optimizer("adam", model, lr=config.lr, weight_decay=0.1)
    loss, z1, z2 = forward_backward(state, views[0], views[1], temperature=config.temperature, patients=patients,
                                    same_patient=config.same_patient, micro_batch=micro_batch,
                                    recompute=config.recompute)  # fmt: skip
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    update(state, lr=config.lr, clip=config.clip)
    return {"loss": loss, "loss_bytes": loss.untyped_storage().nbytes(),
            "z": torch.stack([z1, z2]), "gradients": gradients, "model": model.state_dict()}


def main(shards: Path, out: Path, cases: list[str]) -> None:
    """Take one step of each case and save the results."""
    with init_distributed("cpu") as ranks:
        share = IMAGES // ranks.world
        own = joint_batch()[:, ranks.rank * share : (ranks.rank + 1) * share]
        result = {case: take_step(shards, case, ranks, own, PATIENTS) for case in cases}
    torch.save(result, out / f"rank-{ranks.rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:] or list(CASES))
