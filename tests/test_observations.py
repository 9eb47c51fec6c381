"""Observations as tokens, and the three objectives on them: padding, order, sparse records, learning."""

import math

import pytest
import torch

from jepa_lab.masking import MaskConfig
from jepa_lab.nets import ObservationTokenizer, SeriesEncoderConfig, series_encoder
from jepa_lab.objectives import JEPA, JEPAConfig, MomentumConfig, build_objective
from jepa_lab.objectives.masked import answer
from jepa_lab.observations import time_code
from tests.tensors import randn

TRIANGLE = ("mae", "jepa", "contrastive")
CHANNELS = 5


def records(counts=(20, 13, 6, 2, 1, 0), seed=0, dtype=torch.float32):
    """Rows of so many observations; values follow a level of the row, so that one channel tells of the others."""
    g = torch.Generator().manual_seed(seed)
    n, length = len(counts), max(counts)
    level = torch.randn(n, 1, generator=g)
    return {
        "value": (level + 0.3 * torch.randn(n, length, generator=g)).to(dtype),
        "time": (48 * torch.rand(n, length, generator=g)).to(dtype),
        "feature": torch.randint(CHANNELS, (n, length), generator=g),
        "valid": torch.arange(length) < torch.tensor(counts)[:, None],
        "label": torch.arange(n) % 2,
    }


def encoder(dim=16):
    torch.manual_seed(0)
    return series_encoder(CHANNELS, SeriesEncoderConfig(dim=dim, depth=2, heads=2))


def objective(name, mask=None, **settings):
    mask = mask or MaskConfig("mix", 0.5)
    if name == "contrastive":
        settings = {"views": "complementary"} | settings
    return build_objective(name, encoder(), mask=mask, **settings)


def padded(batch, by=7):
    """The same records with slots that must not matter: NaN values, wild times, unknown features."""
    n = len(batch["valid"])
    fill = {"value": math.nan, "time": 1e9, "feature": 99, "valid": False}
    more = {key: torch.full((n, by), value, dtype=batch[key].dtype) for key, value in fill.items()}
    return batch | {key: torch.cat([more[key][:, :3], batch[key], more[key][:, 3:]], 1) for key in fill}


def permuted(batch, seed=0):
    order = torch.randperm(batch["valid"].shape[1], generator=torch.Generator().manual_seed(seed))
    return batch | {key: batch[key][:, order] for key in ("value", "time", "feature", "valid")}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("change", [padded, permuted, lambda b: permuted(padded(b))])
def test_neither_padding_nor_order_changes_what_a_record_is(change, dtype, tolerance):
    for name in TRIANGLE:
        model, data = objective(name).to(dtype), records(dtype=dtype)
        one, other = model.represent(data), model.represent(change(data))
        assert one[:5].isfinite().all() and one[5].isnan().all()
        torch.testing.assert_close(other[:5], one[:5], rtol=tolerance, atol=tolerance)
    changed = data | {"time": torch.where(data["valid"], data["time"] + 1, data["time"])}
    assert not torch.allclose(model.represent(changed)[:5], one[:5])  # time itself is no padding


