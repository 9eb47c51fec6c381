"""The log-sum-exp of a query over its candidates, a panel of rows at a time: InfoNCE with negatives of its own.

A panel holds whole rows, so that the softmax of a row is its exponentials times one number, which scales the query
instead of the matrix: the backward pass is matrix products and nothing else, but for panels that were not kept.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from jepa_lab.fused.choice import KEPT, SAFE, block_size, full_precision, once

PANEL = {"cpu": 256, "gpu": 8192}


def log_sum_exp_of_candidates(
    q: Float[Tensor, "B D"],
    p: Float[Tensor, "B D"],
    negatives: Float[Tensor, "B K D"] | None,
    temperature: float,
    ignore: Bool[Tensor, "B B"] | None = None,
    ignore_negatives: Bool[Tensor, "B K"] | None = None,
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"], Float[Tensor, " B"], Float[Tensor, ""]]:
    """log sum_c exp(q_i . c / temperature) over the rows of p and row i's own negatives, in O(panel (B + K)) memory.

    Shapes: q, p [B, D] and negatives [B, K, D], unit rows -> the sums [B]; and without gradient the similarity of each
        row's positive [B], the highest to any of its negatives [B], and the mean similarity to all of them.
    Raises: RuntimeError when the gradient is differentiated again.
    """
    return _Candidates.apply(q, p, negatives, temperature, ignore, ignore_negatives)


def _panels(n: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def _logits(rows: slice, scaled, p, negatives, ignore, ignore_negatives) -> Tensor:
    """Logits to the base 2 of these rows, -inf where a candidate is ignored."""
    logits = scaled[rows] @ p.T
    if ignore is not None:
        out = ignore[rows].clone()
        out.diagonal(rows.start).fill_(False)  # a positive is never ignored
        logits.masked_fill_(out, -torch.inf)
    if negatives is not None:
        own = torch.einsum("bd,bkd->bk", scaled[rows], negatives[rows])
        if ignore_negatives is not None:
            own.masked_fill_(ignore_negatives[rows], -torch.inf)
        logits = torch.cat([logits, own], dim=1)
    return logits


class _Candidates(torch.autograd.Function):
    @staticmethod
    @full_precision
    def forward(ctx, q, p, negatives, temperature, ignore, ignore_negatives):
        n = len(q)
        candidates = n + (0 if negatives is None else negatives.shape[1])
        scaled = q * (math.log2(math.e) / temperature)
        plain = 1 / temperature <= SAFE
        keep = any(ctx.needs_input_grad) and n * candidates <= KEPT
        total, shift, positive, other = q.new_empty(n), q.new_zeros(n), q.new_empty(n), q.new_empty(n)
        sums, count, kept = q.new_zeros(()), 0, []
        for rows in _panels(n, block_size(PANEL, q)):
            logits = _logits(rows, scaled, p, negatives, ignore, ignore_negatives)
            diagonal = logits.diagonal(rows.start)
            own = diagonal.clone()
            positive[rows] = own
            if ignore is None and ignore_negatives is None:
                sums += logits.sum() - own.sum()
                count += len(own) * (candidates - 1)
            diagonal.fill_(-torch.inf)
            other[rows] = logits.amax(1)
            if ignore is not None or ignore_negatives is not None:
                counted = logits > -torch.inf
                sums += torch.where(counted, logits, 0.0).sum()
                count = count + counted.sum()
            diagonal.copy_(own)
            if not plain:
                shift[rows] = torch.maximum(own, other[rows])
                logits -= shift[rows, None]
            power = logits.exp2_()
            total[rows] = power.sum(1)
            if keep:
                kept.append(power)
        ctx.how = (temperature, plain)
        ctx.save_for_backward(q, p, negatives, ignore, ignore_negatives, total, shift, *kept)
        to_cosine = temperature * math.log(2)
        positive, other, mean = positive * to_cosine, other * to_cosine, sums * to_cosine / count
        ctx.mark_non_differentiable(positive, other, mean)
        return (total.log2() + shift) * math.log(2), positive, other, mean

    @staticmethod
    @full_precision
    def backward(ctx, grad, *_):
        q, p, negatives, ignore, ignore_negatives, total, shift, *kept = ctx.saved_tensors
        temperature, plain = ctx.how
        n = len(q)
        with torch.no_grad():
            scaled = q * (math.log2(math.e) / temperature)
            share = (grad / (total * temperature))[:, None]
            weighted = q * share
            for_q, for_p, for_n = ctx.needs_input_grad[:3]
            dq, dp = torch.empty_like(q) if for_q else None, torch.zeros_like(p) if for_p else None
            dn = torch.empty_like(negatives) if for_n else None
            for i, rows in enumerate(_panels(n, block_size(PANEL, q))):
                if kept:
                    power = kept[i]
                else:
                    power = _logits(rows, scaled, p, negatives, ignore, ignore_negatives)
                    power = (power if plain else power.sub_(shift[rows, None])).exp2_()
                own = power[:, n:]  # negatives of its own, if there are any
                if for_q:
                    torch.mm(power[:, :n], p, out=dq[rows])
                    if negatives is not None:
                        dq[rows] += torch.einsum("bk,bkd->bd", own, negatives[rows])
                if for_p:
                    dp.addmm_(power[:, :n].T, weighted[rows])
                if for_n:
                    torch.mul(own[..., None], weighted[rows, None], out=dn[rows])
            if for_q:
                dq *= share
        inputs = [x for x in (q, p, negatives, grad) if x is not None]
        return *(None if one is None else once(one, *inputs) for one in (dq, dp, dn)), None, None, None
