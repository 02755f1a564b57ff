"""The exported formats of an encoder: torchvision, timm, safetensors and ONNX, each as the bytes of its files."""

from __future__ import annotations

import io
import json
import math
from collections import OrderedDict
from pathlib import Path

import torch
from torch import nn

from train.export.model_card import CLASSES, Card, Format, model_card_page

SUFFIX = {"torchvision": ".pth", "timm": "", "safetensors": ".safetensors", "onnx": ".onnx"}
OPSET = 18  # fixed, so that another PyTorch version writes the same operators


def export_files(format: Format, target: Path, encoder: nn.Module, card: Card) -> dict[Path, bytes]:
    """Return the export's files and their contents, in the order to write them.

    config.json comes last, because timm recognizes a folder by it.
    """
    page = model_card_page(format, target.resolve().name, card).encode()
    if format == "timm":
        return {target / "model.safetensors": to_safetensors(encoder, card), target / "MODEL_CARD.md": page,
                target / "config.json": timm_config(card)}  # fmt: skip
    convert = {"torchvision": to_torchvision, "safetensors": to_safetensors, "onnx": to_onnx}[format]
    return {target: convert(encoder, card), target.with_suffix(".md"): page}


def three_channel_weights(encoder: nn.Module) -> OrderedDict[str, torch.Tensor]:
    """Return the encoder's state dict with a three-channel stem that equals the grey stem on equal channels."""
    weights = OrderedDict(encoder.state_dict())
    weights["conv1.weight"] = (weights["conv1.weight"] / 3).repeat(1, 3, 1, 1)  # [64, 1, 7, 7] → [64, 3, 7, 7]
    return weights


def to_torchvision(encoder: nn.Module, card: Card) -> bytes:
    """Return a state dict with the card as its attribute: torch.load(path, weights_only=True).card."""
    weights = three_channel_weights(encoder)
    weights["fc.weight"] = torch.zeros(CLASSES, card["features"])
    weights["fc.bias"] = torch.zeros(CLASSES)
    vars(weights)["card"] = card  # an attribute, which load_state_dict ignores
    file = io.BytesIO()
    torch.save(weights, file)
    return file.getvalue()


def to_safetensors(encoder: nn.Module, card: Card) -> bytes:
    """Return the weights with the card as JSON: safetensors.safe_open(path, "pt").metadata()["card"]."""
    from safetensors.torch import save

    metadata = {"format": "pt", "card": json.dumps(card, allow_nan=False)}
    content: bytes = save(dict(three_channel_weights(encoder)), metadata=metadata)
    return content


def timm_config(card: Card) -> bytes:
    """Return timm's config.json, with the card under "card", a key that timm ignores."""
    size = card["input"]["size"]
    pretrained = {
        "input_size": (3, size, size), "fixed_input_size": False, "pool_size": (math.ceil(size / 32),) * 2,
        # Like our probe: resize the complete image, since a center crop would cut off the costophrenic angles.
        "crop_mode": "squash", "crop_pct": 1.0, "interpolation": "bilinear",
        "mean": (card["input"]["mean"],) * 3, "std": (card["input"]["std"],) * 3,
        "first_conv": "conv1", "classifier": "fc",
    }  # fmt: skip
    config = {"architecture": card["arch"], "num_classes": 0, "num_features": card["features"], "global_pool": "avg",
              "pretrained_cfg": pretrained, "card": card}  # fmt: skip
    return (json.dumps(config, indent=1, allow_nan=False) + "\n").encode()


def to_onnx(encoder: nn.Module, card: Card) -> bytes:
    """Return one self-contained model, with the card as JSON in metadata_props under "card"."""
    import onnx

    size = card["input"]["size"]
    module = NormalisedEncoder(encoder, card["input"]["mean"], card["input"]["std"]).eval()
    program = torch.onnx.export(
        module, (torch.zeros(2, 1, size, size),), dynamo=True, verbose=False, opset_version=OPSET,
        input_names=["image"], output_names=["features"], dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
    )  # fmt: skip
    assert program is not None
    model = program.model_proto
    for part in (*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.value_info,
                 *model.graph.initializer, model.graph):  # fmt: skip
        del part.metadata_props[:]  # stack traces, which contain paths of this machine
    onnx.helper.set_model_props(model, {"card": json.dumps(card, allow_nan=False)})
    content: bytes = model.SerializeToString()
    return content


class NormalisedEncoder(nn.Module):
    """An encoder that normalises its input: image [N, 1, S, S], grey 0..1 → features [N, F]."""

    def __init__(self, encoder: nn.Module, mean: float, std: float) -> None:
        super().__init__()
        self.encoder, self.mean, self.std = encoder, mean, std

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the features of `image`."""
        features: torch.Tensor = self.encoder((image - self.mean) / self.std)
        return features
