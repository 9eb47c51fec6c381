"""How does the book show it? The recurring figures and the results table, all from one place.

Every function returns a matplotlib ``Figure`` that pyplot has already forgotten: as the last value of a
cell it is shown exactly once, and a loop that draws many leaks none.
"""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

from jepa_lab.pictures import heatmap, image_grid, mask_grid, similarity
from jepa_lab.style import COLORS, DASHES, Array, array, color, figure, palette, use_style
from jepa_lab.tables import CONTROLS, mean_sd, table

__all__ = [
    "COLORS",
    "CONTROLS",
    "circle",
    "color",
    "curves",
    "dots",
    "heatmap",
    "image_grid",
    "mask_grid",
    "panels",
    "scatter",
    "similarity",
    "spectrum",
    "table",
    "use_style",
]


def _log_x(ax: Axes, xs: Sequence[np.ndarray]) -> None:
    """A logarithmic x axis, with plain numbers at the data's own values where they are few."""
    ax.set_xscale("log")
    values = np.unique(np.concatenate(xs))
    if len(values) <= 10:
        ax.set_xticks(values, [f"{value:g}" for value in values])
        ax.xaxis.set_minor_locator(NullLocator())


def curves(
    lines: Mapping[str, tuple[Array, Array]],
    xlabel: str,
    ylabel: str,
    logy: bool = False,
    title: str = "",
    levels: Mapping[str, float] | None = None,
    logx: bool = False,
) -> Figure:
    """Draw one line per method: where there are several runs, their mean and a band of one s.d.

    ``levels`` are horizontal reference lines, for the controls. A logarithmic x axis has its ticks at the data's x
    values if there are at most 10.

    Shapes: lines ``{method: (x [T], y [T] or y [S, T])}`` with S runs.
    Raises: ValueError if x and y differ in length.
    Book: chapters 01 and 03.
    """
    fig, [[ax]] = figure()
    for (name, (x, y)), tint in zip(lines.items(), palette(list(lines)), strict=True):
        x, y = array(x), np.atleast_2d(array(y))
        if y.ndim != 2 or x.shape != y.shape[-1:]:
            raise ValueError(f"lines[{name!r}]: y must be [T] or [S, T] with T = {len(x)}, got shape {y.shape}")
        mean, sd = mean_sd(y)
        marker = "o" if len(x) <= 12 else ""
        ax.plot(x, mean, label=name, color=tint, marker=marker, markersize=4, linestyle=DASHES.get(name, "solid"))
        if len(y) > 1:
            ax.fill_between(x, mean - sd, mean + sd, color=tint, alpha=0.18, linewidth=0)
    for name, height in (levels or {}).items():
        ax.axhline(
            height,
            label=name,
            color=color(name, "#5E5E5E"),
            linestyle=DASHES.get(name, "dashed"),
            linewidth=1.3,
        )
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title, **({"yscale": "log"} if logy else {}))
    if logx:
        _log_x(ax, [array(x) for x, _ in lines.values()])
    if len(lines) + len(levels or {}) > 1:
        fig.legend(loc="outside right upper")
    return fig


def panels(
    charts: Mapping[str, Mapping[str, tuple[Array, Array]]], xlabel: str, logy: Sequence[str] = (), logx: bool = False
) -> Figure:
    """Draw several quantities over the same axis side by side, one line per method and one colour per method.

    A logarithmic x axis has its ticks at the data's x values if there are at most 10.

    Shapes: charts ``{ylabel: {method: (x [T], y [T])}}``; ``logy`` names the panels with a logarithmic axis.
    Raises: ValueError if ``logy`` names an unknown panel.
    Book: chapters 01 and 04.
    """
    unknown = [name for name in logy if name not in charts]
    if unknown:
        raise ValueError(f"logy must name panels among {list(charts)}, got {unknown}")
    names = list(dict.fromkeys(name for lines in charts.values() for name in lines))
    tints = dict(zip(names, palette(names), strict=True))
    fig, axes = figure(1, len(charts), height=2.5)
    for ax, (ylabel, lines) in zip(axes.flat, charts.items(), strict=True):
        for name, (x, y) in lines.items():
            ax.plot(array(x), array(y), color=tints[name], label=name, linestyle=DASHES.get(name, "solid"))
        ax.set(xlabel=xlabel, title=ylabel)
        if ylabel in logy:
            ax.set_yscale("log")
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_formatter(NullFormatter())
        if logx:
            _log_x(ax, [array(x) for x, _ in lines.values()])
    if len(names) > 1:  # a panel need not have all methods
        found = {name: line for ax in axes.flat for line, name in zip(*ax.get_legend_handles_labels(), strict=True)}
        fig.legend(found.values(), found.keys(), loc="outside lower center", ncols=len(names))
    return fig


def scatter(points: Array, labels: Array, title: str = "", limit: float | None = None) -> Figure:
    """Show points in the plane, coloured by their class, on axes of equal scale from -limit to limit.

    Shapes: points [n, 2], labels [n] of small integers.
    Raises: ValueError if the shapes do not fit.
    Book: chapters 01 and 06.
    """
    p, classes = array(points), array(labels).astype(int)
    if p.ndim != 2 or p.shape[1] != 2 or classes.shape != p.shape[:1]:
        raise ValueError(f"points must be [n, 2] and labels [n], got {p.shape} and {classes.shape}")
    fig, [[ax]] = figure(height=3.8, width=4.8)
    tints = mpl.colormaps["tab10"].colors
    for c in np.unique(classes):
        here = p[classes == c]
        ax.plot(*here.T, "o", color=tints[c % 10], markersize=3, alpha=0.8, label=str(c), markeredgewidth=0)
    reach = limit or 1.05 * np.abs(p).max()
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", title=title)
    ax.set(xlabel="first principal component", ylabel="second")
    fig.legend(loc="outside right center", title="label", markerscale=2)
    return fig


