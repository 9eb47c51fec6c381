"""What came of a training run? First, last and best value of every metric.

Book: chapter 12.
"""

import math
from collections.abc import Callable, Mapping

from jepa_lab.history_files import Column
from jepa_lab.tables import Table
from jepa_lab.training_history import best, span


class Summary(Table):
    """A table whose text has straight columns, for a terminal."""

    def __repr__(self) -> str:
        lines = [self.header, *(cells for _, cells in self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

        def line(cells: list[str]) -> str:
            rest = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
            return "  ".join([cells[0].ljust(widths[0]), *rest])

        return "\n".join([*map(line, lines), "", self.caption])


def summarise(history: Mapping[str, Column], higher: Callable[[str], bool | None]) -> Summary:
    """A row per metric; `higher(name)` says which end is best, None for neither.

    The last column, of the epochs at which a metric was NaN or infinite, is there only if there are any.
    """
    rows, broken = [], {}
    for name in (name for name in history if name != "epoch"):
        there = [(e, value) for e, value in zip(history["epoch"], history[name], strict=True) if value is not None]
        broken[name] = ", ".join(str(epoch) for epoch, value in there if not math.isfinite(value))
        cells = [name, _number(there[0][1]), _number(there[-1][1]), "–", "–"]
        if higher(name) is not None and any(math.isfinite(value) for _, value in there):
            epoch, value = best(history, name, higher(name))
            cells[3:] = [f"{'↑' if higher(name) else '↓'} {_number(value)}", str(epoch)]
        rows.append(cells)
    header = ["metric", "first", "last", "best", "at epoch"]
    if any(broken.values()):
        header.append("not finite at epoch")
        rows = [[*cells, broken[cells[0]] or "–"] for cells in rows]
    caption = f"{span(history['epoch'])}. Best: ↓ lowest, ↑ highest."
    return Summary(header, [(False, cells) for cells in rows], caption)


def _number(value: float) -> str:
    return f"{value:.4g}"
