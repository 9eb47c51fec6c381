"""Pairs with steering and negatives: formulas by slow loops, the curriculum, determinism, tiers, faults."""

import math

import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from jepa_lab.data.negatives import ADJACENT, SIMILAR, TIERS
from jepa_lab.data.steering import (
    VARIANTS,
    SteeringConfig,
    SteeringDataset,
    keyword_vectors,
    leave_one_out,
    steer,
    topic_centroids,
)
from jepa_lab.data.text import Pairs
from jepa_lab.data.text_encoders import LsaEncoder, TfidfEncoder


def toy(n=60, dim=6, topics=5, seed=0):
    """Embeddings in clusters, topics mixed, sizes unequal: topic 0 is the largest."""
    generator = torch.Generator().manual_seed(seed)
    topic = torch.randint(topics + 2, (n,), generator=generator)
    topic = torch.where(topic < topics, topic, 0)
    topic[: 2 * topics] = torch.arange(topics).repeat(2)  # each has two at least
    centre = torch.randn(topics, dim, generator=generator, dtype=torch.float64)
    source = centre[topic] + torch.randn(n, dim, generator=generator, dtype=torch.float64)
    question = source + 0.5 * torch.randn(n, dim, generator=generator, dtype=torch.float64)
    return question, source, topic


def words(topics=5, dim=6):
    return torch.randn(topics, dim, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def make(n=60, seed=0, epochs=10, batch_size=16, source_id=None, data=None, **config):
    question, source, topic = data or toy(n)
    keywords = words(int(topic.max()) + 1, source.shape[1])
    return SteeringDataset(
        question, source, topic, keywords, SteeringConfig(**config), source_id, batch_size, epochs, seed
    )


def unit(x):
    return x / x.norm()


# ------------------------------------------------------------------------------------------------- centroids


def slow_leave_one_out(source, topic, source_id):
    rows = []
    for i in range(len(topic)):
        others = [source[j] for j in range(len(topic)) if topic[j] == topic[i] and source_id[j] != source_id[i]]
        rows.append(unit(torch.stack(others).sum(0)))
    return torch.stack(rows)


def test_centroids_are_unit_means_and_zero_without_sources():
    _, source, topic = toy()
    found = topic_centroids(source, topic, k=7)
    for k in range(5):
        torch.testing.assert_close(found[k], unit(source[topic == k].mean(0)))
    assert found.shape == (7, 6) and torch.equal(found[5:], torch.zeros(2, 6, dtype=torch.float64))


def test_leave_one_out_equals_the_loop():
    _, source, topic = toy()
    torch.testing.assert_close(leave_one_out(source, topic), slow_leave_one_out(source, topic, torch.arange(60)))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5)), min_size=1, max_size=20), st.integers(0, 99))
def test_leave_one_out_with_shared_sources_equals_the_loop(rows, seed):
    """Rows with one id hold one source; all are left out. A source may also stand in several topics."""
    rows += [(k, 6 + k) for k in range(3)] + [(k, 9 + k) for k in range(3)]  # each topic has two sources at least
    topic, source_id = torch.tensor(rows).T.contiguous()
    source = torch.randn(12, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)[source_id]
    torch.testing.assert_close(
        leave_one_out(source, topic, source_id), slow_leave_one_out(source, topic, source_id), rtol=1e-6, atol=1e-9
    )


# ------------------------------------------------------------------------------------------------- steering vectors


