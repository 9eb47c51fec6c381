"""Several processes, one loss: what a batch-wise loss needs so that N processes compute what one would.

Each process (rank) holds some rows of the global batch. DistributedDataParallel lets every rank run its own backward
pass from its own loss l_r, then *averages* the gradients over the N ranks. Let each l_r be the loss L of the whole
batch. Rank r sends its outputs z_r to the others, who use them too, so that the average should be

    1/N sum_s d l_s / d theta  =  1/N sum_r (d z_r / d theta)' sum_s (d l_s / d z_r)  =  d L / d theta

and it is, if the backward pass of every exchange returns the inner sum, over the losses of all ranks: it is N dL/dz_r,
and the N cancels the 1/N of the average. A parameter that acts after the exchange needs no such care: each rank has
its whole gradient dL/dtheta, and the average of N equal numbers is that number. So there is one primitive, `all_sum`,
with a sum forwards and a sum backwards; all else here is made of it. The two usual mistakes, losses of the own rows
alone and an exchange without gradient, give a smaller batch and a gradient N times too small.

Rows have one order: row i of rank r comes before row i of rank r + 1 and after all rows i - 1, which puts the rows
r::N of a batch back where they were. With one process, and in one, everything here returns its input.

Every rank must reach every call, in the same order: what one rank does by itself, such as an evaluation, waits for the
others for ever, unless it is done within `alone()`. A rank needs a usable row of its own in every batch.

Book: how to use this book.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

_alone = False


def world_size() -> int:
    """How many processes train together; 1 without a process group, and within `alone()`."""
    return dist.get_world_size() if not _alone and dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


@contextmanager
def alone() -> Iterator[None]:
    """Within it this process acts as if there were no other: for what one rank does while the others wait."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


class _AllSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return _AllSum.apply(grad)  # the losses of all ranks depend on this rank's x, so their gradients add up


def all_sum(x: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """Sum of a tensor over all ranks, with autograd. Shapes: [...] -> [...], the same on every rank."""
    return _AllSum.apply(x) if world_size() > 1 else x


def positions(n: int, like: Tensor, width: int = 1) -> tuple[Int[Tensor, " n"], int]:
    """Where the n rows of this rank stand among the rows of all ranks, and how many these are together.

    Raises: ValueError, on every rank, when they disagree on `width`, the number of values in a row.
    """
    if world_size() == 1:
        return torch.arange(n, device=like.device), n
    mine = torch.zeros(world_size(), 2, dtype=torch.long, device=like.device)
    mine[rank()] = torch.tensor([n, width])
    counts, widths = all_sum(mine).T
    if widths.min() != widths.max():
        raise ValueError(
            f"rows must have the same number of values on every rank, got {widths.tolist()} on ranks 0, 1, ..."
        )
    row, before = torch.arange(n, device=like.device)[:, None], torch.arange(world_size(), device=like.device) < rank()
    return torch.minimum(counts, row + before).sum(1), int(counts.sum())


def gather(x: Shaped[Tensor, "B *rest"], where: Bool[Tensor, "B *some"] | None = None) -> Shaped[Tensor, "R *rest2"]:
    """The rows of all ranks, or with `where` their marked tokens, `x[where]`, in the order of the global batch.

    The ranks may have different numbers of rows and of tokens, none included. Each adds its rows to a tensor of zeros:
    no padding, for twice the traffic of an all-gather. In one process it returns x itself, or x[where].

    Shapes: x [B, ...] -> [sum of B, ...]; with where Bool[B, K]: x [B, K, ...] -> [all marked tokens, ...].
    Raises: ValueError, on every rank, when rows have another size elsewhere.
    """
    if world_size() == 1:
        return x if where is None else x[where]
    kind = x.dtype
    if where is None:
        index, total = positions(len(x), x, math.prod(x.shape[1:]))
        rows = x.to(torch.uint8) if kind == torch.bool else x
    else:
        per_row = where.sum(1)
        index, _ = positions(len(x), x, math.prod(x.shape[2:]))
        everywhere = gather(per_row)
        first = (everywhere.cumsum(0) - everywhere)[index]
        index, total = (first[:, None] + where.cumsum(1) - 1)[where], int(everywhere.sum())
        rows = x[where]
    return all_sum(rows.new_zeros(total, *rows.shape[1:]).index_copy(0, index, rows)).to(kind)


def own(whole: Shaped[Tensor, "R *rest"], n: int) -> Shaped[Tensor, "n *rest"]:
    """The n rows of this rank out of a tensor with a row for every row of the global batch: the inverse of `gather`.

    What is drawn at random is drawn for the whole batch on every rank, and each keeps its own. The generators then
    stay in step, so that the state of one is the state of all in a checkpoint, and N processes draw what one does.
    """
    return whole if world_size() == 1 else whole[positions(n, whole)[0]]


def global_mean(mean: Float[Tensor, ""], count: int | Bool[Tensor, "*tokens"]) -> Float[Tensor, ""]:
    """The mean over the items of all ranks from each rank's mean over its own.

        sum_r count_r mean_r / sum_r count_r

    The average of the means would weigh an item by how few its rank has. A rank with none adds nothing.

    Args:
        count: the number of items, or a mask that marks them.
    """
    if world_size() == 1:
        return mean
    count = torch.as_tensor(count, device=mean.device).sum().to(mean.dtype)
    total, items = all_sum(torch.stack([torch.where(count > 0, mean * count, 0.0), count]))
    return total / items


class BatchNorm(nn.BatchNorm1d):
    """BatchNorm1d over the rows of all ranks in training, so that N processes normalise as one does.

    As torch's SyncBatchNorm, which refuses the CPU. In one process, and in eval mode, it is BatchNorm1d to the bit.

    Shapes: [B, D] -> [B, D].
    """

    def __init__(self, dim: int):
        super().__init__(dim)

    def forward(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        if not self.training or world_size() == 1:
            return super().forward(x)
        y = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        n = all_sum(torch.tensor(float(len(y)), device=y.device))
        mean = all_sum(y.sum(0)) / n
        centred = y - mean
        variance = all_sum(centred.square().sum(0)) / n
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
            self.running_var.lerp_((variance * n / (n - 1)).to(self.running_var), self.momentum)
        return ((centred * (variance + self.eps).rsqrt()) * self.weight + self.bias).to(x.dtype)
