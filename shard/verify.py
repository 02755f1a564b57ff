"""verify: are the shards what the manifest says? info: what is in them?"""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from shard.errors import InputError
from shard.files import sha256_of
from shard.manifest import Manifest, read_manifest
from shard.read import read_index, read_members


def verify(out: Path, *, quick: bool = False) -> None:
    """Check sizes and hashes of every tar and index in OUT against its manifest, and that every member is there.

    --quick looks at sizes alone. Raises InputError with the first fault and the number of faults.
    """
    manifest = read_manifest(out)
    faults = [] if quick else [fault for shard in tqdm(manifest.shards, desc="verifying", unit=" shards", disable=None)
                               for fault in _faults(out, shard.tar, shard.tar_sha256)
                               + _faults(out, shard.index, shard.index_sha256)]  # fmt: skip
    if not faults and not quick:
        faults = _missing_members(out, manifest)
    if faults:
        raise InputError(f"{faults[0]} ({len(faults)} faults in all); copy the shards again or rebuild them")
    images, checked = sum(shard.samples for shard in manifest.shards), "sizes" if quick else "hashes and members"
    print(f"{out}: {len(manifest.shards)} shards, {images} images, {checked} as written")


def _faults(out: Path, name: str, expected: str) -> list[str]:
    found = sha256_of(out / name)
    return [] if found == expected else [f"{out / name}: sha256 {found[:12]}…, the manifest says {expected[:12]}…"]


def _missing_members(out: Path, manifest: Manifest) -> list[str]:
    """Hashes prove the bytes; this proves that index and tar meant the same thing when they were written."""
    extension, start = ("raw", b"") if manifest.settings["encoding"] == "raw" else ("jpg", b"\xff\xd8")
    faults = []
    for shard in manifest.shards:
        samples = read_index(out / shard.index)
        if len(samples) != shard.samples:
            faults.append(f"{out / shard.index}: {len(samples)} samples, the manifest says {shard.samples}")
        for sample, content in zip(samples, read_members(out / shard.tar, samples, extension), strict=True):
            if not content.startswith(start):
                faults.append(f"{out / shard.tar}: {sample.key}.{extension} is no image")
    return faults


def info(out: Path) -> None:
    """Print what is in the shards of OUT: images, patients and labels by split, sizes, settings, pixel statistics."""
    manifest = read_manifest(out)
    size = sum(shard.tar_bytes for shard in manifest.shards)
    print(f"{out}: {len(manifest.shards)} shards, {size / 1e6:.1f} MB, {manifest.rejected} images rejected")
    print("settings: " + ", ".join(f"{name}={value}" for name, value in manifest.settings.items()))
    print(f"pixels (train): mean {manifest.pixel_mean:.4f}, standard deviation {manifest.pixel_std:.4f} of full scale")
    print(f"fingerprint: {manifest.fingerprint()}")
    for split, counts in manifest.counts.items():
        print(f"\n{split}: {counts['images']} images of {counts['patients']} patients")
        print(f"  {'finding':28}{'1':>8}{'0':>8}{'-1':>8}{'blank':>8}")
        for finding, labels in manifest.labels[split].items():
            print(f"  {finding:28}{labels['1']:8}{labels['0']:8}{labels['-1']:8}{labels['blank']:8}")
    keys = [sample.key for sample in read_index(out / manifest.shards[0].index)[:3]]
    print(f"\nkeys such as {', '.join(keys)}")
