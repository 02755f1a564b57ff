"""How an encoder's images are made: resolve what --input, a config next to the weights, and defaults state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from shard.errors import InputError
from train.weights.diagnosis import printable

# Per-channel statistics torchvision's ImageNet weights were trained with.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
INTERPOLATIONS = ("bilinear", "bicubic")
MOST = 4096  # pixels per side
ONE_OR_THREE = "needs a number, or three separated by /, such as mean=0.485/0.456/0.406"
USAGE = "--input=NAME:imagenet, NAME:torchxrayvision, or NAME:mean=M,std=S (and size=, range=LOW/HIGH, interpolation=)"


class UnstatedInputError(InputError):
    """Nothing states the mean and std of the images of these weights."""

    def __init__(self, encoders: Sequence[tuple[str, str]]) -> None:
        """encoders: the weights, as given, and the name of each encoder."""
        self.encoders = list(encoders)
        (_, first), *others = encoders
        more = "".join(f", {name}:…" for _, name in others)
        usage = USAGE.replace("NAME", first) + (f"; for all: --input={first}:…{more}" if more else "")
        super().__init__(f"{', '.join(source for source, _ in encoders)}: nothing states the mean and std of "
                         f"{'their' if more else 'its'} images; state them: {usage}")  # fmt: skip


@dataclass(frozen=True)
class Input:
    """The images of an encoder: resized to size × size, grey levels in 0..1, minus mean, divided by std."""

    size: int
    mean: float
    std: float
    interpolation: str = "bilinear"


class Stated(NamedTuple):
    """The input settings given by one source; None if not given.

    mean, std: of grey levels in 0..1, one for all channels or one per channel. source: description of where they come
    from. ignored: description of the settings that are not applied.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: int | None = None
    interpolation: str | None = None
    source: str = ""
    ignored: str = ""


PRESETS = {
    "imagenet": Stated(IMAGENET_MEAN, IMAGENET_STD),
    # One channel from -1024 to 1024, of the central square resized without changing the range (its datasets.normalize,
    # XRayCenterCrop and XRayResizer).
    "torchxrayvision": Stated((0.5,), (1 / 2048,), ignored="not cropped to the central square"),
}


def parse_input_flag(text: str, names: Sequence[str]) -> dict[str, Stated]:
    """Parse --input=NAME:WHAT,NAME:WHAT,… into a dict from encoder name to its settings.

    WHAT is a preset or mean=, std=, size=, range=, interpolation=, separated by commas. Raises InputError.
    """
    if not text:
        return {}
    starts = sorted({place: name for name in sorted(names, key=len) for place in _entries(text, name)}.items())
    if not starts or starts[0][0] != 0:
        raise InputError(f"--input={text}: starts with none of the encoders' names ({', '.join(names)}); use {USAGE}")
    stated: dict[str, Stated] = {}
    for (start, name), end in zip(starts, [*(place for place, _ in starts[1:]), len(text)], strict=True):
        if name in stated:
            raise InputError(f"--input={text}: {name} is given twice; keep one")
        stated[name] = _parse_words(text[start + len(name) + 1 : end].strip(", "), f"--input={name}:")
    return stated


def _entries(text: str, name: str) -> list[int]:
    """Positions of "name:" in the text: at its start, or after a comma."""
    found, place = [], -1
    while (place := text.find(f"{name}:", place + 1)) >= 0:
        if not place or text[:place].rstrip().endswith(","):
            found.append(place)
    return found


def parse_init_input(text: str) -> Stated:
    """Parse --init-input=WHAT, with WHAT as in parse_input_flag but for size and interpolation. Raises InputError."""
    usage = "--init-input=imagenet, torchxrayvision, or mean=M,std=S (and range=LOW/HIGH)"
    try:
        stated = _parse_words(text, "--init-input=")
    except InputError as error:
        raise InputError(str(error).replace(USAGE, usage)) from None
    if stated.size is not None or stated.interpolation is not None or stated.mean is None:
        raise InputError(f"--init-input={text}: must give mean and std, and no size or interpolation; use {usage}")
    return stated._replace(source="from --init-input")


def _parse_words(text: str, flag: str) -> Stated:
    stated, low, high = Stated(source="from --input"), 0.0, 1.0
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise InputError(f"{flag} is empty; use {USAGE}")
    for word in words:
        key, equals, value = word.partition("=")
        if not equals and key in PRESETS:
            mean, std = PRESETS[key].mean, PRESETS[key].std
            stated = stated._replace(ignored=PRESETS[key].ignored)
        elif key == "mean":
            mean = _parse_channels(value, flag + word)
        elif key == "std":
            std = _parse_channels(value, flag + word)
        elif key == "range":
            bounds = _parse_numbers(value, flag + word)
            if len(bounds) != 2 or not bounds[0] < bounds[1]:
                raise InputError(f"{flag}{word}: needs two numbers, the lower first, such as range=-1024/1024")
            (low, high), mean, std = bounds, mean or (0.0,), std or (1.0,)
        elif key == "size" and value.isascii() and value.isdigit() and 1 <= int(value) <= MOST:
            stated = stated._replace(size=int(value))
        elif key == "interpolation" and value in INTERPOLATIONS:
            stated = stated._replace(interpolation=value)
        else:  # a number by itself: mean=0.485,0.456,0.406
            raise InputError(f"{flag}{word}: {ONE_OR_THREE if word[0].isdigit() else f'not understood; use {USAGE}'}")
    if (mean is None) != (std is None):
        raise InputError(f"{flag}{text}: mean and std must be given together")
    if mean is not None and std is not None:
        stated = stated._replace(mean=tuple((value - low) / (high - low) for value in mean),
                                 std=tuple(value / (high - low) for value in std))  # fmt: skip
    return check_stated(stated, flag + text)


