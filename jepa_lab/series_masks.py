"""In which order are the observations of a record hidden? At random, block of hours by block, or channel by channel.

Every mask of a series hides the first tokens of such an order until its share is reached, so that all of them hide
equally many and differ in *which*. What can be told from the neighbours teaches little: a heart rate between two
visible ones, an hour apart, is interpolated. A hidden block of hours, or a channel that is hidden whole, cannot be.

Book: chapter 08.
"""

import math
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from jepa_lab.rectangles import uniform
from jepa_lab.tokens import Series

SeriesKind = Literal["random", "time", "channel", "mix"]
SERIES_KINDS = ("random", "time", "channel", "mix")


def hiding_order(
    valid: Bool[Tensor, "B N"],
    kind: SeriesKind = "random",
    series: Series | None = None,
    hours: float = 6.0,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "B N"]:
    """The place of each token in the order in which the tokens of its row are hidden; padding comes last.

    `random`: any order. `time`: the hours are cut into blocks of `hours`, from a random start, and block after block
    comes whole, in random order. `channel`: channel after channel, in random order. `mix`: one of the three for each
    row, each as likely. Within a block or a channel the order is random: a share that ends inside of one hides a random
    part of it.

    Shapes: valid Bool[B, N] -> Int[B, N], 0..N-1 in each row.
    Raises: ValueError for an unknown kind, `hours` that are not positive, or without the `series` that `kind` needs.
    Book: chapter 08.
    """
    if kind not in SERIES_KINDS:
        raise ValueError(f"kind must be one of {', '.join(SERIES_KINDS)}, got {kind!r}")
    place = uniform(valid.shape, valid, generator)  # in [0, 1): the order within a unit
    if kind != "random":
        if series is None:
            raise ValueError(f"kind={kind!r} hides by time and channel: it needs the series of the tokens, got None")
        place = place + _shuffled(_units(valid, kind, series, hours, generator), generator)
    # Padding last, behind every unit.
    return place.masked_fill(~valid, torch.inf).argsort(dim=1).argsort(dim=1)


def _units(valid: Tensor, kind: str, series: Series, hours: float, generator) -> Int[Tensor, "B N"]:
    """The number, from 0, of the block of hours or of the channel that a token belongs to; 0 for padding, and for all
    tokens of a row that `mix` hides at random."""
    if not hours > 0:
        raise ValueError(f"hours, the length of a block, must be positive, got {hours}")
    start = uniform((len(valid), 1), valid, generator).to(series.time.dtype)
    block = (series.time / hours + start).floor().long()
    block = block - block.masked_fill(~valid, torch.iinfo(block.dtype).max).amin(1, keepdim=True)
    units = torch.stack([torch.zeros_like(block), block, series.feature])
    if kind == "mix":
        drawn = (3 * uniform((len(valid),), valid, generator)).long().clamp(max=2)
    else:
        drawn = torch.full((len(valid),), SERIES_KINDS.index(kind), device=valid.device)
    units = units.gather(0, drawn[None, :, None].expand(1, *block.shape)).squeeze(0)
    return units.masked_fill(~valid, 0)


def _shuffled(unit: Int[Tensor, "B N"], generator) -> Int[Tensor, "B N"]:
    """The units of each row numbered anew, in random order."""
    count = int(unit.max()) + 1 if unit.numel() else 1
    order = uniform((len(unit), count), unit, generator).argsort(dim=1)
    return order.gather(1, unit)


def check_ratio(ratio: float, name: str = "ratio") -> None:
    """Raises: ValueError for a hidden share outside (0, 1)."""
    if not (isinstance(ratio, int | float) and math.isfinite(ratio) and 0 < ratio < 1):
        raise ValueError(f"{name} is the hidden share of the tokens and must lie in (0, 1), got {ratio}")


def check_complementary(ratio: float, name: str = "ratio") -> None:
    """Raises: ValueError for a hidden share at which two views cannot be disjoint."""
    check_ratio(ratio, name)
    if ratio < 0.5:
        raise ValueError(
            f"{name}={ratio}: two views that each see more than half of the tokens cannot be disjoint; "
            "hide at least 0.5, or draw two independent masks (views='mask')"
        )
