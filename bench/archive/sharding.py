"""The steps from an archive to shards: draw and link it, build in one process and in parts, verify, describe."""

from __future__ import annotations

import filecmp
import shutil
import time
from pathlib import Path

from bench.archive.command import Cost
from bench.archive.folders import SAMPLE, Archive, Result
from bench.archive.tree import write_tree
from shard.duplicates import DUPLICATES
from shard.errors import InputError
from shard.manifest import read_manifest

PICTURES = 300
KILLED = 3  # of the parts


def write_source(archive: Archive) -> Result:
    """Draw the pictures, and link them under all names."""
    cost = archive.run("shard", "phantom", str(archive.out / "pictures"), f"--images={PICTURES}")
    begun = time.perf_counter()
    write_tree(archive.out / "pictures", archive.source, archive.images)
    write_tree(archive.out / "pictures", archive.out / "sample", min(SAMPLE, archive.images))
    return Result([cost], PICTURES, f"{PICTURES} radiographs drawn, and linked under {archive.images:,} names in "
                                    f"{time.perf_counter() - begun:.0f} s")  # fmt: skip


def build_whole(archive: Archive) -> Result:
    """Build the shards in one command."""
    cost = archive.run("shard", "build", str(archive.source), str(archive.shards),
                       f"--shard-size={archive.shard_size}")  # fmt: skip
    manifest = read_manifest(archive.shards)
    built = sum(shard.samples for shard in manifest.shards)
    if built != archive.images:
        raise InputError(f"{archive.shards}: {built} of {archive.images} images are in shards; see rejects.csv there")
    tars = sum(shard.tar_bytes for shard in manifest.shards) / 2**20
    listed = (archive.shards / DUPLICATES).stat().st_size / 2**20 if manifest.duplicates else 0.0
    return Result([cost], archive.images, f"{len(manifest.shards)} shards, {tars:,.0f} MB; {DUPLICATES} lists "
                  f"{manifest.duplicates.get('images', 0):,} images on {listed:.0f} MB",
                  {"shards": len(manifest.shards), "tars_mb": tars, "duplicates_mb": listed})  # fmt: skip


def build_in_parts(archive: Archive) -> Result:
    """Build again, part by part; kill some parts with SIGKILL and run them again; merge; compare every file."""
    out = archive.out / "shards-in-parts"
    shutil.rmtree(out, ignore_errors=True)  # of an interrupted step
    command = ["shard", "build", str(archive.source), str(out), f"--shard-size={archive.shard_size}",
               f"--parts={archive.parts}"]  # fmt: skip
    kill = {archive.parts * (2 * number + 1) // (2 * KILLED) for number in range(KILLED)}
    costs = list[Cost]()
    for part in range(archive.parts):
        if part in kill:
            before = _count_tars(out)
            costs.append(archive.run(*command, f"--part={part}", log="build-in-parts",
                                     until=lambda before=before: _count_tars(out) > before))  # fmt: skip
        costs.append(archive.run(*command, f"--part={part}", log="build-in-parts"))
    killed = sum(cost.status is None for cost in costs)
    costs.append(archive.run("shard", "merge", str(out), log="build-in-parts"))
    files = compare_folders(archive.shards, out)
    shutil.rmtree(out)
    return Result(costs, archive.images, f"{archive.parts} parts, {killed} of them killed with SIGKILL and run "
                  f"again, and merged: all {files} files equal those of one command",
                  {"killed": killed, "files": files})  # fmt: skip


def _count_tars(folder: Path) -> int:
    return len(list(folder.glob("[!.]*.tar")))


def compare_folders(one: Path, other: Path) -> int:
    """Compare all files of two folders, and return their number. Raises InputError if any differ."""
    names = [{path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
             for folder in (one, other)]  # fmt: skip
    _, unequal, unreadable = filecmp.cmpfiles(one, other, sorted(names[0] & names[1]), shallow=False)
    different = [*sorted(names[0] ^ names[1]), *unequal, *unreadable]
    if different:
        raise InputError(f"{one} and {other}: {len(different)} files differ, such as {different[0]}; the shards must "
                         "not depend on how they are built, so please report it")  # fmt: skip
    return len(names[0])


def verify_quickly(archive: Archive) -> Result:
    """Check sizes and indexes."""
    return Result([archive.run("shard", "verify", str(archive.shards), "--quick")], archive.images, "as written")


def verify_whole(archive: Archive) -> Result:
    """Check every hash, member and label."""
    return Result([archive.run("shard", "verify", str(archive.shards))], archive.images, "as written")


def describe(archive: Archive) -> Result:
    """Describe the shards."""
    return Result([archive.run("shard", "info", str(archive.shards))], archive.images, "exited with status 0")
