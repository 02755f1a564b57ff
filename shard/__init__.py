"""The offline sharder: it reads a table and its images, and writes tars, indexes and a manifest."""

from shard.caches import ensure_caches
from shard.environment import check_environment

check_environment()
ensure_caches()
