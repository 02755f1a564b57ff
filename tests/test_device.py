"""The device that auto chooses or refuses, and settings that make training fast on it."""

import platform
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from shard.errors import InputError
from train.config import Device, Precision
from train.device import (
    autocast,
    configure_backend,
    describe_precision,
    fit_to_device,
    resolve_device,
    resolve_precision,
)
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
    for setting in ("allow_tf32", "benchmark"):  # restored after the test
        monkeypatch.setattr(torch.backends.cudnn, setting, False)
    configure_backend(torch.device(device))
    assert torch.backends.cudnn.allow_tf32 and torch.backends.cudnn.benchmark
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


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Return a function that imitates a machine without a usable GPU: its driver, wheel, error and environment."""
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_GPUS", "SLURM_STEP_GPUS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))  # without nvidia-smi
    monkeypatch.setattr("train.usable_gpu.DEVICES", tmp_path)
    monkeypatch.setattr("train.usable_gpu.DRIVER_FILE", tmp_path / "version")

    def become(driver: str = "", error: str = "No CUDA GPUs are available", cuda: str | None = "13.0",
               version: str = "2.14.1+cu130", **environment: str) -> None:  # fmt: skip
        def is_available() -> bool:
            warnings.warn(f"CUDA initialization: {error}", stacklevel=2)  # like PyTorch's
            return False

        def init() -> None:
            raise RuntimeError(error)

        if driver:
            (tmp_path / "version").write_text(f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {driver}  Tue Mar 5\n"
                                              "GCC version:  gcc version 12.2.0\n")  # fmt: skip
        monkeypatch.setattr(torch.cuda, "is_available", is_available)
        monkeypatch.setattr(torch.cuda, "init", init)
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch, "__version__", version)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

    return become


def refusal(device: Device) -> str:
    """Return the one line with which a device is refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PyTorch's own warning would be a second message
        with pytest.raises(InputError) as caught:
            resolve_device(device)
    assert "\n" not in str(caught.value)
    return str(caught.value)


TOO_OLD = ("The NVIDIA driver on your system is too old (found version 12040). Please update your GPU driver by "
           "downloading and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx")


def test_auto_refuses_the_cpu_where_a_gpu_was_given_and_the_driver_is_too_old(machine: Callable[..., None]) -> None:
    machine(driver="550.54.15", error=TOO_OLD, SLURM_JOB_GPUS="0,1")
    assert refusal("auto") == (
        "PyTorch finds no GPU, but this process was given one (SLURM_JOB_GPUS=0,1): The NVIDIA driver on your system "
        "is too old (found version 12040); NVIDIA's driver here is 550.54.15, PyTorch 2.14.1+cu130 is for CUDA 13.0, "
        "which needs driver 580 or newer; install driver 580, or PyTorch for CUDA 12 (pip install -c "
        "constraints-cuda12.txt; docs/cluster.md); to compute on the CPU, give --device=cpu or set "
        "CUDA_VISIBLE_DEVICES to nothing")
    assert resolve_device("cpu") == "cpu"


def test_a_driver_too_old_for_cuda_12_is_to_be_replaced(machine: Callable[..., None]) -> None:
    machine(driver="470.129.06", error=TOO_OLD, cuda="12.8", version="2.10.0+cu128", CUDA_VISIBLE_DEVICES="0")
    assert ("is 470.129.06, PyTorch 2.10.0+cu128 is for CUDA 12.8, which needs driver 525 or newer; "
            "install driver 525; ") in refusal("auto")  # fmt: skip


def test_a_build_without_cuda_is_named(machine: Callable[..., None]) -> None:
    machine(driver="580.95.05", error="Torch not compiled with CUDA enabled", cuda=None, version="2.14.1+cpu",
            SLURM_STEP_GPUS="3")  # fmt: skip
    assert "PyTorch 2.14.1+cpu is a build without CUDA; install a wheel with CUDA" in refusal("auto")


def test_a_container_without_its_gpus_is_told_how_to_see_them(machine: Callable[..., None]) -> None:
    """It may show the host's /proc, with the driver's version."""
    machine(driver="580.95.05", error="Found no NVIDIA driver on your system. Please check", SLURM_JOB_GPUS="0")
    assert "apptainer exec --nv, docker run --gpus=all" in refusal("auto")


@pytest.mark.parametrize("environment", [
    {}, {"CUDA_VISIBLE_DEVICES": ""}, {"CUDA_VISIBLE_DEVICES": " none"},
    {"CUDA_VISIBLE_DEVICES": "-1", "SLURM_JOB_GPUS": "0"},
    {"CUDA_VISIBLE_DEVICES": "NoDevFiles", "SLURM_JOB_GPUS": "0"}, {"SLURM_JOB_GPUS": ""}])  # fmt: skip
