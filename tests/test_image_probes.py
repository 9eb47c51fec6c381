"""Further read-outs of images: fair draws of labels, changes that hurt, another data set, and all off by default."""

import pytest
import torch

from jepa_lab import image_probes
from jepa_lab.config import parse, resolve
from jepa_lab.data.images import digits
from jepa_lab.image_probes import ReadOutConfig, few_rows, read_outs, resized, ridge_probe
from jepa_lab.nets import EncoderConfig, image_encoder
from jepa_lab.objectives import JEPA
from jepa_lab.probes import control_rows, fit_linear, linear_probe, probe, raw_features
from jepa_lab.training import TrainConfig

TINY = EncoderConfig(patch=4, dim=16, depth=1, heads=2)
ALL = ReadOutConfig(few_labels=0.01, draws=2, noise=0.3, shift=0.2, rotation=0.8, transfer="fashion_mnist", ridge=True)
CONDITIONS = ("ridge", "few", "noise", "shift", "rotation", "transfer")
COLUMNS = {f"{name} {condition}" for name in ("linear", "tokens") for condition in CONDITIONS} | {"knn transfer"}


def raw(batch):
    return {"linear": raw_features(batch)}


@pytest.fixture
def other(monkeypatch):
    """In place of Fashion-MNIST: larger pictures, whose label is the half that is bright."""
    label = torch.arange(60) % 2
    image = 0.2 * torch.rand(60, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    image[label == 1, :, :14] += 0.5
    batch = {"image": image, "label": label}
    data = {"train": batch, "validation": batch, "test": {key: value[:20] for key, value in batch.items()}}
    monkeypatch.setattr(image_probes.images, "load", lambda name: data)
    image_probes._other.cache_clear()
    yield data
    image_probes._other.cache_clear()


# ------------------------------------------------------------------------------------------------------ few labels


def test_few_rows_are_shares_of_every_class_and_one_at_least():
    label = torch.cat([torch.zeros(400), torch.ones(200), torch.full((3,), 2)]).long()
    rows = few_rows(label, 0.1)
    assert label[rows].bincount().tolist() == [40, 20, 1]
    assert rows.unique().tolist() == rows.tolist()
    assert few_rows(label, 0.1).tolist() == rows.tolist() != few_rows(label, 0.1, seed=1).tolist()
    assert few_rows(label, 1.0).tolist() == list(range(603))
    with pytest.raises(ValueError, match=r"share must lie in \(0, 1\]"):
        few_rows(label, 0.0)


def test_few_labels_are_averaged_over_draws_of_all_training_rows():
    data, label = digits(), digits()["train"]["label"]
    config = ReadOutConfig(few_labels=0.02, draws=3)
    found = read_outs(config, data, "validation", seed=4, train_rows=50)(raw)
    expected = []
    for draw in (12, 13, 14):  # three draws a seed, which no other seed shares
        rows = few_rows(label, 0.02, draw)
        held = data["validation"]
        expected.append(linear_probe(raw_features(data["train"])[rows], label[rows], raw_features(held), held["label"]))
    assert len(set(expected)) > 1
    assert found == {"linear few": pytest.approx(sum(expected) / 3)}


# ---------------------------------------------------------------------------------------------------------- changes


def test_changed_pictures_are_scored_by_the_probe_of_unchanged_ones():
    data = digits()
    config = ReadOutConfig(noise=0.3, shift=0.2, rotation=0.8)
    found = read_outs(config, data, "validation")(raw)
    assert set(found) == {"linear noise", "linear shift", "linear rotation"}
    clean = linear_probe(
        raw_features(data["train"]),
        data["train"]["label"],
        raw_features(data["validation"]),
        data["validation"]["label"],
    )
    assert all(0.2 < score < clean - 0.05 for score in found.values())
    seen = []

    def watch(batch):
        seen.append(batch["image"])
        return raw(batch)

    assert read_outs(config, data, "validation")(watch) == found  # the same changes for every method
    assert torch.equal(seen[-1], data["train"]["image"])
    assert all(not torch.equal(image, data["validation"]["image"]) for image in seen[:3])
    noise, shift, rotation = seen[:3]
    assert (noise - data["validation"]["image"]).abs().mean() > 0.1
    assert not torch.equal(shift, rotation)
    other_seed = read_outs(config, data, "validation", seed=1)(raw)
    assert other_seed != found


def test_one_change_alone_is_as_it_is_among_others():
    data = digits()
    together = read_outs(ReadOutConfig(noise=0.3, rotation=0.8), data, "validation")(raw)
    assert read_outs(ReadOutConfig(rotation=0.8), data, "validation")(raw) == {
        "linear rotation": together["linear rotation"]
    }


def test_train_rows_limit_the_probe_behind_the_changes():
    data = digits()
    few = data | {"train": {key: value[:100] for key, value in data["train"].items()}}
    config = ReadOutConfig(shift=0.1)
    assert read_outs(config, data, train_rows=100)(raw) == read_outs(config, few)(raw)
    assert read_outs(config, data, train_rows=100)(raw) != read_outs(config, data)(raw)


# --------------------------------------------------------------------------------------------------------- transfer


def test_transfer_probes_the_other_set_in_the_size_of_this_one(other):
    found = read_outs(ReadOutConfig(transfer="fashion_mnist"), digits(), train_rows=40)(raw)
    small = resized(other, (8, 8))
    train = {key: value[:40] for key, value in small["train"].items()}
    assert found["linear transfer"] == found["knn transfer"] == 1.0
    seen = []

    def watch(batch):
        seen.append(batch["image"])
        return raw(batch)

    read_outs(ReadOutConfig(transfer="fashion_mnist"), digits(), train_rows=40)(watch)
    assert torch.equal(seen[0], train["image"]) and torch.equal(seen[1], small["test"]["image"])


def test_resizing_keeps_the_mean_of_a_picture_and_what_is_not_a_picture():
    data = {"train": {"image": torch.rand(3, 1, 28, 28), "label": torch.arange(3)}}
    small = resized(data, (7, 7))["train"]
    assert small["image"].shape == (3, 1, 7, 7) and torch.equal(small["label"], torch.arange(3))
    # Every pixel counts: without averaging, most of the 28 x 28 would be skipped.
    bright = torch.zeros(1, 1, 28, 28)
    bright[..., ::2] = 1.0
    assert (resized({"train": {"image": bright}}, (7, 7))["train"]["image"] - 0.5).abs().max() < 0.1
    flat = torch.full((1, 1, 8, 8), 0.3)
    torch.testing.assert_close(resized({"train": {"image": flat}}, (28, 28))["train"]["image"].mean(), flat.mean())


# ------------------------------------------------------------------------------------------------- a chosen penalty


def test_the_ridge_probe_chooses_its_penalty(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(600) % 2
    signal = (2.0 * label - 1)[:, None] + torch.randn(600, 1, generator=generator)
    x = torch.cat([signal, torch.randn(600, 189, generator=generator)], 1) * torch.logspace(-3, 3, 190)
    train, held = slice(0, 200), slice(200, 600)  # nearly as many features as rows: without a penalty it fits the noise

    def score():
        return ridge_probe(x[train], label[train], x[held], label[held])

    chosen = score()
    monkeypatch.setattr(image_probes, "PENALTIES", (1e-4,))
    assert chosen > score() + 0.1
    monkeypatch.setattr(image_probes, "PENALTIES", (1.0, 1e-4))
    assert score() == pytest.approx(chosen, abs=0.03)


# --------------------------------------------------------------------------------------- every row, and the command


def test_every_row_of_the_table_answers_every_question(other):
    data = digits()
    more = read_outs(ALL, data, "validation")

    def make_encoder():
        return image_encoder(data["train"]["image"], TINY)

    rows = control_rows(data, make_encoder, TrainConfig(epochs=1), split="validation", more=more)
    assert all(set(row) > COLUMNS for row in rows)
    plain = control_rows(data, make_encoder, TrainConfig(), split="validation", rows=["chance", "random init"])
    assert plain[0].items() <= rows[0].items() and plain[1].items() <= rows[2].items()
    chance, pixels, random, _ = rows
    common = data["train"]["label"].bincount().argmax()
    share = (data["validation"]["label"] == common).float().mean().item()
    assert chance["linear noise"] == pytest.approx(chance["linear"]) == pytest.approx(share)
    assert chance["tokens transfer"] == chance["linear transfer"] == 0.5
    assert chance["linear few"] < 0.2 < pixels["linear few"] < pixels["linear"]
    assert pixels["tokens shift"] == pixels["linear shift"] == read_outs(ALL, data, "validation")(raw)["linear shift"]
    assert random["tokens noise"] != random["linear noise"]
    torch.manual_seed(0)
    objective = JEPA(make_encoder())
    row = probe(objective, data, "validation", more=more)
    assert row == probe(objective, data, "validation") | {key: row[key] for key in COLUMNS}
    assert not any("tokens" in key for key in probe(objective, data, "validation", tokens=False, more=more))


def test_they_are_off_by_default():
    assert read_outs(ReadOutConfig(), digits())(lambda batch: pytest.fail("nothing was asked")) == {}
    config = parse(["--name=a", "--readouts.noise=0.2", "--data.name=fashion_mnist", "--readouts.transfer=digits"])
    assert config.readouts.noise == 0.2 and config.readouts.transfer == "digits"
    assert resolve("jepa_lab/configs/digits_jepa.yaml")["readouts"]["transfer"] == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--readouts.transfer=digits"], "another data set than data.name"),
        (["--readouts.transfer=fashion_mnist", "--data.name=sprites"], "needs grey pictures"),
    ],
)
def test_a_transfer_that_cannot_be_is_refused_before_training(arguments, message):
    with pytest.raises(ValueError, match=message):
        parse(["--name=a", *arguments])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"few_labels": 1.5}, r"readouts\.few_labels must be a share"),
        ({"draws": 0}, r"readouts\.draws must be at least 1"),
        ({"noise": -0.1}, r"readouts\.noise must be finite"),
        ({"shift": 2.0}, r"readouts\.shift must lie in"),
        ({"rotation": 4.0}, r"readouts\.rotation must lie in"),
        ({"transfer": "mnist"}, r"readouts\.transfer must be digits, fashion_mnist or empty"),
    ],
)
def test_bad_settings_are_named(settings, message, unchecked):
    with pytest.raises(ValueError, match=message):
        ReadOutConfig(**settings)


def test_a_fitted_probe_is_the_linear_probe():
    data = digits()
    train, held = raw_features(data["train"]), raw_features(data["test"])
    fitted = fit_linear(train, data["train"]["label"])
    score = fitted.score(held.numpy(), data["test"]["label"].numpy())
    assert score == linear_probe(train, data["train"]["label"], held, data["test"]["label"])
    with pytest.raises(ValueError, match="NaN or infinity"):
        fit_linear(train * torch.nan, data["train"]["label"])
