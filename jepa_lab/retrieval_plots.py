"""Was the right source found? The retrieval problem as a map, ranks without and with steering, and recall by method.

Book: chapter 12.
"""

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from jepa_lab.style import COLORS, Array, array, figure
from jepa_lab.tables import mean_sd

# A topic has a colour and a shape, so that it is told apart without colours too.
_TOPICS = (("#0072B2", "o"), ("#E69F00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#56B4E9", "v"), ("#882255", "P"))
_OTHER, _CONTROL, _TEXT = "#C9C9C9", "#6E6E6E", "#333333"
# Numbers beside a dot, on white: the grid must not strike them through.
_BESIDE = {
    "textcoords": "offset points",
    "va": "center_baseline",
    "color": _TEXT,
    "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 1},
}
BETTER, WORSE, SAME = COLORS["JEPA"], COLORS["contrastive"], "#6E6E6E"


def plot_neighbourhood(
    ax: Axes | None,
    points: Array,
    topics: Sequence[str],
    question: Array | None = None,
    prediction: Array | None = None,
    right: int | None = None,
    highlight: Sequence[str] = (),
    legend: bool = True,
    title: str = "",
    axes: tuple[str, str] = ("first principal component", "second"),
) -> Axes:
    """Draw sources as dots, a question as a star, an arrow from it to the prediction, and a ring around the right one.

    The topics of `highlight` are coloured, all other sources are grey. What is close in two dimensions need not be so
    in all of them: show it for the idea, and measure the ranks.

    Args:
        ax: where to draw; None makes a figure, which is `.figure` of what comes back.
        right: row of the right source.
        axes: what the two axes are.

    Shapes: points [n, 2], topics [n], question [2], prediction [2], in the same coordinates.
    Raises: ValueError if shapes do not fit, a topic is unknown or more than six are highlighted, or a prediction comes
        without its question.
    Book: chapter 12.
    """
    p = array(points)
    if p.ndim != 2 or p.shape[1] != 2 or len(topics) != len(p) or not len(p):
        raise ValueError(f"points must be [n, 2] and topics [n], got {p.shape} and {len(topics)} topics")
    names = np.array([str(topic) for topic in topics])
    chosen = [str(topic) for topic in highlight]
    unknown = sorted(set(chosen) - set(names))
    if unknown or len(chosen) > len(_TOPICS):
        raise ValueError(f"highlight must be at most {len(_TOPICS)} of the topics, got {unknown or len(chosen)}")
    if right is not None and not 0 <= right < len(p):
        raise ValueError(f"right must be a row of the {len(p)} points, got {right}")
    if prediction is not None and question is None:
        raise ValueError("prediction needs the question that it starts from")
    places = {"question": question, "prediction": prediction}
    ends = {name: array(place) for name, place in places.items() if place is not None}
    if any(end.shape != (2,) for end in ends.values()):
        raise ValueError(f"question and prediction must be [2], got {[end.shape for end in ends.values()]}")

    if ax is None:
        _, [[ax]] = figure(height=4.2)
    others = p[~np.isin(names, chosen)]
    if len(others):
        label = "other sources" if chosen else "sources"
        ax.plot(*others.T, "o", color=_OTHER, markersize=3.5, markeredgewidth=0, label=label)
    for topic, (tint, shape) in zip(chosen, _TOPICS, strict=False):
        ax.plot(
            *p[names == topic].T, shape, color=tint, markersize=5.5, markeredgecolor="white", markeredgewidth=0.5,
            label=topic,
        )  # fmt: skip
    if right is not None:
        tint, shape = _TOPICS[chosen.index(names[right])] if names[right] in chosen else (_TEXT, "o")
        # Once more on top, where neither a neighbour nor the head of the arrow covers it.
        ax.plot(*p[right, :, None], shape, color=tint, markersize=5.5, markeredgecolor="white", zorder=7)
        ring = {"color": "black", "markersize": 14, "markerfacecolor": "none", "markeredgewidth": 1.6}
        ax.plot(*p[right, :, None], "o", zorder=4, label="the right source", **ring)
    if prediction is not None:
        head = {"arrowstyle": "-|>", "color": "black", "linewidth": 1.5, "shrinkA": 6, "shrinkB": 0}
        ax.annotate("", ends["prediction"], ends["question"], arrowprops=head, annotation_clip=False, zorder=5)
        # An annotation does not widen the axes; a point that is not seen does.
        ax.plot(*ends["prediction"][:, None], marker="", linestyle="none")
    if question is not None:
        star = {"color": "black", "markersize": 15, "markeredgecolor": "white"}
        ax.plot(*ends["question"][:, None], "*", zorder=6, label="question", **star)
    ax.set(xlabel=axes[0], ylabel=axes[1], title=title)
    ax.set_aspect("equal", adjustable="datalim")
    if legend:
        handles = ax.get_legend_handles_labels()[0]
        if prediction is not None:
            arrow = {"marker": r"$\rightarrow$", "color": "black", "linestyle": "none", "markersize": 13}
            handles.append(Line2D([], [], label="question to prediction", **arrow))
        keys = ax.figure.legend(handles=handles, loc="outside right upper")
        for key in keys.legend_handles:  # the ring and the star are larger than a line of text
            key.set_markersize(min(key.get_markersize(), 10))
    return ax


