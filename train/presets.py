"""PRESETS: the named recipes. Each lists only its differences from the defaults of train.config.Config."""

from __future__ import annotations

from typing import Any, Literal

Preset = Literal["published", "patient", "continued"]
SamePatient = Literal["negatives", "masked", "positives"]

_PATIENT: dict[str, Any] = {
    "temperature": 0.2, "crop_min": 0.3, "flip": 0.0, "patient_positive": 0.5, "same_patient": "masked",
    "schedule": "cosine", "warmup_epochs": 1.0,
}  # fmt: skip
# "published" is the recipe of the published study. "patient" takes views from two images of a patient. "continued" is
# the same for a run that starts at weights trained on other images, such as ImageNet's. docs/recipe.md reports how they
# were chosen.
PRESETS: dict[Preset, dict[str, Any]] = {
    "published": {},
    "patient": _PATIENT,
    "continued": {**_PATIENT, "freeze_batchnorm": True},
}
