"""TarWriter writes the same bytes as tarfile."""

from __future__ import annotations

import io
import tarfile

import pytest

from shard.tar import TarWriter


@pytest.mark.parametrize("key", ["a", "patient00001_study1_view1_frontal", "k" * 90])
def test_members_are_tarfiles_without_time_and_owner(key: str) -> None:
    written, expected = io.BytesIO(), io.BytesIO()
    sizes = (0, 1, 511, 512, 70_000)
    with TarWriter(written) as writer:
        for number, size in enumerate(sizes):
            writer.add(f"{key}{number}"[-90:], {"jpg": bytes(size), "json": b"{}"})
    with tarfile.open(fileobj=expected, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for number, size in enumerate(sizes):
            for ending, content in (("jpg", bytes(size)), ("json", b"{}")):
                info = tarfile.TarInfo(f"{key}{number}"[-90:] + f".{ending}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    assert written.getvalue() == expected.getvalue()
