"""Read an encoder's preprocessing from timm's config.json and Hugging Face's preprocessor_config.json."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shard.errors import InputError
from train.timm_models import TIMM
from train.weights.diagnosis import printable
from train.weights.preprocessing import USAGE, Stated, check_stated

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"  # of timm, and of Hugging Face's transformers
PIL_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}


def stated_by_configs(config: Mapping[str, Any], preprocessor: Mapping[str, Any], folder: Path) -> Stated:
    """Combine the preprocessing that the contents of timm's and Hugging Face's configs in a folder state.

    Raises InputError if they contradict each other or give values that no image can be made with.
    """
    timm, hugging_face = _from_timm(config, folder / CONFIG), _from_hugging_face(preprocessor, folder / PREPROCESSOR)
    for name in ("mean", "std", "size"):
        first, second = getattr(timm, name), getattr(hugging_face, name)
        if first is not None and second is not None and first != second:
            raise InputError(f"{folder}: {CONFIG} has {name} {first}, {PREPROCESSOR} {second}; give the right one with "
                             "--input=NAME:mean=…,std=…,size=…, and remove the other")  # fmt: skip
    filled = {name: getattr(hugging_face, name) for name in ("mean", "std", "size", "interpolation")
              if getattr(timm, name) is None}  # fmt: skip
    sources = [stated.source for stated in (timm, hugging_face) if stated.source]
    return timm._replace(**filled, source=" and ".join(sources), ignored=timm.ignored or hugging_face.ignored)


def stated_by_tag(arch: str) -> Stated:
    """Return the preprocessing that timm itself states for the weights that an existing timm/NAME.TAG names."""
    import timm

    name = arch.removeprefix(TIMM)
    config = timm.get_pretrained_cfg(name)
    stated = _from_timm(asdict(config) if config is not None else {}, Path(arch))
    return stated._replace(source=f"from timm's settings of {name}")


def _from_timm(config: Mapping[str, Any], path: Path) -> Stated:
    own = config.get("pretrained_cfg", config)  # older configs have the fields at the top level
    if not isinstance(own, Mapping) or not ({"mean", "std", "input_size"} & set(own)):
        return Stated()
    with _reading(path):
        size = own.get("input_size")
        crop = float(own.get("crop_pct") or 1.0)
        return check_stated(Stated(
            _channels(own.get("mean")), _channels(own.get("std")), None if size is None else _square(size[-2:]),
            str(own.get("interpolation") or "bicubic"), f"from its {CONFIG}",
            f"not cropped to {crop:g} of the side" if crop < 1 and own.get("crop_mode") != "squash" else "",
        ), str(path))  # fmt: skip


def _from_hugging_face(config: Mapping[str, Any], path: Path) -> Stated:
    if not {"image_mean", "image_std", "size", "do_normalize"} & set(config):
        return Stated()
    with _reading(path):
        scale = float(config.get("rescale_factor") or 1 / 255) if config.get("do_rescale", True) else 1.0
        white = 255 * scale  # before the mean is subtracted
        mean, std = _channels(config.get("image_mean")), _channels(config.get("image_std"))
        if config.get("do_normalize") is False:
            mean, std = (0.0,), (1.0,)
        resample = config.get("resample")
        return check_stated(Stated(
            None if mean is None else tuple(value / white for value in mean),
            None if std is None else tuple(value / white for value in std), _input_side(config),
            None if resample is None else PIL_RESAMPLE.get(resample, str(resample)), f"from its {PREPROCESSOR}",
            "not cropped" if config.get("do_center_crop") else "",
        ), str(path))  # fmt: skip


def _input_side(config: Mapping[str, Any]) -> int | None:
    """The side in pixels of the square that the network gets, from a preprocessor_config.json."""
    size = config.get("crop_size") if config.get("do_center_crop") else None
    size = config.get("size") if size is None else size
    if isinstance(size, Mapping):
        return _square([size["height"], size["width"]]) if "height" in size else int(size["shortest_edge"])
    return None if size is None else _square(size if isinstance(size, list) else [size, size])


def _square(sides: Sequence[Any]) -> int:
    height, width = (int(side) for side in sides)
    if height != width:
        raise ValueError(f"images of {height}×{width}; only squares are supported")
    return height


def _channels(value: Any) -> tuple[float, ...] | None:
    if value is None:
        return None
    return tuple(float(item) for item in value) if isinstance(value, list | tuple) else (float(value),)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Translate errors in a config's values into an InputError that names the file."""
    try:
        yield
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise InputError(f"{path}: its settings can't be read ({type(error).__name__}: {printable(error)}); remove "
                         f"the file and use {USAGE}") from None  # fmt: skip


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file; {} if it does not exist or is no mapping. Raises InputError if it is not JSON."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: can't be read as JSON ({printable(error)}); fix or remove it") from None
    return content if isinstance(content, dict) else {}
