"""The target encoder: closed form, buffers, half precision, checkpoints, eval mode."""

import copy
import math

import pytest
import torch
from torch import nn

from jepa_lab.ema import EMAEncoder, constant, cosine, from_half_life, linear


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))


def test_closed_form_after_k_steps():
    online = net().double()
    ema = EMAEncoder(online, 0.9)
    start = [p.clone() for p in ema.target.parameters()]
    with torch.no_grad():
        for p in online.parameters():
            p.add_(1.0)
    for _ in range(7):
        ema.update(0.5)
    for p, p0, q in zip(ema.target.parameters(), start, online.parameters(), strict=True):
        torch.testing.assert_close(p, 0.9**7 * p0 + (1 - 0.9**7) * q)


def test_tau_one_freezes_and_tau_zero_copies():
    online = net()
    frozen, copied = EMAEncoder(online, 1.0), EMAEncoder(online, 0.0)
    before = copy.deepcopy(frozen.target.state_dict())
    with torch.no_grad():
        online[0].weight.mul_(2)
    frozen.update(0.3)
    copied.update(0.3)
    assert torch.equal(frozen.target[0].weight, before["0.weight"])
    assert torch.equal(copied.target[0].weight, online[0].weight)


def test_batchnorm_buffers_follow():
    online = net()
    ema = EMAEncoder(online, 0.99)
    online.train()(5 + 3 * torch.randn(64, 3))
    assert not torch.equal(ema.target[1].running_mean, online[1].running_mean)
    ema.update()
    assert torch.equal(ema.target[1].running_mean, online[1].running_mean)
    assert torch.equal(ema.target[1].running_var, online[1].running_var)
    assert ema.target[1].num_batches_tracked == 1


@pytest.mark.parametrize("when", ["built in bf16", "cast later"])
def test_bf16_weights_still_move(when):
    """In bf16 itself 1 + 0.001 is 1: an average kept in that dtype never moves."""
    online = nn.Linear(1, 1, bias=False)
    nn.init.ones_(online.weight)
    if when == "built in bf16":
        online = online.to(torch.bfloat16)
        ema = EMAEncoder(online, 0.999)
    else:
        holder = nn.ModuleDict({"online": online, "ema": EMAEncoder(online, 0.999)}).to(torch.bfloat16)
        ema = holder["ema"]
    with torch.no_grad():
        online.weight.fill_(2.0)
    for _ in range(1000):
        ema.update()
    expected = 2 - 0.999**1000
    assert ema.target.weight.dtype == torch.bfloat16
    assert ema.target.weight.item() == pytest.approx(expected, abs=2**-7)
    (shadow,) = [b for name, b in ema.named_buffers() if name.startswith("fp32_")]
    assert shadow.dtype == torch.float32
    assert shadow.item() == pytest.approx(expected, rel=1e-4)
    again = ema.float()  # back in full precision the exact average is the weight
    assert again.target.weight.item() == pytest.approx(expected, rel=1e-4)
    assert not [name for name, _ in again.named_buffers() if name.startswith("fp32_")]


def test_weights_of_similar_names_keep_their_own_average():
    class Online(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Module()
            self.a.b_c = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
            self.a_b = nn.Module()
            self.a_b.c = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))

    online = Online()
    ema = EMAEncoder(online, 0.5)
    with torch.no_grad():
        online.a.b_c.fill_(3.0)
    ema.update()
    assert ema.target.a.b_c.item() == 2.0
    assert ema.target.a_b.c.item() == 1.0


def test_train_never_puts_the_target_in_train_mode():
    holder = nn.ModuleDict({"ema": EMAEncoder(net())})
    holder.train()
    assert not any(m.training for m in holder["ema"].modules())
    x = torch.randn(5, 3)
    assert torch.equal(holder["ema"](x), holder["ema"](x))  # dropout would differ


def test_no_gradient_and_no_second_copy_of_the_online_weights():
    online = net()
    ema = EMAEncoder(online)
    assert not ema(torch.randn(5, 3, requires_grad=True)).requires_grad
    assert not any(p.requires_grad for p in ema.parameters())
    assert all(key.startswith("target.") or key == "tau" for key in ema.state_dict())


def test_state_dict_nests_and_round_trips():
    def build(seed):
        torch.manual_seed(seed)
        online = nn.Linear(3, 2)
        return nn.ModuleDict({"online": online, "ema": EMAEncoder(online, cosine(0.5, 0.9))})

    a, b = build(0), build(1)
    with torch.no_grad():
        a["online"].weight.add_(1)
    a["ema"].update(0.2)
    state = a.state_dict()
    before = dict(state)
    b.load_state_dict(state)
    assert state.keys() == before.keys()  # the caller's dict is left alone
    for m in (a, b):
        m["ema"].update(0.7)
    torch.testing.assert_close(a["ema"].target.weight, b["ema"].target.weight)
    assert a["ema"].tau == b["ema"].tau


def test_a_deep_copy_follows_its_own_online_encoder():
    online = nn.Linear(2, 2)
    holder = nn.ModuleDict({"online": online, "ema": EMAEncoder(online, 0.0)})
    twin = copy.deepcopy(holder)
    with torch.no_grad():
        twin["online"].weight.fill_(3.0)
    twin["ema"].update()
    assert (twin["ema"].target.weight == 3).all()
    assert not (holder["ema"].target.weight == 3).any()


def test_schedules():
    assert constant(0.9)(0.7) == 0.9
    assert linear(0.996, 1.0)(0.5) == pytest.approx(0.998)
    assert cosine(0.996, 1.0)(0.0) == pytest.approx(0.996)
    assert cosine(0.996, 1.0)(1.0) == pytest.approx(1.0)
    assert cosine(0.5, 1.0)(0.25) == pytest.approx(1 - 0.5 * (1 + math.cos(math.pi / 4)) / 2)
    assert from_half_life(173)(0.0) == pytest.approx(0.996, abs=1e-5)
    assert from_half_life(10)(0.0) ** 10 == pytest.approx(0.5)
    for schedule in (linear(0.996, 1.0), cosine(0.996, 1.0)):
        assert schedule(1.7) == pytest.approx(1.0)  # unclamped, a linear schedule would pass 1 and diverge
    for bad in (lambda: constant(1.1), lambda: linear(-0.1), lambda: cosine(0.9, 2.0), lambda: from_half_life(0)):
        with pytest.raises(ValueError, match=r"tau|steps"):
            bad()


def test_the_online_network_may_change_its_weights_but_not_their_number():
    """What follows it must see weights that were replaced, move a shared one once, and refuse to follow half of it."""
    online = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.BatchNorm1d(2))
    online[1].weight = online[0].weight
    ema = EMAEncoder(online, 0.5)
    before = ema.target[0].weight.clone()
    new = nn.Parameter(before.detach() + 1)
    online[0].weight = online[1].weight = new
    ema.update()
    torch.testing.assert_close(ema.target[0].weight, before + 0.5)
    online[1].weight = nn.Parameter(new.detach().clone())
    with pytest.raises(ValueError, match="online must keep its 5 weights, got 6"):
        ema.update()
    online[1].weight = new
    online[2].running_var = None
    with pytest.raises(ValueError, match="online must keep its 3 buffers, got 2"):
        ema.update()
