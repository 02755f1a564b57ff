"""SimCLR pre-training: config, model, loss, checkpoint, journal, loop."""

from shard.environment import check_environment

check_environment()
