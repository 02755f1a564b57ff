"""Read a file of ResNet weights from any source: the network, and its documented input settings."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from pipeline.augmentation import Augmentation
from shard.errors import InputError
from train.architectures import build_encoder
from train.weights.choose_network import State, choose_state, flatten_tensors, split_key
from train.weights.diagnosis import AGAIN, explain_safetensors, is_safetensors, printable
from train.weights.preprocessing import Stated
from train.weights.preprocessing_configs import HUGGING_FACE, TIMM, read_json, stated_by_configs
from train.weights.read import UnreadableTensors, read_tensors

# Residual blocks in each of the four layers, and whether they are bottlenecks → the architecture.
ARCHS: dict[tuple[tuple[int, ...], bool], str] = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
}
FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")  # in a folder of timm's or Hugging Face's
EXPECTED = "give a state dict of a torchvision or timm resnet18, 34, 50 or 101, such as python -m train export writes"
SAME_ARCH = r"(tv_|ssl_|swsl_|ig_)?{0}|gluon_{0}_v1b"  # timm's names of the same network
# Arguments of timm's create_model that leave the features unchanged.
KEEP_FEATURES = {"num_classes", "in_chans", "drop_rate", "drop_path_rate", "drop_block_rate", "zero_init_last",
                 "pretrained", "pretrained_cfg", "features_only", "scriptable"}  # fmt: skip
DEFAULTS = {"global_pool": "avg", "output_stride": 32, "act_layer": "relu", "norm_layer": "batchnorm2d"}


class Weights(NamedTuple):
    """An encoder without its classifier, [N, channels, S, S] → [N, F], in evaluation mode.

    card: the model card, if the file is our export. stated: what a config next
    to it states about its input. notes: how the file was read, one per line.
    """

    arch: str
    encoder: nn.Module
    channels: int
    card: dict[str, Any] | None
    stated: Stated
    notes: list[str]


def read_weights(path: Path, arch: str = "", size: int = 224) -> Weights:
    """Read a state dict of torchvision or timm, from .pt, .safetensors or timm's folder.

    path: PATH::KEY selects the network under a key. arch: the architecture; "" finds it out. size: the side in pixels
    of the images, for architectures that are built for one size. The file is read as data; code in it is refused.
    Raises InputError.
    """
    path, key = split_key(path)
    content, card = read_file(weights_file(path))
    tensors = flatten_tensors(content)
    if not tensors:
        raise InputError(f"{path}: contains no named tensors; {EXPECTED}")
    chosen = choose_state(tensors, path, key)
    if chosen is None:
        raise InputError(f"{path}: no conv1.weight among its {len(tensors)} tensors "
                         f"({', '.join(map(printable, list(tensors)[:2]))}, …); {EXPECTED}")  # fmt: skip
    state = {name: value for name, value in chosen.state.items() if not name.startswith("fc.")}
    arch = arch or _architecture(state, path)
    colour = state["conv1.weight"].ndim == 4 and state["conv1.weight"].shape[1] == 3
    channels = 3 if colour else 1
    resnet, _ = build_encoder(arch, size, channels)
    if mismatch := _mismatch(resnet.state_dict(), state):
        raise InputError(f"{path}: not {arch}'s weights ({mismatch}); {EXPECTED}")
    resnet.load_state_dict(state)
    if card is not None:
        return Weights(arch, resnet.eval(), channels, card, Stated(), chosen.notes)
    folder = path if path.is_dir() else path.parent
    config = read_json(folder / TIMM)
    confirmed = _check_network(path, arch, content, config)
    notes = [*chosen.notes, *_segmentation_note(tensors), *([] if confirmed else [_assumption_note(arch)])]
    stated = stated_by_configs(config, read_json(folder / HUGGING_FACE), folder)
    return Weights(arch, resnet.eval(), channels, None, stated, notes)


def weights_file(path: Path) -> Path:
    """The file of weights at a path: itself, or the one in a folder of timm's or Hugging Face's."""
    if not path.is_dir():
        return path
    return next((path / name for name in FOLDER_FILES if (path / name).exists()), path / FOLDER_FILES[0])


def _architecture(state: State, path: Path) -> str:
    blocks = tuple(len({name.split(".")[1] for name in state if name.startswith(f"layer{layer}.")})
                   for layer in (1, 2, 3, 4))  # fmt: skip
    arch = ARCHS.get((blocks, "layer1.0.conv3.weight" in state))
    if arch is None:
        raise InputError(f"{path}: a network with {blocks} residual blocks; {EXPECTED}")
    return arch


def _mismatch(expected: State, state: State) -> str:
    """Describe how a state dict differs from the network's in names and shapes; "" if it fits."""
    # PyTorch before 0.4.1 did not count batches; load_state_dict fills that in.
    missing = [name for name in expected if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in expected]
    shapes = [f"{name} is {list(state[name].shape)} and not {list(expected[name].shape)}" for name in expected
              if name in state and state[name].shape != expected[name].shape]  # fmt: skip
    kinds = (("lacks", missing), ("has", unexpected), ("", shapes))
    parts = [f"{verb} {printable(items[0])}{f' and {len(items) - 1} more' if items[1:] else ''}".strip()
             for verb, items in kinds if items]  # fmt: skip
    return ", ".join(parts)


