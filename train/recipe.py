"""The recipe of a run: its preset, what overrides it, and the command that repeats it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from shard.flags import flag_name
from train.config import Config
from train.presets import PRESETS, Preset

# What a run started from, as its checkpoints keep it: init and init_input (the flags), name, file, file_sha256, input
# (its mean and std), sha256 (of the encoder's tensors at step 0) and trained_on (a fingerprint of shards, ImageNet or
# unknown). {} for random weights.
StartRecord = dict[str, str]
START_FIELDS = ("init", "init_input", "name", "file", "file_sha256", "input", "sha256", "trained_on")

# As Config.plain writes them.
DEFAULTS = {field.name: ",".join(field.default) if isinstance(field.default, tuple) else field.default
            for field in fields(Config)}  # fmt: skip
RECIPE = ("temperature", "crop_min", "flip", "blur", "patient_positive", "same_patient", "freeze_batchnorm", "schedule",
          "warmup_epochs")


def recipe_of(preset: Preset) -> dict[str, Any]:
    """Return the settings of a preset's recipe, all of them."""
    return {name: PRESETS[preset].get(name, DEFAULTS[name]) for name in RECIPE}


def overrides(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run that differ from its preset. Runs older than presets count as "published"."""
    preset = recipe_of(settings.get("preset", "published"))
    return {name: settings[name] for name in preset if settings.get(name, preset[name]) != preset[name]}


def describe_recipe(settings: Mapping[str, Any], start: Mapping[str, str] | None = None) -> str:
    """Describe a run's preset and overrides: "preset patient with --temperature=0.1", and what it started from."""
    given = [f"{flag_name(name)}={value}" for name, value in overrides(settings).items()]
    recipe = " ".join([f"preset {settings.get('preset', 'published')}", *(["with", *given] if given else [])])
    return ", ".join(filter(None, [recipe, describe_start(start or {})]))


def parse_start(content: Any) -> StartRecord:
    """Validate what a run started from, read from a file; runs older than --init have none. Raises ValueError."""
    record = dict(content or {})
    if record and not all(type(record.get(name)) is str for name in START_FIELDS):
        raise ValueError(f"init: {record}")
    return record


def describe_start(record: Mapping[str, str]) -> str:
    """Describe what a run started from: "started from weights.pth, sha256 0123…"; "" if from random weights."""
    if not record:
        return ""
    return f"started from {record['name']}, sha256 {(record['file_sha256'] or record['sha256'])[:16]}…"


def chosen_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plain settings that run training to completion, omitting defaults."""
    defaults = DEFAULTS | PRESETS[settings.get("preset", "published")]
    return {name: value for name, value in settings.items()
            if name in defaults and name != "limit_steps" and value != defaults[name]
            and not (value == "" and not defaults[name])}  # fmt: skip


def train_command(settings: Mapping[str, Any]) -> str:
    """Return the command that runs training with these plain settings to completion, omitting defaults."""
    given = chosen_settings(settings)
    return " ".join(["python -m train", *(flag_name(name) + ("" if value is True else f"={shlex.quote(str(value))}")
                                          for name, value in given.items())])  # fmt: skip
