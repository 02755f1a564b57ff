"""PRESETS: the named recipes. Each lists only its differences from the defaults of train.config.Config."""

from __future__ import annotations

from typing import Any, Literal

Preset = Literal["published", "patient"]
SamePatient = Literal["negatives", "masked", "positives"]

# "published" is the recipe of the published study. "patient" takes views from two images of a patient; docs/recipe.md
# reports how it was chosen.
PRESETS: dict[Preset, dict[str, Any]] = {
    "published": {},
    "patient": {
        "temperature": 0.2, "crop_min": 0.3, "flip": 0.0, "patient_positive": 0.5, "same_patient": "masked",
        "schedule": "cosine", "warmup_epochs": 1.0,
    },
}  # fmt: skip
