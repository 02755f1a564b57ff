"""Read shards and yield batches of two augmented views on the device."""

from shard.environment import check_environment

check_environment()
