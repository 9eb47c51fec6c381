"""The router, its losses, the predictor around it: which gradient goes where, exact parts, known values."""

import math
from dataclasses import fields

import pytest
import torch
import torch.nn.functional as F

from jepa_lab.predictors import DecomposedConfig, DecomposedPredictor
from jepa_lab.routing import RouterConfig, SubspaceRouter, annealed, entropy, gumbel_softmax
from jepa_lab.routing_losses import (
    disentanglement,
    entropy_regularisation,
    entropy_target,
    residual_penalty,
    routing_loss,
)
from tests.tensors import randn, shake

B, D, K = 7, 6, 4


def router(k=K, **settings):
    torch.manual_seed(0)
    return SubspaceRouter(D, k, RouterConfig(**({"hidden_dim": 8, "dropout": 0.0} | settings))).double()


def predictor(k=K, router_settings=None, **settings):
    net = DecomposedPredictor(
        F.normalize(randn(k, D, seed=9), dim=1),
        router(k, **(router_settings or {})),
        DecomposedConfig(**({"hidden_dim": 8, "dropout": 0.0} | settings)),
    )
    return net.double()


def inputs(batch=B):
    return randn(batch, D, seed=2), randn(batch, D, seed=3)


# ---------------------------------------------------------------------------------------------------- the router


