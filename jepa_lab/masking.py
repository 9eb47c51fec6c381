"""Which tokens does the context encoder see, and which must the predictor predict?

Every function draws one mask per row of the batch, without a loop over rows. Random numbers come from a
`torch.Generator` on the CPU, so that a seed gives the same masks on every device.

Book: chapter 03.
"""

import math
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from jepa_lab.rectangles import draw_rectangles, uniform
from jepa_lab.tokens import put_back, take_visible

__all__ = [
    "Mask",
    "MaskConfig",
    "block_mask",
    "check_multiblock",
    "complementary_masks",
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
    _check_ratio(ratio)
    order = uniform(valid.shape, valid, generator).masked_fill(~valid, 2.0)  # padding sorts last
    rank = order.argsort(dim=1).argsort(dim=1)
    hidden = (rank < _n_hidden(valid, ratio)[:, None]) & valid
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
    _check_ratio(ratio)
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
    valid: Bool[Tensor, "B N"], ratio: float = 0.5, generator: torch.Generator | None = None
) -> tuple[Mask, Mask]:
    """Two masks that share no visible token: each view sees exactly what the other one hides.

    Two views that overlap share content, and a contrastive loss can match them by what they share. The first view
    hides the share `ratio` of the real tokens, the second the rest.

    Shapes: valid Bool[B, N]; returns two Masks with M = 1.
    Raises: ValueError when `ratio` is outside (0, 1).
    Book: chapters 03, 04.
    """
    first = random_mask(valid, ratio, generator)
    second = Mask(first.targets[:, 0], first.context[:, None] & first.targets[:, 0].any(1)[:, None, None])
    return first, second


@dataclass(frozen=True)
class MaskConfig:
    """How to hide tokens: a `random` share, contiguous `block` runs, or I-JEPA's `multiblock` on a grid.

    `ratio` is the hidden share (random, block); `n_blocks` counts the runs (block) or the target blocks (multiblock);
    the scales are shares of the grid's area and the aspect is height over width (multiblock).
    """

    kind: Literal["random", "block", "multiblock"] = "random"
    ratio: float = 0.6
    n_blocks: int = 1
    target_scale: tuple[float, float] = (0.15, 0.2)
    target_aspect: tuple[float, float] = (0.75, 1.5)
    context_scale: tuple[float, float] = (0.85, 1.0)
    min_context: int = 1

    def __post_init__(self):
        if self.kind not in ("random", "block", "multiblock"):
            raise ValueError(f"mask.kind must be random, block or multiblock, got {self.kind!r}")
        _check_ratio(self.ratio, "mask.ratio")
        if self.n_blocks < 1:
            raise ValueError(f"mask.n_blocks must be at least 1, got {self.n_blocks}")

    def check(self, grid: tuple[int, int] | None) -> None:
        """Raise now, not at the first batch, if these settings cannot work on this grid of tokens."""
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
    ) -> Mask:
        """One mask per row of `valid`; `grid` is the (height, width) of the token grid where there is one."""
        if self.kind == "random":
            return random_mask(valid, self.ratio, generator)
        if self.kind == "block":
            return block_mask(valid, self.ratio, self.n_blocks, generator)
        self.check(grid)
        return multiblock_mask(valid, grid, *self._blocks, generator)

    @property
    def _blocks(self) -> tuple:
        return self.n_blocks, self.target_scale, self.target_aspect, self.context_scale, self.min_context


def check_multiblock(
    grid: tuple[int, int],
    n_targets: int,
    target_scale: tuple[float, float],
    target_aspect: tuple[float, float],
    context_scale: tuple[float, float] = (0.85, 1.0),
    min_context: int = 1,
) -> tuple[int, int]:
    """Refuse multi-block settings that no draw could satisfy, and say why; returns the grid."""
    height, width = grid
    if height < 1 or width < 1:
        raise ValueError(f"grid must be (height, width) of at least 1 x 1, got {grid}")
    if n_targets < 1 or min_context < 1:
        raise ValueError(f"n_targets and min_context must be at least 1, got {n_targets} and {min_context}")
    for name, (low, high) in {"target_scale": target_scale, "context_scale": context_scale}.items():
        if not 0 < low <= high <= 1:
            raise ValueError(f"{name} must be 0 < low <= high <= 1 (shares of the grid's area), got {(low, high)}")
    if not 0 < target_aspect[0] <= target_aspect[1]:
        raise ValueError(f"target_aspect must be 0 < low <= high (height over width), got {target_aspect}")
    short = _share_short(tuple(grid), n_targets, tuple(target_scale), tuple(target_aspect), min_context)
    if short > 0.01:
        raise ValueError(
            f"{n_targets} target blocks of target_scale={target_scale} leave fewer than min_context={min_context} of "
            f"the {height * width} cells of a {height} x {width} grid in {short:.0%} of the draws: use fewer or "
            "smaller targets (n_targets, target_scale), a smaller min_context, or smaller patches"
        )
    return height, width


@lru_cache
def _share_short(grid, n_targets, scale, aspect, min_context) -> float:
    """Share of 2,000 draws in which the targets leave fewer than `min_context` cells."""
    valid = torch.ones(2000, grid[0] * grid[1], dtype=torch.bool)
    targets = draw_rectangles(2000, n_targets, grid, scale, aspect, valid, torch.Generator().manual_seed(0)).blocks
    return ((~targets.any(1)).sum(1) < min_context).float().mean().item()


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


def _check_ratio(ratio: float, name: str = "ratio") -> None:
    if not (isinstance(ratio, int | float) and math.isfinite(ratio) and 0 < ratio < 1):
        raise ValueError(f"{name} is the hidden share of the tokens and must lie in (0, 1), got {ratio}")
