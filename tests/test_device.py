"""Settings that make training fast on a device."""

import platform

import pytest
import torch
from torch import nn

from train.config import Precision
from train.device import autocast, configure_backend, describe_precision, fit_to_device, resolve_precision
from train.model import SimCLR

CPU = torch.device("cpu")


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_gpu_without_an_index_stays_the_current_one(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    selected = list[torch.device]()

    def set_device(device: torch.device) -> None:
        if device.index is None:  # like PyTorch's set_device
            raise ValueError("Expected a torch.device with a specified index")
        selected.append(device)

    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    for setting in ("allow_tf32", "benchmark"):  # so that they are restored after the test
        monkeypatch.setattr(torch.backends.cudnn, setting, getattr(torch.backends.cudnn, setting))
    configure_backend(torch.device(device))
    assert [str(one) for one in selected] == ([device] if ":" in device else [])


def test_depthwise_convolutions_compute_in_fp32_within_bf16_on_a_cpu() -> None:
    """Also in the backward pass: oneDNN's bf16 kernels for their gradients are slow."""
    torch.manual_seed(0)
    depthwise, grouped, images = nn.Conv2d(8, 16, 3, groups=8), nn.Conv2d(16, 8, 3, groups=4), torch.randn(2, 8, 16, 16)
    model = fit_to_device(nn.Sequential(depthwise, grouped), CPU, "bf16")
    with autocast("cpu", "bf16"):
        features = depthwise(images.bfloat16())
        assert features.dtype == torch.float32 and model(images).dtype == torch.bfloat16
    weight, bias = (one.detach().clone().requires_grad_() for one in depthwise.parameters())
    expected = nn.functional.conv2d(images.bfloat16().float(), weight, bias, groups=8)
    assert torch.allclose(features, expected, rtol=1e-5, atol=1e-6)
    for output in (features, expected):
        output.square().sum().backward()
    assert depthwise.weight.grad is not None and torch.allclose(depthwise.weight.grad, weight.grad, rtol=1e-4)


@pytest.mark.parametrize(("precision", "arch"), [("bf16", "resnet18"), ("fp32", "timm/mobilenetv3_small_050")])
def test_other_modules_are_left_as_they_are(precision: Precision, arch: str) -> None:
    model = fit_to_device(SimCLR(arch, 32), CPU, precision)
    assert not any("forward" in vars(module) for module in model.modules())
    assert describe_precision("auto", precision, CPU, model).count(";") == 0


def test_auto_is_bf16_only_with_instructions_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch calls bf16 supported on every CPU with AVX-512. Without avx512_bf16 it is slower than fp32."""
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    for has_instructions, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda answer=has_instructions: answer)
        assert resolve_precision("auto", "cpu") == expected
        assert resolve_precision("bf16", "cpu") == "bf16"  # as asked


def test_precision_is_described_with_its_reason() -> None:
    model = fit_to_device(SimCLR("timm/mobilenetv3_small_050", 32), CPU, "bf16")
    assert describe_precision("auto", "bf16", CPU, model) == (
        "bf16: this CPU has instructions for it; its 11 depthwise convolutions compute in fp32, which is faster")
    assert describe_precision("bf16", "bf16", CPU, model).startswith("bf16: set by --precision; its 11 depthwise")
    assert describe_precision("auto", "fp32", CPU, model) == "fp32: this CPU has no instructions for bf16"
