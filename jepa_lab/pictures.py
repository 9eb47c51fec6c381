"""What lies where? Figures on a grid: images, masks, heat maps and tables of similarities."""

import math
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from einops import rearrange
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from jepa_lab.style import WIDTH, Array, array, figure

_CONTEXT, _NEITHER = "#4C8FC2", "#E9E9E9"
_BLOCKS = ("#E69F00", "#CC79A7", "#009E73", "#882255", "#D55E00", "#332288")


def _pictures(images: Array) -> np.ndarray:
    """Turn [n, C, H, W] or [n, H, W] into what imshow takes, [n, H, W, 3]."""
    x = array(images)
    if x.ndim == 3:
        x = rearrange(x, "n h w -> n 1 h w")
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise ValueError(f"images must be [n, C, H, W] with C = 1 or 3, or [n, H, W]; got shape {tuple(x.shape)}")
    return rearrange(np.broadcast_to(x, (len(x), 3, *x.shape[2:])), "n c h w -> n h w c").clip(0, 1)


def image_grid(images: Array, titles: Sequence[str] | None = None, columns: int = 8) -> Figure:
    """Show images row by row, each with an optional title.

    Shapes: images [n, C, H, W] or [n, H, W] with values in [0, 1].
    Raises: ValueError if the images have another shape or the titles another number.
    Book: chapter 01.
    """
    pictures = _pictures(images)
    titles = [str(title) for title in titles] if titles is not None else [""] * len(pictures)
    if len(titles) != len(pictures):
        raise ValueError(f"titles must be as many as the {len(pictures)} images, got {len(titles)}")
    columns = min(columns, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    width = min(WIDTH, 1.75 * columns)  # few images stay small rather than fill the page
    cell = width / columns * pictures.shape[1] / pictures.shape[2] + (0.22 if any(titles) else 0.02)
    fig, axes = figure(rows, columns, rows * cell + 0.1, width)
    fig.get_layout_engine().set(w_pad=0.03, h_pad=0.03)
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, picture, title in zip(axes.flat, pictures, titles, strict=False):
        ax.imshow(picture, vmin=0, vmax=1)
        ax.set_title(title, fontsize=9, loc="center", pad=3)
    return fig


def mask_grid(
    masks: Array, images: Array | None = None, titles: Sequence[str] | None = None, columns: int = 4
) -> Figure:
    """Show which tokens are context and which are targets, on grey cells or laid over the images.

    Shapes: masks [K, H, W] of integer codes: 0 neither, 1 context, 2 + m target block m; images [K, C,
        height, width].
    Raises: ValueError if the shapes do not fit or a code is negative.
    Book: chapter 03.
    """
    codes = array(masks).round().astype(int)
    if codes.ndim != 3 or codes.min() < 0:
        raise ValueError(f"masks must be [K, H, W] of codes >= 0, got shape {codes.shape}, least {codes.min()}")
    pictures = _pictures(images) if images is not None else None
    for name, other in (("images", pictures), ("titles", titles)):
        if other is not None and len(other) != len(codes):
            raise ValueError(f"{name} must be as many as the {len(codes)} masks, got {len(other)}")
    number, height, width = codes.shape
    columns = min(columns, number)
    rows = math.ceil(number / columns)
    cell = WIDTH / max(columns, 3)
    fig, axes = figure(
        rows, columns, rows * (cell * height / width + 0.22 * (titles is not None)) + 0.35, cell * columns
    )
    fig.get_layout_engine().set(w_pad=0.04, h_pad=0.04)
    for ax in axes.flat:
        ax.set_axis_off()
    blocks = max(codes.max() - 1, 0)
    paint = np.array([mpl.colors.to_rgba(c) for c in (_NEITHER, _CONTEXT, *(_BLOCKS[m % 6] for m in range(blocks)))])
    if pictures is not None:
        # The context encoder sees its tokens as they are; what it does not see is covered, most of all the
        # targets.
        paint[:, 3] = [0.75, 0.0, *[0.8] * blocks]
        paint[0, :3] = 1.0
    for k, (ax, code) in enumerate(zip(axes.flat, codes, strict=False)):
        if pictures is not None:
            ax.imshow(pictures[k], extent=(0, width, height, 0))
        ax.imshow(paint[code], extent=(0, width, height, 0))
        ax.hlines(range(height + 1), 0, width, color="white", linewidth=0.8)
        ax.vlines(range(width + 1), 0, height, color="white", linewidth=0.8)
        if titles is not None:
            ax.set_title(str(titles[k]), fontsize=9, loc="center", pad=3)
    seen = "context (as it is)" if pictures is not None else "context"
    keys = [Patch(facecolor="white" if pictures is not None else _CONTEXT, edgecolor="#888888", label=seen)]
    keys += [
        Patch(facecolor=_BLOCKS[m % 6], label=f"target {m + 1}" if blocks > 1 else "target") for m in range(blocks)
    ]
    if (codes == 0).any():
        keys.append(Patch(facecolor=_NEITHER, label="neither"))
    fig.legend(handles=keys, loc="outside lower center", ncols=min(len(keys), 6), handlelength=1, columnspacing=1.2)
    return fig


def _panels(panels: Mapping[str, Array], label: str, annotate: bool, limits: tuple, cmap: str, ticks, names) -> Figure:
    """Matrices side by side under one colour scale."""
    grids = {title: array(values) for title, values in panels.items()}
    for title, grid in grids.items():
        if grid.ndim != 2:
            raise ValueError(f"values {title!r} must be a matrix, got shape {grid.shape}")
    rows, columns = next(iter(grids.values())).shape
    cell = min((WIDTH - 1.1) / len(grids) - 0.4, 3.2)  # what ticks, labels and the colour bar leave for the matrix
    height = min(cell * rows / columns + 0.9, 6.5)
    fig, axes = figure(1, len(grids), height, min(WIDTH, (cell + 0.4) * len(grids) + 1.1), layout="compressed")
    low = min(g.min() for g in grids.values()) if limits[0] is None else limits[0]
    high = max(g.max() for g in grids.values()) if limits[1] is None else limits[1]
    for ax, (title, grid) in zip(axes.flat, grids.items(), strict=True):
        image = ax.imshow(grid, cmap=cmap, vmin=low, vmax=high)
        ax.set(title=title, xlabel=names[0], ylabel=names[1] if ax is axes.flat[0] else "")
        ax.grid(False)
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0)
        if ticks is not None:
            ax.set_xticks(range(grid.shape[1]), ticks[: grid.shape[1]])
            ax.set_yticks(range(grid.shape[0]), ticks[: grid.shape[0]])
        else:
            ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(8, integer=True, min_n_ticks=1))
            ax.yaxis.set_major_locator(mpl.ticker.MaxNLocator(8, integer=True, min_n_ticks=1))
        if annotate:
            for (i, j), value in np.ndenumerate(grid):
                red, green, blue, _ = image.cmap(image.norm(value))
                ink = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"
                ax.text(
                    j,
                    i,
                    f"{value:.2f}".replace("-0.00", "0.00"),
                    ha="center",
                    va="center",
                    color=ink,
                    fontsize=8,
                )
    bar = fig.colorbar(image, ax=axes, label=label, aspect=18, pad=0.03)
    bar.outline.set_visible(False)
    return fig


