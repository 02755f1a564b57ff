"""Open weights of every kind through one function."""

from __future__ import annotations

from shard.errors import InputError
from train.weights.hub import HUB, download, timm_repository
from train.weights.load import Weights, read_weights
from train.weights.preprocessing import Stated
from train.weights.preprocessing_configs import stated_by_tag
from train.weights.source import Source, is_tagged, path_exists
from train.weights.transformers_folder import is_transformers, read_transformers


def open_weights(source: Source, size: int = 0) -> Weights:
    """Open a file of weights, a folder of timm or transformers, or what a name without a path stands for.

    size: the side in pixels of the images, for encoders that are built for one size; 0: that of their training. Only a
    name without a path is downloaded. Raises InputError.
    """
    arch, path = source
    if path is None:
        path = download(arch if arch.startswith(HUB) else timm_repository(arch))
        arch = "" if arch.startswith(HUB) else arch
    elif not path_exists(path):
        raise InputError(f"{path}: no such file or folder{f' (given as {source})' if arch else ''}")
    if not arch and is_transformers(path):
        return read_transformers(path)
    weights = read_weights(path, arch, size)
    return weights if weights.card is not None else weights._replace(stated=_complete(weights, arch))


def _complete(weights: Weights, arch: str) -> Stated:
    """Complete the stated input: with timm's settings of the weights that a tag names, and the encoder's image size."""
    tagged = stated_by_tag(arch) if weights.stated.mean is None and is_tagged(arch) else Stated()
    stated = tagged if tagged.mean is not None else weights.stated
    side = getattr(getattr(weights.encoder, "patch_embed", None), "img_size", None)
    return stated._replace(size=stated.size or (int(max(side)) if isinstance(side, tuple | list) else None))