def _check_network(path: Path, arch: str, content: Any, config: Mapping[str, Any]) -> bool:
    """Whether the config next to the weights, or the checkpoint itself, states that the network is the plain `arch`.

    Raises InputError if they state another network, which has the same tensor names but computes something else.
    """
    inside, beside = content.get("arch") if isinstance(content, Mapping) else None, config.get("architecture")
    confirmed = _names_plain(inside, arch)
    if confirmed is False:
        raise _other_network(path, f"its arch is {printable(inside)}", arch)
    if isinstance(beside, str):
        confirmed = bool(re.fullmatch(SAME_ARCH.format(arch), beside.split(".")[0]))
        if not confirmed:
            raise _other_network(path, f"the {TIMM} next to it has architecture {printable(beside)}", arch)
    arguments = config.get("model_args")
    given = {**(arguments if isinstance(arguments, Mapping) else {}), "global_pool": config.get("global_pool")}
    changed = [f"{name}={value}" for name, value in given.items() if beside is not None and value is not None
               and name not in KEEP_FEATURES and str(value).lower() != str(DEFAULTS.get(name, "")).lower()]  # fmt: skip
    if changed:
        raise InputError(f"{path}: the {TIMM} next to it has {printable(', '.join(changed))}, so it is not the "
                         f"plain {arch}; {EXPECTED}")  # fmt: skip
    return bool(confirmed)


def _names_plain(named: object, arch: str) -> bool | None:
    """Whether a checkpoint's arch, such as resnet50, ResNet-50 or simclr_resnet50, names the plain network.

    None if that is unclear.
    """
    if not isinstance(named, str):
        return None
    words = re.findall(r"[a-z0-9]+", re.sub(r"(?<=resnet)[-_ ](?=\d)", "", named.lower()))
    if {word for word in words if "resne" in word} - {arch}:
        return False
    return True if words == [arch] else None


def _other_network(path: Path, evidence: str, arch: str) -> InputError:
    return InputError(f"{path}: {evidence}: a network with the tensor names of {arch} but another forward pass, or the "
                      f"config of another file; {EXPECTED}")  # fmt: skip


def _assumption_note(arch: str) -> str:
    return (f"ASSUMED to be torchvision's {arch} (7×7 stem of stride 2, max pooling, ReLU, no dilation): the weights "
            "alone do not exclude another network with these tensor names")  # fmt: skip


def _segmentation_note(tensors: State) -> list[str]:
    """A note if the file contains a segmentation head, as such backbones are mostly dilated."""
    head = next((name for name, value in tensors.items()
                 if re.search(r"(^|\.)(aux_)?classifier\.", name) and value.ndim == 4), None)  # fmt: skip
    return [f"the file has a segmentation head ({printable(head)}); such backbones are mostly dilated, which is "
            "ignored here and changes the features"] if head else []  # fmt: skip


def read_file(path: Path) -> tuple[Any, dict[str, Any] | None]:
    """Read a file of weights as data: its content, and the model card in it. Raises InputError."""
    if path.is_file() and _begins_as_safetensors(path):  # whatever its suffix
        return _read_safetensors(path)
    try:
        content = read_tensors(path)
    except UnreadableTensors as error:
        raise InputError(f"{path}: can't be read as weights: {error}; {error.cure or EXPECTED}") from None
    return content, _card_in(path, lambda: content.card) if hasattr(content, "card") else None


def _begins_as_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        return is_safetensors(file.read(16))


def _read_safetensors(path: Path) -> tuple[State, dict[str, Any] | None]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise InputError(f"{path}: reading safetensors needs a package: pip install '.[export]'") from None
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in list(file.keys())}
    except (SafetensorError, OSError) as error:
        cause = explain_safetensors(path.read_bytes()) or printable(error, 200)
        raise InputError(f"{path}: can't be read as safetensors: {cause}; {AGAIN}") from None
    return state, _card_in(path, lambda: json.loads(metadata["card"])) if "card" in metadata else None


def _card_in(path: Path, read: Callable[[], Any]) -> dict[str, Any]:
    """Read a file's model card and check its input. Raises InputError if it does not state how images are made."""
    try:
        card: dict[str, Any] = read()
        Augmentation(**{name: card["input"][name] for name in ("size", "mean", "std")})  # checks the values
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{path}: its model card can't be read ({reason}); {EXPECTED}") from None
    return card
