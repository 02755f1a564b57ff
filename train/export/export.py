"""The export command: write a run's encoder for other libraries."""

from __future__ import annotations

import importlib
from pathlib import Path

from shard.errors import InputError
from shard.files import write_bytes
from train.checkpoint import load_checkpoint, load_newest, translate_load_errors
from train.export.formats import SUFFIX, export_files
from train.export.model_card import NOTES, Format, make_card
from train.journal import read_journal
from train.model import encoder_of

PACKAGES = {"torchvision": [], "timm": ["safetensors"], "safetensors": ["safetensors"], "onnx": ["onnx", "onnxscript"]}


def export(
    run: Path, *, format: Format = "torchvision", out: Path | None = None, checkpoint: Path | None = None
) -> None:  # fmt: skip
    """Export the encoder of a run's newest checkpoint, or of `checkpoint`, without the projector.

    out: the file, or timm's folder; by default in run/export. A model card is written next to it and inside it.
    Raises InputError if the export is impossible.
    """
    _check_arguments(run, format, out, checkpoint)
    found = (checkpoint, load_checkpoint(checkpoint)) if checkpoint else load_newest(run)
    if found is None:
        raise InputError(f"{run}: no checkpoint in {run / 'checkpoints'}; train first: python -m train --out={run}")
    path, state = found
    # The run's metrics do not apply to a checkpoint from elsewhere.
    journal = read_journal(run) if path.resolve().is_relative_to(run.resolve()) else []
    with translate_load_errors(path):
        arch = state["config"]["arch"]
        encoder, features = encoder_of(state)
        card = make_card(state, features, journal) | {"format": format, "note": NOTES[format]}
        summary = f"{arch}, {features} features, after {state['step']} steps"
    target = out or run / "export" / f"{arch}-{format}{SUFFIX[format]}"
    files = export_files(format, target, encoder, card)  # all created before the first is written
    for file, content in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(file, content)
    print(f"{target}: {summary}")


def _check_arguments(run: Path, format: Format, out: Path | None, checkpoint: Path | None) -> None:
    """Raise InputError if the export is impossible, before any work."""
    for package in PACKAGES[format]:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise InputError(f"--format={format}: requires {package} ({error}); pip install '.[export]'") from None
    if not run.is_dir():
        raise InputError(f"{run}: no such folder; give the --out of a training run")
    if checkpoint is not None and not checkpoint.is_file():
        raise InputError(f"--checkpoint={checkpoint}: no such file; omit it for the newest of {run}")
    if out is None:
        return
    if format == "timm" and out.exists() and not out.is_dir():
        raise InputError(f"--out={out}: a file, but timm's export is a folder; give another name")
    if format != "timm" and (out.suffix != SUFFIX[format] or out.is_dir()):
        raise InputError(f"--out={out}: --format={format} requires a file named *{SUFFIX[format]}")
