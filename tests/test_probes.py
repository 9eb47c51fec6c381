"""Probes and controls: they read what is there, hide nothing, and drop what has no content."""

import pytest
import torch

from jepa_lab.data.images import digits
from jepa_lab.nets import EncoderConfig, TokenEncoder, Transformer, image_encoder
from jepa_lab.objectives import JEPA
from jepa_lab.probes import collect, control_rows, extract, knn_probe, linear_probe, probe, raw_features
from jepa_lab.training import TrainConfig
from tests.test_objectives import SequenceTokenizer

TINY = EncoderConfig(patch=4, dim=16, depth=1, heads=2)


def clusters(n=120, seed=0):
    generator = torch.Generator().manual_seed(seed)
    label = torch.arange(n) % 3
    centre = torch.tensor([[3.0, 0.0], [0.0, 3.0], [-3.0, -3.0]])
    return centre[label] + 0.3 * torch.randn(n, 2, generator=generator), label


def test_probes_read_separable_features_and_find_nothing_in_noise():
    (train, y), (test, t) = clusters(seed=0), clusters(seed=1)
    assert linear_probe(train, y, test, t) == 1.0
    assert knn_probe(train, y, test, t) == 1.0
    noise = torch.randn(120, 2, generator=torch.Generator().manual_seed(2))
    assert linear_probe(noise, y, noise.flip(0), t) < 0.6
    assert knn_probe(noise, y, noise.flip(0), t) < 0.6


def test_the_linear_probe_does_not_see_a_collapse_to_a_point_and_the_std_does():
    (train, y), (test, t) = clusters(seed=0), clusters(seed=1)
    point = torch.tensor([5.0, 5.0], dtype=torch.float64)
    shrunk, shrunk_test = (point + 1e-6 * x.double() for x in (train, test))
    assert linear_probe(shrunk, y, shrunk_test, t) == 1.0
    from jepa_lab.metrics import normalized_std

    assert normalized_std(shrunk_test) < 1e-5


def test_bad_features_are_refused():
    train, y = clusters()
    with pytest.raises(ValueError, match="NaN or infinity"):
        linear_probe(train * torch.nan, y, train, y)
    with pytest.raises(ValueError, match=r"k must lie in 1\.\.120"):
        knn_probe(train, y, train, y, k=121)


def test_extract_drops_rows_without_content_and_says_which():
    torch.manual_seed(0)
    objective = JEPA(TokenEncoder(SequenceTokenizer(3, 16), Transformer(16, 1, 2), 16))
    valid = torch.ones(7, 4, dtype=torch.bool)
    valid[[1, 5]] = False
    features, rows = extract(objective, {"x": torch.randn(7, 4, 3), "valid": valid}, batch_size=3)
    assert rows.tolist() == [0, 2, 3, 4, 6] and features.shape == (5, 16)
    tokens, rows = extract(objective, {"x": torch.randn(7, 4, 3), "valid": valid}, "tokens", batch_size=3)
    assert rows.tolist() == [0, 2, 3, 4, 6] and tokens.shape == (5, 64)


def test_batches_do_not_change_features():
    data = digits()
    torch.manual_seed(0)
    objective = JEPA(image_encoder(data["train"]["image"], TINY))
    a, _ = extract(objective, data["test"], batch_size=100)
    b, _ = extract(objective, data["test"], batch_size=597)
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_control_rows():
    data = digits()
    config = TrainConfig(epochs=30)

    def make_encoder():
        return image_encoder(data["train"]["image"], TINY)

    rows = {row["method"]: row for row in control_rows(data, make_encoder, config, split="validation", tokens=False)}
    assert list(rows) == ["chance", "raw input", "random init", "supervised"]
    common = data["train"]["label"].bincount().argmax()
    assert rows["chance"]["knn"] == pytest.approx((data["validation"]["label"] == common).float().mean().item())
    raw, test = raw_features(data["train"]), raw_features(data["validation"])
    expected = knn_probe(raw, data["train"]["label"], test, data["validation"]["label"])
    assert rows["raw input"]["knn"] == expected > 0.9
    assert rows["chance"]["knn"] < rows["random init"]["knn"] < rows["supervised"]["knn"]
    again = control_rows(data, make_encoder, config, split="validation", tokens=False, rows=["random init"])
    assert again[0] == rows["random init"]
    with pytest.raises(ValueError, match="unknown control row 'oracle'"):
        control_rows(data, make_encoder, config, rows=["oracle"])


def test_probe_scores_the_split_that_is_asked_for_and_trains_on_the_training_split():
    data = digits()
    torch.manual_seed(0)
    objective = JEPA(image_encoder(data["train"]["image"], TINY))
    validation, test = probe(objective, data, "validation"), probe(objective, data, "test")
    assert {"method", "linear", "knn", "tokens", "std", "rank", "rankme", "dropped"} == set(test)
    shuffled = data | {"test": data["test"] | {"label": data["test"]["label"].roll(1)}}
    assert probe(objective, shuffled, "test")["knn"] < test["knn"]
    assert probe(objective, shuffled, "validation") == validation
    assert test["dropped"] == 0 and test["method"] == "JEPA"


def test_collect_gathers_runs_by_method_in_order():
    rows = [{"method": "b", "knn": 0.5}, {"method": "a", "knn": 0.1, "std": 1}, {"method": "b", "knn": 0.7}]
    assert collect(rows) == [{"method": "b", "knn": [0.5, 0.7]}, {"method": "a", "knn": [0.1], "std": [1.0]}]


def test_train_rows_limit_the_probes_alone():
    data = digits()
    objective = JEPA(image_encoder(data["train"]["image"], TINY))
    few = {**data, "train": {key: value[:100] for key, value in data["train"].items()}}
    assert probe(objective, data, tokens=False, train_rows=100) == probe(objective, few, tokens=False)
    assert probe(objective, data, tokens=False, train_rows=100) != probe(objective, data, tokens=False)
    seen = []

    def make_encoder():
        encoder = image_encoder(data["train"]["image"], TINY)
        tokenize = encoder.tokenize
        encoder.tokenize = lambda batch: seen.append(len(batch["image"])) or tokenize(batch)
        return encoder

    config = TrainConfig(epochs=1, batch_size=64)
    rows = control_rows(data, make_encoder, config, rows=["raw input", "supervised"], tokens=False, train_rows=100)
    assert seen.count(64) == 15  # the supervised control trains on all 1000 rows
    expected = control_rows(few, make_encoder, config, rows=["raw input"], tokens=False)
    assert rows[0] == expected[0]