def test_auto_takes_the_cpu_in_silence_without_a_gpu_or_with_a_hidden_one(
    machine: Callable[..., None], tmp_path: Path, environment: dict[str, str]
) -> None:
    machine(**environment)
    if "CUDA_VISIBLE_DEVICES" in environment:
        (tmp_path / "nvidia0").touch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resolve_device("auto") == "cpu"


def test_auto_refuses_the_cpu_where_a_gpu_can_be_opened(machine: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "nvidiactl").touch()
    machine(driver="580.95.05", error="Unexpected error from cudaGetDeviceCount(). Error 802: not yet initialized")
    assert resolve_device("auto") == "cpu"
    (tmp_path / "nvidia7").touch()
    message = refusal("auto")
    assert f"given one ({tmp_path}/nvidia7): Unexpected error from cudaGetDeviceCount(); " in message
    assert "check that nvidia-smi lists one" in message


def test_auto_refuses_the_cpu_where_a_gpu_is_named_in_a_way_that_cuda_does_not_read(
    machine: Callable[..., None]
) -> None:
    machine(driver="580.95.05", CUDA_VISIBLE_DEVICES="cuda:0")
    message = refusal("auto")
    assert "this process was given one (CUDA_VISIBLE_DEVICES=cuda:0): No CUDA GPUs are available; " in message
    assert "check that nvidia-smi lists one as CUDA_VISIBLE_DEVICES=cuda:0 names it, and " in message


def test_cuda_without_a_gpu_is_explained_alike(machine: Callable[..., None]) -> None:
    machine(error="Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU")
    assert refusal("cuda").startswith("--device=cuda: PyTorch finds no GPU: Found no NVIDIA driver on your system; "
                                      "NVIDIA's driver here is missing, PyTorch 2.14.1+cu130 is for CUDA 13.0")
    machine(driver="580.95.05", CUDA_VISIBLE_DEVICES="")
    assert "; unset CUDA_VISIBLE_DEVICES, which hides all GPUs; " in refusal("cuda")


@pytest.mark.parametrize(("capability", "architectures", "cure"), [
    ((8, 9), "sm_75 sm_80 sm_86 sm_90", ""), ((9, 0), "sm_80 sm_90a", ""), ((10, 3), "sm_90 sm_100f", ""),
    ((10, 3), "sm_90 sm_100a", "only; install a newer PyTorch"), ((12, 1), "sm_90 compute_90", ""),
    ((7, 0), "sm_75 sm_80 sm_90", "has kernels for 7.5, 8.0, 9.0 only; install PyTorch for CUDA 12"),
    ((6, 1), "sm_75 sm_80", "only; use a GPU of compute capability 7.5 or higher"),
    ((6, 1), "sm_70 sm_75", "only; use a GPU of compute capability 7.0 or higher"),
    ((12, 0), "sm_75 sm_80 sm_90", "only; install a newer PyTorch")])  # fmt: skip
def test_a_gpu_without_kernels_is_refused(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], architectures: str, cure: str
) -> None:
    """PyTorch finds such a GPU, and fails at its first kernel."""
    def get_device_capability(device: int) -> tuple[int, int]:
        warnings.warn("Found GPU0 which is of compute capability", stacklevel=2)  # like PyTorch's
        return capability

    for name, value in {"is_available": True, "current_device": 0, "get_device_name": "Tesla V100",
                        "get_arch_list": architectures.split()}.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(torch.cuda, "get_device_capability", get_device_capability)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    if not cure:
        assert resolve_device("auto") == resolve_device("cuda") == "cuda"
    else:
        assert "Tesla V100 has compute capability " in refusal("auto") and cure in refusal("cuda")


@pytest.mark.parametrize(("precision", "arch"), [("fp16", "resnet18"), ("bf16", "timm/mobilenetv3_small_050")])
def test_model_moves_to_a_gpu_in_channels_last_and_casts_nothing_itself(
    monkeypatch: pytest.MonkeyPatch, precision: Precision, arch: str
) -> None:
    """On a GPU depthwise convolutions compute in the precision of the others."""
    model, moves = SimCLR(arch, 32), list[object]()
    monkeypatch.setattr(nn.Module, "to", lambda self, *to, **by: moves.append(by or to) or self)
    assert fit_to_device(model, torch.device("cuda"), precision) is model
    assert moves == [{"memory_format": torch.channels_last}, (torch.device("cuda"),)]
    assert not any("forward" in vars(module) for module in model.modules())
    assert "depthwise" not in describe_precision("auto", precision, torch.device("cuda"), model)
