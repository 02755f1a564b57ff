"""Mutated JPEGs in every kind of file: each is refused in a line, or what is kept of it decodes alike everywhere."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from shard.dicom.image import has_pydicom
from shard.errors import UnreadableImage
from shard.image import load_grey_and_bytes
from shard.jpeg.metadata import strip_metadata
from shard.jpeg.segments import APPLICATION_SEGMENTS, COM, parse_segments
from tests.damage import encode, kinds, radiograph
from tests.fuzz import SEED, inputs, mutate, report_counts

JPEGS = inputs(300)


def by_dali(jpegs: list[bytes]) -> list[np.ndarray]:
    """[H, W] of each, decoded as training does it."""
    dali, fn = pytest.importorskip("nvidia.dali"), pytest.importorskip("nvidia.dali.fn")
    pipe = dali.Pipeline(batch_size=len(jpegs), num_threads=1, device_id=None)
    with pipe:
        encoded = fn.external_source(lambda: [np.frombuffer(jpeg, np.uint8) for jpeg in jpegs])
        pipe.set_outputs(fn.decoders.image(encoded, device="cpu", output_type=dali.types.GRAY))
    (decoded,) = pipe.run()
    return [np.asarray(decoded.at(number))[:, :, 0] for number in range(len(jpegs))]


def test_a_mutated_jpeg_is_refused_or_every_decoder_sees_the_same_in_what_is_kept(tmp_path: Path) -> None:
    rng = np.random.default_rng([SEED, 7])
    sources = [kind for name, kind in kinds().items() if "DICOM" not in name or has_pydicom()]
    as_file = kinds()["grey"][2]
    sources += [("jpg", [encode(radiograph(), comment=b"Doe^Jane", **options)], as_file) for options in
                ({}, {"quality": 20}, {"optimize": True}, {"restart_marker_blocks": 3}) for _ in range(4)]  # fmt: skip
    refused, kept = 0, []
    for number in range(JPEGS):
        ending, (jpeg, *others), make = sources[number % len(sources)]
        path = tmp_path / f"image.{ending}"
        make(path, [mutate(jpeg, rng), *others])
        try:
            grey, content = load_grey_and_bytes(path, int(rng.choice([40, 200])))
        except UnreadableImage as error:
            assert 5 < len(str(error)) < 200
            refused += 1
            continue
        bare = strip_metadata(content, grey)
        if bare is not None:
            assert all(segment.marker not in (*APPLICATION_SEGMENTS, COM) for segment in parse_segments(bare))
            assert (simplejpeg.decode_jpeg(bare, "GRAY")[:, :, 0] == grey).all()
            assert (np.asarray(Image.open(io.BytesIO(bare))) == grey).all()
            kept.append((bare, grey))
    assert refused > JPEGS / 3 and len(kept) > JPEGS / 60
    for found, (_, grey) in zip(by_dali([bare for bare, _ in kept]), kept, strict=True):
        assert (found == grey).all()
    report_counts("JPEGs", JPEGS, refused)
