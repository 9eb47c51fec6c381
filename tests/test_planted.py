"""Does an explanation recover what was planted? Data first, then the trained router on them."""

import functools
import math

import jaxtyping
import pytest
import torch

from jepa_lab.data.planted import planted_pairs
from jepa_lab.data.steering import SteeringConfig, SteeringDataset
from jepa_lab.explain import Explainer
from jepa_lab.objectives import JasperLossConfig, RoutedJasper, RoutedJasperConfig
from jepa_lab.predictors import DecomposedConfig
from jepa_lab.routing import RouterConfig
from jepa_lab.training import TrainConfig, Trainer, seed_all

K = 6


def test_what_is_planted_is_there():
    p = planted_pairs(20_000, K, 16, seed=3)
    rows = torch.arange(len(p.topic))
    torch.testing.assert_close(p.anchors @ p.anchors.T, torch.eye(K), atol=1e-6, rtol=0)
    for x in (p.question, p.source):
        torch.testing.assert_close(x.norm(dim=1), torch.ones(len(x)))
    torch.testing.assert_close((p.source - p.anchors[p.topic]).norm(dim=1), p.residual)
    assert ((p.source @ p.anchors.T).argmax(1) == p.topic).all()  # a source is always nearest to its own anchor
    torch.testing.assert_close(p.named.sum(1), torch.ones(len(rows)))
    assert ((p.named > 0).sum(1) <= 2).all() and p.named.max(1).values.min() >= 0.5
    torch.testing.assert_close(p.effect, -p.named[rows, p.topic].log())
    # The shares are the posterior: a topic named with share m is right in m of the cases.
    for low in (0.5, 0.6, 0.7, 0.8, 0.9):
        top = p.named.max(1)
        some = (top.values >= low) & (top.values < low + 0.1)
        right = (top.indices == p.topic)[some].double().mean().item()
        assert right == pytest.approx(top.values[some].mean().item(), abs=0.03)  # four standard errors
    assert p.effect.mean().item() == pytest.approx(0.5, abs=0.02)  # 1/2, the mean entropy of a share m ~ U(0, 1/2)


def test_the_same_seed_plants_the_same():
    one, two, other = planted_pairs(50, seed=1), planted_pairs(50, seed=1), planted_pairs(50, seed=2)
    assert torch.equal(one.question, two.question) and not torch.equal(one.question, other.question)


def test_without_noise_the_question_is_what_it_names_plus_the_residual():
    p = planted_pairs(200, K, 16, noise=0.0)
    inside = p.question @ p.anchors.T
    torch.testing.assert_close(inside / inside.sum(1, keepdim=True), p.named, atol=1e-5, rtol=0)
    outside, target = p.question - inside @ p.anchors, p.source - (p.source @ p.anchors.T) @ p.anchors
    assert torch.nn.functional.cosine_similarity(outside, target).min() > 1 - 1e-4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 1}, "planted pairs need n >= 1, k >= 2 and dim > k, got n=2400, k=1, dim=32"),
        ({"k": 32}, "k=32, dim=32"),
        ({"noise": -0.1}, "noise must not be negative and size positive, got -0.1 and 1.0"),
        ({"size": 0.0}, "got 0.02 and 0.0"),
    ],
)
def test_settings_that_are_refused(settings, message):
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(ValueError, match=message):
            planted_pairs(**settings)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def spearman(a, b):
    """Correlation of the ranks; ties do not occur."""
    a, b = (x.argsort().argsort().double() for x in (a, b))
    return torch.corrcoef(torch.stack([a, b]))[0, 1].item()


@functools.cache
def explained(seed):
    """A model trained on 1,600 planted pairs, and what it says of the other 800."""
    p = planted_pairs(seed=seed)
    train, test = slice(0, 1600), slice(1600, None)
    steering = SteeringConfig(keyword=0.0)
    data = SteeringDataset(p.question[train], p.source[train], p.topic[train], None, steering, None, 128, 20, seed)
    config = RoutedJasperConfig(
        DecomposedConfig(hidden_dim=128), loss=JasperLossConfig(vicreg=0.01), router=RouterConfig(hidden_dim=64)
    )
    seed_all(seed)
    objective = RoutedJasper(data.centroids, config, seed)
    recipe = TrainConfig(epochs=20, batch_size=128, lr=2e-3, warmup_steps=20, seed=seed, device="cpu")
    Trainer(objective, data, recipe).fit()
    explainer = Explainer(objective, [f"topic {i}" for i in range(K)], data.question, data.source, data.own_centroid)
    return p.topic[test], p.residual[test], p.effect[test], p.named[test], explainer.explain_batch(
        p.question[test], data.centroids[p.topic[test]]
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_an_explanation_recovers_what_was_planted(seed):
    """Measured over these five seeds, the recipe chosen on seeds 10 to 12: accuracy 1.00 steered and 0.73 to 0.78 not,
    within 0.015 of what is named; atypicality 0.97 to 0.98, its percentile the same; influence 0.89 to 0.92 by KL and
    0.86 to 0.90 by distance. The router is too sure of what it cannot know: mean KL 0.67 to 0.77 nats for planted 0.47
    to 0.52. With a residual that starts at zero: atypicality 0.92 to 0.93, influence by distance 0.52 to 0.61."""
    topic, residual, effect, named, told = explained(seed)
    right = torch.tensor([e.primary_subspace == f"topic {t}" for e, t in zip(told, topic.tolist(), strict=True)])
    assert right.double().mean() >= 0.95
    assert spearman(torch.tensor([e.atypicality for e in told]), residual) >= 0.9
    assert spearman(torch.tensor([e.atypicality_percentile for e in told]), residual) >= 0.9
    influence = torch.tensor([e.steering_influence.kl for e in told])
    assert spearman(influence, effect) >= 0.8
    assert spearman(torch.tensor([e.steering_influence.l2 for e in told]), effect) >= 0.8
    assert influence.mean().item() == pytest.approx(effect.mean().item(), abs=0.35)
    # Unsteered it cannot be better than what the question names, and comes near that.
    best = (named.argmax(1) == topic).double().mean().item()
    alone = [e.steering_influence.primary_without == f"topic {t}" for e, t in zip(told, topic.tolist(), strict=True)]
    assert abs(sum(alone) / len(alone) - best) < 0.05 and math.isfinite(influence.sum().item())
