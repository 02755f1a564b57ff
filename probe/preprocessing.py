"""How an encoder wants its images: as a config beside it says, or --input."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from shard.errors import InputError
from train.unreadable import plain

# Per-channel statistics torchvision's ImageNet weights were trained with.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
INTERPOLATIONS = ("bilinear", "bicubic")
MOST = 4096  # pixels a side
AS_IN = "--input=NAME:imagenet, NAME:torchxrayvision, or NAME:mean=M,std=S (and size=, range=LOW/HIGH, interpolation=)"


@dataclass(frozen=True)
class Input:
    """How an encoder wants its images: resized to size × size, grey 0..1, less the mean, by the std."""

    size: int
    mean: float
    std: float
    interpolation: str = "bilinear"


class Stated(NamedTuple):
    """What is stated of an encoder's input; None where nothing is.

    mean, std: of grey in 0..1, one for all channels or one for each. source: who states it. aside: what it states that
    is not followed, in words.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: int | None = None
    interpolation: str | None = None
    source: str = ""
    aside: str = ""


PRESETS = {
    "imagenet": Stated(IMAGENET_MEAN, IMAGENET_STD),
    "torchxrayvision": Stated((0.5,), (1 / 2048,)),  # one channel from -1024 to 1024
}


def read_flag(text: str, names: Sequence[str]) -> dict[str, Stated]:
    """--input's NAME:WHAT,NAME:WHAT,… by the names of the encoders; WHAT is a preset or mean=, std=, size=, range=,
    interpolation=, with commas between. Raises InputError where it can't be understood."""
    if not text:
        return {}
    starts = sorted({place: name for name in sorted(names, key=len) for place in _places(text, name)}.items())
    if not starts or starts[0][0] != 0:
        raise InputError(f"--input={text}: begins with none of the encoders' names ({', '.join(names)}); {AS_IN}")
    stated: dict[str, Stated] = {}
    for (start, name), end in zip(starts, [*(place for place, _ in starts[1:]), len(text)], strict=True):
        if name in stated:
            raise InputError(f"--input={text}: {name} is there twice; keep one")
        stated[name] = _read_words(text[start + len(name) + 1 : end].strip(", "), f"--input={name}:")
    return stated


def _places(text: str, name: str) -> list[int]:
    """Where an entry for the encoder begins: at the start, or after a comma."""
    found, place = [], -1
    while (place := text.find(f"{name}:", place + 1)) >= 0:
        if not place or text[:place].rstrip().endswith(","):
            found.append(place)
    return found


def _read_words(text: str, flag: str) -> Stated:
    stated, low, high = Stated(source="as --input says"), 0.0, 1.0
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise InputError(f"{flag} says nothing; {AS_IN}")
    for word in words:
        key, mark, value = word.partition("=")
        if not mark and key in PRESETS:
            mean, std = PRESETS[key].mean, PRESETS[key].std
        elif key == "mean":
            mean = _numbers(value, flag + word)
        elif key == "std":
            std = _numbers(value, flag + word)
        elif key == "range":
            bounds = _numbers(value, flag + word)
            if len(bounds) != 2 or not bounds[0] < bounds[1]:
                raise InputError(f"{flag}{word}: wants two numbers, the lower first, as in range=-1024/1024")
            (low, high), mean, std = bounds, mean or (0.0,), std or (1.0,)
        elif key == "size" and value.isascii() and value.isdigit() and 1 <= int(value) <= MOST:
            stated = stated._replace(size=int(value))
        elif key == "interpolation" and value in INTERPOLATIONS:
            stated = stated._replace(interpolation=value)
        else:
            raise InputError(f"{flag}{word}: not understood; {AS_IN}")
    if (mean is None) != (std is None):
        raise InputError(f"{flag}{text}: mean and std are wanted together")
    if mean is not None and std is not None:
        stated = stated._replace(mean=tuple((one - low) / (high - low) for one in mean),
                                 std=tuple(one / (high - low) for one in std))  # fmt: skip
    return check_stated(stated, flag + text)


