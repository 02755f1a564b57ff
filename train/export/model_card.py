"""The model card of an exported encoder, as JSON data and as a Markdown page."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any, Literal

from pipeline.augmentation import Augmentation
from train.accepted import accepted_changes, append_changes, format_changes_by_setting
from train.collapse import detect_collapse
from train.recipe import describe_recipe

Format = Literal["torchvision", "timm", "safetensors", "onnx"]
Card = dict[str, Any]

CLASSES = 1000  # the default of torchvision's ResNets
# Settings that contain paths of the training machine, and one that "accepted" reports in detail.
OMITTED_SETTINGS = ("shards", "out", "resume", "accept")
# Kind of journal line → fields of its last line to report.
METRICS = {"epoch": ("epoch", "loss"), "online": ("epoch", "knn_auroc", "linear_auroc")}
STEM = "three input channels, each a third of the grey one: feed the same normalised grey to all three"
NOTES = {
    "torchvision": f"{STEM}; fc has {CLASSES} classes and zero weights, to be replaced",
    "timm": f"{STEM}, or pass in_chans=1; no classifier",
    "safetensors": f"{STEM}; torchvision's names, without fc",
    "onnx": "input image [batch, 1, size, size], float32, grey 0..1, normalised inside; output features",
}
CARD_INSIDE = {
    "torchvision": "`torch.load(path, weights_only=True).card`",
    "timm": "`card` in `config.json`, and the metadata of `model.safetensors`",
    "safetensors": '`json.loads(safetensors.safe_open(path, "pt").metadata()["card"])`',
    "onnx": "JSON under `card` in the model's `metadata_props`",
}


def make_card(state: dict[str, Any], features: int, journal: list[dict[str, Any]]) -> Card:
    """Return the model card of a checkpoint's encoder as JSON data, omitting unknown fields.

    features: the encoder's width. journal: the run's lines; only those up to the checkpoint's step count. Raises what
    checkpoint.translate_load_errors translates.
    """
    augmentation, config, accepted = Augmentation(**state["augmentation"]), state["config"], accepted_changes(state)
    lines = [line for line in journal if line.get("step", 0) <= state["step"]]
    data = {"fingerprint": state.get("shards"), **state.get("data", {})}
    card = {
        "name": f"SimCLR {config['arch']} for chest X-rays",
        "use": "for research; not for diagnosis",
        "collapsed": detect_collapse(lines, config),
        "arch": config["arch"],
        "features": features,
        "preset": append_changes(describe_recipe(config), accepted),
        "input": {"size": augmentation.size, "grey": "0..1", "mean": augmentation.mean, "std": augmentation.std},
        "data": {name: value for name, value in data.items() if value is not None},
        "training": {name: state[name] for name in ("epoch", "step_in_epoch", "step") if name in state},
        "metrics": _metrics(lines),
        "augmentation": asdict(augmentation),
        "settings": {name: value for name, value in config.items() if name not in OMITTED_SETTINGS},
        "accepted": accepted,
        "commit": state.get("commit"),
        "versions": state.get("versions"),
    }
    plain: Card = json.loads(json.dumps({name: value for name, value in card.items() if value}, allow_nan=False))
    return plain


def _metrics(lines: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return, for each kind of line, the metrics of its last line."""
    metrics = {}
    for kind, names in METRICS.items():
        last: dict[str, Any] = next((line for line in reversed(lines) if line["kind"] == kind), {})
        found = {name: last[name] for name in names if last.get(name) is not None and math.isfinite(last[name])}
        if found.keys() - {"epoch"}:
            metrics[kind] = found
    return metrics


def model_card_page(format: Format, name: str, card: Card) -> str:
    """Return the card as a Markdown page. name: the file or folder that it describes."""
    size, mean, std = (card["input"][key] for key in ("size", "mean", "std"))
    sections = [
        f"# {card['name']}",
        f"A {card['arch']} pre-trained by SimCLR ({card['preset']}), without labels, on grey chest X-rays: an image "
        f"in, {card['features']} features out. **{card['use'].capitalize()}.**",
        *([f"**It does not distinguish images.** Its training {card['collapsed']}."] if "collapsed" in card else []),
        f"## Load it\n\nWith `image` [N, 1, {size}, {size}], float32, grey 0 to 1 (levels of 0 to 255 divided by 255), "
        f"and in the folder that contains `{name}`:\n\n```python\n{_usage(format, name, card)}\n```\n\n"
        f"Contents: {card['note']}. The file also contains this card: {CARD_INSIDE[format]}.",
        f"## Input\n\n- size: {size} × {size}, the complete image resized, not cropped\n- grey: 0 to 1\n"
        f"- mean: {mean}, std: {std}; for three channels mean ({mean}, {mean}, {mean}), std ({std}, {std}, {std})",
    ]
    for key in ("data", "training", "metrics", "augmentation", "settings", "versions"):
        if key in card:
            rows = [f"- {name}: {_format_value(value)}{_format_history(name, card) if key == 'settings' else ''}"
                    for name, value in card[key].items()]  # fmt: skip
            sections.append(f"## {key.capitalize()}\n\n" + "\n".join(rows))
        if key == "training" and "commit" in card:
            sections[-1] += f"\n- commit: {card['commit']}"
        if key == "settings" and "accepted" in card:
            changes = [f"- {line}" for line in format_changes_by_setting(card["accepted"])]
            sections.append("## Accepted\n\nChanged by --accept during training; the settings above are the final "
                            "ones.\n\n" + "\n".join(changes))  # fmt: skip
    return "\n\n".join(sections) + "\n"


def _usage(format: Format, name: str, card: Card) -> str:
    """Return lines of Python that compute `features` from `image`."""
    arch, normalised = card["arch"], f"(image - {card['input']['mean']}) / {card['input']['std']}"
    colour = f"features = model.eval()(({normalised}).expand(-1, 3, -1, -1))"
    lines = {
        "torchvision": (
            "import torch, torchvision", f"model = torchvision.models.{arch}()",
            f"model.load_state_dict(torch.load({name!r}, weights_only=True))",
            "model.fc = torch.nn.Identity()  # or your classifier", colour,
        ),
        "timm": (
            "import timm",
            f"model = timm.create_model({'local-dir:' + name!r}, pretrained=True, num_classes=0, in_chans=1)",
            f"features = model.eval()({normalised})",
        ),
        "safetensors": (
            "import safetensors.torch, torch, torchvision", f"model = torchvision.models.{arch}()",
            "model.fc = torch.nn.Identity()", f"model.load_state_dict(safetensors.torch.load_file({name!r}))", colour,
        ),
        "onnx": (
            "import onnxruntime", f"session = onnxruntime.InferenceSession({name!r})",
            '(features,) = session.run(["features"], {"image": image})  # NumPy arrays',
        ),
    }  # fmt: skip
    return "\n".join(lines[format])


def _format_history(name: str, card: Card) -> str:
    """Return the previous values of a setting that --accept changed, or ""."""
    own = [change for change in card.get("accepted", []) if change["name"] == name]
    values = [f"{_format_value(change['then'])} until step {change['step']}" for change in own]
    return f" ({', '.join(values)})" if own else ""


def _format_value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_format_value(item)}" for name, item in value.items())
    return " to ".join(map(str, value)) if isinstance(value, list) else str(value)
