"""The Parquet file of features: its columns, its metadata, and how it is written."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from probe.embed.description import FORMAT
from shard.errors import PARSE_ERRORS, InputError
from shard.files import atomic_write
from train.frozen_features import Features

if TYPE_CHECKING:  # an optional package
    import pyarrow as pa

METADATA = b"cxr-simclr"  # the key of the description in the file's metadata
TEXTS = ("key", "patient", "split", "path", "view", "sex")
COLUMNS = (*TEXTS, "age", "features")


def check_pyarrow() -> None:
    """Raise InputError if pyarrow, which writes the file, is not installed."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise InputError("python -m probe embed: writing Parquet needs a package: pip install '.[embed]'") from None


def column_of(finding: str) -> str:
    """Return the column of a finding: its name, marked if another column has that name."""
    return f"{finding} (finding)" if finding in COLUMNS else finding


def make_schema(findings: Sequence[str], width: int, dtype: str, *, paths: bool, description: Any) -> pa.Schema:
    """Return the columns and their types. paths: whether there is a column path. description: JSON values."""
    import pyarrow as pa

    texts = [(name, pa.string()) for name in TEXTS if paths or name != "path"]
    labels = [(column_of(finding), pa.int8()) for finding in findings]
    vector = pa.list_(pa.float16() if dtype == "float16" else pa.float32(), width)
    metadata = {METADATA: json.dumps(description, allow_nan=False, ensure_ascii=False).encode()}
    return pa.schema([*texts, ("age", pa.float32()), *labels, ("features", vector)], metadata)


def make_table(
    schema: pa.Schema, labels: pd.DataFrame, findings: Sequence[str], features: Features, paths: Sequence[str] | None
) -> pa.Table:  # fmt: skip
    """Return rows of the file. labels: in the columns of shard.read.read_labels. paths: if the schema has them."""
    import pyarrow as pa

    # What is not known is null in the file, and "" in the labels.
    columns: dict[str, Any] = {name: labels[name].replace("", None) for name in TEXTS if name != "path"}
    columns |= {column_of(name): labels[name] for name in findings} | {"age": labels["age"], "path": paths}
    arrays = [pa.array(columns[field.name], field.type, from_pandas=True) for field in schema
              if field.name != "features"]  # fmt: skip
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), features.shape[1])
    return pa.Table.from_arrays([*arrays, vectors], schema=schema)


def write_features_file(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    """Write the file atomically, each table as a row group, which takes the memory of one table."""
    import pyarrow.parquet as pq

    texts = [name for name in schema.names if name in TEXTS]
    with atomic_write(path) as file, pq.ParquetWriter(
        file, schema, compression="zstd", use_dictionary=texts, write_statistics=texts) as writer:  # fmt: skip
        for table in tables:
            writer.write_table(table)


def read_description(path: Path) -> dict[str, Any]:
    """Read the description of a file of features. Raises InputError if it is no such file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        description = json.loads((pq.read_schema(path).metadata or {})[METADATA])
        if description["format"] != FORMAT:
            raise ValueError(f"format {description['format']!r}, this version reads {FORMAT!r}")
    except (pa.ArrowException, *PARSE_ERRORS) as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{path}: exists, and is not a file of python -m probe embed ({reason}); choose another "
                         "--out or remove it") from None  # fmt: skip
    assert isinstance(description, dict)
    return description
