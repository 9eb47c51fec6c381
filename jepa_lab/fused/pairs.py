"""The log-sum-exp over all pairs of rows, which is NT-Xent but for the positives, without the matrix of all pairs.

Three ideas. The matrix of similarities is symmetric: blocks above its diagonal serve the rows and, transposed, the
columns. The blocks are computed again in the backward pass, so that one at a time is in memory. And exp is a power
of 2, which costs a fraction of exp, while the shift that keeps it finite is left out where it is not needed.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from jepa_lab.fused.choice import KEPT, SAFE, block_size, full_precision, once

BLOCK = {"cpu": 384, "gpu": 8192}


def log_sum_exp_of_pairs(
    u: Float[Tensor, "R D"], temperature: float
) -> tuple[Float[Tensor, " R"], Float[Tensor, " R"], Float[Tensor, " R"]]:
    """log sum_{j != i} exp(u_i . u_j / temperature) for unit rows u, in O(R block) memory.

    The gradient of the sum over i with weights g_i is 1/t sum_{j != i} (g_i p_ij + g_j p_ji) u_j, p the softmax.

    Shapes: u [R, D], with row i + R/2 the positive of row i -> the sums [R]; and without gradient the similarity of
        each row's positive [R] and the highest similarity to any other row but the positive [R].
    Raises: RuntimeError when the gradient is differentiated again.
    """
    return _Pairs.apply(u, temperature)


def _blocks(n: int, size: int):
    cuts = [slice(a, min(a + size, n)) for a in range(0, n, size)]
    return [(rows, columns) for i, rows in enumerate(cuts) for columns in cuts[i:]]


class _Pairs(torch.autograd.Function):
    @staticmethod
    @full_precision
    def forward(ctx, u: Tensor, temperature: float):
        given, u = u, u.contiguous()
        n = len(u)
        scaled = u * (math.log2(math.e) / temperature)  # its products are logits to the base 2
        plain = 1 / temperature <= SAFE
        keep = plain and ctx.needs_input_grad[0] and n * n <= KEPT
        total = u.new_zeros(n)
        shift = u.new_zeros(n) if plain else u.new_full((n,), -torch.inf)
        positive, other = u.new_zeros(n), u.new_full((n,), -torch.inf)
        kept = []
        for rows, columns in _blocks(n, block_size(BLOCK, u)):
            logits = scaled[rows] @ u[columns].T
            if rows == columns:
                logits.fill_diagonal_(-torch.inf)  # a row is not its own candidate
            sides = [(rows, 1), (columns, 0)] if rows != columns else [(rows, 1)]
            _look(logits, rows, columns, sides, n // 2, positive, other)
            if plain:
                power = logits.exp2_()
                for side, axis in sides:
                    total[side] += power.sum(axis)
                if keep:
                    kept.append(power)
            else:
                for side, axis in sides:
                    high = torch.maximum(shift[side], logits.amax(axis))
                    fresh = (logits - high.unsqueeze(axis)).exp2_().sum(axis)
                    # At a row's first block, where high is finite, the old sum is 0 and its factor too.
                    total[side] = total[side] * (shift[side] - high).exp2() + fresh
                    shift[side] = high
        log2 = total.log2() + shift
        ctx.save_for_backward(given, log2, *kept)
        ctx.temperature = temperature
        to_cosine = temperature * math.log(2)
        positive, other = positive * to_cosine, other * to_cosine
        ctx.mark_non_differentiable(positive, other)
        return log2 * math.log(2), positive, other

    @staticmethod
    @full_precision
    def backward(ctx, grad: Tensor, *_):
        given, log2, *kept = ctx.saved_tensors
        with torch.no_grad():
            u = given.contiguous()
            scaled = u * (math.log2(math.e) / ctx.temperature)
            plain = 1 / ctx.temperature <= SAFE
            weight = grad * (-log2).exp2() if plain else None  # of the unshifted exponential of row i
            out = torch.zeros_like(u)
            for i, (rows, columns) in enumerate(_blocks(len(u), block_size(BLOCK, u))):
                if kept:
                    power = kept[i]
                else:
                    power = scaled[rows] @ u[columns].T
                    if rows == columns:
                        power.fill_diagonal_(-torch.inf)
                    if plain:
                        power.exp2_()
                if plain:
                    mixed = power * (weight[rows, None] + weight[columns])
                else:
                    mixed = (power - log2[rows, None]).exp2_().mul_(grad[rows, None])
                    mixed += (power - log2[columns]).exp2_().mul_(grad[columns])
                out[rows].addmm_(mixed, u[columns])
                if rows != columns:
                    out[columns].addmm_(mixed.T, u[rows])
            out /= ctx.temperature
        return once(out, given, grad), None


def _look(logits, rows, columns, sides, half, positive, other) -> None:
    """Note each row's positive, and the best of its other candidates, in this block."""
    offset = rows.start + half - columns.start
    inside = -len(logits) < offset < logits.shape[1]
    if inside:
        diagonal = logits.diagonal(offset)
        value = diagonal.clone()
        first = rows.start + max(-offset, 0)
        positive[first : first + len(value)] = value
        positive[first + half : first + half + len(value)] = value
        diagonal.fill_(-torch.inf)
    for side, axis in sides:
        # In a block on the diagonal the mirrored positives are still there; take them out for this look.
        if inside and rows == columns:
            mirrored = logits.diagonal(-offset)
            mirror = mirrored.clone()
            mirrored.fill_(-torch.inf)
        other[side] = torch.maximum(other[side], logits.amax(axis))
        if inside and rows == columns:
            mirrored.copy_(mirror)
    if inside:
        diagonal.copy_(value)
