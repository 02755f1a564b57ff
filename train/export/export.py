"""The export command: write a run's encoder for other libraries."""

from __future__ import annotations

import importlib
from pathlib import Path

import torch
from torch import nn

from shard.errors import InputError
from shard.files import write_bytes
from train.checkpoint import load_checkpoint, load_newest, translate_load_errors
from train.export.card_page import contents_note
from train.export.channels import three_channel_encoder
from train.export.formats import ONNX_TORCH, SUFFIX, export_files
from train.export.library import FORMATS, Format, library_of, short_name
from train.export.model_card import Card, make_card
from train.export.timm_folder import model_args
from train.journal import read_journal
from train.model import encoder_of
from train.timm_models import TIMM
from train.weights.pooling import describe_pooling

PACKAGES = {"torchvision": [], "timm": ["safetensors"], "safetensors": ["safetensors"], "onnx": ["onnx", "onnxscript"]}


def export(
    run: Path, *, format: Format | None = None, out: Path | None = None, checkpoint: Path | None = None
) -> None:  # fmt: skip
    """Export the encoder of a run's newest checkpoint, or of `checkpoint`, without the projector.

    format: by default torchvision, or timm for an architecture of timm's. out: the file, or timm's folder; by default
    in run/export. A model card is written next to it and inside it. Raises InputError if the export is impossible.
    """
    _check_arguments(run, format, checkpoint)
    found = (checkpoint, load_checkpoint(checkpoint)) if checkpoint else load_newest(run)
    if found is None:
        raise InputError(f"{run}: no checkpoint in {run / 'checkpoints'}; train first: python -m train --out={run}")
    path, state = found
    # The run's metrics do not apply to a checkpoint from elsewhere.
    journal = read_journal(run) if path.resolve().is_relative_to(run.resolve()) else []
    with translate_load_errors(path):
        arch = state["config"]["arch"]
        format = _format_of(arch, format)
        target = out or run / "export" / f"{short_name(arch)}-{format}{SUFFIX[format]}"
        _check_target(target, format)
        encoder, features = encoder_of(state)
        card = make_card(state, features, journal)
        summary = f"{arch}, {features} features, after {state['step']} steps"
    portable = three_channel_encoder(encoder.eval(), arch, card["input"]["size"])
    card |= _contents(format, encoder, 1 if portable is None else 3, card)
    files = export_files(format, target, encoder, portable or encoder, card)  # all made before the first is written
    for file, content in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(file, content)
    print(f"{target}: {summary}")


def _contents(format: Format, encoder: nn.Module, channels: int, card: Card) -> Card:
    """Return what the card says of the exported weights."""
    arch, size = card["arch"], card["input"]["size"]
    contents: Card = {"format": format, "channels": channels, "note": contents_note(format, arch, channels)}
    if library_of(arch) != "train":
        contents["pooling"] = describe_pooling(encoder)
    if library_of(arch) == "timm" and (arguments := model_args(arch.removeprefix(TIMM), channels, size)):
        contents["model_args"] = arguments
    return contents


def _format_of(arch: str, format: Format | None) -> Format:
    """Return the format to write. Raises InputError if the library of that format lacks the architecture."""
    possible = FORMATS[library_of(arch)]
    if format is not None and format not in possible:
        raise InputError(f"--format={format}: {format} has no {arch}; use --format={', '.join(possible[:-1])} or "
                         f"{possible[-1]}")
    return format or possible[0]


def _check_arguments(run: Path, format: Format | None, checkpoint: Path | None) -> None:
    """Raise InputError if the export is impossible, before any work."""
    if not run.is_dir():
        raise InputError(f"{run}: no such folder; give the --out of a training run")
    if checkpoint is not None and not checkpoint.is_file():
        raise InputError(f"--checkpoint={checkpoint}: no such file; omit it for the newest of {run}")
    if format:
        _check_packages(format)


def _check_packages(format: Format) -> None:
    for package in PACKAGES[format]:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise InputError(f"--format={format}: requires {package} ({error}); pip install '.[export]'") from None
    if format == "onnx" and torch.__version__ < ONNX_TORCH:
        raise InputError(f"--format=onnx: requires PyTorch {ONNX_TORCH} or newer, this is {torch.__version__}; use "
                         "--format=safetensors")  # fmt: skip


def _check_target(target: Path, format: Format) -> None:
    """Raise InputError if a file or folder of this name can't hold the format."""
    _check_packages(format)
    if format == "timm" and target.exists() and not target.is_dir():
        raise InputError(f"--out={target}: a file, but timm's export is a folder; give another name")
    if format != "timm" and (target.suffix != SUFFIX[format] or target.is_dir()):
        raise InputError(f"--out={target}: --format={format} requires a file named *{SUFFIX[format]}")
