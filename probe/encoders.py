"""Open the encoders of a report: runs, checkpoints and weights of all kinds, through one function."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from pipeline.augmentation import Augmentation
from probe.baselines import BASELINES, Options, baseline_names
from probe.encoder import Encoder, GreyAsColour
from probe.names import GUESSING, MAJORITY, check_exists, check_name, split_spec
from probe.published_protocol import NOISE
from shard.errors import InputError
from train.accepted import accepted_changes, append_changes
from train.architectures import ARCHITECTURES, resize_input
from train.checkpoint import (
    is_checkpoint,
    list_checkpoints,
    load_checkpoint,
    load_newest,
    translate_load_errors,
)
from train.journal import CARD
from train.model import encoder_of
from train.recipe import describe_recipe, parse_start
from train.weights.choose_network import split_key
from train.weights.diagnosis import printable
from train.weights.load import FOLDER_FILES, Weights
from train.weights.open import open_weights
from train.weights.preprocessing import (
    Input,
    ResolvedInput,
    Stated,
    UnstatedInputError,
    parse_input_flag,
    resolve_input,
)
from train.weights.preprocessing_configs import CONFIG
from train.weights.source import Source
from train.weights.transformers_folder import check_size

SIMCLR = "SimCLR"  # the name of a single run
# The fields of a checkpoint that a report shows.
STATE_FIELDS = ("config", "augmentation", "shards", "step", "epoch", "step_in_epoch", "origin", "init",
                "accepted", "fingerprint", "commit")  # fmt: skip


def open_encoders(
    given: Sequence[str], baselines: Sequence[str], *, default: Input, size: int, imagenet_weights: Path | None,
    seed: int, inputs: str = "",
) -> list[Encoder]:  # fmt: skip
    """Open the baselines, then the encoders given: runs, checkpoints and weights, each as split_spec reads it.

    default: the statistics of our images, and their size if an encoder states none. size: overrides every encoder's
    own; 0 keeps it. inputs: the flag --input (see parse_input_flag). Baselines get the architecture and the input of
    the first encoder given. Raises InputError.
    """
    named = []
    for spec in given:
        name, source = split_spec(spec)
        check_exists(source, spec)
        named.append((source, name or _default_name(source, len(given))))
        check_name(named[-1][1], (*baseline_names(), NOISE, MAJORITY, GUESSING))
    names = [name for _, name in named]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two encoders are called {name}; name them: NAME=PATH")
    requested = parse_input_flag(inputs, names)
    opened, unstated = list[tuple[str, Encoder]](), list[tuple[str, str]]()
    for source, name in named:
        try:
            opened.append(open_encoder(source, name, default, size, requested.get(name)))
        except UnstatedInputError as error:  # collected, so that one message names them all
            unstated += error.encoders
    if unstated:
        raise UnstatedInputError(unstated)
    arch, first = opened[0]
    options = Options(arch, first.input, seed, imagenet_weights, first.module)
    return [*(BASELINES[word].build(options) for word in dict.fromkeys(baselines)),
            *(encoder for _, encoder in opened)]  # fmt: skip


def open_encoder(
    source: Source | Path, name: str, default: Input, size: int, requested: Stated | None = None
) -> tuple[str, Encoder]:  # fmt: skip
    """Open a run's folder (its newest checkpoint), a checkpoint, or weights of any kind: (architecture, encoder).

    source: PATH::KEY selects the network under a key of a file. requested: what --input states for it. Raises
    InputError.
    """
    source = source if isinstance(source, Source) else Source("", source)
    check_exists(source, str(source))
    if source.path is None or source.arch:
        return _open_weights(source, name, default, size, requested)
    file, key = split_key(source.path)
    if file.is_dir() and not any((file / inside).exists() for inside in (*FOLDER_FILES, CONFIG)):
        found = load_newest(file)
        if found is None:
            raise InputError(_no_run(file))
        _refuse_key_and_input(file, name, key, requested, "a run")
        with translate_load_errors(found[0]):
            return found[1]["config"]["arch"], simclr_encoder(found[1], name, size, file)
    if file.is_file() and is_checkpoint(file):
        _refuse_key_and_input(file, name, key, requested, "a run's checkpoint")
        state = load_checkpoint(file)
        with translate_load_errors(file):
            if file.absolute().parent.name == "checkpoints":  # the run may have been moved since
                state["config"] = {**state["config"], "out": str(file.absolute().parent.parent)}
            return state["config"]["arch"], simclr_encoder(state, name, size, None)
    return _open_weights(source, name, default, size, requested)


def _open_weights(
    source: Source, name: str, default: Input, size: int, requested: Stated | None
) -> tuple[str, Encoder]:  # fmt: skip
    weights = open_weights(source, (requested.size if requested else None) or size)
    if weights.card is not None:
        _refuse_key_and_input(source.path, name, "", requested, "an export")
    return weights.arch, weights_encoder(weights, name, source, default, size, requested)


def simclr_encoder(state: dict[str, Any], name: str = SIMCLR, size: int = 0, run: Path | None = None) -> Encoder:
    """Build the encoder of a checkpoint's model."""
    module, _ = encoder_of(state)
    augmentation = Augmentation(**state["augmentation"])  # checks the values
    if size and size != augmentation.size:
        resize_input(module, size, channels=1)
    progress = f"epoch {state['epoch']}" if not state["step_in_epoch"] else f"step {state['step']}"
    start = parse_start(state.get("init"))
    kept = {**{key: value for key, value in state.items() if key in STATE_FIELDS}, "init": start}
    recipe = append_changes(describe_recipe(state["config"], start), accepted_changes(state))
    images = Input(size or augmentation.size, augmentation.mean, augmentation.std)
    fed = _own_input(images, "from its checkpoint")
    return Encoder(name, f"{state['config']['arch']}, SimCLR, {recipe}, {progress}", module.eval(), images, state=kept,
                   run=run, notes=(fed.describe(),), given_input=fed)  # fmt: skip


