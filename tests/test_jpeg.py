"""Damaged JPEGs are refused, however they come; what is odd around whole ones is not damage."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shard.dicom.image import has_pydicom
from shard.errors import UnreadableImage
from shard.image import load_grey
from shard.jpeg.segments import decode_grey_strictly, repair
from tests.damage import colour, encode, harm, kinds, libjpeg_says, radiograph, scans_of
from tests.odd_files import write_dicom_jpeg, write_jpeg_tiff

KINDS = kinds()
needs_dicom = pytest.mark.skipif(not has_pydicom(), reason="pydicom is not installed")
NAMES = [pytest.param(name, marks=needs_dicom if "DICOM" in name else ()) for name in KINDS]
ALONE = [name for name, (ending, jpegs, _) in KINDS.items() if ending == "jpg"]


def file_of(folder: Path, name: str, jpeg: bytes | None = None) -> Path:
    """A file of one kind, of which the first JPEG may be replaced."""
    ending, jpegs, make = KINDS[name]
    path = folder / f"image.{ending}"
    make(path, [jpeg or jpegs[0], *jpegs[1:]])
    return path


@pytest.mark.parametrize("name", NAMES)
def test_damage_is_told_as_libjpeg_tells_it_of_a_plain_jpeg(tmp_path: Path, name: str) -> None:
    """Sixty damaged files of each kind. Where libjpeg is silent the file is kept, where it warns, refused in its words.

    Left-over bytes may be no damage: then the picture is that of the whole JPEG.
    """
    rng = np.random.default_rng(20)
    whole, jpeg = load_grey(file_of(tmp_path, name), 500), KINDS[name][1][0]
    refused = 0
    for _ in range(60):
        damaged = harm(jpeg, rng)
        path, said = file_of(tmp_path, name, damaged), libjpeg_says(damaged)
        try:
            grey = load_grey(path, 500)
        except UnreadableImage as error:
            refused += 1
            assert said and str(error) == f"broken image: {said}"
            continue
        assert not said or ("extraneous bytes" in said and (grey == whole).all()), said
    assert 30 < refused < 60


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stray", [b"\x12" * 8, b"left over, and no part of the picture", b"\xfe" * 90, bytes(9)])
def test_stray_bytes_before_any_marker_are_no_damage(tmp_path: Path, name: str, stray: bytes) -> None:
    whole, jpeg = load_grey(file_of(tmp_path, name), 500), KINDS[name][1][0]
    scans = scans_of(jpeg)
    restarts = [start + found.start() for start, end in scans
                for found in re.finditer(rb"\xff[\xd0-\xd7]", jpeg[start:end])]  # fmt: skip
    headers = [found.start() for found in re.finditer(rb"\xff[\xc0\xc4\xda\xdb]", jpeg)
               if not any(start <= found.start() < end for start, end in scans)]  # fmt: skip
    for place in {scans[-1][1], scans[0][1], *restarts[:3], *restarts[-1:], *headers}:
        odd = jpeg[:place] + stray + jpeg[place:]
        assert (load_grey(file_of(tmp_path, name, odd), 500) == whole).all(), (place, libjpeg_says(odd))


def test_what_a_header_leaves_out_and_nothing_here_reads_is_no_damage(tmp_path: Path) -> None:
    grey = encode(radiograph())
    profile = b"\xff\xe2\0\x14ICC_PROFILE\0\7\1junk"  # part 7 of 1
    odd = {
        "unknown JFIF revision number": grey.replace(b"JFIF\0\1\1", b"JFIF\0\2\1"),
        "Invalid SOS parameters": grey.replace(b"\0\x3f\0", bytes(3), 1),
        "bad ICC marker": grey[:2] + profile + grey[2:],
    }
    for words, content in odd.items():
        (tmp_path / "image.jpg").write_bytes(content)
        assert (load_grey(tmp_path / "image.jpg", 500) == decode_grey_strictly(grey)).all(), words
    assert "unknown JFIF" in libjpeg_says(odd["unknown JFIF revision number"])
    assert "Invalid SOS" in libjpeg_says(odd["Invalid SOS parameters"])
    adobe = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\7"  # what its colours are is anyone's guess
    strange = encode(colour(radiograph())).replace(b"JFIF", b"none").replace(b"\xff\xc0", adobe + b"\xff\xc0")
    for harmful in (grey.replace(b"\0\x3f\0", b"\0\x20\0", 1), strange):
        (tmp_path / "image.jpg").write_bytes(harmful)
        with pytest.raises(UnreadableImage, match=r"Invalid SOS parameters|Unknown Adobe color transform code 7"):
            load_grey(tmp_path / "image.jpg", 500)


@pytest.mark.parametrize("lost", ["table", "scan"])
def test_what_is_left_of_a_lost_segment_is_no_stray(tmp_path: Path, lost: str) -> None:
    """One bit of a marker flips, and libjpeg passes over what it named: other codes, or coefficients without bits."""
    content = encode(radiograph(), progressive=lost == "scan", optimize=True)
    place = content.index(b"\xff\xc4") if lost == "table" else content.rindex(b"\xff\xda")
    damaged = content[:place] + b"\xfe" + content[place + 1 :]
    assert "extraneous bytes" in libjpeg_says(damaged)
    (tmp_path / "image.jpg").write_bytes(damaged)
    with pytest.raises(UnreadableImage, match="extraneous bytes before marker"):
        load_grey(tmp_path / "image.jpg", 500)


@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize("size", [(33, 41), (88, 120), (64, 128)])
def test_the_end_of_every_scan_is_found_to_the_byte(name: str, size: tuple[int, int]) -> None:
    """Of JPEGs that are whole, `mend` changes nothing but what it names: the walk through their codes is libjpeg's."""
    image = radiograph(*size)
    picture = colour(image) if "colour" in name else image.convert("CMYK") if name in ("CMYK", "YCCK") else image
    for options in ({}, {"restart_marker_blocks": 2}, {"quality": 30}, {"optimize": True}, {"subsampling": 2}):
        content = encode(picture, progressive="progressive" in name, **options)
        assert repair(content) == content


