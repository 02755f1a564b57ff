"""Mutated JPEGs in all kinds of files: each is refused in one line, or its stripped JPEG decodes alike everywhere."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from shard.dicom.image import has_pydicom
from shard.errors import UnreadableImage
from shard.image import decode, read_file
from shard.jpeg.segments import APPLICATION_SEGMENTS, COM, parse_segments
from tests.damage import containers, encode, radiograph
from tests.fuzz import SEED, inputs, mutate, report_counts

JPEGS = inputs(300)


def decode_with_dali(jpegs: list[bytes]) -> list[np.ndarray]:
    """Decode each JPEG to [H, W], like training does."""
    dali, fn = pytest.importorskip("nvidia.dali"), pytest.importorskip("nvidia.dali.fn")
    pipe = dali.Pipeline(batch_size=len(jpegs), num_threads=1, device_id=None)
    with pipe:
        encoded = fn.external_source(lambda: [np.frombuffer(jpeg, np.uint8) for jpeg in jpegs])
        pipe.set_outputs(fn.decoders.image(encoded, device="cpu", output_type=dali.types.GRAY))
    (decoded,) = pipe.run()
    return [np.asarray(decoded.at(number))[:, :, 0] for number in range(len(jpegs))]


def test_mutated_jpegs_are_refused_or_decode_alike_with_every_decoder(tmp_path: Path) -> None:
    rng = np.random.default_rng([SEED, 7])
    sources = [source for name, source in containers().items() if "DICOM" not in name or has_pydicom()]
    grey = containers()["grey"]
    sources += [grey._replace(jpegs=[encode(radiograph(), comment=b"Doe^Jane", **options)]) for options in
                ({}, {"quality": 20}, {"optimize": True}, {"restart_marker_blocks": 3}) for _ in range(4)]  # fmt: skip
    refused, stripped = 0, []
    for number in range(JPEGS):
        source = sources[number % len(sources)]
        path = tmp_path / f"image.{source.suffix}"
        source.write(path, [mutate(source.jpegs[0], rng), *source.jpegs[1:]])
        try:
            pixels, jpeg = decode(read_file(path), int(rng.choice([40, 200])))
        except UnreadableImage as error:
            assert 5 < len(str(error)) < 200
            refused += 1
            continue
        if jpeg is not None:
            assert all(segment.marker not in (*APPLICATION_SEGMENTS, COM) for segment in parse_segments(jpeg))
            assert (simplejpeg.decode_jpeg(jpeg, "GRAY")[:, :, 0] == pixels).all()
            assert (np.asarray(Image.open(io.BytesIO(jpeg))) == pixels).all()
            stripped.append((jpeg, pixels))
    assert refused > JPEGS / 3 and len(stripped) > JPEGS / 60
    for decoded, (_, pixels) in zip(decode_with_dali([jpeg for jpeg, _ in stripped]), stripped, strict=True):
        assert (decoded == pixels).all()
    report_counts("JPEGs", JPEGS, refused)
