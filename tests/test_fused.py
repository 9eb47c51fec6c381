"""The fused losses against the dense ones, which are the oracle: values, gradients, extremes, memory."""

import functools
import time

import pytest
import torch

from benchmarks.memory import peak_bytes
from jepa_lab import contrast, regularisers, sigreg
from jepa_lab.fused import pairs, panels, slices
from jepa_lab.losses import info_nce, lejepa, nt_xent, vicreg
from jepa_lab.recipe import pick_device
from jepa_lab.sigreg import sigreg as sigreg_loss
from tests.tensors import randn

TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5}


def directions():
    return torch.Generator().manual_seed(5)


LOSSES = {
    "nt_xent": nt_xent,
    "info_nce": info_nce,
    "vicreg": vicreg,
    "lejepa": lambda z1, z2, **how: lejepa(torch.stack([z1, z2]), n_slices=9, generator=directions(), **how),
}


@pytest.fixture(params=["one block", "many blocks", "nothing kept"])
def blocks(request, monkeypatch):
    """Blocks so small that a test batch needs several, and no room to keep any of them."""
    if request.param != "one block":
        monkeypatch.setitem(pairs.BLOCK, "cpu", 3)
        monkeypatch.setitem(panels.PANEL, "cpu", 3)
        monkeypatch.setitem(slices.VALUES, "cpu", 40)
    if request.param == "nothing kept":
        monkeypatch.setattr(pairs, "KEPT", 0)
        monkeypatch.setattr(panels, "KEPT", 0)


def both(loss, *inputs, **how):
    """Value, gradients and metrics of the two implementations."""
    out = []
    for implementation in ("dense", "fused"):
        leaves = [z.detach().clone(memory_format=torch.preserve_format).requires_grad_() for z in inputs]
        value, metrics = loss(*leaves, implementation=implementation, **how)
        out.append((value.detach(), torch.autograd.grad(value, leaves), metrics))
    return out


def assert_same(dense, fused, tolerance):
    torch.testing.assert_close(fused[0], dense[0], rtol=tolerance, atol=tolerance)
    for a, b in zip(fused[1], dense[1], strict=True):
        assert b.abs().max() > 0
        # A solved task has a small gradient, which is the difference of large terms, in the dense form too.
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * max(b.abs().max().item(), 1))
    assert fused[2].keys() == dense[2].keys()
    for name, value in dense[2].items():
        torch.testing.assert_close(fused[2][name], value, rtol=tolerance, atol=tolerance, msg=name)
        assert not fused[2][name].requires_grad


SHAPES = [(2, 5), (3, 2), (8, 3), (7, 7), (5, 40)]  # B = 2, odd, D < B, D = B, D > B


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", LOSSES)
def test_value_gradient_and_metrics_are_those_of_the_dense_form(name, dtype, shape, blocks):
    z1, z2 = randn(*shape).to(dtype), randn(*shape, seed=1).to(dtype)
    assert_same(*both(LOSSES[name], z1, z2), TOLERANCE[dtype])


@pytest.mark.parametrize("temperature", [0.005, 0.0105, 0.024, 0.03, 10.0])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("loss", [nt_xent, info_nce])
def test_every_temperature(loss, dtype, temperature, blocks):
    z1, z2 = randn(8, 3).to(dtype), randn(8, 3, seed=1).to(dtype)
    # A logit is a cosine over the temperature, and so is its rounding.
    assert_same(*both(loss, z1, z2, temperature=temperature), TOLERANCE[dtype] * max(1, 0.1 / temperature))


@pytest.mark.parametrize("temperature", [0.0105, 0.024, 0.026])
@pytest.mark.parametrize("loss", [nt_xent, info_nce])
def test_no_sum_overflows_at_its_shift(loss, temperature):
    """Equal rows: every logit is 1 / temperature, and exp(1 / 0.0105) times a few is near the end of float32."""
    z = torch.ones(600, 3) + 0.01 * randn(600, 3).float()
    dense, fused = both(loss, z, z.roll(1, 0), temperature=temperature)
    (dense[2].pop("accuracy"), fused[2].pop("accuracy"))  # hangs on the last digit of nearly equal rows
    assert_same(dense, fused, 2e-4)


@pytest.mark.parametrize("loss", [nt_xent, info_nce])
def test_a_solved_task_costs_nothing(loss):
    z = torch.eye(8)
    value = loss(z, z, temperature=0.02, implementation="fused")[0]
    assert 0 <= value.item() < 1e-7