def test_a_tiff_of_shared_tables_takes_nothing_else_from_them(tmp_path: Path) -> None:
    """A restart interval beside the tables does not count in a strip, which has an SOI of its own."""
    _, jpegs, _ = KINDS["TIFF with shared tables"]
    path, place = tmp_path / "image.tif", jpegs[0].index(b"\xff\xdd")
    interval = jpegs[0][place : place + 6]
    write_jpeg_tiff(path, jpegs, width=120, height=88, part=(120, 32), shared=True, beside=interval)
    whole = path.read_bytes()
    assert load_grey(path, 500).shape == (88, 120)
    path.write_bytes(whole.replace(interval, b"\xff\xfe\0\4\0\0", len(jpegs)))  # all but the one beside the tables
    with pytest.raises(UnreadableImage, match="broken image: Corrupt JPEG data: premature end of data segment"):
        load_grey(path, 500)


def test_an_old_style_jpeg_in_pieces_is_refused_by_name(tmp_path: Path) -> None:
    _, jpegs, make = KINDS["TIFF in strips"]
    path = tmp_path / "image.tif"
    make(path, jpegs)
    path.write_bytes(path.read_bytes().replace(struct.pack("<HHII", 259, 4, 1, 7), struct.pack("<HHII", 259, 4, 1, 6)))
    with pytest.raises(UnreadableImage, match="TIFF with old-style JPEG compression in separate parts"):
        load_grey(path, 500)


