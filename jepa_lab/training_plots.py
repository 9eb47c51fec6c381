"""How did the training go? Small panels of the losses over the epochs, and what the questions were steered with.

Book: chapter 12.
"""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from jepa_lab.files import write_atomic
from jepa_lab.metric_names import STEERING, VALIDATION, is_loss, split_of
from jepa_lab.style import COLORS, figure, palette

History = Mapping[str, Sequence[int | float | None]]

_SPLITS = {
    "train": {"color": COLORS["JEPA"], "linestyle": "solid"},
    "validation": {"color": COLORS["contrastive"], "linestyle": "dashed"},
}
_COLUMNS = 3
# A logarithmic axis helps when the largest value is this many times the smallest; below, it only bends the curve.
_LOG_RATIO = 20.0
VARIANTS = {"zero": "#B5B5B5", "centroid": "#0072B2", "keyword": "#009E73", "residual": "#E69F00"}


def losses(history: History, names: Sequence[str] | None = None) -> Figure:
    """Draw one small panel per loss over the epochs, training solid and validation dashed.

    `names` are the panels, without `validation/`; by default the total and all that `is_loss` knows. Missing values
    are bridged, since validation may come every few epochs; where a value is not finite the line breaks and a cross
    stands on the axis. The axis is logarithmic where a loss is positive and spans a factor of 20.

    Shapes: history `{"epoch": [T], name: [T]}`, None where a value is missing.
    Raises: ValueError if there is no loss, or a name that was never logged.
    Book: chapter 12.
    """
    logged = list(dict.fromkeys(split_of(name)[1] for name in history if name != "epoch"))
    if names is None:
        known = [name for name in logged if is_loss(name)]
        names = sorted(known, key=lambda name: name not in ("loss", "total", "total_loss"))  # the total stands first
    unknown = [name for name in names if name not in logged]
    if unknown or not names:
        raise ValueError(f"names must be losses among {', '.join(logged) or 'nothing logged'}, got {unknown or 'none'}")

    columns = min(_COLUMNS, len(names))
    rows = math.ceil(len(names) / columns)
    fig, axes = figure(rows, columns, height=1.75 * rows + 0.5)
    for i, (ax, name) in enumerate(zip(axes.flat, names, strict=False)):
        for split, prefix in (("train", ""), ("validation", VALIDATION)):
            if prefix + name in history:
                _line(ax, history["epoch"], history[prefix + name], split)
        _scale(ax)
        ax.set(title=name, xlabel="epoch" if i + columns >= len(names) else "", ylabel="" if i % columns else "loss")
        _epochs(ax, history["epoch"])
    for ax in axes.flat[len(names) :]:
        ax.set_axis_off()
    # Always there: a solid line alone would not say that it is training.
    keys = {line.get_label(): line for ax in reversed(fig.axes) for line in ax.get_lines()}
    shown = [name for name in (*_SPLITS, "not finite") if name in keys]
    fig.legend([keys[name] for name in shown], shown, loc="outside lower center", ncols=3, handlelength=2.8)
    return fig


def _line(ax: Axes, epochs: Sequence[int | float | None], values: Sequence[int | float | None], split: str) -> None:
    there = [(epoch, value) for epoch, value in zip(epochs, values, strict=True) if value is not None]
    x, y = np.array(there, dtype=float).reshape(-1, 2).T
    finite = np.isfinite(y)
    padded = np.concatenate([[False], finite, [False]])
    # A point without a neighbour has no line: it needs a marker, or it would not be seen.
    alone = [i for i in range(len(y)) if len(y) <= 12 or not (padded[i] or padded[i + 2])]
    style = _SPLITS[split]
    ax.plot(x, np.where(finite, y, np.nan), marker="o", markersize=3.5, markevery=alone, label=split, **style)
    if not finite.all():
        # On the axis itself, where no curve runs; it may stand half outside the panel.
        ax.plot(
            x[~finite],
            np.zeros((~finite).sum()),
            "x",
            color=style["color"],
            transform=ax.get_xaxis_transform(),
            markeredgewidth=1.6,
            clip_on=False,
            zorder=3,
            label="not finite",
        )


