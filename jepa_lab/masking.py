"""Which tokens does the context encoder see, and which must the predictor predict?

Every function draws one mask per row of the batch, without a loop over rows. Random numbers come from a
`torch.Generator` on the CPU, so that a seed gives the same masks on every device.

Book: chapter 03.
"""

from dataclasses import dataclass
from functools import reduce
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from jepa_lab.rectangles import check_multiblock, draw_rectangles, uniform
from jepa_lab.series_masks import SERIES_KINDS, check_complementary, check_ratio, hiding_order
from jepa_lab.tokens import Series, put_back, take_visible

__all__ = [
    "Mask",
    "MaskConfig",
    "block_mask",
    "check_multiblock",
    "complementary_masks",
    "hide_first",
    "multiblock_mask",
    "put_back",
    "random_mask",
    "take_visible",
]


class Mask(NamedTuple):
    """What is seen and what is predicted. Padding is in neither; a token may be in neither; target blocks may overlap.

    Shapes:
        context: Bool[B, N], True where the context encoder sees the token.
        targets: Bool[B, M, N], True where block m holds the token; M = 1 except for several blocks.
    """

    context: Tensor
    targets: Tensor


# ------------------------------------------------------------------------------------------ drawing masks


def random_mask(valid: Bool[Tensor, "B N"], ratio: float, generator: torch.Generator | None = None) -> Mask:
    """Hide a random share `ratio` of each row's real tokens; the rest is the context.

    A row with v real tokens hides round(ratio v) of them, at least one and at most v - 1. A row with fewer than
    two real tokens cannot be both seen and predicted: its tokens stay context and it has no target.

    Shapes: valid Bool[B, N] (True = real token); returns Mask with M = 1.
    Raises: ValueError when `ratio` is outside (0, 1).
    Book: chapter 03.
    """
    return hide_first(hiding_order(valid, generator=generator), valid, ratio)


def hide_first(order: Int[Tensor, "B N"], valid: Bool[Tensor, "B N"], ratio: float) -> Mask:
    """Hide the first tokens of an order (`series_masks.hiding_order`), as many as `random_mask` hides.

    Shapes: order Int[B, N] (0 = hidden first), valid Bool[B, N]; returns Mask with M = 1.
    Raises: ValueError when `ratio` is outside (0, 1).
    Book: chapter 08.
    """
    check_ratio(ratio)
    hidden = (order < _n_hidden(valid, ratio)[:, None]) & valid
    return Mask(valid & ~hidden, hidden[:, None])


def block_mask(
    valid: Bool[Tensor, "B N"], ratio: float, n_blocks: int = 1, generator: torch.Generator | None = None
) -> Mask:
    """Hide contiguous runs: `n_blocks` disjoint runs that together hide the share `ratio` of a row's real tokens.

    Contiguous means contiguous among the real tokens, in slot order, so padding inside a row does not split a run.
    A single run starts uniformly at any place where it fits: with v real tokens and length L, token i is hidden
    with probability #{starts s in 0..v-L : s <= i < s+L} / (v-L+1).

    Shapes: valid Bool[B, N]; returns Mask with M = n_blocks.
    Raises: ValueError when `ratio` is outside (0, 1) or `n_blocks` < 1.
    Book: chapter 03.
    """
    check_ratio(ratio)
    if n_blocks < 1:
        raise ValueError(f"n_blocks must be at least 1, got {n_blocks}")
    n_valid, n_hidden = valid.sum(1), _n_hidden(valid, ratio)
    part = torch.arange(n_blocks, device=valid.device)
    length = n_hidden[:, None] // n_blocks + (part < n_hidden[:, None] % n_blocks)  # [B, M], differ by at most one
    # Choose where the runs fall among the visible tokens, then shift each run by the length of those before it.
    gaps = (n_valid - n_hidden)[:, None] + 1
    place = (uniform((len(valid), n_blocks), valid, generator) * gaps).long().clamp(max=gaps - 1).sort(dim=1).values
    start = place + length.cumsum(1) - length
    rank = valid.cumsum(1) - 1  # position of each slot among the real tokens of its row
    inside = (rank[:, None] >= start[..., None]) & (rank[:, None] < (start + length)[..., None])
    targets = inside & valid[:, None]
    return Mask(valid & ~targets.any(1), targets)


