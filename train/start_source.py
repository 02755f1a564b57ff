"""StartSource: the weights that --init names, opened, with the statistics of the images that they were trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from shard.errors import InputError
from train.architectures import check_arch, resize_input
from train.checkpoint import is_checkpoint, load_checkpoint, load_newest, translate_load_errors
from train.config import IMAGENET
from train.model import encoder_of
from train.weights.choose_network import split_key
from train.weights.diagnosis import list_some
from train.weights.imagenet import NoImageNetWeights, read_imagenet
from train.weights.load import FOLDER_FILES, Weights, weights_file
from train.weights.open import open_weights
from train.weights.preprocessing import Stated, format_channels, parse_init_input, per_channel
from train.weights.source import Source, parse_source, path_exists
from train.weights.transformers_folder import is_transformers

UNKNOWN = "unknown"  # what weights from elsewhere were trained on


class StartSource(NamedTuple):
    """An encoder [N, C, S, S] → [N, F] of the run's architecture and size, in evaluation mode, and where it is from.

    mean, std: of the images that it was trained on, grey levels in 0..1, per channel. stated_by: where they are stated,
    in words. file: the one that was read; None if it was downloaded. name: for messages and the model card. trained_on:
    the fingerprint of shards, ImageNet or unknown. notes: how it was read. left: what else the file contains.
    """

    encoder: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    stated_by: str
    file: Path | None
    name: str
    trained_on: str
    notes: tuple[str, ...]
    left: str

    def describe_input(self) -> str:
        """Describe the statistics of its images, and who states them."""
        return f"mean {format_channels(self.mean)}, std {format_channels(self.std)}, {self.stated_by}"


def open_start(init: str, init_input: str, arch: str, size: int) -> StartSource:
    """Open what --init names: a run, a checkpoint, weights of any kind, or "imagenet".

    init_input: the flag --init-input, "" if not given. arch, size: of the run. Raises InputError if it does not exist,
    has another architecture, or states no mean and std.
    """
    requested = parse_init_input(init_input) if init_input else None
    if init == IMAGENET:
        try:
            weights = read_imagenet(arch, size)
        except NoImageNetWeights as error:
            raise InputError(f"--init={IMAGENET}: {error}; give a file of such weights: --init=PATH, with "
                             "--init-input if no config states its mean and std") from None  # fmt: skip
        return _of_weights(weights, init, requested, size, None, weights.notes[0], "ImageNet")
    source = parse_source(init)
    if source.path is None:  # weights that are downloaded by name
        weights = _open_weights(source, init, arch, size)
        return _of_weights(weights, init, requested, size, None, source.arch, UNKNOWN)
    file, key = split_key(source.path)
    if not path_exists(source.path):
        raise InputError(f"--init={init}: no such file or folder; give a run, a checkpoint, or weights")
    if file.is_dir() and not any((file / name).exists() for name in FOLDER_FILES):
        found = load_newest(file)
        if found is None:
            raise InputError(f"--init={init}: has no checkpoint in {file / 'checkpoints'}, and no weights "
                             f"({' or '.join(FOLDER_FILES)}); give a run, a checkpoint, or weights")  # fmt: skip
        return _of_run(*found, init, requested, arch, size)
    if file.is_file() and not key and is_checkpoint(file):
        return _of_run(file, load_checkpoint(file), init, requested, arch, size)
    weights, inside = _open_weights(source, init, arch, size), weights_file(file)
    card = weights.card or {}
    data = card.get("data")
    shards = data.get("fingerprint") if isinstance(data, dict) else None
    trained_on = combine_trained_on(shards, card.get("init"))
    name = f"{file.name}/{inside.name}" if file.is_dir() else file.name
    return _of_weights(weights, init, requested, size, inside, name, trained_on)


def combine_trained_on(shards: str | None, init: Any) -> str:
    """Return what a run's encoder was trained on: its shards, if it did not start from weights of other radiographs.

    shards: their fingerprint. init: the record of its start, or whatever a card has in its place.
    """
    before = init.get("trained_on", UNKNOWN) if isinstance(init, dict) and init else UNKNOWN if init else ""
    return shards if shards and before in ("", "ImageNet", shards) else UNKNOWN


def _of_run(
    path: Path, state: dict[str, Any], init: str, requested: Stated | None, arch: str, size: int
) -> StartSource:  # fmt: skip
    """Take the encoder of a run's checkpoint."""
    if requested is not None:
        raise InputError(f"--init-input: {init} is a run, which states how its images are made; omit it")
    with translate_load_errors(path):
        config, augmentation = state["config"], state["augmentation"]
        if config["arch"] != arch:
            raise _other_architecture(init, config["arch"], arch, size)
        encoder, _ = encoder_of(state)
        notes = _resize(encoder, size)
        return StartSource(encoder.eval(), (float(augmentation["mean"]),), (float(augmentation["std"]),),
                           "from its checkpoint", path, f"{path.absolute().parent.parent.name}, step {state['step']}",
                           combine_trained_on(state["shards"], state.get("init")), notes,
                           "the projector, the optimizer and the state of the run")  # fmt: skip


