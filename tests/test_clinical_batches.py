"""Records as batches: the scale, the cut, the buckets, and the tables without an encoder."""

import pytest
import torch

from jepa_lab.data.clinical import PARAMETERS, Records
from jepa_lab.data.clinical_batches import (
    SKEWED,
    BatchConfig,
    RecordBatches,
    Scale,
    cut,
    in_order,
    pad,
    share_cut,
    split,
)
from jepa_lab.data.clinical_generator import GeneratorConfig, generate
from jepa_lab.data.clinical_summary import descriptors, summary

SOME = GeneratorConfig(channels=("HR", "Temp", "Creatinine", "MechVent"), density=0.2)


@pytest.fixture(scope="module")
def stays():
    return generate(300, 2, SOME)


def stay(records, i):
    where = slice(int(records.start[i]), int(records.start[i + 1]))
    return records.time[where], records.feature[where], records.value[where]


def of_lengths(counts):
    """Stays with so many observations, of channels in turn; the value of an observation is its number in all."""
    count = torch.tensor(counts)
    start = torch.cat([torch.zeros(1, dtype=torch.long), count.cumsum(0)])
    total = int(start[-1])
    place = torch.arange(total) - torch.repeat_interleave(start[:-1], count)
    return Records(
        tuple(map(str, range(len(counts)))),
        start,
        place.float() / 100,
        place % 3,
        torch.arange(total).float(),
        torch.zeros(len(counts), 5),
        torch.arange(len(counts)) % 2,
    )


def test_the_scale_is_that_of_the_training_stays_alone(stays):
    train, test = stays.take(torch.arange(200)), stays.take(torch.arange(200, 300))
    scale = Scale.fit(train)
    scaled = scale(train)
    for name in ("HR", "Temp", "Creatinine"):
        value = scaled.value[scaled.feature == PARAMETERS.index(name)]
        assert value.mean().abs() < 1e-4 and value.std(correction=0).item() == pytest.approx(1, abs=1e-3)
    wild = Records(**{**vars(test), "value": test.value * 100})
    assert torch.equal(Scale.fit(train)(test).value, scale(test).value)
    assert scale(wild).value.abs().max() <= scaled.value.abs().max() + 1e-5  # clipped to what the training knows
    always = scaled.value[scaled.feature == PARAMETERS.index("MechVent")]
    assert len(always) and (always == 0).all()  # a channel with one value is no number divided by zero
    assert (scale.std[PARAMETERS.index("AST")], scale.mean[PARAMETERS.index("AST")]) == (1, 0)  # never seen


def test_skewed_channels_are_logged_and_all_are_clipped(stays):
    scale, f = Scale.fit(stays, clip=0.01), PARAMETERS.index("Creatinine")
    here = stays.feature == f
    raw = stays.value[here].double()
    assert scale.skewed.sum() == len(SKEWED) == 14 and scale.skewed[f]
    logged = (1 + raw).log()
    low, high = logged.quantile(0.01, interpolation="lower"), logged.quantile(0.99, interpolation="higher")
    clipped = logged.clamp(low, high)
    expected = (clipped - clipped.mean()) / clipped.std(correction=0)
    torch.testing.assert_close(scale(stays).value[here].double(), expected, rtol=1e-4, atol=1e-4)
    temperature = stays.feature == PARAMETERS.index("Temp")
    order = stays.value[temperature].argsort()
    assert (scale(stays).value[temperature][order].diff() >= 0).all()
    with pytest.raises(ValueError, match=r"clip, the share at either end, must lie in \[0, 0.5\), got 0.5"):
        Scale.fit(stays, 0.5)


def test_the_split_keeps_the_share_of_deaths_and_depends_on_the_seed():
    records = generate(1000, 0, GeneratorConfig(channels=("HR",), density=0.05))
    train, test = split(records, 3)
    assert len(test) == 200 and len(train) == 800
    assert torch.equal(torch.cat([train, test]).sort().values, torch.arange(1000))
    assert records.label[test].float().mean().item() == pytest.approx(records.label.float().mean().item(), abs=0.006)
    assert torch.equal(split(records, 3)[1], test) and not torch.equal(split(records, 4)[1], test)
    with pytest.raises(ValueError, match="share, what is held out"):
        split(records, share=1.0)