def plot_rank_bars(
    labels: Sequence[str],
    ranks_before: Array,
    ranks_after: Array,
    names: tuple[str, str] = ("without steering", "with steering"),
    pool: int | None = None,
    title: str = "",
) -> Figure:
    """Draw the rank of the right source before (hollow) and after (filled), a bar between them, on a logarithmic axis.

    A case that got worse has another colour. Cases stand in the order given, the first on top.

    Args:
        pool: the number of sources that were ranked, for the label of the axis.

    Shapes: labels [n], ranks_before [n], ranks_after [n], from 1; halves come from averaged ties.
    Raises: ValueError if the lengths differ, or a rank is below 1, above the pool or not finite.
    Book: chapter 12.
    """
    before, after = array(ranks_before), array(ranks_after)
    if before.ndim != 1 or not before.shape == after.shape == (len(labels),) or not len(labels):
        raise ValueError(f"ranks must be as many as labels ({len(labels)}), got {before.shape} and {after.shape}")
    for name, ranks in (("ranks_before", before), ("ranks_after", after)):
        wrong = ranks[~((ranks >= 1) & (ranks <= (pool or math.inf)) & np.isfinite(ranks))]
        if len(wrong):
            raise ValueError(f"{name} must lie between 1 and {pool or 'the size of the pool'}, got {wrong[0]:g}")

    fig, [[ax]] = figure(height=0.34 * len(labels) + 1.15)
    for place, (old, new) in enumerate(zip(before, after, strict=True)):
        tint = BETTER if new < old else WORSE if new > old else SAME
        ax.plot([old, new], [place, place], color=tint, linewidth=2.2, solid_capstyle="butt", zorder=2)
        ax.plot(old, place, "o", color=tint, markerfacecolor="white", markersize=7, markeredgewidth=1.5, zorder=3)
        ax.plot(new, place, "o", color=tint, markersize=7, zorder=4)
        # Numbers outside the bar; one is enough where nothing moved.
        low, high = sorted((old, new))
        ax.annotate(f"{high:g}", (high, place), (9, 0), **_BESIDE)
        if low < high:
            ax.annotate(f"{low:g}", (low, place), (-9, 0), ha="right", **_BESIDE)
    ax.set_xscale("log")
    top = max(before.max(), after.max())
    ax.set_xlim(0.55, max(top, 10) * max(2.2, top**0.13))  # room for the number, which lengthens with its digits
    ax.xaxis.set_major_locator(LogLocator(subs=(1,) if top > 300 else (1, 2, 5)))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_locator(NullLocator())
    among = f" among {pool:,}" if pool else ""
    ax.set(xlabel=f"rank of the right source{among}: lower is better, 1 is found first", title=title)
    ax.set_yticks(range(len(labels)), [str(label) for label in labels])
    ax.set_ylim(len(labels) - 0.4, -0.6)
    _bare_left(ax)
    keys = [Line2D([], [], marker="o", linestyle="none", color=SAME, markerfacecolor="white", label=names[0])]
    keys += [Line2D([], [], marker="o", linestyle="none", color=SAME, label=names[1])]
    for tint, label, there in ((BETTER, "better", after < before), (WORSE, "worse", after > before)):
        if there.any():
            keys.append(Line2D([], [], color=tint, linewidth=2.2, label=label))
    fig.legend(handles=keys, loc="outside lower center", ncols=len(keys))
    return fig


