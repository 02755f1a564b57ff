"""A training step never makes the host wait for a GPU: traced on meta tensors, which have shapes and no values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib import import_module
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torchvision.models.resnet import BasicBlock, Bottleneck

from train.architectures import ARCHITECTURES
from train.config import Optimizer, Precision
from train.device import fit_to_device
from train.large_batch import apply_activation_checkpointing
from train.model import SimCLR
from train.optim import make_optimizer
from train.presets import SamePatient
from train.state import TrainState
from train.step import train_step

META, aten = torch.device("meta"), torch.ops.aten
IMAGES, SIZE = 8, 32
HOST = torch.zeros(3)
DTYPES: dict[str, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16}
# These change their first argument in place, on its device; PyTorch has no version of them for meta tensors.
WITHOUT_META = {aten._amp_update_scale_.default, aten._amp_foreach_non_finite_check_and_unscale_.default,
                aten._fused_adam_.default, aten._fused_adamw_.default}  # fmt: skip
# Operands that CUDA's kernels take from the host as arguments of the launch: tensors without dimensions, into which
# PyTorch wraps Python's numbers.
SCALAR_OPERANDS = {"aten::add", "aten::mul", "aten::div", "aten::sub", "aten::where", "aten::masked_fill"}
FROM_VALUES = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)


class Waits(Exception):
    """An operator would make the host wait for the GPU."""


class NoWaits(TorchDispatchMode):
    """Raises Waits for operators that read values of tensors, and for tensors of another device. allowed: waits."""

    def __init__(self, allowed: int = 0) -> None:
        super().__init__()
        self.allowed, self.seen, self.patch = allowed, 0, pytest.MonkeyPatch()

    def __enter__(self) -> NoWaits:
        for name in ("tensor", "as_tensor", "from_numpy"):
            self.patch.setattr(torch, name, copy_from_host)
        return super().__enter__()  # type: ignore[no-any-return]

    def __exit__(self, *error: Any) -> None:
        self.patch.undo()
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if reads_values(func, args):
            self.seen += 1
            if self.seen > self.allowed:
                raise Waits(f"{func} reads values")
            return 0.0
        # Checkpointing in PyTorch before 2.14 creates a tensor without elements on the host; nothing of it is copied.
        without_elements = func is aten.empty.memory_format and list(args[0]) == [0]
        if torch.device(kwargs.get("device") or META) != META and not without_elements:
            raise Waits(f"{func} makes a tensor on {kwargs['device']}")
        name = func._schema.name.rstrip("_")
        for tensor in tensors:
            if tensor.device != META and tensor.numel() and not (tensor.ndim == 0 and name in SCALAR_OPERANDS):
                raise Waits(f"{func} takes a tensor {list(tensor.shape)} on {tensor.device}")
        if func in WITHOUT_META:
            return args[0] if func._schema.returns else None
        return func(*args, **kwargs)


def reads_values(func: Any, args: Any) -> bool:
    """Whether an operator's output depends on values, not only on shapes: .item(), nonzero, a boolean index."""
    if func._schema.name in ("aten::index", "aten::index_put", "aten::index_put_"):
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return any(tag in func.tags for tag in FROM_VALUES)


