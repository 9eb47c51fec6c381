"""The steering predictor, its losses and Jasper: known values, slow oracles, which gradient goes where, the target."""

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentError
from torch import nn

from jepa_lab.config import build, parse
from jepa_lab.data.steering import VARIANTS, SteeringConfig, SteeringDataset
from jepa_lab.ema import cosine
from jepa_lab.losses import centroid_loss, covariance_term, info_nce, variance_term, vicreg
from jepa_lab.metrics import mean_cosine, normalized_std, retrieval_metrics, retrieval_ranks
from jepa_lab.objectives import Jasper, JasperConfig, JasperLossConfig, TargetConfig, build_objective, steering
from jepa_lab.objectives.steering import ResidualEncoder
from jepa_lab.predictors import SteeringPredictor, SteeringPredictorConfig
from jepa_lab.training import TrainConfig, Trainer
from tests.tensors import randn, shake

BASE_YAML = "jepa_lab/configs/jasper_base.yaml"
LOSSES = ("prediction", "contrastive", "centroid", "vicreg")
TARGETS = ("raw", "ema", "stop_gradient", "none")


# ------------------------------------------------------------------------------------------------- the predictor


def predictor(**settings):
    torch.manual_seed(0)
    return SteeringPredictor(6, SteeringPredictorConfig(**({"hidden_dim": 8} | settings))).double()


@pytest.mark.parametrize("num_layers", [0, 1, 2, 3])
@pytest.mark.parametrize("layer_norm", [True, False])
@pytest.mark.parametrize("batch", [1, 5])
def test_shapes_and_layers(num_layers, layer_norm, batch):
    net = predictor(num_layers=num_layers, layer_norm=layer_norm)
    assert net(randn(batch, 6), randn(batch, 6, seed=1)).shape == (batch, 6)
    hidden = [m for m in net.modules() if isinstance(m, nn.Linear) and m.out_features == 8]
    assert len(hidden) == (2 * num_layers + 1 if num_layers else 0)  # two encoders and one layer of the head
    assert sum(isinstance(m, nn.LayerNorm) for m in net.modules()) == layer_norm * len(hidden)


@pytest.mark.parametrize("num_layers", [0, 2])
@pytest.mark.parametrize("training", [True, False])
def test_the_residual_form_starts_at_the_question_and_the_plain_one_does_not(num_layers, training):
    q, s = randn(5, 6), randn(5, 6, seed=1)
    assert torch.equal(predictor(num_layers=num_layers).train(training)(q, s), q)
    assert (predictor(num_layers=num_layers, residual=False).train(training)(q, s) - q).abs().min() > 1e-3


@pytest.mark.parametrize("residual", [True, False])
def test_without_hidden_layers_it_is_linear(residual):
    """Affine: it keeps midpoints. One hidden layer does not."""
    a, b, s, t = (randn(5, 6, seed=seed) for seed in range(4))

    def bend(net):
        middle = net((a + b) / 2, (s + t) / 2)
        return (middle - (net(a, s) + net(b, t)) / 2).abs().max().item()

    assert bend(shake(predictor(num_layers=0, residual=residual))) < 1e-12
    assert bend(shake(predictor(num_layers=1, residual=residual)).eval()) > 1e-2


def test_residual_is_the_plain_form_plus_the_question():
    residual, plain = shake(predictor()).eval(), predictor(residual=False).eval()
    plain.load_state_dict(residual.state_dict())
    q, s = randn(5, 6), randn(5, 6, seed=1)
    torch.testing.assert_close(residual(q, s), q + plain(q, s))


def test_both_inputs_matter_and_are_not_exchangeable():
    net = shake(predictor()).eval()
    q, s, other = randn(5, 6), randn(5, 6, seed=1), randn(5, 6, seed=2)
    assert not torch.isclose(net(q, s), net(q, other)).any()
    assert not torch.isclose(net(q, s) - q, net(s, q) - s).any()


def test_normalize_output():
    q, s = randn(5, 6), randn(5, 6, seed=1)
    torch.testing.assert_close(predictor(normalize_output=True)(q, s), q / q.norm(dim=1, keepdim=True))
    p = shake(predictor(normalize_output=True))(q, s)
    torch.testing.assert_close(p.norm(dim=1), torch.ones(5, dtype=torch.float64))
    assert (shake(predictor())(q, s).norm(dim=1) - 1).abs().min() > 1e-3


def test_dropout_acts_in_training_alone():
    q, s = randn(5, 6), randn(5, 6, seed=1)
    net = shake(predictor(dropout=0.5))
    assert not torch.equal(net(q, s), net(q, s))
    assert torch.equal(net.eval()(q, s), net(q, s))
    still = shake(predictor(dropout=0.0))
    assert torch.equal(still(q, s), still.eval()(q, s))


