"""The masked autoencoder, and what it shares with JEPA: what is seen, what is asked, what is counted."""

import pytest
import torch

from jepa_lab.losses import prediction_loss
from jepa_lab.masking import Mask, MaskConfig
from jepa_lab.nets import Transformer
from jepa_lab.objectives import JEPA, MAE, JEPAConfig, MAEConfig, PredictorConfig, build_objective
from jepa_lab.objectives.masked import mask_counts
from tests.test_objectives import ALL_MASKS, batch, encoder, sequence_encoder, sequences


def again(objective, state, data):
    """The loss with the masks of the first time."""
    objective.generator.set_state(state)
    return objective(data)[0]


@pytest.mark.parametrize("norm", ["layer", "none"])
def test_the_loss_equals_a_loop_over_rows_and_blocks(norm):
    """The oracle encodes and decodes every row and block alone, and compares hidden pixels with their own values."""
    data = {"image": batch(3, size=16)["image"].double()}
    objective = MAE(encoder(16), MAEConfig(MaskConfig("multiblock", n_blocks=3), target_norm=norm)).double()
    state = objective.generator.get_state()
    loss = objective(data)[0]
    objective.generator.set_state(state)
    tokens = objective.encoder.tokenize(data)
    mask = objective.config.mask.draw(tokens.valid, objective.encoder.grid, objective.generator)
    predictions, targets = [], []
    for b in range(3):
        c = mask.context[b]
        yes = torch.ones(1, int(c.sum()), dtype=torch.bool)
        h = objective.encoder.encode(tokens.x[b, c][None], yes)
        for m in range(3):
            t = mask.targets[b, m]
            asked = tokens.query[b, t][None, None]
            ones = torch.ones(asked.shape[:3], dtype=torch.bool)
            predictions.append(objective.decoder(h, yes, tokens.query[b, c][None], asked, ones)[0, 0])
            targets.append(tokens.raw[b, t])
    prediction, target = torch.cat(predictions), torch.cat(targets)
    if norm == "layer":
        centred = target - target.mean(1, keepdim=True)
        target = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(loss, (prediction - target).square().mean(1).mean())


@pytest.mark.parametrize("mask", ALL_MASKS, ids=lambda m: m.kind)
def test_gradients_reach_encoder_and_decoder(mask):
    objective = MAE(encoder(16), MAEConfig(mask))
    objective(batch(size=16))[0].backward()
    for name, p in objective.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), name
        if not name.endswith("qkv.bias"):
            assert p.grad.abs().sum() > 0, name
    assert objective.decoder.mask_token.grad.abs().sum() > 0


def test_hidden_pixels_reach_the_loss_as_targets_alone():
    """Change every hidden patch and hold the targets: the loss must not move. Change what is seen: it must."""
    objective, data = MAE(encoder()), batch()
    state, tokenize = objective.generator.get_state(), objective.encoder.tokenize
    loss, tokens = objective(data)[0], tokenize(data)
    objective.generator.set_state(state)
    mask = objective.config.mask.draw(tokens.valid, objective.encoder.grid, objective.generator)
    hidden = mask.targets[:, 0].view(-1, 4, 4).repeat_interleave(2, 1).repeat_interleave(2, 2)[:, None]
    objective.encoder.tokenize = lambda b: tokenize(b)._replace(raw=tokens.raw)
    changed = data | {"image": torch.where(hidden, 1 - data["image"], data["image"])}
    torch.testing.assert_close(again(objective, state, changed), loss)
    seen = data | {"image": torch.where(hidden, data["image"], 1 - data["image"])}
    assert not torch.isclose(again(objective, state, seen), loss)
    objective.encoder.tokenize = lambda b: tokenize(b)._replace(raw=tokens.raw * 1.1)
    assert not torch.isclose(again(objective, state, data), loss)


@pytest.mark.parametrize("ratio", [0.25, 0.75])
@pytest.mark.parametrize("name", ["mae", "jepa"])
def test_the_context_encoder_sees_only_the_share_that_is_left(name, ratio):
    objective, lengths = build_objective(name, encoder(), mask=MaskConfig(ratio=ratio)), []
    encode = objective.encoder.encode

    def spy(x, valid):
        lengths.append(x.shape[1])
        return encode(x, valid)

    objective.encoder.encode = spy
    metrics = objective(batch())[1]
    assert lengths == [16 - round(16 * ratio)]
    expected = {"ratio_actual": ratio, "n_tokens": 16, "n_visible": 16 * (1 - ratio), "n_masked": 16 * ratio}
    for key, value in expected.items():
        suffix = f"mask_{key}" if key == "ratio_actual" else f"{key}_per_sample"
        assert metrics[f"{name}_{suffix}"].item() == pytest.approx(value)


