"""Objectives: where gradients flow, what collapses, what a probe sees, what is saved."""

import copy

import pytest
import torch

from jepa_lab.data.augment import DIGITS
from jepa_lab.losses import nt_xent, prediction_loss
from jepa_lab.masking import Mask, MaskConfig
from jepa_lab.nets import EncoderConfig, TokenEncoder, Tokens, Transformer, image_encoder
from jepa_lab.objectives import (
    JEPA,
    OBJECTIVES,
    Contrastive,
    ContrastiveConfig,
    JEPAConfig,
    MomentumConfig,
    Supervised,
    build_objective,
)

SMALL = EncoderConfig(patch=2, dim=16, depth=2, heads=2)


def batch(n=12, seed=0, size=8):
    generator = torch.Generator().manual_seed(seed)
    return {"image": torch.rand(n, 1, size, size, generator=generator), "label": torch.arange(n) % 10}


def encoder(size=8):
    torch.manual_seed(0)
    return image_encoder(batch(64, 1, size)["image"], SMALL)


class SequenceTokenizer(torch.nn.Module):
    """Tokens with padding: a linear map of given vectors plus a learned position."""

    def __init__(self, width, dim):
        super().__init__()
        self.raw_dim = width
        self.embed = torch.nn.Linear(width, dim)
        self.position = torch.nn.Embedding(32, dim)

    def forward(self, batch):
        query = self.position.weight[: batch["x"].shape[1]].expand(len(batch["x"]), -1, -1)
        return Tokens(self.embed(batch["x"]) + query, batch["valid"], query, batch["x"])


def sequences(n=6, length=10, seed=0):
    generator = torch.Generator().manual_seed(seed)
    count = torch.tensor([10, 7, 4, 2, 1, 0])[:n]
    return {"x": torch.randn(n, length, 3, generator=generator), "valid": torch.arange(length) < count[:, None]}


def sequence_encoder():
    torch.manual_seed(0)
    return TokenEncoder(SequenceTokenizer(3, 16), Transformer(16, 2, 2), 16)


ALL_MASKS = [MaskConfig(), MaskConfig("block", n_blocks=2), MaskConfig("multiblock", n_blocks=4)]


@pytest.mark.parametrize("mask", ALL_MASKS, ids=lambda m: m.kind)
def test_jepa_gradients_reach_context_encoder_and_predictor_and_never_the_target(mask):
    objective = JEPA(encoder(16), JEPAConfig(mask=mask))
    objective(batch(size=16))[0].backward()
    for name, p in objective.named_parameters():
        if name.startswith("target_encoder"):
            assert p.grad is None, name
        else:
            assert p.grad is not None and p.grad.isfinite().all(), name
            if not name.endswith("qkv.bias"):  # a bias of the keys shifts all scores alike: its gradient is zero
                assert p.grad.abs().sum() > 0, name


def grad_through(objective, data):
    """Does the loss depend on the encoder through the targets? Compare with the gradient when targets are detached."""
    state = objective.generator.get_state()
    loss = objective(data)[0]
    grads = torch.autograd.grad(loss, list(objective.encoder.parameters()))
    objective.generator.set_state(state)
    original = objective.targets
    objective.targets = lambda b: original(b).detach()
    detached = torch.autograd.grad(objective(data)[0], list(objective.encoder.parameters()))
    del objective.targets
    return max((a - b).abs().max().item() for a, b in zip(grads, detached, strict=True))


def test_only_target_none_sends_gradient_through_the_targets():
    for target, flows in [("ema", False), ("stop_gradient", False), ("none", True)]:
        difference = grad_through(JEPA(encoder(), JEPAConfig(target=target)), batch())
        assert (difference > 1e-6) == flows, (target, difference)


def test_jepa_loss_equals_a_loop_over_rows_and_blocks():
    """The oracle encodes and predicts every row and block alone, without any padding or batching."""
    data = batch(3, size=16)
    objective = JEPA(encoder(16), JEPAConfig(mask=MaskConfig("multiblock", n_blocks=3), target_norm="layer")).double()
    data["image"] = data["image"].double()
    state = objective.generator.get_state()
    loss = objective(data)[0]
    objective.generator.set_state(state)
    tokens = objective.encoder.tokenize(data)
    mask = objective.config.mask.draw(tokens.valid, objective.encoder.grid, objective.generator)
    everything = objective.target_encoder(data)
    predictions, targets = [], []
    for b in range(3):
        c = mask.context[b]
        yes = torch.ones(1, int(c.sum()), dtype=torch.bool)
        h = objective.encoder.encode(tokens.x[b, c][None], yes)
        for m in range(3):
            t = mask.targets[b, m]
            asked = tokens.query[b, t][None, None]
            ones = torch.ones(asked.shape[:3], dtype=torch.bool)
            predictions.append(objective.predictor(h, yes, tokens.query[b, c][None], asked, ones)[0, 0])
            targets.append(everything[b, t])
    torch.testing.assert_close(loss, prediction_loss(torch.cat(predictions), torch.cat(targets)))


