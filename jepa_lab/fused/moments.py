"""VICReg with its gradient in one pass: the smaller Gram matrix once, and no matrix of its own for any intermediate."""

import torch
from jaxtyping import Float
from torch import Tensor

from jepa_lab.fused.choice import full_precision, once


def vicreg_terms(
    z1: Float[Tensor, "B D"],
    z2: Float[Tensor, "B D"],
    weights: tuple[float, float, float],
    divisor: int,
    target_std: float = 1.0,
    eps: float = 1e-4,
) -> tuple[Float[Tensor, ""], Float[Tensor, " 3"]]:
    """VICReg's weighted sum, and its three terms without gradient: invariance, variance, covariance.

    With Y the centred view, v_j = sum_b Y_bj^2 and G the smaller of Y Y' and Y' Y, the covariance term is
    (|G|^2 - sum_j v_j^2) / (divisor (B - 1)^2), and its gradient 4 (G Y - Y diag(v)), or Y G, over the same number: it
    takes one more product, where differentiating |Y Y'|^2 step by step takes two.

    Args:
        weights: of invariance, variance and covariance.
        divisor: D, or D (D - 1), of the covariance term.
    Shapes: z1, z2 [B, D] -> scalar, [3].
    Raises: RuntimeError when the gradient is differentiated again.
    """
    return _VICReg.apply(z1, z2, weights, divisor, target_std, eps)


class _VICReg(torch.autograd.Function):
    @staticmethod
    @full_precision
    def forward(ctx, z1, z2, weights, divisor, target_std, eps):
        rows, dim = z1.shape
        needs = ctx.needs_input_grad[:2]
        difference = z1 - z2
        invariance = _sum_of_squares(difference) / (rows * dim)
        if any(needs):
            difference.mul_(2 * weights[0] / (rows * dim))
        variance, covariance, grads = 0.0, 0.0, []
        for z, sign, need in zip((z1, z2), (1, -1), needs, strict=True):
            y = z - z.mean(0)
            v = torch.einsum("bd,bd->d", y, y)
            std = (v / (rows - 1) + eps).sqrt()
            hinge = (target_std - std).relu()
            small = y @ y.T if rows < dim else y.T @ y
            # The two sums nearly cancel for decorrelated features; rounding must not make a sum of squares negative.
            off = _sum_of_squares(small) - v.square().sum()
            scale = 1 / (divisor * (rows - 1) ** 2)
            variance = variance + hinge.mean() / 2
            covariance = covariance + off.clamp(min=0) * scale
            if not need:
                grads.append(None)
                continue
            k = (off > 0).to(z.dtype) * (4 * weights[2] * scale)
            column = -k * v - (hinge > 0).to(z.dtype) / std * (weights[1] / (2 * dim * (rows - 1)))
            small.mul_(k)
            grad = torch.addcmul(difference, y, column) if sign > 0 else torch.mul(y, column).sub_(difference)
            grads.append(grad.addmm_(small, y) if rows < dim else grad.addmm_(y, small))
        terms = torch.stack([invariance, variance, covariance])
        ctx.save_for_backward(z1, z2, *[g for g in grads if g is not None])
        ctx.mark_non_differentiable(terms)
        return weights[0] * invariance + weights[1] * variance + weights[2] * covariance, terms

    @staticmethod
    @full_precision
    def backward(ctx, grad, _):
        z1, z2, *grads = ctx.saved_tensors
        grads = iter(grads)
        with torch.no_grad():
            out = [next(grads) * grad if need else None for need in ctx.needs_input_grad[:2]]
        return *(g if g is None else once(g, z1, z2, grad) for g in out), None, None, None, None


def _sum_of_squares(x: Tensor) -> Tensor:
    """Row by row: one long dot product of millions of float32 squares would lose the fifth digit, and this difference
    of two sums more."""
    return torch.linalg.vector_norm(x, dim=1).square().sum()
