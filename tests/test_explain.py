"""Explanations: their schema, that they say what the model does, batch and single, and what is refused."""

import json
import math
from dataclasses import asdict, fields

import matplotlib
import pytest
import torch
import torch.nn.functional as F

from jepa_lab.calibration import percentile_of, quantiles_of
from jepa_lab.data.steering import SteeringConfig
from jepa_lab.explain import Explainer, Thresholds
from jepa_lab.explain_text import page, unsteered
from jepa_lab.explain_words import actionable_signal
from jepa_lab.explanation import Explanation, Influence
from jepa_lab.objectives import Jasper, JasperConfig, RoutedJasper, RoutedJasperConfig, TargetConfig
from jepa_lab.predictors import DecomposedConfig, SteeringPredictorConfig
from jepa_lab.routing import RouterConfig

N, D, K = 40, 6, 4
NAMES = ["linalg", "optimize", "nn", "tkinter"]
KIND = {
    "form": str, "prediction": list, "steering_influence": dict, "question": str, "primary_subspace": str,
    "confidence": float, "distribution": dict, "entropy": float, "max_entropy": float, "coarse_norm": float,
    "atypicality": float, "atypicality_percentile": float, "max_similarity": float, "max_similarity_percentile": float,
    "nearest": list, "actionable_signal": str, "thresholds": dict,
}  # fmt: skip
ROUTED_ONLY = {
    "primary_subspace", "confidence", "distribution", "entropy", "max_entropy", "coarse_norm", "atypicality",
    "atypicality_percentile",
}  # fmt: skip


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def shake(module, seed=1, size=0.3):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(size * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return module


def routed(k=K, moved=True, target="ema", dropout=0.5):
    torch.manual_seed(0)
    config = RoutedJasperConfig(
        DecomposedConfig(hidden_dim=8, dropout=dropout),
        TargetConfig(target, hidden_dim=5),
        router=RouterConfig(hidden_dim=8, dropout=dropout),
    )
    objective = RoutedJasper(unit(k, D, seed=7), config)
    return shake(objective) if moved else objective


def plain():
    torch.manual_seed(0)
    return shake(Jasper(unit(K, D, seed=7), JasperConfig(SteeringPredictorConfig(hidden_dim=8))))


def known():
    return {
        "known_question": unit(N, D, seed=1),
        "known_source": unit(N, D, seed=2),
        "known_steering": unit(N, D, seed=3),
        "known_text": [(f"question {i}", f"source {i}") for i in range(N)],
        "known_topic": torch.arange(N) % K,
    }


def explainer(objective=None, **changes):
    objective = objective or routed()
    return Explainer(objective, NAMES[: len(objective.centroids)], **(known() | changes))


def asked(n=5):
    return unit(n, D, seed=4), unit(n, D, seed=5)


@pytest.mark.parametrize("make", [routed, plain])
def test_schema(make):
    q, s = asked()
    one = explainer(make()).explain(q[0], s[0], "how?")
    data = json.loads(one.to_json())
    assert list(data) == [f.name for f in fields(Explanation)] and set(data) == set(KIND)
    missing = {name for name, value in data.items() if value is None}
    assert missing == (set() if make is routed else ROUTED_ONLY)
    assert one.form == ("routed" if make is routed else "reduced")
    for name in KIND.keys() - missing:
        assert type(data[name]) is KIND[name], name
    assert len(data["prediction"]) == D and data["question"] == "how?" and data["actionable_signal"]
    assert data["thresholds"] == asdict(Thresholds()) and len(data["nearest"]) == 3
    assert [pair["similarity"] for pair in data["nearest"]] == sorted(
        (pair["similarity"] for pair in data["nearest"]), reverse=True
    )
    if make is routed:
        assert list(data["distribution"]) == NAMES and sum(data["distribution"].values()) == pytest.approx(1)
        assert data["confidence"] == max(data["distribution"].values()) == data["distribution"][one.primary_subspace]
        assert 0 <= data["entropy"] <= data["max_entropy"] == math.log(K)


@pytest.mark.parametrize("make", [routed, plain])
@pytest.mark.parametrize("bare", [True, False])
def test_json_round_trip(make, bare):
    q, s = asked()
    one = (Explainer(make(), NAMES) if bare else explainer(make())).explain(q[0], s[0])
    assert Explanation.from_json(one.to_json()) == one
    with pytest.raises(TypeError):
        Explanation.from_json(one.to_json().replace('"form"', '"shape"'))


def leaves(value, name=""):
    """All (name, value) in nested data."""
    if isinstance(value, dict):
        return [leaf for key in value for leaf in leaves(value[key], f"{name}.{key}")]
    return [leaf for one in value for leaf in leaves(one, name)] if isinstance(value, list) else [(name, value)]


@pytest.mark.parametrize("make", [routed, plain])
def test_batch_equals_single(make):
    explain = explainer(make().train())  # dropout and draws are off all the same
    q, s = asked(7)
    texts = [f"q{i}" for i in range(7)]
    for i, one in enumerate(explain.explain_batch(q, s, texts)):
        alone = explain.explain(q[i], s[i], texts[i])
        for (name, a), (_, b) in zip(leaves(asdict(one)), leaves(asdict(alone)), strict=True):
            # Percentiles run from 0 to 100, and are steep where the known pairs are close together.
            near = pytest.approx(b, abs=1e-3 if "percentile" in name else 1e-6) if isinstance(b, float) else b
            assert a == near, name
    assert explain.objective.training


def test_it_says_what_the_model_does():
    model = routed()
    explain = explainer(model)
    q, s = asked()
    told = explain.explain_batch(q, s)
    model.eval()
    with torch.no_grad():
        out, neutral = model.decompose(q, s), model.decompose(q, torch.zeros_like(s))
        usual = model.decompose(known()["known_question"], known()["known_steering"]).fine.norm(dim=1)
        targets = model.target(known()["known_source"])
    p, z = out.logits.softmax(1), neutral.logits.softmax(1)
    for i, one in enumerate(told):
        assert one.prediction == pytest.approx(out.prediction[i].tolist())
        assert list(one.distribution.values()) == pytest.approx(p[i].tolist(), abs=1e-6)
        assert one.primary_subspace == NAMES[int(p[i].argmax())]
        assert one.entropy == pytest.approx(-(p[i] * p[i].log()).sum().item(), abs=1e-5)
        assert one.atypicality == pytest.approx(out.fine[i].norm().item())
        assert one.coarse_norm == pytest.approx(out.coarse[i].norm().item())
        assert one.atypicality_percentile == pytest.approx(
            percentile_of(out.fine[i].norm()[None], quantiles_of(usual)).item(), abs=0.01
        )
        share = 100 * (usual < out.fine[i].norm()).double().mean().item()
        assert abs(one.atypicality_percentile - share) < 100 / N + 1
        influence = one.steering_influence
        assert influence.kl == pytest.approx((p[i] * (p[i] / z[i]).log()).sum().item(), abs=1e-5)
        assert influence.l2 == pytest.approx((out.prediction[i] - neutral.prediction[i]).norm().item(), abs=1e-6)
        assert influence.primary_without == NAMES[int(z[i].argmax())]
        assert list(influence.distribution_without.values()) == pytest.approx(z[i].tolist(), abs=1e-6)
        cosine = F.cosine_similarity(out.prediction[i], targets)
        assert one.max_similarity == pytest.approx(cosine.max().item(), abs=1e-6)
        nearest = one.nearest[0]
        assert nearest.row == int((q[i] @ known()["known_question"].T).argmax())
        assert nearest.source_similarity == pytest.approx(cosine[nearest.row].item(), abs=1e-6)
        assert (nearest.question, nearest.source) == known()["known_text"][nearest.row]
        assert nearest.topic == NAMES[nearest.row % K]


@pytest.mark.parametrize("make", [routed, plain])
def test_a_known_question_is_nearest_to_itself(make):
    explain = explainer(make())
    for row, one in enumerate(explain.explain_batch(3 * known()["known_question"], known()["known_steering"])):
        assert one.nearest[0].row == row and one.nearest[0].similarity == pytest.approx(1)


def test_an_untrained_model_says_so_by_its_entropy():
    """The entropy of untrained routers of the default width, as a share of the largest, over seeds 0 to 4: at K = 4
    the mean is 0.92 to 0.97, at K = 74 and 256 dimensions the lowest of 500 questions has 0.968 to 0.975."""
    k, dim = 74, 256
    names = [f"topic {i}" for i in range(k)]
    q, s = unit(50, dim), unit(50, dim, seed=1)
    torch.manual_seed(0)
    untrained = RoutedJasper(unit(k, dim, seed=2))
    for one in Explainer(untrained, names).explain_batch(q, s):
        assert one.entropy > 0.95 * one.max_entropy and one.confidence < 0.1
        assert one.actionable_signal.startswith("The router is undecided")
        assert one.atypicality == pytest.approx(1)  # of the question itself


def test_without_steering_there_is_no_influence():
    q, _ = asked()
    one = explainer().explain(q[0])
    assert one.steering_influence.kl == 0 == one.steering_influence.l2
    assert one.primary_subspace == one.steering_influence.primary_without
    assert one.steering_influence.without == "zero steering"


def test_what_without_means_can_be_chosen():
    q, s = asked()
    mean = F.normalize(known()["known_steering"].mean(0), dim=0)
    zero, other = explainer().explain(q[0], s[0]), explainer(without=mean, without_name="the mean").explain(q[0], s[0])
    assert other.steering_influence.without == "the mean"
    assert other.steering_influence.kl != pytest.approx(zero.steering_influence.kl, abs=1e-4)
    assert explainer(without=s[0]).explain(q[0], s[0]).steering_influence.kl == 0


def test_without_is_something_that_the_training_has_seen():
    centroids = unit(K, D, seed=7)
    vector, name = unsteered(SteeringConfig(), centroids)
    assert vector.norm() == 0 and name == "zero steering (50% to 10% of the pairs)"
    vector, name = unsteered(SteeringConfig(variant="centroid"), centroids)
    torch.testing.assert_close(vector, F.normalize(centroids.mean(0), dim=0))
    assert name == "the mean of the topics"


def test_compare_steering_influence():
    q, s = asked()
    explain = explainer()
    rows = explain.compare_steering_influence(q[0], {"none": torch.zeros(D), "a": s[0], "b": s[1]})
    assert [row["steering"] for row in rows] == ["none", "a", "b"] and rows[0]["kl"] == rows[0]["l2"] == 0
    alone = explain.explain(q[0], s[1])
    assert rows[2]["kl"] == pytest.approx(alone.steering_influence.kl, abs=1e-6) and rows[1]["kl"] > 0
    assert rows[2]["primary_subspace"] == alone.primary_subspace
    assert explainer(plain()).compare_steering_influence(q[0], {"a": s[0]})[0]["kl"] is None


def test_k_one():
    q, s = asked()
    one = explainer(routed(1), known_topic=torch.zeros(N, dtype=torch.long)).explain(q[0], s[0])
    assert one.distribution == {"linalg": 1.0} and one.confidence == 1 and one.entropy == one.max_entropy == 0
    assert one.steering_influence.kl == 0 and one.actionable_signal
    assert Explanation.from_json(one.to_json()) == one


def test_percentile_of_the_similarity_leaves_the_own_source_out():
    """Or a trained model, which finds the own source of every known question, would make new questions look strange."""
    model = routed(moved=False)
    explain = explainer(model)
    with torch.no_grad():
        p = F.normalize(model.eval().decompose(known()["known_question"], known()["known_steering"]).prediction, dim=1)
        cosine = (p @ model.target(known()["known_source"]).T).fill_diagonal_(-1)
    torch.testing.assert_close(explain._similarities, quantiles_of(cosine.max(1).values))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"entropy": 1.3}, "The router is undecided (entropy 1.30 of at most 1.39 nats, threshold 1.25)"),
        ({"confidence": 0.4}, "Low confidence (0.40, threshold 0.50): linalg or nn?"),
        ({"atypicality_percentile": 97.0}, "residual longer than 97 % of the known pairs, threshold 95 %"),
        ({"max_similarity_percentile": 2.0}, "No known source is near (similarity 0.50, in the lowest 5 %)"),
        ({"kl": 0.8}, "The steering decided it (0.80 nats, threshold 0.50), from nn to linalg"),
        ({}, "Nothing unusual"),
    ],
)
def test_the_signal_speaks_of_what_is_beyond_its_threshold(changes, words):
    kl = changes.pop("kl", 0.1)
    distribution = {"linalg": 0.6, "optimize": 0.05, "nn": 0.3, "tkinter": 0.05}
    usual = {"confidence": 0.6, "entropy": 0.9, "atypicality_percentile": 50.0, "max_similarity_percentile": 50.0}
    one = Explanation(
        "routed", [0.0], Influence("zero", 0.1, kl, "nn", distribution), "q", "linalg", distribution=distribution,
        max_entropy=math.log(4), max_similarity=0.5, **(usual | changes),
    )  # fmt: skip
    said = actionable_signal(one, Thresholds())
    assert words in said and said.count("threshold") <= 1 + (words == "Nothing unusual")
    loose = Thresholds(1.0, 0.0, 9.0, 100.0, 0.0)
    assert actionable_signal(one, loose).startswith("Nothing unusual")


