"""Tables for other programs, a row per record: CSV, JSON lines or Parquet, by the end of the file's name."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from hkmap.errors import OutputError
from hkmap.files.atomic import refuse_existing, replacing

Cell = str | bool | int | float | None
Rows = Sequence[Mapping[str, Cell]]
Columns = Mapping[str, type]        # str, bool, int or float by name; a cell may also be None


def check_table(path: Path, *, overwrite: bool) -> None:
    """Raise OutputError where `table` could not write ``path``: before the work rather than after it."""
    refuse_existing(path, overwrite=overwrite)
    _writer(path)
    if path.suffix.lower() == ".parquet":
        try:
            import pyarrow as pa  # noqa: F401
        except ImportError as error:
            raise OutputError(f"{path}: Parquet needs pyarrow; pip install 'hkmap[parquet]'") from error


@contextmanager
def table(path: Path, columns: Columns, *, overwrite: bool = False) -> Iterator[Callable[[Rows], None]]:
    """Yield what writes rows to the table ``path``, which gets its name when the context ends without an error."""
    with replacing(path, overwrite=overwrite) as beside, _writer(path)(beside, columns) as write:
        yield write


def _writer(path: Path) -> Callable[[Path, Columns], AbstractContextManager[Callable[[Rows], None]]]:
    if path.suffix.lower() not in _WRITERS:
        raise OutputError(f"{path}: expected a name that ends in {', '.join(_WRITERS)}")
    return _WRITERS[path.suffix.lower()]


@contextmanager
def _csv(path: Path, columns: Columns) -> Iterator[Callable[[Rows], None]]:
    """None is an empty cell, and truth as in JSON."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)

        def cell(value: Cell) -> Cell:
            return json.dumps(value) if isinstance(value, bool) else value

        yield lambda rows: writer.writerows([cell(row[name]) for name in columns] for row in rows)


@contextmanager
def _json_lines(path: Path, columns: Columns) -> Iterator[Callable[[Rows], None]]:
    with path.open("w", encoding="utf-8") as file:
        yield lambda rows: file.writelines(
            json.dumps({name: row[name] for name in columns}, ensure_ascii=False, allow_nan=False) + "\n"
            for row in rows
        )


@contextmanager
def _parquet(path: Path, columns: Columns) -> Iterator[Callable[[Rows], None]]:
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    kinds = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}
    schema = pa.schema([(name, kinds[kind]) for name, kind in columns.items()])
    with ParquetWriter(path, schema) as writer:
        yield lambda rows: writer.write_table(pa.Table.from_pylist(list(rows), schema))


_WRITERS = {".csv": _csv, ".jsonl": _json_lines, ".parquet": _parquet}
