"""cores() respects the CPU quotas of cgroups: version 1 and 2, nested, and as a container sees them."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from shard import machine
from shard.machine import cores, cpu_quota


def v2(quota: str, period: int = 100000) -> dict[str, str]:
    return {"cpu.max": f"{quota} {period}\n"}


def v1(quota: int, period: int = 100000) -> dict[str, str]:
    return {"cpu.cfs_quota_us": f"{quota}\n", "cpu.cfs_period_us": f"{period}\n"}


@pytest.mark.parametrize(
    ("groups", "own", "quota"),
    [
        ({"": v2("300000")}, "0::/\n", 3),  # as in a container with its own namespace
        ({"job": v2("max")}, "0::/job\n", math.inf),
        ({"job": v2("50000", 20000)}, "0::/job\n", 2.5),
        ({"job": v2("400000"), "job/step": v2("max"), "job/step/task": v2("max")}, "0::/job/step/task\n", 4),
        ({"job": v2("400000"), "job/step": v2("150000")}, "0::/job/step\n", 1.5),
        ({"": v2("200000")}, "0::/docker/abc\n", 2),  # the host's path of the group mounted here
        ({"step": v2("100000")}, "0::/docker/abc/step\n", 1),
        ({"": v2("200000")}, "0::/../other\n", 2),
        ({"other": v2("100000")}, "0::/job\n", math.inf),  # the quota of another group
        ({"unified/job": v2("200000")}, "1:name=systemd:/job\n0::/job\n", 2),
        ({"cpu,cpuacct/job": v1(250000)}, "5:memory:/m\n4:cpu,cpuacct:/job\n", 2.5),
        ({"cpu": v1(200000), "cpu/docker/abc": v1(-1)}, "4:cpu:/docker/abc\n", 2),
        ({"cpu": v1(200000)}, "4:cpuacct,cpu:/docker/abc\n0::/\n", 2),
        ({"cpuset/job": v1(100000)}, "4:cpuset:/job\n", math.inf),
        ({"job": {"cpu.max": ""}}, "0::/job\n", math.inf),
        ({"cpu": v1(100000, 0)}, "4:cpu:/\n", math.inf),
        ({}, "", math.inf),
        ({}, "what\n", math.inf),
    ],
)
def test_cpu_quota_is_the_lowest_among_all_parent_groups(
    groups: dict[str, dict[str, str]], own: str, quota: float, tmp_path: Path
) -> None:
    mount = tmp_path / "cgroup"
    for name, files in groups.items():
        (mount / name).mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            (mount / name / file).write_text(text)
    (tmp_path / "own").write_text(own)
    assert cpu_quota(mount, tmp_path / "own") == quota


@pytest.mark.parametrize(("quota", "allowed", "expected"), [(1.5, 8, 2), (0.2, 8, 1), (math.inf, 8, 8), (16.0, 8, 8)])
def test_cores_is_limited_by_affinity_and_quota(
    quota: float, allowed: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(allowed), raising=False)
    monkeypatch.setattr(machine, "cpu_quota", lambda: quota)
    assert cores() == expected
