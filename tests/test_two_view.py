"""Methods on two views, and the regularised JEPA: which gradients flow, which loss is computed, what collapses."""

import pytest
import torch

from jepa_lab.data.augment import DIGITS, augment
from jepa_lab.data.images import digits
from jepa_lab.losses import (
    barlow_twins,
    covariance_term,
    isotropy,
    lejepa,
    negative_cosine,
    nt_xent,
    sigreg,
    variance_term,
    vicreg,
)
from jepa_lab.masking import Mask, MaskConfig
from jepa_lab.metrics import effective_rank, normalized_std
from jepa_lab.nets import EncoderConfig, image_encoder
from jepa_lab.objectives import JEPA, OBJECTIVES, JEPAConfig, MomentumConfig, TwoView, build_objective
from jepa_lab.training import TrainConfig, Trainer, seed_all
from tests.test_objectives import batch, encoder, grad_through, sequence_encoder, sequences

TWO_VIEW = sorted(name for name, cls in OBJECTIVES.items() if issubclass(cls, TwoView))


def make(name, seed=0, **settings):
    return build_objective(name, encoder(), seed=seed, **{"augmentation": DIGITS, **settings})


@pytest.mark.parametrize("name", TWO_VIEW)
@pytest.mark.parametrize("views", ["augment", "mask"])
def test_gradients_reach_encoder_head_and_predictor_and_never_a_target(name, views):
    objective = make(name, views=views)
    loss, metrics = objective(batch())
    loss.backward()
    assert not any(value.requires_grad or value.ndim for value in metrics.values())
    for parameter, p in objective.named_parameters():
        if parameter.startswith("target_"):
            assert p.grad is None, parameter
        else:
            assert p.grad is not None and p.grad.isfinite().all(), parameter
            # A bias before a BatchNorm, like the bias of the keys, shifts what is then centred: its gradient is zero.
            if not parameter.endswith("qkv.bias") and parameter not in ("head.0.bias", "head.3.bias"):
                assert p.grad.abs().sum() > 0, parameter


@pytest.mark.parametrize("name", TWO_VIEW)
def test_the_loss_is_that_of_the_embeddings_of_two_fresh_views(name):
    objective = make(name)
    data, state = batch(), objective.generator.get_state()
    loss, _ = objective(data)
    objective.generator.set_state(state)
    views = augment(torch.cat([data["image"]] * 2), DIGITS, objective.generator)
    tokens = objective.encoder.tokenize({"image": views})
    h = objective.encoder.encode(tokens.x, tokens.valid).mean(1)
    z1, z2 = objective.head(h).chunk(2)
    if name in ("simsiam", "byol"):
        p1, p2 = objective.predictor(z1), objective.predictor(z2)
        if name == "byol":
            t1, t2 = objective.target_head.target(
                objective.target_encoder.target.encode(tokens.x, tokens.valid).mean(1)
            ).chunk(2)
            expected = (2 + 2 * negative_cosine(p1, t2)) + (2 + 2 * negative_cosine(p2, t1))
        else:
            expected = (negative_cosine(p1, z2) + negative_cosine(p2, z1)) / 2
    else:
        compute = {
            "vicreg": lambda: vicreg(z1, z2),
            "barlow_twins": lambda: barlow_twins(z1, z2),
            "lejepa": lambda: lejepa(torch.stack([z1, z2]), 0.05, 64, objective.generator),
            "contrastive": lambda: nt_xent(z1, z2, 0.2),
        }
        expected = compute[name]()[0]
    torch.testing.assert_close(loss, expected)


def test_settings_reach_the_losses():
    data = batch()
    for name, changed in [
        ("vicreg", {"variance": 0.0}),
        ("vicreg", {"covariance": 0.0}),
        ("vicreg", {"invariance": 0.0}),
        ("vicreg", {"cov_norm": "mean"}),
        ("barlow_twins", {"redundancy": 1.0}),
        ("lejepa", {"lam": 0.5}),
        ("lejepa", {"n_slices": 2}),
        ("contrastive", {"temperature": 1.0}),
        ("vicreg", {"head_norm": "layer"}),
    ]:
        assert not torch.isclose(make(name, **changed)(data)[0], make(name)(data)[0]), (name, changed)


def test_simsiam_sends_no_gradient_through_the_target_side_unless_told_to():
    """With the predictor's weights zero its output is constant: only the target side could still carry gradient."""
    for stop in (True, False):
        objective = make("simsiam", stop_gradient=stop)
        with torch.no_grad():
            objective.predictor.net[-1].weight.zero_()
            objective.predictor.net[-1].bias.copy_(torch.linspace(-1, 1, 64))
        objective(batch())[0].backward()
        flows = max(p.grad.abs().max().item() for p in objective.encoder.parameters())
        assert (flows > 1e-6) == (not stop)


