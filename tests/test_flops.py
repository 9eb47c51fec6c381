"""Are operations counted as the closed forms say, and is the objective left alone?"""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from jepa_lab.flops import count_flops, step_flops
from jepa_lab.masking import MaskConfig
from jepa_lab.nets import Transformer
from jepa_lab.objectives import JEPA, JEPAConfig
from tests.test_objectives import batch, encoder


def attend(batch, heads, queries, keys, width, backward, mask=None):
    q = torch.randn(batch, heads, queries, width, requires_grad=True)
    k, v = (torch.randn(batch, heads, keys, width, requires_grad=True) for _ in range(2))

    def run():
        y = F.scaled_dot_product_attention(q, k, v, mask)
        if backward:
            y.sum().backward()

    return count_flops(run)


def test_a_product_takes_two_operations_a_term():
    layer = nn.Linear(5, 7, bias=False)
    x = torch.randn(3, 5)
    assert count_flops(lambda: layer(x)) == 2 * 3 * 5 * 7
    # backwards only to the weights: x asks for no gradient
    assert count_flops(lambda: layer(x).sum().backward()) == 2 * (2 * 3 * 5 * 7)


@pytest.mark.parametrize("mask", [None, torch.ones(1, 1, 6, 9, dtype=torch.bool)])
def test_attention_on_the_cpu_is_counted(mask):
    batch, heads, queries, keys, width = 2, 3, 6, 9, 8
    product = 2 * batch * heads * queries * keys * width
    assert attend(batch, heads, queries, keys, width, False, mask) == 2 * product
    # forward 2 products, backward 5: the scores once more, and two gradients of each product
    assert attend(batch, heads, queries, keys, width, True, mask) == 7 * product


def test_a_transformer_equals_the_closed_form():
    tokens, dim, depth = 6, 16, 3
    x = torch.randn(2, tokens, dim)
    net, valid = Transformer(dim, depth, heads=2), torch.ones(2, tokens, dtype=torch.bool)
    weights = sum(p.numel() for p in net.parameters() if p.ndim == 2)
    # every weight once a token, and in each layer N^2 scores of dim terms, twice
    forward = 2 * 2 * tokens * weights + depth * 2 * 2 * 2 * tokens**2 * dim
    assert count_flops(lambda: net(x, valid)) == forward


def test_a_step_counts_what_the_context_encoder_does_not_see():
    """Fewer tokens seen is less work for the context encoder. The target encoder sees all, without a gradient."""
    few, many = (
        step_flops(JEPA(encoder(16), JEPAConfig(MaskConfig(ratio=ratio))), batch(size=16)) for ratio in (0.8, 0.2)
    )
    assert 0 < few < many
    twice = {name: torch.cat([x, x]) for name, x in batch(size=16).items()}
    assert step_flops(JEPA(encoder(16)), twice) == 2 * step_flops(JEPA(encoder(16)), batch(size=16))


def draw_globally(*_):
    torch.rand(1)  # as dropout does


def test_counting_leaves_no_trace():
    objective = JEPA(encoder(16))
    objective(batch(size=16))[0].backward()
    before, gradients = deepcopy(objective.state_dict()), deepcopy([p.grad for p in objective.parameters()])
    objective.register_forward_pre_hook(draw_globally)
    torch.manual_seed(3)
    drawn = torch.get_rng_state()
    step_flops(objective, batch(size=16))
    assert torch.equal(torch.get_rng_state(), drawn)
    # parameters, buffers and the generator of the masks
    torch.testing.assert_close(objective.state_dict(), before, rtol=0, atol=0)
    torch.testing.assert_close([p.grad for p in objective.parameters()], gradients, rtol=0, atol=0)


def test_an_error_leaves_no_trace_either():
    objective = JEPA(encoder(16))
    objective(batch(size=16))[0].backward()
    gradients = [p.grad for p in objective.parameters()]
    with pytest.raises(KeyError):
        step_flops(objective, {})
    assert all(p.grad is kept for p, kept in zip(objective.parameters(), gradients, strict=True))
