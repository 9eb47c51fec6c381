"""The text encoders and the predictor: slow sums, LSA at the start, padding that changes nothing."""

import pytest
import torch
from torch import nn

from jepa_lab.data.retrieval import Texts, ordered_words, weighted_words
from jepa_lab.data.text_encoders import LsaEncoder, TfidfEncoder
from jepa_lab.text_nets import (
    Projection,
    RetrievalPredictor,
    RetrievalPredictorConfig,
    TextEncoderConfig,
    WordBag,
    WordTransformer,
    build_text_encoder,
)
from tests.tensors import randn, shake

TEXTS = ["a red fox runs", "the red red moon", "runs the fox", "blue moon", "a cat and a fox and a moon", "blue cat"]


def words(rows=7, longest=5, known=11, seed=0):
    """Rows of words with weights, of different lengths; one without any word."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(known, (rows, longest), generator=generator)
    weight = torch.rand(rows, longest, generator=generator, dtype=torch.float64) + 0.1
    weight[torch.arange(longest) >= torch.randint(1, longest + 1, (rows, 1), generator=generator)] = 0
    weight[2] = 0
    return text, weight


def bag(**settings):
    torch.manual_seed(0)
    return WordBag(11, 6, **settings).double()


def transformer():
    torch.manual_seed(0)
    return WordTransformer(11, 6, width=8, depth=1, heads=2).double()


def test_a_bag_is_the_weighted_sum_of_its_words():
    net, (text, weight) = bag(), words()
    expected = [
        sum((w * net.vectors[t] for t, w in zip(*row, strict=True)), torch.zeros(6))
        for row in zip(text, weight, strict=True)
    ]
    torch.testing.assert_close(net(text, weight), torch.stack(expected).double())
    batched = net(text.view(7, 1, 5), weight.view(7, 1, 5))
    assert batched.shape == (7, 1, 6) and torch.equal(batched[:, 0], net(text, weight))


def test_a_bag_that_starts_as_lsa_is_lsa():
    lsa = LsaEncoder(3).fit(TEXTS)
    start = torch.from_numpy(lsa.svd.components_.T.copy()).float()
    net = WordBag(len(start), 3, start)
    text, weight = weighted_words(lsa.tfidf.encode(TEXTS))
    torch.testing.assert_close(nn.functional.normalize(net(text, weight), dim=1), lsa.encode(TEXTS))
    with torch.no_grad():
        net.vectors.add_(1)
    assert not torch.equal(net.vectors, start)  # a copy: what was fitted stays


@pytest.mark.parametrize("make", [bag, transformer])
def test_padding_and_its_words_change_nothing(make):
    """Longer rows with any words behind weight 0; and a word with weight 0 has no gradient."""
    net, (text, weight) = make(), words()
    rows = torch.arange(7) != 2  # an empty text has no embedding
    out = net(text, weight)[rows]
    other = torch.where(weight == 0, (text + 3) % 11, text)
    wide, wide_weight = (
        torch.cat([other, torch.full((7, 4), 9)], 1),
        torch.cat([weight, torch.zeros(7, 4).double()], 1),
    )
    torch.testing.assert_close(net(wide, wide_weight)[rows], out)


def test_the_order_of_words_matters_to_the_transformer_alone():
    text, weight = words()
    weight = (weight > 0).double()
    for net, matters in ((bag(), False), (transformer(), True)):
        swapped = text.clone()
        swapped[1, [0, 1]] = text[1, [1, 0]]
        assert text[1, 0] != text[1, 1] and weight[1, 1]
        assert (not torch.allclose(net(text, weight)[1], net(swapped, weight)[1])) == matters


def test_weighted_words_hold_the_sparse_rows():
    rows = TfidfEncoder().fit(TEXTS).encode(TEXTS)
    text, weight = weighted_words(rows)
    dense = torch.zeros(rows.shape)
    for i, (numbers, values) in enumerate(zip(text, weight, strict=True)):
        for number, value in zip(numbers, values, strict=True):
            dense[i, number] += value
    assert torch.equal(dense, torch.from_numpy(rows.toarray()))


def test_ordered_words_are_the_known_words_in_order():
    encoder = TfidfEncoder().fit(TEXTS[:3])
    number = encoder.vectorizer.vocabulary_
    text, weight = ordered_words(encoder, ["runs fox blue red", "moon"], max_words=2)
    assert text.tolist() == [[number["runs"], number["fox"]], [number["moon"], 0]]
    assert weight.tolist() == [[1, 1], [1, 0]]
    assert ordered_words(encoder, ["blue"]).weight.tolist() == [[0]]  # nothing known
    with pytest.raises(ValueError, match="max_words must be at least 1, got 0"):
        ordered_words(encoder, TEXTS, 0)


def test_taking_texts_leaves_out_columns_of_padding():
    text, weight = words()
    weight[:, 3:] = 0
    batch = Texts(text, weight).take("source", torch.tensor([[0, 1], [3, 4]]))
    assert batch["source"].shape == (2, 2, 3) and batch["source_weight"].shape == (2, 2, 3)
    assert torch.equal(batch["source"][1, 0], text[3, :3])
    assert Texts(text, torch.zeros(7, 5)).take("a", torch.tensor([0]))["a"].shape == (1, 1)
    assert list(Texts(randn(4, 3)).take("a", torch.tensor([1]))) == ["a"]


@pytest.mark.parametrize(("dim_in", "dim"), [(5, 9), (5, 5)])
def test_a_projection_starts_with_the_cosines_of_its_input(dim_in, dim):
    x = randn(6, dim_in).float()
    y = Projection(dim_in, dim)(x)
    torch.testing.assert_close(y @ y.T, x @ x.T)


@pytest.mark.parametrize(("shape", "layers"), [("simple", 2), ("deep", 4), ("residual", 2)])
def test_shapes_of_the_predictor(shape, layers):
    net = RetrievalPredictor(4, RetrievalPredictorConfig(shape)).double()
    linear = [(m.in_features, m.out_features) for m in net.modules() if isinstance(m, nn.Linear)]
    assert linear == [(4, 8), *[(8, 8)] * (layers - 2), (8, 4)]
    assert sum(isinstance(m, nn.GELU) for m in net.modules()) == layers - 1
    q = randn(3, 4)
    assert torch.equal(net.eval()(q), q) == (shape == "residual")  # which begins with the identity
    moved = shake(net)
    inner = moved.net(q) + (q if shape == "residual" else 0)
    assert torch.equal(moved(q), inner)


def test_dropout_is_at_work_in_training_alone():
    net = shake(RetrievalPredictor(40, RetrievalPredictorConfig("simple", 0.5)).double())
    q = randn(3, 40)
    assert torch.equal(net.eval()(q), net.eval()(q)) and not torch.equal(net.train()(q), net.train()(q))


def test_which_encoder_a_configuration_builds():
    start = torch.randn(11, 6)
    for settings, kind in {
        (): Projection,
        (("base", "scratch"),): WordBag,
        (("base", "scratch"), ("start", "lsa")): WordBag,
        (("base", "scratch"), ("net", "transformer"), ("width", 8), ("depth", 1)): WordTransformer,
    }.items():
        config = TextEncoderConfig(dim=6, **dict(settings))
        net = build_text_encoder(config, 6, 11, start)
        assert type(net) is kind and net.dim == 6
        assert (config.start == "lsa") == (kind is WordBag and torch.equal(net.vectors, start))
    assert [
        TextEncoderConfig(*kind).words for kind in (("frozen",), ("scratch", "bag"), ("scratch", "transformer"))
    ] == ["none", "weighted", "ordered"]


FAULTS = [
    (lambda: TextEncoderConfig(base="warm"), "encoder.base must be one of frozen, scratch, got 'warm'"),
    (lambda: TextEncoderConfig(net="cnn"), "encoder.net must be one of bag, transformer"),
    (lambda: TextEncoderConfig(start="svd"), "encoder.start must be one of lsa, random"),
    (lambda: TextEncoderConfig(depth=0), "encoder.depth must be at least 1, got 0"),
    (lambda: TextEncoderConfig(start="lsa"), "encoder.start=lsa is for base=scratch and net=bag"),
    (lambda: TextEncoderConfig(width=9, heads=3), "encoder.width must be even and a multiple of heads=3, got 9"),
    (lambda: WordBag(0), "words must be at least 1, got 0"),
    (lambda: WordBag(3, 2, torch.zeros(2, 3)), r"start must hold a vector for each word, \[3, 2\], got \(2, 3\)"),
    (
        lambda: build_text_encoder(TextEncoderConfig("scratch", start="lsa", dim=7), 6, 11, torch.zeros(11, 6)),
        "encoder.start=lsa needs encoder.dim=6, the width of LSA .data.dim., got 7",
    ),
    (lambda: RetrievalPredictorConfig("wide"), "predictor.shape must be one of simple, deep, residual, got 'wide'"),
    (lambda: RetrievalPredictorConfig(dropout=1.0), "predictor.dropout must lie in"),
]


@pytest.mark.parametrize(("make", "message"), FAULTS)
@pytest.mark.usefixtures("unchecked")
def test_faults_name_their_cause(make, message):
    with pytest.raises(ValueError, match=message):
        make()