def test_hidden_pixels_never_reach_the_context():
    """Change every hidden patch: the prediction of the context side must not move (only the targets may)."""
    objective = JEPA(encoder(), JEPAConfig(target="ema"))
    data = batch()
    frozen = objective.targets(data)
    objective.targets = lambda b: frozen
    state = objective.generator.get_state()
    loss = objective(data)[0]
    tokens = objective.encoder.tokenize(data)
    objective.generator.set_state(state)
    mask = objective.config.mask.draw(tokens.valid, objective.encoder.grid, objective.generator)
    hidden = mask.targets[:, 0].view(-1, 4, 4).repeat_interleave(2, 1).repeat_interleave(2, 2)[:, None]
    changed = data | {"image": torch.where(hidden, 1 - data["image"], data["image"])}
    objective.generator.set_state(state)
    torch.testing.assert_close(objective(changed)[0], loss)
    objective.generator.set_state(state)
    seen = data | {"image": torch.where(hidden, data["image"], 1 - data["image"])}
    assert not torch.isclose(objective(seen)[0], loss)


def test_jepa_on_padded_sequences_ignores_the_padding_and_unmaskable_rows():
    objective = JEPA(sequence_encoder(), JEPAConfig(mask=MaskConfig(ratio=0.5)))
    data = sequences()
    state = objective.generator.get_state()
    loss, metrics = objective(data)
    assert loss.isfinite() and all(value.isfinite() for value in metrics.values())
    objective.generator.set_state(state)
    wild = data | {"x": torch.where(data["valid"][..., None], data["x"], 1e4)}
    torch.testing.assert_close(objective(wild)[0], loss)
    pooled = objective.represent(data)
    assert pooled[5].isnan().all() and pooled[:5].isfinite().all()
    tokens = objective.represent(data, "tokens")
    assert tokens[5].isnan().all() and (tokens[2, 4:] == 0).all()


def test_a_row_without_context_takes_no_part_even_if_a_mask_gives_it_targets():
    class Blind(MaskConfig):
        def draw(self, valid, grid=None, generator=None, series=None):
            context = torch.zeros_like(valid)
            context[1:, :8] = True
            return Mask(context, (~context)[:, None])

    objective = JEPA(encoder(), JEPAConfig(mask=Blind(), target_norm="layer"))
    data = batch()
    loss = objective(data)[0]
    other = data | {"image": torch.cat([1 - data["image"][:1], data["image"][1:]])}
    torch.testing.assert_close(objective(other)[0], loss)


@pytest.mark.parametrize("name", ["jepa", "contrastive"])
def test_a_batch_without_any_valid_token_is_an_error(name):
    config = ContrastiveConfig(views="mask") if name == "contrastive" else None
    objective = build_objective(name, sequence_encoder(), config)
    data = sequences() | {"valid": torch.zeros(6, 10, dtype=torch.bool)}
    with pytest.raises(ValueError, match=r"no row keeps any token|at least 2 rows|no masked token"):
        objective(data)


@pytest.mark.parametrize("views", ["augment", "mask", "complementary"])
def test_contrastive_gradients_reach_encoder_and_head(views):
    objective = Contrastive(encoder(), ContrastiveConfig(views=views, augmentation=DIGITS))
    loss, metrics = objective(batch())
    loss.backward()
    assert {"accuracy", "positive_cosine", "negative_cosine", "ssl_loss", "contrastive_loss"} <= set(metrics)
    assert ("contrastive_n_masked_per_sample" in metrics) == (views != "augment")
    for name, p in objective.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), name
        if not name.endswith("qkv.bias"):
            assert p.grad.abs().sum() > 0, name


def test_contrastive_views_are_encoded_as_two_separate_batches_would_be():
    objective = Contrastive(encoder(), ContrastiveConfig(views="complementary", mask=MaskConfig(ratio=0.5)))
    data = batch()
    state = objective.generator.get_state()
    loss, _ = objective(data)
    objective.generator.set_state(state)
    tokens = objective.encoder.tokenize(data)
    from jepa_lab.masking import complementary_masks

    z = []
    for mask in complementary_masks(tokens.valid, 0.5, objective.generator):
        rows = [
            objective.encoder.encode(tokens.x[b, c][None], torch.ones(1, int(c.sum()), dtype=torch.bool)).mean(1)
            for b, c in enumerate(mask.context)
        ]
        z.append(objective.head(torch.cat(rows)))
    torch.testing.assert_close(loss, nt_xent(*z, 0.2)[0])


