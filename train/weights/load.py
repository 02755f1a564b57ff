"""Read the encoder in a file of weights from any source, and its documented input settings."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from pipeline.augmentation import Augmentation
from shard.errors import InputError
from train.architectures import build_encoder
from train.weights.choose_network import flatten_tensors, split_key
from train.weights.convert import to_float32
from train.weights.diagnosis import AGAIN, explain_safetensors, is_safetensors, printable
from train.weights.find_architecture import check_entry, list_architectures
from train.weights.find_encoder import State
from train.weights.find_network import Network, find_network
from train.weights.notes import list_rest, note_assumption, note_encoder, note_segmentation
from train.weights.preprocessing import Stated
from train.weights.preprocessing_configs import CONFIG, PREPROCESSOR, read_json, stated_by_configs
from train.weights.read import UnreadableTensors, read_tensors
from train.weights.unknown import EXPECTED

FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")  # in a folder of timm's or Hugging Face's


class Weights(NamedTuple):
    """An encoder without its classifier, [N, channels, S, S] → [N, F], in evaluation mode.

    card: the model card, if the file is our export. stated: what a config next to it states about its input. notes: how
    the file was read, one per line. left: what the file has beside the encoder, such as fc.* or projector.*.
    """

    arch: str
    encoder: nn.Module
    channels: int
    card: dict[str, Any] | None
    stated: Stated
    notes: list[str]
    left: list[str] = []  # noqa: RUF012 - never changed


def read_weights(path: Path, arch: str = "", size: int = 0) -> Weights:
    """Read the encoder in a file of weights, .pt or .safetensors, or in timm's folder.

    path: PATH::KEY selects the network under a key. arch: resnet50, timm/NAME or torchvision/NAME; "" finds it out.
    size: the side in pixels of the images, for encoders that are built for one size; 0: that of their training. The
    file is read as data; code in it is refused. Raises InputError, also if a tensor of the encoder is not in the file,
    or if the file is of another architecture.
    """
    path, key = split_key(path)
    content, card = read_file(weights_file(path))
    tensors = flatten_tensors(content)
    if not tensors:
        raise InputError(f"{path}: contains no named tensors; {EXPECTED}")
    folder = path if path.is_dir() else path.parent
    config = {} if card else read_json(folder / CONFIG)
    stated = Stated() if card else stated_by_configs(config, read_json(folder / PREPROCESSOR), folder)
    own_size = card["input"]["size"] if card else stated.size or 0
    architectures = list_architectures(path, arch, content, card, config, tensors)
    network = find_network(path, key, tensors, architectures, (size, own_size))
    found, named = network.found, network.architecture
    if not named.source and isinstance(content, Mapping):
        check_entry(path, content.get("arch"), named.arch)
    state, notes = to_float32(found, path)
    encoder = _build(network, state)
    notes = [*network.notes, *notes, *note_encoder(encoder, found)]
    if card is None:
        notes += [*note_segmentation(tensors), *([] if named.source else [note_assumption(named.arch)])]
    return Weights(named.arch, encoder, found.outline.channels, card, stated, notes, list_rest(found, tensors))


def weights_file(path: Path) -> Path:
    """The file of weights at a path: itself, or the one in a folder of timm's or Hugging Face's."""
    if not path.is_dir():
        return path
    return next((path / name for name in FOLDER_FILES if (path / name).exists()), path / FOLDER_FILES[0])


def _build(network: Network, state: State) -> nn.Module:
    """Build the encoder with these weights."""
    named, channels = network.architecture, network.found.outline.channels
    with torch.random.fork_rng(devices=[]):  # its random start is not used
        encoder, _ = build_encoder(named.arch, network.size, channels, named.model_args)
    encoder.load_state_dict(state)
    return encoder.eval()


def read_file(path: Path) -> tuple[Any, dict[str, Any] | None]:
    """Read a file of weights as data: its content, and the model card in it. Raises InputError."""
    if path.is_file() and _begins_as_safetensors(path):  # whatever its suffix
        return _read_safetensors(path)
    try:
        content = read_tensors(path)
    except UnreadableTensors as error:
        raise InputError(f"{path}: can't be read as weights: {error}; {error.cure or EXPECTED}") from None
    return content, _card_in(path, lambda: content.card) if hasattr(content, "card") else None


def _begins_as_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        return is_safetensors(file.read(16))


def _read_safetensors(path: Path) -> tuple[State, dict[str, Any] | None]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise InputError(f"{path}: reading safetensors needs a package: pip install '.[export]'") from None
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in list(file.keys())}
    except (SafetensorError, OSError) as error:
        cause = explain_safetensors(path.read_bytes()) or printable(error, 200)
        raise InputError(f"{path}: can't be read as safetensors: {cause}; {AGAIN}") from None
    return state, _card_in(path, lambda: json.loads(metadata["card"])) if "card" in metadata else None


def _card_in(path: Path, read: Callable[[], Any]) -> dict[str, Any]:
    """Read a file's model card and check its input. Raises InputError if it does not state how images are made."""
    try:
        card: dict[str, Any] = read()
        Augmentation(**{name: card["input"][name] for name in ("size", "mean", "std")})  # checks the values
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{path}: its model card can't be read ({reason}); {EXPECTED}") from None
    return card
