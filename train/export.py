"""Export: a run's encoder as others load it (torchvision, timm, safetensors, ONNX), with its model card."""

from __future__ import annotations

import importlib
import io
import json
import math
from collections import OrderedDict
from pathlib import Path

import torch
from torch import nn

from shard.errors import InputError
from shard.files import write_bytes
from train.checkpoint import load_checkpoint, load_newest, translate_load_errors
from train.journal import read_journal
from train.model import encoder_of
from train.model_card import CLASSES, NOTES, Card, Format, make_card, make_page

SUFFIX = {"torchvision": ".pth", "timm": "", "safetensors": ".safetensors", "onnx": ".onnx"}
PACKAGES = {"torchvision": [], "timm": ["safetensors"], "safetensors": ["safetensors"], "onnx": ["onnx", "onnxscript"]}
OPSET = 18  # named, so that another PyTorch writes the same operators


def export(
    run: Path, *, format: Format = "torchvision", out: Path | None = None, checkpoint: Path | None = None
) -> None:  # fmt: skip
    """Write the encoder of RUN's newest checkpoint, without the projector, as others load it; a model card beside it.

    --format: torchvision, a state dict resnet50() takes strictly; timm, a folder for create_model("local-dir:…");
    safetensors, torchvision's names without fc; onnx, grey 0..1 in, features out. The card is inside each as well.
    --out: the file, or timm's folder; by default in RUN/export. --checkpoint: this one, not the newest.
    """
    _check(run, format, out, checkpoint)
    found = (checkpoint, load_checkpoint(checkpoint)) if checkpoint else load_newest(run)
    if found is None:
        raise InputError(f"{run}: no checkpoint in {run / 'checkpoints'}; train first: python -m train --out={run}")
    path, state = found
    # What this run measured says nothing of a checkpoint from elsewhere.
    journal = read_journal(run) if path.resolve().is_relative_to(run.resolve()) else []
    with translate_load_errors(path):
        arch = state["config"]["arch"]
        encoder, features = encoder_of(state)
        card = make_card(state, features, journal) | {"format": format, "note": NOTES[format]}
        said = f"{arch}, {features} features, after {state['step']} steps"
    target = out or run / "export" / f"{arch}-{format}{SUFFIX[format]}"
    files = _files(format, target, encoder, card)  # all made before the first is written
    for file, content in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(file, content)
    print(f"{target}: {said}")


def _check(run: Path, format: Format, out: Path | None, checkpoint: Path | None) -> None:
    """Raises InputError where the export can't be made, before any work."""
    for package in PACKAGES[format]:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise InputError(f"--format={format}: wants {package} ({error}); pip install '.[export]'") from None
    if not run.is_dir():
        raise InputError(f"{run}: no such folder; give the --out of a training")
    if checkpoint is not None and not checkpoint.is_file():
        raise InputError(f"--checkpoint={checkpoint}: no such file; leave it out for the newest of {run}")
    if out is None:
        return
    if format == "timm" and out.exists() and not out.is_dir():
        raise InputError(f"--out={out}: a file, and timm's export is a folder; give another name")
    if format != "timm" and (out.suffix != SUFFIX[format] or out.is_dir()):
        raise InputError(f"--out={out}: wants a file named *{SUFFIX[format]} for --format={format}")


def _files(format: Format, target: Path, encoder: nn.Module, card: Card) -> dict[Path, bytes]:
    """The export's files, in the order in which to write them: a folder without config.json is none to timm."""
    page = make_page(format, target.resolve().name, card).encode()
    if format == "timm":
        return {target / "model.safetensors": _safetensors(encoder, card), target / "MODEL_CARD.md": page,
                target / "config.json": _timm_config(card)}  # fmt: skip
    make = {"torchvision": _torchvision, "safetensors": _safetensors, "onnx": _onnx}[format]
    return {target: make(encoder, card), target.with_suffix(".md"): page}


def _colour_weights(encoder: nn.Module) -> OrderedDict[str, torch.Tensor]:
    """The encoder's state for a three-channel stem, whose sum over equal channels is the grey stem's."""
    weights = OrderedDict(encoder.state_dict())
    weights["conv1.weight"] = (weights["conv1.weight"] / 3).repeat(1, 3, 1, 1)  # [64, 1, 7, 7] → [64, 3, 7, 7]
    return weights


def _torchvision(encoder: nn.Module, card: Card) -> bytes:
    """A state dict with the card as its attribute: torch.load(path, weights_only=True).card."""
    weights = _colour_weights(encoder)
    weights["fc.weight"] = torch.zeros(CLASSES, card["features"])
    weights["fc.bias"] = torch.zeros(CLASSES)
    vars(weights)["card"] = card  # beside the items, where load_state_dict doesn't look
    file = io.BytesIO()
    torch.save(weights, file)
    return file.getvalue()


def _safetensors(encoder: nn.Module, card: Card) -> bytes:
    """The weights with the card as JSON in the metadata: safetensors.safe_open(path, "pt").metadata()["card"]."""
    from safetensors.torch import save

    metadata = {"format": "pt", "card": json.dumps(card, allow_nan=False)}
    content: bytes = save(dict(_colour_weights(encoder)), metadata=metadata)
    return content


def _timm_config(card: Card) -> bytes:
    """timm's config.json, with the card under "card", which timm leaves alone."""
    size = card["input"]["size"]
    pretrained = {
        "input_size": (3, size, size), "fixed_input_size": False, "pool_size": (math.ceil(size / 32),) * 2,
        # As our probe reads images: resized whole, since a centre crop would cut the costophrenic angles off.
        "crop_mode": "squash", "crop_pct": 1.0, "interpolation": "bilinear",
        "mean": (card["input"]["mean"],) * 3, "std": (card["input"]["std"],) * 3,
        "first_conv": "conv1", "classifier": "fc",
    }  # fmt: skip
    config = {"architecture": card["arch"], "num_classes": 0, "num_features": card["features"], "global_pool": "avg",
              "pretrained_cfg": pretrained, "card": card}  # fmt: skip
    return (json.dumps(config, indent=1, allow_nan=False) + "\n").encode()


class _Normalised(nn.Module):
    """image [N, 1, S, S], grey 0..1 → features [N, F]."""

    def __init__(self, encoder: nn.Module, mean: float, std: float) -> None:
        super().__init__()
        self.encoder, self.mean, self.std = encoder, mean, std

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.encoder((image - self.mean) / self.std)
        return features


def _onnx(encoder: nn.Module, card: Card) -> bytes:
    """One self-contained model with the card as JSON in metadata_props under "card"."""
    import onnx

    size = card["input"]["size"]
    module = _Normalised(encoder, card["input"]["mean"], card["input"]["std"]).eval()
    program = torch.onnx.export(
        module, (torch.zeros(2, 1, size, size),), dynamo=True, verbose=False, opset_version=OPSET,
        input_names=["image"], output_names=["features"], dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
    )  # fmt: skip
    assert program is not None
    model = program.model_proto
    for part in (*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.value_info,
                 *model.graph.initializer, model.graph):  # fmt: skip
        del part.metadata_props[:]  # stack traces, which name the folders of who made it
    onnx.helper.set_model_props(model, {"card": json.dumps(card, allow_nan=False)})
    content: bytes = model.SerializeToString()
    return content
