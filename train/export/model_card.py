"""The model card: what there is to say of an exported encoder, as data and as a page for people."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any, Literal

from pipeline.augmentation import Augmentation
from train.accepted import changes_of, say_each, with_changes
from train.collapse import say_collapse
from train.recipe import describe_recipe

Format = Literal["torchvision", "timm", "safetensors", "onnx"]
Card = dict[str, Any]

CLASSES = 1000  # of torchvision's ResNets as they are made without arguments
# Settings that name folders of whoever trained, which a passed-on file need not; and one that "accepted" says better.
LEFT_OUT = ("shards", "out", "resume", "accept")
# Kind of journal line → what of its last one is told.
METRICS = {"epoch": ("epoch", "loss"), "online": ("epoch", "knn_auroc", "linear_auroc")}
STEM = "three input channels, each a third of the grey one: feed the same normalised grey to all three"
NOTES = {
    "torchvision": f"{STEM}; fc is {CLASSES} classes of zeros, to be replaced",
    "timm": f"{STEM}, or ask for in_chans=1; no classifier",
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
    """What there is to say of a checkpoint's encoder, as JSON has it; what isn't known is left out.

    features: the encoder's width. journal: the run's lines, of which those up to the checkpoint's step count. Raises
    what checkpoint.translate_load_errors makes an InputError of.
    """
    augmentation, config, accepted = Augmentation(**state["augmentation"]), state["config"], changes_of(state)
    lines = [line for line in journal if line.get("step", 0) <= state["step"]]
    data = {"fingerprint": state.get("shards"), **state.get("data", {})}
    card = {
        "name": f"SimCLR {config['arch']} for chest X-rays",
        "use": "for research; not for diagnosis",
        "collapsed": say_collapse(lines, config),
        "arch": config["arch"],
        "features": features,
        "preset": with_changes(describe_recipe(config), accepted),
        "input": {"size": augmentation.size, "grey": "0..1", "mean": augmentation.mean, "std": augmentation.std},
        "data": {name: value for name, value in data.items() if value is not None},
        "training": {name: state[name] for name in ("epoch", "step_in_epoch", "step") if name in state},
        "metrics": _metrics(lines),
        "augmentation": asdict(augmentation),
        "settings": {name: value for name, value in config.items() if name not in LEFT_OUT},
        "accepted": accepted,
        "commit": state.get("commit"),
        "versions": state.get("versions"),
    }
    plain: Card = json.loads(json.dumps({name: value for name, value in card.items() if value}, allow_nan=False))
    return plain


def _metrics(lines: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Kind → what the last line of that kind measured."""
    metrics = {}
    for kind, names in METRICS.items():
        last: dict[str, Any] = next((line for line in reversed(lines) if line["kind"] == kind), {})
        found = {name: last[name] for name in names if last.get(name) is not None and math.isfinite(last[name])}
        if found.keys() - {"epoch"}:
            metrics[kind] = found
    return metrics


def model_card_page(format: Format, name: str, card: Card) -> str:
    """The card for people, in Markdown; name: of the file or folder it tells of."""
    size, mean, std = (card["input"][key] for key in ("size", "mean", "std"))
    sections = [
        f"# {card['name']}",
        f"A {card['arch']} pre-trained by SimCLR ({card['preset']}), without labels, on grey chest X-rays: an image "
        f"in, {card['features']} features out. **{card['use'].capitalize()}.**",
        *([f"**It tells no images apart.** Its training {card['collapsed']}."] if "collapsed" in card else []),
        f"## Load it\n\nWith `image` [N, 1, {size}, {size}], float32, grey 0 to 1 (levels of 0 to 255 divided by 255), "
        f"and in the folder that holds `{name}`:\n\n```python\n{_usage(format, name, card)}\n```\n\n"
        f"What it is: {card['note']}. This card is inside it too: {CARD_INSIDE[format]}.",
        f"## Input\n\n- size: {size} × {size}, the whole image resized, not cropped\n- grey: 0 to 1\n"
        f"- mean: {mean}, std: {std}; for three channels mean ({mean}, {mean}, {mean}), std ({std}, {std}, {std})",
    ]
    for key in ("data", "training", "metrics", "augmentation", "settings", "versions"):
        if key in card:
            rows = [f"- {name}: {_shown(value)}{_before(name, card) if key == 'settings' else ''}"
                    for name, value in card[key].items()]  # fmt: skip
            sections.append(f"## {key.capitalize()}\n\n" + "\n".join(rows))
        if key == "training" and "commit" in card:
            sections[-1] += f"\n- commit: {card['commit']}"
        if key == "settings" and "accepted" in card:
            said = [f"- {one}" for one in say_each(card["accepted"])]
            sections.append("## Accepted\n\nChanged on the way by --accept; the settings above are those it ended "
                            "with.\n\n" + "\n".join(said))  # fmt: skip
    return "\n\n".join(sections) + "\n"


def _usage(format: Format, name: str, card: Card) -> str:
    """Lines of Python that make `features` of `image`."""
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


def _before(name: str, card: Card) -> str:
    """What a setting was before it was changed on the way, if it was."""
    own = [one for one in card.get("accepted", []) if one["name"] == name]
    values = [f"{_shown(one['then'])} until step {one['step']}" for one in own]
    return f" ({', '.join(values)})" if own else ""


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(one)}" for name, one in value.items())
    return " to ".join(map(str, value)) if isinstance(value, list) else str(value)
