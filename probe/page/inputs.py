"""Describe how each encoder's images were made, and what its features are."""

from __future__ import annotations

from collections.abc import Sequence

from probe.encoder import Encoder
from probe.page.formats import Sheet
from train.weights.preprocessing import format_channels


def layout_inputs(encoders: Sequence[Encoder]) -> Sheet:
    """Lay out how each encoder was fed: a row per encoder that was measured."""
    header = ["", "Weights", "Features", "Image", "Mean", "Std", "Stated by"]
    rows = [[encoder.name, encoder.source, encoder.features, _image(encoder), format_channels(encoder.fed.mean),
             format_channels(encoder.fed.std), encoder.fed.source.removeprefix("from ")]
            for encoder in encoders if encoder.module is not None]  # fmt: skip
    return Sheet("How each encoder was fed", header, rows, words=True)


def describe_input(encoder: Encoder) -> str:
    """Describe an encoder's images and features in one line; "" if it was not measured."""
    if encoder.module is None:
        return ""
    return f"{encoder.fed.describe()}; features: {encoder.features}"


def _image(encoder: Encoder) -> str:
    fed = encoder.fed
    size, interpolation = (f"{value}{' (not stated)' if name in fed.unstated else ''}" for name, value in
                           (("size", f"{fed.images.size} px"), ("interpolation", fed.images.interpolation)))
    return ", ".join(filter(None, (size, interpolation, fed.ignored)))
