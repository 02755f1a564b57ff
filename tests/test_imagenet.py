"""ImageNet's weights of an architecture: their input, from a file or downloaded, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from probe.baselines import imagenet_encoder
from train.weights.imagenet import NoImageNetWeights, read_imagenet
from train.weights.preprocessing import Input

LITE0 = "timm/tf_efficientnet_lite0"


@pytest.mark.parametrize(
    ("arch", "message", "short"),
    [("timm/coatnet_0_224", "timm has no pretrained weights for timm/coatnet_0_224", "no weights for this"),
     ("timm/vit_small_patch14_dinov2", "timm/vit_small_patch14_dinov2 are lvd142m, not ImageNet's", "no weights for"),
     ("ours", "torchvision has no ours", "no weights for this architecture"),
     (LITE0, "lite0.in1k: not in the cache .* can't be downloaded", "could not be down"),
     ("resnet18", "ResNet18_Weights.IMAGENET1K_V1 could not be downloaded", "could not be down")],
)  # fmt: skip
def test_missing_weights_are_reported_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arch: str, message: str, short: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # as HF_HUB_OFFLINE=1 does
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(NoImageNetWeights, match=message) as error:
        read_imagenet(arch, 64)
    assert short in error.value.short
    row = imagenet_encoder(arch, Input(64, 0.53, 0.24), None)
    assert row.module is None and short in row.missing
    assert ("--imagenet-weights=FILE" in row.source) == ("downloaded" in row.missing)
