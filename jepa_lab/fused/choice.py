"""Which form of a loss to use, and what all fused forms have in common."""

from typing import Literal

import torch
from torch import Tensor

Implementation = Literal["auto", "dense", "fused"]
# So many values of the matrix are kept for the backward pass rather than computed again (16 MiB in float32): a
# constant, so that memory does not grow with the square of the batch.
KEPT = 2**22
# Up to this |logit| sums of exp, and their reciprocals, stay within float32, whose range ends at exp(88).
SAFE = 40.0


def use_fused(implementation: str, like: Tensor, size: int, threshold: int) -> bool:
    """Whether the fused form is to be used: "auto" takes it from `threshold` on, where it was measured to be faster.

    It was measured on CPUs only. On other devices "auto" stays with the dense form until somebody has measured there;
    "fused" works on them too.

    Raises: ValueError for an unknown `implementation`.
    """
    if implementation not in ("auto", "dense", "fused"):
        raise ValueError(
            f"implementation must be 'auto', 'dense' or 'fused', got {implementation!r}; leave it out for 'auto'"
        )
    if implementation == "auto":
        return like.device.type == "cpu" and size >= threshold
    return implementation == "fused"


class _Once(torch.autograd.Function):
    """The identity, whose derivative says that there is none. Without it a second derivative would be silently zero."""

    @staticmethod
    def forward(ctx, grad: Tensor, *inputs: Tensor) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError(
            "the fused losses have no second derivative: pass implementation='dense' where a gradient is differentiated"
        )


def once(grad: Tensor, *inputs: Tensor) -> Tensor:
    """A gradient that refuses, with a clear error, to be differentiated with respect to `inputs`."""
    return _Once.apply(grad, *inputs) if torch.is_grad_enabled() else grad
