"""What is a frozen image encoder worth with few labels, on changed pictures, and on pictures of another kind?

Each question is asked of the trained encoder and of the control rows with the same labels, the same changed pictures
and the same probe. All are off until `ReadOutConfig` switches them on.

Book: chapters 10, 11.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from sklearn.linear_model import RidgeClassifierCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from jepa_lab.data import images
from jepa_lab.data.augment import Augmentation, augment
from jepa_lab.probes import Represent, Row, Splits, first_rows, fit_linear, knn_probe, linear_probe

CHANGES = ("noise", "shift", "rotation")
PENALTIES = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
TRANSFER = ("digits", "fashion_mnist")  # the grey sets, whose pictures fit each other's encoders once resized


@dataclass(frozen=True)
class ReadOutConfig:
    """Further read-outs, each of them off at its default.

    `few_labels` is the share of the training labels that a linear probe may see, and `draws` how many choices of these
    labels its accuracy is averaged over. `noise` (standard deviation of a pixel), `shift` (share of the side, along
    both axes) and `rotation` (radians) are the largest changes of the pictures that a probe of unchanged ones is scored
    on. `transfer` names another data set, resized, on which the frozen encoder is probed too. `ridge` adds a linear
    read-out whose penalty is chosen for each method: one penalty for 64 features and for 1,024 favours one of them.
    """

    few_labels: float = 0.0
    draws: int = 5
    noise: float = 0.0
    shift: float = 0.0
    rotation: float = 0.0
    transfer: Literal["", "digits", "fashion_mnist"] = ""
    ridge: bool = False

    def __post_init__(self):
        if not 0 <= self.few_labels <= 1:
            raise ValueError(f"readouts.few_labels must be a share in [0, 1] (0 = off), got {self.few_labels}")
        if self.draws < 1:
            raise ValueError(f"readouts.draws must be at least 1, got {self.draws}")
        if self.transfer not in ("", *TRANSFER):
            raise ValueError(f"readouts.transfer must be {', '.join(TRANSFER)} or empty, got {self.transfer!r}")
        for name in CHANGES:
            try:
                self.change(name)
            except ValueError as error:
                raise ValueError(f"readouts.{error}") from error

    def change(self, name: str) -> Augmentation:
        """One kind of change at the configured strength, and nothing else."""
        return replace(Augmentation(), **{name: getattr(self, name)})

    def check(self, name: str) -> None:
        """Raises: ValueError when the encoder of data set `name` cannot be probed on `transfer`."""
        if self.transfer and name not in TRANSFER:
            raise ValueError(f"readouts.transfer needs grey pictures ({', '.join(TRANSFER)}), data.name is {name!r}")
        if self.transfer == name:
            raise ValueError(f"readouts.transfer must be another data set than data.name, both are {name!r}")


def ridge_probe(
    train: Float[Tensor, "n F"],
    train_label: Int[Tensor, " n"],
    test: Float[Tensor, "m F"],
    test_label: Int[Tensor, " m"],
) -> float:
    """Accuracy of a ridge regression of the classes (-1 or 1 each) on standardised frozen features.

    Its penalty is the one of `PENALTIES`, in units of the number of rows, that predicts left-out training rows best.
    All the left-out errors follow from one decomposition, so that choosing costs no more than fitting.

    Book: chapter 10.
    """
    probe = make_pipeline(StandardScaler(), RidgeClassifierCV([penalty * len(train) for penalty in PENALTIES]))
    return float(probe.fit(train.numpy(), train_label.numpy()).score(test.numpy(), test_label.numpy()))


def few_rows(label: Int[Tensor, " n"], share: float, seed: int = 0) -> Int[Tensor, " m"]:
    """Rows whose labels are known when only this share is: the same share of every class, and one row at least.

    Shapes: label [n] -> sorted row numbers [m].
    Raises: ValueError when `share` is outside (0, 1].
    Book: chapter 10.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must lie in (0, 1], got {share}")
    generator, chosen = torch.Generator().manual_seed(seed), []
    for c in label.unique():
        rows = (label == c).nonzero().flatten()
        chosen.append(rows[torch.randperm(len(rows), generator=generator)[: max(1, round(share * len(rows)))]])
    return torch.cat(chosen).sort().values


