"""What did every method reach? The results table with its control rows, as HTML and as Markdown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit
from torch import Tensor

from jepa_lab.probes import CONTROLS


def mean_sd(values: Tensor | np.ndarray | Sequence | float) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation over the first axis, the S runs.

    ``sd^2 = sum (x - mean)^2 / (S - 1)``, and 0 for a single run.

    Shapes: values [S, ...] or a number -> two arrays [...].
    Book: chapter 01.
    """
    x = values.detach().cpu().double().numpy() if isinstance(values, Tensor) else np.asarray(values, dtype=float)
    x = x[None] if x.ndim == 0 else x
    return np.asarray(x.mean(0)), np.asarray(x.std(0, ddof=1) if len(x) > 1 else np.zeros(x.shape[1:]))


class Interval(NamedTuple):
    """The mean of some differences and its confidence interval; `str` of it is "+1.2 [-0.3, +2.7]"."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return self.text()

    def text(self, factor: float = 1.0, digits: int = 1) -> str:
        """Each number times `factor` (100 for points of shares), with its sign."""
        mean, low, high = (f"{factor * value:+.{digits}f}" for value in self)
        return f"{mean} [{low}, {high}]"


def paired_interval(
    a: np.ndarray | Sequence[float], b: np.ndarray | Sequence[float], confidence: float = 0.95
) -> Interval:
    """How much higher is `a` than `b` over runs that share their seeds? Student's t on the differences.

    ``mean(d) -+ t(confidence, S - 1) sd(d) / sqrt(S)`` with ``d = a - b``. What a seed does to both, such as the
    choice of labels, cancels in the differences. The runs must stand in the same order of seeds.

    Shapes: a, b [S], one number a seed, S >= 2.
    Raises: ValueError for other numbers of runs in a and b, fewer than two, values that are not finite, or a
        confidence outside (0, 1).
    Paper: Student, The probable error of a mean, Biometrika 1908.
    Book: chapters 10, 11.
    """
    a, b = (np.asarray(values, dtype=float) for values in (a, b))
    if a.shape != b.shape or a.ndim != 1 or len(a) < 2:
        raise ValueError(
            f"a and b must hold one number for each of the same two or more seeds, got {a.shape}, {b.shape}"
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("a and b must be finite: leave out a seed in both, and say so, where a run has no number")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence}")
    mean, sd = (float(value) for value in mean_sd(a - b))
    half = float(stdtrit(len(a) - 1, (1 + confidence) / 2)) * sd / len(a) ** 0.5
    return Interval(mean, mean - half, mean + half)


@dataclass(frozen=True)
class Table:
    """A finished table: header, rows of (is control, cells), and a caption; ``**`` marks the best cells."""

    header: list[str]
    rows: list[tuple[bool, list[str]]]
    caption: str

    def __repr__(self) -> str:
        lines = [f"| {' | '.join(self.header)} |", "|:--" + "|--:" * (len(self.header) - 1) + "|"]
        for control, cells in self.rows:
            first = f"*{cells[0]}*" if control else cells[0]
            lines.append(f"| {' | '.join([first, *cells[1:]])} |")
        return "\n".join([*lines, "", self.caption])

    def _repr_html_(self) -> str:
        # Borders take the colour of the text, so that the table is right on a dark page too.
        rule = "border-bottom:1px solid currentColor"
        pad = "padding:.3em .9em;text-align:"
        head = "".join(
            f'<th scope="col" style="{pad}{"left" if i == 0 else "right"};{rule}">{escape(name)}</th>'
            for i, name in enumerate(self.header)
        )
        parts = []
        for control in (True, False):
            lines = []
            for _, cells in (row for row in self.rows if row[0] == control):
                slant = "italic" if control else "normal"
                style = f"{pad}left;font-weight:normal;font-style:{slant}"
                name = f'<th scope="row" style="{style}">{escape(cells[0])}</th>'
                lines.append(f"<tr>{name}{''.join(_cell(text, pad, slant) for text in cells[1:])}</tr>")
            if lines:
                kind = "jepa-controls" if control else "jepa-methods"
                parts.append(f'<tbody class="{kind}" style="{rule}">{"".join(lines)}</tbody>')
        below = "caption-side:bottom;text-align:left;padding-top:.4em"
        style = "border-collapse:collapse;font-variant-numeric:tabular-nums"
        return (
            f'<table class="jepa-table" style="{style}">'
            f'<caption style="{below}">{escape(self.caption)}</caption>'
            f"<thead><tr>{head}</tr></thead>{''.join(parts)}</table>"
        )


def _cell(text: str, pad: str, slant: str) -> str:
    shown = f"<strong>{escape(text[2:-2])}</strong>" if text.startswith("**") else escape(text)
    return f'<td style="{pad}right;white-space:nowrap;font-style:{slant}">{shown}</td>'


def table(
    rows: Sequence[Mapping],
    metrics: Sequence[str] | None = None,
    label: str = "method",
    units: Mapping[str, str] | None = None,
    lower: Sequence[str] = (),
    digits: int | Mapping[str, int] = 1,
    caption: str = "",
    bold: Sequence[str] | None = None,
) -> Table:
    """Tabulate ``mean ± s.d.`` per method and metric, controls apart, the best other row of a column bold.

    A metric is a number, or one number per seed. Its unit is "%" unless ``units`` says otherwise
    (``{"rank": ""}``), and a value in % is given as a share: 0.81 becomes 81.0. ``digits`` are decimals, for all
    metrics or for some (``{"std": 2}``, the others 1). ``lower`` names the metrics
    of which less is better.

    ``bold`` names the metrics whose best row is set in bold, all by default: leave out those of which more is not
    better.

    Raises: ValueError if there are no rows, a row lacks its label, or no row has a metric.
    Book: every chapter.
    """
    if not rows or any(label not in row for row in rows):
        raise ValueError(
            f"rows must be a non-empty list of dicts that all have the key {label!r}, got {len(rows)} rows"
        )
    if metrics is None:
        metrics = list(dict.fromkeys(key for row in rows for key in row if key != label))
    for name in [*metrics, *lower]:
        if all(row.get(name) is None for row in rows):
            known = sorted({key for row in rows for key in row} - {label})
            raise ValueError(f"metrics must be among {', '.join(known)}, got {name!r}")
    units = {name: (units or {}).get(name, "%") for name in metrics}
    places = digits if isinstance(digits, Mapping) else dict.fromkeys(metrics, digits)
    cells: list[tuple[bool, list[str]]] = [(str(row[label]) in CONTROLS, [str(row[label])]) for row in rows]
    runs = set()
    for name in metrics:
        factor, decimals = 100 if units[name] == "%" else 1, places.get(name, 1)
        means: dict[int, float] = {}
        for i, row in enumerate(rows):
            if row.get(name) is None:
                cells[i][1].append("–")
                continue
            mean, sd = (float(v) * factor for v in mean_sd(row[name]))
            number = np.size(row[name])
            means[i] = round(mean, decimals)  # ties that the reader cannot see are ties
            cells[i][1].append(f"{mean:.{decimals}f}" + (f" ± {sd:.{decimals}f}" if number > 1 else ""))
            if not cells[i][0]:
                runs.add(number)
        ranked = [value for i, value in means.items() if not cells[i][0] and np.isfinite(value)]
        best = (min if name in lower else max)(ranked, default=None)
        for i, value in means.items():
            marked = bold is None or name in bold
            if marked and len(ranked) > 1 and not cells[i][0] and value == best:
                cells[i][1][-1] = f"**{cells[i][1][-1]}**"
    header = [label, *(f"{name} ({unit})" if unit else name for name, unit in units.items())]
    seeds = (
        "One seed." if runs == {1} else f"Mean ± s.d. over {'/'.join(map(str, sorted(runs)))} seeds." if runs else ""
    )
    notes = [caption, seeds, "Italic: controls." if any(c for c, _ in cells) else ""]
    return Table(header, cells, " ".join(note for note in notes if note))
