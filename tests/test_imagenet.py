"""ImageNet's weights of an architecture: their input, from a file or downloaded, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from probe.baselines import imagenet_encoder
from probe.encoder import GreyAsColour
from shard.errors import InputError
from train.weights.imagenet import NoImageNetWeights, read_imagenet
from train.weights.preprocessing import Input

LITE0 = "timm/tf_efficientnet_lite0"


@pytest.fixture(scope="module")
def lite0(tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.nn.Module, Path]:
    """timm's EfficientNet-Lite0 for colour images with random weights, and a file of them."""
    torch.manual_seed(0)
    network = timm.create_model("tf_efficientnet_lite0").eval()
    file = tmp_path_factory.mktemp("lite0") / "lite0.pth"
    torch.save(network.state_dict(), file)
    return network, file


def test_baseline_of_a_timm_architecture_is_fed_as_timm_states(lite0: tuple[torch.nn.Module, Path]) -> None:
    network, file = lite0
    encoder = imagenet_encoder(LITE0, Input(64, 0.53, 0.24), file)
    assert isinstance(encoder.module, GreyAsColour) and encoder.source == f"{LITE0}, lite0.pth"
    assert encoder.input == Input(64, 0.53, 0.24)  # at the size of the run that it is compared with
    grey = torch.rand(2, 1, 64, 64)
    with torch.inference_mode():
        network.reset_classifier(0)
        expected = network((grey.expand(-1, 3, -1, -1) - 0.5) / 0.5)
        torch.testing.assert_close(encoder.module((grey - 0.53) / 0.24), expected, rtol=1e-4, atol=1e-4)


def test_input_is_that_of_timms_config(lite0: tuple[torch.nn.Module, Path]) -> None:
    weights = read_imagenet(LITE0, 64, lite0[1])
    assert (weights.arch, weights.channels, weights.notes[0]) == (LITE0, 3, "lite0.pth")
    assert weights.stated[:4] == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 224, "bicubic")


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


@pytest.mark.parametrize(
    ("arch", "message"),
    [("timm/convnext_atto", "w.pth: "), ("timm/vit_small_patch14_dinov2", "w.pth: timm's pretrained .* lvd142m"),
     (LITE0, "w.pth: no such file; give the file of timm/tf_efficientnet_lite0.in1k")],
)  # fmt: skip
def test_file_that_does_not_fit_is_refused(
    lite0: tuple[torch.nn.Module, Path], tmp_path: Path, arch: str, message: str
) -> None:
    file = tmp_path / "w.pth"
    if arch != LITE0:
        file.write_bytes(lite0[1].read_bytes())
    with pytest.raises(InputError, match=rf"--imagenet-weights=.*{message}"):
        imagenet_encoder(arch, Input(64, 0.53, 0.24), file)
