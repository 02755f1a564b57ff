"""Large-batch methods against one backward pass over the complete batch, in float64."""

from __future__ import annotations

import copy
import shutil
from functools import partial

import pytest
import torch
from torch import nn

from tests.small import SmallModel
from train.large_batch import apply_activation_checkpointing, backward_by_micro_batches, preserve_running_stats
from train.loss import nt_xent
from train.model import SimCLR

NEEDS_COMPILER = pytest.mark.skipif(shutil.which("g++") is None,
                                    reason="PyTorch compiles with g++, which is not installed")  # fmt: skip
LOSS = partial(nt_xent, temperature=0.5)
IMAGES = 12


def views() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return tuple(torch.randn(2, IMAGES, 1, 32, 32, dtype=torch.float64))  # type: ignore[return-value]


def single_backward(model: nn.Module, micro_batch: int) -> float:
    """Run one backward pass over all images. BatchNorm sees `micro_batch` of them at a time."""
    torch.manual_seed(2)
    parts = zip(*(view.split(micro_batch) for view in views()), strict=True)
    embedded = [model(torch.cat([part1, part2])).chunk(2) for part1, part2 in parts]
    z1, z2 = (torch.cat(half) for half in zip(*embedded, strict=True))
    loss = LOSS(z1, z2)
    with preserve_running_stats(model):  # as train_step does with --recompute
        loss.backward()
    return loss.item()


def micro_batch_backward(model: nn.Module, micro_batch: int) -> float:
    torch.manual_seed(2)
    loss, z1, z2 = backward_by_micro_batches(model, model, *views(), LOSS, micro_batch, lambda value: value,
                                             recompute=True)  # fmt: skip
    assert z1.shape == z2.shape == (IMAGES, 128) and LOSS(z1, z2).item() == pytest.approx(loss.item(), rel=1e-12)
    return loss.item()


def max_gradient_distance(one: nn.Module, other: nn.Module) -> float:
    """Return the largest relative distance between the gradients of two models' parameters."""
    distances = []
    for (name, mine), (_, its) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        assert mine.grad is not None and its.grad is not None, name
        distances.append(float((mine.grad - its.grad).norm() / its.grad.norm()))
    return max(distances)


def running_stats_equal(one: nn.Module, other: nn.Module, atol: float = 0) -> bool:
    return all(torch.allclose(mine, its, rtol=1e-12, atol=atol) if mine.is_floating_point() else torch.equal(mine, its)
               for mine, its in zip(one.buffers(), other.buffers(), strict=True))  # fmt: skip


def test_recomputed_gradients_equal_stored_activations() -> None:
    model, twin = SmallModel(), SmallModel()
    apply_activation_checkpointing(model)
    assert single_backward(model, IMAGES) == pytest.approx(single_backward(twin, IMAGES), rel=1e-9)
    assert max_gradient_distance(model, twin) < 1e-9
    assert running_stats_equal(model, twin)
    assert int(model.stem[1].num_batches_tracked) == 1
    assert model.state_dict().keys() == twin.state_dict().keys()


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=[pytest.mark.long, NEEDS_COMPILER])])
def test_compiled_model_has_the_same_micro_batch_gradients(backend: str) -> None:
    """Running statistics are updated once, although the compiler traces a separate graph for each of the two passes.

    inductor, the backend of --compile, compiles C++ for a minute.
    """
    model, twin = SmallModel(dropout=0.0), SmallModel(dropout=0.0)
    compiled = torch.compile(model, backend=backend)
    loss, _, _ = backward_by_micro_batches(compiled, model, *views(), LOSS, 4, lambda value: value)
    assert loss.item() == pytest.approx(micro_batch_backward(twin, 4), rel=1e-9)
    assert max_gradient_distance(model, twin) < 1e-9 and running_stats_equal(model, twin, atol=1e-15)


def test_every_residual_block_is_recomputed() -> None:
    model, twin = SimCLR("resnet18"), SimCLR("resnet18")
    twin.load_state_dict(model.state_dict())
    apply_activation_checkpointing(model)
    for one in (model, twin):
        loss = LOSS(*one(torch.cat(views()).float()).chunk(2))
        with preserve_running_stats(one):
            loss.backward()
    assert sum("forward" in vars(module) for module in model.modules()) == 8
    assert max_gradient_distance(model, twin) < 1e-5 and running_stats_equal(model, twin)


def test_recomputation_saves_fewer_tensors_for_backward() -> None:
    def kept(model: nn.Module) -> int:
        sizes: dict[int, int] = {}

        def pack(x: torch.Tensor) -> torch.Tensor:
            sizes[x.data_ptr()] = x.numel()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            model(views()[0])
        return sum(sizes.values())

    model, twin = SmallModel(), SmallModel()
    before = kept(twin)
    apply_activation_checkpointing(model)
    assert kept(model) < 0.5 * before


@pytest.mark.parametrize("micro_batch", [1, 4, 12])
@pytest.mark.parametrize("recompute", [False, True])
def test_micro_batch_gradient_equals_that_of_one_graph(micro_batch: int, recompute: bool) -> None:
    model, twin = SmallModel(), SmallModel()
    if recompute:
        apply_activation_checkpointing(model)
    assert micro_batch_backward(model, micro_batch) == pytest.approx(single_backward(twin, micro_batch), rel=1e-9)
    assert max_gradient_distance(model, twin) < 1e-9
    assert running_stats_equal(model, twin)
    assert int(model.stem[1].num_batches_tracked) == IMAGES // micro_batch


def test_gradient_accumulation_gives_another_gradient() -> None:
    """Accumulation adds no negatives, although the study recommends it for batches that do not fit into memory."""
    accumulated, twin = SmallModel(), SmallModel()
    torch.manual_seed(2)
    for part1, part2 in zip(*(view.split(4) for view in views()), strict=True):
        (LOSS(*accumulated(torch.cat([part1, part2])).chunk(2)) / 3).backward()
    single_backward(twin, 4)
    assert max_gradient_distance(accumulated, twin) > 0.1


def test_micro_batches_differ_from_whole_batch_batchnorm() -> None:
    """As documented for --micro-batch: the model differs, as on several GPUs without SyncBatchNorm."""
    model, twin = SmallModel(), SmallModel()
    micro_batch_backward(model, 4)
    single_backward(twin, IMAGES)
    assert max_gradient_distance(model, twin) > 0.1


def test_every_weight_has_a_gradient_under_autocast() -> None:
    """Autocast caches cast weights. Weights cast in the pass without a graph would have no gradient."""
    model, twin = SmallModel().float(), SmallModel().float()
    view1, view2 = (view.float() for view in views())

    def embed(of: nn.Module, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            z: torch.Tensor = of(x)
        return z

    torch.manual_seed(2)
    backward_by_micro_batches(partial(embed, model), model, view1, view2, LOSS, IMAGES, lambda value: value)
    torch.manual_seed(2)
    LOSS(*embed(twin, torch.cat([view1, view2])).chunk(2)).backward()
    assert max_gradient_distance(model, twin) < 1e-6


def test_loss_scale_applies_to_the_gradient_only() -> None:
    model, twin = copy.deepcopy(SmallModel()), SmallModel()
    torch.manual_seed(2)
    scaled, _, _ = backward_by_micro_batches(model, model, *views(), LOSS, 4, lambda value: value * 1024)
    assert scaled.item() == pytest.approx(micro_batch_backward(twin, 4), rel=1e-12)
    for parameter in model.parameters():
        assert parameter.grad is not None
        parameter.grad /= 1024
    assert max_gradient_distance(model, twin) < 1e-9