def weights_encoder(
    weights: Weights, name: str, source: Source, default: Input, size: int, requested: Stated | None = None
) -> Encoder:  # fmt: skip
    """Build the encoder of weights, with its input from our export's model card or from resolve_input."""
    shown = f"{weights.arch}, {source.arch if source.path is None else split_key(source.path)[0].name}"
    if weights.card is not None:
        card = weights.card["input"]
        images = Input(size or card["size"], card["mean"], card["std"])
        fed = _own_input(images, "from its model card", weights.channels)
        shown += f", {weights.card.get('preset')}" if {"accepted", "init"} & set(weights.card) else ""
    else:
        fed = resolve_input(str(source), name, weights.channels, requested or Stated(), weights.stated,
                            default=default, size=size)  # fmt: skip
    images = fed.images
    check_size(weights.encoder, images.size, name)
    if weights.arch not in ARCHITECTURES:
        resize_input(weights.encoder, images.size)
    module: nn.Module = GreyAsColour(weights.encoder, images.mean, images.std, fed.mean, fed.std)
    if weights.card is not None and weights.channels == 1:
        module = weights.encoder  # its input is normalised as it needs
    return Encoder(name, shown, module.eval(), images, notes=(*weights.notes, fed.describe()), given_input=fed)


def _own_input(images: Input, source: str, channels: int = 1) -> ResolvedInput:
    """Describe the input of an encoder that gets the loader's images as they are."""
    return ResolvedInput(images, (images.mean,) * channels, (images.std,) * channels, source)


def _default_name(source: Source, given: int) -> str:
    return SIMCLR if given == 1 and source.path and (source.path / "checkpoints").is_dir() else source.name


def _refuse_key_and_input(path: Path | None, name: str, key: str, requested: Stated | None, kind: str) -> None:
    """Raise InputError if ::KEY or --input is given for a run or an export, which need neither."""
    if key:
        raise InputError(f"{path}::{key}: {kind} contains one encoder; omit ::{key}")
    if requested is not None:
        raise InputError(f"--input={name}:…: {path} is {kind}, which states how its images are made; omit --input")


def _no_run(path: Path) -> str:
    """The message for a folder with neither a run's checkpoint nor weights."""
    if (path / "checkpoints").is_dir() or (path / CARD).exists():
        return f"{path}: no checkpoint in {path / 'checkpoints'}; train first: python -m train --out={path}"
    inside = sorted(entry.name + "/" * entry.is_dir() for entry in path.iterdir())
    runs = [name for name in inside if (path / name / "checkpoints").is_dir()]
    files = [name for name in inside if name.endswith((".pth", ".pt", ".tar", ".ckpt", ".safetensors", ".bin"))]
    if path.name == "checkpoints" and list_checkpoints(path.parent):
        cure = f"give the run: {path.parent}"
    elif runs or files:
        found = runs or files
        cure = f"it contains {', '.join(map(printable, found[:3]))}: give one, such as {path / found[0]}"
    elif inside:
        cure = f"it contains {', '.join(map(printable, inside[:3]))}{', …' * (len(inside) > 3)}"
    else:
        cure = "it is empty"
    return (f"{path}: not a run of python -m train, which has checkpoints/step-….pt, and not a folder of timm's, which "
            f"has config.json and model.safetensors; {cure}")  # fmt: skip
