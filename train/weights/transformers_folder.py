"""Read a folder of Hugging Face's transformers: a vision model's config.json, and its weights read as data."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from shard.errors import InputError
from train.weights.choose_network import flatten_tensors
from train.weights.diagnosis import list_some, printable
from train.weights.find_encoder import State
from train.weights.load import FOLDER_FILES, Weights, read_file
from train.weights.notes import note_statistics
from train.weights.preprocessing_configs import CONFIG, PREPROCESSOR, read_json, stated_by_configs


class Kind(NamedTuple):
    """How transformers' model of one model_type is used.

    model: its class. token: features are the class token after the final layer norm; otherwise the model's own
    pooler_output. interpolate: its forward pass takes interpolate_pos_encoding. pooler: has a pooler to omit.
    """

    model: str
    token: bool = False
    interpolate: bool = False
    pooler: bool = False


# model_type → how its model is used.
KINDS: dict[str, Kind] = {
    "dinov2": Kind("Dinov2Model", token=True),
    "dinov2_with_registers": Kind("Dinov2WithRegistersModel", token=True),
    "vit": Kind("ViTModel", token=True, interpolate=True, pooler=True),
    "deit": Kind("DeiTModel", token=True, interpolate=True, pooler=True),
    "resnet": Kind("ResNetModel"),
    "convnext": Kind("ConvNextModel"),
    "convnextv2": Kind("ConvNextV2Model"),
    "swin": Kind("SwinModel", interpolate=True),
}
CLASS_TOKEN, MEAN = "the class token after the final layer norm", "the mean over all positions"
# The tensors that features do not depend on: heads, decoders, poolers that are not used.
UNUSED = re.compile(r"(\w*classifier|pooler|decoder|head)\.|.*mask_token$")
NOT_NEEDED = (".num_batches_tracked", "mask_token")  # ends of names of tensors that the encoder has but does not use
# Settings of a config.json that say how to run the model. The others describe the network.
RUNTIME = {"attn_implementation", "dtype", "torch_dtype", "transformers_version", "architectures", "return_dict",
           "use_return_dict", "output_hidden_states", "output_attentions", "torchscript"}  # fmt: skip


class TransformersEncoder(nn.Module):
    """A model of transformers, images [N, C, S, S] → features [N, F]; the model interpolates positions to S.

    patch: S must be a multiple of it.
    """

    def __init__(self, model: nn.Module, kind: Kind, patch: int) -> None:
        super().__init__()
        self.model: Any = model
        self.kind, self.patch = kind, patch

    def extra_repr(self) -> str:
        """Show what the modules do not: how features are pooled, the number of heads and other settings."""
        settings: dict[str, Any] = self.model.config.to_diff_dict()
        return f"{self.kind}, {sorted((name, value) for name, value in settings.items() if name not in RUNTIME)}"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map x [N, C, S, S] to [N, F]."""
        output = self.model(x, **({"interpolate_pos_encoding": True} if self.kind.interpolate else {}))
        features: torch.Tensor = output.last_hidden_state[:, 0] if self.kind.token else output.pooler_output.flatten(1)
        return features

    def with_random_weights(self) -> TransformersEncoder:
        """Build the same network with random weights, as transformers draws them."""
        settings = {"add_pooling_layer": False} if self.kind.pooler else {}
        return TransformersEncoder(type(self.model)(self.model.config, **settings), self.kind, self.patch).eval()


def is_transformers(folder: Path) -> bool:
    """Return whether a folder's config.json is one of transformers. timm's may have a model_type, too."""
    config = read_json(folder / CONFIG) if folder.is_dir() else {}
    return isinstance(config.get("model_type"), str) and "architecture" not in config


def read_transformers(folder: Path) -> Weights:
    """Read the encoder in a folder of transformers, and the input that its preprocessor_config.json states.

    No code in the folder is run, and nothing is downloaded. Raises InputError if the model is none of KINDS, the
    extra is not installed, or the weights do not fill the encoder.
    """
    config, path = read_json(folder / CONFIG), folder / CONFIG
    kind = _kind(config, path)
    file = _weights_file(folder)
    state = {name: value.float() if value.is_floating_point() else value
             for name, value in flatten_tensors(read_file(file)[0]).items()}  # fmt: skip
    model, unused = _build(config, kind, state, path, file)
    shape = model.config
    encoder = TransformersEncoder(model, kind, _largest(getattr(shape, "patch_size", 1)) if kind.token else 1)
    notes = [f"features: {CLASS_TOKEN if kind.token else MEAN}", *note_statistics(encoder),
             *([f"left out: {list_some(unused)}"] if unused else [])]  # fmt: skip
    stated = stated_by_configs({}, read_json(folder / PREPROCESSOR), folder)
    size = stated.size or (_largest(getattr(shape, "image_size", 0)) or None)
    return Weights(f"transformers/{config['model_type']}", encoder.eval(), int(getattr(shape, "num_channels", 3)), None,
                   stated._replace(size=size), notes)  # fmt: skip


