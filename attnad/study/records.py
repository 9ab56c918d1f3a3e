"""Tables of studies beside results.csv: they grow as figures come in, and what is there is not measured again."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from attnad.errors import DataError
from attnad.training.storage import write_atomically

Row = dict[str, str]


def read_records(path: Path, columns: Sequence[str]) -> list[Row]:
    """Read a table, no row where the file is missing. Raises DataError, naming it, on other columns or damage."""
    if not path.exists():
        return []
    try:
        with open(path, newline="", encoding="utf-8") as file:
            head, *lines = csv.reader(file)
        found = [dict(zip(columns, line, strict=True)) for line in lines if line]
    except (ValueError, csv.Error) as error:
        raise DataError(f"{path}: is damaged ({error}); restore it, or move it away and reproduce again") from error
    if tuple(head) != tuple(columns):
        raise DataError(f"{path}: has not the columns {', '.join(columns)}; move it away and reproduce again")
    return found


def add_records(path: Path, columns: Sequence[str], new: Iterable[dict[str, Any]]) -> None:
    """Add rows at the end of a table, all of them or, where the process is killed, none; safe beside other writers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows([*read_records(path, columns), *new])
        write_atomically(path, text.getvalue())
