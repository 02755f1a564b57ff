"""Folding a stem into one grey channel, against the probe's GreyAsColour, which feeds the image to every channel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from probe.encoder import GreyAsColour
from shard.errors import InputError
from train.architectures import build_encoder
from train.weights.fold import fold_to_grey
from train.weights.preprocessing import IMAGENET_MEAN, IMAGENET_STD

OURS = 0.41, 0.27  # mean and std of the shards
PATCHES = {
    "timm/vit_tiny_patch16_224": {"depth": 1},
    "timm/convnext_atto": {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)},
    "timm/swin_tiny_patch4_window7_224": {"depths": (1, 1, 1, 1), "embed_dim": 24},
}


def twins(arch: str, channels: int = 3, **model_args: Any) -> tuple[nn.Module, nn.Module]:
    """An encoder of several channels with random statistics in BatchNorm, and one of one channel, both in float64."""
    torch.manual_seed(0)
    encoder, _ = build_encoder(arch, 64, channels, model_args)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return encoder.double().eval(), build_encoder(arch, 64, 1, model_args)[0].double().eval()


def fold(
    encoder: nn.Module, grey: nn.Module, mean: Any = IMAGENET_MEAN, std: Any = IMAGENET_STD, *, size: int = 64
) -> str:  # fmt: skip
    return fold_to_grey(encoder, grey, mean=mean, std=std, grey_mean=OURS[0], grey_std=OURS[1], size=size, name="w.pth")


def as_colour(encoder: nn.Module, mean: Any = IMAGENET_MEAN, std: Any = IMAGENET_STD) -> nn.Module:
    return GreyAsColour(encoder, *OURS, mean, std).double().eval()


@torch.no_grad()
@pytest.mark.parametrize("arch", PATCHES)
def test_stem_without_padding_is_folded_exactly(arch: str) -> None:
    encoder, grey = twins(arch, **PATCHES[arch])
    fold(encoder, grey)
    x = torch.randn(2, 1, 64, 64, dtype=torch.float64)
    colour = as_colour(encoder)
    colour.colour_mean, colour.colour_std = (torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1)
                                             for values in (IMAGENET_MEAN, IMAGENET_STD))  # fmt: skip
    torch.testing.assert_close(grey(x), colour(x), rtol=1e-10, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize(
    ("arch", "model_args", "conv", "norm"),
    [("resnet18", {}, "conv1", "bn1"),
     ("timm/densenet121", {"block_config": (1, 1, 1, 1)}, "features.conv0", "features.norm0"),
     ("timm/tf_efficientnet_lite0", {}, "conv_stem", "bn1")],
)  # fmt: skip
def test_stem_with_padding_is_folded_exactly_except_at_the_border(
    arch: str, model_args: dict[str, Any], conv: str, norm: str
) -> None:  # fmt: skip
    encoder, grey = twins(arch, **model_args)
    assert fold(encoder, grey, size=32) == f"3 channels folded into one: {conv} with its constant in {norm}"
    x = torch.randn(2, 1, 32, 32, dtype=torch.float64)
    seen: list[torch.Tensor] = []
    for network in (encoder, grey):
        network.get_submodule(norm).register_forward_hook(lambda *call: seen.append(call[-1]))
    as_colour(encoder)(x)
    grey(x)
    inside = [output[..., 2:-2, 2:-2] for output in seen]
    torch.testing.assert_close(inside[1], inside[0], rtol=1e-5, atol=1e-5)  # GreyAsColour's statistics are float32
    assert not torch.allclose(seen[1], seen[0], rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_one_channel_with_other_statistics_is_folded_and_with_ours_taken_as_it_is() -> None:
    encoder, grey = twins("timm/vit_tiny_patch16_224", 1, depth=1)
    x = torch.randn(2, 1, 64, 64, dtype=torch.float64)
    assert fold(encoder, grey, (0.5,), (0.25,)).startswith("1 channel folded into one: patch_embed.proj")
    torch.testing.assert_close(grey(x), encoder((x * OURS[1] + OURS[0] - 0.5) / 0.25), rtol=1e-10, atol=1e-10)
    assert fold(encoder, grey, OURS[:1], OURS[1:]).startswith("stem taken as it is")
    torch.testing.assert_close(grey(x), encoder(x), rtol=0, atol=0)


@torch.no_grad()
def test_colour_stem_on_our_statistics_is_folded_exactly_at_the_border_too() -> None:
    encoder, grey = twins("resnet18")
    fold(encoder, grey, OURS[:1] * 3, OURS[1:] * 3, size=32)
    x = torch.randn(2, 1, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(grey(x), encoder(x.expand(-1, 3, -1, -1)), rtol=1e-10, atol=1e-10)


class Stem(nn.Module):
    """A stem whose layers are registered in another order than they run. shortcut: adds what skips the norm."""

    def __init__(self, channels: int, shortcut: bool = False) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.second, self.first = nn.BatchNorm2d(4), nn.Conv2d(channels, 4, 3, bias=False)
        self.shortcut = shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        x = self.second(x) + x if self.shortcut else self.second(x)
        return torch.relu(self.bn1(self.conv1(x))).mean((2, 3))


@torch.no_grad()
def test_norm_after_the_stem_is_found_by_execution_not_by_name() -> None:
    encoder, grey = Stem(3).double().eval(), Stem(1).double().eval()
    assert fold(encoder, grey).endswith("first with its constant in second")
    x = torch.randn(2, 1, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(grey(x), as_colour(encoder)(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("encoder", "grey", "reason"),
    [(*twins("timm/nf_resnet26"), "its convolution stem.conv, a ScaledStdConv2d, does not scale with its weights"),
     (*twins("timm/vit_base_patch16_clip_224", depth=1, embed_dim=48, num_heads=3),
      "patch_embed.proj has no bias, and no BatchNorm follows it"),
     (Stem(3, True).eval(), Stem(1, True).eval(), "its first convolution's output is used elsewhere"),
     (nn.Sequential(nn.Conv2d(3, 6, 3, groups=3)), nn.Conv2d(1, 6, 3), "0 does not mix the channels of the images"),
     (nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 4, 3)), nn.Conv2d(4, 4, 3), "do not enter a convolution")],
    ids=["standardised", "without bias", "shortcut", "groups", "not a convolution"],
)  # fmt: skip
def test_stem_that_cannot_be_folded_exactly_is_refused(encoder: nn.Module, grey: nn.Module, reason: str) -> None:
    with pytest.raises(InputError, match=rf"w\.pth: .*{reason}"):
        fold(encoder, grey)
