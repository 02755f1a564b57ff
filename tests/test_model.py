"""The grey ResNet and the projector."""

from __future__ import annotations

import pytest
import torch
import torchvision

from train.architectures import build_encoder
from train.model import SimCLR

WIDTHS = {"resnet18": 512, "resnet34": 512, "resnet50": 2048, "resnet101": 2048}


@pytest.mark.parametrize(("arch", "features"), WIDTHS.items())
def test_encoder_is_torchvisions_resnet_except_stem_and_classifier(arch: str, features: int) -> None:
    model = SimCLR(arch)
    twin = torchvision.models.get_model(arch, weights=None).state_dict()
    ours = model.encoder.state_dict()
    assert set(ours) == {name for name in twin if not name.startswith("fc.")}
    assert all(ours[name].shape == twin[name].shape for name in ours if name != "conv1.weight")
    assert ours["conv1.weight"].shape == (64, 1, 7, 7)
    assert [tuple(layer.weight.shape) for layer in model.projector if isinstance(layer, torch.nn.Linear)] == [
        (features, features), (128, features)]  # fmt: skip


def test_grey_stem_equals_color_stem_on_one_channel() -> None:
    grey, _ = build_encoder("resnet18")
    colour = torchvision.models.resnet18(weights=None)
    colour.fc = torch.nn.Identity()
    weights = grey.state_dict()
    weights["conv1.weight"] = torch.cat([weights["conv1.weight"], torch.zeros(64, 2, 7, 7)], dim=1)
    colour.load_state_dict(weights)
    x = torch.randn(2, 1, 64, 64)
    with torch.inference_mode():
        assert torch.allclose(grey.eval()(x), colour.eval()(x.expand(-1, 3, -1, -1)), atol=1e-5)


def test_seed_determines_weights_and_projections() -> None:
    torch.manual_seed(3)
    one = SimCLR("resnet18")
    torch.manual_seed(3)
    other = SimCLR("resnet18")
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    assert one(torch.randn(4, 1, 32, 32)).shape == (4, 128)