def test_activations_differ():
    q, s = randn(5, 6), randn(5, 6, seed=1)
    found = [shake(predictor(activation=name)).eval()(q, s) for name in ("gelu", "relu", "silu")]
    assert not any(torch.allclose(found[i], found[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_every_weight_learns_once_the_last_layer_has_moved():
    """At the zero last layer nothing below it has a gradient: one step must be enough to wake it."""
    net, q, s, target = predictor(dropout=0.0), randn(9, 6), randn(9, 6, seed=1), randn(9, 6, seed=2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    alive = []
    for _ in range(2):
        optimizer.zero_grad()
        (net(q, s) - target).square().mean().backward()
        alive.append({name for name, p in net.named_parameters() if p.grad.abs().max() > 0})
        optimizer.step()
    assert alive[0] == {"head.4.weight", "head.4.bias"}
    assert alive[1] == {name for name, _ in net.named_parameters()}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_dim": 0}, "model.hidden_dim must be at least 1"),
        ({"num_layers": -1}, "got 8 and -1"),
        ({"dropout": 1.0}, r"model.dropout must lie in \[0, 1\), got 1.0"),
        ({"activation": "tanh"}, "model.activation must be one of gelu, relu, silu, got 'tanh'"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_predictor_settings_that_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        predictor(**settings)


@pytest.mark.usefixtures("unchecked")
def test_the_predictor_names_the_input_of_another_width():
    with pytest.raises(ValueError, match="steering must have the predictor's width 6, got 4"):
        predictor()(randn(5, 6), randn(5, 4))
    with pytest.raises(ValueError, match="question must have the predictor's width 6, got 7"):
        predictor()(randn(5, 7), randn(5, 6))


# ------------------------------------------------------------------------------------------------- InfoNCE


def slow_info_nce(q, p, negatives, temperature, ignore, ignore_negatives, in_batch):
    """Loops over candidates; returns loss, accuracy, mean cosine of positives and of all counted negatives."""

    def cos(a, b):
        return a @ b / (a.norm() * b.norm())

    losses, right, others = [], [], []
    for i in range(len(q)):
        mine = []
        if in_batch:
            mine += [cos(q[i], p[j]) for j in range(len(q)) if j != i and not (ignore is not None and ignore[i, j])]
        if negatives is not None:
            kept = [k for k in range(negatives.shape[1]) if ignore_negatives is None or not ignore_negatives[i, k]]
            mine += [cos(q[i], negatives[i, k]) for k in kept]
        own = cos(q[i], p[i])
        logits = torch.stack([own, *mine]) / temperature
        losses.append(logits.logsumexp(0) - logits[0])
        right.append(all(own > other for other in mine))
        others += mine
    positive = torch.stack([cos(a, b) for a, b in zip(q, p, strict=True)])
    return torch.stack(losses).mean(), sum(right) / len(q), positive.mean(), torch.stack(others).mean()


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_info_nce_equals_the_loop_and_its_gradient(data):
    batch, k = data.draw(st.integers(2, 5)), data.draw(st.integers(0, 3))
    in_batch = data.draw(st.booleans()) if k else True
    seed, temperature = data.draw(st.integers(0, 99)), data.draw(st.sampled_from([0.07, 0.5, 1.0]))
    inputs = [randn(batch, 4, seed=seed).requires_grad_(), randn(batch, 4, seed=seed + 100).requires_grad_()]
    negatives = randn(batch, k, 4, seed=seed + 200).requires_grad_() if k else None
    inputs += [negatives] if k else []
    draw = torch.Generator().manual_seed(seed)
    ignore = torch.rand(batch, batch, generator=draw) < 0.3
    ignore[torch.arange(batch), (torch.arange(batch) + 1) % batch] = False  # one negative is always left
    ignore_negatives = torch.rand(batch, k, generator=draw) < 0.3 if k else None
    if k:
        ignore_negatives[:, 0] = False
    case = (*inputs[:2], negatives, temperature, ignore, ignore_negatives, in_batch)
    loss, metrics = info_nce(*case)
    expected, *numbers = slow_info_nce(*case)
    numbers = [float(number.detach()) if isinstance(number, torch.Tensor) else number for number in numbers]
    torch.testing.assert_close(loss, expected)
    assert list(metrics) == ["accuracy", "positive_cosine", "negative_cosine"]
    for found, number in zip(metrics.values(), numbers, strict=True):
        assert found.item() == pytest.approx(number) and not found.requires_grad
    for a, b in zip(torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-7)


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_info_nce_of_a_collapsed_batch_is_the_log_of_the_number_of_candidates(temperature):
    z, negatives = torch.ones(6, 4, dtype=torch.float64), torch.ones(6, 3, 4, dtype=torch.float64)
    assert info_nce(z, z, None, temperature)[0].item() == pytest.approx(math.log(6))
    assert info_nce(z, z, negatives, temperature)[0].item() == pytest.approx(math.log(6 + 3))
    assert info_nce(z, z, negatives, temperature, in_batch=False)[0].item() == pytest.approx(math.log(1 + 3))


def test_info_nce_by_hand():
    """Two orthogonal pairs at temperature 1: each has cosine 1 with its own and 0 with the other."""
    z = torch.eye(2, dtype=torch.float64)
    assert info_nce(z, 3 * z, temperature=1.0)[0].item() == pytest.approx(math.log(1 + math.exp(-1)))
    assert info_nce(z, z, temperature=0.5)[0].item() == pytest.approx(math.log(1 + math.exp(-2)))
    opposite = -z[:, None]
    by_hand = math.log(1 + math.exp(-1) + math.exp(-2))
    assert info_nce(z, z, opposite, temperature=1.0)[0].item() == pytest.approx(by_hand)
    assert info_nce(z, z, temperature=0.07)[1]["accuracy"] == 1
    assert info_nce(z, z.flip(0), temperature=1.0)[0].item() == pytest.approx(math.log(1 + math.exp(1)))
    assert info_nce(z, z.flip(0))[1] == {"accuracy": 0, "positive_cosine": 0, "negative_cosine": 1}


def test_identical_sources_are_no_negatives():
    """Rows 0 and 2 have the same source: each counts candidates 1 and 3 and its own hard ones only."""
    z = torch.ones(4, 3, dtype=torch.float64)
    source = torch.tensor([7, 8, 7, 9])
    same = source[:, None] == source
    expected = (2 * math.log(3) + 2 * math.log(4)) / 4
    assert info_nce(z, z, ignore=same)[0].item() == pytest.approx(expected)
    hard, hard_id = torch.ones(4, 2, 3, dtype=torch.float64), torch.tensor([[7, 1], [8, 8], [1, 2], [3, 9]])
    found = info_nce(z, z, hard, ignore=same, ignore_negatives=hard_id == source[:, None])[0]
    counts = [3 + 1, 4 + 0, 3 + 2, 4 + 1]
    assert found.item() == pytest.approx(sum(math.log(count) for count in counts) / 4)


def test_an_ignored_candidate_may_be_anything():
    q, p, negatives = randn(4, 3), randn(4, 3, seed=1), randn(4, 2, 3, seed=2)
    ignored = torch.tensor([[True, False]] * 4)
    expected = info_nce(q, p, negatives[:, 1:])
    poisoned = negatives.clone()
    poisoned[:, 0] = q  # the perfect match
    found = info_nce(q, p, poisoned, ignore_negatives=ignored)
    torch.testing.assert_close(found[0], expected[0])
    assert found[1] == expected[1]
    poisoned.requires_grad_()
    (gradient,) = torch.autograd.grad(info_nce(q, p, poisoned, ignore_negatives=ignored)[0], poisoned)
    assert gradient[:, 0].abs().max() == 0 and gradient[:, 1].abs().min() > 0


def test_the_positive_is_never_ignored():
    q, p = randn(4, 3), randn(4, 3, seed=1)
    torch.testing.assert_close(info_nce(q, p, ignore=torch.eye(4, dtype=torch.bool))[0], info_nce(q, p)[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_finite_at_low_temperature(dtype):
    q, negatives = randn(8, 16).to(dtype).requires_grad_(), randn(8, 3, 16, seed=2).to(dtype)
    loss, _ = info_nce(q, randn(8, 16, seed=1).to(dtype), negatives, 0.01)
    centroid, _ = centroid_loss(q, randn(4, 16).to(dtype), torch.arange(8) % 4, 0.01)
    (loss + centroid).backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and centroid.isfinite() and q.grad.isfinite().all()


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ({"temperature": 0.0}, "temperature must be a positive number, got 0.0"),
        ({"temperature": math.inf}, "temperature must be a positive number, got inf"),
        ({"in_batch": False}, "in_batch=False needs negatives"),
        ({"positive": randn(3, 3)}, r"got \(4, 3\) and \(3, 3\)"),
        ({"negatives": randn(4, 2, 5)}, r"negatives must be \[B, K, D\] with query \(4, 3\), got \(4, 2, 5\)"),
        ({"negatives": randn(5, 2, 3)}, "negatives must be"),
        ({"ignore": torch.ones(4, 4).bool()}, "some row has no negative left"),
        (
            {
                "negatives": randn(4, 1, 3),
                "in_batch": False,
                "ignore_negatives": torch.arange(4)[:, None] == 3,
            },
            "some row has no negative left",
        ),
        ({"query": randn(1, 3), "positive": randn(1, 3)}, "some row has no negative left; use a larger batch"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_info_nce_refuses(case, message):
    with pytest.raises(ValueError, match=message):
        info_nce(**({"query": randn(4, 3), "positive": randn(4, 3, seed=1)} | case))


# ------------------------------------------------------------------------------------------------- centroid loss


def test_centroid_loss_by_hand():
    centroids, z = 5 * torch.eye(3, dtype=torch.float64), torch.ones(2, 3, dtype=torch.float64)
    loss, accuracy = centroid_loss(z, centroids, torch.tensor([0, 2]))
    assert loss.item() == pytest.approx(math.log(3))  # equally far from all
    loss, accuracy = centroid_loss(centroids[[1, 0]], centroids, torch.tensor([1, 2]), temperature=0.5)
    right, wrong = math.log(1 + 2 * math.exp(-2)), math.log(2 + math.exp(2))
    assert loss.item() == pytest.approx((right + wrong) / 2) and accuracy == 0.5


def test_centroid_loss_equals_the_loop_whatever_the_lengths():
    z, centroids, topic = randn(7, 4).requires_grad_(), randn(5, 4, seed=1), torch.arange(7) % 5
    total = 0.0
    for i in range(7):
        s = torch.stack([z[i] @ c / (z[i].norm() * c.norm()) / 0.1 for c in centroids])
        total = total + s.logsumexp(0) - s[topic[i]]
    loss, accuracy = centroid_loss(z, centroids, topic)
    torch.testing.assert_close(loss, total / 7)
    torch.testing.assert_close(centroid_loss(3 * z, 0.1 * centroids, topic)[0], loss)
    nearest = F.cosine_similarity(z[:, None], centroids, dim=-1).argmax(1)
    assert accuracy.item() == pytest.approx((nearest == topic).float().mean().item()) and not accuracy.requires_grad


@pytest.mark.usefixtures("unchecked")
def test_centroid_loss_refuses():
    with pytest.raises(ValueError, match=r"temperature must be a positive number, got -1\.0"):
        centroid_loss(randn(2, 3), randn(2, 3), torch.tensor([0, 1]), -1.0)
    with pytest.raises(ValueError, match="must have the same width, got 3 and 4"):
        centroid_loss(randn(2, 3), randn(2, 4), torch.tensor([0, 1]))


# ------------------------------------------------------------------------------------------------- Jasper


def pairs(n=48, dim=6, topics=4, seed=0, spread=1.0):
    centre, topic = randn(topics, dim, seed=seed), torch.arange(n) % topics
    source = centre[topic] + spread * randn(n, dim, seed=seed + 50)
    return source + 0.5 * spread * randn(n, dim, seed=seed + 90), source, topic


def dataset(seed=0, epochs=4, batch_size=16, float_=False, **extra):
    question, source, topic = pairs(seed=seed, **extra)
    if float_:
        question, source = question.float(), source.float()
    config = SteeringConfig(keyword=0.0, n_neg=3, tiers=(1.0, 1.0, 1.0, 0.0))
    return SteeringDataset(question, source, topic, None, config, None, batch_size, epochs, seed)


def only(*names, **settings):
    """These losses with weight 1, the others without."""
    return JasperLossConfig(**{name: float(name in names) for name in LOSSES}, **settings)


def jasper(loss=None, target="ema", data=None, moved=True, dropout=0.0, **ema):
    """A Jasper and a batch for it; `moved` away from the identity, online and target encoder by different amounts."""
    data = data or dataset()
    torch.manual_seed(0)
    config = JasperConfig(
        SteeringPredictorConfig(hidden_dim=8, num_layers=1, dropout=dropout),
        TargetConfig(**({"target": target, "hidden_dim": 5} | ema)),
        loss or JasperLossConfig(),
    )
    objective = Jasper(data.centroids, config).to(data.source.dtype)
    if moved:
        shake(objective.encoder, 2)
        shake(objective.predictor, 3)
        if objective.target_encoder is not None:
            shake(objective.target_encoder.target, 4)
    return objective, data[torch.arange(16)]


def oracle(objective, batch):
    """The four losses, written down with everything through the target encoder by hand."""
    c, dim = objective.config.loss, objective.centroids.shape[1]
    encoder = objective.encoder if objective.target_encoder is None else objective.target_encoder.target

    def through(x):
        x = encoder(x)
        return x / x.norm(dim=-1, keepdim=True)

    p = objective.predictor(objective.encoder(batch["question"]), batch["steering"])
    y, negatives, centroids = through(batch["source"]), through(batch["negatives"]), through(objective.centroids)
    same = batch["source_id"][:, None] == batch["source_id"]
    ignored = batch["negative_id"] == batch["source_id"][:, None]
    root = math.sqrt(dim) if c.scale == "sqrt_dim" else 1.0
    return {
        "prediction": F.smooth_l1_loss(root * p, root * y),
        "contrastive": slow_info_nce(p, y, negatives, c.temperature, same, ignored, True)[0],
        "centroid": F.cross_entropy(F.normalize(p, dim=1) @ centroids.T / c.centroid_temperature, batch["topic"]),
        "vicreg": vicreg(root * p, root * y, c.invariance, c.variance, c.covariance)[0],
    }


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("scale", ["sqrt_dim", "unit"])
def test_each_loss_has_its_value_and_everything_passes_the_target_encoder(target, scale):
    """Positive, negatives and centroids in one space: any of them left raw changes a value."""
    objective, batch = jasper(JasperLossConfig(scale=scale), target)
    _, metrics = objective(batch)
    for name, expected in oracle(objective, batch).items():
        torch.testing.assert_close(metrics[name], expected.detach())


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.1, 1.0, 2.5]), min_size=4, max_size=4).filter(any))
def test_combined_is_the_weighted_sum_of_the_parts(weights):
    config = JasperLossConfig(**dict(zip(LOSSES, weights, strict=True)))
    objective, batch = jasper(config)
    loss, metrics = objective(batch)
    parts = oracle(objective, batch)
    torch.testing.assert_close(loss, sum(w * parts[name] for name, w in zip(LOSSES, weights, strict=True)))
    assert {name for name in LOSSES if name in metrics} == {n for n, w in zip(LOSSES, weights, strict=True) if w}


def test_scale_is_the_root_of_the_dimension():
    """Smooth-L1 is half a square for small distances: times sqrt(D) each, the loss is D times as large."""
    close = dataset(dim=9, spread=0.05)
    found = [jasper(only("prediction", scale=scale), "raw", close, moved=False) for scale in ("sqrt_dim", "unit")]
    big, small = (objective(batch)[1]["prediction"] for objective, batch in found)
    batch = found[0][1]
    assert 3 * (batch["question"] - batch["source"]).abs().max() < 1  # within the square
    torch.testing.assert_close(big, 9 * small)
    torch.testing.assert_close(big, 9 * (batch["question"] - batch["source"]).square().mean() / 2)


def test_metrics_are_complete_detached_and_0_d():
    objective, batch = jasper()
    loss, metrics = objective(batch)
    assert loss.requires_grad and loss.shape == ()
    assert all(value.shape == () and not value.requires_grad for value in metrics.values())
    contrastive = {f"contrastive_{name}" for name in ("accuracy", "positive_cosine", "negative_cosine")}
    shares = {f"steering/{name}" for name in VARIANTS}
    assert set(metrics) == {*LOSSES, *contrastive, *shares, "centroid_accuracy", "target_std", "tau"}
    for i, name in enumerate(VARIANTS):
        assert metrics[f"steering/{name}"].item() == pytest.approx((batch["steering_variant"] == i).sum().item() / 16)
    assert sum(metrics[name].item() for name in shares) == pytest.approx(1)
    torch.testing.assert_close(metrics["target_std"], normalized_std(objective.target(batch["source"])))
    assert "tau" not in jasper(target="raw")[0](batch)[1]


def test_negatives_of_the_same_source_and_repeated_sources_are_left_out():
    """At the collapse every row's loss is the log of the number of its candidates."""
    objective, batch = jasper(only("contrastive"), "raw", moved=False)
    batch = {key: torch.ones_like(value) if value.is_floating_point() else value for key, value in batch.items()}
    batch["source_id"] = torch.tensor([5, 5, *range(10, 24)])
    batch["negative_id"] = torch.full((16, 3), 99)
    batch["negative_id"][2] = torch.tensor([10, 10, 99])  # two of them are row 2's own source
    counts = [15 + 3] * 2 + [16 + 1] + [16 + 3] * 13
    assert objective(batch)[0].item() == pytest.approx(sum(math.log(count) for count in counts) / 16)


def test_negatives_of_each_kind_can_be_left_out():
    objective, batch = jasper(only("contrastive", hard_negatives=False))
    poisoned = batch | {"negatives": batch["negatives"] * torch.nan}
    torch.testing.assert_close(objective(poisoned)[0], objective(batch)[0])
    p, y = objective.predict(batch["question"], batch["steering"]), objective.target(batch["source"])
    torch.testing.assert_close(objective(batch)[0], info_nce(p, y, None, 0.07)[0])
    hard_only, _ = jasper(only("contrastive", in_batch=False))
    expected = info_nce(p, y, hard_only.target(batch["negatives"]), 0.07, in_batch=False)[0]
    torch.testing.assert_close(hard_only(batch)[0], expected)


@pytest.mark.parametrize("name", ["temperature", "centroid_temperature"])
def test_each_temperature_reaches_its_loss(name):
    changed = {"temperature": "contrastive", "centroid_temperature": "centroid"}[name]
    (one, batch), (other, _) = jasper(), jasper(JasperLossConfig(**{name: 0.5}))
    before, after = one(batch)[1], other(batch)[1]
    assert [loss for loss in LOSSES if not torch.isclose(before[loss], after[loss])] == [changed]


@pytest.mark.parametrize("name", ["invariance", "variance", "covariance"])
def test_each_weight_within_vicreg_counts(name):
    (one, batch), (other, _) = jasper(only("vicreg")), jasper(only("vicreg", **{name: 50.0}))
    assert not torch.isclose(one(batch)[0], other(batch)[0])


# ------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("loss", LOSSES)
def test_each_loss_alone_moves_the_predictor_and_the_online_encoder(loss, target):
    """One loss at a time: a loss on detached outputs would hide behind the gradient of the others."""
    objective, batch = jasper(only(loss), target)
    objective(batch)[0].backward()
    silent = [n for n, p in objective.named_parameters() if p.requires_grad and not (p.grad.abs() > 0).any()]
    assert silent == []
    assert sum(p.requires_grad for p in objective.encoder.parameters()) == (0 if target == "raw" else 4)
    if target == "ema":
        assert all(p.grad is None and not p.requires_grad for p in objective.target_encoder.parameters())


@pytest.mark.parametrize("loss", LOSSES)
def test_each_loss_alone_moves_the_predictor_from_its_start(loss):
    """At p = q only the last layer has a gradient: two steps, after which every weight has moved."""
    objective, batch = jasper(only(loss), "raw", moved=False)
    before = copy.deepcopy(objective.predictor.state_dict())
    optimizer = torch.optim.SGD(objective.predictor.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        objective(batch)[0].backward()
        optimizer.step()
    assert not any(torch.equal(before[name], value) for name, value in objective.predictor.state_dict().items())


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("target", ["ema", "stop_gradient", "none"])
def test_a_gradient_reaches_the_encoder_through_the_target_in_one_mode_only(loss, target, monkeypatch):
    """With a prediction that has no gradient, what reaches the encoder came through the targets."""
    objective, batch = jasper(only(loss), target)
    constant = nn.Parameter(objective.predict(batch["question"], batch["steering"]).detach())
    monkeypatch.setattr(Jasper, "predict", lambda self, question, steering: constant)
    objective(batch)[0].backward()
    reached = any(p.grad is not None and p.grad.abs().max() > 0 for p in objective.encoder.parameters())
    assert reached == (target == "none") and constant.grad.abs().max() > 0


@pytest.mark.parametrize("what", ["source", "negatives", "centroids"])
@pytest.mark.parametrize("target", TARGETS)
def test_targets_have_unit_length_and_gradient_only_with_none(target, what):
    objective, batch = jasper(target=target)
    y = objective.target((batch | {"centroids": objective.centroids})[what])
    torch.testing.assert_close(y.norm(dim=-1), torch.ones_like(y[..., 0]))
    assert y.requires_grad == (target == "none")
    with torch.no_grad():
        assert not objective.target(batch["source"]).requires_grad


def test_only_what_learns_is_in_the_parameter_groups():
    objective, _ = jasper()
    groups = objective.param_groups(1e-3)
    learning = {p for part in (objective.encoder, objective.predictor) for p in part.parameters()}
    assert {p for group in groups for p in group["params"]} == learning


# ------------------------------------------------------------------------------------------------- target encoder


@pytest.mark.parametrize("target", TARGETS)
def test_the_target_encoder_starts_at_the_identity(target):
    objective, batch = jasper(target=target, moved=False)
    for name in ("source", "negatives"):
        torch.testing.assert_close(objective.target(batch[name]), F.normalize(batch[name], dim=-1))
    assert torch.equal(objective.predict(batch["question"], batch["steering"]), batch["question"])
    encoder = ResidualEncoder(6, 5).double()
    assert torch.equal(encoder(batch["source"]), batch["source"])
    assert not torch.equal(shake(encoder)(batch["source"]), batch["source"])


def test_the_average_follows_the_encoder_once_a_step():
    data = dataset()
    objective, _ = jasper(data=data, moved=False, start=0.5, end=0.9)
    average = [p.clone() for p in objective.target_encoder.target.parameters()]
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.1)
    for step, batch in enumerate(data(0)):
        progress = step / 3
        objective(batch)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
        assert all(
            torch.equal(a, b) for a, b in zip(average, objective.target_encoder.target.parameters(), strict=True)
        )
        objective.after_step(progress)
        tau = cosine(0.5, 0.9)(progress)
        online = list(objective.encoder.parameters())
        average = [tau * a + (1 - tau) * p.detach() for a, p in zip(average, online, strict=True)]
        for ours, theirs in zip(objective.target_encoder.target.parameters(), average, strict=True):
            torch.testing.assert_close(ours.detach(), theirs)
        average = [p.detach().clone() for p in objective.target_encoder.target.parameters()]
    assert all((a - p).abs().max() > 1e-6 for a, p in zip(average, online, strict=True))  # not a copy either


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_tau_in_the_history_follows_its_schedule(schedule):
    data = dataset(float_=True)
    objective, _ = jasper(data=data, moved=False, schedule=schedule)
    history = Trainer(objective, data, TrainConfig(epochs=4, batch_size=16, device="cpu")).fit()
    shape = {"constant": lambda x: 0.0, "linear": lambda x: x, "cosine": lambda x: (1 - math.cos(math.pi * x)) / 2}[
        schedule
    ]

    def tau(progress):
        return 0.996 + 0.003 * shape(progress)

    expected = [tau(0.0)] + [tau(step / 12) for step in range(11)]  # of the update before, 12 steps in all
    assert history["tau"] == pytest.approx(expected, abs=1e-6)
    assert history["tau"][-1] > history["tau"][0] or schedule == "constant"


def test_without_an_average_a_step_changes_nothing_more():
    for target in ("raw", "stop_gradient", "none"):
        objective, _ = jasper(target=target)
        before = copy.deepcopy(objective.state_dict())
        objective.after_step(0.5)
        assert all(torch.equal(before[k], v) for k, v in objective.state_dict().items() if isinstance(v, torch.Tensor))


class System(nn.Module):
    """Jasper as a part of a part of something larger."""

    def __init__(self, objective):
        super().__init__()
        self.parts = nn.ModuleDict({"search": nn.Sequential(objective), "other": nn.Linear(2, 2)})

    @property
    def objective(self):
        return self.parts["search"][0]


def test_the_state_dict_nests(tmp_path):
    """Saved and loaded as a part of a larger module, the target encoder gives what it gave, and goes on the same."""
    data = dataset()
    objective, batch = jasper(data=data, start=0.5, end=0.5)
    fresh, _ = jasper(data=data, moved=False, start=0.5, end=0.5)
    fresh.centroids.mul_(-1)
    saved, loaded = System(objective), System(fresh)
    assert not torch.allclose(objective.target(batch["source"]), fresh.target(batch["source"]))
    torch.save(saved.state_dict(), tmp_path / "state.pt")
    loaded.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert "parts.search.0.target_encoder.target.f.0.weight" in saved.state_dict()
    assert torch.equal(objective.target(batch["source"]), fresh.target(batch["source"]))
    assert torch.equal(objective(batch)[0], fresh(batch)[0])
    for one in (objective, fresh):  # the average still follows the encoder beside it
        optimizer = torch.optim.SGD(one.parameters(), lr=0.1)
        one(batch)[0].backward()
        optimizer.step()
        before = one.target(batch["source"])
        one.after_step(0.5)
        assert not torch.equal(before, one.target(batch["source"]))
    assert torch.equal(objective.target(batch["source"]), fresh.target(batch["source"]))


def test_a_copy_follows_its_own_encoder():
    objective, batch = jasper()
    before = objective.target(batch["source"])
    twin = copy.deepcopy(objective)
    shake(twin.encoder)
    twin.after_step(0.0)
    objective.after_step(0.0)
    assert not torch.allclose(twin.target(batch["source"]), objective.target(batch["source"]))
    assert not torch.equal(objective.target(batch["source"]), before)


# ------------------------------------------------------------------------------------------------- search


def test_represent_knows_queries_and_sources_in_eval_mode():
    objective, batch = jasper(dropout=0.5)
    objective.train()
    query = objective.represent(batch, "query")
    assert torch.equal(query, objective.represent(batch, "query")) and objective.training
    assert torch.equal(query, objective.eval().predict(batch["question"], batch["steering"]))
    assert torch.equal(objective.represent(batch, "source"), objective.target(batch["source"]))
    with pytest.raises(ValueError, match="unknown representation 'pooled'; known: query, source"):
        objective.represent(batch, "pooled")


def test_evaluate_searches_distinct_sources():
    """Sources that several questions share stand in the pool once, whatever the order and the numbers of the ids."""
    objective, batch = jasper(dropout=0.5)
    batch = {key: batch[key] for key in ("question", "source", "steering", "topic")}
    twice = {key: torch.cat([value, value[[9, 2, 9]]]) for key, value in batch.items()}
    twice["question"][16:] = randn(3, 6, seed=7)
    ids = torch.arange(16) * 5 % 97
    found = objective.evaluate(twice | {"source_id": torch.cat([ids, ids[[9, 2, 9]]])})
    query = objective.represent(twice, "query")
    right = torch.cat([torch.arange(16), torch.tensor([9, 2, 9])])
    rank = retrieval_ranks(query, objective.target(batch["source"]), right)
    expected = retrieval_metrics(rank)
    _, accuracy = centroid_loss(query, objective.target(objective.centroids), twice["topic"])
    assert found == pytest.approx(expected | {"centroid_accuracy": accuracy.item()})
    assert objective.evaluate(batch) == objective.evaluate(batch)
    del batch["topic"]  # topics that training never saw have no number
    assert list(objective.evaluate(batch)) == list(expected)


def test_evaluate_finds_everything_where_questions_are_sources():
    data = dataset()
    objective, batch = jasper(data=data, target="raw", moved=False)
    found = objective.evaluate(batch | {"question": batch["source"]})
    assert found["recall@1"] == found["mrr"] == 1
    with pytest.raises(ValueError, match="scores must be finite"):
        objective.evaluate(batch | {"question": batch["source"] * torch.nan})


# ------------------------------------------------------------------------------------------------- training


def test_training_logs_the_curriculum_and_every_component():
    data = dataset(float_=True, epochs=4, n=480, batch_size=48)
    objective, _ = jasper(data=data, moved=False, target="raw")
    history = Trainer(objective, data, TrainConfig(epochs=4, batch_size=48, device="cpu")).fit()
    zero = torch.tensor(history["steering/zero"]).view(4, 10).mean(1)
    expected = 0.5 - 0.4 * torch.arange(4) / 3
    torch.testing.assert_close(zero, expected, atol=0.1, rtol=0)  # s.d. of a share of 480 pairs: 0.023 at most
    weights = {"prediction": 1.0, "contrastive": 0.5, "centroid": 0.1, "vicreg": 0.1}
    for i, loss in enumerate(history["loss"]):
        assert loss == pytest.approx(sum(w * history[name][i] for name, w in weights.items()), rel=1e-4)


def collapse_run(seed, vicreg_weight):
    """Gradient through the target, prediction loss alone or with VICReg. Returns std and mean cosine of the targets."""
    generator = torch.Generator().manual_seed(seed)
    topic = torch.arange(512) % 8
    centre = torch.randn(8, 32, generator=generator)
    source = F.normalize(centre[topic] + torch.randn(512, 32, generator=generator), dim=1)
    question = source + 0.16 * torch.randn(512, 32, generator=generator)
    config = SteeringConfig(keyword=0.0, n_neg=0)
    data = SteeringDataset(question, source, topic, None, config, None, 128, 50, seed)
    loss = replace(only("prediction"), vicreg=vicreg_weight)
    torch.manual_seed(seed)
    model = SteeringPredictorConfig(hidden_dim=64, num_layers=1, dropout=0.0)
    objective = Jasper(data.centroids, JasperConfig(model, TargetConfig("none", hidden_dim=64), loss), seed)
    recipe = TrainConfig(epochs=50, batch_size=128, lr=1e-2, weight_decay=0.0, warmup_steps=10, seed=seed, device="cpu")
    Trainer(objective, data, recipe).fit()
    y = objective.represent({"source": data.source}, "source")
    return float(normalized_std(y)), float(mean_cosine(y))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_vicreg_on_the_normalised_target_prevents_the_collapse(seed):
    """Measured over seeds 0 to 4, without and with: std 0.044 to 0.052 and 0.936 to 0.947, mean cosine at least 0.997
    and 0.10 to 0.12. How well sources are found does not tell: a ranking is free of scale and offset."""
    std, cosine_ = collapse_run(seed, 0.0)
    assert std < 0.1 and cosine_ > 0.95
    std, cosine_ = collapse_run(seed, 0.1)
    assert std > 0.5 and cosine_ < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_vicreg_before_the_normalisation_does_not_hold(seed, monkeypatch):
    """Variance is free of offsets, a direction is not: the encoder adds a constant, every feature varies as asked, and
    all directions are nearly one. Measured over seeds 0 to 2: std 0.27 to 0.28, mean cosine 0.92 to 0.93; with the
    same terms on the normalised target, 1.00 and 0.00."""
    encoded = []
    plain = ResidualEncoder.forward
    monkeypatch.setattr(ResidualEncoder, "forward", lambda self, x: encoded.append(plain(self, x)) or encoded[-1])

    def hold(z):
        return 25 * variance_term(z) + covariance_term(z), {}

    monkeypatch.setattr(steering, "vicreg", lambda p, y, *weights: hold(encoded[-1] * 32**0.5))
    std, cosine_ = collapse_run(seed, 0.1)
    assert std < 0.45 and cosine_ > 0.8
    monkeypatch.setattr(steering, "vicreg", lambda p, y, *weights: hold(y))
    std, cosine_ = collapse_run(seed, 0.1)
    assert std > 0.8 and cosine_ < 0.2


# ------------------------------------------------------------------------------------------------- configuration


def test_the_yaml_file_reaches_the_dataclasses():
    parts = build(parse(["--config", BASE_YAML, "--objective.ema.target=ema", "--objective.model.residual=false"]))
    assert isinstance(parts.objective, JasperConfig)
    assert parts.objective.loss == JasperLossConfig(vicreg=0.01) and parts.objective.loss.contrastive == 0.5
    assert parts.objective.model == SteeringPredictorConfig(hidden_dim=512, residual=False)
    assert (parts.objective.ema.target, parts.objective.ema.start, parts.objective.ema.end) == ("ema", 0.996, 0.999)
    assert parts.steering == SteeringConfig(variant="centroid") and parts.trainer.epochs == 10


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--objective.loss.invariances=1", "objective.loss.invariances"),
        ("--objective.model.hidden_dim=wide", "objective.model.hidden_dim"),
        ("--objective.model.activation=tanh", "objective.model.activation"),
        ("--objective.ema.target=teacher", "objective.ema.target"),
        ("--objective.ema.start=1.5", r"ema.start must lie in \[0, 1\], got 1.5"),
        ("--objective.loss.temperature=0", "loss.temperature must be a positive number, got 0"),
        ("--steering.variant=both", "steering.variant"),
        ("--steering.tiers=[1, 1]", "steering.tiers"),
        ("--steering.zero_start=2", "steering.zero_start must lie"),
        ("--mask.ratio=0.5", "mask"),  # belongs to another objective
    ],
)
def test_a_wrong_setting_is_named(argument, message):
    with pytest.raises((ArgumentError, ValueError), match=message):
        parse(["--config", BASE_YAML, argument])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TargetConfig("teacher"), "ema.target must be one of raw, ema, stop_gradient, none, got 'teacher'"),
        (lambda: TargetConfig(schedule="step"), "ema.schedule must be one of constant, linear, cosine, got 'step'"),
        (lambda: TargetConfig(end=-0.1), r"ema.end must lie in \[0, 1\], got -0.1"),
        (lambda: TargetConfig(hidden_dim=0), "ema.hidden_dim must be at least 1, got 0"),
        (lambda: JasperLossConfig(scale="big"), "loss.scale must be one of sqrt_dim, unit, got 'big'"),
        (lambda: only(), "one of the weights prediction, contrastive, centroid, vicreg must be positive"),
        (lambda: JasperLossConfig(vicreg=-0.1), "loss.vicreg must be a finite number that is not negative, got -0.1"),
        (lambda: JasperLossConfig(prediction=math.nan), "loss.prediction must be a finite number"),
        (lambda: JasperLossConfig(variance=-1.0), "loss.variance must be a finite number"),
        (lambda: JasperLossConfig(temperature=math.inf), "loss.temperature must be a positive number, got inf"),
        (
            lambda: JasperLossConfig(centroid_temperature=0.0),
            "loss.centroid_temperature must be a positive number, got 0.0",
        ),
        (lambda: JasperLossConfig(in_batch=False, hard_negatives=False), "needs in_batch or hard_negatives"),
        (lambda: Jasper(torch.full((2, 3), torch.nan)), "centroids must be finite"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_settings_that_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("target", TARGETS)
def test_embeddings_of_another_width_are_named(target):
    objective, batch = jasper(target=target)
    with pytest.raises(ValueError, match="question must have the centroids' width 6, got 5"):
        objective(batch | {"question": randn(16, 5)})
    with pytest.raises(ValueError, match="source must have the centroids' width 6, got 7"):
        objective(batch | {"source": randn(16, 7)})
    with pytest.raises(ValueError, match="steering must have the predictor's width 6, got 5"):
        objective(batch | {"steering": randn(16, 5)})


def test_the_factory_builds_it():
    objective = build_objective("jasper", torch.eye(3), loss=only("contrastive"), ema=TargetConfig("ema"))
    assert isinstance(objective, Jasper) and objective.config.loss == only("contrastive")
    with pytest.raises(TypeError, match="weights"):
        build_objective("jasper", torch.eye(3), weights=1.0)