def _parse_numbers(text: str, flag: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in text.split("/"))
    except ValueError:
        raise InputError(f"{flag}: {ONE_OR_THREE}") from None


def _parse_channels(text: str, flag: str) -> tuple[float, ...]:
    if len(numbers := _parse_numbers(text, flag)) not in (1, 3):
        raise InputError(f"{flag}: {ONE_OR_THREE}")
    return numbers


def check_stated(stated: Stated, source: str) -> Stated:
    """Return `stated`; raise InputError if no image can be made with it."""
    numbers = [*(stated.mean or ()), *(stated.std or ())]
    if not all(map(math.isfinite, numbers)) or not all(value > 0 for value in stated.std or ()):
        raise InputError(f"{source}: mean {stated.mean} and std {stated.std}: needs finite numbers, and std above 0")
    if not 1 <= (stated.size or 1) <= MOST:
        raise InputError(f"{source}: size {stated.size}: must be between 1 and {MOST} px")
    return stated


class ResolvedInput(NamedTuple):
    """An encoder's input as used.

    images: what the loader returns. mean, std: of grey levels in 0..1, per channel, which are subtracted and divided
    by. source: where they are stated. ignored: which settings are not applied. unstated: which of size and
    interpolation nothing states.
    """

    images: Input
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str
    ignored: str = ""
    unstated: tuple[str, ...] = ()

    def describe(self) -> str:
        """Describe the input in one line."""
        size, interpolation = (f"{value}{f' (no {name} stated)' if name in self.unstated else ''}" for name, value in
                               (("size", f"{self.images.size} px"), ("interpolation", self.images.interpolation)))
        black, white = (format_channels([(grey - m) / s for m, s in zip(self.mean, self.std, strict=True)])
                        for grey in (0, 1))  # fmt: skip
        return (f"{f'images {self.ignored}' if self.ignored else 'uncropped images'}, at {size}, {interpolation}; mean "
                f"{format_channels(self.mean)}, std {format_channels(self.std)} (black is {black}, white {white}), "
                f"{self.source}")  # fmt: skip


def resolve_input(
    source: str, name: str, channels: int, requested: Stated, stated: Stated, *, default: Input, size: int
) -> ResolvedInput:
    """Resolve the input of weights that are not ours: --input first, then the config next to them.

    source: the weights, for messages. requested: from --input. stated: from the config. default: the statistics of the
    images that the loader returns, and the size if nothing states one. size: the flag --size, 0 if not given. Raises
    UnstatedInputError if no mean and std are stated: with others than those of its training, an encoder looks worse
    than it is.
    """
    chosen = requested if requested.mean is not None else stated
    if chosen.mean is None or chosen.std is None:
        raise UnstatedInputError([(source, name)])
    mean, std = (per_channel(values, channels, source, f"--input={name}:") for values in (chosen.mean, chosen.std))
    interpolation = requested.interpolation or stated.interpolation or default.interpolation
    if interpolation not in INTERPOLATIONS:
        raise InputError(f"{source}: needs images resized by {printable(interpolation)}; available: "
                         f"{' and '.join(INTERPOLATIONS)}; choose: --input={name}:interpolation=bilinear")  # fmt: skip
    side = requested.size or size or stated.size or default.size
    unstated = [*([] if requested.size or size or stated.size else ["size"]),
                *([] if requested.interpolation or stated.interpolation else ["interpolation"])]  # fmt: skip
    return ResolvedInput(replace(default, size=side, interpolation=interpolation), mean, std, chosen.source,
                         requested.ignored or stated.ignored, tuple(unstated))  # fmt: skip


def per_channel(values: tuple[float, ...], channels: int, source: str, flag: str) -> tuple[float, ...]:
    """Return a value per channel: the same for all, or one each; of three for one channel the mean.

    source, flag: the weights and the flag to give, for the message of the InputError if there are others.
    """
    distinct = values[:1] if len(set(values)) == 1 else values
    if channels == 1 and len(distinct) == 3:  # as timm does for a stem summed over its channels
        distinct = (sum(distinct) / 3,)
    if len(distinct) not in (1, channels):
        raise InputError(f"{source}: {len(distinct)} means and stds for {channels} channel{'s'[: channels - 1]}; give "
                         f"{flag}mean=M,std=S")  # fmt: skip
    return distinct * channels if len(distinct) == 1 else distinct


def format_channels(values: Sequence[float]) -> str:
    """Format a value per channel, or one if all are equal."""
    return "/".join(f"{value:.4g}" for value in (values[:1] if len(set(values)) == 1 else values))
