"""Data of jepa_lab.data.images: fixed splits, factors that move the picture, and files that are checked."""

import gzip
import hashlib
import math
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from jepa_lab.data import images
from jepa_lab.data.images import FASHION_HOME, FASHION_SHA256, SHAPES, digits, fashion_mnist, load, sprites


def keys(batch: dict[str, Tensor]) -> list[bytes]:
    return [image.numpy().tobytes() for image in batch["image"]]


# --- digits
# -------------------------------------------------------------------------------------------------------


def test_digits_are_split_once_and_for_all():
    data = digits()
    assert [len(data[split]["label"]) for split in ("train", "validation", "test")] == [1000, 200, 597]
    everything = torch.cat([batch["image"] for batch in data.values()])
    assert everything.min() == 0
    assert everything.max() == 1
    again = digits()
    for split, batch in data.items():
        assert torch.equal(batch["image"], again[split]["image"])
        assert torch.equal(batch["label"], again[split]["label"])


def test_digits_splits_share_no_image():
    from sklearn.datasets import load_digits

    data = digits()
    drawn = sorted(key for batch in data.values() for key in keys(batch))
    original = torch.from_numpy(load_digits().images).float().div(16)
    assert drawn == sorted(image[None].numpy().tobytes() for image in original)
    # The set holds no image twice, so equal multisets mean that no image stands in two splits.
    assert len(set(drawn)) == 1797


def test_digits_labels_belong_to_their_images():
    from sklearn.datasets import load_digits

    raw = load_digits()
    label_of = {
        torch.from_numpy(x)[None].float().div(16).numpy().tobytes(): int(y)
        for x, y in zip(raw.images, raw.target, strict=True)
    }
    for batch in digits().values():
        assert [label_of[key] for key in keys(batch)] == batch["label"].tolist()


def test_digits_splits_are_stratified():
    data = digits()
    total = sum(batch["label"].bincount(minlength=10) for batch in data.values())
    for batch in data.values():
        expected = total * len(batch["label"]) / 1797
        assert (batch["label"].bincount(minlength=10) - expected).abs().max() < 2


def test_digits_split_is_the_published_one():
    # The first labels of each split, written down: whoever changes the split changes every number of the
    # book.
    heads = {split: batch["label"][:8].tolist() for split, batch in digits().items()}
    assert heads == {
        "train": [3, 5, 1, 4, 6, 9, 7, 0],
        "validation": [2, 5, 1, 9, 0, 3, 8, 6],
        "test": [7, 3, 9, 2, 8, 4, 6, 0],
    }


def test_stratified_order_gives_each_slice_the_shares_of_the_whole():
    labels = torch.tensor([0] * 90 + [1] * 10)
    order = images.stratified_order(labels)
    assert sorted(order.tolist()) == list(range(100))
    for part in order.split(20):
        assert labels[part].sum() == 2
    assert not torch.equal(order, images.stratified_order(labels, seed=1))
    assert order.tolist() != sorted(order.tolist())


# --- sprites
# ------------------------------------------------------------------------------------------------------

PLAIN = {"n_train": 400, "n_validation": 5, "n_test": 5, "textured": 0.0}


@pytest.fixture(scope="module")
def plain() -> dict[str, Tensor]:
    return sprites(**PLAIN)["train"]


def coverage(batch: dict[str, Tensor]) -> Tensor:
    """How much of each pixel the sprite covers: its value stands out of the dim background of 0.2."""
    return ((batch["image"].amax(1) - 0.2) / 0.8).clamp(0, 1)


def pearson(a: Tensor, b: Tensor) -> float:
    return torch.corrcoef(torch.stack([a, b]))[0, 1].item()


def test_sprites_centroid_is_their_position(plain):
    weight = coverage(plain)
    axis = (torch.arange(32) + 0.5) / 32 - 0.5
    area = weight.sum((1, 2))
    x, y = (weight.sum(1) * axis).sum(1) / area, (weight.sum(2) * axis).sum(1) / area
    # Within a tenth of a pixel: the coverage of a soft edge is exact on average.
    assert (x - plain["x"]).abs().max() < 0.1 / 32
    assert (y - plain["y"]).abs().max() < 0.1 / 32


def test_sprites_area_is_that_of_their_shape_and_scale(plain):
    area = coverage(plain).sum((1, 2)) / 32**2
    arm = 1 / math.hypot(1, 1 / 3)
    unit = {"circle": math.pi, "square": 2.0, "triangle": 3 * math.sqrt(3) / 4, "cross": 20 / 9 * arm**2}
    expected = torch.tensor([unit[shape] for shape in SHAPES])[plain["label"]] * plain["scale"] ** 2
    assert ((area - expected) / expected).abs().max() < 0.04


def test_sprites_hue_is_in_the_picture(plain):
    import colorsys

    pixel = plain["image"].flatten(2).gather(2, coverage(plain).flatten(1).argmax(1)[:, None, None].expand(-1, 3, 1))
    hue = torch.tensor([colorsys.rgb_to_hsv(*rgb)[0] for rgb in pixel.squeeze(2).tolist()])
    torch.testing.assert_close(hue, plain["hue"], atol=1e-3, rtol=0)


