"""Well-formed parquet files of the wrong type: each column in turn of another type, empty, or with absurd values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

# How a column of n rows is made wrong.
WRONG: dict[str, Callable[[int], pa.Array]] = {
    "text": lambda n: pa.array(["x"] * n),
    "nothing": lambda n: pa.nulls(n, pa.int64()),
    "huge": lambda n: pa.array([10**15] * n),
    "negative": lambda n: pa.array([-1] * n),
    "not a number": lambda n: pa.array([float("nan")] * n),
    "lists": lambda n: pa.array([[1, 2]] * n),
    "empty lists": lambda n: pa.array([[]] * n, pa.list_(pa.float32())),
    "records": lambda n: pa.array([{"a": 1}] * n),
    "bytes": lambda n: pa.array([b"\xff"] * n),
    "truth": lambda n: pa.array([True] * n),
}


def wrong_files(path: Path) -> Iterator[tuple[str, bytes]]:
    """(what is wrong, content) of every file that can be made of a parquet file by spoiling or dropping one column."""
    table = pq.read_table(path)
    for i, name in enumerate(table.column_names):
        for how, make in WRONG.items():
            yield f"{name}: {how}", _content(table.set_column(i, name, make(table.num_rows)))
        yield f"{name}: missing", _content(table.remove_column(i))
    yield "no rows", _content(table.slice(0, 0))
    yield "every row twice", _content(pa.concat_tables([table, table]))


def _content(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()
