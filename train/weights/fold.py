"""Fold an encoder of several channels into the same encoder of one grey channel, together with its input statistics."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from shard.errors import InputError

TOLERANCE = 1e-4  # of the check, relative to the largest value; the weights are rounded to float32


@dataclass
class Stem:
    """A convolution that the images enter, by name, and the BatchNorm that takes its output, "" if none does.

    output: of the convolution. constant: [O], the part of it that goes into BatchNorm's running mean.
    """

    conv: str
    norm: str
    output: torch.Tensor
    constant: torch.Tensor


def fold_to_grey(
    encoder: nn.Module, grey: nn.Module, *, mean: Sequence[float], std: Sequence[float], grey_mean: float,
    grey_std: float, size: int, name: str,
) -> str:  # fmt: skip
    """Load the weights of `encoder` [N, C, S, S] into `grey`, which has the same architecture with one channel.

    The encoder was trained on images minus mean, divided by std, per channel; `grey` gets the same grey image minus
    grey_mean, divided by grey_std. Their features are equal, except for the effect of zero padding at the border: zero
    is a different grey level for each (docs/science.md). size: S, for the check of this equality. name: of the weights,
    for messages. Returns a note on where the constants went. Raises InputError if no grey stem is equal to this one.
    """
    channels, state = len(mean), dict(encoder.state_dict())
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 1, size, size, generator=generator, dtype=torch.float64)
    shift, scale = (torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1) for values in (mean, std))
    reference = copy.deepcopy(encoder).double().eval()
    if channels == 1 and (mean[0], std[0]) == (grey_mean, grey_std):
        _load(grey, state, name)
        _check_equal(reference, grey, [], ((image - shift) / scale,) * 2, name)
        return "stem taken as it is: one channel, and the statistics of these shards"
    stems = find_stems(reference, (image - shift) / scale)
    if not stems:
        raise _refusal(name, "its images do not enter a convolution")
    gain, offset = grey_std / scale, (grey_mean - shift) / scale  # [1, C, 1, 1], of the grey image as it comes in
    for stem in stems:
        _fold_stem(state, stem, reference.get_submodule(stem.conv), gain, offset, name)
    _load(grey, state, name)
    _check_equal(reference, grey, stems, ((image - shift) / scale, (image - grey_mean) / grey_std), name)
    places = ", ".join(f"{stem.conv} with its constant in {stem.norm or stem.conv + '.bias'}" for stem in stems)
    return f"{channels} channel{'s' * (channels > 1)} folded into one: {places}"


def find_stems(encoder: nn.Module, images: torch.Tensor) -> list[Stem]:
    """Find the convolutions that take the images [N, C, S, S], and the BatchNorm after each, by running the encoder."""
    stems: dict[int, Stem] = {}

    def remember(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(module, nn.Conv2d) and _same(inputs[0], images):
            stems[id(output)] = Stem(name, "", output, torch.zeros(module.out_channels, dtype=images.dtype))
        elif isinstance(module, nn.BatchNorm2d) and id(inputs[0]) in stems:
            stems[id(inputs[0])].norm = name

    hooks = [module.register_forward_hook(lambda module, inputs, output, name=name: remember(
        name, module, inputs, output)) for name, module in encoder.named_modules()]  # fmt: skip
    try:
        with torch.no_grad():
            encoder(images)
    finally:
        for hook in hooks:
            hook.remove()
    return list(stems.values())


def _same(value: Any, images: torch.Tensor) -> bool:
    """Whether a value is the images, maybe in another memory layout."""
    return isinstance(value, torch.Tensor) and value.shape == images.shape and torch.equal(value, images)


def _fold_stem(
    state: dict[str, torch.Tensor], stem: Stem, conv: nn.Module, gain: torch.Tensor, offset: torch.Tensor, name: str
) -> None:  # fmt: skip
    """Replace a stem's tensors in a state dict: the weights summed over channels, the constant in bias or mean."""
    weight = state[f"{stem.conv}.weight"]
    if not isinstance(conv, nn.Conv2d) or conv.groups != 1 or weight.shape[1] != gain.shape[1]:
        raise _refusal(name, f"its convolution {stem.conv} does not mix the channels of the images")
    exact = weight.double()  # [O, C, k, k]
    state[f"{stem.conv}.weight"] = (exact * gain).sum(1, keepdim=True).to(weight.dtype)
    constant = (exact * offset).sum((1, 2, 3))  # [O]
    if conv.bias is not None:
        bias = state[f"{stem.conv}.bias"]
        state[f"{stem.conv}.bias"] = (bias.double() + constant).to(bias.dtype)
    elif stem.norm and f"{stem.norm}.running_mean" in state:
        mean = state[f"{stem.norm}.running_mean"]
        state[f"{stem.norm}.running_mean"] = (mean.double() - constant).to(mean.dtype)
        stem.constant = constant
    elif constant.abs().max() > TOLERANCE * weight.abs().max():
        raise _refusal(name, f"its convolution {stem.conv} has no bias, and no BatchNorm follows it")