def test_byol_targets_follow_encoder_and_head_only_after_a_step():
    objective = make("byol", momentum=MomentumConfig("constant", 0.5)).train()
    assert not objective.target_encoder.training and not objective.target_head.training
    with torch.no_grad():
        objective.encoder.transformer.norm.weight.add_(1.0)
        objective.head[-1].bias.add_(1.0)
    before = [
        objective.target_encoder.target.transformer.norm.weight.clone(),
        objective.target_head.target[-1].bias.clone(),
    ]
    objective(batch())
    after = [objective.target_encoder.target.transformer.norm.weight, objective.target_head.target[-1].bias]
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(new, old, rtol=0, atol=0)
    objective.after_step(0.0)
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(new, old + 0.5)
    assert objective.representing_encoder is objective.target_encoder.target


@pytest.mark.parametrize("name", TWO_VIEW)
def test_without_a_head_the_loss_sees_the_encoder_output(name):
    objective = make(name, projection_dim=0)
    z1, z2 = objective.embed(batch())
    assert z1.shape == z2.shape == (12, 16) and isinstance(objective.head, torch.nn.Identity)
    objective(batch())[0].backward()
    objective.after_step(0.0)  # an EMA of a head without weights has nothing to average
    with pytest.raises(ValueError, match="projection_dim must not be negative"):
        make(name, projection_dim=-1)


def test_masked_views_drop_rows_without_a_view():
    for name in TWO_VIEW:
        objective = build_objective(name, sequence_encoder(), views="complementary")
        z1, z2 = objective.embed(sequences())
        assert len(z1) == len(z2) == 4  # of 6 rows, one has a single token and one none
        assert objective(sequences())[0].isfinite()


# --- the regularised JEPA --------------------------------------------------------------------------------------------

