"""upload: put shards at an address, the manifest last."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from shard.address import Address, Place
from shard.errors import InputError
from shard.files import sha256_of
from shard.flags import Flag, validate_call
from shard.manifest import MANIFEST, read_manifest, wrong_hash
from shard.progress import Progress
from shard.remote import file_size, read_file, remote_sha256, upload_file

CONNECTIONS = 4


@dataclass(frozen=True)
class File:
    """A file of an archive, as its manifest describes it."""

    name: str
    size: int
    sha256: str


@validate_call
def upload(
    shards: Annotated[Path, Flag("Folder of shards, written by python -m shard build.")],
    address: Annotated[Place, Flag("Where to put them: s3://bucket/prefix or gs://bucket/prefix.", metavar="ADDRESS")],
) -> None:
    """Upload shards to an object store, from where every command reads them by their address.

    Uploads the tars, the indexes and, last, the manifest; not rejects.csv and duplicates.csv. The same command resumes
    one that was stopped, and reads back what is there already. It does not replace another archive.

        python -m shard upload shards s3://hospital/chexpert-256
    """
    manifest = read_manifest(shards)
    if not isinstance(address, Address) or address.scheme not in ("s3", "gs"):
        raise InputError(f"{address}: not an address to upload to; give s3://bucket/prefix or gs://bucket/prefix")
    files = [File(*fields) for shard in manifest.shards
             for fields in ((shard.tar, shard.tar_bytes, shard.tar_sha256),
                            (shard.index, shard.index_bytes, shard.index_sha256))]  # fmt: skip
    is_there = _has_manifest(shards, address)
    sent, done = 0, 0
    with Progress("uploading", len(files), "files") as progress, ThreadPoolExecutor(CONNECTIONS, "upload") as pool:
        futures = [pool.submit(_upload, shards, address, file, is_there) for file in files]
        try:
            for future in futures:
                sent += future.result()
                done += 1
                progress.show(done)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if not is_there:
        upload_file(shards / MANIFEST, address, MANIFEST)
    images = sum(shard.samples for shard in manifest.shards)
    print(f"{address}: {images} images in {len(manifest.shards)} shards ({sent} of {len(files)} files uploaded, the "
          "others were there)")  # fmt: skip


def _has_manifest(shards: Path, address: Address) -> bool:
    """Whether the archive's manifest is at the address. Raises InputError if another archive's is."""
    if file_size(address, MANIFEST) is None:
        return False
    if read_file(address, MANIFEST) != (shards / MANIFEST).read_bytes():
        raise _another_archive(address, MANIFEST, shards)
    return True


def _upload(shards: Path, address: Address, file: File, is_there: bool) -> bool:
    """Upload a file unless it is there, and return whether it was uploaded.

    is_there: whether the manifest is; then a file of another size is damaged. Without it, nothing says whose a
    differing file is: stores show a file only once it is complete, so it is none that was cut short.
    """
    size = file_size(address, file.name)
    if size == file.size and (is_there or remote_sha256(address, file.name) == file.sha256):
        return False
    if size is not None and not is_there:
        raise _another_archive(address, file.name, shards)
    path = shards / file.name
    if (found := sha256_of(path)) != file.sha256:
        raise InputError(f"{wrong_hash(path, found, file.sha256)}; build the shards again, or copy that file again")
    upload_file(path, address, file.name)
    if (size := file_size(address, file.name)) != file.size:
        raise InputError(f"{address}/{file.name}: {size} bytes after the upload, not {file.size}; run the same command "
                         "again")  # fmt: skip
    return True


def _another_archive(address: Address, name: str, shards: Path) -> InputError:
    return InputError(f"{address}: contains another archive, whose {name} differs from that in {shards}; choose "
                      "another address")  # fmt: skip
