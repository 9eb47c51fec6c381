"""The two C-JEPAs: which loss is computed, whom its gradient reaches, what the metrics say, how they are configured."""

import math

import pytest
import torch
import torch.nn.functional as F

from jepa_lab.config import build, parse, reread, stored
from jepa_lab.data.augment import DIGITS, augment
from jepa_lab.losses import nt_xent, vicreg
from jepa_lab.masking import MaskConfig
from jepa_lab.objectives import (
    CJEPA,
    HJEPA,
    JEPA,
    CJEPAConfig,
    CJEPAVicReg,
    ContrastiveJEPA,
    HJEPAConfig,
    JEPAConfig,
    build_objective,
)
from tests.tensors import randn
from tests.test_objectives import ALL_MASKS, batch, encoder, sequence_encoder

TWO_VIEW_JEPAS = ("c_jepa", "c_jepa_vicreg")


def make(name="c_jepa", size=8, seed=0, **settings):
    return build_objective(name, encoder(size), seed=seed, **{"augmentation": DIGITS, **settings})


def grads(loss, modules):
    """Largest gradient of a loss in each of the modules."""
    found = {}
    for name, module in modules.items():
        parts = torch.autograd.grad(loss, list(module.parameters()), retain_graph=True, allow_unused=True)
        found[name] = max((0.0 if part is None else part.abs().max().item()) for part in parts)
    return found


def by_hand(objective, data, state):
    """The two views and their masks, drawn as the objective draws them."""
    objective.generator.set_state(state)
    views = augment(torch.cat([data["image"]] * 2), DIGITS, objective.generator)
    valid = torch.ones(len(data["image"]), 16, dtype=torch.bool)
    masks = [objective.config.mask.draw(valid, objective.encoder.grid, objective.generator) for _ in range(2)]
    return views.chunk(2), masks


def embeddings(objective, views, masks):
    """The mean over the context tokens of every image, encoded alone, through the head."""
    z = []
    for view, mask in zip(views, masks, strict=True):
        tokens = objective.encoder.tokenize({"image": view})
        rows = []
        for b, seen in enumerate(mask.context):
            yes = torch.ones(1, int(seen.sum()), dtype=torch.bool)
            rows.append(objective.encoder.encode(tokens.x[b, seen][None], yes)[0].mean(0))
        z.append(objective.head(torch.stack(rows)))
    return z


@pytest.mark.parametrize("name", TWO_VIEW_JEPAS)
def test_the_second_loss_is_that_of_the_mean_context_tokens_of_two_views(name):
    objective, data = make(name), batch()
    state = objective.generator.get_state()
    loss, metrics = objective(data)
    z1, z2 = embeddings(objective, *by_hand(objective, data, state))
    if name == "c_jepa":
        expected, found = nt_xent(z1, z2, 0.1)
        torch.testing.assert_close(metrics["contrastive_loss"], expected.detach())
        torch.testing.assert_close(metrics["contrastive_pos_similarity"], found["positive_cosine"])
        weight = 0.1
    else:
        expected, _ = vicreg(z1, z2)
        torch.testing.assert_close(metrics["vicreg_loss"], expected.detach())
        weight = 0.01
    torch.testing.assert_close(loss, metrics["jepa_loss"] + weight * expected)
    torch.testing.assert_close(metrics["ssl_loss"], loss.detach())


@pytest.mark.parametrize("name", TWO_VIEW_JEPAS)
def test_the_prediction_loss_is_the_mean_over_both_views(name):
    """Each view by itself is a batch of the JEPA underneath; random masks hide the same number of tokens in each."""
    objective, data = make(name), batch()
    state = objective.generator.get_state()
    metrics = objective(data)[1]
    views, masks = by_hand(objective, data, state)
    alone = (HJEPA if name == "c_jepa" else JEPA)(encoder(), seed=0)
    alone.load_state_dict({k: v for k, v in objective.state_dict().items() if not k.startswith("head.")})

    losses = []
    for view, mask in zip(views, masks, strict=True):
        alone.draw = lambda tokens, mask=mask: (mask, {})
        losses.append({k: v for k, v in alone({"image": view})[1].items() if k.endswith("_loss")})
    for key in losses[0]:
        if key in ("jepa_loss", "level_0_loss"):
            expected = (losses[0][key] + losses[1][key]) / 2
            if key == "level_0_loss" or name == "c_jepa_vicreg":
                torch.testing.assert_close(metrics[key], expected)
    assert not torch.isclose(losses[0]["jepa_loss"], losses[1]["jepa_loss"])


