"""Find the architecture of a file of weights: the one that is stated, or else by its tensors' names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from shard.errors import InputError
from train.architectures import RESNETS, TORCHVISION
from train.timm_models import TIMM
from train.weights.diagnosis import printable
from train.weights.preprocessing_configs import CONFIG

SAME_NETWORK = r"(tv_|ssl_|swsl_|ig_)?{0}|gluon_{0}_v1b"  # timm's names of the same network
# Arguments of timm's create_model that leave the features unchanged, or that build_encoder or the caller sets.
KEEP_FEATURES = {"num_classes", "in_chans", "drop_rate", "drop_path_rate", "drop_block_rate", "zero_init_last",
                 "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir",
                 "features_only", "scriptable", "exportable", "no_jit"}  # fmt: skip
PLAIN = {"global_pool": "avg", "output_stride": 32, "act_layer": "relu", "norm_layer": "batchnorm2d"}
# Architectures that are recognised by the names of their tensors: each with a name that only it and deeper ones have.
BY_NAMES = (
    ("resnet18", r"(layer4|7)\.1\.conv2\."), ("resnet34", r"(layer3|6)\.5\.conv2\."),
    ("resnet50", r"(layer3|6)\.5\.conv3\."), ("resnet101", r"(layer3|6)\.22\.conv3\."),
    ("timm/densenet121", r"denseblock3\.denselayer24\."), ("timm/densenet161", r"denseblock3\.denselayer36\."),
    ("timm/densenet169", r"denseblock4\.denselayer32\."), ("timm/densenet201", r"denseblock3\.denselayer48\."),
    ("torchvision/wide_resnet50_2", r"(layer3|6)\.5\.conv3\."),
    ("torchvision/resnext50_32x4d", r"(layer3|6)\.5\.conv3\."),
    ("torchvision/wide_resnet101_2", r"(layer3|6)\.22\.conv3\."),
    ("torchvision/resnext101_32x8d", r"(layer3|6)\.22\.conv3\."),
    ("torchvision/resnext101_64x4d", r"(layer3|6)\.22\.conv3\."), ("torchvision/resnet152", r"(layer3|6)\.35\.conv3\."),
)  # fmt: skip
GIVEN = "as given"  # the source of an architecture that the user names


class Architecture(NamedTuple):
    """An architecture that weights may be of. model_args: arguments of timm's create_model. source: what states it."""

    arch: str
    model_args: dict[str, Any]
    source: str


def list_architectures(
    path: Path, arch: str, content: Any, card: Mapping[str, Any] | None, config: Mapping[str, Any], names: Iterable[str]
) -> list[Architecture]:  # fmt: skip
    """List the architectures that a file's tensors are to be compared with, the most likely first.

    arch: as the user gives it, or "". content, card: of the file. config: the config.json next to it. names: of its
    tensors. Raises InputError if what states the architecture contradicts itself.
    """
    entry = content.get("arch") if isinstance(content, Mapping) else None
    if isinstance(config.get("architecture"), str) and card is None:
        found = _from_config(path, arch, config)
    elif card is not None and isinstance(card.get("arch"), str):
        found = Architecture(arch or card["arch"], {}, "its model card")
        if not same_network(found.arch, card["arch"]):
            raise contradiction(path, f"its model card has arch {printable(card['arch'])}", arch)
    elif arch:
        found = Architecture(arch, {}, GIVEN)
    else:
        return _from_entry(entry) or _from_names(names)
    check_entry(path, entry, found.arch)
    return [found]


def same_network(one: str, other: str) -> bool:
    """Whether two names are of one network, whatever the library and the tag of its weights."""
    first, second = (_bare(name) for name in (one, other))
    return first == second or any(_is_plain(first, arch) and _is_plain(second, arch) for arch in RESNETS)