def spectrum(values: Mapping[str, Array], title: str = "", ylabel: str = "singular value / largest") -> Figure:
    """Draw the singular values of each representation, each divided by its largest, on a logarithmic axis.

    Shapes: values ``{method: [D]}``, in any order.
    Raises: ValueError if a spectrum is not a vector with a positive value.
    Book: chapter 06.
    """
    lines = {}
    for name, spectrum_ in values.items():
        s = np.sort(array(spectrum_))[::-1]
        if s.ndim != 1 or s.size == 0 or not s[0] > 0:
            raise ValueError(f"values[{name!r}] must be a vector with a positive entry, got shape {s.shape}")
        # A floor: exact zeros have no logarithm, and what lies below it is rounding anyway.
        lines[name] = (np.arange(1, len(s) + 1), np.maximum(s / s[0], 1e-8))
    return curves(lines, "index of the dimension (sorted)", ylabel, logy=True, title=title)


def dots(rows: Sequence[Mapping], metric: str, label: str = "method", xlabel: str = "", percent: bool = True) -> Figure:
    """Draw one metric of each row as a dot with a bar of one standard deviation; controls are hollow.

    Shapes: rows as in ``table``: ``{label: name, metric: number or one number per seed}``.
    Raises: ValueError if no row has the metric.
    Book: chapter 04.
    """
    kept = [row for row in rows if row.get(metric) is not None]
    if not kept:
        known = sorted({key for row in rows for key in row} - {label})
        raise ValueError(f"metric must be one of {', '.join(known)}, got {metric!r}")
    factor = 100 if percent else 1
    fig, [[ax]] = figure(height=0.32 * len(kept) + 0.75)
    for place, row in enumerate(kept):
        name = str(row[label])
        mean, sd = (float(v) * factor for v in mean_sd(row[metric]))
        tint = color(name, "#444444")
        control = name in CONTROLS
        ax.errorbar(mean, place, xerr=sd or None, color=tint, linewidth=1.6)
        ax.plot(mean, place, "o", color=tint, markerfacecolor="white" if control else tint, markersize=7)
        text = f"{mean:.1f}" if percent else f"{mean:.3g}"
        ax.annotate(text, (mean + sd, place), (9, 0), textcoords="offset points", va="center", color="#333333")
    ax.set_yticks(range(len(kept)), [str(row[label]) for row in kept])
    for tick, row in zip(ax.get_yticklabels(), kept, strict=True):
        tick.set_fontstyle("italic" if str(row[label]) in CONTROLS else "normal")
    ax.set(xlabel=xlabel or (f"{metric} (%)" if percent else metric), ylim=(len(kept) - 0.4, -0.6))
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.margins(x=0.12)
    return fig


def circle(
    points: Array,
    labels: Sequence[str] | None = None,
    arrows: Array | None = None,
    colors: Sequence[str] | None = None,
    title: str = "",
    limit: float | None = None,
) -> Figure:
    """Show points on the unit circle and, for each, an arrow such as the negative gradient of a loss.

    An arrow shorter than 0.02 is not drawn: its head alone would be longer. ``limit`` fixes the half-width of the
    frame, so that the frames of a knob are of equal size; without it the frame fits arrows and labels.

    Shapes: points [n, 2] (drawn as they are, not normalised), arrows [n, 2] in the same units.
    Raises: ValueError if the shapes do not fit.
    Book: chapter 04.
    """
    p = array(points)
    a = array(arrows) if arrows is not None else None
    if p.ndim != 2 or p.shape[1] != 2 or (a is not None and a.shape != p.shape):
        raise ValueError(f"points must be [n, 2] and arrows alike, got {p.shape} and {None if a is None else a.shape}")
    fig, [[ax]] = figure(height=3.6, width=3.6)
    ax.add_patch(Circle((0, 0), 1, fill=False, edgecolor="#BBBBBB", linewidth=1))
    tints = list(colors) if colors is not None else [COLORS["JEPA"]] * len(p)
    for i, (point, tint) in enumerate(zip(p, tints, strict=True)):
        if a is not None and np.hypot(*a[i]) >= 0.02:  # shorter ones would be all head
            head = {"arrowstyle": "-|>", "color": tint, "linewidth": 1.6, "shrinkA": 0, "shrinkB": 0}
            ax.annotate("", point + a[i], point, arrowprops=head, annotation_clip=False)
        ax.plot(*point, "o", color=tint, markersize=8, markeredgecolor="white", zorder=3)
        if labels is not None:
            outside = point * (1 + 0.14 / max(np.hypot(*point), 1e-9))  # arrows along the circle leave this side free
            side = "left" if point[0] > 0.2 else "right" if point[0] < -0.2 else "center"
            ax.text(*outside, str(labels[i]), ha=side, va="center", color="#333333")
    reach = 1.25 if a is None else max(1.25, np.abs(p + a).max() + 0.08)
    wide = reach if labels is None else reach + 0.075 * max(len(str(text)) for text in labels)
    if limit is not None:
        reach = wide = limit
    fig.set_figwidth(3.6 * wide / reach)
    ax.set(xlim=(-wide, wide), ylim=(-reach, reach), aspect="equal", title=title)
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    ax.spines[:].set_visible(False)
    return fig
