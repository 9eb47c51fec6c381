"""How does every figure of the book look alike? One style file, one width, one colour per method."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

Array = Tensor | np.ndarray | Sequence

WIDTH = 7.0  # inches: the text width of the book, so that 9 pt in a figure are 9 pt on the page

# Learned methods in colour, controls in grey. Any two of the colours stay apart for the three kinds of
# dichromatic sight (checked in tests/test_plots.py).
COLORS = {
    "chance": "#B5B5B5",
    "raw input": "#8C8C8C",
    "random init": "#5E5E5E",
    "supervised": "#000000",
    "JEPA": "#0072B2",
    "contrastive": "#D55E00",
    "MAE": "#009E73",
    "VICReg": "#CC79A7",
    "LeJEPA": "#56B4E9",
    "C-JEPA": "#882255",
    "no stop-gradient": "#E69F00",
    "SimSiam": "#332288",
    "H-JEPA": "#117733",
}
_ALIASES = {
    "simclr": "contrastive",
    "ntxent": "contrastive",
    "infonce": "contrastive",
    "raw": "raw input",
    "latentprediction": "JEPA",  # the two families of chapter 02, in the colours of their best-known members
    "pixelprediction": "MAE",
    "jasper": "JEPA",  # the JEPA of chapter 12, and what it starts from
    "cosine": "raw input",
}
DASHES = {
    "chance": (0, (1, 2)),
    "raw input": (0, (4, 2)),
    "random init": (0, (4, 1.5, 1, 1.5)),
    "supervised": "solid",
}


def use_style() -> None:
    """Apply the book's style file and, in a notebook, make figures sharp PNGs of their exact size.

    Book: every chapter, in its setup cell.
    """
    plt.style.use(Path(__file__).with_name("jepa_lab.mplstyle"))
    try:
        from IPython import get_ipython
    except ImportError:  # a plain interpreter without IPython: there is no page to show figures on
        return
    if get_ipython() is not None:
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        # Without bbox_inches=None the backend crops to the ink, and figures of one width come out in many.
        set_matplotlib_formats("retina", bbox_inches=None)


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def color(method: str, default: str | None = None) -> str:
    """Return the colour of a method; case, spaces and hyphens do not matter, and SimCLR is contrastive.

    Raises: ValueError naming the known methods if the method has no colour and no default is given.
    Book: every chapter.
    """
    known = {_plain(name): name for name in COLORS}
    name = _ALIASES.get(_plain(method), known.get(_plain(method)))
    if name is None and default is None:
        raise ValueError(f"method must be one of {', '.join(COLORS)}, got {method!r}")
    return COLORS[name] if name is not None else default


def palette(names: Sequence[str]) -> list[str]:
    """Colours for a figure: a method keeps its own, other names (settings, say) share a sequential map."""
    unknown = [name for name in names if color(name, "") == ""]
    steps = iter(mpl.colormaps["viridis"](np.linspace(0.0, 0.85, max(len(unknown), 2))))
    return [color(name, "") or mpl.colors.to_hex(next(steps)) for name in names]


def array(values: Array) -> np.ndarray:
    if isinstance(values, Tensor):
        return values.detach().to("cpu", torch.float64).numpy()
    return np.asarray(values, dtype=float)


def figure(
    rows: int = 1, columns: int = 1, height: float = 3.2, width: float = WIDTH, layout: str = "constrained"
) -> tuple:
    fig, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False, layout=layout)
    # Closed at once: pyplot's registry is what the notebook would show a second time at the end of the cell.
    plt.close(fig)
    return fig, axes
