"""H-JEPA: what a level asks, what its target is, what moves it, and that one level of it is JEPA."""

import pytest
import torch

from jepa_lab.losses import prediction_loss
from jepa_lab.masking import MaskConfig
from jepa_lab.nets import EncoderConfig, image_encoder
from jepa_lab.objectives import HJEPA, JEPA, HJEPAConfig, JEPAConfig, MomentumConfig
from jepa_lab.objectives.hierarchical import pool_grid, touched
from tests.tensors import randn, shake
from tests.test_objectives import ALL_MASKS, batch, encoder, sequence_encoder

ONE = {"level_weights": (1.0,), "level_pools": (1,), "level_layers": (0,)}


def again(objective, state, data):
    """Loss and metrics with the masks of the first time."""
    objective.generator.set_state(state)
    return objective(data)


def test_cells_are_squares_of_neighbours_in_space():
    x = randn(2, 24, 3)
    cells = pool_grid(x, (4, 6), 2)
    image = x.view(2, 4, 6, 3)
    for i in range(2):
        for j in range(3):
            expected = image[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((1, 2))
            torch.testing.assert_close(cells[:, 3 * i + j], expected)
    assert pool_grid(x, (4, 6), 1) is x
    marked = torch.zeros(1, 1, 24, dtype=torch.bool)
    marked[0, 0, 6 + 3] = True  # row 1, column 3: the second cell
    assert touched(marked, (4, 6), 2).nonzero().tolist() == [[0, 0, 1]]
    torch.testing.assert_close(touched(marked, (4, 6), 1), marked)


@pytest.mark.parametrize("target", ["ema", "stop_gradient", "none"])
@pytest.mark.parametrize("mask", ALL_MASKS, ids=lambda m: m.kind)
def test_a_single_level_is_jepa_to_the_bit(mask, target):
    """The same weights at the start, the same losses and the same gradients over three steps."""
    settings = {"mask": mask, "target": target, "regulariser": "vicreg", "momentum": MomentumConfig("constant", 0.5)}
    pair = []
    for cls, config in ((JEPA, JEPAConfig(**settings)), (HJEPA, HJEPAConfig(**settings, **ONE))):
        torch.manual_seed(3)
        pair.append(cls(encoder(16), config, seed=5))
    flat, levels = pair
    assert flat.state_dict().keys() == levels.state_dict().keys()
    for step in range(3):
        losses = []
        for objective in pair:
            objective.zero_grad()
            loss, metrics = objective(batch(size=16, seed=step))
            loss.backward()
            with torch.no_grad():
                for p in objective.parameters():
                    if p.grad is not None:
                        p -= 0.1 * p.grad
            objective.after_step(0.0)
            losses.append(loss)
        assert torch.equal(*losses)
        assert torch.equal(metrics["level_0_loss"], metrics["jepa_loss"])
    for name, value in flat.state_dict().items():
        if name != "_extra_state":
            assert torch.equal(value, levels.state_dict()[name]), name


def test_every_level_equals_a_loop_over_images_and_cells():
    data = {"image": batch(3)["image"].double()}
    torch.manual_seed(0)
    deep = image_encoder(batch(64, 1)["image"], EncoderConfig(patch=2, dim=16, depth=3, heads=2))
    objective = HJEPA(deep, HJEPAConfig(level_layers=(0, 2, 1))).double()
    shake(objective.target_encoder.target)  # else the two encoders give the same
    state = objective.generator.get_state()
    loss, metrics = objective(data)
    objective.generator.set_state(state)
    tokens = objective.encoder.tokenize(data)
    mask = objective.config.mask.draw(tokens.valid, objective.encoder.grid, objective.generator)
    target = objective.target_encoder.target
    x = target.tokenize(data)
    first = target.transformer.blocks[0](x.x, None)
    layers = [target(data), first, target.transformer.blocks[1](first, None)]
    predictions, targets = ([[] for _ in range(3)] for _ in range(2))
    for b in range(3):
        seen = mask.context[b]
        yes = torch.ones(1, int(seen.sum()), dtype=torch.bool)
        h = objective.encoder.encode(tokens.x[b, seen][None], yes)
        questions, level_of = [], []
        for level, pool in enumerate((1, 2, 4)):
            for i in range(4 // pool):
                for j in range(4 // pool):
                    inside = [4 * (i * pool + p) + j * pool + q for p in range(pool) for q in range(pool)]
                    if mask.targets[b, 0, inside].any():
                        code = objective.level_codes[level - 1] if level else 0.0
                        questions.append(tokens.query[b, inside].mean(0) + code)
                        level_of.append(level)
                        targets[level].append(layers[level][b, inside].mean(0))
        ones = torch.ones(1, 1, len(questions), dtype=torch.bool)
        told = objective.predictor(h, yes, tokens.query[b, seen][None], torch.stack(questions)[None, None], ones)
        for level, answer in zip(level_of, told[0, 0], strict=True):
            predictions[level].append(answer)
    total = 0.0
    for level, weight in enumerate((1.0, 0.5, 0.25)):
        expected = prediction_loss(torch.stack(predictions[level]), torch.stack(targets[level]))
        torch.testing.assert_close(metrics[f"level_{level}_loss"], expected)
        total = total + weight * expected
    torch.testing.assert_close(loss, total)
    torch.testing.assert_close(metrics["jepa_loss"], total)


@pytest.mark.parametrize("kind", ["smooth_l1", "mse", "cosine"])
def test_level_weights_act_linearly(kind):
    data, losses = batch(), {}
    for weights in [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.3, 2.0, 0.7)]:
        torch.manual_seed(0)
        objective = HJEPA(encoder(), HJEPAConfig(level_weights=weights, loss=kind), seed=1)
        loss, metrics = objective(data)
        losses[weights] = loss.item()
        parts = sum(w * metrics[f"level_{i}_loss"].item() for i, w in enumerate(weights))
        assert loss.item() == pytest.approx(parts, rel=1e-5)
    *alone, mixed = losses.values()
    assert mixed == pytest.approx(0.3 * alone[0] + 2.0 * alone[1] + 0.7 * alone[2], rel=1e-5)
    assert len({round(one, 4) for one in alone}) == 3


def test_targets_do_not_move_with_the_student_within_a_step():
    """Whatever is trained may change: the targets of all levels stay, until the average follows after the step."""
    objective, data = HJEPA(encoder(), HJEPAConfig(level_layers=(0, 1, 0))), batch()
    before = objective.level_targets(data)[1]
    assert [one.shape[1] for one in before] == [16, 4, 1]
    assert not any(one.requires_grad for one in before)
    with torch.no_grad():
        for p in objective.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape))
    for old, new in zip(before, objective.level_targets(data)[1], strict=True):
        assert torch.equal(old, new)
    objective.after_step(0.5)
    for old, new in zip(before, objective.level_targets(data)[1], strict=True):
        assert not torch.allclose(old, new)


