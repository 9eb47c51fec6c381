"""Agreement with lightly, where the extra `bench` is installed: an oracle that others wrote."""

import pytest
import torch

from jepa_lab.losses import barlow_twins, nt_xent, vicreg

lightly_loss = pytest.importorskip("lightly.loss", reason="lightly is not installed: pip install 'jepa-lab[bench]'")


def views(rows, dim, seed=0):
    g = torch.Generator().manual_seed(seed)
    z1 = torch.randn(rows, dim, generator=g)
    return z1.requires_grad_(), (z1.detach() + 0.5 * torch.randn(rows, dim, generator=g)).requires_grad_()


def assert_same(ours, theirs, inputs):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    for a, b in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("rows", "dim"), [(64, 16), (16, 64)])
def test_vicreg(rows, dim):
    z1, z2 = views(rows, dim)
    # lightly's terms: mse, half the sum of the two hinges, the sum of the two covariances
    assert_same(vicreg(z1, z2)[0], lightly_loss.VICRegLoss()(z1, z2), (z1, z2))


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_nt_xent(temperature):
    z1, z2 = views(64, 16)
    assert_same(nt_xent(z1, z2, temperature)[0], lightly_loss.NTXentLoss(temperature)(z1, z2), (z1, z2))


def test_barlow_twins():
    z1, z2 = views(64, 16)
    assert_same(barlow_twins(z1, z2)[0], lightly_loss.BarlowTwinsLoss(lambda_param=5e-3)(z1, z2), (z1, z2))
