"""A file of ResNet weights, from whomever → the network they belong to, and what is stated of its input."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torchvision
from torch import nn

from pipeline.augmentation import Augmentation
from probe.choose_network import State, choose_state, tensors_of
from probe.names import split_key
from probe.preprocessing import Stated
from probe.preprocessing_configs import HUGGING_FACE, TIMM, read_json, stated_beside
from shard.errors import InputError
from train.architectures import build_encoder
from train.checkpoint import UnreadableTensors, read_tensors
from train.unreadable import AGAIN, cut_safetensors, is_safetensors, plain

# Residual blocks in each of the four layers, and whether they are bottlenecks.
ARCHS: dict[tuple[tuple[int, ...], bool], str] = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
}
FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")  # the weights in a folder of timm's or Hugging Face's
WANTED = "wanted is a state dict of a torchvision or timm resnet18, 34, 50 or 101, as python -m train export makes"
SAME_ARCH = r"(tv_|ssl_|swsl_|ig_)?{0}|gluon_{0}_v1b"  # names in timm of the very same network
# Arguments of timm's create_model that leave features as they are.
DO_NOT_CHANGE_FIGURES = {"num_classes", "in_chans", "drop_rate", "drop_path_rate", "drop_block_rate", "zero_init_last",
                         "pretrained",
                         "pretrained_cfg", "features_only", "scriptable"}  # fmt: skip
DEFAULTS = {"global_pool": "avg", "output_stride": 32, "act_layer": "relu", "norm_layer": "batchnorm2d"}


class Weights(NamedTuple):
    """A ResNet without its classifier.

    colour: whether it takes three channels; card: our export's, where it is one; stated: of its input, by a config
    beside it; said: what there is to say of how it was read, in whole lines.
    """

    arch: str
    resnet: nn.Module
    colour: bool
    card: dict[str, Any] | None
    stated: Stated
    said: list[str]


def read_weights(path: Path) -> Weights:
    """Read a state dict of torchvision or timm, .pt or .safetensors, or timm's folder. Raises InputError with the cure.

    path: PATH::KEY takes the network under a key of the file. As data alone: code in the file is refused.
    """
    path, key = split_key(path)
    content, card = _read(weights_file(path))
    tensors = tensors_of(content)
    if not tensors:
        raise InputError(f"{path}: holds no weights by name; {WANTED}")
    found = choose_state(tensors, path, key)
    if found is None:
        raise InputError(f"{path}: no conv1.weight among its {len(tensors)} tensors "
                         f"({', '.join(map(plain, list(tensors)[:2]))}, …); {WANTED}")  # fmt: skip
    state = {name: value for name, value in found.state.items() if not name.startswith("fc.")}
    arch = _arch_of(state, path)
    colour = state["conv1.weight"].ndim == 4 and state["conv1.weight"].shape[1] == 3
    resnet = torchvision.models.get_model(arch, weights=None) if colour else build_encoder(arch)[0]
    resnet.fc = nn.Identity()
    if misfit := _misfit(resnet.state_dict(), state):
        raise InputError(f"{path}: not {arch}'s weights ({misfit}); {WANTED}")
    resnet.load_state_dict(state)
    if card is not None:
        return Weights(arch, resnet.eval(), colour, card, Stated(), found.said)
    folder = path if path.is_dir() else path.parent
    config = read_json(folder / TIMM)
    told = _check_network(path, arch, content, config)
    said = [*found.said, *_segmentation(tensors), *([] if told else [_assumed(arch)])]
    stated = stated_beside(config, read_json(folder / HUGGING_FACE), folder)
    return Weights(arch, resnet.eval(), colour, None, stated, said)


def weights_file(path: Path) -> Path:
    """The file of weights that a path stands for: itself, or the one in a folder of timm's or Hugging Face's."""
    if not path.is_dir():
        return path
    return next((path / name for name in FOLDER_FILES if (path / name).exists()), path / FOLDER_FILES[0])


def _arch_of(state: State, path: Path) -> str:
    blocks = tuple(len({name.split(".")[1] for name in state if name.startswith(f"layer{layer}.")})
                   for layer in (1, 2, 3, 4))  # fmt: skip
    arch = ARCHS.get((blocks, "layer1.0.conv3.weight" in state))
    if arch is None:
        raise InputError(f"{path}: a network with {blocks} residual blocks; {WANTED}")
    return arch


def _misfit(wanted: State, state: State) -> str:
    """In what tensors differ from those that a network has, in words; "" where they fit."""
    # PyTorch before 0.4.1 did not count batches, and load_state_dict fills that in.
    missing = [name for name in wanted if name not in state and not name.endswith("num_batches_tracked")]
    more = [name for name in state if name not in wanted]
    shapes = [f"{name} is {list(state[name].shape)} and not {list(wanted[name].shape)}" for name in wanted
              if name in state and state[name].shape != wanted[name].shape]  # fmt: skip
    kinds = (("lacks", missing), ("has", more), ("", shapes))
    parts = [f"{verb} {plain(some[0])}{f' and {len(some) - 1} more' if some[1:] else ''}".strip()
             for verb, some in kinds if some]  # fmt: skip
    return ", ".join(parts)


def _check_network(path: Path, arch: str, content: Any, config: Mapping[str, Any]) -> bool:
    """Whether a config beside the weights, or the checkpoint itself, says that they are the plain network's.

    Raises InputError where they say that it is another, with the same names and another forward.
    """
    inside, beside = content.get("arch") if isinstance(content, Mapping) else None, config.get("architecture")
    told = _names_plain(inside, arch)
    if told is False:
        raise _another(path, f"its arch says {plain(inside)}", arch)
    if isinstance(beside, str):
        told = bool(re.fullmatch(SAME_ARCH.format(arch), beside.split(".")[0]))
        if not told:
            raise _another(path, f"the {TIMM} beside it says {plain(beside)}", arch)
    arguments = config.get("model_args")
    given = {**(arguments if isinstance(arguments, Mapping) else {}), "global_pool": config.get("global_pool")}
    other = [f"{name}={value}" for name, value in given.items() if beside is not None and value is not None
             and name not in DO_NOT_CHANGE_FIGURES and str(value).lower() != str(DEFAULTS.get(name,
                                                                                              "")).lower()]  # fmt: skip
    if other:
        raise InputError(f"{path}: the {TIMM} beside it says {plain(', '.join(other))}, which makes another network of "
                         f"{arch}; {WANTED}")  # fmt: skip
    return bool(told)


def _names_plain(named: object, arch: str) -> bool | None:
    """Whether a checkpoint's arch, such as resnet50, ResNet-50 or simclr_resnet50, names the plain network.

    None where it doesn't say.
    """
    if not isinstance(named, str):
        return None
    words = re.findall(r"[a-z0-9]+", re.sub(r"(?<=resnet)[-_ ](?=\d)", "", named.lower()))
    if {word for word in words if "resne" in word} - {arch}:
        return False
    return True if words == [arch] else None


def _another(path: Path, said: str, arch: str) -> InputError:
    return InputError(f"{path}: {said}, a network with the names of {arch} and another forward, or the file of "
                      f"another; {WANTED}")  # fmt: skip


def _assumed(arch: str) -> str:
    return (f"ASSUMED to be torchvision's {arch} (7×7 stem of stride 2, max pooling, ReLU, no dilation): weights alone "
            "don't tell another network with these names")  # fmt: skip


def _segmentation(tensors: State) -> list[str]:
    """A line where a file holds a segmentation head beside its backbone."""
    head = next((name for name, value in tensors.items()
                 if re.search(r"(^|\.)(aux_)?classifier\.", name) and value.ndim == 4), None)  # fmt: skip
    return [f"it comes with a segmentation head ({plain(head)}), and such a backbone mostly is dilated, which is not "
            "followed: its features are then others"] if head else []  # fmt: skip


def _read(path: Path) -> tuple[Any, dict[str, Any] | None]:
    """What a file holds, and the model card in it."""
    if path.is_file() and _begins_as_safetensors(path):  # whatever it is called
        return _read_safetensors(path)
    try:
        content = read_tensors(path)
    except UnreadableTensors as error:
        raise InputError(f"{path}: can't be read as weights: {error}; {error.cure or WANTED}") from None
    return content, _card_in(path, lambda: content.card) if hasattr(content, "card") else None


def _begins_as_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        return is_safetensors(file.read(16))


def _read_safetensors(path: Path) -> tuple[State, dict[str, Any] | None]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise InputError(f"{path}: to read safetensors: pip install '.[export]'") from None
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in list(file.keys())}
    except (SafetensorError, OSError) as error:
        cause = cut_safetensors(path.read_bytes()) or plain(error, 200)
        raise InputError(f"{path}: can't be read as safetensors: {cause}; {AGAIN}") from None
    return state, _card_in(path, lambda: json.loads(metadata["card"])) if "card" in metadata else None


def _card_in(path: Path, read: Callable[[], Any]) -> dict[str, Any]:
    """A file's model card, as far as it says how images are made. Raises InputError where it does not."""
    try:
        card: dict[str, Any] = read()
        Augmentation(**{name: card["input"][name] for name in ("size", "mean", "std")})  # which looks at them
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: its model card can't be read ({type(error).__name__}: {error}); {WANTED}") from None
    return card