@pytest.mark.parametrize("name", LOSSES)
def test_autocast_leaves_the_fused_losses_in_full_precision(name):
    z1, z2 = (randn(9, 4, seed=seed).float().requires_grad_() for seed in (0, 1))

    def found():
        value = LOSSES[name](z1, z2, implementation="fused")[0]
        return value, torch.autograd.grad(value, (z1, z2))

    value, grads = found()
    with torch.autocast("cpu", torch.bfloat16):
        other, slopes = found()
    assert torch.equal(value, other) and all(torch.equal(a, b) for a, b in zip(grads, slopes, strict=True))


def test_two_precisions_meet_in_the_higher():
    z1, z2 = randn(6, 3).requires_grad_(), randn(6, 3, seed=1).float().requires_grad_()
    assert_same(*both(vicreg, z1, z2), 1e-6)


def test_a_low_temperature_needs_its_shift():
    """Two opposite pairs: without a shift exp(-200) is 0 in float32, and its logarithm -inf."""
    z1 = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    dense, fused = both(nt_xent, z1, -z1, temperature=0.01)
    assert dense[0] == 200.0
    torch.testing.assert_close(fused[0], dense[0])
    assert torch.stack(fused[1]).isfinite().all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("shape", [(2, 8), (101, 33), (9000, 16)])  # the last in several blocks
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", LOSSES)
def test_on_a_gpu(name, dtype, shape):
    z1, z2 = (randn(*shape, seed=seed).to(pick_device(), dtype) for seed in (0, 1))
    assert_same(*both(LOSSES[name], z1, z2), TOLERANCE[dtype])
    for temperature in (0.01, 10.0) if name in ("nt_xent", "info_nce") else ():
        dense, fused = both(LOSSES[name], z1, z2, temperature=temperature)
        assert_same(dense, fused, TOLERANCE[dtype] * max(1, 0.1 / temperature))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_is_computed_in_float32(name, dtype):
    z1, z2 = randn(9, 4).to(dtype), randn(9, 4, seed=1).to(dtype)
    dense, fused = both(LOSSES[name], z1, z2)
    assert fused[0].dtype == torch.float32 and fused[1][0].dtype == dtype
    torch.testing.assert_close(fused[0], dense[0], rtol=1e-5, atol=1e-5)
    for a, b in zip(fused[1], dense[1], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0.01 * b.abs().max().item())


@pytest.mark.parametrize("name", LOSSES)
def test_duplicate_rows_zero_rows_and_strides(name, blocks):
    z1, z2 = randn(8, 4), randn(8, 4, seed=1)
    z1[3] = z1[1]
    z2[3], z2[5] = z1[1], z1[1]
    skewed = [randn(4, 8, seed=s).T for s in (2, 3)] + [randn(8, 8, seed=s)[:, ::2] for s in (4, 5)]
    assert not any(z.is_contiguous() for z in skewed)
    for a, b in ((z1, z2), skewed[:2], skewed[2:]):
        dense, fused = both(LOSSES[name], a, b)
        # Of two equal rows neither is the nearer one; which of them the dense form takes is left to their order.
        (dense[2].pop("accuracy", None), fused[2].pop("accuracy", None)) if a is z1 else None
        assert_same(dense, fused, 1e-11)
    z1[0] = 0
    dense, fused = both(LOSSES[name], z1, z2)
    torch.testing.assert_close(fused[0], dense[0])
    assert_close_finite(fused[1], dense[1])


def assert_close_finite(fused, dense):
    for a, b in zip(fused, dense, strict=True):
        assert a.isfinite().all()
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("loss", [nt_xent, info_nce])
def test_a_collapsed_batch_is_not_accurate(loss, blocks):
    z = torch.ones(8, 4, dtype=torch.float64)
    value, metrics = loss(z, z, implementation="fused")
    torch.testing.assert_close(value, loss(z, z, implementation="dense")[0])
    assert metrics["accuracy"] == 0  # a tie is no recognition


def test_info_nce_with_negatives_of_its_own_and_ignored_ones(blocks):
    q, p, n = randn(7, 4), randn(7, 4, seed=1), randn(7, 3, 4, seed=2)
    g = torch.Generator().manual_seed(0)
    ignore, ignore_own = torch.rand(7, 7, generator=g) < 0.4, torch.rand(7, 3, generator=g) < 0.4
    ignore.fill_diagonal_(True)  # says nothing of the positives
    for how in ({}, {"ignore": ignore}, {"ignore": ignore, "ignore_negatives": ignore_own}, {"in_batch": False}):
        assert_same(*both(info_nce, q, p, n, **how), 1e-11)
    with pytest.raises(ValueError, match="some row has no negative left"):
        info_nce(q, p, ignore=torch.ones(7, 7, dtype=torch.bool), implementation="fused")


