"""Models of timm as encoders: names, image sizes, recomputed activations, and weight decay."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.optim import param_groups_weight_decay
from torch import nn

from probe.encoders import simclr_encoder
from probe.finetune import finetune
from shard.errors import InputError
from tests.conftest import Shards, newest, train_here
from tests.test_large_batch import max_gradient_distance, running_stats_equal
from train.architectures import build_encoder, check_arch, first_convs, resize_input
from train.checkpoint import translate_load_errors
from train.config import Config
from train.large_batch import apply_activation_checkpointing
from train.model import SimCLR, encoder_of
from train.optim import make_optimizer
from train.state import TrainState
from train.step import forward_backward

SIZE = 32
# One of each family: BatchNorm with an activation, LayerNorm, transformers, depthwise convolutions, stochastic depth.
FAMILIES = ("timm/densenet121", "timm/convnext_atto", "timm/vit_tiny_patch16_224", "timm/efficientnet_b0",
            "timm/tiny_vit_5m_224", "resnet18")  # fmt: skip


@pytest.mark.parametrize(
    ("arch", "size", "message"),
    [
        ("resnet19", 64, "--arch=resnet19: no such architecture; closest: resnet18, "),
        ("densenet121", 64, "--arch=densenet121: is a model of timm; give timm/densenet121"),
        ("timm/densenet12", 64, f"--arch=timm/densenet12: timm {timm.__version__} has no such model; closest: "
                                "timm/densenet121, "),
        ("timm/convnext", 64, "closest: timm/convnext_"),
        ("timm/resnet50.imagenet", 64, "has no such weights of resnet50; closest: timm/resnet50."),
        ("timm/tv_resnet34", 64, "has no such model; closest: resnet34, "),  # a former name, which timm maps
        ("timm/test_vit", 100, "--arch=timm/test_vit: can't take grey images of 100×100 (it cuts them into patches of "
                               "16×16); give --size=96 or --size=112"),
        ("timm/naflexvit_base_patch16_gap", 64, "(images enter it by no convolution); choose another architecture"),
    ],
)  # fmt: skip
def test_arch_that_cannot_be_trained_is_refused_in_one_line(
    arch: str, size: int, message: str, tmp_path: Path
) -> None:  # fmt: skip
    with pytest.raises(InputError) as raised:
        Config(shards=tmp_path, out=tmp_path, arch=arch, size=size)
    assert message in str(raised.value) and "\n" not in str(raised.value)
    with pytest.raises(InputError) as without_flag:  # a checkpoint or a file of weights names the architecture
        build_encoder(arch, size)
    assert str(without_flag.value) == str(raised.value).removeprefix("--arch=")


def test_checkpoint_of_a_model_that_timm_lacks_names_it() -> None:
    with (
        pytest.raises(InputError, match=r"^a/step-1.pt: timm/resnet_of_tomorrow: timm .* has no such model; closest: "),
        translate_load_errors(Path("a/step-1.pt")),
    ):
        encoder_of({"config": {"arch": "timm/resnet_of_tomorrow", "size": 64}, "model": {}})


def test_grey_images_enter_by_the_convolutions_that_timm_names() -> None:
    names = {"resnet18": ["conv1"], "timm/densenet121": ["features.conv0"], "timm/test_vit": ["patch_embed.proj"],
             "timm/repvgg_a0": ["stem.conv_kxk.conv", "stem.conv_1x1.conv"]}  # fmt: skip
    for arch, expected in names.items():
        with torch.device("meta"):
            encoder, _ = build_encoder(arch, 64)
        assert first_convs(encoder) == expected
        assert {encoder.get_submodule(name).weight.shape[1] for name in expected} == {1}  # type: ignore[union-attr,index]


@pytest.mark.parametrize("arch", ["timm/vit_tiny_patch16_224", "timm/test_convnext", "resnet18"])
def test_resized_encoder_equals_one_that_timm_built_for_that_size(arch: str) -> None:
    torch.manual_seed(0)
    encoder, width = build_encoder(arch, 64)
    images = torch.randn(2, 1, 96, 96)
    other, _ = build_encoder(arch, 96)
    state = encoder.state_dict()
    if "vit" in arch:
        state = timm.models.vision_transformer.checkpoint_filter_fn(dict(state), other)  # type: ignore[no-untyped-call]
    other.load_state_dict(state)
    resize_input(encoder, 96)
    assert encoder.training
    features = encoder.eval()(images)
    assert features.shape == (2, width) and torch.allclose(features, other.eval()(images), atol=1e-5)


@pytest.mark.parametrize(
    ("arch", "trained", "size", "message"),
    [
        ("timm/test_vit", 64, 100, "--size=100: test_vit can't take grey images of 100×100 (it cuts them into patches "
                                   "of 16×16); give --size=96 or --size=112"),
        ("timm/pit_ti_224", 64, 96, "; give --size=64"),
    ],
)  # fmt: skip
def test_size_that_an_encoder_cannot_take_is_refused(arch: str, trained: int, size: int, message: str) -> None:
    encoder, _ = build_encoder(arch, trained)
    with pytest.raises(InputError) as raised:
        resize_input(encoder, size)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def compute_gradients(model: SimCLR, recompute: bool, micro_batch: int) -> None:
    torch.manual_seed(1)
    views = torch.randn(2, 2, 1, SIZE, SIZE, dtype=torch.float64)
    state = TrainState(model, model, make_optimizer("adam", model, lr=1e-3, weight_decay=0.0),
                       torch.amp.GradScaler("cpu", enabled=False), torch.device("cpu"), 1)  # fmt: skip
    torch.manual_seed(2)  # for stochastic depth
    forward_backward(state, *views, temperature=0.5, micro_batch=micro_batch, recompute=recompute)


def saved_bytes(model: nn.Module) -> int:
    """Return the bytes that a forward pass keeps for backward."""
    sizes: dict[int, int] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        sizes[x.data_ptr()] = x.numel() * x.element_size()
        return x

    weights = {parameter.data_ptr() for parameter in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        kept = model(torch.zeros(4, 1, SIZE, SIZE, dtype=torch.float64))
    assert kept.requires_grad
    return sum(size for pointer, size in sizes.items() if pointer not in weights)


@pytest.mark.parametrize(
    ("arch", "micro_batch"),
    [*((arch, 0) for arch in FAMILIES), ("timm/test_efficientnet", 1), ("timm/tiny_vit_5m_224", 1)],
)  # fmt: skip
def test_recomputed_step_equals_a_plain_one(arch: str, micro_batch: int) -> None:
    """Gradients and running statistics, with stochastic depth too."""
    torch.manual_seed(0)
    model = SimCLR(arch, SIZE).double().train()
    twin = copy.deepcopy(model)
    apply_activation_checkpointing(model, arch)
    if not micro_batch:
        assert saved_bytes(copy.deepcopy(model)) < 0.8 * saved_bytes(copy.deepcopy(twin))
    compute_gradients(model, recompute=True, micro_batch=micro_batch)
    compute_gradients(twin, recompute=False, micro_batch=micro_batch)
    assert max_gradient_distance(model, twin) < 1e-9 and running_stats_equal(model, twin)


def test_model_without_checkpointing_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--recompute: timm/darknet53 can't recompute .*--micro-batch"):
        Config(shards=tmp_path, out=tmp_path, arch="timm/darknet53", size=64, recompute=True)


def test_weight_decay_exempts_what_timm_exempts() -> None:
    model = SimCLR("timm/test_vit", SIZE)
    decayed, exempt = make_optimizer("adamw", model, lr=1e-3, weight_decay=0.1).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    own: Any = model.encoder
    by_timm = param_groups_weight_decay(own, 0.1, no_weight_decay_list=own.no_weight_decay())
    free = {names[id(parameter)] for parameter in exempt["params"]}
    assert {names[id(parameter)] for parameter in by_timm[0]["params"]} == {
        name for name in free if name.startswith("encoder.")} >= {"encoder.pos_embed"}  # fmt: skip
    assert len(decayed["params"]) + len(exempt["params"]) == len(names)


def test_resnet_groups_are_as_before() -> None:
    """Checkpoints contain the optimizer's state by the number of the parameter."""
    model = SimCLR("resnet18")
    groups = make_optimizer("adam", model, lr=1e-3, weight_decay=0.1).param_groups
    parameters = list(model.parameters())
    for group, expected in zip(groups, ([p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]),
                               strict=True):  # fmt: skip
        assert [id(p) for p in group["params"]] == [id(p) for p in expected]


