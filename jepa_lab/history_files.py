"""How is a history of training kept in a file? As CSV or JSON, whole or not at all, and without losing a digit.

Book: chapter 12.
"""

import csv
import io
import json
import math
import numbers
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from jepa_lab.files import write_atomic

Column = list[int | float | None]
_SUFFIXES = (".csv", ".json")


def write(path: str | Path, history: Mapping[str, Column]) -> Path:
    """Write equally long columns to a `.csv` or `.json` file; None is a missing value.

    Raises: ValueError for another suffix; OSError if it cannot be written.
    """
    text = (_to_csv if _suffix(path) == ".csv" else _to_json)(history)
    return write_atomic(Path(path), text.encode("utf-8"))


def read(path: str | Path) -> dict[str, Column]:
    """Read what `write` wrote.

    Raises: ValueError naming the file and what is wrong with it; OSError if it cannot be read.
    """
    parse = _from_csv if _suffix(path) == ".csv" else _from_json
    try:
        history = parse(Path(path).read_bytes().decode("utf-8-sig"))  # a spreadsheet may have put a mark in front
        check(history)
        return history
    except (ValueError, csv.Error) as error:  # bad JSON and bad UTF-8 are kinds of ValueError
        raise ValueError(f"{path} is no history of training: {error}") from error


def check(history: Mapping[str, Sequence[int | float | None]]) -> None:
    """See that a history is one.

    Raises: ValueError unless all columns are as long as `epoch`, whose whole numbers rise.
    """
    lengths = {name: len(column) for name, column in history.items()}
    if "epoch" not in lengths or len(set(lengths.values())) > 1:
        raise ValueError(f"it must have equally long columns, one of them called epoch, got {lengths}")
    epochs = list(history["epoch"])
    whole = all(isinstance(epoch, numbers.Integral) and epoch >= 0 for epoch in epochs)
    if not whole or any(b <= a for a, b in pairwise(epochs)):
        raise ValueError(f"its epochs must be whole numbers from 0 that rise, got {epochs}")


def _suffix(path: str | Path) -> str:
    suffix = Path(path).suffix.lower()
    if suffix not in _SUFFIXES:
        raise ValueError(f"path must end in {' or '.join(_SUFFIXES)}, got {str(path)!r}")
    return suffix


def _to_csv(history: Mapping[str, Column]) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(history)
    # repr of a float is the shortest text that reads back as the same number
    table.writerows(["" if v is None else repr(v) for v in row] for row in zip(*history.values(), strict=True))
    return text.getvalue()


def _from_csv(text: str) -> dict[str, Column]:
    rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    header = rows[0] if rows else []
    if len(set(header)) != len(header):
        raise ValueError(f"a column stands there twice among {', '.join(header)}")
    history: dict[str, Column] = {name: [] for name in header}
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(header):
            raise ValueError(f"row {number} has {len(row)} cells, the header {len(header)}")
        for name, cell in zip(header, row, strict=True):
            try:
                history[name].append(None if cell == "" else int(cell) if name == "epoch" else float(cell))
            except ValueError as error:
                raise ValueError(f"row {number}, {name}: {cell!r} is no number") from error
    return history


def _to_json(history: Mapping[str, Column]) -> str:
    def plain(value: int | float | None) -> int | float | str | None:
        return value if value is None or math.isfinite(value) else repr(value)

    columns = {name: [plain(value) for value in column] for name, column in history.items()}
    return json.dumps(columns, indent=1) + "\n"


def _from_json(text: str) -> dict[str, Column]:
    columns = json.loads(text)
    if not isinstance(columns, dict) or not all(isinstance(column, list) for column in columns.values()):
        raise ValueError("it must hold an object of lists")

    def number(name: str, value: object) -> int | float | None:
        if value is None or type(value) in (int, float):
            return value
        if value in ("nan", "inf", "-inf"):
            return float(value)
        raise ValueError(f"{name}: {value!r} is no number")

    return {name: [number(name, value) for value in column] for name, column in columns.items()}
