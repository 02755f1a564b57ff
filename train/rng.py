"""Save and restore the state of every random number generator that training may use."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def rng_state(device: torch.device) -> dict[str, Any]:
    """Return the states of the generators of Python, NumPy and PyTorch, on the CPU and on `device`.

    All values are tensors or plain data, so that a checkpoint can hold them.
    """
    numpy: Any = np.random.get_state(legacy=False)
    state = {"python": random.getstate(), "torch": torch.get_rng_state(),
             "numpy": {**numpy, "state": {**numpy["state"], "key": numpy["state"]["key"].tolist()}}}  # fmt: skip
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(state: dict[str, Any], device: torch.device) -> None:
    """Restore what rng_state returned; on a GPU the GPU's generator too, if the state was taken on one."""
    numpy = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state({**numpy, "state": {**numpy["state"], "key": np.array(numpy["state"]["key"], np.uint32)}})
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def seed_all(seed: int) -> None:
    """Seed the generators of Python, NumPy and PyTorch, including those that this project does not use."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
