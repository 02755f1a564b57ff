"""Offline sharder: table → images → tar + index → manifest. Knows nothing of training."""

from shard.environment import check_environment

check_environment()
