"""Where does the time go, and how much of it must? Figures of profiles, races and blocks.

Book: appendix A1.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from jepa_lab.style import figure

# The readable form, the fast one, and those that they are measured with: one colour each in all figures of speed.
FORMS = {"lightly": "#8C8C8C", "dense": "#E69F00", "fused": "#0072B2", "limit": "#000000"}
TINTS = ("#0072B2", "#E69F00", "#CC79A7", "#000000", "#B5B5B5", "#009E73", "#56B4E9")

Span = tuple[str, float, float]


def timeline(stages: Sequence[Span], operations: Sequence[Span], narrow: float = 0.07) -> Figure:
    """Draw a profile over time: the stages as labelled boxes, and below them the operations, coloured by their kind,
    the most costly kind first.

    The label of a stage that takes less than the share `narrow` of the whole stands above its box.

    Shapes: stages and operations are (name, start, end) in seconds; operations with their kind as the name.
    Raises: ValueError if there are no stages, or more kinds than colours.
    Book: appendix A1.
    """
    spent: dict[str, float] = {}
    for kind, start, end in operations:
        spent[kind] = spent.get(kind, 0.0) + end - start
    kinds = sorted(spent, key=lambda kind: -spent[kind])
    if not stages or len(kinds) > len(TINTS):
        raise ValueError(
            f"stages must not be empty and kinds at most {len(TINTS)}, got {len(stages)} stages and {len(kinds)} kinds"
        )
    origin = min(start for _, start, _ in stages)
    whole = (max(end for _, _, end in stages) - origin) * 1e3
    fig, [[ax]] = figure(height=2.7)
    for name, start, end in stages:
        x, width = (start - origin) * 1e3, (end - start) * 1e3
        ax.broken_barh([(x, width)], (1.1, 0.8), facecolor="#F2F2F2", edgecolor="#888888", linewidth=0.8)
        if width > narrow * whole:
            ax.text(x + width / 2, 1.5, name.replace(" ", "\n"), ha="center", va="center", fontsize=8)
        else:
            ax.text(x + width / 2, 2.0, name, rotation=60, fontsize=8)
    for kind, tint in zip(kinds, TINTS, strict=False):
        spans = [((start - origin) * 1e3, (end - start) * 1e3) for k, start, end in operations if k == kind]
        ax.broken_barh(spans, (0, 0.9), facecolor=tint, label=kind)
    ax.set(xlabel="time (ms)", yticks=[0.45, 1.5], yticklabels=["operations", "stages"], ylim=(0, 2.9))
    ax.set_xlim(-0.01 * whole, 1.03 * whole)
    ax.grid(False)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    fig.legend(loc="outside lower center", ncols=5, fontsize=8, handlelength=1, columnspacing=1)
    return fig


def stacked(charts: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Figure:
    """Draw stacked bars side by side, a panel for each title, a bar for each row, a piece for each part.

    Shapes: charts ``{title: {row: {part: value}}}``, the same rows in all panels.
    Raises: ValueError if the panels have other rows.
    Book: appendix A1.
    """
    rows = list(next(iter(charts.values())))
    if any(list(chart) != rows for chart in charts.values()):
        raise ValueError(f"charts must have the same rows in all panels, the first has {rows}")
    fig, [axes] = figure(1, len(charts), height=0.24 * len(rows) + 1.4)
    for ax, (title, chart) in zip(axes, charts.items(), strict=True):
        parts = list(dict.fromkeys(part for row in chart.values() for part in row))
        start = [0.0] * len(rows)
        for part, tint in zip(parts, TINTS, strict=False):
            width = [chart[row].get(part, 0.0) for row in rows]
            ax.barh(rows, width, left=start, color=tint, label=part, height=0.7)
            start = [a + b for a, b in zip(start, width, strict=True)]
        ax.set_title(title)
        ax.invert_yaxis()
        ax.tick_params(axis="y", length=0)
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2, fontsize=8, handlelength=1)
        if ax is not axes[0]:
            ax.set_yticklabels([])
    return fig


def goals(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw what was asked for and what was reached: for each row the measured ratio with its quartiles, the floor, the
    aim and, where one is known, the limit.

    Shapes: rows with `what`, `ratio_median`, `ratio_q1`, `ratio_q3`, `floor`, `aim` and maybe `limit`.
    Raises: ValueError if there are no rows.
    Book: appendix A1.
    """
    if not rows:
        raise ValueError("rows must not be empty: there is no goal to draw")
    marks = {
        "ratio_median": ("measured", "o", {"color": FORMS["fused"], "ms": 7}),
        "floor": ("floor", "|", {"color": "#333333", "ms": 12, "mew": 2}),
        "aim": ("aim", "x", {"color": "#333333", "ms": 7, "mew": 1.6}),
        "limit": ("limit", "D", {"color": "#333333", "ms": 7, "mfc": "none"}),
    }
    fig, [[ax]] = figure(height=0.4 * len(rows) + 1.1)
    for place, row in enumerate(rows):
        ax.plot([row["ratio_q1"], row["ratio_q3"]], [place, place], color=FORMS["fused"], lw=2.5)
    for key, (label, mark, how) in marks.items():
        points = [(row[key], place) for place, row in enumerate(rows) if row.get(key) is not None]
        if points:
            ax.plot(*zip(*points, strict=True), mark, label=label, linestyle="", **how)
    ax.axvline(1, color="#8C8C8C", lw=1)
    ax.set(xscale="log", xlabel="times as fast", ylim=(len(rows) - 0.5, -0.5))
    ax.set_yticks(range(len(rows)), [row["what"] for row in rows])
    ticks = [1, 2, 5, 10, 20, 50, 100, 200]
    ax.set_xticks(ticks, [str(tick) for tick in ticks])
    furthest = max(row[key] for row in rows for key in (*marks, "ratio_q3") if row.get(key) is not None)
    ax.set_xlim(0.85, 1.3 * furthest)
    ax.minorticks_off()
    fig.legend(loc="outside lower center", ncols=4)
    return fig