def _resize(encoder: nn.Module, size: int) -> tuple[str, ...]:
    """Prepare an encoder for images of size × size, and return a note if that changed the shapes of its tensors."""
    before = {name: value.shape for name, value in encoder.state_dict().items()}
    resize_input(encoder, size)
    resized = [f"{name} from {list(before[name])} to {list(value.shape)}"
               for name, value in encoder.state_dict().items() if before[name] != value.shape]  # fmt: skip
    return (f"resampled by timm for images of {size} px: {', '.join(resized)}",) if resized else ()


def _open_weights(source: Source, init: str, arch: str, size: int) -> Weights:
    """Open weights as those of `arch`; if they do not fit it, say which architecture fits, if that is known."""
    if source.path is not None and not source.arch and not is_transformers(source.path):
        try:
            return open_weights(Source(arch, source.path))
        except InputError as error:
            try:
                weights = open_weights(source)
            except InputError:
                raise error from None
            raise _other_architecture(init, weights.arch, arch, size) from None
    weights = open_weights(source)
    if weights.arch != arch:
        raise _other_architecture(init, weights.arch, arch, size)
    return weights


def _other_architecture(init: str, found: str, arch: str, size: int) -> InputError:
    try:
        check_arch(found, size)
    except InputError:  # a network of transformers, or one that can't take this size
        cure = f"give weights of {arch}"
    else:
        cure = f"give --arch={found}, or weights of {arch}"
    return InputError(f"--init={init}: weights of {found}, not of --arch={arch}; {cure}")


def _of_weights(
    weights: Weights, init: str, requested: Stated | None, size: int, file: Path | None, name: str, trained_on: str
) -> StartSource:  # fmt: skip
    """Take an encoder with the mean and std that are requested, or else those that its card or config states."""
    stated = weights.stated if requested is None else requested
    if weights.card is not None:
        if requested is not None:
            raise InputError(f"--init-input: {init} has a model card, which states how its images are made; omit it")
        images = weights.card["input"]
        stated = Stated((images["mean"],), (images["std"],), source="from its model card")
    if stated.mean is None or stated.std is None:
        raise InputError(f"--init={init}: nothing states the mean and std of its images; state them: "
                         "--init-input=imagenet, --init-input=torchxrayvision, or --init-input=mean=M,std=S (M and S "
                         "may be R/G/B; and range=LOW/HIGH)")  # fmt: skip
    mean, std = (per_channel(values, weights.channels, f"--init={init}", "--init-input=")
                 for values in (stated.mean, stated.std))  # fmt: skip
    notes = (*weights.notes, *_resize(weights.encoder, size))
    return StartSource(weights.encoder, mean, std, stated.source, file, name, trained_on, notes,
                       list_some(weights.left, most=4))  # fmt: skip
