"""Grey JPEGs inside a DICOM file → their values, by GDCM, which decodes processes that pydicom does not offer."""

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
from shard.jpeg.entropy import Damaged

# Transfer syntaxes: JPEG Extended, Spectral Selection, Full Progression, and Lossless in any and in first order.
SYNTAXES = tuple(f"1.2.840.10008.1.2.4.{number}" for number in (51, 53, 55, 57, 70))
_BASELINE = "1.2.840.10008.1.2.4.50"
_STARTS_OF_FRAME = (0xC0, 0xC1, 0xC2, 0xC3)
_LOSSLESS = 0xC3
_JPEG_LS, _JPEG_LS_SYNTAXES = 0xF7, ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81")
_LOSSY_BITS = (8, 12)
_KEPT = (*_STARTS_OF_FRAME, 0xC4, 0xDB, 0xDD)  # segments of a header by which pixels are decoded, with DHT, DQT, DRI
_SCAN = 0xDA
# Remarks of GDCM's libjpeg about files whose pixels it decodes right.
_HARMLESS = ("Invalid SOS parameters for sequential JPEG",)

Result = TypeVar("Result")


class Frame(NamedTuple):
    """What a JPEG says of itself."""

    marker: int
    bits: int
    height: int
    width: int
    channels: int


def mend(data: Any) -> None:
    """Make sure that a JPEG is whole before GDCM has it, which ends the process at some that are not.

    `check_frame` comes first. Raises ValueError, in libjpeg's words, where one of 8 bits is damaged, and
    UnsupportedDicom where one is deeper than its compression is. What only draws warnings is taken out of the data set.
    """
    from pydicom.encaps import encapsulate, generate_frames

    syntax = data.file_meta.TransferSyntaxUID
    if syntax not in (_BASELINE, *SYNTAXES):
        return
    content = next(generate_frames(data.PixelData, number_of_frames=1))
    frame = read_frame(content)
    by_turbo = syntax == _BASELINE or (frame and frame.bits == 8 and frame.marker != _LOSSLESS)
    sound = segments.sound(content) if by_turbo else _without_stray_bytes(content)
    if sound is not content:
        data.PixelData = encapsulate([sound])
    if syntax == _BASELINE and frame and frame.bits != 8:
        raise UnsupportedDicom(f"broken image: its JPEG has samples of {frame.bits} bits")


def _without_stray_bytes(content: bytes) -> bytes:
    """A JPEG of a kind that libjpeg-turbo does not read, without bytes between its segments, at which GDCM aborts."""
    try:
        odd = next((segment for segment in segments.parse(content) if segment.stray), None)
    except Damaged:  # it has no end, of which GDCM warns
        return content
    mended = segments.mend(content) if odd else content
    if odd and mended is None:
        raise ValueError(f"Corrupt JPEG data: {len(odd.stray)} extraneous bytes before marker 0x{odd.marker:02x}")
    return mended or content


def decode(data: Any) -> npt.NDArray[Any]:
    """[H, W] of the one frame of a data set, as bytes or words, signed where PixelRepresentation says so.

    `check_frame` comes first. Raises UnsupportedDicom where GDCM is missing or the JPEG is damaged.
    """
    from pydicom.encaps import generate_frames

    name = data.file_meta.TransferSyntaxUID.name
    if importlib.util.find_spec("gdcm") is None:
        raise UnsupportedDicom(f"DICOM compressed by {name}: to read it, pip install '.[dicom]'")
    content = next(generate_frames(data.PixelData, number_of_frames=1))
    frame = read_frame(content)
    assert frame is not None  # as check_frame saw to
    if frame.marker == _JPEG_LS or frame.bits not in (range(8, 17) if frame.marker == _LOSSLESS else _LOSSY_BITS):
        raise UnsupportedDicom(f"broken image: {name} of {frame.bits} bits")
    pixels, complaints = _listen(lambda: _decode(content, frame, str(data.file_meta.TransferSyntaxUID)))
    mended = segments.mend(content) if any(map(segments.MAY_BE_HARMLESS.search, complaints)) else None
    if mended is not None:
        pixels, complaints = _listen(lambda: _decode(mended, frame, str(data.file_meta.TransferSyntaxUID)))
    complaints = [line for line in complaints if line not in _HARMLESS]
    if pixels is None or complaints:
        raise UnsupportedDicom(f"broken image: {name}: {complaints[0] if complaints else 'it does not decode'}")
    words = np.frombuffer(pixels, np.uint8 if frame.bits <= 8 else np.uint16).reshape(frame.height, frame.width)
    return words.view(f"i{words.itemsize}") if int(data.get("PixelRepresentation") or 0) else words