def test_contrastive_drops_rows_that_have_no_second_view():
    objective = Contrastive(sequence_encoder(), ContrastiveConfig(views="complementary"))
    data = sequences()
    assert len(objective.encode_views(data)) == 2 * 4  # of 6 rows, one has a single token and one none
    assert objective(data)[0].isfinite()


def test_ema_moves_only_in_after_step():
    objective = JEPA(encoder(), JEPAConfig(momentum=MomentumConfig("constant", 0.5)))
    before = copy.deepcopy(objective.target_encoder.target.state_dict())
    with torch.no_grad():
        for p in objective.encoder.parameters():
            p.add_(1.0)
    objective.train()(batch())
    assert all(torch.equal(v, before[k]) for k, v in objective.target_encoder.target.state_dict().items())
    objective.after_step(0.5)
    moved = objective.target_encoder.target.transformer.norm.weight
    torch.testing.assert_close(moved, before["transformer.norm.weight"] + 0.5)


def test_represent_uses_the_target_encoder_in_eval_mode_and_restores_the_mode():
    objective = JEPA(encoder())
    with torch.no_grad():
        objective.encoder.transformer.norm.weight.zero_()  # the online encoder is now constant
    objective.train()
    z = objective.represent(batch())
    assert z.std(0).mean() > 0 and not z.requires_grad and objective.training
    assert not objective.target_encoder.training
    online = objective.represent(batch(), "online_pooled")
    torch.testing.assert_close(online, objective.encoder.transformer.norm.bias.expand_as(online))
    with pytest.raises(ValueError, match=r"unknown representation .cls.; known: pooled, tokens, online"):
        objective.represent(batch(), "cls")


@pytest.mark.parametrize("name", ["jepa", "contrastive", "supervised"])
def test_state_dict_holds_the_generator(name):
    config = ContrastiveConfig(augmentation=DIGITS) if name == "contrastive" else None
    a, b = (build_objective(name, encoder(), config, seed=s) for s in (0, 1))
    a(batch())
    b.load_state_dict(a.state_dict())
    torch.testing.assert_close(a(batch())[0], b(batch())[0])


def test_weight_decay_spares_biases_and_norms():
    decayed, spared = Supervised(encoder()).param_groups(1e-3)
    assert all(p.ndim >= 2 for p in decayed["params"]) and "weight_decay" not in decayed
    assert all(p.ndim < 2 for p in spared["params"]) and spared["weight_decay"] == 0
    trainable = sum(p.numel() for g in JEPA(encoder()).param_groups(1e-3) for p in g["params"])
    objective = JEPA(encoder())
    assert trainable == sum(p.numel() for p in objective.parameters() if p.requires_grad)


def bad(regulariser):
    """A config that the annotations, checked in the tests alone, would refuse."""
    config = JEPAConfig()
    object.__setattr__(config, "regulariser", regulariser)
    return config


def test_build_objective_names_what_is_wrong():
    with pytest.raises(
        ValueError,
        match="unknown objective 'dino'; known: barlow_twins, byol, c_jepa, c_jepa_vicreg, contrastive, h_jepa, ",
    ):
        build_objective("dino", encoder())
    with pytest.raises(TypeError, match="temprature"):
        build_objective("contrastive", encoder(), temprature=1)
    with pytest.raises(TypeError, match="not both"):
        build_objective("jepa", encoder(), JEPAConfig(), target="none")
    with pytest.raises(ValueError, match="target blocks"):
        build_objective("jepa", encoder(), mask=MaskConfig("multiblock", n_blocks=4, target_scale=(0.8, 0.9)))
    with pytest.raises(ValueError, match="two views equal"):
        build_objective("contrastive", encoder())
    with pytest.raises(ValueError, match="temperature"):
        build_objective("contrastive", encoder(), augmentation=DIGITS, temperature=0.0)
    for settings in ({"regulariser_weight": -1.0}, {"regulariser_rows": 1}):
        with pytest.raises(ValueError, match="regulariser_weight must not be negative and regulariser_rows"):
            build_objective("jepa", encoder(), **settings)
    with pytest.raises(ValueError, match="regulariser must be one of none, vicreg, sigreg, isotropy"):
        JEPA(encoder(), bad("l2"))
    assert len(OBJECTIVES) == 16 and all(cls.Config().__class__ is cls.Config for cls in OBJECTIVES.values())
