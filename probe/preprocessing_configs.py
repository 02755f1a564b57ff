"""What a config.json of timm's and a preprocessor_config.json of Hugging Face's state of an encoder's input."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from probe.preprocessing import AS_IN, Stated, check_stated
from shard.errors import InputError
from train.unreadable import plain

TIMM, HUGGING_FACE = "config.json", "preprocessor_config.json"
PIL_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}


def stated_beside(config: Mapping[str, Any], preprocessor: Mapping[str, Any], folder: Path) -> Stated:
    """Read the preprocessing that timm's config.json and Hugging Face's preprocessor_config.json state, if any.

    Raises InputError if they contradict each other or give values that no image can be made with.
    """
    of_timm, of_face = _of_timm(config, folder / TIMM), _of_hugging_face(preprocessor, folder / HUGGING_FACE)
    for name in ("mean", "std", "size"):
        one, other = getattr(of_timm, name), getattr(of_face, name)
        if one is not None and other is not None and one != other:
            raise InputError(f"{folder}: {TIMM} has {name} {one}, {HUGGING_FACE} {other}; say which is right with "
                             "--input=NAME:mean=…,std=…,size=…, and remove the other")  # fmt: skip
    filled = {name: getattr(of_face, name) for name in ("mean", "std", "size", "interpolation")
              if getattr(of_timm, name) is None}  # fmt: skip
    sources = [one.source for one in (of_timm, of_face) if one.source]
    return of_timm._replace(**filled, source=" and ".join(sources), aside=of_timm.aside or of_face.aside)


def _of_timm(config: Mapping[str, Any], path: Path) -> Stated:
    own = config.get("pretrained_cfg", config)  # an older config has them beside the architecture
    if not isinstance(own, Mapping) or not ({"mean", "std", "input_size"} & set(own)):
        return Stated()
    with _reading(path):
        size = own.get("input_size")
        crop = float(own.get("crop_pct") or 1.0)
        return check_stated(Stated(
            _channels(own.get("mean")), _channels(own.get("std")), None if size is None else _square(size[-2:]),
            str(own.get("interpolation") or "bicubic"), f"as its {TIMM} says",
            f"not cropped to {crop:g} of it" if crop < 1 and own.get("crop_mode") != "squash" else "",
        ), str(path))  # fmt: skip


def _of_hugging_face(config: Mapping[str, Any], path: Path) -> Stated:
    if not {"image_mean", "image_std", "size", "do_normalize"} & set(config):
        return Stated()
    with _reading(path):
        scale = float(config.get("rescale_factor") or 1 / 255) if config.get("do_rescale", True) else 1.0
        most = 255 * scale  # what white is before the mean is taken off
        mean, std = _channels(config.get("image_mean")), _channels(config.get("image_std"))
        if config.get("do_normalize") is False:
            mean, std = (0.0,), (1.0,)
        resample = config.get("resample")
        return check_stated(Stated(
            None if mean is None else tuple(one / most for one in mean),
            None if std is None else tuple(one / most for one in std), _size_of(config),
            None if resample is None else PIL_RESAMPLE.get(resample, str(resample)), f"as its {HUGGING_FACE} says",
            "not cropped" if config.get("do_center_crop") else "",
        ), str(path))  # fmt: skip


def _size_of(config: Mapping[str, Any]) -> int | None:
    """The side of the square that the network sees, of a preprocessor_config.json."""
    size = config.get("crop_size") if config.get("do_center_crop") else None
    size = config.get("size") if size is None else size
    if isinstance(size, Mapping):
        return _square([size["height"], size["width"]]) if "height" in size else int(size["shortest_edge"])
    return None if size is None else _square(size if isinstance(size, list) else [size, size])


def _square(sides: Sequence[Any]) -> int:
    height, width = (int(side) for side in sides)
    if height != width:
        raise ValueError(f"images of {height}×{width}, and squares alone are made")
    return height


def _channels(value: Any) -> tuple[float, ...] | None:
    if value is None:
        return None
    return tuple(float(one) for one in value) if isinstance(value, list | tuple) else (float(value),)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Within the block a config is read; what does not fit ends in an InputError that names the file."""
    try:
        yield
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise InputError(f"{path}: its input can't be read ({type(error).__name__}: {plain(error)}); remove the file, "
                         f"and say it with {AS_IN}") from None  # fmt: skip


def read_json(path: Path) -> dict[str, Any]:
    """What a JSON file holds; {} where there is no such file, or it holds no mapping. Raises InputError."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: can't be read as JSON ({plain(error)}); mend or remove it") from None
    return content if isinstance(content, dict) else {}
