"""How much arithmetic does a training step take? Floating-point operations, so that methods can be given equal amounts.

Equal steps are not equal work: a JEPA encodes a view twice and predicts, a contrastive step encodes two views whole.
Counted are matrix products and convolutions, a multiplication and an addition each, as is usual. What is done element
by element (activations, normalisation, the optimiser, the moving average) is left out.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from jepa_lab.objectives.base import Objective


def _attention(query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(grad: torch.Size, query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any):
    return sdpa_backward_flop_count(grad, query, key, value)


# PyTorch's counter knows the attention kernels of GPUs and counts 0 for that of the CPU.
_CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def count_flops(run: Callable[[], Any]) -> int:
    """The floating-point operations of a call `run()`, forward passes and backward passes alike.

    2 m n k for the product of [m, k] and [k, n]. Attention of N queries and N keys in heads of width d: 4 N^2 d a head
    forward, 10 N^2 d backward, where the scores are computed once more.

    Book: chapters 09 and 11.
    """
    with FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter:
        run()
    return counter.get_total_flops()


def step_flops(objective: Objective, batch: dict[str, Tensor]) -> int:
    """The floating-point operations of one training step on a batch: the loss and its gradient.

    The objective is left as it was, its random numbers and the global ones included. Masks are drawn, so two calls on
    the same objective agree, and another seed may give a slightly different number.

    Book: chapters 09 and 11.
    """
    state = deepcopy(objective.state_dict())
    gradients = {name: p.grad for name, p in objective.named_parameters()}
    for p in objective.parameters():
        p.grad = None
    try:
        with torch.random.fork_rng():
            return count_flops(lambda: objective(batch)[0].backward())
    finally:
        objective.load_state_dict(state)
        for name, p in objective.named_parameters():
            p.grad = gradients[name]