def test_a_batch_holds_each_stay_whole_and_zeros_behind_it(stays):
    index = torch.tensor([7, 0, 33])
    batch = pad(stays, index)
    assert batch["value"].shape == (3, int(stays.count[index].max()))
    assert torch.equal(batch["label"], stays.label[index])
    for row, i in enumerate(index.tolist()):
        n = int(stays.count[i])
        for name, column in zip(("time", "feature", "value"), stay(stays, i), strict=True):
            assert torch.equal(batch[name][row, :n], column) and (batch[name][row, n:] == 0).all()
        assert batch["valid"][row].sum() == n and batch["valid"][row, :n].all()
    for counts in ([0, 0], [0, 2]):
        empty = pad(of_lengths(counts), torch.tensor([0, 1]))
        assert empty["valid"].sum() == sum(counts) and empty["value"].shape[1] >= 1


def test_a_cut_keeps_rare_channels_and_order_and_leaves_short_records_alone():
    batch = pad(of_lengths([100, 10, 0]), torch.tensor([0, 1, 2]))
    batch["feature"][0] = torch.cat([torch.zeros(95), torch.ones(3), torch.full((2,), 2)])[torch.randperm(100)].long()
    seen = torch.zeros(3)
    for seed in range(200):
        small = cut(batch, 20, torch.Generator().manual_seed(seed))
        assert small["value"].shape == (3, 20) and small["valid"].sum(1).tolist() == [20, 10, 0]
        assert (small["value"][0].diff() > 0).all()  # in their order, none twice
        assert torch.equal(small["value"][1, :10], batch["value"][1, :10])
        assert torch.equal(small["feature"][0], batch["feature"][0][small["value"][0].long()])
        assert torch.equal(small["time"][0], batch["time"][0][small["value"][0].long()])
        seen += torch.bincount(small["feature"][0], minlength=3) / 200
    assert seen[1] > 2.9 and seen[2] > 1.95  # of 3 and 2, where one draw in five would keep 0.6 and 0.4
    assert torch.equal(cut(batch, 0)["value"], batch["value"])
    assert torch.equal(cut(batch, 100)["value"], batch["value"])
    with pytest.raises(ValueError, match="longest must not be negative"):
        cut(batch, -1)


def test_what_is_cut_is_drawn_without_replacement_with_the_stated_weights():
    """Two of three, weights 1/2, 1/2, 1: the odds of the first draw are 1 : 1 : 2, then those that are left."""
    batch = {
        "value": torch.arange(3.0).expand(8000, 3),
        "time": torch.zeros(8000, 3),
        "feature": torch.tensor([0, 0, 1]).expand(8000, 3),
        "valid": torch.ones(8000, 3, dtype=torch.bool),
    }
    kept = cut(batch, 2, torch.Generator().manual_seed(0))["value"]
    share = torch.stack([(kept == i).any(1).float().mean() for i in range(3)])
    both = 2 * (1 / 4) * (1 / 3)  # the first two and not the third
    torch.testing.assert_close(share, torch.tensor([(1 + both) / 2, (1 + both) / 2, 1 - both]), atol=0.02, rtol=0)


def test_an_epoch_shows_every_stay_once_in_batches_of_like_length():
    lengths = (torch.randperm(400, generator=torch.Generator().manual_seed(0)) + 2).tolist()
    records = of_lengths(lengths)
    batches = RecordBatches(records, 16, BatchConfig(0, pool=25), seed=3)
    epoch = batches(0)
    shown = torch.cat(epoch.batches)
    assert len(epoch) == 25 and torch.equal(shown.sort().values, torch.arange(400))
    spread = [int(records.count[index].max() - records.count[index].min()) for index in epoch.batches]
    assert max(spread) == 15  # 400 lengths, sorted, in 25 batches
    mixed = RecordBatches(records, 16, BatchConfig(0, pool=1), seed=3)(0)
    assert min(int(records.count[i].max() - records.count[i].min()) for i in mixed.batches) > 150
    filled, wasted = (
        sum(int(b["valid"].sum()) for b in e) / sum(b["valid"].numel() for b in e) for e in (epoch, mixed)
    )
    assert filled > 0.9 > 0.65 > wasted
    assert [b["value"].shape[1] for b in epoch] == [int(records.count[i].max()) for i in epoch.batches]