@pytest.mark.parametrize("name", TRIANGLE)
def test_padding_enters_no_loss(name):
    """Padding behind a record draws other masks, so the masks are drawn once and laid upon both."""
    model, data = objective(name).double(), records(dtype=torch.float64)
    drawn, seen = model.config.mask, []

    class Fixed(MaskConfig):
        def lay(self, masks, valid):
            wide = torch.zeros(len(masks), *masks.shape[1:-1], valid.shape[1], dtype=torch.bool)
            start = 3 if valid.shape[1] > 20 else 0
            wide[..., start : start + 20] = masks
            return wide

        def draw(self, valid, grid=None, generator=None, series=None):
            mask = drawn.draw(data["valid"], None, torch.Generator().manual_seed(1), model_series)
            return type(mask)(*(self.lay(part, valid) for part in mask))

        def pair(self, valid, generator=None, series=None):
            masks = drawn.pair(data["valid"], torch.Generator().manual_seed(1), model_series)
            return tuple(type(mask)(*(self.lay(part, valid) for part in mask)) for mask in masks)

    model_series = model.encoder.tokenize(data).series
    object.__setattr__(model.config, "mask", Fixed("mix", 0.5))
    for batch in (data, padded(data)):
        loss, metrics = model(batch)
        seen.append(loss)
        assert metrics[f"{name}_n_tokens_per_sample"].item() == pytest.approx(42 / 6)
    torch.testing.assert_close(seen[1], seen[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["random", "time", "channel"])
def test_a_masked_value_changes_no_context_output_and_no_prediction(kind):
    model, data = objective("mae").double(), records(dtype=torch.float64)
    tokens = model.encoder.tokenize(data)
    mask = MaskConfig(kind, 0.5).draw(tokens.valid, None, model.generator, tokens.series)
    told = answer(model.encoder, model.decoder, tokens, mask)
    other = data | {"value": torch.where(mask.targets[:, 0], data["value"] + 9, data["value"])}
    after = answer(model.encoder, model.decoder, model.encoder.tokenize(other), mask)
    for part in ("context", "prediction"):
        torch.testing.assert_close(getattr(after, part), getattr(told, part), rtol=0, atol=0)
    seen = data | {"value": torch.where(mask.context, data["value"] + 9, data["value"])}
    after = answer(model.encoder, model.decoder, model.encoder.tokenize(seen), mask)
    assert not torch.allclose(after.prediction, told.prediction)


@pytest.mark.parametrize("name", TRIANGLE)
def test_gradients_reach_every_weight(name):
    model = objective(name)
    model(records((20, 18, 15, 12)))[0].backward()
    for parameter, p in model.named_parameters():
        if parameter.startswith("target_encoder"):
            assert p.grad is None, parameter
        else:
            assert p.grad is not None and p.grad.isfinite().all(), parameter
            if not parameter.endswith("qkv.bias"):
                assert p.grad.abs().sum() > 0, parameter


@pytest.mark.parametrize("name", TRIANGLE)
def test_sparse_and_empty_records_in_one_batch(name):
    """Of 400 slots a few rows fill a twentieth, one holds one observation, one none: the loss is that of the rest."""
    model, data = objective(name), records((400, 20, 21, 19, 1, 0))
    loss, metrics = model(data)
    loss.backward()
    assert loss.isfinite() and all(value.isfinite() for value in metrics.values())
    assert metrics[f"{name}_mask_ratio_actual"].item() == pytest.approx(0.5, abs=0.01)
    with pytest.raises(ValueError, match=r"no row keeps any token|no masked token|at least 2 rows"):
        model(records((1, 1)))  # nothing can be hidden of a single observation
    with pytest.raises(ValueError, match=r"no row keeps any token|no masked token|at least 2 rows"):
        model({key: value[-1:] for key, value in data.items()})


@pytest.mark.parametrize("settings", [{}, {"loss": "mse"}, {"loss": "cosine"}], ids=str)
def test_jepa_learns_with_each_loss(settings):
    check_learning(objective("jepa", momentum=MomentumConfig("linear", 0.996, 1.0), **settings))


@pytest.mark.parametrize("name", ["mae", "contrastive"])
def test_the_others_learn(name):
    check_learning(objective(name))


def check_learning(model):
    data = records([16] * 32, seed=3)
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=3e-3), []
    for step in range(30):
        loss, _ = model(data)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.after_step(step / 30)
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.8 * sum(losses[:3]) * 5 / 3


def test_the_target_starts_equal_stays_in_eval_and_follows_the_formula():
    model = objective("jepa", momentum=MomentumConfig("linear", 0.996, 1.0)).train()
    target, online = model.target_encoder.target, model.encoder
    assert all(torch.equal(a, b) for a, b in zip(target.parameters(), online.parameters(), strict=True))
    assert not target.training and not any(p.requires_grad for p in target.parameters())
    before = target.tokenizer.direction.weight.clone()
    with torch.no_grad():
        online.tokenizer.direction.weight.add_(1.0)
    model.after_step(0.5)
    torch.testing.assert_close(target.tokenizer.direction.weight, before + 0.002)
    assert model(records())[1]["jepa_momentum"].item() == pytest.approx(0.998)


def test_contrastive_metrics_and_temperature():
    model = objective("contrastive", temperature=0.1)
    _, metrics = model(records([16] * 8))
    assert metrics["contrastive_temperature"].item() == pytest.approx(0.1)
    assert 0 <= metrics["contrastive_accuracy"] <= 1 and -1 <= metrics["contrastive_pos_similarity"] <= 1
    assert metrics["ssl_loss"] == metrics["contrastive_loss"]
    assert metrics["contrastive_n_visible_per_sample"].item() == pytest.approx(8)


