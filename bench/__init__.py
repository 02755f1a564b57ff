"""Benchmarks: one file a question; each prints a table and writes JSON."""

from shard.environment import check_environment

check_environment()
check_environment("psutil", "pip install --constraint constraints.txt --editable '.[bench]'")