def test_counts_leave_padding_out_and_count_a_token_of_two_blocks_once():
    valid = torch.tensor([[True] * 4, [True, True, False, False]])
    seen = torch.tensor([[True, False, False, False], [True, False, False, False]])
    counts = mask_counts(valid, seen, valid & ~seen)
    assert [value.item() for value in counts.values()] == pytest.approx([4 / 6, 3.0, 1.0, 2.0])

    class Twice(MaskConfig):
        def draw(self, valid, grid=None, generator=None):
            hidden = torch.arange(16) >= 8
            return Mask(valid & ~hidden, (valid & hidden)[:, None].expand(-1, 2, -1))

    metrics = MAE(encoder(), MAEConfig(Twice()))(batch())[1]
    assert metrics["mae_n_masked_per_sample"] == 8 and metrics["mae_mask_ratio_actual"] == 0.5


def test_losses_have_the_names_that_the_objectives_share():
    for name in ("mae", "jepa"):
        objective = build_objective(name, encoder())
        loss, metrics = objective(batch())
        assert metrics["ssl_loss"] == metrics[f"{name}_loss"] == loss
        assert not any(value.requires_grad or value.ndim for value in metrics.values())
    objective.after_step(0.5)
    metrics = objective(batch())[1]
    assert metrics["jepa_momentum"] == metrics["tau"] == pytest.approx(0.9945)


def test_padding_and_unmaskable_rows_take_no_part():
    objective, data = MAE(sequence_encoder(), MAEConfig(MaskConfig(ratio=0.5))), sequences()
    state = objective.generator.get_state()
    loss, metrics = objective(data)
    assert loss.isfinite()
    wild = data | {"x": torch.where(data["valid"][..., None], data["x"], 1e4)}
    torch.testing.assert_close(again(objective, state, wild), loss)
    short = data | {"x": torch.where((data["valid"].sum(1) < 2)[:, None, None], 7.0, data["x"])}
    torch.testing.assert_close(again(objective, state, short), loss)
    assert metrics["mae_n_tokens_per_sample"].item() == pytest.approx(24 / 6)
    with pytest.raises(ValueError, match="no row keeps any token"):
        objective(data | {"valid": torch.zeros_like(data["valid"])})


def test_decoder_and_predictor_differ_in_the_width_of_the_answer_alone():
    config = PredictorConfig(width=12, depth=1, heads=3, mlp_ratio=4.0)
    predictor = JEPA(encoder(), JEPAConfig(predictor=config)).predictor.state_dict()
    decoder = MAE(encoder(), MAEConfig(decoder=config)).decoder.state_dict()
    assert {k: v.shape for k, v in predictor.items() if "back" not in k} == {
        k: v.shape for k, v in decoder.items() if "back" not in k
    }
    assert predictor["back.weight"].shape == (16, 12) and decoder["back.weight"].shape == (4, 12)
    assert predictor["transformer.blocks.0.mlp.0.weight"].shape == (48, 12)


def test_dropout_acts_in_training_alone_and_adds_no_weight():
    torch.manual_seed(0)
    plain, net = Transformer(8, 2, 2), Transformer(8, 2, 2, dropout=0.5)
    net.load_state_dict(plain.state_dict())
    x, valid = torch.randn(3, 5, 8), torch.ones(3, 5, dtype=torch.bool)
    assert not torch.allclose(net(x, valid), net(x, valid))
    torch.testing.assert_close(net.eval()(x, valid), plain(x, valid))
    with pytest.raises(ValueError, match=r"dropout must lie in \[0, 1\), got 1.0"):
        Transformer(8, 1, 2, dropout=1.0)
    for name, part in (("mae", "decoder"), ("jepa", "predictor")):
        objective = build_objective(name, encoder(), **{part: PredictorConfig(dropout=0.5)})
        state, data = objective.generator.get_state(), batch()
        assert not torch.isclose(again(objective, state, data), again(objective, state, data))
        objective.eval()
        torch.testing.assert_close(again(objective, state, data), again(objective, state, data), rtol=0, atol=0)


def test_the_loss_falls_and_the_mean_is_beaten():
    """In 60 steps, well below the error of the best constant, the variance of the pixels."""
    data = batch(64, 3)
    smooth = torch.nn.functional.avg_pool2d(data["image"], 5, 1, 2)  # hidden pixels can be told from their neighbours
    data["image"] = (smooth - smooth.mean()) / smooth.std()
    torch.manual_seed(0)
    objective = MAE(encoder(), MAEConfig(MaskConfig(ratio=0.5)))
    optimizer = torch.optim.AdamW(objective.parameters(), lr=5e-3)
    losses = []
    for _ in range(60):
        loss, _ = objective(data)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) / 5 < 0.7 < 0.9 < losses[0]


def test_what_is_wrong_is_named(unchecked):
    narrow = sequence_encoder()
    narrow.tokenizer.raw_dim = 1
    with pytest.raises(ValueError, match="'layer' makes a zero of a token that holds one number; use 'none'"):
        MAE(narrow, MAEConfig(target_norm="layer"))
    MAE(narrow, MAEConfig())
    with pytest.raises(ValueError, match="target_norm must be layer or none, got 'batch'"):
        MAE(encoder(), MAEConfig(target_norm="batch"))
    with pytest.raises(ValueError, match="no masked token"):
        prediction_loss(torch.zeros(2, 1), torch.zeros(2, 1), torch.zeros(2, dtype=torch.bool))