def heatmap(
    values: Array | Mapping[str, Array],
    title: str = "",
    label: str = "",
    annotate: bool = False,
    vmin: float | None = None,
    vmax: float | None = None,
    xlabel: str = "column",
    ylabel: str = "row",
) -> Figure:
    """Show a matrix, or several ``{title: matrix}`` under one colour scale; ``label`` is quantity and unit.

    Shapes: values [H, W].
    Raises: ValueError if something is not a matrix.
    Book: chapter 03.
    """
    panels = values if isinstance(values, Mapping) else {title: values}
    return _panels(panels, label, annotate, (vmin, vmax), "viridis", None, (xlabel, ylabel))


def similarity(
    matrix: Array | Mapping[str, Array],
    title: str = "",
    labels: Sequence[str] | None = None,
    annotate: bool | None = None,
    label: str = "cosine similarity",
) -> Figure:
    """Show similarities on a diverging scale from -1 to 1, with the numbers where there is room.

    Shapes: matrix [n, m], or ``{title: matrix}``.
    Raises: ValueError if something is not a matrix.
    Book: chapter 04.
    """
    panels = matrix if isinstance(matrix, Mapping) else {title: matrix}
    if annotate is None:
        annotate = max(array(m).shape[-1] for m in panels.values()) * len(panels) <= 10
    return _panels(panels, label, annotate, (-1, 1), "RdBu_r", labels, ("", ""))