def multiblock_mask(
    valid: Bool[Tensor, "B N"],
    grid: tuple[int, int],
    n_targets: int = 4,
    target_scale: tuple[float, float] = (0.15, 0.2),
    target_aspect: tuple[float, float] = (0.75, 1.5),
    context_scale: tuple[float, float] = (0.85, 1.0),
    min_context: int = 1,
    generator: torch.Generator | None = None,
) -> Mask:
    """I-JEPA's mask: several rectangular target blocks on an H x W grid, and one large context block minus the targets.

    Area and aspect ratio are drawn independently for every block of every row, and a block lies uniformly at any
    place where it fits, the last row and column included (the published sampler shares one random number between
    area and aspect and never reaches the last row and column). Target blocks are never redrawn, so their
    distribution is the stated one. Only the context block is redrawn, up to `_TRIES` times, when fewer than
    `min_context` tokens are left of it; after that the row takes every token outside its targets, and at least one.

    Shapes: valid Bool[B, H*W] in raster order; returns Mask with M = n_targets.
    Raises: ValueError for settings that leave fewer than `min_context` tokens in more than 1 % of the draws.
    Paper: Assran et al. 2023 (I-JEPA), section 3. Book: chapter 03.
    """
    height, width = check_multiblock(grid, n_targets, target_scale, target_aspect, context_scale, min_context)
    batch, n_tokens = valid.shape
    if n_tokens != height * width:
        raise ValueError(f"grid {grid} has {height * width} cells, but valid has {n_tokens} tokens a row")

    targets = draw_rectangles(batch, n_targets, grid, target_scale, target_aspect, valid, generator).blocks
    targets = targets & valid[:, None]
    free = valid & ~_any(targets)
    tries = draw_rectangles(batch, _TRIES, grid, context_scale, (1.0, 1.0), valid, generator)
    context = tries.one(0) & free
    short = context.sum(1) < min_context
    if _asks(short):  # rare with usual settings, and then of few rows: the other tries are not even looked at
        rows = short.nonzero().squeeze(1) if valid.device.type == "cpu" else torch.arange(batch, device=valid.device)
        more = tries.of(rows).blocks & free[rows, None]  # [R, T, N]
        enough = more.sum(2) >= min_context
        first = more.gather(1, enough.int().argmax(1)[:, None, None].expand(-1, 1, n_tokens)).squeeze(1)
        other = torch.where(enough.any(1, keepdim=True), first, free[rows])
        context[rows] = torch.where(short[rows, None], other, context[rows])
    return _repair(Mask(context, targets), valid, generator)


_TRIES = 8


def complementary_masks(
    valid: Bool[Tensor, "B N"],
    ratio: float = 0.5,
    generator: torch.Generator | None = None,
    order: Int[Tensor, "B N"] | None = None,
) -> tuple[Mask, Mask]:
    """Two masks that share no visible token, each of which hides the share `ratio` of the real tokens.

    Two views that overlap share content, and a contrastive loss can match them by what they share. The first view
    hides the first tokens of an order (`order`, or a random one), the second sees the first of them: at a ratio of one
    half all that the first one hides. Where the order goes channel by channel, so do the views.

    Shapes: valid Bool[B, N], order Int[B, N]; returns two Masks with M = 1.
    Raises: ValueError when `ratio` is outside [0.5, 1): two views that see more than half each must overlap.
    Book: chapters 03, 04, 08.
    """
    check_complementary(ratio)
    order = hiding_order(valid, generator=generator) if order is None else order
    first = hide_first(order, valid, ratio)
    count = first.targets.sum((1, 2))
    if ratio > 0.5:  # else all that the first one hides, which of an odd number is one more or less than one half
        count = torch.minimum(count, valid.sum(1) - count)
    seen = (order < count[:, None]) & valid
    return first, Mask(seen, (valid & ~seen & seen.any(1, keepdim=True))[:, None])


