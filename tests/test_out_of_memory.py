"""Out of memory ends training and probing in one line that names what needs less."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from probe.embed.embed import embed
from probe.embed.settings import EmbedSettings
from probe.report import make_report
from probe.settings import Settings
from shard.errors import InputError
from tests.conftest import SETTINGS, SMALL, Shards, train_here
from tests.test_ranks import start, wait_for_end
from train.config import Config
from train.model import SimCLR
from train.out_of_memory import describe_memory, describe_step, explain_out_of_memory, is_out_of_memory, step_cures

CUDA_ERROR = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.18 GiB"


def fail(*_: Any, **__: Any) -> Any:
    raise torch.cuda.OutOfMemoryError(CUDA_ERROR)


def really_fail(*_: Any, **__: Any) -> Any:
    return torch.empty(2**58)  # beyond the address space


def test_errors_about_memory_are_recognised() -> None:
    """Texts of PyTorch and of its issue tracker."""
    for text in ("CUDA error: out of memory", "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
                 "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
                 "GET was unable to find an engine to execute this computation",
                 "DefaultCPUAllocator: not enough memory: you tried to allocate 68719476736 bytes."):
        assert is_out_of_memory(RuntimeError(text)), text
    for error in (torch.cuda.OutOfMemoryError(CUDA_ERROR), MemoryError("std::bad_alloc")):
        assert is_out_of_memory(error)
    with pytest.raises(RuntimeError) as real:
        really_fail()
    assert is_out_of_memory(real.value)
    with pytest.raises(MemoryError) as real_numpy:
        np.empty(2**58)
    assert is_out_of_memory(real_numpy.value)
    for other in (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("out of memory"),
                  dist.DistBackendError("NCCL error: unhandled cuda error, 'out of memory'")):
        assert not is_out_of_memory(other)
        with pytest.raises(type(other)), explain_out_of_memory("cpu", lambda: "a step", lambda: "lower it"):
            raise other


def test_training_ends_in_one_line(shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SimCLR, "forward", fail)
    with pytest.raises(InputError, match=r"^out of memory: a step of timm/test_resnet on 16 images of 32 px needs more "
                       r"than .*; use --recompute, or use --micro-batch=8, or lower --batch-size to 8, or lower --si"):
        train_here(shards, tmp_path / "run")
    assert not list(tmp_path.rglob("*.pt"))


@pytest.mark.parametrize(
    ("settings", "world", "step", "cures"),
    [({"recompute": True}, 1, "16 images of 32 px", "use --micro-batch=8, or lower --batch-size to 8"),
     ({"micro_batch": 4}, 2, "8 images of 32 px, 4 at a time, on each of 2 ranks",
      "use --recompute, or use --micro-batch=2, or lower --batch-size to 8"),
     ({"recompute": True, "micro_batch": 1}, 1, "16 images of 32 px, 1 at a time,", "lower --batch-size to 8"),
     ({"recompute": True, "micro_batch": 1, "batch_size": 2}, 1, "2 images of 32 px, 1 at a time,", ""),
     ({"compile": True, "batch_size": 15}, 3, "5 images of 32 px on each of 3 ranks",
      "use --micro-batch=1, or lower --batch-size to 6"),
     ({"arch": "timm/darknet17", "size": 64}, 1, "16 images of 64 px",
      "use --micro-batch=8, or lower --batch-size to 8")],
)  # fmt: skip
def test_only_flags_that_apply_are_named(
    tmp_path: Path, settings: dict[str, Any], world: int, step: str, cures: str
) -> None:
    config = Config(shards=tmp_path, out=tmp_path, **{**SETTINGS, **settings})
    assert describe_step(config, world) == f"a step of {config.arch} on {step}"
    assert step_cures(config, world) == f"{cures}, or lower --size".removeprefix(", or ")


def test_a_begun_run_is_told_what_may_change(
    shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the CPU's allocator itself refuses."""
    train_here(shards, tmp_path, epochs=1)
    monkeypatch.setattr(SimCLR, "forward", really_fail)
    with pytest.raises(InputError, match=r"than this process may use of the machine's \d+\.\d GB; use --recompute, "
                       r"or use --micro-batch=8 with --accept=micro_batch, or lower --batch-size to 8 in another"):
        train_here(shards, tmp_path, epochs=2, schedule="constant")