@pytest.mark.parametrize("mask", ALL_MASKS, ids=lambda m: m.kind)
@pytest.mark.parametrize("name", TWO_VIEW_JEPAS)
def test_gradients_reach_everything_but_the_target(name, mask):
    objective = make(name, 16, mask=mask)
    loss, metrics = objective(batch(size=16))
    loss.backward()
    assert not any(value.requires_grad or value.ndim for value in metrics.values())
    for parameter, p in objective.named_parameters():
        if parameter.startswith("target_encoder"):
            assert p.grad is None, parameter
        else:
            assert p.grad is not None and p.grad.isfinite().all(), parameter
            if not parameter.endswith("qkv.bias"):
                assert p.grad.abs().sum() > 0, parameter


def second_loss(objective, data):
    """The second loss alone, with its gradient."""
    kept = {}
    second = objective.second

    def spy(z1, z2):
        kept["loss"] = second(z1, z2)[0]
        return second(z1, z2)

    objective.second = spy
    objective(data)
    del objective.second
    return kept["loss"]


@pytest.mark.parametrize(
    ("settings", "reaches_encoder"),
    [
        ({}, True),
        ({"contrastive_on_context": False}, False),
        ({"contrastive_on_context": False, "target": "stop_gradient"}, False),
        ({"contrastive_on_context": False, "target": "none"}, True),
        ({"target": "stop_gradient"}, True),
    ],
    ids=str,
)
def test_whom_the_gradient_of_the_contrastive_term_reaches(settings, reaches_encoder):
    """The head always, the predictor never, the context encoder unless the embeddings are the target encoder's."""
    objective = make(**settings)
    loss = second_loss(objective, batch())
    parts = {"encoder": objective.encoder, "head": objective.head, "predictor": objective.predictor}
    found = grads(loss, parts)
    assert (found["encoder"] > 1e-6) == reaches_encoder
    assert found["head"] > 1e-6 and found["predictor"] == 0


def test_without_a_gradient_the_term_changes_the_loss_and_not_what_the_encoder_learns():
    """`contrastive_on_context=False` trains the encoder as a weight of zero does: what the published default does."""
    found = []
    for settings in ({"contrastive_on_context": False}, {"contrastive_weight": 0.0}, {}):
        objective = make(**settings)
        loss = objective(batch())[0]
        found.append(torch.autograd.grad(loss, objective.encoder.transformer.blocks[0].attention.out.weight)[0])
    torch.testing.assert_close(found[0], found[1])
    assert not torch.allclose(found[0], found[2])


def test_similarities_are_cosines_before_the_temperature_and_finite():
    data = batch()
    for temperature in (0.05, 1.0):
        for cosine in (True, False):
            metrics = make(contrastive_temperature=temperature, use_cosine_similarity=cosine)(data)[1]
            for key in ("contrastive_pos_similarity", "contrastive_neg_similarity"):
                assert metrics[key].isfinite() and -1 <= metrics[key] <= 1
            assert metrics["contrastive_pos_similarity"] > metrics["contrastive_neg_similarity"]


def test_equal_views_are_found_and_a_wrong_partner_is_not():
    """Equal embeddings: accuracy 1, positive cosine 1, and the negatives leave out the pairs and the diagonal."""
    objective = make()
    z = randn(6, 64).float()
    loss, _, metrics = objective.second(z, z)
    unit = F.normalize(z, dim=1)
    others = ~torch.eye(6, dtype=torch.bool)
    assert metrics["contrastive_accuracy"] == 1
    torch.testing.assert_close(metrics["contrastive_pos_similarity"], torch.tensor(1.0))
    torch.testing.assert_close(metrics["contrastive_neg_similarity"], (unit @ unit.T)[others].mean())
    swapped = objective.second(z, z.flip(0))
    assert swapped[2]["contrastive_accuracy"] == 0 and swapped[0] > loss
    torch.testing.assert_close(objective.second(z * 0 + 1, z * 0 + 1)[0], torch.tensor(math.log(11)))


