"""The Epps-Pulley statistic of many slices, with its gradient in the same pass.

The knots are multiples of one step, so that the angles k s y need one cosine and one sine: the others follow from
cos((k+1) a) = 2 cos(a) cos(k a) - cos((k-1) a), and likewise for the sine. The gradient is a sum of such cosines and
sines whose coefficients are known as soon as the means are; Clenshaw's recurrence sums it without making them again.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from jepa_lab.fused.choice import block_size, full_precision, once

VALUES = {"cpu": 2**17, "gpu": 2**22}  # of a block of slices: its handful of buffers then stays in a CPU's cache


def epps_pulley_of_slices(
    z: Float[Tensor, "B D"], directions: Float[Tensor, "D S"], step: float, weights: Float[Tensor, " K"]
) -> Float[Tensor, ""]:
    """The mean over slices of the statistic of z @ directions; knots 0, step, 2 step, ..., with these weights.

    Shapes: z [B, D], unit columns [D, S], weights of the K knots (window included) -> scalar.
    Raises: RuntimeError when the gradient is differentiated again.
    """
    return _Slices.apply(z, directions, step, weights)


class _Slices(torch.autograd.Function):
    @staticmethod
    @full_precision
    def forward(ctx, z, directions, step, weights):
        rows, slices = len(z), directions.shape[1]
        need = ctx.needs_input_grad[0]
        knots = step * torch.arange(len(weights), dtype=z.dtype, device=z.device)
        gaussian = torch.exp(-knots.square() / 2)
        size = max(1, min(slices, block_size(VALUES, z) // rows))
        angles = (directions * step).T @ z.T  # [S, B], the samples of a slice side by side
        total = z.new_zeros(())
        for start in range(0, slices, size):
            angle = angles[start : start + size]
            real, imaginary, twice, sine = _means(angle, len(weights))
            real -= gaussian
            total += (real.square() + imaginary.square()).mv(weights).sum()
            if need:
                # d/dy of B sum_k w_k |.|^2: the mean's 1/B and the factor B cancel. It takes the place of the angles.
                factor = 2 * weights * knots
                _series(imaginary * factor, real * -factor, twice, sine, out=angle)
        grad = (angles.T @ directions.T).div_(slices) if need else None
        ctx.save_for_backward(z, *([grad] if need else []))
        return total * (rows / slices)

    @staticmethod
    @full_precision
    def backward(ctx, grad):
        z, mine = ctx.saved_tensors
        with torch.no_grad():
            out = mine * grad
        return once(out, z, grad), None, None, None


def _means(angle: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Means over the last axis of cos(k a) and sin(k a), [s, n] each; and 2 cos(a) and sin(a), [s, B]."""
    c, s = angle.cos(), angle.sin()
    twice, sine = c * 2, s.clone()
    real, imaginary = angle.new_ones(len(angle), n), angle.new_zeros(len(angle), n)
    c0, s0 = torch.ones_like(c), torch.zeros_like(s)
    c_sign, c0_sign = 1, 1  # the buffers hold plus or minus the values: one operation a step instead of two
    rows = angle.shape[1]
    for k in range(1, n):
        if k > 1:
            flip = -c_sign * c0_sign
            c0.addcmul_(twice, c, value=flip)
            s0.addcmul_(twice, s, value=flip)
            c, c0, s, s0 = c0, c, s0, s
            c_sign, c0_sign = -c0_sign, c_sign
        real[:, k] = c.sum(1) * (c_sign / rows)
        imaginary[:, k] = s.sum(1) * (c_sign / rows)
    return real, imaginary, twice, sine


def _series(cosines: Tensor, sines: Tensor, twice: Tensor, sine: Tensor, out: Tensor) -> None:
    """out = sum_k cosines[:, k] cos(k a) + sines[:, k] sin(k a) for every a, by Clenshaw's recurrence, k from 1."""
    b, b2, d, d2 = (torch.zeros_like(twice) for _ in range(4))
    sign, sign2 = 1, 1  # as above; b_k = cosines_k + 2 cos(a) b_{k+1} - b_{k+2}
    for k in range(cosines.shape[1] - 1, 0, -1):
        flip = -sign * sign2
        b2.addcmul_(twice, b, value=flip).add_(cosines[:, k : k + 1], alpha=-sign2)
        d2.addcmul_(twice, d, value=flip).add_(sines[:, k : k + 1], alpha=-sign2)
        b, b2, d, d2 = b2, b, d2, d
        sign, sign2 = -sign2, sign
    # b_1 cos(a) - b_2 + d_1 sin(a); k = 0 adds nothing to a derivative
    torch.mul(b, twice, out=out).mul_(sign / 2).sub_(b2, alpha=sign2).addcmul_(d, sine, value=sign)