def check_frame(data: Any) -> None:
    """Raise UnsupportedDicom for a JPEG or JPEG-LS whose size is not the data set's: some end the process in GDCM."""
    from pydicom.encaps import generate_frames

    if data.file_meta.TransferSyntaxUID not in (_BASELINE, *SYNTAXES, *_JPEG_LS_SYNTAXES):
        return
    frame = read_frame(next(generate_frames(data.PixelData, number_of_frames=1)))
    wanted = int(data.Rows), int(data.Columns), int(data.SamplesPerPixel)
    if frame is None or (frame.height, frame.width, frame.channels) != wanted or frame.bits not in range(2, 17):
        size = f"{wanted[1]}×{wanted[0]} pixels in {wanted[2]} channels"
        raise UnsupportedDicom(f"broken image: its JPEG is not of {size}")


def read_frame(content: bytes) -> Frame | None:
    """The first start of frame in a JPEG or JPEG-LS; None where there is none of a process that GDCM decodes."""
    at = 2
    while at + 9 < len(content):
        if content[at] != 0xFF or content[at + 1] in (0x00, 0xFF):
            at += 1
            continue
        if content[at + 1] in (*_STARTS_OF_FRAME, _JPEG_LS):
            height, width = (int.from_bytes(content[at + start : at + start + 2], "big") for start in (5, 7))
            return Frame(content[at + 1], content[at + 4], height, width, content[at + 9])
        at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    return None


def _plain_header(content: bytes) -> bytes:
    """The JPEG with nothing before its first scan but what its pixels need; b"" where there is no scan."""
    parts, at = [content[:2]], 2
    while at + 4 <= len(content):
        if content[at] != 0xFF or content[at + 1] in (0x00, 0xFF):
            at += 1
            continue
        marker, after = content[at + 1], at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")
        if marker == _SCAN:
            return b"".join(parts) + content[at:]
        if marker in _KEPT:
            parts.append(content[at:after])
        at = after
    return b""


def _decode(content: bytes, frame: Frame, syntax: str) -> bytes | None:
    """GDCM's bytes of a frame. It ends the process at other bits than the JPEG has, and at a warning of its header."""
    import gdcm

    fragment, fragments = gdcm.Fragment(), gdcm.SequenceOfFragments.New()
    fragment.SetByteStringValue(_plain_header(content))
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((frame.width, frame.height, 1))
    image.SetDataElement(element)
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(gdcm.PhotometricInterpretation.MONOCHROME2))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(syntax)))
    allocated = 8 if frame.bits <= 8 else 12 if frame.bits == 12 and frame.marker != _LOSSLESS else 16
    image.SetPixelFormat(gdcm.PixelFormat(1, allocated, frame.bits, frame.bits - 1, 0))
    text = image.GetBuffer()  # its bytes, each as a character
    return None if text is None else text.encode("utf-8", "surrogateescape")


def _listen(work: Callable[[], Result]) -> tuple[Result, list[str]]:
    """The result of `work`, and the lines that its C code wrote to stderr: the one way in which libjpeg warns."""
    with tempfile.TemporaryFile() as heard:
        stderr = os.dup(2)
        os.dup2(heard.fileno(), 2)
        try:
            result = work()
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
        heard.seek(0)
        lines = heard.read().decode("utf-8", "replace").splitlines()
    return result, [line.strip() for line in lines if line.strip()]