def test_sprites_rotation_turns_clockwise_by_the_angle():
    batch = sprites(n_train=300, n_validation=1, n_test=1, textured=0.0, rotate=0.3, size=64)["train"]
    squares = batch["label"] == SHAPES.index("square")
    weight = coverage(batch)[squares].double()
    axis = (torch.arange(64) + 0.5) / 64 - 0.5
    u = axis[None, None, :] - batch["x"][squares][:, None, None]
    v = axis[None, :, None] - batch["y"][squares][:, None, None]
    # A square has a fourfold axis: its fourth moment about the centre turns with four times the angle.
    moment = (weight * torch.complex(u.expand_as(weight), v.expand_as(weight).contiguous()) ** 4).sum((1, 2))
    angle = torch.angle(-moment) / 4
    torch.testing.assert_close(angle.float(), batch["rotation"][squares], atol=0.02, rtol=0)


def test_sprites_texture_is_in_the_background_only():
    batch = sprites(n_train=300, n_validation=1, n_test=1, textured=0.5)["train"]
    corner = batch["image"][:, :, :2, :2]  # shapes leave the corners free
    contrast = (corner[:, 0] - 0.2).abs().amax((1, 2))
    assert (contrast[batch["texture"] == 0] < 1e-6).all()
    assert contrast[batch["texture"] == 1].mean() > 0.03
    assert (corner.amax(1) - corner.amin(1)).max() < 1e-6  # grey: hue belongs to the sprite
    assert 0.4 < batch["texture"].mean() < 0.6


def test_sprites_factors_are_independent_and_fill_their_ranges():
    batch = sprites(n_train=4000, n_validation=1, n_test=1, size=8)["train"]
    ranges = {"hue": (0, 0.8), "scale": (0.2, 0.35), "rotation": (-0.3, 0.3), "x": (-0.15, 0.15), "y": (-0.15, 0.15)}
    for name, (low, high) in ranges.items():
        factor = batch[name]
        assert low <= factor.min() < low + 0.01 * (high - low)
        assert high >= factor.max() > high - 0.01 * (high - low)
    names = [*ranges, "texture"]
    for i, a in enumerate(names):
        for b in names[:i]:
            assert abs(pearson(batch[a], batch[b])) < 0.07, (a, b)
    assert (batch["label"].bincount() - 1000).abs().max() < 120


def test_sprites_splits_differ_and_do_not_depend_on_each_other():
    small = sprites(n_train=20, n_validation=20, n_test=20)
    large = sprites(n_train=2100, n_validation=20, n_test=20)
    assert torch.equal(small["test"]["image"], large["test"]["image"])
    assert not torch.equal(small["test"]["image"], small["validation"]["image"])
    other = sprites(n_train=20, n_validation=20, n_test=20, seed=1)
    for split in small:
        assert all(not torch.equal(small[split]["x"], batch["x"]) for batch in other.values())
    assert large["train"]["image"].shape == (2100, 3, 32, 32)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"n_test": 0}, "n_test"),
        ({"size": 4}, "size"),
        ({"rotate": 4.0}, "rotate"),
        ({"scale": (0.3, 0.2)}, "scale"),
        ({"scale": (0.2, 0.4)}, "shift"),
        ({"shift": -0.1}, "shift"),
        ({"hue": (0.0, 1.2)}, "hue"),
        ({"textured": 1.5}, "textured"),
    ],
)
def test_sprites_refuse_impossible_settings(settings, name):
    with pytest.raises(ValueError, match=name):
        sprites(**settings)


# --- Fashion-MNIST: small files of the same format, with their own sums
# --------------------------------------------


def idx(values: Tensor) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    return (2048 + values.ndim).to_bytes(4, "big") + sizes + values.to(torch.uint8).numpy().tobytes()