def test_each_variant_has_its_formula():
    question, source, topic = toy()
    question, centroid, keywords = normalize(question, dim=1), leave_one_out(source, topic), words()
    variant = torch.arange(60) % 4
    found = steer(question, centroid, keywords, topic, variant)
    for i in range(60):
        expected = {
            "zero": torch.zeros(6, dtype=torch.float64),
            "centroid": centroid[i],
            "keyword": keywords[topic[i]],
            "residual": unit(centroid[i] - question[i]),
        }[VARIANTS[variant[i]]]
        torch.testing.assert_close(found[i], expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_fixed_variant_steers_every_pair_of_every_epoch_so(variant):
    data = make(variant=variant)
    for epoch in (0, 9):
        data.set_epoch(epoch)
        batch = data[torch.arange(60)]
        assert batch["steering_variant"].tolist() == [VARIANTS.index(variant)] * 60
        expected = steer(data.question, data.own_centroid, data.keywords, data.topic, batch["steering_variant"])
        torch.testing.assert_close(batch["steering"], expected)


def test_steering_does_not_hold_the_pairs_own_source():
    """The centroid of a pair, and with it its steering, stays what it is when its own source changes."""
    question, source, topic = toy()
    changed = source.clone()
    changed[3] = -changed[3] + 1
    for variant in ("centroid", "residual"):
        one, other = (make(data=(question, s, topic), variant=variant).steering for s in (source, changed))
        torch.testing.assert_close(one[3], other[3])
        mates = (topic == topic[3]) & (torch.arange(60) != 3)
        assert not torch.isclose(one[mates], other[mates]).all(1).any()


# ------------------------------------------------------------------------------------------------- curriculum


def test_shares_fall_linearly_and_sum_to_one():
    config = SteeringConfig(zero_start=0.5, zero_end=0.1, centroid=2.0, keyword=1.0, residual=1.0)
    for progress in (0.0, 0.25, 0.5, 1.0):
        zero = 0.5 - 0.4 * progress
        rest = 1 - zero
        expected = torch.tensor([zero, rest / 2, rest / 4, rest / 4], dtype=torch.float64)
        torch.testing.assert_close(config.shares(progress), expected)
        assert config.shares(progress).sum().item() == pytest.approx(1)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_curriculum_draws_these_shares(seed):
    """2,000 pairs: the s.d. of a share is at most 0.011, so 0.045 is four of them."""
    data = make(n=2000, seed=seed, epochs=11, n_neg=0)
    for epoch, zero in [(0, 0.5), (5, 0.3), (10, 0.1), (25, 0.1)]:
        data.set_epoch(epoch)
        found = torch.bincount(data.variant, minlength=4) / 2000
        expected = torch.tensor([zero, *[(1 - zero) / 3] * 3])
        torch.testing.assert_close(found, expected, atol=0.045, rtol=0)


def test_a_single_epoch_has_the_first_shares():
    assert make(n=400, epochs=1, n_neg=0, zero_start=1.0).variant.unique().tolist() == [0]


# ------------------------------------------------------------------------------------------------- determinism


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def epoch_of(data, epoch):
    batches = list(data(epoch))
    return {key: torch.stack([batch[key] for batch in batches]) for key in batches[0]}


@pytest.mark.parametrize("refresh_every", [0, 1, 2])
def test_epoch_3_is_epoch_3_whatever_came_before(refresh_every):
    """A resumed run starts in the middle."""
    expected = epoch_of(make(refresh_every=refresh_every), 3)
    for before in ([0, 1, 2], [3], [9, 4], [2, 3, 0]):
        data = make(refresh_every=refresh_every)
        for epoch in before:
            data.set_epoch(epoch)
        assert same(epoch_of(data, 3), expected)
    assert not same(epoch_of(make(refresh_every=refresh_every), 4), expected)
    assert not same(epoch_of(make(refresh_every=refresh_every, seed=1), 3), expected)


def test_an_epoch_keeps_its_draws_when_another_one_is_asked_for():
    data = make()
    expected = [epoch_of(data, 0), epoch_of(data, 1)]
    first, second = data(0), data(1)
    batches = list(zip(first, second, strict=True))  # in turns
    for i, part in enumerate(expected):
        assert same({key: torch.stack([pair[i][key] for pair in batches]) for key in part}, part)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), epoch=st.integers(0, 1000))
def test_one_seed_and_epoch_one_outcome(seed, epoch):
    assert same(epoch_of(make(seed=seed), epoch), epoch_of(make(seed=seed), epoch))


def test_variants_negatives_and_order_are_drawn_apart():
    """Three streams: with one generator for two of them, a draw would tell the other."""
    data = make(n=400, tiers=(0.0, 0.0, 0.0, 1.0), n_neg=1)
    order = data(0).order
    own_number = torch.arange(400) / 400
    for one, other in [
        (data.variant, data.negative[:, 0]), (data.variant[order], own_number), (data.negative[order, 0], own_number)
    ]:  # fmt: skip
        assert torch.corrcoef(torch.stack([one.double(), other.double()]))[0, 1].abs() < 0.2  # 4 s.e. of 400 pairs


def test_a_pair_is_steered_anew_in_every_epoch():
    """Equal shares: a pair keeps its variant by chance alone, 1/2 x 1/2 + 3 x 1/6 x 1/6 = 1/3 of the time."""
    data = make(n=400, n_neg=0, zero_end=0.5)
    before = data.variant
    data.set_epoch(1)
    assert (before == data.variant).float().mean().item() == pytest.approx(1 / 3, abs=0.1)  # 4 s.e.


