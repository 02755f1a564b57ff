"""Offline sharder: table → images → tar + index → manifest. Knows nothing of training."""

from shard.caches import ensure_caches
from shard.environment import check_environment

check_environment()
ensure_caches()
