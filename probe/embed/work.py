"""What is embedded: an encoder and the images of some splits, opened and checked before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.augmentation import Augmentation
from pipeline.loader import Backend, default_backend
from probe.embed.settings import EmbedSettings
from probe.embed.source import is_shards, read_source, write_shards
from probe.encoder import Encoder
from probe.encoders import open_encoder
from probe.feature_parts import Part, list_parts
from probe.names import split_spec
from shard.address import Address, Place
from shard.cache import open_shards
from shard.errors import InputError
from shard.manifest import Manifest, read_manifest
from train.checkpoint import HASH_DIGITS
from train.device import resolve_device
from train.weights.preprocessing import Input, parse_input_flag
from train.weights.source import Source


@dataclass(frozen=True)
class Work:
    """What is embedded: an encoder, opened, and the images of some splits of shards.

    given: the encoder as the user names it. source: its weights. paths: key → path in the source, {} for shards.
    """

    settings: EmbedSettings
    given: str
    source: Source
    arch: str
    encoder: Encoder
    src: Place
    shards: Path
    manifest: Manifest
    splits: tuple[str, ...]
    paths: Mapping[str, str]
    backend: Backend
    device: torch.device

    @property
    def images(self) -> int:
        """The number of images."""
        return sum(self.manifest.images(split) for split in self.splits)

    def list_parts(self) -> list[Part]:
        """The parts of the work."""
        every = {split: range(self.manifest.images(split)) for split in self.splits}
        return list_parts(every, self.settings.batch_size)

    def identity(self) -> dict[str, Any]:
        """Identify the file's content: equal for two commands whose files have the same rows and features."""
        return {"weights": self.encoder.sha256()[:HASH_DIGITS], "shards": self.manifest.fingerprint(),
                "splits": list(self.splits), "dtype": self.settings.dtype}  # fmt: skip


def open_work(given: str, src: Place, settings: EmbedSettings) -> Work:
    """Open and check everything, and write the shards of a source. Raises InputError before anything is computed."""
    device, backend = torch.device(resolve_device(settings.device)), default_backend()
    _, source = split_spec(given)
    if isinstance(src, Address) or is_shards(src):
        settings.check_source_flags(src)
        shards, paths = open_shards(src), dict[str, str]()
        manifest = read_manifest(shards)
        splits = _choose_splits(settings.splits, list(manifest.counts), src)
    else:
        _, encoder = _open_encoder(given, settings, Input(Augmentation.size, Augmentation.mean, Augmentation.std))
        table = read_source(src, settings)
        _choose_splits(settings.splits, list(table.rows["split"].unique()), src)
        shards, paths = settings.shards, dict(zip(table.rows["key"], table.rows["path"], strict=True))
        write_shards(table, src, encoder.input.size, settings)
        manifest = read_manifest(shards)
        splits = _choose_splits(settings.splits, list(manifest.counts), src)
    # As in a report: weights from elsewhere get images with the statistics of these shards.
    default = Input(settings.size or Augmentation.size, manifest.pixel_mean, manifest.pixel_std)
    arch, encoder = _open_encoder(given, settings, default)
    return Work(settings, given, source, arch, encoder, src, shards, manifest, splits, paths, backend, device)


def _open_encoder(given: str, settings: EmbedSettings, default: Input) -> tuple[str, Encoder]:
    name, source = split_spec(given)
    name = name or source.name
    stated = settings.input
    if stated and not stated.startswith(f"{name}:"):  # there is only one encoder
        stated = f"{name}:{stated}"
    return open_encoder(source, name, default, settings.size, parse_input_flag(stated, [name]).get(name))


def _choose_splits(asked: Sequence[str], available: Sequence[str], src: Place) -> tuple[str, ...]:
    for split in asked:
        if split not in available:
            raise InputError(f"--splits={','.join(asked)}: {src} has no split {split!r}; available: "
                             f"{', '.join(available)}")  # fmt: skip
    return tuple(split for split in available if split in (asked or available))
