"""Decode the grey JPEGs of a DICOM file with GDCM, which supports processes that pydicom's other decoders lack."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from shard.dicom.file import UnsupportedDicom
from shard.jpeg import segments
from shard.jpeg.huffman import CorruptJpeg

# JPEG Extended, Spectral Selection, Full Progression, Lossless, and Lossless with first-order prediction.
GDCM_SYNTAXES = tuple(f"1.2.840.10008.1.2.4.{number}" for number in (51, 53, 55, 57, 70))
_BASELINE_SYNTAX = "1.2.840.10008.1.2.4.50"
_JPEG_LS_SYNTAXES = ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81")
# Second bytes of markers.
_START_OF_FRAME = (0xC0, 0xC1, 0xC2, 0xC3)
_LOSSLESS_FRAME = 0xC3
_JPEG_LS_FRAME = 0xF7
_DECODING_SEGMENTS = (*_START_OF_FRAME, 0xC4, 0xDB, 0xDD)  # frames, DHT, DQT and DRI: all that decoding needs
_START_OF_SCAN = 0xDA
_LOSSY_BITS = (8, 12)
# GDCM's libjpeg prints these about files that it decodes correctly.
_HARMLESS_WARNINGS = ("Invalid SOS parameters for sequential JPEG",)

Result = TypeVar("Result")


class FrameHeader(NamedTuple):
    """The content of a start-of-frame segment. bits: sample precision."""

    marker: int
    bits: int
    height: int
    width: int
    channels: int


def check_and_repair(data: Any) -> None:
    """Check that the JPEG of a data set is intact before GDCM decodes it: GDCM aborts the process on some corrupt ones.

    Call `check_frame_header` first. A JPEG with harmless oddities is replaced by a clean one in the data set.
    Raises ValueError with libjpeg's message if an 8-bit JPEG is corrupt, and UnsupportedDicom if the JPEG is deeper
    than its transfer syntax allows.
    """
    from pydicom.encaps import encapsulate, generate_frames

    syntax = data.file_meta.TransferSyntaxUID
    if syntax not in (_BASELINE_SYNTAX, *GDCM_SYNTAXES):
        return
    content = next(generate_frames(data.PixelData, number_of_frames=1))
    header = read_frame_header(content)
    is_turbo_jpeg = syntax == _BASELINE_SYNTAX or (header and header.bits == 8 and header.marker != _LOSSLESS_FRAME)
    intact = segments.check_and_repair(content) if is_turbo_jpeg else _remove_stray_bytes(content)
    if intact is not content:
        data.PixelData = encapsulate([intact])
    if syntax == _BASELINE_SYNTAX and header and header.bits != 8:
        raise UnsupportedDicom(f"broken image: its JPEG has samples of {header.bits} bits")


def _remove_stray_bytes(content: bytes) -> bytes:
    """Remove bytes between segments from a JPEG that libjpeg-turbo can't read: GDCM aborts on such bytes.

    Raises ValueError if those bytes may be lost image data.
    """
    try:
        after_stray = next((segment for segment in segments.parse_segments(content) if segment.stray), None)
    except CorruptJpeg:  # no end marker; GDCM warns about that
        return content
    repaired = segments.repair(content) if after_stray else content
    if after_stray and repaired is None:
        count, marker = len(after_stray.stray), after_stray.marker
        raise ValueError(f"Corrupt JPEG data: {count} extraneous bytes before marker 0x{marker:02x}")
    return repaired or content


def decode_with_gdcm(data: Any) -> npt.NDArray[Any]:
    """Decode the frame of a data set to [H, W] of 8- or 16-bit integers, signed if PixelRepresentation is 1.

    Call `check_frame_header` first. Raises UnsupportedDicom if GDCM is not installed or the JPEG is corrupt.
    """
    from pydicom.encaps import generate_frames

    syntax = data.file_meta.TransferSyntaxUID
    if importlib.util.find_spec("gdcm") is None:
        raise UnsupportedDicom(f"DICOM compressed with {syntax.name}: to read it, pip install '.[dicom]'")
    content = next(generate_frames(data.PixelData, number_of_frames=1))
    header = read_frame_header(content)
    assert header is not None  # check_frame_header ensures this
    allowed_bits = range(8, 17) if header.marker == _LOSSLESS_FRAME else _LOSSY_BITS
    if header.marker == _JPEG_LS_FRAME or header.bits not in allowed_bits:
        raise UnsupportedDicom(f"broken image: {syntax.name} with {header.bits} bits")
    pixels, warnings = _capture_stderr(lambda: _decode_frame(content, header, str(syntax)))
    repaired = segments.repair(content) if any(map(segments.MAY_BE_HARMLESS.search, warnings)) else None
    if repaired is not None:
        pixels, warnings = _capture_stderr(lambda: _decode_frame(repaired, header, str(syntax)))
    warnings = [line for line in warnings if line not in _HARMLESS_WARNINGS]
    if pixels is None or warnings:
        raise UnsupportedDicom(f"broken image: {syntax.name}: {warnings[0] if warnings else 'it does not decode'}")
    words = np.frombuffer(pixels, np.uint8 if header.bits <= 8 else np.uint16).reshape(header.height, header.width)
    return words.view(f"i{words.itemsize}") if int(data.get("PixelRepresentation") or 0) else words


def check_frame_header(data: Any) -> None:
    """Raise UnsupportedDicom if a JPEG or JPEG-LS differs in size from the data set: GDCM aborts on some of those."""
    from pydicom.encaps import generate_frames

    if data.file_meta.TransferSyntaxUID not in (_BASELINE_SYNTAX, *GDCM_SYNTAXES, *_JPEG_LS_SYNTAXES):
        return
    header = read_frame_header(next(generate_frames(data.PixelData, number_of_frames=1)))
    expected = int(data.Rows), int(data.Columns), int(data.SamplesPerPixel)
    if header is None or (header.height, header.width, header.channels) != expected or header.bits not in range(2, 17):
        size = f"{expected[1]}×{expected[0]} pixels and {expected[2]} channels"
        raise UnsupportedDicom(f"broken image: its JPEG does not have {size}")


def read_frame_header(content: bytes) -> FrameHeader | None:
    """Read the first frame header of a JPEG or JPEG-LS; None if no frame is of a process that GDCM decodes."""
    at = 2
    while at + 9 < len(content):
        if content[at] != 0xFF or content[at + 1] in (0x00, 0xFF):
            at += 1
            continue
        if content[at + 1] in (*_START_OF_FRAME, _JPEG_LS_FRAME):
            height, width = (int.from_bytes(content[at + start : at + start + 2], "big") for start in (5, 7))
            return FrameHeader(content[at + 1], content[at + 4], height, width, content[at + 9])
        at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    return None


def _strip_header(content: bytes) -> bytes:
    """Remove the segments before the first scan that decoding does not need; b"" if there is no scan."""
    parts, at = [content[:2]], 2
    while at + 4 <= len(content):
        if content[at] != 0xFF or content[at + 1] in (0x00, 0xFF):
            at += 1
            continue
        marker, end = content[at + 1], at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")
        if marker == _START_OF_SCAN:
            return b"".join(parts) + content[at:]
        if marker in _DECODING_SEGMENTS:
            parts.append(content[at:end])
        at = end
    return b""


def _decode_frame(content: bytes, header: FrameHeader, syntax: str) -> bytes | None:
    """Decode a frame to bytes with GDCM; None if it fails.

    GDCM aborts the process if the pixel format and the JPEG differ in bit depth, or if libjpeg warns about the header.
    """
    import gdcm

    fragment, fragments = gdcm.Fragment(), gdcm.SequenceOfFragments.New()
    fragment.SetByteStringValue(_strip_header(content))
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((header.width, header.height, 1))
    image.SetDataElement(element)
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(gdcm.PhotometricInterpretation.MONOCHROME2))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(syntax)))
    allocated = 8 if header.bits <= 8 else 12 if header.bits == 12 and header.marker != _LOSSLESS_FRAME else 16
    image.SetPixelFormat(gdcm.PixelFormat(1, allocated, header.bits, header.bits - 1, 0))
    text = image.GetBuffer()  # the bytes, decoded as characters
    return None if text is None else text.encode("utf-8", "surrogateescape")


def _capture_stderr(function: Callable[[], Result]) -> tuple[Result, list[str]]:
    """Call a function and capture what its C code writes to stderr, which is how GDCM's libjpeg warns."""
    with tempfile.TemporaryFile() as captured:
        stderr = os.dup(2)
        os.dup2(captured.fileno(), 2)
        try:
            result = function()
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
        captured.seek(0)
        lines = captured.read().decode("utf-8", "replace").splitlines()
    return result, [line.strip() for line in lines if line.strip()]
