"""RoutedJasper: Jasper's four losses and those on the routing, schedules, anchors, what it logs and evaluates."""

import math

import jaxtyping
import pytest
import torch
import torch.nn.functional as F

from jepa_lab.calibration import auroc, expected_calibration_error, reliability, risk_coverage
from jepa_lab.data.steering import SteeringConfig, SteeringDataset
from jepa_lab.objectives import (
    Jasper,
    JasperLossConfig,
    RoutedJasper,
    RoutedJasperConfig,
    RoutingLossConfig,
    TargetConfig,
    build_objective,
)
from jepa_lab.objectives.routed import subspaces_used
from jepa_lab.predictors import DecomposedConfig
from jepa_lab.routing import RouterConfig
from jepa_lab.training import TrainConfig, Trainer, seed_all
from tests.tensors import randn, shake

TOPICS, DIM = 4, 6
PARTS = ("routing", "entropy", "residual", "disentanglement")


def dataset(epochs=4, n=48, seed=0, single=False):
    topic = torch.arange(n) % TOPICS
    source = randn(TOPICS, DIM, seed=seed)[topic] + 0.5 * randn(n, DIM, seed=seed + 1)
    question = source + 0.3 * randn(n, DIM, seed=seed + 2)
    if single:
        source, question = source.float(), question.float()
    config = SteeringConfig(keyword=0.0, n_neg=3, tiers=(1.0, 1.0, 1.0, 0.0))
    return SteeringDataset(question, source, topic, None, config, None, 16, epochs, seed)


def routed(target="raw", moved=True, data=None, routing=None, loss=None, router=None, **settings):
    """A model without dropout, away from its zeros, and a batch for it."""
    data = data or dataset()
    torch.manual_seed(0)
    config = RoutedJasperConfig(
        DecomposedConfig(hidden_dim=8, num_layers=1, dropout=0.0),
        TargetConfig(target, hidden_dim=5),
        loss or JasperLossConfig(),
        RouterConfig(**({"hidden_dim": 8, "dropout": 0.0} | (router or {}))),
        routing or RoutingLossConfig(residual_margin=0.0),
        **settings,
    )
    objective = RoutedJasper(data.centroids, config).to(data.source.dtype)
    if moved:
        shake(objective.predictor, 3)
        shake(objective.encoder, 2)
        if objective.target_encoder is not None:
            shake(objective.target_encoder.target, 4)
    return objective, data[torch.arange(16)]


def only(name):
    """This routing loss at weight 1, the others at 0."""
    return RoutingLossConfig(**(dict.fromkeys(PARTS, 0.0) | {name: 1.0}), residual_margin=0.0, entropy_until=0.01)


@pytest.mark.parametrize("target", ["raw", "ema", "stop_gradient", "none"])
def test_the_loss_is_jaspers_plus_the_weighted_routing_losses(target):
    objective, batch = routed(target, routing=RoutingLossConfig(0.7, 0.3, 0.2, 0.1, residual_margin=0.0))
    objective.before_step(0.4)
    state = objective.generator.get_state()
    total, metrics = objective(batch)
    objective.generator.set_state(state)
    out = objective.decompose(batch["question"], batch["steering"])
    expected, four = Jasper._losses(objective, out.prediction, objective.target(batch["source"]), batch)
    for name in ("prediction", "contrastive", "centroid", "vicreg"):
        torch.testing.assert_close(metrics[name], four[name])
    p = out.logits.softmax(1)
    rows, mean = -(p * p.log()).sum(1), p.mean(0)
    allowed = math.log(TOPICS) + (0.1 - math.log(TOPICS)) * 0.4
    covariance = torch.cov(out.weights.T)
    parts = {
        "routing": F.cross_entropy(out.logits, batch["topic"]),
        "entropy": (rows - allowed).relu().mean() + math.log(TOPICS) + (mean * mean.log()).sum(),
        "residual": out.fine.norm(dim=1).mean(),
        "disentanglement": (covariance - covariance.diag().diag()).square().sum() / TOPICS,
    }
    for (name, value), weight in zip(parts.items(), (0.7, 0.3, 0.2, 0.1), strict=True):
        torch.testing.assert_close(metrics[f"{name}_loss"], value.detach(), rtol=1e-6, atol=1e-6)
        expected = expected + weight * value
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=1e-6)
    assert metrics["routing_accuracy"] == (out.logits.argmax(1) == batch["topic"]).float().mean()
    torch.testing.assert_close(metrics["entropy"], rows.mean().detach())
    torch.testing.assert_close(metrics["batch_entropy"], -(mean * mean.log()).sum().detach())
    torch.testing.assert_close(metrics["residual_norm"], parts["residual"].detach())
    assert not any(value.requires_grad for value in metrics.values())