def _numbers(text: str, flag: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in text.split("/"))
    except ValueError:
        raise InputError(f"{flag}: wants a number, or three with / between, as in mean=0.485/0.456/0.406") from None


def check_stated(stated: Stated, source: str) -> Stated:
    """The same; raises InputError where no image can be made by it."""
    numbers = [*(stated.mean or ()), *(stated.std or ())]
    if not all(map(math.isfinite, numbers)) or not all(one > 0 for one in stated.std or ()):
        raise InputError(f"{source}: mean {stated.mean} and std {stated.std}: wants numbers, and std above 0")
    if not 1 <= (stated.size or 1) <= MOST:
        raise InputError(f"{source}: {stated.size} px: wants 1 to {MOST}")
    return stated


class Settled(NamedTuple):
    """An encoder's input as it is used: the images, the statistics a channel, in a line, and what of it was assumed."""

    images: Input
    mean: tuple[float, ...]
    std: tuple[float, ...]
    said: str
    assumed: str


def settle(
    path: Path, name: str, channels: int, asked: Stated, stated: Stated, *, otherwise: Input, size: int
) -> Settled:
    """The input of weights from elsewhere: as --input says, else as a config beside them does.

    asked: --input's; stated: the config's; otherwise: the statistics in which images are handed on, and the size where
    nobody states one; size: --size's, 0 for none. Three channels of which nothing is stated are taken for ImageNet's,
    and said to be; one channel is refused. Raises InputError.
    """
    by = asked if asked.mean is not None else stated
    mean, std, source, assumed = by.mean, by.std, by.source, ""
    if mean is None or std is None:
        if channels != 3:
            raise InputError(f"{path}: weights for one channel, and nothing says of which mean and std; say it: "
                             f"{AS_IN.replace('NAME', name)}")  # fmt: skip
        mean, std, source = IMAGENET_MEAN, IMAGENET_STD, "ImageNet's are ASSUMED, as nothing says which: --input="
        source += f"{name}:… says others"
        assumed = "ImageNet's mean and std assumed"
    mean, std = (_for_channels(one, channels, path, name) for one in (mean, std))
    interpolation = asked.interpolation or stated.interpolation or "bilinear"
    if interpolation not in INTERPOLATIONS:
        raise InputError(f"{path}: wants images resized by {plain(interpolation)}, and there are "
                         f"{' and '.join(INTERPOLATIONS)}; choose: --input={name}:interpolation=bilinear")  # fmt: skip
    side = asked.size or size or stated.size or otherwise.size
    images = replace(otherwise, size=side, interpolation=interpolation)
    aside = f", {stated.aside}" if stated.aside else ""
    black, white = (_shown([(grey - m) / s for m, s in zip(mean, std, strict=True)]) for grey in (0, 1))
    said = (f"images whole{aside}, at {side} px, {interpolation}; mean {_shown(mean)}, std {_shown(std)} (black is "
            f"{black}, white {white}), {source}")  # fmt: skip
    return Settled(images, mean, std, said, assumed)


def _for_channels(values: tuple[float, ...], channels: int, path: Path, name: str) -> tuple[float, ...]:
    alike = values[:1] if len(set(values)) == 1 else values
    if channels == 1 and len(alike) == 3:  # as timm does: of a stem that was summed over its channels
        alike = (sum(alike) / 3,)
    if len(alike) not in (1, channels):
        raise InputError(f"{path}: {len(alike)} means and stds for {channels} channel{'s'[: channels - 1]}; say it: "
                         f"--input={name}:mean=M,std=S")  # fmt: skip
    return alike * channels if len(alike) == 1 else alike


def _shown(values: Sequence[float]) -> str:
    return "/".join(f"{one:.4g}" for one in (values[:1] if len(set(values)) == 1 else values))