@pytest.fixture
def small(tmp_path, monkeypatch) -> Path:
    """A complete, valid folder in small; its images carry their row number."""
    folder = tmp_path / "data" / "fashion-mnist"
    folder.mkdir(parents=True)
    sums = {}
    for name in FASHION_SHA256:
        n = 60000 if name.startswith("train") else 10
        rows = torch.arange(n)
        values = torch.stack([rows // 256, rows % 256], 1)[:, None] if "images" in name else rows % 10
        payload = idx(values)
        sums[name] = hashlib.sha256(payload).hexdigest()
        (folder / name).write_bytes(gzip.compress(payload, 1))
    monkeypatch.setattr(images, "FASHION_SHA256", sums)
    monkeypatch.delenv("JEPA_LAB_DATA", raising=False)
    return folder


def row_numbers(batch: dict[str, Tensor]) -> Tensor:
    high, low = (batch["image"] * 255).round().long().flatten(1).unbind(1)
    return 256 * high + low


def test_fashion_splits_are_disjoint_stratified_and_fixed(small):
    data = fashion_mnist(small.parent)
    train, validation = row_numbers(data["train"]), row_numbers(data["validation"])
    assert sorted(torch.cat([train, validation]).tolist()) == list(range(60000))
    assert data["validation"]["label"].bincount().tolist() == [500] * 10
    for split in ("train", "validation", "test"):
        assert torch.equal(row_numbers(data[split]) % 10, data[split]["label"])
    assert validation[:5].tolist() == row_numbers(fashion_mnist(small.parent)["validation"])[:5].tolist()


def test_fashion_is_found_by_folder_and_by_environment(small, monkeypatch):
    assert len(fashion_mnist(small)["test"]["label"]) == 10  # the folder itself
    monkeypatch.setenv("JEPA_LAB_DATA", str(small.parent))
    assert len(fashion_mnist()["test"]["label"]) == 10


def test_fashion_missing_file_names_home_folder_and_remedy(small):
    name = "t10k-labels-idx1-ubyte.gz"
    (small / name).unlink()
    with pytest.raises(FileNotFoundError) as error:
        fashion_mnist(small.parent)
    for part in (FASHION_HOME, str(small), name, "download=True"):
        assert part in str(error.value)
    assert "train-images" not in str(error.value)


def test_fashion_without_any_root_says_what_to_set(monkeypatch):
    monkeypatch.delenv("JEPA_LAB_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="JEPA_LAB_DATA") as error:
        fashion_mnist()
    assert FASHION_HOME in str(error.value)
    with pytest.raises(ValueError, match="JEPA_LAB_DATA"):
        fashion_mnist(download=True)


def test_fashion_corrupt_file_names_both_sums(small):
    path = small / "train-labels-idx1-ubyte.gz"
    payload = bytearray(gzip.decompress(path.read_bytes()))
    payload[-1] ^= 1
    path.write_bytes(gzip.compress(bytes(payload), 1))
    with pytest.raises(ValueError, match=path.name) as error:
        fashion_mnist(small.parent)
    assert hashlib.sha256(payload).hexdigest() in str(error.value)
    assert images.FASHION_SHA256[path.name] in str(error.value)


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[: len(raw) // 2], lambda raw: b"<html>not a gz</html>", lambda raw: b""]
)
def test_fashion_file_that_cannot_be_unpacked_is_named(small, damage):
    path = small / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=path.name):
        fashion_mnist(small.parent)


def test_idx_checks_magic_number_and_length():
    good = idx(torch.arange(12).view(3, 2, 2))
    assert images.read_idx(good, "a.gz").tolist() == torch.arange(12).view(3, 2, 2).tolist()
    with pytest.raises(ValueError, match=r"a\.gz: magic number 2052"):
        images.read_idx((2052).to_bytes(4, "big") + good[4:], "a.gz")
    with pytest.raises(ValueError, match=r"a\.gz: 11 bytes of values, expected 12"):
        images.read_idx(good[:-1], "a.gz")
    with pytest.raises(ValueError, match=r"a\.gz: magic"):
        images.read_idx(b"\0\0", "a.gz")


def test_download_fetches_checks_and_leaves_intact_files_alone(small, tmp_path, monkeypatch):
    monkeypatch.setattr(images, "FASHION_URL", small.as_uri() + "/")
    root = tmp_path / "fresh"
    fashion_mnist(root, download=True)
    folder = root / "fashion-mnist"
    assert sorted(p.name for p in folder.iterdir()) == sorted(FASHION_SHA256)
    broken, kept = folder / "t10k-labels-idx1-ubyte.gz", folder / "train-labels-idx1-ubyte.gz"
    broken.write_bytes(b"damaged")
    before = kept.stat().st_ino
    fashion_mnist(root, download=True)
    assert gzip.decompress(broken.read_bytes())
    assert kept.stat().st_ino == before


def test_download_of_a_wrong_file_leaves_nothing_behind(small, tmp_path, monkeypatch):
    monkeypatch.setattr(images, "FASHION_URL", small.as_uri() + "/")
    first = next(iter(FASHION_SHA256))
    (small / first).write_bytes(gzip.compress(b"something else"))
    root = tmp_path / "fresh"
    with pytest.raises(ValueError, match=first):
        fashion_mnist(root, download=True)
    assert list((root / "fashion-mnist").iterdir()) == []


REAL = os.environ.get("JEPA_LAB_DATA")


@pytest.mark.skipif(
    not REAL or not (Path(REAL) / "fashion-mnist").is_dir(), reason="JEPA_LAB_DATA has no fashion-mnist folder"
)
def test_real_fashion_mnist():
    data = fashion_mnist()
    assert [len(data[split]["label"]) for split in ("train", "validation", "test")] == [55000, 5000, 10000]
    for split, share in (("train", 5500), ("validation", 500), ("test", 1000)):
        assert data[split]["label"].bincount().tolist() == [share] * 10
    assert data["test"]["image"].shape[1:] == (1, 28, 28)
    assert data["test"]["image"].max() == 1
    assert data["test"]["label"][:5].tolist() == [9, 2, 1, 1, 6]


# --- load
# ---------------------------------------------------------------------------------------------------------


def test_load_passes_settings_and_lists_known_names():
    assert len(load("sprites", n_train=3, n_validation=1, n_test=1)["train"]["label"]) == 3
    with pytest.raises(ValueError, match="digits, sprites, fashion_mnist, got 'mnist'"):
        load("mnist")