@pytest.mark.parametrize("name", PARTS)
def test_each_routing_loss_reaches_the_router_by_itself(name):
    """The difference between the gradients with this loss and without any is that of the loss alone."""
    found = []
    for routing in (RoutingLossConfig(0.0, 0.0, 0.0, 0.0), only(name)):
        objective, batch = routed(routing=routing, router={"sampling": "none"})
        objective.before_step(0.5)
        objective.train()(batch)[0].backward()
        found.append([p.grad.clone() for p in objective.predictor.router.parameters()])
        assert not objective.predictor.anchors.requires_grad
    assert all((a - b).abs().max() > 1e-7 for a, b in zip(*found, strict=True))


def test_schedules():
    objective, batch = routed(router_first=0.5, routing=RoutingLossConfig(entropy_until=0.5))
    objective.before_step(0.0)
    assert objective.predictor.router.temperature == 1 and objective.predictor.residual == 0
    assert objective.entropy_allowed.item() == pytest.approx(math.log(TOPICS))
    out = objective.decompose(batch["question"], batch["steering"])
    assert torch.equal(out.prediction, out.coarse)
    objective.before_step(0.5)
    assert objective.predictor.residual == 1 and objective.entropy_allowed.item() == pytest.approx(0.1)
    objective.before_step(1.0)
    assert objective.predictor.router.temperature.item() == pytest.approx(0.1)
    assert {"entropy_allowed", "refreshed", "predictor.residual", "predictor.router.temperature"} <= set(
        objective.state_dict()
    )


@pytest.mark.parametrize("target", ["raw", "ema", "stop_gradient", "none"])
def test_anchors_are_the_targets_of_the_centroids_at_the_start_and_stay(target):
    objective, batch = routed(target, moved=False)
    torch.testing.assert_close(objective.predictor.anchors, objective.target(objective.centroids).detach())
    before = objective.predictor.anchors.clone()
    shake(objective.encoder, 2)
    if objective.target_encoder is not None:
        shake(objective.target_encoder.target, 4)
    for progress in (0.0, 0.5, 0.99):
        objective.before_step(progress)
        objective(batch)[0].backward()
    assert torch.equal(objective.predictor.anchors, before)  # frozen, although the target encoder moved
    if target != "raw":
        assert (objective.target(objective.centroids) - before).abs().max() > 1e-2


def test_anchors_are_refreshed_when_due():
    objective, _ = routed("ema", refreshes=4)
    anchors = objective.predictor.anchors
    start = anchors.clone()
    for i in range(40):
        objective.before_step(i / 40)
        if i == 9:
            assert torch.equal(anchors, start)
        if i == 10:
            torch.testing.assert_close(anchors, objective.target(objective.centroids))
            assert not torch.equal(anchors, start)
            kept = anchors.clone()
            shake(objective.target_encoder.target, 5)
        if i == 19:
            assert torch.equal(anchors, kept)
    torch.testing.assert_close(anchors, objective.target(objective.centroids))
    assert objective.refreshed == 3


def test_a_resumed_model_refreshes_as_the_other_would():
    one, other = routed("ema", refreshes=4)[0], routed("ema", refreshes=4, moved=False)[0]
    one.before_step(0.3)
    other.load_state_dict(one.state_dict())
    for objective in (one, other):
        shake(objective.target_encoder.target, 5)
        objective.before_step(0.4)  # not due: the refresh at 0.25 has been
    assert torch.equal(one.predictor.anchors, other.predictor.anchors)


def test_evaluation_routes_by_the_question_alone():
    data = dataset()
    objective, _ = routed(data=data)
    held_out = {"question": data.question, "source": data.source, "steering": data.own_centroid}
    plain = objective.evaluate(held_out)
    assert "routing_accuracy" not in plain
    found = objective.evaluate(held_out | {"topic": data.topic})
    assert objective.training and {name: found[name] for name in plain} == plain
    objective.eval()
    logits = objective.decompose(data.question, torch.zeros_like(data.question)).logits.detach()
    assert found["routing_accuracy"] == pytest.approx((logits.argmax(1) == data.topic).double().mean().item())
    assert found["ece"] == pytest.approx(expected_calibration_error(logits.softmax(1), data.topic))
    assert found["subspaces_used"] == pytest.approx(subspaces_used(logits).item())
    p = logits.softmax(1)
    assert found["entropy"] == pytest.approx(-(p * p.log()).sum(1).mean().item(), rel=1e-4)
    assert found["batch_entropy"] == pytest.approx(-(p.mean(0) * p.mean(0).log()).sum().item(), rel=1e-4)
    steered = objective.decompose(data.question, data.own_centroid).logits
    assert (steered - logits).abs().max() > 1e-2


def test_subspaces_used():
    eye = torch.eye(TOPICS)
    assert subspaces_used(eye).item() == pytest.approx(TOPICS) and subspaces_used(eye[[1, 1, 1]]).item() == 1
    assert subspaces_used(eye[[0, 0, 1, 1]]).item() == pytest.approx(2)