def test_fine_tuning_with_stochastic_depth_is_reproducible(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr("probe.finetune.STEPS", 5)
    encoder, _ = build_encoder("timm/test_vit", SIZE, model_args={"drop_path_rate": 0.5})
    images, labels = torch.randn(4, 1, SIZE, SIZE), torch.tensor([0, 1, 0, 1])
    one = finetune(encoder.eval(), images, labels, images, seed=3)
    torch.rand(1)  # moves the global generator
    assert (finetune(encoder.eval(), images, labels, images, seed=3) == one).all()


def test_probe_at_another_size_than_the_run_was_trained_at(shards: Shards, tmp_path: Path) -> None:
    train_here(shards, tmp_path, arch="timm/test_vit", limit_steps=1, online_every=0)
    state: dict[str, Any] = newest(tmp_path)
    encoder = simclr_encoder(state, size=48)
    assert encoder.module is not None and encoder.module(torch.zeros(1, 1, 48, 48)).shape == (1, 64)
    with pytest.raises(InputError, match=r"--size=50: test_vit can't take .*; give --size=48 or --size=64"):
        simclr_encoder(state, size=50)


def test_listed_architectures_are_checked_without_timm() -> None:
    check_arch("resnet50", 64)
    with pytest.raises(InputError, match="--arch=timm/x: "):
        check_arch("timm/x", 64)