@pytest.mark.parametrize("how", [{"cov_norm": "mean"}, {"variance": 0.0}, {"covariance": 0.0}, {"invariance": 0.0}])
def test_weights_and_norms_of_vicreg(how):
    for shape in ((9, 4), (4, 9)):
        assert_same(*both(vicreg, 0.3 * randn(*shape), 2 * randn(*shape, seed=1), **how), 1e-11)


def test_sums_of_millions_of_squares_do_not_drift():
    z1, z2 = randn(1100, 1024), randn(1100, 1024, seed=1)
    expected, terms = vicreg(z1, z2, implementation="dense")
    value, found = vicreg(z1.float(), z2.float(), implementation="fused")
    torch.testing.assert_close(value.double(), expected, rtol=2e-6, atol=0)
    for name, term in terms.items():
        torch.testing.assert_close(found[name].double(), term, rtol=2e-6, atol=1e-6)


def test_rounding_never_makes_a_covariance_term_negative():
    """Of features that are uncorrelated but for rounding, a third give a negative difference of the two sums."""
    for seed in range(30):
        z = randn(64, 8, seed=seed)
        z = (torch.linalg.qr(z - z.mean(0))[0] * torch.linspace(1, 3, 8)).float().requires_grad_()
        _, terms = vicreg(z, z, implementation="fused")
        assert terms["covariance"] >= 0


@pytest.mark.parametrize(("n_knots", "t_max"), [(2, 1.0), (3, 3.0), (17, 3.0), (40, 5.0)])
def test_any_number_of_knots(n_knots, t_max, blocks):
    loss = lambda z, **how: (sigreg_loss(z, 9, n_knots, t_max, directions(), **how), {})  # noqa: E731
    assert_same(*both(loss, 1.5 * randn(6, 5) + 0.5), 1e-10)


def test_gradients_against_finite_differences(blocks):
    check = functools.partial(torch.autograd.gradcheck, atol=1e-6)
    z1, z2 = randn(4, 3).requires_grad_(), randn(4, 3, seed=1).requires_grad_()
    for temperature in (0.5, 0.02):
        assert check(lambda u: pairs.log_sum_exp_of_pairs(u, temperature)[0], (randn(8, 3).requires_grad_(),))  # noqa: B023
    n = randn(4, 2, 3, seed=2).requires_grad_()
    assert check(lambda q, p, n: panels.log_sum_exp_of_candidates(q, p, n, 0.5)[0], (z1, z2, n))
    assert check(lambda a, b: vicreg(a, b, implementation="fused")[0], (z1, z2))
    assert check(lambda a: sigreg_loss(a, 3, generator=directions(), implementation="fused"), (z1,))


@pytest.mark.parametrize("name", LOSSES)
def test_one_input_alone_and_no_second_derivative(name):
    z1, z2 = randn(6, 4), randn(6, 4, seed=1).requires_grad_()
    loss = LOSSES[name]
    pair = [torch.autograd.grad(loss(z1, z2, implementation=how)[0], z2)[0] for how in ("fused", "dense")]
    torch.testing.assert_close(*pair)
    z1.requires_grad_()
    (fused,) = torch.autograd.grad(loss(z1, z2, implementation="fused")[0], z1, create_graph=True)
    (dense,) = torch.autograd.grad(loss(z1, z2, implementation="dense")[0], z1)
    torch.testing.assert_close(fused, dense)
    with pytest.raises(RuntimeError, match="no second derivative: pass implementation='dense'"):
        fused.square().sum().backward()
    with torch.no_grad():
        assert not loss(z1, z2, implementation="fused")[0].requires_grad


def test_a_weighted_sum_of_losses_scales_the_gradient(blocks):
    z1, z2 = randn(6, 4).requires_grad_(), randn(6, 4, seed=1)
    for loss in LOSSES.values():
        one, three = (torch.autograd.grad(k * loss(z1, z2, implementation="fused")[0], z1)[0] for k in (1, 3))
        torch.testing.assert_close(three, 3 * one)


def test_auto_is_dense_for_small_batches_and_on_other_devices(monkeypatch):
    """Small ones are those of the chapters and of results/, whose digits must stay."""
    used = []
    for module in (contrast, regularisers, sigreg):
        original = module.use_fused
        monkeypatch.setattr(module, "use_fused", lambda *a, f=original: used.append(f(*a)) or used[-1])
    for rows, width in ((512, 64), (1024, 128)):
        z = torch.randn(rows, width)
        nt_xent(z, z), info_nce(z, z), vicreg(z, z), sigreg_loss(z, 64 if rows == 512 else 128)
    assert used == [False] * 4 + [True] * 4
    info_nce(*torch.randn(2, 1024, 513)), nt_xent(*torch.randn(2, 1024, 513))
    assert used[8:] == [False, True]  # InfoNCE makes one product again, which costs more than it saves on wide rows
    like = torch.empty(1, device="meta")
    assert not contrast.use_fused("auto", like, 10**9, {"cpu": 1}) and contrast.use_fused("fused", like, 1, {})


