"""What does a collapse report say, and how does it look? Numbers, a verdict, and the reasons for it.

Book: chapter 06.
"""

import math
from dataclasses import dataclass, field, fields
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from jepa_lab.verdicts import Evidence

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What each number means, and where it stands when all is well.
_MEANING = {
    "std": "standard deviation of a feature (root mean square); no value is right by itself",
    "normalized_std": "the same on the unit sphere, times the root of D; 0 collapsed, 1 spread evenly",
    "mean_cosine": "cosine of two different rows; 1 collapsed, 0 spread evenly",
    "mean_norm_ratio": "length of the mean row over that of the rows; 1 if a constant offset is all",
    "effective_rank": "directions that the centred rows use; blind to scale and offset",
    "rankme": "the same on rows that are not centred",
    "alpha": "how fast the eigenvalues fall; near 1 in good vision networks",
    "alpha_r2": "how well a power law describes them",
    "uniformity": "spread on the sphere; 0 collapsed, -4 spread evenly in many dimensions",
    "alignment": "squared distance of two views on the sphere; 0 the same, 2 unrelated",
    "lidar": "directions that tell samples apart, against how much views differ",
}


@dataclass(frozen=True, eq=False)
class CollapseReport:
    """The outcome of `metrics.diagnose`.

    `verdict` is one of `verdicts.VERDICTS`, `reasons` are the sentences with the measured values and the thresholds,
    `notes` say what else one should know. `evidence` is what the verdict rests on, measured with far-off rows pulled
    in; the other numbers are measured on the rows as they are, and are NaN where they were not asked for.
    `spectrum` [k], `feature_stds` [D] and `similarity` [m, m] (cosines of the first m rows) are what `plot` draws.

    Book: chapter 06.
    """

    verdict: str
    reasons: list[str]
    notes: list[str]
    evidence: Evidence
    std: float = math.nan
    normalized_std: float = math.nan
    mean_cosine: float = math.nan
    mean_norm_ratio: float = math.nan
    effective_rank: float = math.nan
    rankme: float = math.nan
    alpha: float = math.nan
    alpha_r2: float = math.nan
    uniformity: float = math.nan
    alignment: float = math.nan
    lidar: float = math.nan
    spectrum: np.ndarray = field(default_factory=lambda: np.zeros(0), repr=False)
    feature_stds: np.ndarray = field(default_factory=lambda: np.zeros(0), repr=False)
    similarity: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)), repr=False)

    @property
    def healthy(self) -> bool:
        return self.verdict == "healthy"

    def numbers(self) -> dict[str, float]:
        """The numbers that were measured, by name."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name in _MEANING}
        return {name: value for name, value in values.items() if not math.isnan(value)}

    def _size(self) -> str:
        return f"{self.evidence.rows} rows of {self.evidence.dim} features"

    def __str__(self) -> str:
        lines = [f"{self.verdict}  ({self._size()})", *(f"  {reason}" for reason in self.reasons)]
        lines += [f"  note: {note}" for note in self.notes]
        lines += [f"  {name:<16}{_number(value):>9}  {_MEANING[name]}" for name, value in self.numbers().items()]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<CollapseReport: {self.verdict}, {self._size()}>"

    def _repr_html_(self) -> str:
        # Colours are those of the text, so that the report is right on a dark page too.
        pad, rule = "padding:.2em .8em;text-align:", "border-bottom:1px solid currentColor"
        head = "".join(
            f'<th scope="col" style="{pad}{side};{rule}">{name}</th>'
            for name, side in (("number", "left"), ("value", "right"), ("meaning", "left"))
        )
        body = "".join(
            f'<tr><th scope="row" style="{pad}left;font-weight:normal">{escape(name)}</th>'
            f'<td style="{pad}right">{_number(value)}</td><td style="{pad}left">{escape(_MEANING[name])}</td></tr>'
            for name, value in self.numbers().items()
        )
        said = "".join(f"<li>{escape(reason)}</li>" for reason in self.reasons)
        said += "".join(f"<li><em>Note:</em> {escape(note)}</li>" for note in self.notes)
        table = (
            '<table style="border-collapse:collapse;font-variant-numeric:tabular-nums">'
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        )
        return (
            f'<div class="jepa-report"><p><strong>{escape(self.verdict)}</strong> ({self._size()})</p>'
            f"<ul>{said}</ul>{table if body else ''}</div>"
        )

    def plot(self) -> "Figure":
        """Draw the spectrum, the standard deviations of the features, and the similarities of the first rows.

        Raises: ValueError when there were too few rows to measure anything.
        Book: chapter 06.
        """
        from jepa_lab.style import COLORS, figure  # here, since drawing stands at the other end of the import graph

        if not len(self.spectrum):
            raise ValueError(f"nothing to draw: {' '.join(self.reasons)}")
        fig, axes = figure(1, 3, height=2.6)
        left, middle, right = axes.flat
        tint = COLORS["JEPA"]

        share = self.spectrum / (self.spectrum[0] or 1.0)
        left.plot(
            np.arange(1, len(share) + 1), np.maximum(share, 1e-8), color=tint, marker="." if len(share) < 20 else ""
        )
        left.set(yscale="log", xlabel="index of the dimension", title="singular value / largest")
        left.set_ylim(bottom=min(0.05, max(share[-1], 1e-8) / 2))  # a flat spectrum should look flat
        middle.hist(self.feature_stds, bins=20, range=(0, 1.05 * self.feature_stds.max() or 1.0), color=tint)
        middle.set(xlabel="std of a feature", title="number of features")
        image = right.imshow(self.similarity, cmap="RdBu_r", vmin=-1, vmax=1)
        right.set(xlabel="row", title="cosine similarity")
        right.grid(False)
        fig.colorbar(image, ax=right, shrink=0.8).outline.set_visible(False)
        fig.suptitle(self.verdict)
        return fig


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.3e}"