def _load(grey: nn.Module, state: Mapping[str, torch.Tensor], name: str) -> None:
    """Load a state dict. Raises InputError if it is that of another network."""
    shapes, own = ({key: value.shape for key, value in tensors.items()} for tensors in (state, grey.state_dict()))
    other = [key for key in {**own, **shapes} if own.get(key) != shapes.get(key)]
    if other:
        raise InputError(f"{name}: its network has other tensors than that of --arch ({other[0]}, …), maybe by the "
                         "model_args of its config; give weights of the plain architecture")  # fmt: skip
    grey.load_state_dict(state)


def _check_equal(
    encoder: nn.Module, grey: nn.Module, stems: Sequence[Stem], images: tuple[torch.Tensor, torch.Tensor], name: str
) -> None:  # fmt: skip
    """Raise InputError unless the two networks agree, in float64, on images normalised for each of them.

    Compares the stems' outputs in the middle, which padding does not reach, and the features of `encoder` with the
    grey stems' outputs in place of its own.
    """
    grey = copy.deepcopy(grey).double().eval()
    found = {stem.conv: stem for stem in find_stems(grey, images[1])}
    outputs: dict[str, torch.Tensor] = {}
    for stem in stems:
        if stem.conv not in found:
            raise _refusal(name, f"the grey network does not feed its images to {stem.conv}")
        outputs[stem.conv] = found[stem.conv].output + stem.constant.view(1, -1, 1, 1)
        row, column = (side // 2 for side in stem.output.shape[2:])
        if not _close(outputs[stem.conv][..., row, column], stem.output[..., row, column]):
            kind = type(encoder.get_submodule(stem.conv)).__name__
            raise _refusal(name, f"its convolution {stem.conv}, a {kind}, does not scale with its weights")
    with torch.no_grad():
        features = _with_outputs(encoder, outputs, images[0]), grey(images[1])
    if features[0].shape != features[1].shape or not _close(*features):
        raise InputError(f"{name}: its network and that of --arch give different features with the same tensors: its "
                         "config describes another forward pass, or its first convolution's output is used elsewhere "
                         "than in the BatchNorm after it; choose another architecture or other weights")  # fmt: skip


def _with_outputs(encoder: nn.Module, outputs: Mapping[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """Return the features of images, with given outputs in place of those of some modules."""
    hooks = [encoder.get_submodule(name).register_forward_hook(lambda *_, output=output: output.clone())
             for name, output in outputs.items()]  # fmt: skip
    try:
        features: torch.Tensor = encoder(images)
        return features
    finally:
        for hook in hooks:
            hook.remove()


def _close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).abs().max() <= TOLERANCE * other.abs().max())


def _refusal(name: str, reason: str) -> InputError:
    return InputError(f"{name}: {reason}, so no stem of one grey channel equals its own; choose another architecture, "
                      "or weights of a run on these shards")  # fmt: skip