@pytest.mark.parametrize(
    "loss",
    [nt_xent, info_nce, lambda z1, z2, **how: (sigreg_loss(z1, 64, **how), None)],
    ids=["nt_xent", "info_nce", "sigreg"],
)
def test_memory_grows_with_the_batch_not_its_square(loss, monkeypatch):
    monkeypatch.setattr(pairs, "KEPT", 0)
    monkeypatch.setattr(panels, "KEPT", 0)
    monkeypatch.setitem(pairs.BLOCK, "cpu", 128)
    monkeypatch.setitem(panels.PANEL, "cpu", 16)

    def peak(rows):
        z1, z2 = torch.randn(rows, 8, requires_grad=True), torch.randn(rows, 8, requires_grad=True)
        return peak_bytes(lambda: loss(z1, z2, implementation="fused")[0].backward())

    small, large = peak(500), peak(4000)
    assert small > 0 and large < 8 * 1.3 * small  # the square would be 64 times
    z = torch.randn(2, 500, 8, requires_grad=True)
    dense = peak_bytes(lambda: nt_xent(*z, implementation="dense")[0].backward())
    assert dense > 3 * 4 * 1000**2  # what measures also sees a matrix


def test_memory_as_the_package_is_set():
    """No block size or limit moved: at 2048 rows the matrix is no longer kept."""
    z = torch.randn(2, 2048, 16, requires_grad=True)
    dense, fused = (peak_bytes(lambda how=how: nt_xent(*z, 0.1, how)[0].backward()) for how in ("dense", "fused"))
    assert fused < dense / 10


def test_what_needs_no_gradient_gets_none():
    """Fixed sources and negatives: [B, K, D] would be the largest tensor of the backward pass."""
    q, p = (torch.nn.functional.normalize(randn(64, 8, seed=s), dim=1) for s in (0, 1))
    n = torch.nn.functional.normalize(randn(64, 400, 8, seed=2), dim=2)

    def peak(*learning):
        inputs = [x.detach().requires_grad_(learns) for x, learns in zip((q, p, n), learning, strict=True)]
        total = panels.log_sum_exp_of_candidates(*inputs, 0.1)[0]
        return peak_bytes(total.sum().backward), inputs[0].grad

    (alone, grad), (everything, expected) = peak(True, False, False), peak(True, True, True)
    torch.testing.assert_close(grad, expected)
    assert everything - alone > 0.9 * n.nbytes


def test_pairs_of_rows_that_are_not_contiguous():
    u = torch.nn.functional.normalize(randn(4, 8), dim=0).T.requires_grad_()
    (grad,) = torch.autograd.grad(pairs.log_sum_exp_of_pairs(u, 0.3)[0].sum(), u, create_graph=True)
    straight = u.detach().contiguous().requires_grad_()
    (expected,) = torch.autograd.grad(pairs.log_sum_exp_of_pairs(straight, 0.3)[0].sum(), straight)
    torch.testing.assert_close(grad, expected)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.sum().backward()


def test_the_angles_of_all_slices_are_held_once():
    """The readable form holds them once for each knot; the work on a block of slices needs a few blocks."""
    z = torch.randn(1024, 8, requires_grad=True)
    whole = 4 * 1024 * 512
    assert whole < peak_bytes(lambda: sigreg_loss(z, 512, implementation="fused").backward()) < 4 * whole
    assert peak_bytes(lambda: sigreg_loss(z, 512, implementation="dense").backward()) > 17 * whole


@pytest.mark.parametrize("name", ["nt_xent", "sigreg"])
def test_fused_is_faster_at_a_size_that_auto_takes(name):
    """A ratio in one process, measured in turns: 2.6 for NT-Xent and above 4 for SIGReg; noise alone gives 1."""
    z1, z2 = torch.randn(2, 1024, 128, generator=torch.Generator().manual_seed(0))
    z1.requires_grad_()
    spent = {"dense": [], "fused": []}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(4):
            for implementation, times in spent.items():
                start = time.process_time()
                if name == "nt_xent":
                    nt_xent(z1, z2, implementation=implementation)[0].backward()
                else:
                    sigreg_loss(z1, implementation=implementation).backward()
                times.append(time.process_time() - start)
    finally:
        torch.set_num_threads(threads)
    assert min(spent["dense"]) > 1.3 * min(spent["fused"])
