"""Masks of series: how many they hide, which together, and what two views share."""

import pytest
import torch

from jepa_lab.masking import MaskConfig, complementary_masks
from jepa_lab.objectives import JEPAConfig, build_objective
from jepa_lab.series_masks import SERIES_KINDS, hiding_order
from jepa_lab.tokens import Series
from tests.test_objectives import encoder, sequence_encoder


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def records(rows=200, length=60, channels=7, seed=0):
    """Rows of 60, 59, ... 1, 0, 60, ... real tokens at random hours of two days."""
    g = gen(seed)
    count = length - torch.arange(rows) % (length + 1)
    valid = torch.rand(rows, length, generator=g).argsort(1).argsort(1) < count[:, None]  # padding anywhere
    time = 48 * torch.rand(rows, length, generator=g)
    feature = torch.randint(channels, (rows, length), generator=g)
    return valid, Series(time, feature)


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.75])
@pytest.mark.parametrize("kind", SERIES_KINDS)
def test_every_kind_hides_the_same_share_of_every_row(kind, ratio):
    valid, series = records()
    mask = MaskConfig(kind, ratio).draw(valid, None, gen(), series)
    n, hidden = valid.sum(1), mask.targets[:, 0]
    expected = (n * ratio).round().clamp(min=1).minimum((n - 1).clamp(min=0))
    assert torch.equal(hidden.sum(1), expected.long())
    assert torch.equal(mask.context | hidden, valid) and not (mask.context & hidden).any()


def split_units(hidden, unit, valid):
    """In each row: how many units are hidden in part."""
    number = []
    for row in range(len(valid)):
        shares = [
            hidden[row][valid[row] & (unit[row] == u)].float().mean() for u in unit[row][valid[row]].unique().tolist()
        ]
        number.append(sum(0 < share < 1 for share in shares))
    return torch.tensor(number)


def test_channels_are_hidden_whole_but_for_one():
    valid, series = records()
    mask = MaskConfig("channel", 0.5).draw(valid, None, gen(), series)
    assert split_units(mask.targets[:, 0], series.feature, valid).max() == 1
    scattered = MaskConfig("random", 0.5).draw(valid, None, gen(), series)
    assert split_units(scattered.targets[:, 0], series.feature, valid).float().mean() > 4


def test_time_is_hidden_in_blocks_of_the_asked_length():
    """Sorted by time, a row alternates between seen and hidden a few times only; six hours make up to nine blocks."""
    valid, series = records()
    changes = {}
    for kind, hours in [("time", 6.0), ("time", 24.0), ("random", 6.0)]:
        hidden = MaskConfig(kind, 0.5, hours=hours).draw(valid, None, gen(), series).targets[:, 0]
        order = series.time.masked_fill(~valid, torch.inf).argsort(1)
        line, real = hidden.gather(1, order), valid.gather(1, order)
        changes[kind, hours] = ((line[:, 1:] != line[:, :-1]) & real[:, 1:])[::61].sum(1).float().mean()
    assert changes["time", 24.0] < changes["time", 6.0] < 0.6 * changes["random", 6.0]
    # At two days' length and up to two blocks, a row is cut at its one border and inside one block.
    late = Series(torch.linspace(0, 47.9, 60).expand(50, 60), torch.zeros(50, 60, dtype=torch.long))
    order = hiding_order(torch.ones(50, 60, dtype=torch.bool), "time", late, 48.0, gen())
    starts = set()
    for row in order:
        first = (row < 30).nonzero().flatten()
        starts.add(int(first.min()))
    assert len(starts) > 3  # the borders lie elsewhere in each row


def test_a_block_starts_anywhere_and_every_block_may_come_first():
    """The border between two tokens at 5 h and 7 h falls between them in a third of the rows, at blocks of 6 h."""
    time = torch.tensor([5.0, 7.0, 20.0, 40.0]).expand(6000, 4)
    valid, feature = torch.ones(6000, 4, dtype=torch.bool), torch.zeros(6000, 4, dtype=torch.long)
    order = hiding_order(valid, "time", Series(time, feature), 6.0, gen())
    apart = (order[:, 0] - order[:, 1]).abs() > 1  # another block came between them
    # Three blocks if the two are together (never apart), four if not: two of four places are neighbours in half.
    assert apart.float().mean().item() == pytest.approx(1 / 3 / 2, abs=0.02)
    first = torch.stack([(order == 0)[:, i].float().mean() for i in range(4)])
    torch.testing.assert_close(first[2:], torch.full((2,), (2 / 3 / 3 + 1 / 3 / 4)), atol=0.025, rtol=0)


