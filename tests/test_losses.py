"""Losses against slow oracles, known constants, symmetries and gradients."""

import math

import pytest
import torch
import torch.nn.functional as F

from jepa_lab.losses import normalize_targets, nt_xent, prediction_loss


def slow_nt_xent(z1, z2, temperature):
    z = [row / row.norm() for row in torch.cat([z1, z2])]
    n, batch = len(z), len(z1)
    total = 0.0
    for i in range(n):
        positive = (i + batch) % n
        denominator = sum(torch.exp(z[i] @ z[j] / temperature) for j in range(n) if j != i)
        total = total - torch.log(torch.exp(z[i] @ z[positive] / temperature) / denominator)
    return total / n


def views(batch=5, dim=4, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, dim, generator=generator, dtype=dtype, requires_grad=True) for _ in range(2)]


@pytest.mark.parametrize("temperature", [0.05, 0.1, 0.5, 2.0])
@pytest.mark.parametrize("batch", [2, 5, 8])
def test_nt_xent_equals_the_double_loop_and_its_gradient(batch, temperature):
    z1, z2 = views(batch)
    fast, slow = nt_xent(z1, z2, temperature)[0], slow_nt_xent(z1, z2, temperature)
    torch.testing.assert_close(fast, slow)
    for a, b in zip(torch.autograd.grad(fast, (z1, z2)), torch.autograd.grad(slow, (z1, z2)), strict=True):
        torch.testing.assert_close(a, b)


def test_nt_xent_metrics_are_cosines_before_the_temperature():
    z1, z2 = views(6)
    for temperature in (0.05, 1.0):
        _, metrics = nt_xent(z1, z2, temperature)
        z = F.normalize(torch.cat([z1, z2]), dim=1)
        s = z @ z.T
        positive = torch.stack([s[i, (i + 6) % 12] for i in range(12)])
        negative = torch.stack([s[i, j] for i in range(12) for j in range(12) if j not in (i, (i + 6) % 12)])
        torch.testing.assert_close(metrics["positive_cosine"], positive.mean())
        torch.testing.assert_close(metrics["negative_cosine"], negative.mean())
        best = [max((j for j in range(12) if j != i), key=lambda j, i=i: s[i, j].item()) for i in range(12)]
        assert metrics["accuracy"].item() == pytest.approx(sum(best[i] == (i + 6) % 12 for i in range(12)) / 12)
        assert not any(value.requires_grad for value in metrics.values())


@pytest.mark.parametrize("batch", [2, 16, 256])
def test_a_collapsed_batch_gives_the_log_of_the_number_of_candidates(batch):
    z = torch.ones(batch, 8, dtype=torch.float64)
    loss, _ = nt_xent(z, z, 0.1)
    assert loss.item() == pytest.approx(math.log(2 * batch - 1), rel=1e-12)


def test_known_values_of_identical_views():
    """Measured before: B = 256, D = 64, identical views: 0.048 at t = 0.1 and 4.28 at t = 0.5 (the floor is not 0)."""
    z = torch.randn(256, 64, generator=torch.Generator().manual_seed(0))
    assert nt_xent(z, z, 0.1)[0].item() == pytest.approx(0.048, abs=0.015)
    assert nt_xent(z, z, 0.5)[0].item() == pytest.approx(4.28, abs=0.05)


def test_symmetries_of_nt_xent():
    z1, z2 = views(7)
    loss = nt_xent(z1, z2, 0.2)[0]
    order = torch.randperm(7, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(nt_xent(z1[order], z2[order], 0.2)[0], loss)  # permutation of the samples
    torch.testing.assert_close(nt_xent(z2, z1, 0.2)[0], loss)  # swap of the views
    torch.testing.assert_close(nt_xent(3 * z1, 0.2 * z2, 0.2)[0], loss)  # scale
    rotation = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))[0]
    torch.testing.assert_close(nt_xent(z1 @ rotation, z2 @ rotation, 0.2)[0], loss)
    assert not torch.isclose(nt_xent(z1, z2[order], 0.2)[0], loss)  # but the pairing matters


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_nt_xent_in_half_precision_is_finite_at_low_temperature(dtype):
    z1, z2 = views(32, 16, dtype=torch.float32)
    a, b = z1.detach().to(dtype).requires_grad_(), z2.detach().to(dtype)
    loss, _ = nt_xent(a, b, 0.01)
    loss.backward()
    assert loss.isfinite() and a.grad.isfinite().all() and a.grad.abs().sum() > 0
    # Only the input is rounded: everything after it is computed in fp32.
    torch.testing.assert_close(loss, nt_xent(a.detach().float(), b.float(), 0.01)[0], rtol=1e-5, atol=0.0)