def over_batch(charts: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Draw how time and peak memory of each form of a loss grow with the batch, a column of panels for each loss.

    Shapes: charts ``{title: rows}``, rows of `results/speed.json`: `rows`, `times`, `peak_bytes`.
    Raises: ValueError if there are no charts.
    Book: appendix A1.
    """
    if not charts:
        raise ValueError("charts must not be empty: there is no loss to draw")
    fig, axes = figure(2, len(charts), height=4.6)
    for (above, below), (title, some) in zip(axes.T, charts.items(), strict=True):
        sizes = [row["rows"] for row in some]
        for form, tint in FORMS.items():
            how = {"color": tint, "marker": "o", "ms": 4, "linestyle": "dashed" if form == "limit" else "solid"}
            if all(form in row["times"] for row in some):
                above.plot(sizes, [row["times"][form]["median_ms"] for row in some], label=form, **how)
            if all(form in row["peak_bytes"] for row in some):
                below.plot(sizes, [row["peak_bytes"][form] / 2**20 for row in some], **how)
        above.set_title(title)
        below.set_xlabel("batch size B")
        for ax in (above, below):
            ax.set(xscale="log", yscale="log")
            ax.set_xticks(sizes, [str(size) for size in sizes])
            ax.minorticks_off()
    axes[0, 0].set_ylabel("time (ms)")
    axes[1, 0].set_ylabel("peak memory (MiB)")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(FORMS))
    return fig


def rates(charts: Mapping[str, Mapping[str, float]]) -> Figure:
    """Draw rows a second of each objective as one mark for each way to run it, on a logarithmic axis.

    Shapes: charts ``{way: {objective: rows a second}}``; the first way has all objectives and sets their order.
    Raises: ValueError if there are no charts, or more than marks.
    Book: appendix A1.
    """
    marks = ("o", "s", "D", "^")
    if not 0 < len(charts) <= len(marks):
        raise ValueError(f"charts must hold 1 to {len(marks)} ways to run an objective, got {len(charts)}")
    first = next(iter(charts.values()))
    order = sorted(first, key=lambda name: -first[name])
    fig, [[ax]] = figure(height=0.3 * len(order) + 1.1)
    for (way, chart), mark, tint in zip(charts.items(), marks, TINTS, strict=False):
        ax.plot([chart.get(name) for name in order], range(len(order)), mark, color=tint, ms=6, label=way)
    ax.set(xscale="log", xlabel="rows a second", ylim=(len(order) - 0.5, -0.5))
    ax.set_yticks(range(len(order)), order)
    fig.legend(loc="outside lower center", ncols=len(charts))
    return fig


def pair_blocks(rows: int, blocks: Sequence[tuple[slice, slice]], kept: Mapping[str, float]) -> Figure:
    """Draw a symmetric matrix with its computed blocks and their mirror images, and bars of what each form keeps.

    Shapes: blocks of (rows, columns) on and above the diagonal; kept ``{form: MiB}``, on an axis from 0.1 to 200.
    Raises: ValueError if a block lies below the diagonal.
    Book: appendix A1.
    """
    if any(a.start > b.start for a, b in blocks):
        raise ValueError("blocks must lie on or above the diagonal")
    fig, [[left, right]] = figure(1, 2, height=3.0)
    done = 0
    for a, b in blocks:
        height, width = min(a.stop, rows) - a.start, min(b.stop, rows) - b.start
        done += height * width
        if a != b:
            left.add_patch(Rectangle((a.start, b.start), height, width, fc="#CFE3F1", ec="white", lw=0.8))
        left.add_patch(Rectangle((b.start, a.start), width, height, fc=FORMS["fused"], ec="white", lw=0.8))
    left.set(xlim=(0, rows), ylim=(rows, 0), aspect="equal", xticks=[], yticks=[])
    left.set_xlabel(f"{rows} x {rows} similarities")
    left.set_title(f"{len(blocks)} block{'s' * (len(blocks) > 1)}: {done / rows**2:.0%} of the matrix")
    left.grid(False)
    right.barh(list(kept), list(kept.values()), color=[FORMS[form] for form in kept], height=0.6)
    right.set(xscale="log", xlim=(0.1, 300), title="kept for the backward pass", xlabel="MiB")
    right.set_xticks([0.1, 1, 10, 100], ["0.1", "1", "10", "100"])
    right.minorticks_off()
    right.invert_yaxis()
    for place, value in enumerate(kept.values()):
        right.text(value * 1.1, place, f"{value:.1f}", va="center")
    return fig