def test_memory_of_a_gpu_is_described_with_who_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1_000_000_000, 80_000_000_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 78_200_000_000)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100")
    assert describe_memory("cuda") == "the 80.0 GB of NVIDIA H100 (PyTorch holds 78.2 GB, all else 0.8 GB)"
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 30_000_000_000)
    assert describe_memory("cuda").endswith("(PyTorch holds 30.0 GB, all else 49.0 GB: see nvidia-smi)")
    monkeypatch.setattr(torch.cuda, "mem_get_info", fail)
    assert describe_memory("cuda") == "the GPU has"


@pytest.mark.long
def test_other_ranks_are_told(shards: Shards, tmp_path: Path) -> None:
    flags = [f"--shards={shards.folder}", f"--out={tmp_path / 'run'}", *SMALL, "--workers=1", "--nodali"]
    ended = wait_for_end(start([["tests.rank_out_of_memory", "1", *flags]] * 2))
    assert [status for status, _, _ in ended] == [1, 1], ended
    me = f"rank 1 on {socket.gethostname()}"
    reason = "out of memory: a step of timm/test_resnet on 8 images of 32 px on each of 2 ranks needs more than"
    assert f"error: {me}: {reason}" in ended[1][2].splitlines()[-1]
    assert f"ends because {me} failed: {reason}" in ended[0][2].splitlines()[-1]
    assert all("Traceback" not in said for _, _, said in ended)


def test_probing_names_the_batch_size(
    shards: Shards, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("timm.models.resnet.ResNet.forward", fail)
    what = r"the features of 32 images of 32 px at a time needs more than .*; lower --batch-size to 16$"
    settings: dict[str, Any] = {"device": "cpu", "workers": 1, "batch_size": 32}
    with pytest.raises(InputError, match=what):
        embed(str(trained), shards.folder, EmbedSettings(out=tmp_path / "features.parquet", **settings))
    with pytest.raises(InputError, match=what):
        make_report(Settings(encoders=(str(trained),), shards=shards.folder, out=tmp_path / "report", **settings), 0, 1)
    assert not (tmp_path / "features.parquet").exists() and not (tmp_path / "report" / "report.html").exists()


def test_fine_tuning_names_its_flags(
    shards: Shards, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("probe.measure.finetune", fail)
    settings = Settings(encoders=(str(trained),), shards=shards.folder, out=tmp_path, shots=("5",), draws=2, finetune=1,
                        tasks=("Lung Opacity",), baselines=(), device="cpu", workers=1, batch_size=32)  # fmt: skip
    with pytest.raises(InputError, match=r"fine-tuning SimCLR on 10 images of 32 px, and testing it on \d+, 32 at a "
                       r"time, needs more than .*; lower --batch-size to 16, use fewer --shots or a smaller --size, or "
                       "omit --finetune"):
        make_report(settings, 0, 1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_gpu_without_memory_ends_in_one_line(shards: Shards, tmp_path: Path) -> None:
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    filler = torch.empty(free - 1_500_000_000, dtype=torch.uint8, device="cuda")
    try:
        with pytest.raises(InputError, match=r"a step of resnet50 on 64 images of 224 px needs more than the .* GB of "
                           r"NVIDIA.* \(PyTorch holds .*use --recompute, or use --micro-batch=32, or lower --batch"):
            train_here(shards, tmp_path / "run", device="cuda", precision="fp16", arch="resnet50", size=224,
                       batch_size=64, views="cpu")  # fmt: skip
        torch.cuda.empty_cache()
        layer = nn.Conv2d(1, 512, 1).cuda()
        explained = explain_out_of_memory("cuda", lambda: "a layer", lambda: "lower it")
        with pytest.raises(InputError, match=r"a layer needs more than .*PyTorch holds"), explained:
            layer(torch.empty(64, 1, 512, 512, device="cuda"))
    finally:
        del filler
        torch.cuda.empty_cache()