def resized(data: Splits, size: tuple[int, int]) -> Splits:
    """A data set whose pictures have another size: bilinear, and averaged over what each new pixel covers.

    Shapes: image [n, C, H, W] -> [n, C, *size]; everything else as it was.
    Book: chapter 10.
    """

    def one(image: Float[Tensor, "n C H W"]) -> Float[Tensor, "n C h w"]:
        return F.interpolate(image, size, mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)

    return {split: batch | {"image": one(batch["image"])} for split, batch in data.items()}


def read_outs(
    config: ReadOutConfig, data: Splits, split: str = "test", seed: int = 0, train_rows: int = 0
) -> Callable[[Represent], Row]:
    """What `probes.probe` and `probes.control_rows` ask of every method beside their own columns.

    Columns: `linear` and `tokens` (all tokens side by side) followed by ` ridge`, ` few`, ` noise`, ` shift`,
    ` rotation` or ` transfer`, and `knn transfer`. The labels and the changed pictures follow from `seed`: they are the
    same for every method, so that differences are paired. `train_rows` > 0 limits the probes as it does those of
    `probes.probe`; the few labels are a share of all training rows, whatever it says.
    Book: chapters 10, 11.
    """

    def ask(represent: Represent) -> Row:
        row: Row = {}
        if config.ridge:
            row |= _scores(ridge_probe, "ridge", represent, first_rows(data, train_rows), split)
        if config.few_labels:
            row |= _few(represent, data, split, config, seed)
        changes = {name: config.change(name) for name in CHANGES if getattr(config, name)}
        if changes:
            row |= _changed(represent, first_rows(data, train_rows), split, changes, seed)
        if config.transfer:
            size = tuple(data["train"]["image"].shape[-2:])
            other = first_rows(_other(config.transfer, size), train_rows)
            row |= _scores(linear_probe, "transfer", represent, other, split)
            row |= _scores(knn_probe, "transfer", lambda batch: {"knn": represent(batch)["linear"]}, other, split)
        return row

    return ask


def _few(represent: Represent, data: Splits, split: str, config: ReadOutConfig, seed: int) -> Row:
    held, found = represent(data[split]), {}
    for draw in range(config.draws):
        rows = few_rows(data["train"]["label"], config.few_labels, config.draws * seed + draw)
        few = {key: value[rows] for key, value in data["train"].items()}
        for name, train in represent(few).items():
            score = linear_probe(train, few["label"], held[name], data[split]["label"])
            found.setdefault(f"{name} few", []).append(score)
    return {name: sum(scores) / len(scores) for name, scores in found.items()}


def _changed(represent: Represent, data: Splits, split: str, changes: dict[str, Augmentation], seed: int) -> Row:
    label, row = data[split]["label"].numpy(), {}
    held = {}
    for change, augmentation in changes.items():
        # A generator for each change: switching one on leaves the pictures of the others as they were.
        generator = torch.Generator().manual_seed(seed)
        image = augment(data[split]["image"], augmentation, generator)
        held[change] = represent(data[split] | {"image": image})
    for name, train in represent(data["train"]).items():
        probe = fit_linear(train, data["train"]["label"])  # one probe: what differs is the pictures alone
        row |= {f"{name} {change}": float(probe.score(held[change][name].numpy(), label)) for change in changes}
    return row


def _scores(probe: Callable[..., float], condition: str, represent: Represent, data: Splits, split: str) -> Row:
    train, held = represent(data["train"]), represent(data[split])
    labels = data["train"]["label"], data[split]["label"]
    return {f"{name} {condition}": probe(train[name], labels[0], held[name], labels[1]) for name in train}


@lru_cache(maxsize=1)  # a run reads it once for every row of its table
def _other(name: str, size: tuple[int, int]) -> Splits:
    return resized(images.load(name), size)