def _scale(ax: Axes) -> None:
    """A logarithmic axis where it helps, and no drama in a curve that hardly moves."""
    drawn = [line.get_ydata() for line in ax.get_lines() if line.get_label() in _SPLITS]
    y = np.concatenate(drawn)
    y = y[np.isfinite(y)]
    if not len(y):
        ax.set_yticks([])
        return
    low, high = y.min(), y.max()
    if low > 0 and high / low >= _LOG_RATIO:
        ax.set_yscale("log")
        if high / low < 1000:
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter(NullFormatter())
        return
    middle, span = (low + high) / 2, high - low
    least = 0.01 * abs(middle)
    if span < least:  # else rounding in the seventh digit would fill the panel
        ax.set_ylim(middle - least, middle + least)


def _epochs(ax: Axes, epochs: Sequence[int | float | None]) -> None:
    """Whole numbers on the axis, the same range in every panel, and room around a single epoch."""
    first, last = epochs[0], epochs[-1]
    edge = 0.5 if first == last else 0.04 * (last - first)
    ax.set_xlim(first - edge, last + edge)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1, steps=(1, 2, 5, 10)))


def steering_shares(history: History) -> tuple[list[int], dict[str, list[float]]]:
    """The epochs with shares of steering variants, and the share of each variant there; one that is absent has 0.

    Raises: ValueError if none was logged, a share lies outside [0, 1], or those of an epoch do not sum to 1 +- 1e-3.
    """
    columns = {name.removeprefix(STEERING): values for name, values in history.items() if name.startswith(STEERING)}
    if not columns:
        known = ", ".join(STEERING + variant for variant in VARIANTS)
        raise ValueError(f"no steering share was logged: metrics named {known} are needed")
    order = [name for name in VARIANTS if name in columns] + [name for name in columns if name not in VARIANTS]
    epochs: list[int] = []
    shares: dict[str, list[float]] = {name: [] for name in order}
    for i, epoch in enumerate(history["epoch"]):
        row = {name: columns[name][i] for name in order}
        if all(value is None for value in row.values()):
            continue
        given = {name: 0.0 if value is None else float(value) for name, value in row.items()}
        total = sum(given.values())
        # "not all" of what must hold, so that NaN is refused too
        if not all(-1e-3 <= value <= 1 + 1e-3 for value in given.values()) or abs(total - 1) > 1e-3:
            said = ", ".join(f"{STEERING}{name} {value:.4g}" for name, value in given.items())
            raise ValueError(
                f"steering shares of epoch {epoch} must lie in [0, 1] and sum to 1, got {said}: {total:.4g}"
            )
        epochs.append(epoch)
        for name, value in given.items():
            shares[name].append(value)
    return epochs, shares


def steering_distribution(history: History) -> Figure:
    """Draw the share of each steering variant per epoch as stacked areas.

    Shapes: history `{"epoch": [T], "steering/VARIANT": [T]}`, None where a value is missing.
    Raises: ValueError as `steering_shares`.
    Book: chapter 12.
    """
    epochs, shares = steering_shares(history)
    others = [name for name in shares if name not in VARIANTS]
    tints = VARIANTS | dict(zip(others, palette(others), strict=True))
    fig, [[ax]] = figure(height=2.8)
    x, heights = list(epochs), [list(values) for values in shares.values()]
    if len(x) == 1:  # an area needs a width
        x, heights = [x[0] - 0.5, x[0] + 0.5], [values * 2 for values in heights]
    areas = ax.stackplot(
        x, heights, labels=list(shares), colors=[tints[name] for name in shares], edgecolor="white", linewidth=0.8
    )
    ax.set(xlabel="epoch", ylabel="share of the questions", ylim=(0, 1), xlim=(x[0], x[-1]))
    ax.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1, steps=(1, 2, 5, 10)))
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    # Reversed: the first area lies at the bottom, and the legend is read from the top.
    fig.legend(areas[::-1], list(shares)[::-1], loc="outside right center", title="steering")
    return fig


def saved(fig: Figure, path: str | Path | None) -> Figure:
    """Save a figure, whole or not at all, in the format that the suffix says (PNG without one); None saves nothing.

    Raises: ValueError for a format that Matplotlib does not know; OSError if the file cannot be written.
    """
    if path is not None:
        picture = io.BytesIO()
        fig.savefig(picture, format=Path(path).suffix[1:] or "png")
        write_atomic(Path(path), picture.getvalue())
    return fig
