"""Few-shot linear probing of frozen features: Scratch, ImageNet, SimCLR."""

from shard.environment import check_environment

check_environment()
