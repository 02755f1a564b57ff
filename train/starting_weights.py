"""StartingWeights: what --init starts the encoder from, and the record of it that checkpoints and cards keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from shard.errors import InputError
from shard.files import sha256_of
from shard.manifest import read_manifest
from train.architectures import build_encoder
from train.checkpoint import load_newest_intact, step_of, translate_load_errors
from train.config import Config
from train.distributed.ranks import Ranks
from train.model import hash_weights
from train.recipe import StartRecord, parse_start
from train.start_source import StartSource, open_start
from train.weights.choose_network import split_key
from train.weights.fold import fold_to_grey
from train.weights.load import weights_file
from train.weights.source import parse_source


class StartingWeights(NamedTuple):
    """record: describes the weights; {} if they are random. encoder: its state dict; None to leave it as it is."""

    record: StartRecord
    encoder: dict[str, torch.Tensor] | None

    def load_into(self, encoder: nn.Module) -> None:
        """Load the weights into the encoder of a run at step 0."""
        if self.encoder is not None:
            encoder.load_state_dict(self.encoder)


def read_starting_weights(config: Config, ranks: Ranks) -> StartingWeights:
    """Read the weights of --init on the first rank, for all ranks, and print what is taken and what is left.

    A run that has checkpoints continues with their weights: only the record is returned, and the file of --init must be
    the same or no longer exist. Raises InputError if the weights do not fill the encoder of --arch.
    """
    read = StartingWeights({}, None)
    if ranks.first and config.init:
        begun = load_newest_intact(config.out)
        read = _read(config) if begun is None else StartingWeights(_check_begun(config, *begun[:2]), None)
    broadcast: StartingWeights = ranks.broadcast(read)
    return broadcast


def _read(config: Config) -> StartingWeights:
    manifest = read_manifest(config.folder)
    source = open_start(config.init, config.init_input, config.arch, config.size)
    grey, _ = build_encoder(config.arch, config.size)
    folded = fold_to_grey(source.encoder, grey, mean=source.mean, std=source.std, grey_mean=manifest.pixel_mean,
                          grey_std=manifest.pixel_std, size=config.size, name=f"--init={config.init}")  # fmt: skip
    file = source.file
    record = {
        "init": str(config.plain()["init"]), "init_input": config.init_input, "name": source.name,
        "file": str(file.absolute()) if file else "", "file_sha256": sha256_of(file) if file else "",
        "input": source.describe_input(), "sha256": hash_weights(grey), "trained_on": source.trained_on,
    }  # fmt: skip
    _print_taken(config, source, record, [folded], len(grey.state_dict()))
    return StartingWeights(record, grey.state_dict())


def _print_taken(config: Config, source: StartSource, record: StartRecord, notes: Sequence[str], tensors: int) -> None:
    """Print what is taken of the weights, what is left, and what stays random."""
    digest = f"sha256 {record['file_sha256']}" if record["file_sha256"] else "downloaded, or from the cache"
    print(f"--init={config.init}: the encoder starts from {source.file or source.name} ({digest})")
    print(f"  taken: all {tensors} tensors of {config.arch}; sha256 as loaded {record['sha256']}")
    for note in (*notes, f"trained on images with {record['input']}", *source.notes):
        print(f"  {note}")
    print(f"  left: {source.left or 'nothing'}")
    print("  random: the projector", flush=True)


def _check_begun(config: Config, path: Path, state: Mapping[str, Any]) -> StartRecord:
    """Return the record of a run that has checkpoints. Raises InputError if it started from other weights."""
    with translate_load_errors(path):
        record = parse_start(state.get("init"))
    given, other = str(config.plain()["init"]), "choose another --out"
    if not record:
        raise InputError(f"--init={config.init}: {config.out} contains a run that started from random weights, up to "
                         f"step {step_of(path)}; omit --init, or {other}")  # fmt: skip
    if config.init_input != record["init_input"]:
        raise InputError(f"--init-input={config.init_input}: the run in {config.out} started with "
                         f"--init-input={record['init_input']}; give that, or {other}")  # fmt: skip
    file = Path(record["file"]) if given == record["init"] else _file_of(given, record)
    if file.is_file():
        if (found := sha256_of(file)) != record["file_sha256"]:
            raise InputError(f"--init={config.init}: {file} has sha256 {found}, but the run in {config.out} started "
                             f"from weights with {record['file_sha256']}; restore them, or {other}")  # fmt: skip
    elif given != record["init"]:
        raise InputError(f"--init={config.init}: not what the run in {config.out} started from; give "
                         f"--init={record['init']}, or {other}")  # fmt: skip
    elif record["file"]:
        print(f"--init={config.init}: {file} no longer exists; the run continues with the weights in its checkpoint")
    return record


def _file_of(init: str, record: StartRecord) -> Path:
    """Return the file that --init names; for a run, its checkpoint of the recorded name."""
    path = split_key(parse_source(init).path or Path())[0]
    if (path / "checkpoints").is_dir():
        return path / "checkpoints" / Path(record["file"]).name
    return weights_file(path)
