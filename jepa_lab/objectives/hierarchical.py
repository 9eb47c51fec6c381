"""H-JEPA on images: predict what is hidden at several scales at once, patches, groups of patches, the whole image.

Book: chapter 11.
"""

from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float
from torch import Tensor, nn

from jepa_lab.masking import Mask
from jepa_lab.nets import TokenEncoder
from jepa_lab.objectives.jepa import JEPA, JEPAConfig
from jepa_lab.objectives.masked import Seen, ask
from jepa_lab.tokens import Tokens


@dataclass(frozen=True)
class HJEPAConfig(JEPAConfig):
    """One level an entry, the finest first: what it counts (`level_weights`), how many tokens a side are averaged into
    one of its cells (`level_pools`, 1 = every token is a cell), and from how many blocks below the top of the target
    encoder its targets come (`level_layers`, 0 = its output). All three have the same length."""

    level_weights: tuple[float, ...] = (1.0, 0.5, 0.25)
    level_pools: tuple[int, ...] = (1, 2, 4)
    level_layers: tuple[int, ...] = (0, 0, 0)

    def __post_init__(self):
        super().__post_init__()
        if not len(self.level_weights) == len(self.level_pools) == len(self.level_layers) > 0:
            raise ValueError(
                "level_weights, level_pools and level_layers must have one entry a level, at least one, got "
                f"{self.level_weights}, {self.level_pools} and {self.level_layers}"
            )
        if min(self.level_weights) < 0 or not max(self.level_weights) > 0:
            raise ValueError(f"level_weights must not be negative, and one be positive, got {self.level_weights}")
        if min(self.level_pools) < 1:
            raise ValueError(f"level_pools must be at least 1, got {self.level_pools}")
        if min(self.level_layers) < 0:
            raise ValueError(f"level_layers must not be negative (0 = the output), got {self.level_layers}")

    @property
    def levels(self) -> list["Level"]:
        return [Level(*one) for one in zip(self.level_weights, self.level_pools, self.level_layers, strict=True)]


class Level(NamedTuple):
    """A scale of `HJEPA`, as `HJEPAConfig` describes it."""

    weight: float
    pool: int
    layer: int


def pool_grid(x: Float[Tensor, "B N D"], grid: tuple[int, int], pool: int) -> Float[Tensor, "B C D"]:
    """Mean of every pool x pool square of neighbouring tokens on an H x W grid: C = N / pool^2 cells in raster order.

    Neighbours in space, not in a list: consecutive tokens of a masked list may lie anywhere.

    Shapes: x [B, H*W, D] in raster order -> [B, C, D].
    Raises: ValueError when `pool` does not divide both sides of the grid.
    Book: chapter 11.
    """
    check_pool(grid, pool)
    if pool == 1:
        return x
    cells = {"h": grid[0] // pool, "w": grid[1] // pool, "p": pool, "q": pool}
    return reduce(x, "b (h p w q) d -> b (h w) d", "mean", **cells)


def touched(where: Bool[Tensor, "B M N"], grid: tuple[int, int], pool: int) -> Bool[Tensor, "B M C"]:
    """Which cells of `pool_grid` hold at least one marked token.

    Shapes: where Bool[B, M, H*W] -> Bool[B, M, C].
    """
    cells = {"h": grid[0] // pool, "w": grid[1] // pool, "p": pool, "q": pool}
    return rearrange(where, "b m (h p w q) -> b m (h w) (p q)", **cells).any(-1)


def check_pool(grid: tuple[int, int], pool: int) -> None:
    if grid[0] % pool or grid[1] % pool:
        raise ValueError(f"level_pools must divide both sides of the {grid[0]} x {grid[1]} grid of tokens, got {pool}")


class HJEPA(JEPA):
    """JEPA with targets at several scales, weights w_l:

        loss = sum_l w_l L_l,   L_l = the loss of `JEPA` for the cells of level l

    The target of a cell is the mean over a square of the target encoder's tokens, seen and hidden ones; it is asked
    for when at least one of them is hidden. The question is the mean of their position codes plus a learned code of the
    level, and one predictor answers all questions of a target block, whatever their level, in one sequence. Nothing is
    learned between the target encoder and a target: a projection there, trained by the loss, could make all targets
    equal. The weights are not normalised.

    A single level of pool 1 is `JEPA`, to the bit.

    Metrics: those of `JEPA`, where `jepa_loss` is the weighted sum, and `level_0_loss`, `level_1_loss`, ..., each L_l.
    Raises: ValueError when the encoder has no grid of tokens, when a pool does not divide it, or when a layer lies
        below its first block.
    Paper: LeCun 2022, section 4.6 (a hierarchy of predictions; there over time, with an encoder of its own a level).
    Book: chapter 11.
    """

    Config = HJEPAConfig

    def __init__(self, encoder: TokenEncoder, config: HJEPAConfig | None = None, seed: int = 0):
        config = config or self.Config()
        super().__init__(encoder, config, seed)
        if encoder.grid is None:
            raise ValueError("H-JEPA needs tokens on a grid, which it pools; use 'jepa' for series and sequences")
        for level in config.levels:
            check_pool(encoder.grid, level.pool)
            if level.layer >= len(encoder.transformer.blocks):
                depth = len(encoder.transformer.blocks)
                raise ValueError(f"level_layers must lie below the depth of the encoder, {depth}, got {level.layer}")
        codes = [torch.randn(encoder.dim) * 0.02 for _ in config.levels[1:]]
        self.level_codes = nn.ParameterList(codes)  # vectors, which weight decay spares

    def predict(
        self, batch: dict[str, Tensor], tokens: Tokens, mask: Mask, seen: Seen
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        everything, targets = self.level_targets(batch)
        grid, levels = self.encoder.grid, self.config.levels
        queries = [pool_grid(tokens.query, grid, level.pool) for level in levels]
        queries = [queries[0], *(q + code for q, code in zip(queries[1:], self.level_codes, strict=True))]
        where = [touched(mask.targets, grid, level.pool) for level in levels]
        # The cells of all levels as one list of slots: a single pass of the predictor costs half of one for each level.
        told = ask(self.predictor, seen, torch.cat(queries, 1), torch.cat(where, 2))
        compared = self.compared(torch.cat(targets, 1), told)
        ends = torch.tensor([cells.shape[2] for cells in where], device=told.slot.device).cumsum(0)
        level_of = torch.bucketize(told.slot, ends, right=True)
        losses = [self.compare(told.prediction, compared, told.asked & (level_of == i)) for i in range(len(levels))]
        loss = sum(level.weight * one for level, one in zip(levels, losses, strict=True))
        return loss, everything, {f"level_{i}_loss": one.detach() for i, one in enumerate(losses)}

    def level_targets(self, batch: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The representations of all tokens [B, N, D], and of the cells of each level, [B, C, D] each, before the
        target norm."""
        with _block_outputs(self.representing_encoder) as blocks:
            everything = self.targets(batch)
        grids = [everything, *reversed(blocks[:-1])]  # by layers below the top
        return everything, [pool_grid(grids[one.layer], self.encoder.grid, one.pool) for one in self.config.levels]


@contextmanager
def _block_outputs(encoder: TokenEncoder):
    """A list that fills with the output of every block, from the first to the last, when the encoder is called."""
    outputs: list[Tensor] = []
    hooks = [
        block.register_forward_hook(lambda module, inputs, output: outputs.append(output))
        for block in encoder.transformer.blocks
    ]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()
