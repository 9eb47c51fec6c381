"""An explanation as a picture: where it was routed, what the steering changed, how the prediction is put together.

Book: chapter 13.
"""

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from jepa_lab.style import COLORS, figure

if TYPE_CHECKING:
    from jepa_lab.explanation import Explanation

_WITH, _WITHOUT, _PARTS = COLORS["JEPA"], "#B5B5B5", ("#009E73", "#E69F00")


def plot_explanation(e: "Explanation", top: int = 6) -> Figure:
    """Draw the most likely subspaces with and without steering, and the lengths of coarse and fine part. Of a model
    without router only how far the steering moved the prediction is left to draw.

    Raises: ValueError for top < 1.
    Book: chapter 13.
    """
    if top < 1:
        raise ValueError(f"top must be at least 1, got {top}")
    if e.distribution is None:
        fig, [[ax]] = figure(height=1.8)
        ax.barh(["moved by the steering"], [e.steering_influence.l2], color=_WITH)
        ax.set_xlabel("distance in the embedding space")
    else:
        fig, [[left, right]] = figure(1, 2, height=2.6 + 0.15 * top)
        _draw_routing(left, e, top)
        right.bar(["coarse", "fine"], [e.coarse_norm, e.atypicality], color=_PARTS, width=0.6)
        beyond = "" if e.atypicality_percentile is None else f"\n(fine above {e.atypicality_percentile:.0f} % of pairs)"
        right.set(ylabel="length", title=f"parts of the prediction{beyond}")
    if e.question:
        fig.suptitle(e.question if len(e.question) <= 80 else e.question[:77] + "...")
    return fig


def _draw_routing(ax, e: "Explanation", top: int) -> None:
    without = e.steering_influence.distribution_without
    # The likely ones of both, so that what the steering took away is seen too.
    names = sorted(e.distribution, key=lambda name: -max(e.distribution[name], without[name]))[:top]
    names = sorted(names, key=lambda name: e.distribution[name])
    y = np.arange(len(names))
    ax.barh(y + 0.2, [e.distribution[name] for name in names], 0.38, color=_WITH, label="with steering")
    ax.barh(y - 0.2, [without[name] for name in names], 0.38, color=_WITHOUT, label="without")
    ax.set_yticks(y, names)
    ax.set(xlim=(0, 1), xlabel="probability", title=f"routing (the steering adds {e.steering_influence.kl:.2f} nats)")
    ax.figure.legend(loc="outside lower center", ncols=2)
