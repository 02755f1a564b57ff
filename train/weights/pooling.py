"""How a network turns its last feature map or tokens into one vector per image."""

from __future__ import annotations

from torch import nn

from train.weights.transformers_folder import TransformersEncoder

MEAN = "mean over positions"
# The names of timm and of transformers → words.
NAMES = {"token": "class token", "avg": MEAN, "max": "maximum over positions", "map": "attention pooling",
         "avgmax": "mean and maximum over positions", "catavgmax": "mean and maximum over positions",
         "": "the network's own output"}  # fmt: skip


def describe_pooling(encoder: nn.Module) -> str:
    """Describe in a few words what the features of an encoder are. A module of ours may say so itself, in FEATURES."""
    if isinstance(own := getattr(encoder, "FEATURES", None), str):
        return own
    if isinstance(encoder, TransformersEncoder):
        return NAMES["token" if encoder.kind.token else "avg"]
    pools = [module.global_pool for module in encoder.modules() if hasattr(module, "global_pool")]  # timm's
    types = [pool if isinstance(pool, str) else str(getattr(pool, "pool_type", "")) for pool in pools]
    return NAMES.get(types[0], types[0]) if types else MEAN  # as torchvision's