def test_an_epoch_serves_every_pair_once_in_another_order():
    data = make(n=60, batch_size=20)
    orders = [torch.cat([batch["source_id"] for batch in data(epoch)]) for epoch in range(3)]
    assert all(sorted(order.tolist()) == list(range(60)) for order in orders)
    assert not torch.equal(orders[0], orders[1]) and not torch.equal(orders[1], orders[2])
    assert len(make(n=60, batch_size=16)(0)) == len(list(make(n=60, batch_size=16)(0))) == 3  # the rest is left out


# ------------------------------------------------------------------------------------------------- negatives


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.tuples(*[st.floats(0, 5)] * 4).filter(lambda shares: sum(shares) > 1e-3))
def test_slots_add_up_and_round_by_less_than_one(n_neg, shares):
    slots = SteeringConfig(n_neg=n_neg, tiers=shares).slots()
    assert len(slots) == n_neg and slots == sorted(slots)
    for tier, share in enumerate(shares):
        assert abs(slots.count(tier) - n_neg * share / sum(shares)) < 1


def test_default_slots():
    assert SteeringConfig().slots() == [0, 0, 0, 0, 1, 1, 2, 3]
    assert SteeringConfig(n_neg=3, tiers=(1.0, 1.0, 1.0, 0.0)).slots() == [0, 1, 2]


def many(tier, draws=40, **extra):
    """All rows ever drawn as negatives of a tier, as a set for each pair."""
    shares = [float(i == TIERS.index(tier)) for i in range(4)]
    data = make(tiers=tuple(shares), n_neg=8, **extra)
    found = [set() for _ in range(len(data))]
    for epoch in range(draws):
        data.set_epoch(epoch)
        assert (data.negative_tier == TIERS.index(tier)).all() and data.negative.shape == (len(data), 8)
        for mine, rows in zip(found, data.negative.tolist(), strict=True):
            mine.update(rows)
    return data, found


def test_in_topic_negatives_are_all_others_of_the_topic():
    data, found = many("in_topic")
    for i, mine in enumerate(found):
        assert mine == {j for j in range(60) if data.topic[j] == data.topic[i] and j != i}


def test_adjacent_negatives_are_those_of_the_three_nearest_topics():
    question, source, topic = toy(topics=8)
    data, found = many("adjacent", data=(question, source, topic))
    centroids = [unit(data.source[topic == k].sum(0)) for k in range(8)]
    for i, mine in enumerate(found):
        own = int(topic[i])
        near = sorted((k for k in range(8) if k != own), key=lambda k, own=own: -(centroids[k] @ centroids[own]).item())
        assert mine == {j for j in range(60) if int(topic[j]) in near[:ADJACENT]}


def test_similar_negatives_are_the_most_similar_of_other_topics():
    data, found = many("similar", data=toy(n=150, dim=6), draws=60)
    for i, mine in enumerate(found):
        cosine = {j: (data.source[i] @ data.source[j]).item() for j in range(150) if data.topic[j] != data.topic[i]}
        assert len(cosine) > SIMILAR
        assert mine == set(sorted(cosine, key=cosine.get, reverse=True)[:SIMILAR])


def test_random_negatives_are_all_others():
    _, found = many("random", draws=80)
    for i, mine in enumerate(found):
        assert mine == set(range(60)) - {i}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=0, max_size=12), st.integers(0, 99))