KINDS = {
    "vicreg": lambda rows, g: variance_term(rows) + covariance_term(rows) / 25,
    "sigreg": lambda rows, g: sigreg(rows, 64, generator=g),
    "isotropy": lambda rows, g: isotropy(rows),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", ["ema", "stop_gradient", "none"])
def test_jepa_adds_the_regulariser_of_the_rows_that_are_compared(target, kind):
    """At the target positions of the whole input where this encoder makes the targets, else on the context tokens."""
    config = JEPAConfig(target=target, regulariser=kind, regulariser_weight=0.7)
    objective, data = JEPA(encoder(), config), batch()
    state = objective.generator.get_state()
    loss, metrics = objective(data)
    objective.generator.set_state(state)
    tokens = objective.encoder.tokenize(data)
    mask = config.mask.draw(tokens.valid, objective.encoder.grid, objective.generator)
    if target == "ema":
        rows = torch.cat(
            [
                objective.encoder.encode(tokens.x[b, c][None], torch.ones(1, int(c.sum()), dtype=torch.bool))[0]
                for b, c in enumerate(mask.context)
            ]
        )
    else:
        rows = objective.encoder(data)[mask.targets[:, 0]]
    torch.testing.assert_close(metrics["regulariser"], KINDS[kind](rows, objective.generator), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss, metrics["prediction"] + 0.7 * metrics["regulariser"])
    plain = JEPA(encoder(), JEPAConfig(target=target))
    plain.load_state_dict(objective.state_dict())
    plain.generator.set_state(state)
    torch.testing.assert_close(plain(data)[0], metrics["prediction"])


def test_the_regulariser_carries_gradient_and_the_prediction_still_stops_where_it_should():
    for target, flows in [("ema", False), ("stop_gradient", False), ("none", True)]:
        config = JEPAConfig(target=target, regulariser="vicreg", regulariser_weight=0.0)
        objective = JEPA(encoder(), config)
        state = objective.generator.get_state()
        with_zero = torch.autograd.grad(objective(batch())[0], list(objective.encoder.parameters()))
        plain = JEPA(encoder(), JEPAConfig(target=target))
        plain.load_state_dict(objective.state_dict())
        plain.generator.set_state(state)
        without = torch.autograd.grad(plain(batch())[0], list(plain.encoder.parameters()))
        for a, b in zip(with_zero, without, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)
        assert (grad_through(plain, batch()) > 1e-6) == flows
        config = JEPAConfig(target=target, regulariser="vicreg", regulariser_weight=1.0)
        heavy = JEPA(encoder(), config)
        heavy.generator.set_state(state)
        grads = torch.autograd.grad(heavy(batch())[0], list(heavy.encoder.parameters()))
        assert max((a - b).abs().max().item() for a, b in zip(grads, without, strict=True)) > 1e-4


def test_the_regulariser_looks_at_a_sample_of_the_rows():
    objective = JEPA(encoder(), JEPAConfig(target="none", regulariser="vicreg", regulariser_rows=8))
    rows = torch.randn(100, 16, generator=torch.Generator().manual_seed(0))
    state = objective.generator.get_state()
    value = objective.regularise(rows)
    objective.generator.set_state(state)
    chosen = torch.randperm(100, generator=objective.generator)[:8]
    torch.testing.assert_close(value, KINDS["vicreg"](rows[chosen], None))
    assert objective.regularise(rows) != value  # a fresh sample at every step
    torch.testing.assert_close(objective.regularise(rows[:8]), KINDS["vicreg"](rows[:8], None))


def test_padding_and_rows_without_context_are_not_regularised():
    objective = JEPA(sequence_encoder(), JEPAConfig(target="none", regulariser="vicreg"))
    data, state = sequences(), objective.generator.get_state()
    value = objective(data)[1]["regulariser"]
    objective.generator.set_state(state)
    wild = data | {"x": torch.where(data["valid"][..., None], data["x"], 1e4)}
    torch.testing.assert_close(objective(wild)[1]["regulariser"], value)

    class Blind(MaskConfig):
        def draw(self, valid, grid=None, generator=None, series=None):
            context = torch.zeros_like(valid)
            context[1:, :8] = True  # the first row sees nothing, and has targets all the same
            return Mask(context, (~context)[:, None])

    objective = JEPA(encoder(), JEPAConfig(mask=Blind(), target="none", regulariser="vicreg"))
    data = batch()
    value = objective(data)[1]["regulariser"]
    other = data | {"image": torch.cat([1 - data["image"][:1], data["image"][1:]])}
    torch.testing.assert_close(objective(other)[1]["regulariser"], value)


# --- what collapses --------------------------------------------------------------------------------------------------


def trained(objective_name, epochs=10, seed=0, **settings):
    """Normalised std and centred rank of the validation features, after training and before."""
    data = digits()
    seed_all(seed)
    if objective_name != "jepa":
        settings["augmentation"] = DIGITS
    objective = build_objective(
        objective_name, image_encoder(data["train"]["image"], EncoderConfig()), seed=seed, **settings
    )
    before = objective.represent(data["validation"])
    Trainer(objective, data["train"], TrainConfig(epochs=epochs, seed=seed)).fit()
    after = objective.represent(data["validation"])
    return [(normalized_std(z).item(), effective_rank(z).item()) for z in (after, before)]


@pytest.mark.slow
def test_without_stop_gradient_jepa_goes_to_a_point_and_a_regulariser_prevents_it():
    (point, _), (start, _) = trained("jepa", target="none")
    assert point < start / 10
    for kind, weight in [("vicreg", 1.0), ("sigreg", 0.01), ("isotropy", 1.0)]:
        (std, _), _ = trained("jepa", target="none", regulariser=kind, regulariser_weight=weight)
        assert std > 10 * point, kind


@pytest.mark.slow
def test_without_stop_gradient_simsiam_goes_to_a_subspace_and_its_std_does_not_fall():
    (std, rank), (start_std, start_rank) = trained("simsiam", stop_gradient=False)
    assert rank < 0.6 * start_rank and std > start_std
    (_, kept), _ = trained("simsiam")
    assert kept > 1.5 * rank


@pytest.mark.slow
def test_without_variance_vicreg_goes_to_a_subspace():
    (_, rank), (_, start) = trained("vicreg", variance=0.0)
    (_, kept), _ = trained("vicreg")
    assert rank < 0.5 * start < kept


def test_the_regulariser_sees_the_scale_that_the_target_norm_removes():
    """On normalised rows, whose scale is fixed whatever the encoder does, it would be blind to shrinking."""
    objective = JEPA(encoder(), JEPAConfig(target="none", regulariser="isotropy"))
    data, state = batch(), objective.generator.get_state()
    small = objective(data)[1]
    with torch.no_grad():
        objective.encoder.transformer.norm.weight.mul_(1e-3)
        objective.encoder.transformer.norm.bias.mul_(1e-3)
    objective.generator.set_state(state)
    shrunk = objective(data)[1]
    assert shrunk["regulariser"] > 1.1 * small["regulariser"]
