"""Which form of a loss to use, and what all fused forms have in common."""

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Literal

import torch
from torch import Tensor

Implementation = Literal["auto", "dense", "fused"]
# So many values of the matrix are kept for the backward pass rather than computed again (16 MiB in float32): a
# constant, so that memory does not grow with the square of the batch.
KEPT = 2**22
# Up to this |logit| sums of exp, and their reciprocals, stay within float32, whose range ends at exp(88).
SAFE = 40.0


def use_fused(implementation: str, like: Tensor, size: int, thresholds: Mapping[str, int]) -> bool:
    """Whether the fused form is to be used: "auto" takes it from the threshold of this kind of device on, where it was
    measured to be no slower. The kinds are "cpu" and, for those of CUDA, "gpu".

    On a kind that is not in `thresholds` nobody has measured, or it did not pay: there "auto" stays with the dense
    form, and "fused" works all the same.

    Raises: ValueError for an unknown `implementation`.
    """
    if implementation not in ("auto", "dense", "fused"):
        raise ValueError(
            f"implementation must be 'auto', 'dense' or 'fused', got {implementation!r}; leave it out for 'auto'"
        )
    if implementation == "auto":
        return size >= thresholds.get(_kind(like), float("inf"))
    return implementation == "fused"


def block_size(sizes: Mapping[str, int], like: Tensor) -> int:
    """The block for the device of `like`: what stays in the cache of a CPU, what fills a GPU."""
    return sizes["cpu" if like.device.type == "cpu" else "gpu"]


def _kind(like: Tensor) -> str:
    return "gpu" if like.is_cuda else like.device.type


def full_precision(method: Callable) -> Callable:
    """For forward and backward of the fused losses: autocast would make their products, but not their sums, in half
    precision."""

    @wraps(method)
    def run(ctx, first: Tensor, *rest):
        if not torch.is_autocast_enabled(first.device.type):
            return method(ctx, first, *rest)
        with torch.autocast(first.device.type, enabled=False):
            return method(ctx, first, *rest)

    return run


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
