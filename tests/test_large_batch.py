"""Large batches against one plain backward over the whole batch, in float64."""

from __future__ import annotations

import copy
import shutil
from functools import partial

import pytest
import torch
from torch import nn

from tests.small import SmallModel
from train.large_batch import backward_by_micro_batches, recompute_blocks
from train.loss import nt_xent
from train.model import SimCLR

NEEDS_COMPILER = pytest.mark.skipif(shutil.which("g++") is None,
                                    reason="PyTorch compiles with g++, which is not here")  # fmt: skip
LOSS = partial(nt_xent, temperature=0.5)
IMAGES = 12


def views() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return tuple(torch.randn(2, IMAGES, 1, 32, 32, dtype=torch.float64))  # type: ignore[return-value]


def plain(model: nn.Module, micro_batch: int) -> float:
    """One backward through one graph over all images, whose BatchNorm sees `micro_batch` of them at a time."""
    torch.manual_seed(2)
    parts = zip(*(view.split(micro_batch) for view in views()), strict=True)
    embedded = [model(torch.cat([part1, part2])).chunk(2) for part1, part2 in parts]
    z1, z2 = (torch.cat(half) for half in zip(*embedded, strict=True))
    loss = LOSS(z1, z2)
    loss.backward()
    return loss.item()


def by_micro_batches(model: nn.Module, micro_batch: int) -> float:
    torch.manual_seed(2)
    loss, z1, z2 = backward_by_micro_batches(model, model, *views(), LOSS, micro_batch, lambda value: value)
    assert z1.shape == z2.shape == (IMAGES, 128) and LOSS(z1, z2).item() == pytest.approx(loss.item(), rel=1e-12)
    return loss.item()


def apart(one: nn.Module, other: nn.Module) -> float:
    """The largest relative distance of two models' gradients, parameter by parameter."""
    distances = []
    for (name, mine), (_, its) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        assert mine.grad is not None and its.grad is not None, name
        distances.append(float((mine.grad - its.grad).norm() / its.grad.norm()))
    return max(distances)


def same_statistics(one: nn.Module, other: nn.Module, atol: float = 0) -> bool:
    return all(torch.allclose(mine, its, rtol=1e-12, atol=atol) if mine.is_floating_point() else torch.equal(mine, its)
               for mine, its in zip(one.buffers(), other.buffers(), strict=True))  # fmt: skip


def test_recomputed_gradients_are_those_of_one_plain_backward() -> None:
    model, twin = SmallModel(), SmallModel()
    recompute_blocks(model)
    assert plain(model, IMAGES) == pytest.approx(plain(twin, IMAGES), rel=1e-9)
    assert apart(model, twin) < 1e-9
    assert same_statistics(model, twin)
    assert int(model.stem[1].num_batches_tracked) == 1
    assert model.state_dict().keys() == twin.state_dict().keys()


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=[pytest.mark.long, NEEDS_COMPILER])])
def test_a_compiled_model_gives_the_same_gradients_by_micro_batches(backend: str) -> None:
    """Its statistics move once, though the compiler has a graph of its own for each of the two passes. Both backends
    trace those; inductor, which --compile takes, writes C++ of them, for a minute."""
    model, twin = SmallModel(dropout=0.0), SmallModel(dropout=0.0)
    compiled = torch.compile(model, backend=backend)
    loss, _, _ = backward_by_micro_batches(compiled, model, *views(), LOSS, 4, lambda value: value)
    assert loss.item() == pytest.approx(by_micro_batches(twin, 4), rel=1e-9)
    assert apart(model, twin) < 1e-9 and same_statistics(model, twin, atol=1e-15)


def test_every_block_of_our_resnets_is_recomputed() -> None:
    model, twin = SimCLR("resnet18"), SimCLR("resnet18")
    twin.load_state_dict(model.state_dict())
    recompute_blocks(model)
    for one in (model, twin):
        LOSS(*one(torch.cat(views()).float()).chunk(2)).backward()
    assert sum("forward" in vars(module) for module in model.modules()) == 8
    assert apart(model, twin) < 1e-5 and same_statistics(model, twin)


def test_recomputing_keeps_less_for_backward() -> None:
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
    recompute_blocks(model)
    assert kept(model) < 0.5 * before


@pytest.mark.parametrize("micro_batch", [1, 4, 12])
@pytest.mark.parametrize("recompute", [False, True])
def test_micro_batches_give_the_gradient_of_one_graph_over_them(micro_batch: int, recompute: bool) -> None:
    model, twin = SmallModel(), SmallModel()
    if recompute:
        recompute_blocks(model)
    assert by_micro_batches(model, micro_batch) == pytest.approx(plain(twin, micro_batch), rel=1e-9)
    assert apart(model, twin) < 1e-9
    assert same_statistics(model, twin)
    assert int(model.stem[1].num_batches_tracked) == IMAGES // micro_batch


def test_accumulating_the_loss_of_micro_batches_is_not_that_gradient() -> None:
    """It adds no negatives: what the study names as the cure of a batch too large."""
    accumulated, twin = SmallModel(), SmallModel()
    torch.manual_seed(2)
    for part1, part2 in zip(*(view.split(4) for view in views()), strict=True):
        (LOSS(*accumulated(torch.cat([part1, part2])).chunk(2)) / 3).backward()
    plain(twin, 4)
    assert apart(accumulated, twin) > 0.1


def test_micro_batches_are_not_whole_batch_batchnorm() -> None:
    """What is documented of --micro-batch: its model is another, as on GPUs without SyncBatchNorm."""
    model, twin = SmallModel(), SmallModel()
    by_micro_batches(model, 4)
    plain(twin, IMAGES)
    assert apart(model, twin) > 0.1


def test_under_autocast_every_weight_gets_its_gradient() -> None:
    """Autocast keeps the weights it has cast; cast in the pass without a graph they would have no gradient."""
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
    assert apart(model, twin) < 1e-6


def test_a_scaled_loss_scales_the_gradient_and_not_the_loss() -> None:
    model, twin = copy.deepcopy(SmallModel()), SmallModel()
    torch.manual_seed(2)
    scaled, _, _ = backward_by_micro_batches(model, model, *views(), LOSS, 4, lambda value: value * 1024)
    assert scaled.item() == pytest.approx(by_micro_batches(twin, 4), rel=1e-12)
    for parameter in model.parameters():
        assert parameter.grad is not None
        parameter.grad /= 1024
    assert apart(model, twin) < 1e-9
