"""Benchmarks. Each module measures one component, prints a table and writes JSON."""

from shard.environment import check_environment

check_environment()
check_environment("psutil", "pip install --constraint constraints.txt --editable '.[bench]'")
