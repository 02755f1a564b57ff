"""The description of features in their file's metadata: weights, preprocessing, images and versions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from probe.embed.work import Work
from probe.encoder import Encoder
from probe.full_precision import device_name
from probe.names import absolute_spec
from shard.address import Address, absolute_place
from shard.files import sha256_of
from shard.machine import commit, version_of
from train.checkpoint import HASH_DIGITS, list_checkpoints, step_of
from train.weights.choose_network import split_key
from train.weights.load import weights_file

FORMAT = "cxr-simclr-features/1"
PACKAGES = ("torch", "torchvision", "timm", "transformers", "nvidia-dali-cuda120", "pillow", "numpy", "pyarrow")


def describe(work: Work, width: int) -> dict[str, Any]:
    """Describe the features for the file's metadata: where they come from and how they were made."""
    settings, encoder, manifest = work.settings, work.encoder, work.manifest
    file = _weights_file(work)
    return {
        "format": FORMAT, "command": settings.command(absolute_spec(work.given), work.src),
        "encoder": {"name": encoder.name, "source": encoder.source, "architecture": work.arch,
                    "pooling": encoder.features,
                    "sha256": encoder.sha256(), "file": str(file.absolute()) if file else None,
                    "file_sha256": sha256_of(file) if file else None, "notes": list(encoder.notes)},
        "input": _input(encoder),
        "shards": {"folder": absolute_place(work.src if isinstance(work.src, Address) else work.shards),
                   "fingerprint": manifest.fingerprint(),
                   "settings": manifest.settings, "rejected": manifest.rejected},
        "images": work.images, "splits": list(work.splits), "findings": list(manifest.findings), "width": width,
        "dtype": settings.dtype, "batch_size": settings.batch_size, "backend": work.backend,
        "device": device_name(work.device), "commit": commit(), "versions": versions(),
    }  # fmt: skip


def stated_identity(description: Mapping[str, Any]) -> dict[str, Any]:
    """What Work.identity was when a file was written, from its description."""
    return {"weights": description["encoder"]["sha256"][:HASH_DIGITS], "shards": description["shards"]["fingerprint"],
            "splits": description["splits"], "dtype": description["dtype"]}  # fmt: skip


def _input(encoder: Encoder) -> dict[str, Any]:
    """How the network's images are made: its statistics, one for each of its channels, and not those of the loader."""
    fed = encoder.fed
    # Numbers that come from tensors are float32, with 7 digits.
    mean, std = ([float(f"{value:.7g}") for value in values] for values in (fed.mean, fed.std))
    return {"size": fed.images.size, "interpolation": fed.images.interpolation, "mean": mean, "std": std,
            "stated": fed.source, "ignored": fed.ignored, "unstated": list(fed.unstated)}  # fmt: skip


def _weights_file(work: Work) -> Path | None:
    """The file that the weights were read from; None if they are in several, or in the cache of downloads."""
    if work.encoder.run is not None and work.encoder.state is not None:
        step = work.encoder.state["step"]
        return next((path for path in list_checkpoints(work.encoder.run) if step_of(path) == step), None)
    if work.source.path is None:
        return None
    return found if (found := weights_file(split_key(work.source.path)[0])).is_file() else None


def versions() -> dict[str, str]:
    """Return the versions of the libraries that decide the features and the file."""
    return {name: version_of(name) for name in PACKAGES}