def test_views_without_augmentation_still_differ_by_their_masks():
    objective = make(augmentation=type(DIGITS)())
    metrics = objective(batch())[1]
    assert metrics["contrastive_pos_similarity"] < 1 - 1e-4
    assert metrics["jepa_n_visible_per_sample"] == 6 and metrics["jepa_mask_ratio_actual"] == 10 / 16


@pytest.mark.parametrize("weight", [0.0, 0.1, 1.0])
def test_the_weight_acts_linearly(weight):
    loss, metrics = make(contrastive_weight=weight)(batch())
    torch.testing.assert_close(loss, metrics["jepa_loss"] + weight * metrics["contrastive_loss"])


def test_dot_similarity_counts_the_lengths_and_cosine_does_not():
    z1, z2 = randn(8, 5), randn(8, 5, seed=1)
    pairs = torch.cat([z1, z2])
    logits = (pairs @ pairs.T / 0.5).fill_diagonal_(-torch.inf)
    expected = F.cross_entropy(logits, torch.arange(16).roll(8))
    loss, metrics = nt_xent(z1, z2, 0.5, similarity="dot")
    torch.testing.assert_close(loss, expected)
    _, cosines = nt_xent(z1, z2, 0.5)
    torch.testing.assert_close(metrics["positive_cosine"], cosines["positive_cosine"])
    torch.testing.assert_close(metrics["negative_cosine"], cosines["negative_cosine"])
    assert not torch.isclose(nt_xent(2 * z1, z2, 0.5, similarity="dot")[0], loss)
    torch.testing.assert_close(nt_xent(2 * z1, z2, 0.5)[0], nt_xent(z1, z2, 0.5)[0])
    unit = [F.normalize(z, dim=1) for z in (z1, z2)]
    for how in ("dense", "fused"):
        torch.testing.assert_close(nt_xent(*unit, 0.5, how, "dot")[0], nt_xent(z1, z2, 0.5)[0])
    torch.testing.assert_close(nt_xent(z1, z2, 0.5, "fused", "dot")[0], expected)
    data = batch()
    assert not torch.isclose(make(use_cosine_similarity=False)(data)[0], make()(data)[0])


def test_settings_reach_the_losses():
    data = batch()
    for name, changed in [
        ("c_jepa", {"contrastive_temperature": 1.0}),
        ("c_jepa", {"level_weights": (1.0, 0.0, 0.0)}),
        ("c_jepa", {"projection_dim": 0}),
        ("c_jepa", {"head_norm": "batch"}),
        ("c_jepa", {"head_hidden": 16}),
        ("c_jepa", {"regulariser": "sigreg"}),
        ("c_jepa_vicreg", {"vicreg_weight": 0.1}),
        ("c_jepa_vicreg", {"invariance": 0.0}),
        ("c_jepa_vicreg", {"variance": 0.0}),
        ("c_jepa_vicreg", {"covariance": 0.0}),
    ]:
        assert not torch.isclose(make(name, **changed)(data)[0], make(name)(data)[0]), (name, changed)


# ------------------------------------------------------------------------------------------- two ways to configure


def objective_of(*arguments):
    return parse(["--name", "x", *(f"--objective.{argument}" for argument in arguments)])


def test_a_name_and_a_switch_configure_the_same_thing():
    by_name = build(objective_of("name=c_jepa", "contrastive_weight=0.3")).objective
    by_switch = build(objective_of("name=h_jepa", "use_contrastive=true", "contrastive_weight=0.3")).objective
    assert by_name == by_switch == CJEPAConfig(contrastive_weight=0.3)
    flat = objective_of("name=jepa", "use_contrastive=true", "contrastive_temperature=0.2")
    assert type(build_objective("jepa", encoder(), build(flat).objective)) is ContrastiveJEPA
    assert type(build_objective("h_jepa", encoder(), by_switch)) is CJEPA
    assert type(build_objective("jepa", encoder(), use_contrastive=True)) is ContrastiveJEPA
    assert type(build_objective("jepa", encoder(), use_contrastive=False)) is JEPA
    assert type(build_objective("c_jepa_vicreg", encoder())) is CJEPAVicReg
    assert reread(stored(flat)) == stored(flat)