def test_lengths_follow_no_course_and_every_epoch_groups_anew():
    records = of_lengths((torch.randperm(400, generator=torch.Generator().manual_seed(0)) + 2).tolist())
    batches = RecordBatches(records, 16, BatchConfig(0, pool=25), seed=0)
    rank = torch.arange(25).double()
    courses = []
    for epoch in range(40):
        longest = torch.tensor([records.count[i].max() for i in batches(epoch).batches]).double()
        courses.append(torch.corrcoef(torch.stack([longest, rank]))[0, 1])
    courses = torch.stack(courses)
    # Of 25 shuffled numbers the correlation with their place has mean 0 and s.d. 0.2; sorted ones have 1.
    assert courses.mean().abs() < 0.15 and courses.abs().max() < 0.75
    small = RecordBatches(records, 16, BatchConfig(0, pool=5), seed=0)
    groups = [frozenset(i.tolist()) for epoch in (0, 1) for i in small(epoch).batches]
    assert len(set(groups)) == 50
    assert [i.tolist() for i in small(0).batches] == [i.tolist() for i in small(0).batches]
    assert [i.tolist() for i in small(0).batches] != [
        i.tolist() for i in RecordBatches(records, 16, BatchConfig(0, pool=5), seed=1)(0).batches
    ]


def test_a_step_shows_a_fresh_draw_of_a_long_record_and_the_last_incomplete_batch_is_left_out(stays):
    batches = RecordBatches(stays, 64, BatchConfig(8, pool=2), seed=0)
    one, again, later = (list(batches(epoch)) for epoch in (0, 0, 1))
    assert len(one) == len(batches(0)) == 4  # 300 stays
    assert all(torch.equal(a["value"], b["value"]) for a, b in zip(one, again, strict=True))
    assert max(b["value"].shape[1] for b in one) == 8
    assert not all(torch.equal(a["value"], b["value"]) for a, b in zip(one, later, strict=True))
    with pytest.raises(ValueError, match=r"trainer.batch_size=301 is larger than the data set of 300 records"):
        RecordBatches(stays, 301)
    with pytest.raises(ValueError, match=r"batches.observations must be 0 \(all\) or at least 2, got 1"):
        BatchConfig(1)
    with pytest.raises(ValueError, match=r"batches.pool must be at least 1"):
        BatchConfig(pool=0)


def test_a_probe_sees_all_stays_in_order_with_one_draw(stays):
    batches = list(in_order(stays, 6, batch_size=128))
    assert torch.equal(torch.cat([b["label"] for b in batches]), stays.label)
    assert all(
        torch.equal(a["value"], b["value"]) for a, b in zip(batches, in_order(stays, 6, batch_size=128), strict=True)
    )
    over = (stays.count - 6).clamp(min=0)
    shares = share_cut(stays, 6)
    assert shares == pytest.approx(((over > 0).float().mean().item(), (over.sum() / stays.count.sum()).item()))
    assert share_cut(stays, 0) == (0.0, 0.0) and 0 < shares[1] < 1


def test_the_summary_equals_a_loop(stays):
    found = summary(stays).view(len(stays), 5, len(PARAMETERS))
    for i in range(20):
        _, feature, value = stay(stays, i)
        for f in range(len(PARAMETERS)):
            x = value[feature == f]
            if len(x):
                expected = torch.stack([x.mean(), x.min(), x.max(), x[-1], torch.tensor(len(x) + 1.0).log()])
                torch.testing.assert_close(found[i, :, f], expected)
            else:
                assert (found[i, :, f] == 0).all()
    assert (summary(of_lengths([0, 3]))[0] == 0).all()


def test_descriptors_are_standardised_by_the_training_stays_and_say_what_is_missing(stays):
    train = stays.take(torch.arange(200))
    table = descriptors(train, train)
    assert table.shape == (200, 10) and table.isfinite().all()
    torch.testing.assert_close(table[:, 0].mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    assert torch.equal(table[:, 4] == 1, train.static[:, 2].isnan())
    assert torch.equal(table[:, 5] == 1, train.static[:, 4].isnan())
    assert torch.equal(table[:, 6:].argmax(1) + 1, train.static[:, 3].long()) and (table[:, 6:].sum(1) == 1).all()
    older = Records(**{**vars(train), "static": train.static + torch.tensor([10.0, 0, 0, 0, 0])})
    shift = descriptors(older, train)[:, 0] - table[:, 0]
    torch.testing.assert_close(shift, torch.full((200,), 10 / train.static[:, 0].std(correction=0).item()))