@dataclass(frozen=True)
class MaskConfig:
    """How to hide tokens: a `random` share, contiguous `block` runs, I-JEPA's `multiblock` on a grid, or of a series
    blocks of `time`, whole `channel`s or a `mix` (`series_masks.hiding_order`).

    `ratio` is the hidden share (all but multiblock); `n_blocks` counts the runs (block) or the target blocks
    (multiblock); the scales are shares of the grid's area and the aspect is height over width (multiblock); `hours` is
    the length of a block of time.
    """

    kind: Literal["random", "block", "multiblock", "time", "channel", "mix"] = "random"
    ratio: float = 0.6
    n_blocks: int = 1
    target_scale: tuple[float, float] = (0.15, 0.2)
    target_aspect: tuple[float, float] = (0.75, 1.5)
    context_scale: tuple[float, float] = (0.85, 1.0)
    min_context: int = 1
    hours: float = 6.0

    def __post_init__(self):
        if self.kind not in ("block", "multiblock", *SERIES_KINDS):
            raise ValueError(
                f"mask.kind must be random, block or multiblock, or for series time, channel or mix, got {self.kind!r}"
            )
        check_ratio(self.ratio, "mask.ratio")
        if not self.hours > 0:
            raise ValueError(f"mask.hours must be positive, got {self.hours}")
        if self.n_blocks < 1:
            raise ValueError(f"mask.n_blocks must be at least 1, got {self.n_blocks}")

    def check(self, grid: tuple[int, int] | None, is_series: bool = False) -> None:
        """Raise now, not at the first batch, if these settings cannot work on these tokens: a grid of them, a series
        of observations, or neither."""
        if self.kind in ("time", "channel", "mix") and not is_series:
            raise ValueError(f"mask.kind={self.kind!r} needs observations with a time and a feature; use 'random'")
        if self.kind != "multiblock":
            return
        if grid is None:
            raise ValueError("mask.kind='multiblock' needs tokens on a grid; use 'random' or 'block' for sequences")
        check_multiblock(grid, *self._blocks)

    def draw(
        self,
        valid: Bool[Tensor, "B N"],
        grid: tuple[int, int] | None = None,
        generator: torch.Generator | None = None,
        series: Series | None = None,
    ) -> Mask:
        """One mask per row of `valid`; `grid` is the (height, width) of the token grid where there is one, `series`
        the times and features of the tokens where they are observations."""
        if self.kind in SERIES_KINDS:
            return hide_first(self._order(valid, generator, series), valid, self.ratio)
        if self.kind == "block":
            return block_mask(valid, self.ratio, self.n_blocks, generator)
        self.check(grid)
        return multiblock_mask(valid, grid, *self._blocks, generator)

    def pair(
        self, valid: Bool[Tensor, "B N"], generator: torch.Generator | None = None, series: Series | None = None
    ) -> tuple[Mask, Mask]:
        """Two masks a row that share no visible token (`complementary_masks`); not for kinds of blocks."""
        return complementary_masks(valid, self.ratio, generator, self._order(valid, generator, series))

    def _order(self, valid: Tensor, generator: torch.Generator | None, series: Series | None) -> Tensor:
        return hiding_order(valid, self.kind, series, self.hours, generator)

    @property
    def _blocks(self) -> tuple:
        return self.n_blocks, self.target_scale, self.target_aspect, self.context_scale, self.min_context


def _repair(mask: Mask, valid: Tensor, generator) -> Mask:
    """Give rows with two or more real tokens at least one context and one target token; others pass unchanged.

    Two things make this necessary: blocks that fall on padding, and the rare draw whose targets tile the whole grid.
    """
    context, targets = mask
    two = valid.sum(1) >= 2
    # One number is always drawn, so that what comes later does not depend on whether a row needed the repair.
    generator = _fork(generator)
    if not _asks(two & ~(context.any(1) & _any(targets).any(1))):
        return mask  # nearly always, and random numbers for every token are what costs most here
    slots = torch.arange(valid.shape[1], device=valid.device)

    pick = uniform(valid.shape, valid, generator).masked_fill(~valid, -1.0).argmax(1)
    add = (two & ~context.any(1))[:, None] & (slots == pick[:, None])
    context, targets = context | add, targets & ~add[:, None]

    alone = context & (context.sum(1, keepdim=True) == 1)  # never take the only context token away
    score = uniform(valid.shape, valid, generator) + (~context).float()  # prefer tokens outside the context
    pick = score.masked_fill(~valid | alone, -1.0).argmax(1)
    add = (two & ~targets.flatten(1).any(1))[:, None] & (slots == pick[:, None])
    first = torch.arange(targets.shape[1], device=valid.device)[:, None] == 0
    return Mask(context & ~add, targets | (add[:, None] & first))


# ---------------------------------------------------------------------------------------------------- helpers


def _asks(rows: Bool[Tensor, " B"]) -> bool:
    """Whether any row needs something rare. A GPU is not asked, since the step would wait for its answer."""
    return rows.device.type != "cpu" or bool(rows.any())


def _fork(generator: torch.Generator | None) -> torch.Generator:
    """A generator of its own, seeded by one draw from this one."""
    device = "cpu" if generator is None else generator.device
    seed = torch.randint(2**62, (1,), generator=generator, device=device)
    return torch.Generator(device).manual_seed(int(seed))


def _any(targets: Bool[Tensor, "B M N"]) -> Bool[Tensor, "B N"]:
    """targets.any(1), ten times as fast: whole rows at once."""
    return reduce(torch.logical_or, targets.unbind(1))


def _n_hidden(valid: Tensor, ratio: float) -> Int[Tensor, " B"]:
    """round(ratio v) clamped to 1..v-1 for rows with v >= 2 real tokens, else 0."""
    n_valid = valid.sum(1)
    n_hidden = (n_valid * ratio).round().long()
    return torch.minimum(n_hidden.clamp(min=1), (n_valid - 1).clamp(min=0))
