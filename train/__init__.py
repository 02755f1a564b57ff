"""SimCLR pre-training: from batches of views to an encoder."""

from shard.environment import check_environment

check_environment()