def test_channels_come_in_any_order_and_shares_inside_one_are_random():
    feature = torch.tensor([0, 0, 1, 1, 2, 2]).expand(6000, 6)
    series, valid = Series(torch.zeros(6000, 6), feature), torch.ones(6000, 6, dtype=torch.bool)
    order = hiding_order(valid, "channel", series, generator=gen())
    place = torch.stack([order[:, 2 * c : 2 * c + 2].amin(1) for c in range(3)], 1)
    for c in range(3):
        torch.testing.assert_close((place[:, c] == 0).float().mean(), torch.tensor(1 / 3), atol=0.025, rtol=0)
    torch.testing.assert_close((order[:, 0] < order[:, 1]).float().mean(), torch.tensor(0.5), atol=0.025, rtol=0)
    assert (order.sort(1).values == torch.arange(6)).all()


def test_mix_draws_one_kind_for_each_row():
    valid, series = records(3000, 60)
    valid = torch.ones_like(valid)
    hidden = MaskConfig("mix", 0.5).draw(valid, None, gen(), series).targets[:, 0]
    whole_channels = split_units(hidden[:600], series.feature[:600], valid[:600]) <= 1
    assert whole_channels.float().mean().item() == pytest.approx(1 / 3, abs=0.06)
    order = series.time[:600].argsort(1)
    line = hidden[:600].gather(1, order)
    few = (line[:, 1:] != line[:, :-1]).sum(1) <= 20
    assert few.float().mean().item() == pytest.approx(1 / 3, abs=0.06)
    assert not (few & whole_channels).float().mean() > 0.02


@pytest.mark.parametrize("kind", SERIES_KINDS)
def test_the_generator_decides_and_padding_does_not(kind):
    valid, series = records(50)
    draw = MaskConfig(kind, 0.5).draw
    first = draw(valid, None, gen(3), series)
    wild = Series(*(torch.where(valid, part, part.max() * 0 + 30) for part in series))
    wild = wild._replace(feature=torch.where(valid, series.feature, 0))
    assert torch.equal(draw(valid, None, gen(3), wild).targets, first.targets)
    assert not torch.equal(draw(valid, None, gen(4), series).targets, first.targets)
    assert not (first.targets[:, 0] & ~valid).any()


@pytest.mark.parametrize("ratio", [0.5, 0.75])
def test_complementary_views_of_channels_share_neither_token_nor_more_than_one_channel(ratio):
    valid, series = records(300)
    valid = torch.ones_like(valid)
    first, second = MaskConfig("channel", ratio).pair(valid, gen(), series)
    assert not (first.context & second.context).any()
    assert torch.equal(first.context.sum(1), second.context.sum(1))
    assert first.context.sum(1).float().mean().item() == pytest.approx(60 * (1 - ratio))
    for row in range(20):
        shared = set(series.feature[row][first.context[row]].tolist()) & set(
            series.feature[row][second.context[row]].tolist()
        )
        assert len(shared) <= 1


def test_a_given_order_decides_about_both_views():
    order = torch.tensor([[3, 0, 2, 1]])
    first, second = complementary_masks(torch.ones(1, 4, dtype=torch.bool), 0.5, order=order)
    assert first.context.tolist() == [[True, False, True, False]]
    assert second.context.tolist() == [[False, True, False, True]]
    first, second = complementary_masks(torch.ones(1, 4, dtype=torch.bool), 0.75, order=order)
    assert first.context.tolist() == [[True, False, False, False]]
    assert second.context.tolist() == [[False, True, False, False]]


def test_empty_batches_and_records_of_one_moment():
    valid, series = records(4)
    nothing = MaskConfig("mix").draw(torch.zeros_like(valid), None, gen(), series)
    assert not nothing.context.any() and not nothing.targets.any()
    still = Series(torch.full_like(series.time, 13.0), torch.zeros_like(series.feature))
    mask = MaskConfig("time", 0.5).draw(valid, None, gen(), still)
    assert torch.equal(mask.targets[:, 0].sum(1), (valid.sum(1) * 0.5).round().long())


def test_what_does_not_fit_is_refused(unchecked):
    valid, series = records(4)
    with pytest.raises(ValueError, match="kind='time' hides by time and channel: it needs the series"):
        hiding_order(valid, "time")
    with pytest.raises(ValueError, match="kind must be one of random, time, channel, mix, got 'hour'"):
        hiding_order(valid, "hour", series)
    with pytest.raises(ValueError, match="hours, the length of a block, must be positive, got 0"):
        hiding_order(valid, "time", series, 0.0)
    with pytest.raises(ValueError, match=r"mask.hours must be positive, got -1.0"):
        MaskConfig("time", hours=-1.0)
    for name in ("jepa", "mae"):
        with pytest.raises(ValueError, match=r"mask.kind='mix' needs observations with a time and a feature"):
            build_objective(name, encoder(), mask=MaskConfig("mix"))
    with pytest.raises(ValueError, match=r"mask.kind='channel' needs observations"):
        build_objective("contrastive", sequence_encoder(), views="complementary", mask=MaskConfig("channel", 0.5))
    with pytest.raises(ValueError, match=r"mask.ratio=0.3: two views"):
        build_objective("contrastive", encoder(), views="complementary", mask=MaskConfig(ratio=0.3))
    assert JEPAConfig().mask.hours == 6.0
