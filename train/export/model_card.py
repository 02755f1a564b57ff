"""The model card of an exported encoder, as JSON data."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

from pipeline.augmentation import Augmentation
from train.accepted import accepted_changes, append_changes
from train.collapse import detect_collapse
from train.export.library import short_name
from train.recipe import describe_recipe, parse_start

Card = dict[str, Any]

# Settings that contain paths of the training machine, or that "init" and "accepted" report in detail.
OMITTED_SETTINGS = ("shards", "out", "resume", "init", "accept")
# Kind of journal line → fields of its last line to report.
METRICS = {"epoch": ("epoch", "loss"), "online": ("epoch", "knn_auroc", "linear_auroc")}


def make_card(state: dict[str, Any], features: int, journal: list[dict[str, Any]]) -> Card:
    """Return the model card of a checkpoint's encoder as JSON data, omitting unknown fields.

    features: the encoder's width. journal: the run's lines; only those up to the checkpoint's step count. Raises what
    checkpoint.translate_load_errors translates.
    """
    augmentation, config, accepted = Augmentation(**state["augmentation"]), state["config"], accepted_changes(state)
    lines = [line for line in journal if line.get("step", 0) <= state["step"]]
    start = parse_start(state.get("init"))
    data = {"fingerprint": state.get("shards"), **state.get("data", {})}
    card = {
        "name": f"SimCLR {short_name(config['arch'])} for chest X-rays",
        "use": "for research; not for diagnosis",
        "collapsed": detect_collapse(lines, config),
        "arch": config["arch"],
        "features": features,
        "preset": append_changes(describe_recipe(config, start), accepted),
        "init": {name: value for name, value in start.items() if name not in ("init", "file")},  # paths
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