def contradiction(path: Path, evidence: str, arch: str) -> InputError:
    """The error for weights that are stated to be of another architecture than `arch`."""
    return InputError(f"{path}: {evidence}, which is not {arch}: a network with the same names for its tensors but "
                      f"another forward pass, or the {CONFIG} of another file; give weights of {arch}")  # fmt: skip


def check_entry(path: Path, entry: object, arch: str) -> None:
    """Raise InputError if a checkpoint's own entry names another network than `arch`."""
    if not isinstance(entry, str) or same_network(entry, arch):
        return
    plain = next((name for name in RESNETS if _is_plain(_bare(arch), name)), "")
    if _is_model(entry) or (plain and _names_plain(entry, plain) is False):
        raise contradiction(path, f"its arch is {printable(entry)}", arch)


def _bare(name: str) -> str:
    return name.removeprefix(TIMM).removeprefix(TORCHVISION).split(".")[0]


def _is_plain(name: str, arch: str) -> bool:
    return bool(re.fullmatch(SAME_NETWORK.format(arch), name))


def _from_config(path: Path, arch: str, config: Mapping[str, Any]) -> Architecture:
    stated = str(config["architecture"])
    evidence = f"the {CONFIG} next to it has architecture {printable(stated)}"
    if arch and not same_network(arch, stated):
        raise contradiction(path, evidence, arch)
    given = config.get("model_args")
    arguments = {name: value for name, value in (given if isinstance(given, Mapping) else {}).items()
                 if name not in KEEP_FEATURES and value is not None}  # fmt: skip
    own = config.get("pretrained_cfg")
    pooling = config.get("global_pool") or (own.get("global_pool") if isinstance(own, Mapping) else None)
    if pooling is not None:
        arguments.setdefault("global_pool", pooling)
    changed = {name: value for name, value in arguments.items()
               if str(value).lower() != str(PLAIN.get(name, "")).lower()}  # fmt: skip
    plain = next((name for name in RESNETS if _is_plain(_bare(stated), name)), "")
    if plain and not changed and arch in ("", plain):
        return Architecture(plain, {}, evidence)
    if arch and not arch.startswith(TIMM):
        if changed:
            listed = ", ".join(f"{name}={value}" for name, value in changed.items())
            raise contradiction(path, f"the {CONFIG} next to it has {printable(listed)}", f"the plain {arch}")
        return Architecture(arch, {}, evidence)
    return Architecture(TIMM + _bare(stated), arguments, evidence)


def _from_entry(entry: object) -> list[Architecture]:
    """Return the architectures that a checkpoint's `arch` entry may mean; [] if it is not the name of a network."""
    if not isinstance(entry, str):
        return []
    source = f"its arch is {printable(entry)}"
    plain = next((name for name in RESNETS if _names_plain(entry, name)), "")
    if plain:
        return [Architecture(plain, {}, source)]
    return [Architecture(prefix + _bare(entry), {}, source) for prefix in (TIMM, TORCHVISION)
            if _is_model(entry, prefix)]  # fmt: skip


def _is_model(name: str, prefix: str = "") -> bool:
    """Whether timm or torchvision has a model of that name."""
    import timm
    import torchvision

    bare = _bare(name)
    of_torchvision = bare in torchvision.models.list_models(module=torchvision.models)
    return bool((prefix != TORCHVISION and timm.is_model(bare)) or (prefix != TIMM and of_torchvision))


def _names_plain(named: str, arch: str) -> bool | None:
    """Whether an entry such as resnet50, ResNet-50 or simclr_resnet50 names the plain network; None if unclear."""
    words = re.findall(r"[a-z0-9]+", re.sub(r"(?<=resnet)[-_ ](?=\d)", "", named.lower()))
    if {word for word in words if "resne" in word} - {arch}:
        return False
    return True if words == [arch] else None


def _from_names(names: Iterable[str]) -> list[Architecture]:
    text = "\n".join(names)
    return [Architecture(arch, {}, "") for arch, sign in BY_NAMES if re.search(sign, text)]
