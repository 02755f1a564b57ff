"""The model card of an exported encoder as a Markdown page: README.md in timm's folder, NAME.md beside a file."""

from __future__ import annotations

from typing import Any

from train.accepted import format_changes_by_setting
from train.export.library import Format, library_of, short_name
from train.export.model_card import Card
from train.export.usage import image_usage, usage

HEADINGS = {"init": "Started from"}
CLASSES = 1000  # the default of torchvision's ResNets
STEMS = {
    3: "three input channels, each a third of the grey one: feed the same normalised grey to all three",
    1: "one input channel, because the stem standardises its weights: thirds of them would give other features",
}
CARD_INSIDE = {
    "torchvision": "`torch.load(path, weights_only=True).card`",
    "timm": "`card` in `config.json`, and the metadata of `model.safetensors`",
    "safetensors": '`json.loads(safetensors.safe_open(path, "pt").metadata()["card"])`',
    "onnx": "JSON under `card` in the model's `metadata_props`",
}
# What the Hugging Face hub reads at the top of README.md.
FRONT_MATTER = """\
---
library_name: timm
pipeline_tag: image-feature-extraction
tags:
- image-feature-extraction
- timm
- transformers
- self-supervised-learning
- simclr
- chest-x-ray
- medical-imaging
---
"""


def contents_note(format: Format, arch: str, channels: int) -> str:
    """Return a line that says what an export contains."""
    if format == "onnx":
        return "input image [batch, 1, size, size], float32, grey 0..1, normalised inside; output features"
    names = {"torchvision": "torchvision's names, without fc", "timm": "timm's names, without a classifier",
             "train": "the names of train/architectures.py"}[library_of(arch)]  # fmt: skip
    ends = {"torchvision": f"; fc has {CLASSES} classes and zero weights, to be replaced",
            "timm": f"{', or pass in_chans=1' if channels == 3 else ''}; no classifier",
            "safetensors": f"; {names}"}  # fmt: skip
    return STEMS[channels] + ends[format]


def model_card_page(format: Format, name: str, card: Card) -> str:
    """Return the card as a Markdown page. name: the file or folder that it describes."""
    size, mean, std = (card["input"][key] for key in ("size", "mean", "std"))
    owner = {"timm": "timm's ", "torchvision": "torchvision's ", "train": ""}[library_of(card["arch"])]
    pooling = f" ({card['pooling']})" if "pooling" in card else ""
    sections = [
        f"{FRONT_MATTER if format == 'timm' else ''}# {card['name']}",
        f"{owner}{short_name(card['arch'])}, pre-trained by SimCLR ({card['preset']}), without labels, on grey chest "
        f"X-rays: an image in, {card['features']} features out{pooling}. **{card['use'].capitalize()}.**",
        *([f"**It does not distinguish images.** Its training {card['collapsed']}."] if "collapsed" in card else []),
        f"## Load it\n\nWith `image` [N, 1, {size}, {size}], float32, grey 0 to 1 (levels of 0 to 255 divided by 255), "
        f"and in the folder that contains `{name}`:\n\n```python\n{usage(format, name, card)}\n```\n\n"
        f"Contents: {card['note']}. The file also contains this card: {CARD_INSIDE[format]}.",
        *(_timm_sections(name, card) if format == "timm" else []),
        f"## Input\n\n- size: {size} × {size}, the complete image resized, not cropped\n- grey: 0 to 1\n"
        f"- mean: {mean}, std: {std}; for three channels mean ({mean}, {mean}, {mean}), std ({std}, {std}, {std})",
    ]
    for key in ("data", "init", "training", "metrics", "augmentation", "settings", "versions"):
        if key in card:
            rows = [f"- {name}: {_format_value(value)}{_format_history(name, card) if key == 'settings' else ''}"
                    for name, value in card[key].items()]  # fmt: skip
            sections.append(f"## {HEADINGS.get(key, key.capitalize())}\n\n" + "\n".join(rows))
        if key == "training" and "commit" in card:
            sections[-1] += f"\n- commit: {card['commit']}"
        if key == "settings" and "accepted" in card:
            changes = [f"- {line}" for line in format_changes_by_setting(card["accepted"])]
            sections.append("## Accepted\n\nChanged by --accept during training; the settings above are the final "
                            "ones.\n\n" + "\n".join(changes))  # fmt: skip
    return "\n\n".join(sections) + "\n"


def _timm_sections(name: str, card: Card) -> list[str]:
    """Return what else can be done with timm's folder."""
    return [
        f"From an image file of 8 bits a pixel:\n\n```python\n{image_usage(name, card)}\n```\n\nWith "
        "`num_classes=5`, `create_model` adds a new classifier for fine-tuning; with `features_only=True` it returns "
        "feature maps, if timm has them for this architecture.",
        "## Share it\n\nThis folder is ready for the Hugging Face hub. First check what the terms of the training "
        "images allow, and add a line such as `license: other` at the top of this file. Then:\n\n"
        f"```sh\nhf auth login\nhf upload USER/NAME {name}\n```\n\n"
        'From then on `local-dir:…` can be replaced by `hf-hub:USER/NAME`.',
    ]


def _format_history(name: str, card: Card) -> str:
    """Return the previous values of a setting that --accept changed, or ""."""
    own = [change for change in card.get("accepted", []) if change["name"] == name]
    values = [f"{_format_value(change['then'])} until step {change['step']}" for change in own]
    return f" ({', '.join(values)})" if own else ""


def _format_value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_format_value(item)}" for name, item in value.items())
    return " to ".join(map(str, value)) if isinstance(value, list) else str(value)
