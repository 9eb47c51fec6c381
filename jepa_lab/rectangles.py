"""Random rectangles on a grid of tokens, many at once.

Book: chapter 03.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Int
from torch import Tensor

TABLE_BYTES = 2**23  # a grid up to 14 x 14, and a bit more


class Rectangles(NamedTuple):
    """`height` and `width` in cells, `top` and `left` the first row and column, [B, M] each, on a grid."""

    height: Tensor
    width: Tensor
    top: Tensor
    left: Tensor
    grid: tuple[int, int]

    @property
    def blocks(self) -> Bool[Tensor, "B M N"]:
        """Which cells each covers, in raster order.

        On a small grid they are rows of a table of all rectangles: copying beats comparing.
        """
        if table_bytes(self.grid) > TABLE_BYTES:
            rows, columns = _run(self.top, self.height, self.grid[0]), _run(self.left, self.width, self.grid[1])
            return rearrange(rows[..., :, None] & columns[..., None, :], "b m h w -> b m (h w)")
        row, column = _number(self.top, self.height, self.grid[0]), _number(self.left, self.width, self.grid[1])
        table = _table(self.grid, self.top.device)
        index = row * _runs(self.grid[1]) + column
        return table.index_select(0, index.flatten()).view(*index.shape, -1)

    def of(self, rows: Int[Tensor, " R"]) -> "Rectangles":
        """Those of some rows of the batch."""
        return Rectangles(*(x[rows] for x in self[:4]), self.grid)

    def one(self, m: int) -> Bool[Tensor, "B N"]:
        """Which cells the m-th of each row covers."""
        return Rectangles(*(x[:, m : m + 1] for x in self[:4]), self.grid).blocks.squeeze(1)


def draw_rectangles(
    batch: int,
    n: int,
    grid: tuple[int, int],
    scale: tuple[float, float],
    aspect: tuple[float, float],
    like: Tensor,
    generator: torch.Generator | None = None,
) -> Rectangles:
    """`n` rectangles a row, area and aspect drawn independently, uniform over the places where each fits.

    Args:
        scale: the area's range, as shares of the grid.
        aspect: the range of height over width.
    """
    u_area, u_aspect, u_top, u_left = uniform((4, batch, n), like, generator)
    area = (scale[0] + u_area * (scale[1] - scale[0])) * grid[0] * grid[1]
    ratio = aspect[0] + u_aspect * (aspect[1] - aspect[0])
    h = (area * ratio).sqrt().round().clamp(1, grid[0]).long()
    w = (area / ratio).sqrt().round().clamp(1, grid[1]).long()
    # The + 1 is what lets a block touch the last row and column: there are H - h + 1 places, not H - h.
    top = (u_top * (grid[0] - h + 1)).long().clamp(max=grid[0] - h)
    left = (u_left * (grid[1] - w + 1)).long().clamp(max=grid[1] - w)
    return Rectangles(h, w, top, left, grid)


def uniform(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniform [0, 1) numbers on the device of `like`, drawn where the generator lives (the CPU by default)."""
    device = generator.device if generator is not None else "cpu"
    return torch.rand(shape, generator=generator, device=device).to(like.device, non_blocking=True)


def table_bytes(grid: tuple[int, int]) -> int:
    """Size of the table of all rectangles on a grid."""
    return _runs(grid[0]) * _runs(grid[1]) * grid[0] * grid[1]


def _runs(n: int) -> int:
    """How many runs of consecutive cells there are on a line of n."""
    return n * (n + 1) // 2


def _number(start: Tensor, length: Tensor, n: int) -> Tensor:
    """Runs are numbered by their start, then their length: n of them start at 0, n - 1 at 1, ..."""
    return start * n - start * (start - 1) // 2 + length - 1


def _run(start: Tensor, length: Tensor, n: int) -> Tensor:
    cell = torch.arange(n, device=start.device)
    return (cell >= start[..., None]) & (cell < (start + length)[..., None])


@lru_cache(maxsize=8)
def _table(grid: tuple[int, int], device: torch.device) -> Bool[Tensor, "R N"]:
    lines = []
    for n in grid:
        runs = torch.tensor(
            [(start, length) for start in range(n) for length in range(1, n - start + 1)], device=device
        )
        lines.append(_run(runs[:, 0], runs[:, 1], n))
    return (lines[0][:, None, :, None] & lines[1][None, :, None, :]).flatten(0, 1).flatten(1)


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