def test_one_topic():
    data = dataset()
    centroids = data.centroids[:1]
    objective = RoutedJasper(centroids, RoutedJasperConfig()).double()
    batch = data[torch.arange(16)] | {"topic": torch.zeros(16, dtype=torch.long)}
    loss, metrics = objective(batch)
    loss.backward()
    assert metrics["routing_accuracy"] == 1 and metrics["subspaces_used"] == 1 and metrics["entropy"] == 0


def train(routing, router_first=0.0, epochs=40, seed=0):
    data = dataset(epochs, n=96, single=True, seed=10 * seed)
    objective, _ = routed(data=data, moved=False, routing=routing, router_first=router_first)
    seed_all(seed)
    Trainer(objective, data, TrainConfig(epochs=epochs, batch_size=16, lr=3e-3, warmup_steps=5, device="cpu")).fit()
    held_out = {"question": data.question, "source": data.source, "steering": data.own_centroid, "topic": data.topic}
    return objective.evaluate(held_out)


def test_training_teaches_the_router():
    """Accuracy from the question alone, measured over data seeds 0 to 4: 0.81 to 0.99 of the trained questions, and
    0.35 to 0.69 without the routing losses, at differences of 0.29 to 0.59; subspaces used 3.5 to 4.0 of 4."""
    found, without = train(RoutingLossConfig()), train(RoutingLossConfig(0.0, 0.0, 0.0, 0.0))
    assert found["routing_accuracy"] > without["routing_accuracy"] + 0.2 and found["subspaces_used"] > 3


def test_built_by_name_and_settings_that_are_refused():
    centroids = dataset().centroids
    assert isinstance(build_objective("jasper_routed", centroids, router_first=0.2), RoutedJasper)
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        for call, message in [
            (lambda: RoutingLossConfig(entropy=-1.0), "routing.entropy must not be negative, got -1.0"),
            (lambda: RoutingLossConfig(entropy_until=0.0), r"routing.entropy_until must lie in \(0, 1\], got 0.0"),
            (lambda: RoutingLossConfig(label_smoothing=1.0), "routing.label_smoothing must lie"),
            (lambda: RoutedJasperConfig(router_first=1.0), r"router_first must lie in \[0, 1\), got 1.0"),
            (lambda: RoutedJasperConfig(refreshes=-1), "refreshes must not be negative, got -1"),
            (lambda: routed()[0].predict(randn(2, 7), randn(2, 6)), "question must have the centroids' width 6, got 7"),
        ]:
            with pytest.raises(ValueError, match=message):
                call()
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


# ------------------------------------------------------------------------------------------------- calibration


def test_calibration_has_known_values():
    p = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.2, 0.8], [0.45, 0.55]], dtype=torch.float64)
    label = torch.tensor([0, 1, 1, 1])
    r = reliability(p, label, bins=10)
    assert r.count.tolist() == [1, 1, 2] and r.accuracy.tolist() == [1, 1, 0.5]
    torch.testing.assert_close(r.confidence, torch.tensor([0.55, 0.8, 0.9], dtype=torch.float64))
    assert expected_calibration_error(p, label, 10) == pytest.approx((0.45 + 0.2 + 2 * 0.4) / 4)
    sure = F.one_hot(label, 2).double()
    assert expected_calibration_error(sure, label) == 0 and expected_calibration_error(sure, 1 - label) == 1


def test_a_calibrated_forecast_has_no_error():
    p = 0.5 + 0.5 * torch.rand(50_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    label = (torch.rand(50_000, generator=torch.Generator().manual_seed(1)) > p).long()
    both = torch.stack([p, 1 - p], 1)
    assert expected_calibration_error(both, label) < 0.01
    over = torch.stack([p**0.2, 1 - p**0.2], 1)
    assert expected_calibration_error(over, label) > 0.1


def test_auroc_equals_the_loop_with_ties():
    score = torch.randint(5, (40,), generator=torch.Generator().manual_seed(0)).double()
    positive = torch.rand(40, generator=torch.Generator().manual_seed(1)) < 0.4
    pairs = [(a > b) + 0.5 * (a == b) for a in score[positive].tolist() for b in score[~positive].tolist()]
    assert auroc(score, positive) == pytest.approx(sum(pairs) / len(pairs))
    assert auroc(positive.double(), positive) == 1 and auroc(-positive.double(), positive) == 0
    assert auroc(torch.zeros(40), positive) == 0.5
    for bad in (torch.zeros(40, dtype=torch.bool), torch.ones(40, dtype=torch.bool)):
        with pytest.raises(ValueError, match="positive must hold both kinds"):
            auroc(score, bad)


def test_risk_coverage():
    failed = torch.tensor([True, False, False, True])
    coverage, risk = risk_coverage(torch.tensor([4.0, 1.0, 2.0, 3.0]), failed)
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1.0] and risk.tolist() == pytest.approx([0, 0, 1 / 3, 0.5])
    assert risk_coverage(torch.zeros(4), failed)[1].tolist() == [0.5] * 4
    with pytest.raises(ValueError, match="doubt must be finite"):
        risk_coverage(torch.tensor([math.nan]), failed[:1])
