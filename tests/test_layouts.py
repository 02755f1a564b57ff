"""Checkpoints in other projects' layouts give the same features, or an error that says what the file contains."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import timm
import torch
import torchvision
from timm.models import save_for_hf
from torch import nn

from shard.errors import InputError
from tests.small import with_statistics
from train.architectures import check_arch
from train.weights.load import read_weights

State = dict[str, torch.Tensor]
SIDE = 64  # px of the images that features are compared on
# A small vision transformer under the name that files of its kind are given.
TINY_VIT = {"img_size": 64, "embed_dim": 48, "depth": 2, "num_heads": 3}
CONFIG = '{"architecture": "%s", "model_args": {"embed_dim": 48, "depth": 2, "num_heads": 3}}'


def grey_stem(resnet: Any) -> Any:
    """Replace the stem by one of a single channel."""
    resnet.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    return resnet


class Torchxrayvision(nn.Module):
    """features2 of torchxrayvision 1.5.7's DenseNet: features, ReLU, average; one channel and a classifier of 18."""

    def __init__(self) -> None:
        super().__init__()
        densenet = torchvision.models.densenet121()
        self.features = densenet.features
        self.features.conv0 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
        self.classifier = nn.Linear(1024, 18)
        self.register_buffer("op_threshs", torch.rand(18))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool2d(torch.relu(self.features(x)), 1).flatten(1)


@pytest.fixture(scope="module")
def modules() -> dict[str, nn.Module]:
    """The networks whose weights the files have, by name; two of each twin."""
    torch.manual_seed(0)
    built = {
        "resnet": torchvision.models.resnet18(), "twin": torchvision.models.resnet18(),
        "grey resnet": grey_stem(torchvision.models.resnet18()), "densenet": Torchxrayvision(),
        "vit": timm.create_model("vit_tiny_patch16_224", num_classes=5, **TINY_VIT),
        "vit twin": timm.create_model("vit_tiny_patch16_224", num_classes=5, **TINY_VIT),
        "blur": timm.create_model("resnetblur18"), "mobilenet": torchvision.models.mobilenet_v3_small(),
    }  # fmt: skip
    return {name: with_statistics(module).eval() for name, module in built.items()}