class Autocast:
    """Stands in for torch.autocast, which does not know meta tensors: casts the operands of layers to `dtype`.

    It stays on between blocks, since recomputation in backward needs it, and off within blocks that disable it.
    """

    def __init__(self, patch: pytest.MonkeyPatch, dtype: torch.dtype | None) -> None:
        self.dtype, self.enabled, self.casts = dtype, dtype is not None, 0
        for name in ("conv2d", "linear", "scaled_dot_product_attention"):
            patch.setattr(F, name, partial(self._call, getattr(F, name)))
        patch.setattr(torch, "autocast", lambda device, dtype=None, enabled=True: self._set(enabled))

    def _call(self, layer: Any, *args: Any, **kwargs: Any) -> Any:
        if self.enabled:
            self.casts += 1
            args, kwargs = tree_map(self._cast, (args, kwargs))
        return layer(*args, **kwargs)

    def _cast(self, value: Any) -> Any:
        return value.to(self.dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    @contextmanager
    def _set(self, enabled: bool) -> Iterator[None]:
        before, self.enabled = self.enabled, self.enabled and enabled
        try:
            yield
        finally:
            self.enabled = before


@pytest.fixture
def meta(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Let PyTorch treat meta as it treats cuda: fused optimizers, operators over lists of tensors."""
    for module, kind in (("torch.optim.optimizer", "fused"), ("torch.optim.optimizer", "foreach"),
                         ("torch.utils._foreach_utils", "foreach")):  # fmt: skip
        monkeypatch.setattr(import_module(module), f"_get_{kind}_kernels_supported_devices", lambda: ["cuda", "meta"])
    fork_rng = torch.random.fork_rng  # of PyTorch 2.5 refuses meta, which has no generator

    def fork(*arguments: Any, device_type: str = "cuda", **options: Any) -> Any:
        return nullcontext() if device_type == "meta" else fork_rng(*arguments, device_type=device_type, **options)

    monkeypatch.setattr(torch.random, "fork_rng", fork)
    monkeypatch.setitem(ARCHITECTURES, "small", small)
    yield monkeypatch


def copy_from_host(*args: Any, **kwargs: Any) -> Any:
    """Stands in for torch.tensor and the like, which do not show on meta: on a GPU their copy waits for it."""
    raise Waits("a copy from the host")


def small(channels: int) -> tuple[nn.Module, int]:
    """A stem and a residual block of each kind, as an architecture."""
    stem = nn.Conv2d(channels, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
    return nn.Sequential(*stem, BasicBlock(8, 8), Bottleneck(8, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten()), 8


def make_state(
    device: torch.device, *, arch: str = "small", precision: Precision = "fp16", optimizer: Optimizer = "adam",
    recompute: bool = False, **_: Any,
) -> TrainState:  # fmt: skip
    """A run's state as train.setup makes it."""
    model = fit_to_device(SimCLR(arch, SIZE), device, precision)
    if recompute:
        apply_activation_checkpointing(model)
    made = make_optimizer(optimizer, model, lr=1e-3, weight_decay=0.1)
    return TrainState(model, model, made, torch.amp.GradScaler(device.type, enabled=precision == "fp16"), device, 10)


def take_steps(
    state: TrainState, steps: int, *, arch: str = "", optimizer: str = "", precision: Precision = "fp16",
    same_patient: SamePatient = "negatives", **settings: Any,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    """Take some steps on the state's device, and return the last one's loss and embeddings."""
    half = torch.float16 if precision == "fp16" else None  # as the loader makes them
    views = torch.empty(2, IMAGES, 1, SIZE, SIZE, device=state.device, dtype=half).fill_(0.5)
    patients = torch.arange(IMAGES, device=state.device) if same_patient != "negatives" else None
    for _ in range(steps):
        outputs = train_step(state, views[0], views[1], lr=1e-3, temperature=0.5, patients=patients,
                             same_patient=same_patient, precision=precision, **settings)  # fmt: skip
    return outputs


def trace(meta: pytest.MonkeyPatch, allowed: int = 0, **settings: Any) -> int:
    """Take two steps on meta tensors and return how often the host would wait. Raises Waits beyond `allowed`."""
    state, dtype = make_state(META, **settings), DTYPES.get(settings.get("precision", "fp16"))
    casts = Autocast(meta, dtype)
    with NoWaits(allowed) as waits:
        loss, z1, z2 = take_steps(state, 2, **settings)
    assert state.step == 2 and loss.shape == () and z1.shape == z2.shape == (IMAGES, 128)
    assert z1.dtype == (dtype or torch.float32) and (casts.casts > 0) == (dtype is not None)
    return waits.seen


CASES: dict[str, dict[str, Any]] = {
    "plain": {}, "float32": {"precision": "fp32"}, "bfloat16": {"precision": "bf16"},
    "micro-batches": {"micro_batch": 4}, "recomputed": {"recompute": True},
    "recomputed micro-batches": {"micro_batch": 4, "recompute": True}, "clipped": {"clip": 1.0},
    "adamw": {"optimizer": "adamw"}, "lars": {"optimizer": "lars", "precision": "bf16"},
    "lars, clipped": {"optimizer": "lars", "precision": "fp32", "clip": 1.0},
    "partners masked": {"same_patient": "masked"}, "partners as positives": {"same_patient": "positives"},
    "positives by micro-batches": {"same_patient": "positives", "micro_batch": 4},
    "resnet18": {"arch": "resnet18", "recompute": True},
    "vision transformer": {"arch": "timm/test_vit", "recompute": True},
    "efficientnet": {"arch": "timm/test_efficientnet", "recompute": True},
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_step_does_not_wait_for_the_device(meta: pytest.MonkeyPatch, case: str) -> None:
    assert trace(meta, **CASES[case]) == 0


def test_lars_with_the_scaler_of_fp16_waits_once(meta: pytest.MonkeyPatch) -> None:
    """PyTorch's scaler asks whether the gradient overflowed, unless the optimizer is a fused one."""
    with pytest.raises(Waits, match="_local_scalar_dense"):
        trace(meta, optimizer="lars")
    assert trace(meta, optimizer="lars", allowed=2) == 2  # of two steps


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("case", [*CASES, "lars in fp16"])
def test_step_on_a_gpu_does_not_wait(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    """PyTorch itself raises where it would wait."""
    monkeypatch.setitem(ARCHITECTURES, "small", small)
    settings = CASES.get(case, {"optimizer": "lars"})
    state = make_state(torch.device("cuda"), **settings)
    take_steps(state, 1, **settings)  # creates the optimizer's state and the libraries' handles
    waits = pytest.raises(RuntimeError, match="synchronizing") if case == "lars in fp16" else nullcontext()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with waits:
            take_steps(state, 1, **settings)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [(lambda x: x.sum().item(), "_local_scalar_dense"), (lambda x: bool((x > 0).all()), "reads values"),
     (lambda x: (x > 0).nonzero(), "nonzero"), (lambda x: x[x > 0], "index.Tensor reads values"),
     (lambda x: x.masked_select(x > 0), "masked_select"), (lambda x: torch.unique(x), "reads values"),
     (lambda x: x.index_put_(((x > 0),), x.new_zeros(())), "index_put_"),
     (lambda x: x + torch.ones(3), "makes a tensor on cpu"), (lambda x: x + HOST, r"takes a tensor \[3\] on cpu"),
     (lambda x: x[HOST.long()], "takes a tensor"), (lambda x: x.cpu(), "_to_copy.default makes a tensor on cpu"),
     (lambda x: x.copy_(HOST), "copy_.default takes"), (lambda x: torch.tensor(1.0, device="meta"), "from the host")],
)  # fmt: skip
@pytest.mark.usefixtures("meta")
def test_each_wait_is_found(wrong: Any, message: str) -> None:
    x = torch.empty(3, device=META)
    with NoWaits(), pytest.raises(Waits, match=message):
        wrong(x)
    with NoWaits():
        assert (torch.where(x > 0, x * 2.0, torch.nan) / 3).shape == (3,)