def test_views_of_a_ratio_above_one_half_are_equally_small():
    model = objective("contrastive", mask=MaskConfig("mix", 0.75))
    metrics = model(records([16] * 8))[1]
    assert metrics["contrastive_n_visible_per_sample"] == 4 and metrics["contrastive_n_masked_per_sample"] == 12
    independent = objective("contrastive", mask=MaskConfig("mix", 0.3), views="mask")
    assert independent(records([20] * 8))[1]["contrastive_n_visible_per_sample"] == 14


def test_the_objectives_see_the_same_masks():
    """One seed draws one sequence of masks, whatever is done with them."""
    data, seen = records([20] * 6), {}
    for name in TRIANGLE:
        model, parts = objective(name), []
        encode = model.encoder.encode
        model.encoder.encode = lambda x, valid, encode=encode, parts=parts: parts.append(x) or encode(x, valid)
        model(data)
        seen[name] = parts[0][:6]
    torch.testing.assert_close(seen["mae"], seen["jepa"], rtol=0, atol=0)
    torch.testing.assert_close(seen["mae"], seen["contrastive"], rtol=0, atol=0)


def test_the_query_knows_everything_but_the_value():
    tokens, data = encoder().tokenize(records()), records()
    other = encoder().tokenize(data | {"value": data["value"] * -3})
    torch.testing.assert_close(other.query, tokens.query, rtol=0, atol=0)
    assert not torch.allclose(other.x, tokens.x)
    later = encoder().tokenize(data | {"time": data["time"] + 2})
    renamed = encoder().tokenize(data | {"feature": (data["feature"] + 1) % CHANNELS})
    assert not torch.allclose(later.query, tokens.query) and not torch.allclose(renamed.query, tokens.query)
    torch.testing.assert_close(tokens.raw[..., 0][tokens.valid], data["value"][data["valid"]])
    linear = other.x - other.query  # the value enters linearly, along a direction of the feature
    torch.testing.assert_close(linear, -3 * (tokens.x - tokens.query), rtol=1e-5, atol=1e-5)
    one = data | {"value": torch.ones_like(data["value"]), "feature": torch.zeros_like(data["feature"])}
    two = one | {"feature": torch.ones_like(data["feature"])}
    directions = [t.x - t.query for t in (encoder().tokenize(one), encoder().tokenize(two))]
    assert not torch.allclose(*directions)


def test_the_time_code_is_continuous_and_has_the_stated_periods():
    t = torch.linspace(0, 48, 97, dtype=torch.float64)
    code = time_code(t, 16, 1.0, 200.0)
    torch.testing.assert_close(code.square().sum(1), torch.full((97,), 8.0, dtype=torch.float64))
    torch.testing.assert_close(time_code(t + 1, 16)[:, 0], code[:, 0], rtol=1e-9, atol=1e-9)  # the shortest period
    longest = torch.tensor([0.0, 50.0, 100.0, 200.0], dtype=torch.float64)
    torch.testing.assert_close(
        time_code(longest, 16)[:, 7], torch.tensor([0.0, 1.0, 0.0, 0.0], dtype=torch.float64), rtol=0, atol=1e-9
    )
    assert (time_code(t + 1e-4, 16) - code).abs().max() < 1e-3
    assert torch.pdist(code).min() > 0.05  # half an hour apart, and no two times alike in two days
    assert randn(3, seed=1).dtype == torch.float64 and time_code(randn(3), 8).dtype == torch.float64


def test_what_is_wrong_is_named():
    with pytest.raises(ValueError, match=r"batch\['feature'\] must lie in 0..4, got 0..7"):
        encoder().tokenize(records() | {"feature": torch.full((6, 20), 7) * records()["valid"]})
    for sizes in ((0, 8), (3, 7), (3, 0)):
        with pytest.raises(ValueError, match="n_features must be at least 1 and dim even"):
            ObservationTokenizer(*sizes)
    with pytest.raises(ValueError, match="0 < shortest < longest"):
        ObservationTokenizer(3, 8, shortest=9.0, longest=2.0)
    with pytest.raises(ValueError, match="dim must be even"):
        time_code(torch.zeros(2), 3)
    with pytest.raises(ValueError, match="views='augment' changes images; for observations use 'complementary'"):
        objective("contrastive", views="augment")
    with pytest.raises(ValueError, match="needs tokens on a grid"):
        JEPA(encoder(), JEPAConfig(MaskConfig("multiblock")))