def plot_recall_rows(
    rows: Sequence[Mapping],
    metric: str = "recall@10",
    ours: Collection[str] | None = None,
    label: str = "method",
    percent: bool = True,
    title: str = "",
) -> Figure:
    """Draw one metric of each row as a dot with a bar of one standard deviation and its value as text.

    Methods of `ours` are filled and coloured, by default those whose name starts with JASPER; all others are controls,
    hollow, grey and in italics. Rows stand in the order given, the first on top.

    Shapes: rows `{label: name, "mean": m, "sd": s}`, sd missing or None for a single run; or `{label: name, metric:
        number or one number per split}`, from which both are computed. Shares with `percent`: 0.81 is shown as 81.0.
    Raises: ValueError if there are no rows, or a row has neither.
    Book: chapter 12.
    """
    if not rows:
        raise ValueError("rows must not be empty")
    values = [_mean_sd(row, metric, label) for row in rows]
    factor, digits = (100, 1) if percent else (1, 3)
    fig, [[ax]] = figure(height=0.32 * len(rows) + 0.75)
    names = [str(row[label]) for row in rows]
    own = [name.upper().startswith("JASPER") if ours is None else name in ours for name in names]
    for place, ((mean, sd), mine) in enumerate(zip(values, own, strict=True)):
        tint = COLORS["JEPA"] if mine else _CONTROL
        mean, spread = factor * mean, factor * (sd or 0.0)
        ax.errorbar(mean, place, xerr=spread if sd is not None else None, color=tint, linewidth=1.6)
        ax.plot(mean, place, "o", color=tint, markerfacecolor=tint if mine else "white", markersize=7)
        text = f"{mean:.{digits}f}" + (f" ± {spread:.{digits}f}" if sd is not None else "")
        ax.annotate(text, (mean + spread, place), (10, 0), **_BESIDE)
    ax.set_yticks(range(len(rows)), names)
    for tick, mine in zip(ax.get_yticklabels(), own, strict=True):
        tick.set_fontstyle("normal" if mine else "italic")
    ax.set(xlabel=f"{metric} (%)" if percent else metric, ylim=(len(rows) - 0.4, -0.6), title=title)
    _bare_left(ax)
    # Room for the text to the right of the last dot.
    low, high = ax.get_xlim()
    ax.set_xlim(low, high + 0.22 * (high - low))
    if percent:  # the room must not look as if there were more than 100 %
        ax.set_xticks([tick for tick in ax.get_xticks() if low <= tick <= 100])
    return fig


def _mean_sd(row: Mapping, metric: str, label: str) -> tuple[float, float | None]:
    if row.get("mean") is not None:
        sd = row.get("sd")
        return float(row["mean"]), None if sd is None else float(sd)
    if row.get(metric) is None:
        raise ValueError(f"rows must have mean and sd, or {metric!r}, got {row.get(label)!r} with {', '.join(row)}")
    mean, sd = mean_sd(row[metric])
    return float(mean), float(sd) if np.size(row[metric]) > 1 else None


def _bare_left(ax: Axes) -> None:
    """Names instead of an axis on the left."""
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)