def test_nt_xent_refuses_bad_input():
    z = torch.randn(4, 3)
    for temperature in (0.0, -0.1, math.inf):
        with pytest.raises(ValueError, match="temperature must be a positive number"):
            nt_xent(z, z, temperature)
    with pytest.raises(ValueError, match="at least 2 rows"):
        nt_xent(z[:1], z[:1])


@pytest.mark.parametrize(
    ("kind", "oracle"),
    [
        ("mse", lambda p, y: ((p - y) ** 2).mean()),
        ("smooth_l1", lambda p, y: torch.where((p - y).abs() < 1, 0.5 * (p - y) ** 2, (p - y).abs() - 0.5).mean()),
        ("cosine", lambda p, y: 2 - 2 * (p @ y) / (p.norm() * y.norm())),
    ],
)
def test_prediction_loss_is_the_mean_over_the_masked_tokens(kind, oracle):
    generator = torch.Generator().manual_seed(0)
    p, t = (torch.randn(3, 4, 6, dtype=torch.float64, generator=generator) for _ in range(2))
    where = torch.rand(3, 4, generator=generator) < 0.5
    expected = []
    for b in range(3):
        for n in range(4):
            if where[b, n]:
                y = (t[b, n] - t[b, n].mean()) / (t[b, n].var(unbiased=False) + 1e-5).sqrt()
                expected.append(oracle(p[b, n], y))
    torch.testing.assert_close(prediction_loss(p, t, where, kind), torch.stack(expected).mean())


@pytest.mark.parametrize("norm", ["layer", "batch", "none"])
def test_tokens_outside_the_mask_never_reach_the_loss(norm):
    generator = torch.Generator().manual_seed(0)
    p = torch.randn(3, 4, 6, dtype=torch.float64, generator=generator).requires_grad_()
    t = torch.randn(3, 4, 6, dtype=torch.float64, generator=generator)
    where = torch.rand(3, 4, generator=generator) < 0.5
    loss = prediction_loss(p, t, where, target_norm=norm)
    loss.backward()
    assert (p.grad[~where] == 0).all() and (p.grad[where] != 0).any()
    other = torch.where(where[..., None], t, 1e3)
    torch.testing.assert_close(prediction_loss(p, other, where, target_norm=norm), loss)


def test_target_norms_fix_the_scale():
    t = 7 + 3 * torch.randn(50, 6, 8, dtype=torch.float64)
    layer, batch = normalize_targets(t, "layer"), normalize_targets(t, "batch")
    torch.testing.assert_close(layer.std(-1, unbiased=False), torch.ones(50, 6).double(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(batch.flatten(0, 1).std(0, unbiased=False), torch.ones(8).double(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(batch.flatten(0, 1).mean(0), torch.zeros(8).double(), rtol=0, atol=1e-9)
    reference = F.batch_norm(t.flatten(0, 1), None, None, training=True)
    torch.testing.assert_close(batch.flatten(0, 1), reference)
    for norm in ("layer", "batch"):  # invariant to the scale of the targets, which is what stops them from shrinking
        torch.testing.assert_close(normalize_targets(1000 * t, norm), normalize_targets(t, norm), rtol=1e-4, atol=1e-4)
    assert normalize_targets(t, "none") is t


def test_prediction_loss_refuses_bad_input():
    p = torch.randn(2, 3, 4)
    with pytest.raises(ValueError, match="no masked token"):
        prediction_loss(p, p, torch.zeros(2, 3, dtype=torch.bool))
    assert prediction_loss(p, p, target_norm="none") == 0
