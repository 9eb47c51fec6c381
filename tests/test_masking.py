"""Masks: what they promise, over shapes, ratios and paddings; gather and scatter; the closed-form coverage."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepa_lab import masking, rectangles, tokens
from jepa_lab.masking import (
    MaskConfig,
    block_mask,
    complementary_masks,
    multiblock_mask,
    put_back,
    random_mask,
    take_visible,
)


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


@st.composite
def padded(draw):
    """valid [B, N] with any padding pattern, a row of padding alone included."""
    batch, n = draw(st.integers(1, 6)), draw(st.integers(1, 20))
    rows = draw(st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=batch, max_size=batch))
    return torch.tensor(rows)


def check_partition(mask, valid, exact):
    """Context and targets are disjoint, together the real tokens, of the exact size, both non-empty where possible."""
    hidden = mask.targets.any(1)
    assert not (mask.context & hidden).any()
    assert torch.equal(mask.context | hidden, valid)
    n_valid = valid.sum(1)
    two = n_valid >= 2
    assert mask.context[two].any(1).all() and hidden[two].any(1).all()
    assert not hidden[~two].any()
    assert torch.equal(hidden.sum(1)[two], exact(n_valid[two]))


@settings(max_examples=60, deadline=None)
@given(padded(), st.floats(0.01, 0.99), st.integers(0, 1000))
def test_random_mask(valid, ratio, seed):
    mask = random_mask(valid, ratio, gen(seed))
    exact = lambda n: torch.minimum((n * ratio).round().long().clamp(min=1), n - 1)  # noqa: E731
    check_partition(mask, valid, exact)
    assert mask.targets.shape[1] == 1


@settings(max_examples=60, deadline=None)
@given(padded(), st.floats(0.01, 0.99), st.integers(1, 4), st.integers(0, 1000))
def test_block_mask(valid, ratio, n_blocks, seed):
    mask = block_mask(valid, ratio, n_blocks, gen(seed))
    exact = lambda n: torch.minimum((n * ratio).round().long().clamp(min=1), n - 1)  # noqa: E731
    check_partition(mask, valid, exact)
    assert (mask.targets.sum(1) <= 1).all()  # runs do not overlap
    for row, real in zip(mask.targets, valid, strict=True):
        for block in row:
            inside = block[real].int()  # padding removed: the run must be one piece
            assert (inside.diff() != 0).sum() <= 2
            if inside.any():
                first, last = inside.nonzero()[0], inside.nonzero()[-1]
                assert inside[first : last + 1].all()


def test_block_mask_coverage_is_the_closed_form():
    rows, n, ratio = 40_000, 10, 0.4
    hidden = block_mask(torch.ones(rows, n, dtype=torch.bool), ratio, 1, gen()).targets[:, 0].double().mean(0)
    length, places = 4, 7
    expected = torch.tensor([sum(s <= i < s + length for s in range(places)) / places for i in range(n)]).double()
    sigma = (expected * (1 - expected) / rows).sqrt()
    assert ((hidden - expected).abs() < 4 * sigma).all()


def test_random_mask_hides_every_token_equally_often():
    rows, n = 40_000, 12
    hidden = random_mask(torch.ones(rows, n, dtype=torch.bool), 0.25, gen()).targets[:, 0].double().mean(0)
    assert ((hidden - 0.25).abs() < 4 * (0.25 * 0.75 / rows) ** 0.5).all()


def closed_form_coverage(grid, scale, aspect, steps=400):
    """P(a block covers a cell): the mean over area and aspect of (row probability) x (column probability)."""
    area = (torch.arange(steps).double() + 0.5) / steps * (scale[1] - scale[0]) + scale[0]
    ratio = (torch.arange(steps).double() + 0.5) / steps * (aspect[1] - aspect[0]) + aspect[0]
    area = area[:, None] * grid[0] * grid[1]
    h = (area * ratio).sqrt().round().clamp(1, grid[0]).long()
    w = (area / ratio).sqrt().round().clamp(1, grid[1]).long()

    def along(size, length):
        places = length - size + 1
        cell = torch.arange(length)
        first = (cell - size[..., None] + 1).clamp(min=0)
        last = torch.minimum(cell.expand_as(first), places[..., None] - 1)
        return (last - first + 1).double() / places[..., None]

    return torch.einsum("abh,abw->hw", along(h, grid[0]), along(w, grid[1])) / steps**2


@pytest.mark.parametrize("grid", [(7, 7), (8, 8), (14, 14), (6, 9)])
def test_multiblock_coverage_is_the_closed_form_everywhere(grid):
    scale, aspect, rows = (0.15, 0.2), (0.75, 1.5), 30_000
    valid = torch.ones(rows, grid[0] * grid[1], dtype=torch.bool)
    targets = multiblock_mask(valid, grid, 1, scale, aspect, generator=gen()).targets
    covered = targets[:, 0].view(rows, *grid).double().mean(0)
    expected = closed_form_coverage(grid, scale, aspect)
    z = (covered - expected) / (expected * (1 - expected) / rows).sqrt()
    assert z.abs().max() < 4, z
    # The published sampler never touches the last row and column; here they are covered like the first ones.
    assert z[-1].abs().max() < 4 and covered[-1].min() > 0 and covered[:, -1].min() > 0
    torch.testing.assert_close(expected, expected.flip(0))
    torch.testing.assert_close(expected, expected.flip(1))


def test_multiblock_area_and_aspect_are_independent():
    grid, rows = (40, 40), 20_000
    targets = multiblock_mask(
        torch.ones(rows, 1600, dtype=torch.bool), grid, 1, (0.1, 0.4), (0.5, 2.0), generator=gen()
    ).targets.view(rows, *grid)
    h, w = targets.any(2).sum(1).double(), targets.any(1).sum(1).double()
    correlation = torch.corrcoef(torch.stack([h * w, h / w]))[0, 1]
    assert correlation.abs() < 4 / rows**0.5 + 0.02  # the published sampler: 0.84


@settings(max_examples=40, deadline=None)
@given(st.integers(7, 12), st.integers(7, 12), st.integers(1, 4), st.integers(1, 3), st.integers(0, 1000))
def test_multiblock_structure(height, width, n_targets, min_context, seed):
    grid = (height, width)
    try:
        config = MaskConfig("multiblock", n_blocks=n_targets, min_context=min_context)
        config.check(grid)
    except ValueError:
        return
    mask = config.draw(torch.ones(8, height * width, dtype=torch.bool), grid, gen(seed))
    assert mask.targets.shape == (8, n_targets, height * width)
    assert not (mask.context & mask.targets.any(1)).any()
    assert (mask.context.sum(1) >= 1).all()
    assert (mask.context.sum(1) >= min_context).float().mean() > 0.8
    for block in mask.targets.view(-1, height, width):  # each target is one full rectangle of a possible size
        h, w = int(block.any(1).sum()), int(block.any(0).sum())
        assert block.sum() == h * w
        areas = [(a - 0.5) * (b - 0.5) for a, b in [(h, w), (h + 1, w + 1)]]  # what rounds to h x w
        assert areas[0] <= 0.2 * height * width and areas[1] >= 0.15 * height * width
        assert (h - 0.5) / (w + 0.5) <= 1.5 and (h + 0.5) / (w - 0.5) >= 0.75


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.0, 1.0))
def test_multiblock_with_padding_keeps_something_seen_and_something_hidden(seed, share):
    valid = torch.rand(16, 49, generator=gen(seed)) < share
    mask = multiblock_mask(valid, (7, 7), 3, generator=gen(seed))
    two = valid.sum(1) >= 2
    hidden = mask.targets.any(1)
    assert mask.context[two].any(1).all() and hidden[two].any(1).all()
    assert not (mask.context & hidden).any()
    assert not ((mask.context | hidden) & ~valid).any()


def test_targets_that_tile_the_grid_leave_one_token_to_see():
    """Four 2 x 2 blocks on a 4 x 4 grid sometimes tile it; that row must still see something."""
    valid = torch.ones(200_000, 16, dtype=torch.bool)
    mask = multiblock_mask(valid, (4, 4), 4, (0.25, 0.25), (1.0, 1.0), generator=gen())
    free = (~mask.targets.any(1)).sum(1)
    assert mask.context.any(1).all() and (free >= 1).all()
    assert not (mask.context & mask.targets.any(1)).any()
    assert ((mask.targets.sum(2) < 4).any(1)).any()  # it did happen: a target gave up one cell


@pytest.mark.parametrize("grid", [(1, 1), (1, 5), (4, 3), (7, 7)])
def test_the_table_of_rectangles_holds_what_the_comparison_gives(grid, monkeypatch):
    valid = torch.ones(200, grid[0] * grid[1], dtype=torch.bool)
    drawn = rectangles.draw_rectangles(200, 3, grid, (0.01, 1.0), (0.2, 5.0), valid, gen())
    table = drawn.blocks
    monkeypatch.setattr(rectangles, "TABLE_BYTES", 0)
    assert (table == drawn.blocks).all()
    assert (table.sum(2) == drawn.height * drawn.width).all()


def test_a_large_grid_gets_no_table(monkeypatch):
    """That of 40 x 40 would have a gigabyte."""
    assert rectangles.table_bytes((14, 14)) < rectangles.TABLE_BYTES < rectangles.table_bytes((40, 40))
    monkeypatch.setattr(rectangles, "_table", None)
    assert multiblock_mask(torch.ones(2, 1600, dtype=torch.bool), (40, 40), generator=gen()).targets.any(2).all()


def test_multiblock_draws_the_tries_that_it_does_not_look_at(monkeypatch):
    """The first try that leaves enough is taken, and whether others are looked at changes no random number."""
    valid = torch.ones(500, 16, dtype=torch.bool)
    how = (valid, (4, 4), 2, (0.2, 0.3), (0.75, 1.5), (0.3, 1.0), 5)
    lazy, after = gen(), gen()
    mask = multiblock_mask(*how, lazy)
    targets = rectangles.draw_rectangles(500, 2, (4, 4), (0.2, 0.3), (0.75, 1.5), valid, after).blocks
    tries = rectangles.draw_rectangles(500, masking._TRIES, (4, 4), (0.3, 1.0), (1.0, 1.0), valid, after).blocks
    torch.randint(2**62, (1,), generator=after)  # the seed of a repair, needed or not
    assert (lazy.get_state() == after.get_state()).all()
    later = 0
    for b in range(500):
        left = [t & ~targets[b].any(0) for t in tries[b]]
        good = [i for i, t in enumerate(left) if t.sum() >= 5]
        later += bool(good) and good[0] > 0
        assert (mask.context[b] == (left[good[0]] if good else ~targets[b].any(0))).all()
    assert later > 20


@pytest.mark.parametrize("scale", [(0.2, 0.3), (0.3, 0.6)])
def test_multiblock_is_the_same_where_no_device_is_asked(scale, monkeypatch):
    """On a GPU the rare remedies are computed for every row: masks and random numbers must be those of a CPU."""
    valid = torch.rand(300, 16, generator=gen(1)) < 0.8
    draw = lambda g: multiblock_mask(valid, (4, 4), 2, scale, (0.75, 1.5), (0.3, 1.0), 1, g)  # noqa: E731
    one, other = gen(), gen()
    asked = draw(one)
    monkeypatch.setattr(masking, "_asks", lambda rows: True)
    always = draw(other)
    assert torch.equal(asked.context, always.context) and torch.equal(asked.targets, always.targets)
    assert (one.get_state() == other.get_state()).all()


@given(padded())
def test_kept_slots_are_those_of_a_sorting(keep):
    for k in {int(keep.sum(1).max()), keep.shape[1]}:
        index, valid = tokens.kept_slots(keep, k)
        expected = keep.int().argsort(dim=1, descending=True, stable=True)[:, :k]
        assert torch.equal(valid, keep.gather(1, expected)) and torch.equal(index[valid], expected[valid])
        assert index.shape == (len(keep), k) and bool(((index >= 0) & (index < keep.shape[1])).all())


def test_multiblock_falls_back_when_the_context_block_always_falls_on_the_targets():
    """A 1-cell context block against targets that cover most of the grid: the bounded redraw must end, non-empty."""
    mask = multiblock_mask(
        torch.ones(500, 49, dtype=torch.bool), (7, 7), 4, context_scale=(0.02, 0.02), generator=gen()
    )
    assert mask.context.any(1).all()
    assert not (mask.context & mask.targets.any(1)).any()
    more = mask.context.sum(1) > 1  # a row whose block was always covered takes all that its targets leave
    assert more.any() and torch.equal(mask.context[more], ~mask.targets.any(1)[more])


def test_impossible_settings_are_refused_at_construction():
    with pytest.raises(
        ValueError, match=r"fewer than min_context=1 of the 16 cells of a 4 x 4 grid in \d+% of the draws"
    ):
        MaskConfig("multiblock", target_scale=(0.9, 1.0), target_aspect=(1.0, 1.0)).check((4, 4))
    MaskConfig("multiblock", n_blocks=4).check((8, 8))  # the published blocks, where the published sampler can hang
    with pytest.raises(ValueError, match="needs tokens on a grid"):
        MaskConfig("multiblock").check(None)
    with pytest.raises(ValueError, match="min_context=30"):
        multiblock_mask(torch.ones(2, 49, dtype=torch.bool), (7, 7), 4, min_context=30)
    for kwargs in ({"target_scale": (0.3, 0.2)}, {"context_scale": (0.0, 1.0)}, {"target_aspect": (-1.0, 1.0)}):
        with pytest.raises(ValueError, match=next(iter(kwargs))):
            multiblock_mask(torch.ones(2, 49, dtype=torch.bool), (7, 7), 1, **kwargs)
    with pytest.raises(ValueError, match="has 49 cells, but valid has 16"):
        multiblock_mask(torch.ones(2, 16, dtype=torch.bool), (7, 7), 1)
    for ratio in (0.0, 1.0, -0.5, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"ratio.*\(0, 1\)"):
            random_mask(torch.ones(2, 4, dtype=torch.bool), ratio)
        with pytest.raises(ValueError, match=r"mask.ratio.*\(0, 1\)"):
            MaskConfig(ratio=ratio)
    with pytest.raises(ValueError, match="n_blocks"):
        block_mask(torch.ones(2, 4, dtype=torch.bool), 0.5, 0)


@settings(max_examples=40, deadline=None)
@given(padded(), st.floats(0.5, 0.95), st.integers(0, 1000))
def test_complementary_views_share_no_token_and_see_equally_many(valid, ratio, seed):
    first, second = complementary_masks(valid, ratio, gen(seed))
    two, n = valid.sum(1) >= 2, valid.sum(1)
    assert torch.equal(first.context, random_mask(valid, ratio, gen(seed)).context)
    assert not (first.context & second.context).any()
    assert torch.equal(first.targets[:, 0][two], (valid & ~first.context)[two])
    assert torch.equal(second.targets[:, 0][two], (valid & ~second.context)[two])
    hidden = n - first.context.sum(1)
    expected = hidden if ratio == 0.5 else torch.minimum(hidden, first.context.sum(1))
    assert torch.equal(second.context.sum(1)[two], expected[two])
    assert not second.context[~two].any() and not second.targets[~two].any()
    halves = complementary_masks(valid, 0.5, gen(seed))
    assert torch.equal((halves[0].context | halves[1].context)[two], valid[two])


def test_views_that_see_more_than_half_are_not_disjoint():
    with pytest.raises(ValueError, match=r"ratio=0.3: two views that each see more than half.*views='mask'"):
        complementary_masks(torch.ones(2, 4, dtype=torch.bool), 0.3)
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\), got 1.0"):
        complementary_masks(torch.ones(2, 4, dtype=torch.bool), 1.0)


def test_the_generator_decides_and_only_it():
    valid = torch.ones(4, 49, dtype=torch.bool)
    for config, grid in [(MaskConfig(), None), (MaskConfig("block"), None), (MaskConfig("multiblock"), (7, 7))]:
        a, b = config.draw(valid, grid, gen(3)), config.draw(valid, grid, gen(3))
        other = config.draw(valid, grid, gen(4))
        assert torch.equal(a.targets, b.targets) and torch.equal(a.context, b.context)
        assert not torch.equal(a.targets, other.targets)


@settings(max_examples=60, deadline=None)
@given(padded(), st.integers(0, 1000))
def test_put_back_restores_what_take_visible_took(keep, seed):
    x = torch.randn(*keep.shape, 3, generator=gen(seed))
    if not keep.any():
        with pytest.raises(ValueError, match="no row keeps any token"):
            take_visible(x, keep)
        return
    taken, valid, index = take_visible(x, keep)
    assert taken.shape[1] == keep.sum(1).max()
    assert torch.equal(valid.sum(1), keep.sum(1))
    assert (taken[~valid] == 0).all()
    back = put_back(taken, valid, index, keep.shape[1], fill=-7.0)
    assert torch.equal(back[keep], x[keep])
    assert (back[~keep] == -7).all()


def test_padded_slots_never_overwrite_a_token_wherever_their_index_points():
    x = torch.tensor([[[1.0], [9.0]]])
    back = put_back(x, torch.tensor([[True, False]]), torch.tensor([[0, 0]]), 3)
    assert back.flatten().tolist() == [1.0, 0.0, 0.0]


def test_put_back_fills_with_a_tensor_and_refuses_wild_indices():
    fill = torch.arange(4.0)[:, None].expand(4, 2)
    back = put_back(torch.full((1, 1, 2), 9.0), torch.tensor([[True]]), torch.tensor([[2]]), 4, fill)
    assert back[0, :, 0].tolist() == [0.0, 1.0, 9.0, 3.0]
    with pytest.raises(ValueError, match=r"0\.\.3"):
        put_back(torch.zeros(1, 1, 2), torch.tensor([[True]]), torch.tensor([[4]]), 4)


def test_a_given_length_pads_and_never_cuts():
    x, keep = torch.randn(2, 5, 1), torch.tensor([[True] * 3 + [False] * 2, [True] * 2 + [False] * 3])
    taken, valid, _ = take_visible(x, keep, k=4)
    assert taken.shape[1] == 4 and torch.equal(valid.sum(1), keep.sum(1))
    with pytest.raises(ValueError, match="k=2"):
        take_visible(x, keep, k=2)
