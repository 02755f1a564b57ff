"""Few-shot probes of frozen encoders, with baselines, intervals and a report page."""

from shard.environment import check_environment

check_environment()