def check_size(encoder: nn.Module, size: int, name: str) -> None:
    """Raise InputError if a model of transformers can't cut images of size × size into whole patches."""
    if isinstance(encoder, TransformersEncoder) and size % encoder.patch:
        below = size // encoder.patch * encoder.patch
        fitting = " or ".join(f"size={side}" for side in (below, below + encoder.patch) if side)
        raise InputError(f"{name}: cuts images into patches of {encoder.patch}×{encoder.patch}, which {size} px is no "
                         f"multiple of; give --input={name}:{fitting}")  # fmt: skip


def _kind(config: Mapping[str, Any], path: Path) -> Kind:
    """Return how a config's model is used. Raises InputError if it needs code of its own, or is not supported."""
    if "auto_map" in config:
        raise InputError(f"{path}: has auto_map: the model needs code of its own, which is not run; supported are "
                         f"transformers' own {', '.join(KINDS)}")  # fmt: skip
    kind = KINDS.get(config["model_type"])
    if kind is None:
        raise InputError(f"{path}: model_type {printable(config['model_type'])} is not supported; supported are "
                         f"transformers' {', '.join(KINDS)}, and any model of timm as timm/NAME=PATH")  # fmt: skip
    if "quantization_config" in config:
        raise InputError(f"{path}: the weights are quantized; give them in float32, float16 or bfloat16")
    return kind


def _weights_file(folder: Path) -> Path:
    found = next((folder / name for name in FOLDER_FILES if (folder / name).exists()), None)
    if found is None and (parts := sorted(folder.glob("*.index.json"))):
        raise InputError(f"{parts[0]}: the weights are in several files; save them as one: model.save_pretrained("
                         "FOLDER, max_shard_size='100GB')")  # fmt: skip
    if found is None:
        raise InputError(f"{folder}: has {CONFIG} but no {' or '.join(FOLDER_FILES)}; download that file, too")
    return found


def _build(
    config: Mapping[str, Any], kind: Kind, state: State, path: Path, file: Path
) -> tuple[Any, list[str]]:  # fmt: skip
    """Build the model of a config with a file's tensors, and list those that it does not use.

    transformers itself matches the names, as they have changed between its versions and with prefixes such as vit.
    """
    try:
        import transformers
    except ImportError:
        raise InputError(f"{path}: a model of transformers, which is not installed: pip install '.[huggingface]'"
                         ) from None  # fmt: skip
    cls: Any = getattr(transformers, kind.model, None)
    if cls is None:
        raise InputError(f"{path}: transformers {transformers.__version__} has no {kind.model}: pip install --upgrade "
                         "transformers")  # fmt: skip
    settings = {name: value for name, value in config.items() if name not in RUNTIME and not name.startswith("_")}
    try:
        with _quiet(transformers.logging):
            model, found = cls.from_pretrained(
                None, config=cls.config_class.from_dict(settings), state_dict=state, ignore_mismatched_sizes=True,
                output_loading_info=True, local_files_only=True,
                **({"add_pooling_layer": False} if kind.pooler else {}),
            )  # fmt: skip
    except Exception as error:  # whatever an invalid config leads to
        raise InputError(f"{path}: transformers can't build this model ({type(error).__name__}: {printable(error)}); "
                         "copy or download the folder again") from None  # fmt: skip
    unused = sorted(found["unexpected_keys"])
    wrong = {"lacks": [name for name in sorted(found["missing_keys"]) if not name.endswith(NOT_NEEDED)],
             "has": [name for name in unused if not UNUSED.match(name)],
             "has other shapes for": sorted(map(str, found["mismatched_keys"]))}  # fmt: skip
    if any(wrong.values()):
        text = ", ".join(f"{verb} {list_some(names)}" for verb, names in wrong.items() if names)
        raise InputError(f"{file}: not the weights of the {kind.model} that {path.name} next to it describes: it "
                         f"{text}; copy or download both again") from None  # fmt: skip
    return model, unused


def _largest(value: Any) -> int:
    return int(max(value)) if isinstance(value, list | tuple) else int(value or 0)


@contextlib.contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """Without progress bars and tables of tensors."""
    before, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bar:
            logging.enable_progress_bar()
