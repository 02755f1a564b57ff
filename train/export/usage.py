"""The lines of Python that compute features with an export, as its page shows them."""

from __future__ import annotations

import json

from train.export.library import Format, library_of, short_name
from train.export.model_card import Card


def usage(format: Format, name: str, card: Card) -> str:
    """Return the lines that compute `features` from `image`, grey 0..1, [N, 1, S, S]. name: the file or folder."""
    normalised = f"(image - {card['input']['mean']}) / {card['input']['std']}"
    if format == "onnx":
        return (f"import onnxruntime\nsession = onnxruntime.InferenceSession({_quote(name)})\n"
                '(features,) = session.run(["features"], {"image": image})  # NumPy arrays')  # fmt: skip
    if format == "timm":
        model = f"timm.create_model({_quote('local-dir:' + name)}, pretrained=True, num_classes=0, in_chans=1)"
        return f"import timm\nmodel = {model}\nfeatures = model.eval()({normalised})"
    images = f"({normalised}).expand(-1, 3, -1, -1)" if card["channels"] == 3 else normalised
    if format == "torchvision":
        lines = ["import torch, torchvision", f"model = torchvision.models.{card['arch']}()",
                 f"model.load_state_dict(torch.load({_quote(name)}, weights_only=True))",
                 "model.fc = torch.nn.Identity()  # or your classifier"]  # fmt: skip
    else:
        lines = [*_build(card), f"model.load_state_dict(safetensors.torch.load_file({_quote(name)}))"]
    return "\n".join((*lines, f"features = model.eval()({images})"))


def image_usage(name: str, card: Card) -> str:
    """Return the lines that compute `features` of an image file with timm's folder."""
    mode = "RGB" if card["channels"] == 3 else "L"
    return "\n".join((
        "import timm", "from PIL import Image",
        f"model = timm.create_model({_quote('local-dir:' + name)}, pretrained=True).eval()",
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))",
        f'image = Image.open("radiograph.png").convert("{mode}")',
        "features = model(transform(image)[None])",
    ))  # fmt: skip


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False, allow_nan=False)


def _build(card: Card) -> list[str]:
    """Return the lines that build the encoder without a classifier, with random weights."""
    arch = card["arch"]
    if library_of(arch) == "timm":
        arguments = "".join(f", {name}={value!r}" for name, value in card.get("model_args", {}).items())
        build = f"timm.create_model({_quote(short_name(arch))}, num_classes=0{arguments})"
        return ["import safetensors.torch, timm", f"model = {build}"]
    if library_of(arch) == "torchvision":
        return ["import safetensors.torch, torch, torchvision", f"model = torchvision.models.{arch}()",
                "model.fc = torch.nn.Identity()"]  # fmt: skip
    return ["import safetensors.torch", "from train.architectures import build_encoder  # which has the architecture",
            f"model, _ = build_encoder({_quote(arch)}, {card['input']['size']}, {card['channels']})"]  # fmt: skip
