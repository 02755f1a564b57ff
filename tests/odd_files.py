"""Writers of unusual image files that Pillow can't write."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

_ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}


def write_png(
    path: Path, values: np.ndarray, *, interlaced: bool = False, claim: tuple[int, int] | None = None
) -> None:
    """Write [H, W] or [H, W, C] of uint8 or uint16 as a PNG. claim: a false (width, height) for its header."""
    values = values if values.ndim == 3 else values[:, :, None]
    height, width, channels = values.shape
    big = values.astype(values.dtype.newbyteorder(">"))
    passes = [(top, left, down, right) for top, left, down, right in _ADAM7] if interlaced else [(0, 0, 1, 1)]
    rows = (b"\0" + row.tobytes() for top, left, down, right in passes for row in big[top::down, left::right]
            if row.size)  # fmt: skip
    size = claim or (width, height)
    header = struct.pack(">IIBBBBB", *size, 8 * values.itemsize, _COLOUR_TYPES[channels], 0, 0, int(interlaced))
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"".join(rows))), (b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks))  # fmt: skip


def write_tiff(path: Path, values: np.ndarray, *, photometric: int) -> None:
    """Write [H, W] or [H, W, 3] of uint16 as an uncompressed little-endian TIFF.

    photometric: 0 white is zero, 1 black is zero, 2 RGB.
    """
    pixels = values.astype("<u2").tobytes()
    channels = values.shape[2] if values.ndim == 3 else 1
    start = 8 + len(pixels)
    tags = {256: values.shape[1], 257: values.shape[0], 258: 16, 259: 1, 262: photometric, 273: 8, 277: channels,
            278: values.shape[0], 279: len(pixels)}  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items() if tag != 258)
    bits = start + 2 + 12 * len(tags) + 4
    width = struct.pack("<HHIHH", 258, 3, 1, 16, 0) if channels == 1 else struct.pack("<HHII", 258, 3, 3, bits)
    ordered = entries[:24] + width + entries[24:]
    path.write_bytes(b"II*\0" + struct.pack("<I", start) + pixels + struct.pack("<H", len(tags)) + ordered
                     + struct.pack("<I", 0) + struct.pack("<HHH", 16, 16, 16))  # fmt: skip


def write_dicom(path: Path, values: np.ndarray, **tags: Any) -> None:
    """Write [H, W] or [H, W, 3] as an uncompressed DICOM file. tags: additional or other tags."""
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    data.PatientName, data.PatientID = "Doe^Jane", "MRN-4711"
    data.Rows, data.Columns = values.shape[:2]
    data.SamplesPerPixel = values.shape[2] if values.ndim == 3 else 1
    data.PhotometricInterpretation = "RGB" if values.ndim == 3 else "MONOCHROME2"
    if values.ndim == 3:
        data.PlanarConfiguration = 0
    data.BitsAllocated = data.BitsStored = 8 * values.itemsize
    data.PixelRepresentation = int(np.issubdtype(values.dtype, np.signedinteger))
    data.PixelData = values.astype(values.dtype.newbyteorder("<")).tobytes()
    for name, value in tags.items():
        setattr(data, name, value)
    data.HighBit = data.BitsStored - 1
    data.save_as(path, enforce_file_format=True)


def write_jpeg_tiff(
    path: Path, jpegs: list[bytes], *, width: int, height: int, part: tuple[int, int], tiled: bool = False,
    shared: bool = False, extra_segments: bytes = b"",
) -> None:  # fmt: skip
    """Write a grey TIFF of JPEGs, each a strip or tile of (width, height) `part`.

    shared: store their tables in the JPEGTables tag, with `extra_segments` added.
    """
    tables = b""
    if shared:  # from the first marker of a table up to SOF0
        start, end = jpegs[-1].index(b"\xff\xdb"), jpegs[-1].index(b"\xff\xc0")
        codes = jpegs[-1][jpegs[-1].index(b"\xff\xc4") : jpegs[-1].index(b"\xff\xdd")]
        tables = b"\xff\xd8" + jpegs[-1][start:end] + codes + extra_segments + b"\xff\xd9"
        jpegs = [jpeg.replace(jpegs[-1][start:end], b"", 1).replace(codes, b"", 1) for jpeg in jpegs]
    offsets = [8 + sum(map(len, jpegs[:number])) for number in range(len(jpegs))]
    places, lengths = (324, 325) if tiled else (273, 279)
    tags: dict[int, list[int] | bytes] = {
        256: [width], 257: [height], 258: [8], 259: [7], 262: [1], 277: [1], places: offsets,
        lengths: list(map(len, jpegs)), **({322: [part[0]], 323: [part[1]]} if tiled else {278: [part[1]]}),
        **({347: tables} if tables else {}),
    }  # fmt: skip
    body = b"".join(jpegs)
    extra_at, entries, extra = 8 + len(body) + 2 + 12 * len(tags) + 4, b"", b""
    for tag, value in sorted(tags.items()):
        content = value if isinstance(value, bytes) else struct.pack(f"<{len(value)}I", *value)
        count = len(value)
        field = content.ljust(4, b"\0") if len(content) <= 4 else struct.pack("<I", extra_at + len(extra))
        extra += b"" if len(content) <= 4 else content
        entries += struct.pack("<HHI", tag, 7 if isinstance(value, bytes) else 4, count) + field
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(body)) + body + struct.pack("<H", len(tags)) + entries
                     + struct.pack("<I", 0) + extra)  # fmt: skip


def write_dicom_jpeg(path: Path, jpeg: bytes, *, width: int, height: int, fragments: int) -> None:
    """Write a baseline JPEG as a DICOM file of `fragments` fragments, or fewer if it has few bytes."""
    import pydicom

    write_dicom(path, np.zeros((height, width), np.uint8))
    data = pydicom.dcmread(path)
    fragments = max(1, min(fragments, len(jpeg) // 4))
    data.PixelData = pydicom.encaps.encapsulate([jpeg or bytes(2)], fragments_per_frame=fragments)
    data["PixelData"].VR = "OB"
    data.file_meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit
    data.save_as(path)