def test_both_ways_work_in_a_file_and_in_the_cases_of_a_sweep(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("name: x\nobjective: {name: jepa, use_contrastive: true, contrastive_weight: 0.2}\n")
    config = parse(["--config", str(file)])
    assert build(config).objective.contrastive_weight == 0.2 and reread(stored(config)) == stored(config)
    file.write_text(
        "name: x\nobjective: {name: jepa}\nsweep: {cases: {plain: {}, both: {objective.name: h_jepa, "
        "objective.use_contrastive: true, objective.contrastive_weight: 0.2}}}\n"
    )
    assert parse(["--config", str(file)]).objective.use_contrastive is False
    file.write_text("name: x\nobjective: {name: jepa}\nsweep: {cases: {a: {objective.contrastive_weight: 0.2}}}\n")
    with pytest.raises(Exception, match="contrastive_weight"):
        parse(["--config", str(file)])


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["name=jepa", "contrastive_weight=0.1"], "contrastive_weight"),
        (["name=h_jepa", "use_contrastive=false", "contrastive_weight=0.1"], "contrastive_weight"),
        (["name=jepa", "use_contrastive=true", "level_weights=[1.0]"], "level_weights"),
        (["name=jepa", "vicreg_weight=0.1"], "vicreg_weight"),
        (["name=c_jepa", "vicreg_weight=0.1"], "vicreg_weight"),
        (["name=c_jepa_vicreg", "contrastive_temperature=0.1"], "contrastive_temperature"),
        (["name=c_jepa", "use_contrastive=false"], "without the contrastive term it is 'h_jepa'"),
        (["name=c_jepa_vicreg", "use_contrastive=true"], "fits c_jepa, h_jepa, jepa, not 'c_jepa_vicreg'"),
        (["name=mae", "use_contrastive=true"], "fits c_jepa, h_jepa, jepa, not 'mae'"),
        (["name=jepa", "use_contrastive=perhaps"], "use_contrastive"),
        (["name=c_jepa", "contrastive_temperature=0.0"], "contrastive_temperature must be a positive number, got 0.0"),
        (["name=c_jepa", "contrastive_weight=-1.0"], "contrastive_weight must be finite and not negative, got -1.0"),
        (["name=c_jepa_vicreg", "vicreg_weight=-1.0"], "vicreg_weight must be finite and not negative"),
        (["name=c_jepa", "projection_dim=-1"], "projection_dim must not be negative"),
        (["name=c_jepa", "level_pools=[1, 2]"], "must have one entry a level"),
        (["name=c_jepa", "regulariser_rows=1"], "regulariser_rows must be at least 2"),
    ],
    ids=str,
)
def test_a_key_that_does_not_fit_is_an_error(arguments, names):
    with pytest.raises(Exception, match=names) as error:
        objective_of(*arguments)
    assert "unrecognized" in str(error.value) or not isinstance(error.value, KeyError)


def test_a_class_refuses_the_config_of_another():
    with pytest.raises(ValueError, match="use_contrastive=True does not fit JEPA; `build_objective` picks the class"):
        JEPA(encoder(), JEPAConfig(use_contrastive=True))
    with pytest.raises(ValueError, match="use_contrastive=False does not fit CJEPA"):
        CJEPA(encoder(), CJEPAConfig(use_contrastive=False))
    assert not issubclass(CJEPAVicReg, HJEPA) and issubclass(CJEPAConfig, HJEPAConfig)
    with pytest.raises(TypeError, match="contrastive_weight"):
        build_objective("jepa", encoder(), contrastive_weight=0.1)
    with pytest.raises(ValueError, match="needs images; use 'jepa'"):
        build_objective("c_jepa_vicreg", sequence_encoder())


def test_masks_of_the_two_views_are_different():
    objective, seen = make(mask=MaskConfig(ratio=0.5)), []
    draw = objective.draw
    objective.draw = lambda tokens: seen.append(draw(tokens)) or seen[-1]
    objective(batch())
    first, second = seen[0][0].context.chunk(2)
    assert len(first) == 12 and not torch.equal(first, second)