@pytest.mark.parametrize("make", [routed, plain])
def test_plot(make):
    q, s = asked()
    one = explainer(make()).explain(q[0], s[0], "a question " * 20)
    fig = one.plot(top=2)
    assert isinstance(fig, matplotlib.figure.Figure)
    bars = [patch.get_width() for patch in fig.axes[0].patches]
    if make is routed:
        assert len(bars) == 4 and max(bars[:2]) == pytest.approx(one.confidence)
        heights = [patch.get_height() for patch in fig.axes[1].patches]
        assert heights == pytest.approx([one.coarse_norm, one.atypicality])
        with pytest.raises(ValueError, match="top must be at least 1, got 0"):
            one.plot(0)
    else:
        assert bars == pytest.approx([one.steering_influence.l2])
    fig.canvas.draw()


@pytest.mark.parametrize("make", [routed, plain])
def test_the_page_names_what_was_found(make):
    q, s = asked()
    one = explainer(make()).explain(q[0], s[0], "how?")
    text = page(one)
    assert "how?" in text and one.actionable_signal in text and f"question {one.nearest[0].row}" in text
    assert ("subspace" in text) == (make is routed)
    assert "near source" not in page(Explainer(make(), NAMES).explain(q[0], s[0], "how?"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Explainer(routed(), NAMES[:3]), "names must be 4 different names, one a subspace, got 3"),
        (lambda: Explainer(routed(), [*NAMES, "five"]), "got 5"),
        (lambda: Explainer(routed(), ["a"] * 4), r"got 4 \(1 different\)"),
        (lambda: Explainer(plain(), NAMES[:3]), "names must be 4 different names"),
        (lambda: explainer(known_source=None), "known_question and known_source go together"),
        (lambda: explainer(known_source=unit(N - 1, D)), r"known_source must be \(40, 6\), got \(39, 6\)"),
        (lambda: explainer(known_text=[("a", "b")]), "known_text must have 40 entries, got 1"),
        (lambda: explainer(without=torch.zeros(D + 1)), "without must have the model's width 6"),
        (lambda: explainer().explain(torch.zeros(D + 1)), "question must have the model's width 6"),
        (lambda: explainer().explain(unit(D), torch.zeros(D) / 0), "steering must be finite"),
        (lambda: explainer().explain_batch(*asked(3), ["one"]), "a row for each of the 3 questions, got 3 and 1"),
        (lambda: explainer().explain_batch(unit(3, D), unit(2, D)), "a row for each of the 3 questions, got 2"),
        (lambda: explainer().compare_steering_influence(unit(D), {}), "steerings must hold at least one vector"),
        (lambda: Thresholds(confidence=1.5), r"thresholds.confidence must lie in \[0, 1\], got 1.5"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("unchecked")
def test_faults_name_their_cause(call, message):
    with pytest.raises(ValueError, match=message):
        call()