def features_of(module: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """What the layer before the classifier gives."""
    name = next((name for name in ("fc", "head") if isinstance(getattr(module, name, None), nn.Linear)), "")
    layer = getattr(module, name, nn.Identity())
    if name:
        setattr(module, name, nn.Identity())
    with torch.inference_mode():
        found: torch.Tensor = module(images)
    if name:
        setattr(module, name, layer)
    return found


def under(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def mlp(name: str, *widths: int) -> State:
    """A projector's linear layers."""
    return {f"{name}.{2 * place}.weight": torch.randn(one, other) for place, (one, other) in enumerate(
        zip(widths[1:], widths, strict=False))}  # fmt: skip


def without(state: State, *heads: str) -> State:
    return {name: value for name, value in state.items() if not name.startswith(heads)}


def body(state: State) -> State:
    return without(state, "fc.", "classifier.", "head.", "op_threshs")


def numbered(state: State) -> State:
    """As in nn.Sequential(*list(resnet.children())[:-1])."""
    numbers = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
    return {re.sub(r"^\w+", lambda head: numbers[head[0]], name): value for name, value in body(state).items()}


def old_densenet(state: State) -> State:
    """The names that PyTorch before 0.4 gave, which did not count batches either."""
    return {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", name): value for name, value in state.items()
            if not name.endswith("num_batches_tracked")}  # fmt: skip


def cast(state: State, dtype: torch.dtype) -> State:
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}


class Layout(NamedTuple):
    """A file's content as a function of a network's state dict and its twin's. of: the network.

    note: what the notes say. arch: as the user gives it. exact: the largest difference of features.
    """

    of: str
    write: Callable[[State, State], Any]
    note: str = ""
    arch: str = ""
    exact: float = 1e-4


# The project whose files are so → its layout. Where two networks are in a file, the first is the one to be read.
LAYOUTS = {
    "torchvision": Layout("resnet", lambda a, b: a, "ASSUMED to be torchvision's resnet18"),
    "PyTorch's ImageNet example, DistributedDataParallel": Layout("resnet", lambda a, b: {
        "epoch": 3, "arch": "resnet18", "state_dict": under("module.", a), "best_acc1": torch.tensor(0.5),
        "optimizer": {"state": {0: {"momentum_buffer": a["conv1.weight"]}}, "param_groups": []}}),
    "torchvision's references with --model-ema": Layout("resnet", lambda a, b: {
        "model": b, "model_ema": {"n_averaged": torch.tensor(5), **under("module.", a)}, "epoch": 1},
        "weights of model_ema.module, the averaged weights"),
    "timm's train.py": Layout("resnet", lambda a, b: {
        "epoch": 1, "arch": "resnet18", "state_dict": b, "state_dict_ema": a, "version": 2, "metric": 70.0},
        "weights of state_dict_ema, the averaged weights, as in timm"),
    "timm's train.py, another network of the same names": Layout("blur", lambda a, b: {
        "epoch": 1, "arch": "resnetblur18", "state_dict": a}),
    "MoCo v1 and MoCo-CXR": Layout("resnet", lambda a, b: {"epoch": 1, "arch": "resnet18", "state_dict": {
        **under("module.encoder_q.", a), **under("module.encoder_k.", b), "module.queue": torch.randn(128, 64),
        "module.queue_ptr": torch.zeros(1, dtype=torch.long)}}, "the query encoder, as in MoCo's evaluation"),
    "MoCo v2, with a projector as fc": Layout("resnet", lambda a, b: {"arch": "resnet18", "state_dict": {
        **under("module.encoder_q.", {**body(a), **mlp("fc", 512, 512, 128)}),
        **under("module.encoder_k.", {**body(b), **mlp("fc", 512, 512, 128)})}}, "the query encoder"),
    "MoCo-CXR's DenseNet-121": Layout("densenet", lambda a, b: {"arch": "densenet121", "state_dict": {
        **under("module.encoder_q.", without(a, "op_threshs")), "module.queue": torch.randn(128, 64)}}),
    "MoCo v3": Layout("resnet", lambda a, b: {"state_dict": {
        **under("module.base_encoder.", {**body(a), **mlp("fc", 512, 64, 32)}),
        **under("module.momentum_encoder.", {**body(b), **mlp("fc", 512, 64, 32)}),
        **mlp("module.predictor", 32, 32)}}, "the network beside its momentum copy"),
    "SimCLR, converted from google-research's": Layout("resnet", lambda a, b: {"state_dict": a}),
    "sthalles/SimCLR": Layout("resnet", lambda a, b: {"epoch": 9, "arch": "resnet18", "state_dict": under("backbone.", {
        **body(a), **mlp("fc", 512, 512, 128)})}),
    "Spijkervet/SimCLR": Layout("resnet", lambda a, b: {
        **under("encoder.", body(a)), **mlp("projector", 512, 512, 64)}),
    "SimSiam": Layout("resnet", lambda a, b: {"arch": "resnet18", "state_dict": {
        **under("module.encoder.", {**body(a), **mlp("fc", 512, 512, 128)}), **mlp("module.predictor", 128, 64)}}),
    "lightly's SimCLR, nn.Sequential of children": Layout("resnet", lambda a, b: {"state_dict": {
        **under("backbone.", numbered(a)), **mlp("projection_head.layers", 512, 512, 128)},
        "pytorch-lightning_version": "2.1", "hyper_parameters": {"lr": 0.1}}),
    "lightly's BYOL, with a momentum backbone": Layout("resnet", lambda a, b: {"state_dict": {
        **under("backbone.", numbered(a)), **under("backbone_momentum.", numbered(b))}},
        "for those of state_dict.backbone_momentum"),
    "solo-learn": Layout("resnet", lambda a, b: {"state_dict": {
        **under("backbone.", body(a)), **under("momentum_backbone.", body(b)), **mlp("projector", 512, 64),
        "classifier.weight": torch.zeros(10, 512)}}, "as in solo-learn's evaluation"),
    "DINO, a ResNet": Layout("resnet", lambda a, b: {
        "student": {**under("module.backbone.", body(b)), **mlp("module.head.mlp", 512, 64)},
        "teacher": {**under("backbone.", body(a)), **mlp("head.mlp", 512, 64)}, "epoch": 2,
        "dino_loss": {"center": torch.zeros(1, 64)}}, "the teacher, as in DINO's evaluation"),
    "DINO, a vision transformer": Layout("vit", lambda a, b: {
        "student": under("module.backbone.", body(b)), "teacher": {**under("backbone.", body(a)),
                                                                   **mlp("head.mlp", 48, 64)}},
        "the teacher, as in DINO's evaluation", "timm/vit_tiny_patch16_224"),
    "VICReg": Layout("resnet", lambda a, b: {"epoch": 1, "model": {
        **under("module.backbone.", body(a)), **mlp("module.projector", 512, 64, 64)}}),
    "Barlow Twins": Layout("resnet", lambda a, b: {"epoch": 1, "model": {
        **under("module.backbone.", body(a)), **mlp("module.projector", 512, 64, 64),
        "module.bn.running_mean": torch.zeros(64), "module.bn.running_var": torch.ones(64)}}),
    "SwAV": Layout("resnet", lambda a, b: under("module.", {
        **body(a), **mlp("projection_head", 512, 64), "prototypes.weight": torch.randn(30, 64)}),
        "left out: projection_head.*, prototypes.*"),
    "Lightning": Layout("resnet", lambda a, b: {"epoch": 1, "global_step": 9, "pytorch-lightning_version": "2.4",
        "state_dict": under("model.net.", a), "loops": {"fit_loop": {"state_dict": {}}}, "lr_schedulers": []}),
    "Lightning, averaged weights beside": Layout("resnet", lambda a, b: {
        "state_dict": under("model.", b), "ema_state_dict": under("model.", a)}, "ema_state_dict.model, the averaged"),
    "torch.compile around DistributedDataParallel": Layout("resnet", lambda a, b: under("_orig_mod.module.", a)),
    "DataParallel around torch.compile": Layout("resnet", lambda a, b: {"model": under("module._orig_mod.", a)}),
    "FSDP and activation checkpointing": Layout("resnet", lambda a, b: {
        name.replace("layer1.", "layer1._fsdp_wrapped_module.").replace("layer2.0.",
                     "layer2.0._checkpoint_wrapped_module."): value for name, value in a.items()}),
    "float16": Layout("resnet", lambda a, b: cast(a, torch.float16), "stored as float16, used as float32", exact=0.02),
    "bfloat16": Layout("resnet", lambda a, b: cast(a, torch.bfloat16), "stored as bfloat16", exact=0.2),
    "float64": Layout("resnet", lambda a, b: cast(a, torch.float64), "stored as float64"),
    "DeepLab, a segmentation model": Layout("resnet", lambda a, b: {
        **under("backbone.", body(a)), "classifier.4.weight": torch.zeros(2, 2, 1, 1)}, "has a segmentation head"),
    "before PyTorch 0.4.1": Layout("resnet", lambda a, b: {
        name: value for name, value in a.items() if not name.endswith("num_batches_tracked")}),
    "torchxrayvision's DenseNet, state_dict()": Layout("densenet", lambda a, b: a, "torchvision's densenet121"),
    "torchxrayvision's ResNet, state_dict()": Layout("grey resnet", lambda a, b: {
        **under("model.", a), "op_threshs": torch.zeros(18)}),
    "CheXNet, PyTorch 0.3": Layout("densenet", lambda a, b: {"epoch": 1, "state_dict": {
        **under("module.densenet121.", body(old_densenet(a))),
        "module.densenet121.classifier.0.weight": torch.zeros(14, 1024)}}),
    "jfhealthcare's CheXpert": Layout("densenet", lambda a, b: {"state_dict": {
        **under("module.backbone.", without(a, "op_threshs")), "module.fc_0.weight": torch.zeros(1, 1024, 1, 1)}}),
    "MAE and Medical MAE": Layout("vit", lambda a, b: {"model": {
        **body(a), "mask_token": torch.zeros(1, 1, 32), "decoder_pos_embed": torch.zeros(1, 17, 32),
        "decoder_blocks.0.norm1.weight": torch.zeros(32)}}, "left out: mask_token, decoder_pos_embed, decoder_blocks.*",
        "timm/vit_tiny_patch16_224"),
    "torchvision's MobileNet": Layout("mobilenet", lambda a, b: a, "", "torchvision/mobilenet_v3_small"),
}  # fmt: skip


@pytest.mark.parametrize("project", LAYOUTS)
def test_features_equal_those_of_the_network_that_was_saved(
    modules: dict[str, nn.Module], tmp_path: Path, project: str
) -> None:
    layout = LAYOUTS[project]
    module, twin = modules[layout.of], modules["vit twin" if layout.of == "vit" else "twin"]
    torch.save(layout.write(dict(module.state_dict()), dict(twin.state_dict())), tmp_path / "a.pth")
    if layout.of == "vit":  # its width and depth are not those of the name
        (tmp_path / "config.json").write_text(CONFIG % "vit_tiny_patch16_224")
    read = read_weights(tmp_path / "a.pth", layout.arch)
    assert read.channels == (1 if layout.of in ("densenet", "grey resnet") else 3)
    torch.manual_seed(1)
    images = torch.rand(2, read.channels, SIDE, SIDE)
    classifier = getattr(module, "classifier", None)
    if isinstance(classifier, nn.Sequential):  # torchvision's MobileNet: what its last linear layer gets
        expected = classifier[:-1](module.avgpool(module.features(images)).flatten(1))
    else:
        expected = features_of(module, images)
    with torch.inference_mode():
        found = read.encoder(images)
    assert not read.encoder.training and found.shape == expected.shape
    assert (found - expected).abs().max() < layout.exact < expected.std() * 5
    assert layout.note in "\n".join(read.notes) and "WARNING" not in "\n".join(read.notes)


class Refused(NamedTuple):
    """A file's content that is refused, and the words of the message."""

    write: Callable[[State], Any]
    words: str
    arch: str = ""


def modified_resnet(resnet: State) -> State:
    """Names of open_clip's ModifiedResNet, which has all of a ResNet's and more."""
    names = [f"conv{place}.weight" for place in (1, 2, 3)] + ["attnpool.positional_embedding", "attnpool.q_proj.weight"]
    more = dict.fromkeys(names, torch.zeros(32, 3, 3, 3))
    return {**under("visual.", {**body(resnet), **more}), "logit_scale": torch.tensor(1.0)}


REFUSED = {
    "open_clip's modified ResNet": Refused(
        modified_resnet, r"CLIP's modified ResNet \(.*attention pooling\).*timm/resnet50_clip=PATH"),
    "a projector alone": Refused(lambda a: mlp("projector", 512, 512, 128), "no architecture is known by the names of"),
    "SimCLR v2's own names": Refused(
        lambda a: {"resnet": {"net.0.0.weight": torch.ones(64, 3, 7, 7), "net.1.blocks.0.net.0.bias": torch.ones(2)}},
        "no architecture is known by the names of its 2 tensors"),
    "transformers, without its folder": Refused(
        lambda a: {"vit.embeddings.patch_embeddings.projection.weight": torch.zeros(48, 3, 16, 16)},
        "named as in Hugging Face's transformers; give its folder"),
    "a vision transformer without its name": Refused(
        lambda a: {"patch_embed.proj.weight": torch.zeros(384, 3, 16, 16), "blocks.0.norm1.weight": torch.ones(2)},
        r"a vision transformer of width 384, 1 blocks and 16×16 patches.*timm/vit_small_patch16_224=PATH"),
    "BYOL, whose names tell nothing": Refused(
        lambda a: {**under("online_encoder.net.", a), **under("target_encoder.net.", {**a, "fc.bias": torch.ones(9)}),
                   "target_encoder.net.bn1.bias": torch.ones(64)},
        r"2 networks: online_encoder.net, target_encoder.net; choose one: .*a.pth::online_encoder.net"),
    "squeeze and excitation": Refused(lambda a: {**a, "layer1.0.se.fc1.weight": torch.zeros(4, 64, 1, 1)},
                                      r"not resnet18's weights \(has layer1.0.se.fc1.weight\)"),
    "generalised mean pooling": Refused(lambda a: {**a, "avgpool.p": torch.ones(1)}, r"\(has avgpool.p\)"),
    "a stem for small images": Refused(lambda a: {**a, "conv1.weight": torch.zeros(64, 3, 3, 3)},
                                       r"conv1.weight is \[64, 3, 3, 3\] and not \[64, 3, 7, 7\]"),
    "no BatchNorm statistics": Refused(
        lambda a: {name: value for name, value in a.items() if "running" not in name},
        r"lacks bn1.running_mean and 39 more: the file has no BatchNorm statistics; save the complete state_dict\(\)"),
    "8-bit weights": Refused(lambda a: {**a, "layer1.0.conv1.weight": a["layer1.0.conv1.weight"].to(torch.int8)},
                             "layer1.0.conv1.weight is stored as int8, like quantised weights"),
    "another architecture than the one given": Refused(
        lambda a: a, r"not timm/resnet34's weights \(lacks layer1.2.conv1.weight and 79 more\)", "timm/resnet34"),
    "weights of a deeper network": Refused(
        lambda a: under("module.", {**a, "layer1.2.conv1.weight": torch.zeros(64, 64, 3, 3)}),
        r"has layer1.2.conv1.weight", "resnet18"),
    "an unknown name of timm's": Refused(
        lambda a: a, r"timm/resnet19: timm .* has no such model; closest: resnet18", "timm/resnet19"),
    "an unknown name of torchvision's": Refused(
        lambda a: a, r"torchvision/resnet19: torchvision .* has no such classifier; closest: torchvision/resnet1",
        "torchvision/resnet19"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_other_files_are_refused_by_what_they_are(modules: dict[str, nn.Module], tmp_path: Path, kind: str) -> None:
    refused = REFUSED[kind]
    torch.manual_seed(0)
    torch.save(refused.write(dict(modules["resnet"].state_dict())), tmp_path / "a.pth")
    with pytest.raises(InputError, match=refused.words) as caught:
        read_weights(tmp_path / "a.pth", refused.arch)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(f"{tmp_path}/a.pth: ")


def test_statistics_at_their_start_are_never_silent(tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "a.pth")
    (note, _) = read_weights(tmp_path / "a.pth").notes
    assert note.startswith("WARNING: 20 of 20 BatchNorm layers have the statistics that they start with (mean 0, var")


@pytest.mark.parametrize(
    ("arch", "args"),
    [("test_vit", {"global_pool": "avg"}), ("test_vit2", {}), ("test_convnext", {}), ("test_efficientnet", {}),
     ("test_byobnet", {}), ("test_resnet", {"in_chans": 1})],
)  # fmt: skip
def test_folder_of_timm_is_read_as_its_config_says(tmp_path: Path, arch: str, args: dict[str, Any]) -> None:
    torch.manual_seed(0)
    module = with_statistics(timm.create_model(arch, **args)).eval()
    save_for_hf(module, str(tmp_path), model_args=args, safe_serialization=True)
    read = read_weights(tmp_path)
    module.reset_classifier(0)
    images = torch.rand(2, read.channels, 160, 160)
    with torch.inference_mode():
        assert torch.allclose(read.encoder(images), module(images), atol=1e-4)
    assert read.arch == f"timm/{arch}" and read.channels == args.get("in_chans", 3) and read.notes == []
    with pytest.raises(InputError, match=rf"has architecture {arch}.*, which is not timm/test_mambaout"):
        read_weights(tmp_path, "timm/test_mambaout")


def test_positions_of_another_size_are_interpolated_as_timm_does(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = timm.create_model("test_vit", num_classes=0, img_size=96).eval()
    torch.save({"model": module.state_dict()}, tmp_path / "a.pth")
    assert read_weights(tmp_path / "a.pth", "timm/test_vit").encoder.patch_embed.img_size == (96, 96)  # type: ignore
    read = read_weights(tmp_path / "a.pth", "timm/test_vit", 64)
    module.set_input_size(img_size=64)
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.allclose(read.encoder(images), module(images), atol=1e-5)
    assert read.notes[0] == "interpolated by timm: pos_embed from [1, 37, 64] to [1, 17, 64]"


def dinov2(state: State) -> State:
    """Names of facebookresearch/dinov2 with registers, where the class token has a position, too."""
    place = state["cls_token"]
    renamed = {name.replace("reg_token", "register_tokens"): value for name, value in state.items()}
    return {**renamed, "mask_token": torch.zeros(1, 48), "cls_token": torch.zeros(1, 1, 48),
            "pos_embed": torch.cat([place, state["pos_embed"]], 1)}  # fmt: skip


def clip(state: State) -> State:
    """Names of openai/CLIP and open_clip, with the text's tower."""
    swaps = (("patch_embed.proj", "conv1"), ("norm_pre", "ln_pre"), ("blocks.", "transformer.resblocks."),
             ("norm1", "ln_1"), ("norm2", "ln_2"), ("norm.", "ln_post."), ("attn.qkv.", "attn.in_proj_"),
             ("attn.proj", "attn.out_proj"), ("fc1", "c_fc"), ("fc2", "c_proj"), ("pos_embed", "positional_embedding"),
             ("cls_token", "class_embedding"))  # fmt: skip
    renamed = {}
    for name, value in state.items():
        for ours, theirs in swaps:
            name = name.replace(ours, theirs)
        renamed[f"visual.{name}"] = value.squeeze() if name.endswith("_embedding") else value
    text = {"positional_embedding": torch.zeros(77, 16), "transformer.resblocks.0.ln_1.weight": torch.ones(16)}
    return {**renamed, "visual.proj": torch.randn(48, 16), "logit_scale": torch.tensor(1.0), **text}


@pytest.mark.parametrize(
    ("arch", "side", "rename"),
    [("vit_small_patch14_reg4_dinov2", 56, dinov2), ("vit_base_patch32_clip_224", 64, clip)], ids=["DINOv2", "CLIP"],
)  # fmt: skip
def test_names_of_the_original_project_are_converted_by_timm(
    tmp_path: Path, arch: str, side: int, rename: Callable[[State], State]
) -> None:
    torch.manual_seed(0)
    module = timm.create_model(arch, num_classes=0, **{**TINY_VIT, "img_size": side}).eval()
    torch.save({"state_dict": rename(dict(module.state_dict()))}, tmp_path / "a.pth")
    (tmp_path / "config.json").write_text(CONFIG % arch)
    read = read_weights(tmp_path / "a.pth", f"timm/{arch}")
    images = torch.rand(2, 3, side, side)
    with torch.inference_mode():
        assert torch.allclose(read.encoder(images), module(images), atol=1e-5)
    assert "renamed by timm, from the names of the original project" in read.notes[0]


def test_torchvision_names_are_for_files_only() -> None:
    with pytest.raises(InputError, match=r"--arch=torchvision/resnet18: torchvision's names are for files of weights"):
        check_arch("torchvision/resnet18", 64)
