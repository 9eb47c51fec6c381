"""The log-sum-exp of a query over its candidates, a panel of rows at a time: InfoNCE with negatives of its own."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from jepa_lab.fused.choice import once

PANEL = 256


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


def _logits(rows: slice, q, p, negatives, temperature, ignore, ignore_negatives) -> Tensor:
    logits = q[rows] @ p.T
    if ignore is not None:
        out = ignore[rows].clone()
        out.diagonal(rows.start).fill_(False)
        logits.masked_fill_(out, -torch.inf)
    if negatives is not None:
        own = torch.einsum("bd,bkd->bk", q[rows], negatives[rows])
        if ignore_negatives is not None:
            own.masked_fill_(ignore_negatives[rows], -torch.inf)
        logits = torch.cat([logits, own], dim=1)
    return logits.div_(temperature)


class _Candidates(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, p, negatives, temperature, ignore, ignore_negatives):
        n = len(q)
        ctx.how = (temperature, ignore, ignore_negatives)
        total, positive, other = q.new_empty(n), q.new_empty(n), q.new_empty(n)
        sums, count = [], 0
        for start in range(0, n, PANEL):
            rows = slice(start, min(start + PANEL, n))
            logits = _logits(rows, q, p, negatives, *ctx.how)
            total[rows] = logits.logsumexp(1)
            own = logits.diagonal(start)
            positive[rows] = own * temperature
            own.fill_(-torch.inf)
            other[rows] = logits.amax(1) * temperature
            counted = logits > -torch.inf
            count = count + counted.sum()
            sums.append(torch.where(counted, logits, 0.0).sum() * temperature)
        mean = torch.stack(sums).sum() / count
        ctx.save_for_backward(q, p, negatives, total)
        ctx.mark_non_differentiable(positive, other, mean)
        return total, positive, other, mean

    @staticmethod
    def backward(ctx, grad, *_):
        q, p, negatives, total = ctx.saved_tensors
        n = len(q)
        with torch.no_grad():
            dq, dp = torch.empty_like(q), torch.zeros_like(p)
            dn = None if negatives is None else torch.empty_like(negatives)
            for start in range(0, n, PANEL):
                rows = slice(start, min(start + PANEL, n))
                weight = _logits(rows, q, p, negatives, *ctx.how)
                weight.sub_(total[rows, None]).exp_().mul_(grad[rows, None] / ctx.how[0])
                torch.mm(weight[:, :n], p, out=dq[rows])
                dp.addmm_(weight[:, :n].T, q[rows])
                if dn is not None:
                    own = weight[:, n:]
                    dq[rows] += torch.einsum("bk,bkd->bd", own, negatives[rows])
                    torch.mul(own[..., None], q[rows, None], out=dn[rows])
        inputs = [x for x in (q, p, negatives, grad) if x is not None]
        dn = None if dn is None else once(dn, *inputs)
        return once(dq, *inputs), once(dp, *inputs), dn, None, None, None