def test_data_that_is_left_over_is_told_from_stray_bytes() -> None:
    """Flipped bits and lost bytes after which libjpeg speaks of left-over bytes and of nothing else.

    No rule can tell all: the rest of a damaged block may look as stray bytes do. One in a hundred is the limit here.
    """
    rng = np.random.default_rng(3)
    told, wrong = 0, 0
    for name in ALONE:
        jpeg = KINDS[name][1][0]
        whole, scans = decode_grey_strictly(jpeg), scans_of(jpeg)
        for _ in range(250):
            start, end = scans[int(rng.integers(len(scans)))]
            content, place = bytearray(jpeg), int(rng.integers(start, end))
            if rng.integers(2):
                content[place] ^= 1 << int(rng.integers(8))
            else:
                del content[place : place + int(rng.integers(1, 20))]
            if "extraneous bytes" not in libjpeg_says(bytes(content)):
                continue
            told += 1
            mended = repair(bytes(content))
            if mended is not None and not libjpeg_says(mended):
                wrong += not np.array_equal(decode_grey_strictly(mended), whole)
    assert told > 200 and wrong <= told / 100, (told, wrong)


@needs_dicom
def test_a_jpeg_at_which_gdcm_would_end_the_process_is_refused(tmp_path: Path) -> None:
    """Samples of 241 bits, another size than the data set's, and bytes between the segments of a lossless JPEG."""
    pydicom = pytest.importorskip("pydicom")
    path, jpeg = file_of(tmp_path, "DICOM"), KINDS["DICOM"][1][0]
    depth = jpeg.index(b"\xff\xc0") + 4
    for bits in (12, 241):
        file_of(tmp_path, "DICOM", jpeg[:depth] + bytes([bits]) + jpeg[depth + 1 :])
        with pytest.raises(UnreadableImage, match="broken image: "):
            load_grey(path, 500)
    write_dicom_jpeg(path, jpeg, width=120, height=100, fragments=1)
    with pytest.raises(UnreadableImage, match="broken image: its JPEG does not have 120×100 pixels and 1 channels"):
        load_grey(path, 500)
    start = jpeg.index(b"\xff\xc0")
    lossless = jpeg[:start] + b"\1\2\3" + jpeg[start:].replace(b"\xff\xc0", b"\xff\xc3", 1)
    write_dicom_jpeg(path, lossless, width=120, height=88, fragments=1)
    data = pydicom.dcmread(path)
    data.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLosslessSV1
    data.save_as(path)
    with pytest.raises(UnreadableImage, match="broken image: Corrupt JPEG data: 3 extraneous bytes before marker 0xc3"):
        load_grey(path, 500)


def unusual(across: int, down: int) -> bytes:
    """A colour JPEG whose chroma is this much smaller, of three scans, each that of a grey JPEG of its size."""
    luma = encode(radiograph())
    chroma = encode(Image.new("L", (120 // across, 88 // down), 128))
    start, tables, scan = (luma.index(marker) for marker in (b"\xff\xc0", b"\xff\xc4", b"\xff\xda"))
    factors = bytes([1, across << 4 | down, 0, 2, 0x11, 0, 3, 0x11, 0])
    parts = [luma[:start], b"\xff\xc0\0\x11\x08\0\x58\0\x78\3", factors, luma[tables:scan]]
    for component, source in ((1, luma), (2, chroma), (3, chroma)):
        data = source[source.index(b"\xff\xda") + 10 : -2]
        parts += [b"\xff\xda\0\x08\1", bytes([component, 0]), b"\0\x3f\0", data]
    return b"".join([*parts, b"\xff\xd9"])


@pytest.mark.parametrize("factors", [(1, 1), (2, 2), (4, 2), (4, 4)])
def test_a_sampling_that_turbojpeg_does_not_know_is_decoded_and_as_strictly(
    tmp_path: Path, factors: tuple[int, int]
) -> None:
    content, path = unusual(*factors), tmp_path / "image.jpg"
    path.write_bytes(content)
    assert np.abs(load_grey(path, 500).astype(int) - decode_grey_strictly(encode(radiograph()))).max() <= 1
    path.write_bytes(content[:-40] + b"\xff\xd9")
    with pytest.raises(UnreadableImage, match="broken image: "):
        load_grey(path, 500)
