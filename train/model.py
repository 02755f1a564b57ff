"""The SimCLR model: an encoder for one grey channel, and a projector."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from train.architectures import build_encoder

PROJECTION = 128


class SimCLR(nn.Module):
    """Encoder f and projector g of SimCLR (Chen et al., 2020): x [N, 1, S, S] → h [N, F] → z [N, 128].

    freeze_batchnorm: whether the encoder's BatchNorm normalises by its running statistics in training, too, and keeps
    them. Its scale and shift are trained as always.
    """

    def __init__(self, arch: str, size: int = 224, *, freeze_batchnorm: bool = False) -> None:
        super().__init__()
        self._freeze_batchnorm = freeze_batchnorm
        self.encoder, features = build_encoder(arch, size)
        self.projector = nn.Sequential(
            nn.Linear(features, features), nn.ReLU(inplace=True), nn.Linear(features, PROJECTION)
        )

    def train(self, mode: bool = True) -> SimCLR:
        """Set the training mode, in which frozen BatchNorm stays in its evaluation mode."""
        super().train(mode)
        if self._freeze_batchnorm:
            for module in self.encoder.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Project images [N, 1, S, S] to z [N, 128], not normalised."""
        z: torch.Tensor = self.projector(self.encoder(x))
        return z


def hash_weights(module: nn.Module | None, description: str = "") -> str:
    """Return the sha256 of a description, and of the names and values of a module's tensors, if there is a module."""
    digest = hashlib.sha256(description.encode())
    for name, value in (module.state_dict() if module is not None else {}).items():
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def encoder_of(state: Mapping[str, Any]) -> tuple[nn.Module, int]:
    """Build the encoder of a checkpoint's state, and return it with its feature width F.

    Raises the errors that checkpoint.translate_load_errors translates if the state does not fit.
    """
    encoder, features = build_encoder(state["config"]["arch"], state["config"]["size"])
    prefix = "encoder."
    encoder.load_state_dict({name[len(prefix) :]: value for name, value in state["model"].items()
                             if name.startswith(prefix)})  # fmt: skip
    return encoder, features
