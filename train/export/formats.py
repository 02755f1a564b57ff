"""The exported formats of an encoder: torchvision, timm, safetensors and ONNX, each as the bytes of its files."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from shard.errors import InputError
from train.export.card_page import CLASSES, model_card_page
from train.export.library import Format
from train.export.model_card import Card
from train.export.timm_folder import CONFIG, PAGE, WEIGHTS, check_folder, to_config

SUFFIX = {"torchvision": ".pth", "timm": "", "safetensors": ".safetensors", "onnx": ".onnx"}
OPSET = 18  # fixed, so that another PyTorch version writes the same operators
ONNX_TORCH = "2.10"  # with any onnxscript, older versions cannot write some architectures in this opset


def export_files(format: Format, target: Path, grey: nn.Module, portable: nn.Module, card: Card) -> dict[Path, bytes]:
    """Return the export's files and their contents, in the order to write them.

    grey: the run's encoder. portable: the one with the input channels to export. config.json comes last, because timm
    recognizes a folder by it. Raises InputError if the format can't hold this architecture.
    """
    page = model_card_page(format, target.resolve().name, card).encode()
    if format == "timm":
        files = {target / WEIGHTS: to_safetensors(portable, card), target / PAGE: page,
                 target / CONFIG: to_config(portable, card)}  # fmt: skip
        check_folder(files, grey, card)
        return files
    if format == "onnx":
        return {target: to_onnx(grey, card), target.with_suffix(".md"): page}
    convert = {"torchvision": to_torchvision, "safetensors": to_safetensors}[format]
    return {target: convert(portable, card), target.with_suffix(".md"): page}


def to_torchvision(encoder: nn.Module, card: Card) -> bytes:
    """Return a state dict with the card as its attribute: torch.load(path, weights_only=True).card."""
    weights = OrderedDict(encoder.state_dict())
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
    # Copies, because safetensors refuses the shared weights of some architectures, such as CoaT.
    weights = {name: value.clone(memory_format=torch.contiguous_format) for name, value in encoder.state_dict().items()}
    content: bytes = save(weights, metadata=metadata)
    return content


def to_onnx(encoder: nn.Module, card: Card) -> bytes:
    """Return one self-contained model, with the card as JSON in metadata_props under "card"."""
    import onnx

    size = card["input"]["size"]
    module = NormalisedEncoder(encoder, card["input"]["mean"], card["input"]["std"]).eval()
    try:
        with _quiet_exporter():
            program = torch.onnx.export(
                module, (torch.zeros(2, 1, size, size),), dynamo=True, verbose=False, opset_version=OPSET,
                input_names=["image"], output_names=["features"],
                dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
            )  # fmt: skip
    except Exception as error:  # of the exporter, torch.export or an operator: of any kind
        reason = " ".join(str(error.__cause__ or error).split())[:150]
        raise InputError(f"--format=onnx: PyTorch can't export {card['arch']} ({reason}); "
                         "use --format=safetensors") from None
    assert program is not None
    model = program.model_proto
    for part in (*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.value_info,
                 *model.graph.initializer, model.graph):  # fmt: skip
        del part.metadata_props[:]  # stack traces, which contain paths of this machine
    onnx.helper.set_model_props(model, {"card": json.dumps(card, allow_nan=False)})
    content: bytes = model.SerializeToString()
    return content


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Hide warnings of PyTorch's exporter: some versions warn of its own calls, by `warnings` and by its logger."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


class NormalisedEncoder(nn.Module):
    """An encoder that normalises its input: image [N, 1, S, S], grey 0..1 → features [N, F]."""

    def __init__(self, encoder: nn.Module, mean: float, std: float) -> None:
        super().__init__()
        self.encoder, self.mean, self.std = encoder, mean, std

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the features of `image`."""
        features: torch.Tensor = self.encoder((image - self.mean) / self.std)
        return features