def test_no_tier_ever_draws_the_own_row_or_the_wrong_topic(extra, seed):
    """Topics of any size, gaps in their numbers included."""
    topic = torch.tensor([0, 0, 2, 2, *extra])
    count = torch.bincount(topic)
    topic = torch.where(count[topic] > 1, topic, 0)
    source = torch.randn(len(topic), 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    data = make(data=(source, source, topic), n_neg=3, tiers=(1.0, 1.0, 1.0, 0.0), batch_size=2, seed=seed)
    own = torch.arange(len(topic))[:, None]
    same_topic = topic[data.negative] == topic[:, None]
    assert (data.negative != own).all()
    assert torch.equal(same_topic, data.negative_tier == 0)


def test_one_topic_alone_has_random_rows_and_says_so():
    question, source, _ = toy()
    data = make(data=(question, source, torch.zeros(60, dtype=torch.long)))
    assert data.negative_tier[0].tolist() == [0, 0, 0, 0, 3, 3, 3, 3]
    assert (data.negative != torch.arange(60)[:, None]).all()


def test_negatives_are_sources_and_say_which():
    source_id = torch.arange(60) // 2 * 7  # pairs of pairs share a source, numbers have gaps
    question, source, _ = toy()
    source = source[torch.arange(60) // 2 * 2]
    topic = torch.arange(60) // 2 % 5
    data = make(data=(question, source, topic), source_id=source_id)
    batch = data[torch.tensor([3, 41])]
    for i, row in enumerate((3, 41)):
        for j in range(8):
            negative = data.negative[row, j]
            torch.testing.assert_close(batch["negatives"][i, j], unit(source[negative]))
            assert batch["negative_id"][i, j] == source_id[negative]
    everything = data[torch.arange(60)]  # the other pair of the same source is drawn too, so the loss needs the ids
    assert (everything["negative_id"] == everything["source_id"][:, None]).any()
    torch.testing.assert_close(data.own_centroid, slow_leave_one_out(data.source, topic, source_id))


@pytest.mark.parametrize(("every", "changes"), [(0, []), (1, [1, 2, 3, 4, 5]), (2, [2, 4]), (3, [3])])
def test_negatives_are_drawn_anew_when_due(every, changes):
    data = make(refresh_every=every)
    seen, changed = data.negative, []
    for epoch in range(6):
        data.set_epoch(epoch)
        if not torch.equal(data.negative, seen):
            changed.append(epoch)
        seen = data.negative
    assert changed == changes


# ------------------------------------------------------------------------------------------------- batches


def test_a_batch_holds_what_the_objective_and_the_monitor_need():
    data = make(n_neg=5)
    batch = next(iter(data(0)))
    shapes = {key: tuple(value.shape) for key, value in batch.items()}
    assert shapes == {
        "question": (16, 6), "source": (16, 6), "steering": (16, 6), "negatives": (16, 5, 6), "topic": (16,),
        "source_id": (16,), "relevance": (16,), "centroid_distance": (16,), "steering_variant": (16,),
        "negative_id": (16, 5), "negative_tier": (16, 5),
    }  # fmt: skip
    question, source, topic = toy()
    for i, row in enumerate(batch["source_id"].tolist()):
        torch.testing.assert_close(batch["question"][i], unit(question[row]))
        torch.testing.assert_close(batch["source"][i], unit(source[row]))
        assert batch["topic"][i] == topic[row]
        assert batch["relevance"][i] == pytest.approx((unit(question[row]) @ unit(source[row])).item())
        distance = 1 - unit(source[row]) @ data.own_centroid[row]
        assert batch["centroid_distance"][i] == pytest.approx(distance.item())


def test_no_negatives_when_none_are_wanted():
    assert make(n_neg=0)[torch.arange(4)]["negatives"].shape == (4, 0, 6)


# ------------------------------------------------------------------------------------------------- keywords


class OneHot(LsaEncoder):
    """An encoder whose text vectors can be read: a letter a dimension."""

    def encode(self, texts):
        return torch.stack([torch.tensor([float(letter in text.split()) for letter in "abcd"]) for text in texts])


CORPUS = Pairs(
    question=("q",) * 4,
    source=("a a b", "a b", "c d", "c c d"),
    topic=("one", "one", "two", "two"),
    name=("n",) * 4,
)


def test_keyword_vectors_by_hand():
    """With one-hot words the vector is the list of weights itself."""
    rows = torch.from_numpy(TfidfEncoder().fit(CORPUS.source).encode(CORPUS.source).toarray())  # columns a b c d
    apart = torch.stack([rows[:2].mean(0), rows[2:].mean(0)]) - rows.mean(0)
    found = keyword_vectors(CORPUS, ("one", "two"), OneHot(), k=2)
    expected = torch.stack(
        [unit(apart[0] * torch.tensor([1.0, 1, 0, 0])), unit(apart[1] * torch.tensor([0.0, 0, 1, 1]))]
    )
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(keyword_vectors(CORPUS, ("two", "one"), OneHot(), k=2), found.flip(0))
    # k = 1 keeps the word that is most typical
    assert keyword_vectors(CORPUS, ("one", "two"), OneHot(), k=1).tolist() == [[1, 0, 0, 0], [0, 0, 1, 0]]


def test_a_word_of_every_topic_is_no_keyword():
    common = Pairs(CORPUS.question, tuple(f"d {s}" for s in ("a", "a", "b", "c")), CORPUS.topic, CORPUS.name)
    found = keyword_vectors(common, ("one", "two"), OneHot(), k=1)
    assert found[:, 3].abs().max() == 0


# ------------------------------------------------------------------------------------------------- faults


def refuse_two_widths():
    question, source, topic = toy()
    return make(data=(question[:, :5], source, topic))


def with_nan(which, row):
    data = [part.clone() for part in toy()]
    data[which][row, 2] = torch.nan
    return make(data=tuple(data))


def lonely():
    question, source, topic = toy()
    topic[topic == 4] = 0
    topic[17] = 4
    return make(data=(question, source, topic))


def with_keywords(keywords, **config):
    return SteeringDataset(*toy(), keywords, SteeringConfig(**config), batch_size=16)


FAULTS = {
    "width": (refuse_two_widths, r"question and source must both be \[n, D\], got \(60, 5\) and \(60, 6\)"),
    "topic": (lambda: make(data=(*toy()[:2], toy()[2][:9])), r"topic must be \[n\] with n = 60, got \(9,\)"),
    "nan question": (lambda: with_nan(0, 33), "question: 1 embeddings are not finite, the first in row 33"),
    "nan source": (lambda: with_nan(1, 7), "source: 1 embeddings are not finite, the first in row 7"),
    "lonely": (lonely, "topic: every topic needs at least two sources to steer by; topic 4 has one"),
    "n_neg": (lambda: make(n_neg=60), "steering.n_neg=60 is larger than the pool of 59 other sources"),
    "n_neg of shared sources": (
        lambda: make(n_neg=30, source_id=torch.arange(60) // 2), "n_neg=30 is larger than the pool of 29 other sources"
    ),
    "variant": (lambda: make(variant="both"), "steering.variant must be one of mix, zero, centroid, .*, got 'both'"),
    "no keywords": (lambda: with_keywords(None), "keywords must be given .* set steering.keyword=0"),
    "no keywords, fixed": (lambda: with_keywords(None, variant="keyword"), "keywords must be given"),
    "keywords of fewer topics": (lambda: with_keywords(words(4)), r"keywords must be \(5, 6\), .* got \(4, 6\)"),
    "keywords of another width": (lambda: with_keywords(words(5, 3)), r"keywords must be \(5, 6\), .* got \(5, 3\)"),
    "nan keywords": (lambda: with_keywords(words() / 0), "keywords must be finite"),
    "batch": (lambda: make(batch_size=61), "batch_size must lie in 1..60, the number of pairs, got 61"),
    "batch of none": (lambda: make(batch_size=0), "batch_size must lie in 1..60"),
    "zero_start": (lambda: make(zero_start=1.2), r"steering.zero_start must lie in \[0, 1\], got 1.2"),
    "no shares": (lambda: make(centroid=0, keyword=0, residual=0), "one is > 0"),
    "negative share": (lambda: make(keyword=-1), "one is > 0"),
    "tiers": (lambda: make(tiers=(1, 1)), "steering.tiers must be four shares"),
    "nan in tiers": (lambda: make(tiers=(1, math.nan, 1, 1)), "steering.tiers must be four shares"),
    "nan in shares": (lambda: make(centroid=math.nan), "steering.centroid, keyword and residual must be shares"),
    "negative n_neg": (lambda: make(n_neg=-1), "steering.n_neg must not be negative, got -1"),
    "refresh": (lambda: make(refresh_every=-1), "steering.refresh_every must not be negative, got -1"),
    "steer": (
        lambda: steer(torch.ones(1, 2), torch.ones(1, 2), None, torch.tensor([0]), torch.tensor([2])),
        "keywords must be given",
    ),
    "keyword topics": (lambda: keyword_vectors(CORPUS, ("one", "three"), OneHot()), "no pair has the topic 'three'"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_faults_name_their_cause(name):
    call, message = FAULTS[name]
    jaxtyping.config.update("jaxtyping_disable", True)  # our own messages, without the type checker of the tests
    try:
        with pytest.raises(ValueError, match=message):
            call()
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def test_what_is_just_allowed():
    assert make(n_neg=59).negative.shape == (60, 59)
    assert len(list(make(batch_size=60)(0))) == 1
    assert (
        SteeringDataset(*toy(), None, SteeringConfig(keyword=0.0), batch_size=16)
        .variant.ne(VARIANTS.index("keyword"))
        .all()
    )
