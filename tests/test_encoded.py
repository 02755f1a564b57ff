"""What the sharder encodes is checked: complete, of valid codes, and of the picture's mean in every block."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import simplejpeg

from shard.grey import Grey
from shard.jpeg.encoded import encode_and_check
from shard.jpeg.segments import decode_grey_strictly
from tests.damage import radiograph

GREY: Grey = np.asarray(radiograph())


def check_instead(monkeypatch: pytest.MonkeyPatch, content: bytes, grey: Grey = GREY, quality: int = 95) -> None:
    """Check `content` as if it was just encoded."""
    encode_and_check(grey, quality)  # the header is known
    with monkeypatch.context() as context:
        context.setattr(simplejpeg, "encode_jpeg", lambda *_, **__: content)
        encode_and_check(grey, quality)


@pytest.mark.parametrize("quality", [1, 40, 95, 100])
def test_jpegs_of_any_picture_pass(quality: int) -> None:
    """Noise has the longest codes; edges of black and white the largest coefficients; partial blocks repeat pixels."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (97, 131), dtype=np.uint8)
    for grey in (GREY, noise, noise // 128 * 255, np.full((33, 47), 255, np.uint8), np.zeros((40, 9), np.uint8)):
        content = encode_and_check(grey, quality)
        assert decode_grey_strictly(content).shape == grey.shape
        assert content == simplejpeg.encode_jpeg(grey[:, :, None], quality=quality, colorspace="GRAY")


def test_whatever_libjpeg_refuses_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """And more: libjpeg decodes many damaged files without a warning, to another picture."""
    rng = np.random.default_rng(1)
    content = encode_and_check(GREY, 95)
    start, counts = content.index(b"\xff\xda") + 10, {"refused by both": 0, "by the check alone": 0}
    for number in range(600):
        at, damaged = int(rng.integers(start, len(content) - 2)), bytearray(content)
        if number % 3 == 0:
            damaged[at] ^= 1 << int(rng.integers(8))
        elif number % 3 == 1:
            del damaged[at : at + int(rng.integers(1, 50))]
        else:
            damaged[at:at] = rng.integers(0, 255, 3, dtype=np.uint8).tobytes()
        try:
            check_instead(monkeypatch, bytes(damaged))
            decode_grey_strictly(bytes(damaged))  # raises if libjpeg finds what the check overlooks
        except ValueError as error:
            try:
                decode_grey_strictly(bytes(damaged))
                counts["by the check alone"] += 1
            except ValueError as libjpegs:
                assert str(error) != str(libjpegs), f"passed the check: {libjpegs}"
                counts["refused by both"] += 1
    assert min(counts.values()) > 50, counts


def test_another_picture_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for y, x in ((0, 0), (40, 64), (87, 119)):
        other = GREY.copy()
        block = np.s_[y // 8 * 8 : y // 8 * 8 + 8, x // 8 * 8 : x // 8 * 8 + 8]
        other[block] = np.minimum(other[block], 252) + 3
        with pytest.raises(ValueError, match="a block that differs from the picture"):
            check_instead(monkeypatch, encode_and_check(other, 95))


def test_an_invalid_dc_code_before_a_valid_block_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Annex K's code 0/9 begins with nine ones, which are no DC code. libjpeg takes them for a difference of 0."""
    grey: Grey = np.full((16, 16), 128, np.uint8)
    content = encode_and_check(grey, 95)
    start = content.index(b"\xff\xda") + 10
    dc, coefficient, end = "00", "1111111110000010" + "100000000", "1010"
    for first, refused in ((dc + coefficient, False), (coefficient, True)):
        bits = first + end + 3 * (dc + end)
        bits += "1" * (-len(bits) % 8)
        data = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
        with pytest.raises(ValueError, match="invalid Huffman code") if refused else contextlib.nullcontext():
            check_instead(monkeypatch, content[:start] + data + content[-2:], grey)


def test_a_marker_in_place_of_the_last_two_bytes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are zeros, which the decoder takes for what is missing."""
    grey: Grey = np.full((8, 16), 128, np.uint8)
    content = encode_and_check(grey, 95)
    start = content.index(b"\xff\xda") + 10
    data = int("00" + "001" + "1010" + "0" * (2 + 63 * 3), 2).to_bytes(25, "big")  # two blocks, without padding
    check_instead(monkeypatch, content[:start] + data + content[-2:], grey)
    with pytest.raises(ValueError, match="a marker within the data"):
        check_instead(monkeypatch, content[:start] + data[:-2] + b"\xff\xd0" + content[-2:], grey)


def test_data_after_the_last_block_and_markers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encode_and_check(GREY, 95)
    middle = len(content) // 2
    for damaged, reason in (
        (content[:-2] + b"\xaa" + content[-2:], "data after the last block"),
        (content[:middle] + b"\xff\xd0" + content[middle:], "a marker within the data"),
        (content[:-40] + content[-2:], "truncated data|code|coefficients|differs"),
        (content[:-2], "header or end"),
        (content[:2] + b"\xff\xfe\0\2" + content[2:], "header or end"),
        (encode_and_check(GREY, 90), "header or end"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=reason):
            check_instead(monkeypatch, damaged)