@pytest.mark.parametrize("sampling", ["gumbel", "straight_through", "none"])
@pytest.mark.parametrize("inference", ["softmax", "argmax"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("k", [1, K])
def test_weights_sum_to_one(sampling, inference, training, k):
    net = router(k, sampling=sampling, inference=inference).train(training)
    weights, logits = net(*inputs(), torch.Generator().manual_seed(0))
    torch.testing.assert_close(weights.sum(1), torch.ones(B, dtype=torch.float64))
    assert weights.min() >= 0 and logits.shape == (B, k)
    one_hot = bool(((weights == 0) | (weights == 1)).all())
    assert one_hot == (k == 1 or (sampling == "straight_through" if training else inference == "argmax"))


@pytest.mark.parametrize("temperature", [0.1, 0.7, 3.0])
def test_straight_through_gives_back_what_the_soft_choice_would(temperature):
    """Its vector-Jacobian product, for the same noise and the same gradient from above. The values differ."""
    logits, noise, upstream = randn(50, K), randn(50, K, seed=1), randn(50, K, seed=2)
    found, values = [], []
    for hard in (False, True):
        x = logits.clone().requires_grad_()
        y = gumbel_softmax(x, temperature, hard, noise=noise)
        found.append(torch.autograd.grad(y, x, upstream)[0])
        values.append(y.detach())
    assert torch.equal(*found) and found[0].abs().max() > 1e-3
    assert torch.equal(values[1], F.one_hot(values[0].argmax(1), K).double())  # to the bit


def test_one_hot_in_single_precision_too():
    logits = randn(5000, 30).float()
    y = gumbel_softmax(logits.requires_grad_(), 0.5, True, torch.Generator().manual_seed(0))
    assert bool(((y == 0) | (y == 1)).all()) and torch.equal(y.sum(1), torch.ones(5000))


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_a_draw_chooses_a_class_with_its_probability(temperature):
    p = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    y = gumbel_softmax(p.log().expand(40_000, -1), temperature, generator=torch.Generator().manual_seed(0))
    share = torch.bincount(y.argmax(1), minlength=4) / len(y)
    torch.testing.assert_close(share.double(), p, atol=0.01, rtol=0)  # four standard errors


def test_a_low_temperature_decides_and_a_high_one_does_not():
    logits, noise = randn(100, K), randn(100, K, seed=1)
    low, high = (entropy(gumbel_softmax(logits, t, noise=noise)).mean() for t in (0.01, 100.0))
    assert low < 0.05 and high > math.log(K) - 1e-3


def test_the_draw_depends_on_the_generator_alone():
    net = router().train()
    torch.manual_seed(0)
    one = net(*inputs(), torch.Generator().manual_seed(5)).weights
    torch.manual_seed(1)
    assert torch.equal(net(*inputs(), torch.Generator().manual_seed(5)).weights, one)
    assert not torch.equal(net(*inputs(), torch.Generator().manual_seed(6)).weights, one)


@pytest.mark.parametrize(("start", "end"), [(1.0, 0.1), (0.3, 0.7), (5.0, 0.05)])
def test_the_anneal_has_exact_ends(start, end):
    assert annealed(0.0, start, end) == annealed(-1.0, start, end) == start
    assert annealed(1.0, start, end) == annealed(2.0, start, end) == end
    assert annealed(0.5, start, end) == pytest.approx((start + end) / 2)
    steps = [annealed(i / 20, start, end) for i in range(21)]
    assert steps == sorted(steps, reverse=start > end)


def test_each_temperature_acts_where_it_should():
    """The annealed one in training, the other at inference."""
    net = router(sampling="none", inference_temperature=0.5)
    q, s = inputs()
    logits = net.logits(q, s)
    net.anneal(1.0)
    assert net.temperature == 0.1
    torch.testing.assert_close(net.train()(q, s).weights, (logits / net.temperature).softmax(1))
    torch.testing.assert_close(net.eval()(q, s).weights, (2 * logits).softmax(1))
    assert "temperature" in net.state_dict()


def test_normalize_forgets_lengths_and_both_inputs_matter():
    q, s = inputs()
    net = shake(router(normalize=True)).eval()
    torch.testing.assert_close(net.logits(3 * q, 0.2 * s), net.logits(q, s))
    assert net.logits(q, torch.zeros_like(s)).isfinite().all()
    plain = shake(router()).eval()
    for other in (plain.logits(3 * q, s), plain.logits(q, 3 * s), plain.logits(s, q)):
        assert (other - plain.logits(q, s)).abs().max() > 1e-2


def test_explain_says_what_the_softmax_says():
    net = shake(router(dropout=0.5, inference="argmax", sampling="gumbel"), size=1.0).train()
    q, s = inputs()
    names = [f"topic {i}" for i in range(K)]
    told, p = net.explain(q, s, names), net.eval().logits(q, s).softmax(1).detach()
    net.train()
    assert net.primary_subspace(q, s).tolist() == p.argmax(1).tolist() and net.training
    for one, row in zip(told, p, strict=True):
        assert one["primary"] == names[int(row.argmax())] and one["confidence"] == pytest.approx(float(row.max()))
        assert list(one["distribution"]) == names and sum(one["distribution"].values()) == pytest.approx(1)
        assert one["entropy"] == pytest.approx(-sum(x * math.log(x) for x in row.tolist()))


@pytest.mark.parametrize("names", [["a"] * K, list("abc"), list("abcde")])
def test_names_of_the_wrong_number_are_refused(names):
    with pytest.raises(ValueError, match=f"names must be {K} different names, one a subspace, got {len(names)}"):
        router().explain(*inputs(), names)


def test_entropy_has_known_values():
    p = torch.tensor([[1.0, 0, 0, 0], [0.25] * 4, [0.5, 0.5, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(entropy(p), torch.tensor([0.0, math.log(4), math.log(2)], dtype=torch.float64))


# ---------------------------------------------------------------------------------------------------- the losses


def forward():
    net = shake(predictor(), size=0.5).train()
    return net, net(*inputs(), torch.Generator().manual_seed(0))


TOPIC = torch.tensor([0, 1, 2, 3, 0, 1, 2])
LOSSES = {
    "routing": lambda out: routing_loss(out.logits, TOPIC),
    "row entropy": lambda out: entropy_regularisation(out.logits, 0.1, 0.0)[0],
    "batch entropy": lambda out: entropy_regularisation(out.logits, math.log(K), 1.0)[0],
    "residual": lambda out: residual_penalty(out.fine, 0.0),
    "disentanglement": lambda out: disentanglement(out.weights),
}


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_alone_moves_the_router_and_not_the_anchors(name):
    """A gradient in the router from all losses together would also come from the prediction alone."""
    net, out = forward()
    anchors = net.anchors.clone()
    loss = LOSSES[name](out)
    parameters = list(net.router.parameters())
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
    assert all(g.abs().max() > 1e-6 for g in gradients)
    before = loss.item()
    with torch.no_grad():
        for p, g in zip(parameters, gradients, strict=True):
            p.sub_(1e-4 * g)
    assert LOSSES[name](net(*inputs(), torch.Generator().manual_seed(0))).item() < before
    assert not net.anchors.requires_grad and torch.equal(net.anchors, anchors)
    assert "anchors" not in dict(net.named_parameters())


@pytest.mark.parametrize("name", LOSSES)
def test_detached_parts_would_be_noticed(name):
    """The published fault: losses on detached tensors look the same and teach nothing."""
    net, out = forward()
    detached = type(out)(*(part.detach() for part in out))
    assert LOSSES[name](detached) == LOSSES[name](out) and not LOSSES[name](detached).requires_grad
    assert out.prediction.requires_grad  # and yet some gradient reaches the router: that is no evidence
    assert torch.autograd.grad(out.prediction.square().sum(), net.router.net[0].weight)[0].abs().max() > 1e-6


def test_routing_loss_is_the_cross_entropy():
    assert routing_loss(torch.zeros(B, K), TOPIC) == pytest.approx(math.log(K))
    logits = randn(B, K)
    by_hand = -logits.log_softmax(1)[torch.arange(B), TOPIC].mean()
    torch.testing.assert_close(routing_loss(logits, TOPIC), by_hand)
    smooth = 0.8 * by_hand - 0.2 * logits.log_softmax(1).mean()
    torch.testing.assert_close(routing_loss(logits, TOPIC, 0.2), smooth)
    assert routing_loss(randn(B, 1), torch.zeros(B, dtype=torch.long)) == 0


def test_entropy_regularisation_has_known_values():
    uniform, sure = torch.zeros(K, K), 1e3 * torch.eye(K)
    one = 1e3 * F.one_hot(torch.zeros(K, dtype=torch.long), K).float()
    h = math.log(K)
    for logits, rows, batch in ((uniform, h, h), (sure, 0.0, h), (one, 0.0, 0.0)):
        loss, found = entropy_regularisation(logits, 0.1, 0.5)
        assert found["entropy"].item() == pytest.approx(rows, abs=1e-6)
        assert found["batch_entropy"].item() == pytest.approx(batch, abs=1e-6)
        assert loss.item() == pytest.approx(max(rows - 0.1, 0) + 0.5 * (h - batch), abs=1e-6)
    assert entropy_regularisation(randn(B, 1), 0.0)[0] == 0  # K = 1: nothing to choose


def test_the_batch_term_tells_a_collapsed_router_from_a_healthy_one():
    """Decided rows are all the row term asks for, and one subspace for all gives it that."""
    sure = 20 * torch.eye(K)
    collapsed = sure[[0] * K]
    row = [entropy_regularisation(x, 0.1, 0.0)[0].item() for x in (sure, collapsed)]
    both = [entropy_regularisation(x, 0.1, 1.0)[0].item() for x in (sure, collapsed)]
    assert row == [0.0, 0.0] and both[0] < 1e-5 and both[1] == pytest.approx(math.log(K), abs=1e-4)


def test_entropy_is_finite_where_probabilities_underflow():
    logits = torch.tensor([[0.0, -500.0, -900.0]] * 3, requires_grad=True)
    loss, _ = entropy_regularisation(logits, 0.0)
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all()


def test_entropy_target_falls_from_log_k_and_stays():
    assert entropy_target(0.0, K) == math.log(K)
    assert entropy_target(1.0, K) == entropy_target(0.5, K, until=0.5) == entropy_target(0.9, K, until=0.5)
    assert entropy_target(1.0, K) == pytest.approx(0.1)
    assert entropy_target(0.5, K) == pytest.approx((math.log(K) + 0.1) / 2)
    assert entropy_target(0.3, 1) == 0.1


def test_residual_penalty_has_known_values():
    fine = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    assert residual_penalty(fine).item() == pytest.approx(4.5 / 2)
    assert residual_penalty(fine, 0.1, scale=10.0).item() == pytest.approx(0.4 / 2)
    # Relative to the embedding: ten times larger vectors at ten times the scale cost the same.
    assert residual_penalty(10 * fine, 0.2, 10.0).item() == pytest.approx(residual_penalty(fine, 0.2, 1.0).item())
    zero = torch.zeros(2, 2, requires_grad=True)
    residual_penalty(zero, 0.0).backward()
    assert zero.grad.isfinite().all()


def test_disentanglement_has_known_values():
    w = torch.rand(50, K, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    covariance = torch.cov(w.T)
    off = covariance - covariance.diag().diag()
    torch.testing.assert_close(disentanglement(w), off.square().sum() / K)
    assert disentanglement(torch.ones(5, K)) == 0 and disentanglement(torch.rand(5, 1)) == 0
    a, b = w[:, :2], w[:, 2:]
    between = covariance[:2, 2:].square().sum() * 2 / K
    torch.testing.assert_close(disentanglement([a, b]), between)
    # Two axes that vary with each other cost more than two that do not, whatever happens within one.
    crossed = torch.cartesian_prod(torch.arange(2), torch.arange(2)).repeat(5, 1)
    one, other = F.one_hot(crossed[:, 0], 2).double(), F.one_hot(crossed[:, 1], 2).double()
    assert disentanglement([one, other]) < 1e-12 < disentanglement([one, one])


# ---------------------------------------------------------------------------------------------------- the predictor


@pytest.mark.parametrize("combine", ["concat", "add"])
@pytest.mark.parametrize("num_layers", [0, 2])
@pytest.mark.parametrize("training", [True, False])
def test_the_prediction_is_exactly_the_sum_of_its_parts(combine, num_layers, training):
    net = shake(predictor(combine=combine, num_layers=num_layers)).train(training)
    out = net(*inputs(), torch.Generator().manual_seed(0))
    assert torch.equal(out.prediction, out.coarse + out.fine) and out.fine.norm(dim=1).min() > 0.01
    torch.testing.assert_close(out.coarse, torch.einsum("bk,kd->bd", out.weights, net.anchors))


@pytest.mark.parametrize(
    ("training", "settings"), [(False, {"inference": "argmax"}), (True, {"sampling": "straight_through"})]
)
@pytest.mark.parametrize("single", [True, False])
def test_the_coarse_part_of_a_one_hot_route_is_the_centroid(training, settings, single):
    net = shake(predictor(router_settings=settings)).train(training)
    q, s = inputs(50)
    if single:
        net, q, s = net.float(), q.float(), s.float()
    out = net(q, s, torch.Generator().manual_seed(0))
    assert torch.equal(out.coarse, net.anchors[out.weights.argmax(1)])  # to the bit
    assert len(out.weights.argmax(1).unique()) > 1


@pytest.mark.parametrize("combine", ["concat", "add"])
def test_it_starts_where_it_says(combine):
    q, s = inputs()
    out = predictor(combine=combine, start="anchor")(q, s, torch.Generator().manual_seed(0))
    assert torch.equal(out.prediction, out.coarse) and out.fine.abs().max() == 0
    out = predictor(combine=combine)(q, s, torch.Generator().manual_seed(0))
    assert torch.equal(out.fine, q) and torch.equal(out.prediction, out.coarse + q)


def test_the_residual_is_zero_in_the_first_stage():
    net = shake(predictor()).eval()
    net.residual.zero_()
    out = net(*inputs())
    assert torch.equal(out.prediction, out.coarse)
    net.residual.fill_(1.0)
    assert (net(*inputs()).fine.norm(dim=1) > 0.01).all() and "residual" in net.state_dict()


def test_the_residual_depends_on_question_steering_and_coarse_part():
    net = shake(predictor()).eval()
    q, s = inputs()
    fine = net(q, s).fine
    moved = shake(predictor()).eval()
    moved.refresh(torch.roll(net.anchors, 1, 0))
    for other in (net(-q, s).fine, net(q, -s).fine, moved(q, s).fine):
        assert (other - fine).abs().max() > 1e-3


def test_percentile_is_the_place_among_the_training_pairs():
    net = predictor()
    lengths = torch.arange(1, 1002, dtype=torch.float64)
    net.calibrate(
        lengths[torch.randperm(1001, generator=torch.Generator().manual_seed(0)), None] * torch.eye(1, D).double()
    )
    asked = torch.tensor([0.0, 1.0, 11.0, 501.0, 506.0, 1001.0, 5000.0], dtype=torch.float64)
    expected = torch.tensor([0.0, 0.0, 1.0, 50.0, 50.5, 100.0, 100.0], dtype=torch.float64)
    torch.testing.assert_close(net.percentile(asked), expected)
    again = predictor()
    again.load_state_dict(net.state_dict())
    torch.testing.assert_close(again.percentile(asked), expected)


def test_percentile_where_all_are_equal():
    net = predictor()
    net.calibrate(torch.eye(1, D).double().expand(5, -1))
    assert net.percentile(torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)).tolist() == [0.0, 0.0, 100.0]


def test_k_one():
    net = shake(predictor(1)).train()
    out = net(*inputs(), torch.Generator().manual_seed(0))
    assert torch.equal(out.coarse, net.anchors.expand(B, -1)) and torch.equal(out.prediction, out.coarse + out.fine)
    told = net.router.explain(*inputs(), ["all"])[0]
    assert told == {"primary": "all", "confidence": 1.0, "distribution": {"all": 1.0}, "entropy": 0.0}


def test_configs_are_frozen_and_have_defaults():
    for config in (RouterConfig(), DecomposedConfig()):
        with pytest.raises(AttributeError):
            setattr(config, fields(config)[0].name, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RouterConfig(hidden_dim=0), "router.hidden_dim must be at least 1"),
        (lambda: RouterConfig(dropout=1.0), r"router.dropout must lie in \[0, 1\), got 1.0"),
        (lambda: RouterConfig(temperature_end=0.0), "router.temperature_end must be a positive number, got 0.0"),
        (lambda: RouterConfig(sampling="soft"), "router.sampling must be one of gumbel, straight_through, none"),
        (lambda: RouterConfig(inference="hard"), "router.inference must be one of softmax, argmax, got 'hard'"),
        (lambda: SubspaceRouter(D, 0), "n_subspaces must be at least 1, got 0"),
        (lambda: router()(randn(B, D + 1), randn(B, D)), "question must have the router's width 6, got 7"),
        (lambda: router()(randn(B, D), randn(B, D + 1)), "steering must have the router's width 6, got 7"),
        (lambda: gumbel_softmax(randn(B, K), 0.0), "temperature must be positive, got 0.0"),
        (lambda: routing_loss(randn(B, K), TOPIC, 1.0), r"label_smoothing must lie in \[0, 1\), got 1.0"),
        (lambda: entropy_regularisation(randn(B, K), -0.1), "target and batch_weight must not be negative, got -0.1"),
        (lambda: entropy_target(0.5, K, until=0.0), r"until must lie in \(0, 1\], got 0.0"),
        (lambda: residual_penalty(randn(B, D), -1.0), "margin must not be negative and scale positive, got -1.0"),
        (lambda: disentanglement(randn(1, K)), r"weights must be \[B, K\] with B >= 2"),
        (lambda: disentanglement([randn(5, K), randn(6, K)]), "the same B in each axis"),
        (lambda: DecomposedConfig(combine="sum"), "model.combine must be concat or add, got 'sum'"),
        (lambda: DecomposedConfig(start="zero"), "model.start must be anchor or question, got 'zero'"),
        (lambda: DecomposedPredictor(randn(K, D + 1), router()), "router must have 4 subspaces of width 7"),
        (lambda: DecomposedPredictor(randn(K, D) / 0, router()), "anchors must be finite"),
        (lambda: predictor().percentile(randn(3)), "calibrate the predictor on training pairs first"),
    ],
)  # fmt: skip
def test_faults_name_their_cause(call, message, unchecked):
    with pytest.raises(ValueError, match=message):
        call()
