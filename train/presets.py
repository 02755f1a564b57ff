"""Presets: the recipes that have a name, each in one place; a flag given beside --preset overrides it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pipeline.augmentation import Augmentation
from shard.cli import flag_of

Preset = Literal["published", "patient"]
SamePatient = Literal["negatives", "masked", "positives"]

# The study's, and what pulls another image of the patient in; docs/recipe.md says how the second was chosen.
PRESETS: dict[Preset, dict[str, Any]] = {
    "published": {
        "temperature": 0.5, "crop_min": Augmentation.crop_area[0], "flip": Augmentation.flip_probability,
        "blur": Augmentation.blur_probability, "patient_positive": Augmentation.patient_positive,
        "same_patient": "negatives",
        "schedule": "constant", "warmup_epochs": 0.0,
    },
    "patient": {
        "temperature": 0.2, "crop_min": 0.3, "flip": 0.0, "blur": Augmentation.blur_probability,
        "patient_positive": 0.5,
        "same_patient": "masked", "schedule": "cosine", "warmup_epochs": 1.0,
    },
}  # fmt: skip


def overrides(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Which of a run's settings are not its preset's, and what they are; those of before there were presets are read
    as the published recipe's."""
    wanted = PRESETS[settings.get("preset", "published")]
    return {name: settings[name] for name in wanted if settings.get(name, wanted[name]) != wanted[name]}


def say_recipe(settings: Mapping[str, Any]) -> str:
    """The preset of a run's settings and what was overridden, in words: "preset patient with --temperature=0.1"."""
    given = [f"{flag_of(name)}={value}" for name, value in overrides(settings).items()]
    return " ".join([f"preset {settings.get('preset', 'published')}", *(["with", *given] if given else [])])


def with_preset(given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings in which what is None is as the preset has it."""
    wanted = PRESETS[given["preset"]]
    return {name: wanted[name] if value is None and name in wanted else value for name, value in given.items()}
