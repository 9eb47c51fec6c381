"""What do the image models look at? Digits, sprites with known factors, and Fashion-MNIST.

A data set is ``{"train": batch, "validation": batch, "test": batch}``, and a batch is a dict of tensors
that share their first axis: ``image`` [n, C, H, W] in [0, 1], ``label`` [n], and for sprites one float
tensor per factor.
"""

import gzip
import hashlib
import math
import os
import tempfile
import urllib.request
import zlib
from collections.abc import Callable
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Int
from torch import Tensor

from jepa_lab.data.sprites import SHAPES, sprites

DataSet = dict[str, dict[str, Tensor]]

__all__ = ["DATASETS", "FASHION_CLASSES", "SHAPES", "digits", "fashion_mnist", "load", "sprites"]

# Shared by every run, so that the seed of a run never moves an image from one split to another.
SPLIT_SEED = 20240119

FASHION_HOME = "https://github.com/zalandoresearch/fashion-mnist"
FASHION_URL = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"
FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
# Sums of the unpacked payload: a .gz of the same bytes may differ in its header (name, time, level).
FASHION_SHA256 = {
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


def stratified_order(labels: Int[Tensor, " n"], seed: int = SPLIT_SEED) -> Int[Tensor, " n"]:
    """Order the rows so that every slice has the class shares of the whole, up to about a row per class.

    Within a class the rows are shuffled; the p-th of its n_c rows is then placed at (p + 1/2) / n_c of the
    way.

    Shapes: labels [n] -> indices [n], a permutation.
    Book: chapter 01.
    """
    # A hash instead of a random generator: the split is part of every published number, and no library
    # promises to keep the stream of its generator from one version to the next.
    keys = [hashlib.sha256(f"{seed}/{i}".encode()).digest() for i in range(len(labels))]
    by_class: dict[int, list[int]] = {}
    for row in sorted(range(len(labels)), key=keys.__getitem__):
        by_class.setdefault(int(labels[row]), []).append(row)
    place = {row: (p + 0.5) / len(rows) for rows in by_class.values() for p, row in enumerate(rows)}
    return torch.tensor(sorted(place, key=lambda row: (place[row], keys[row])), dtype=torch.long)


def digits() -> DataSet:
    """Return scikit-learn's 8 x 8 handwritten digits, split 1000 / 200 / 597 with equal class shares.

    Shapes: image [n, 1, 8, 8] in [0, 1], label [n] in 0..9.
    Paper: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998.
    Book: chapters 01 and 04.
    """
    # Here and not above: readers of another data set need not pay the second that this import takes.
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = rearrange(torch.from_numpy(raw.images).float() / 16, "n h w -> n 1 h w")
    labels = torch.from_numpy(raw.target).long()
    train, validation, test = stratified_order(labels).split([1000, 200, 597])
    rows = {"train": train, "validation": validation, "test": test}
    return {split: {"image": images[index], "label": labels[index]} for split, index in rows.items()}


def fashion_mnist(root: str | Path | None = None, download: bool = False) -> DataSet:
    """Read Fashion-MNIST, split 55000 / 5000 / 10000, the validation a fixed draw with equal class shares.

    The four files are looked for in ``root/fashion-mnist``, then in ``root``, which defaults to the
    environment variable ``JEPA_LAB_DATA``. ``download=True`` fetches the missing or damaged ones from the
    public repository.

    Shapes: image [n, 1, 28, 28] in [0, 1], label [n], the index in ``FASHION_CLASSES``.
    Raises: FileNotFoundError if a file is missing; ValueError if one is damaged or, to download, no root is
        known.
    Paper: Xiao, Rasul and Vollgraf, Fashion-MNIST, arXiv:1708.07747.
    Book: chapter 10.
    """
    root = root if root is not None else os.environ.get("JEPA_LAB_DATA") or None
    if root is None:
        remedy = "pass root=FOLDER or set the environment variable JEPA_LAB_DATA"
        if download:
            raise ValueError(f"root is None and JEPA_LAB_DATA is not set: no folder to download to; {remedy}")
        raise FileNotFoundError(f"Fashion-MNIST ({FASHION_HOME}): no folder to look in; {remedy}")
    folder = Path(root) / "fashion-mnist"
    if not folder.is_dir() and any((Path(root) / name).is_file() for name in FASHION_SHA256):
        folder = Path(root)
    if download:
        _download(folder)
    missing = [name for name in FASHION_SHA256 if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"Fashion-MNIST: {', '.join(missing)} not found in {folder}. Put the four .gz files there (from "
            f"data/fashion of {FASHION_HOME}), or pass download=True."
        )
    parts = {name: read_idx(_payload(folder / name), name) for name in FASHION_SHA256}
    train_x, train_y, test_x, test_y = parts.values()
    validation, train = stratified_order(train_y.long()).split([5000, 55000])
    rows = {
        "train": (train_x, train_y, train.sort().values),
        "validation": (train_x, train_y, validation.sort().values),
        "test": (test_x, test_y, torch.arange(len(test_y))),
    }
    return {
        split: {"image": rearrange(x[index], "n h w -> n 1 h w") / 255, "label": y[index].long()}
        for split, (x, y, index) in rows.items()
    }


def read_idx(payload: bytes, name: str) -> Tensor:
    """Parse an IDX file of unsigned bytes: magic number (2048 + rank), sizes, values, all big-endian.

    Shapes: 3 sizes (images) or 1 (labels) -> uint8 tensor of these sizes.
    Raises: ValueError naming the file if the magic number or the length is wrong.
    Book: chapter 10.
    """
    magic = int.from_bytes(payload[:4], "big")
    if len(payload) < 4 or magic not in (2049, 2051):
        raise ValueError(f"{name}: magic number {magic}, expected 2051 (images) or 2049 (labels)")
    rank = magic - 2048
    sizes = [int.from_bytes(payload[4 + 4 * i : 8 + 4 * i], "big") for i in range(rank)]
    body = payload[4 + 4 * rank :]
    if len(body) != math.prod(sizes):
        raise ValueError(f"{name}: {len(body)} bytes of values, expected {math.prod(sizes)} for sizes {sizes}")
    return torch.frombuffer(bytearray(body), dtype=torch.uint8).view(sizes)


def _payload(path: Path) -> bytes:
    """Unpack one file and check its sum."""
    expected = FASHION_SHA256[path.name]
    try:
        payload = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be unpacked ({error}); expected a payload of sha256 {expected}") from error
    found = hashlib.sha256(payload).hexdigest()
    if found != expected:
        raise ValueError(f"{path} is corrupt: sha256 of the unpacked payload is {found}, expected {expected}")
    return payload


def _intact(path: Path) -> bool:
    try:
        _payload(path)
    except ValueError:
        return False
    return True


def _download(folder: Path) -> None:
    """Fetch what is missing or damaged; a file gets its name only once its sum is right."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in FASHION_SHA256:
        if (folder / name).is_file() and _intact(folder / name):
            continue
        with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as scratch:
            fresh = Path(scratch) / name
            with urllib.request.urlopen(FASHION_URL + name, timeout=60) as source:
                fresh.write_bytes(source.read())
            _payload(fresh)
            fresh.replace(folder / name)


DATASETS: dict[str, Callable[..., DataSet]] = {
    "digits": digits,
    "sprites": sprites,
    "fashion_mnist": fashion_mnist,
}


def load(name: str, **settings: object) -> DataSet:
    """Load a data set by its name in ``DATASETS``, with the settings of its loader.

    Raises: ValueError naming the known data sets if ``name`` is not one of them.
    Book: chapter 01.
    """
    if name not in DATASETS:
        raise ValueError(f"name must be one of {', '.join(DATASETS)}, got {name!r}")
    return DATASETS[name](**settings)