@pytest.mark.parametrize("mask", ALL_MASKS, ids=lambda m: m.kind)
def test_gradients_reach_the_student_and_the_codes_of_the_levels_and_never_the_target(mask):
    objective = HJEPA(encoder(16), HJEPAConfig(mask=mask))
    objective(batch(size=16))[0].backward()
    for name, p in objective.named_parameters():
        if name.startswith("target_encoder"):
            assert p.grad is None, name
        else:
            assert p.grad is not None and p.grad.isfinite().all(), name
            if not name.endswith("qkv.bias"):
                assert p.grad.abs().sum() > 0, name
    assert len(objective.level_codes) == 2
    decayed = {id(p) for p in objective.param_groups(1e-3)[0]["params"]}
    assert not decayed & {id(code) for code in objective.level_codes}


def test_hidden_pixels_reach_the_loss_as_targets_alone():
    objective, data = HJEPA(encoder()), batch()
    frozen = objective.level_targets(data)
    objective.level_targets = lambda b: frozen
    state = objective.generator.get_state()
    loss = objective(data)[0]
    objective.generator.set_state(state)
    valid = torch.ones(12, 16, dtype=torch.bool)
    mask = objective.config.mask.draw(valid, objective.encoder.grid, objective.generator)
    hidden = mask.targets[:, 0].view(-1, 4, 4).repeat_interleave(2, 1).repeat_interleave(2, 2)[:, None]
    changed = data | {"image": torch.where(hidden, 1 - data["image"], data["image"])}
    torch.testing.assert_close(again(objective, state, changed)[0], loss)


def test_the_coarsest_level_is_asked_once_an_image():
    """Of a 4 x 4 grid with one hidden token: one token, one square, and the image."""
    objective, asked = HJEPA(encoder(), HJEPAConfig(mask=MaskConfig(ratio=1 / 16))), []
    compare = objective.compare

    def spy(prediction, target, where):
        asked.append(where.sum(1).tolist())
        return compare(prediction, target, where)

    objective.compare = spy
    objective(batch())
    assert asked == [[1] * 12] * 3
    asked.clear()
    objective.config = HJEPAConfig(mask=MaskConfig(ratio=15 / 16))
    objective(batch())
    assert asked == [[15] * 12, [4] * 12, [1] * 12]


def test_hooks_are_gone_after_a_step():
    objective = HJEPA(encoder())
    objective(batch())
    assert not any(block._forward_hooks for block in objective.target_encoder.target.transformer.blocks)


def test_what_is_wrong_is_named():
    with pytest.raises(ValueError, match=r"must have one entry a level, at least one, got \(1.0,\), \(1, 2\)"):
        HJEPAConfig(level_weights=(1.0,), level_pools=(1, 2), level_layers=(0, 0))
    with pytest.raises(ValueError, match="at least one, got"):
        HJEPAConfig(level_weights=(), level_pools=(), level_layers=())
    with pytest.raises(ValueError, match=r"level_weights must not be negative, and one be positive, got \(0.0, -1.0"):
        HJEPAConfig(level_weights=(0.0, -1.0, 1.0))
    with pytest.raises(ValueError, match="one be positive"):
        HJEPAConfig(level_weights=(0.0, 0.0, 0.0))
    with pytest.raises(ValueError, match="level_pools must be at least 1"):
        HJEPAConfig(level_pools=(1, 0, 2))
    with pytest.raises(ValueError, match="level_layers must not be negative"):
        HJEPAConfig(level_layers=(0, -1, 0))
    with pytest.raises(ValueError, match="level_pools must divide both sides of the 4 x 4 grid of tokens, got 3"):
        HJEPA(encoder(), HJEPAConfig(level_pools=(1, 2, 3)))
    with pytest.raises(ValueError, match="must lie below the depth of the encoder, 2, got 2"):
        HJEPA(encoder(), HJEPAConfig(level_layers=(0, 0, 2)))
    with pytest.raises(ValueError, match="needs tokens on a grid"):
        HJEPA(sequence_encoder(), HJEPAConfig(**ONE))
