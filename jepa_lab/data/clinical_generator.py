"""Intensive-care stays that never were: the same channels, rates and percentiles, and causes that we know.

A stay has a latent severity s, which makes death likely and moves every channel away from its level. How, is the dial:

    effect on channel c  =  L_c ((1 - w) s + w r 1.3 max(s + 1, 0))

with w = `two_sided` and r = +1 or -1 for each stay. At w = 0 severe stays have high lactate and low pressure, death is
linear in the levels, and an untrained encoder with a linear probe finds nearly all there is to find. At w > 0 part of
the severe stays deviate one way (fever, fast pulse) and part the other (cold, slow pulse): the means of the channels
then say little, and a representation must hold what goes *together*.

Book: chapters 08, 09.
"""

import io
import math
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from jepa_lab.data.clinical import DESCRIPTORS, HEADER, OUTCOME_HEADER, PARAMETERS, Records


@dataclass(frozen=True)
class Channel:
    """How a channel was seen in 4,000 stays: the share of stays that have it, the median count where they do, and its
    1, 25, 50, 75 and 99 % percentiles. Channels of one `panel` are measured in the same stays."""

    share: float
    count: int
    percentiles: tuple[int | float, ...]
    panel: str = ""
    digits: int = 1


# Of set A of the PhysioNet/CinC Challenge 2012.
CHANNELS = {
    "HR": Channel(0.984, 55, (51, 75, 86, 99, 137), digits=0),
    "MAP": Channel(0.698, 52, (51, 69, 77, 88, 128), "arterial line", 0),
    "SysABP": Channel(0.700, 53, (70, 102, 116, 133, 185), "arterial line", 0),
    "DiasABP": Channel(0.700, 53, (33, 51, 58, 67, 96), "arterial line", 0),
    "Urine": Channel(0.971, 38, (0, 35, 70, 140, 725), digits=0),
    "Weight": Channel(0.926, 41, (42.4, 67, 80.7, 96, 162.2)),
    "NISysABP": Channel(0.873, 26, (74, 102, 116, 133, 181), "cuff", 0),
    "NIDiasABP": Channel(0.871, 27, (26, 47, 56, 67, 99), "cuff", 0),
    "NIMAP": Channel(0.870, 26, (46, 66, 75, 86, 119), "cuff"),
    "Temp": Channel(0.984, 14, (34.7, 36.6, 37.1, 37.6, 39.1)),
    "GCS": Channel(0.984, 13, (3, 8, 13, 15, 15), digits=0),
    "RespRate": Channel(0.275, 49, (9, 16, 19, 23, 36), digits=0),
    "FiO2": Channel(0.679, 13, (0.3, 0.4, 0.5, 0.6, 1.0), "ventilator", 2),
    "MechVent": Channel(0.632, 13, (1, 1, 1, 1, 1), "ventilator", 0),
    "pH": Channel(0.760, 7, (7.14, 7.33, 7.38, 7.43, 7.53), "blood gas", 2),
    "PaCO2": Channel(0.756, 7, (23, 35, 39, 45, 73), "blood gas", 0),
    "PaO2": Channel(0.756, 7, (53, 90, 121, 176, 450), "blood gas", 0),
    "HCT": Channel(0.984, 4, (20.1, 27.3, 30.3, 33.5, 44.4)),
    "K": Channel(0.976, 3, (2.8, 3.7, 4.1, 4.5, 6.3)),
    "Platelets": Channel(0.983, 3, (29, 119, 172, 238, 554), digits=0),
    "Creatinine": Channel(0.984, 3, (0.3, 0.7, 1.0, 1.5, 8.9)),
    "BUN": Channel(0.984, 3, (4, 13, 20, 33, 121), digits=0),
    "HCO3": Channel(0.981, 3, (11, 20, 23, 26, 35), digits=0),
    "Mg": Channel(0.974, 3, (1.2, 1.8, 2.0, 2.2, 3.2)),
    "Na": Channel(0.981, 3, (126, 136, 139, 142, 153), digits=0),
    "Glucose": Channel(0.972, 3, (59, 105, 127, 157, 391), digits=0),
    "WBC": Channel(0.982, 3, (1.6, 8.3, 11.4, 15.4, 35.6)),
    "SaO2": Channel(0.448, 3, (85, 96, 97, 98, 100), digits=0),
    "Lactate": Channel(0.546, 2, (0.7, 1.4, 2.1, 3.4, 13.1)),
    "Bilirubin": Channel(0.430, 1, (0.1, 0.5, 0.9, 2.3, 30.7), "liver"),
    "AST": Channel(0.431, 1, (11, 31, 64, 209, 8200), "liver", 0),
    "ALT": Channel(0.430, 1, (6, 20, 43, 163, 7151), "liver", 0),
    "ALP": Channel(0.422, 1, (28, 59, 82, 122, 703), "liver", 0),
    "Albumin": Channel(0.404, 1, (1.5, 2.5, 2.9, 3.4, 4.3)),
    "TroponinT": Channel(0.216, 2, (0.01, 0.06, 0.2, 1.02, 13.98), digits=2),
    "TroponinI": Channel(0.051, 2, (0.3, 0.9, 2.6, 10, 43.9)),
    "Cholesterol": Channel(0.076, 1, (68.7, 123, 152, 188, 296), digits=0),
}
# Ten that a patient on a page can be drawn with: five vital signs, five laboratory values.
FEW = ("HR", "SysABP", "Temp", "RespRate", "GCS", "pH", "Creatinine", "WBC", "Lactate", "K")
_NORMAL = (-2.3263, -0.6745, 0.0, 0.6745, 2.3263)  # the same percentiles of a standard normal variable
_FIRST = 132539  # the first record number of the real set


@dataclass(frozen=True)
class GeneratorConfig:
    """`channels` are names of `PARAMETERS`. `two_sided` is the dial w. `density` scales the counts, `present` replaces
    the share of stays that have a channel (0 = that of the real set). `base` and `noise` are the standard deviations
    of a stay's level and of a single value, beside a severity of 1; `trend` that of the drift over 48 hours, `kind`
    of the shift between ICU types."""

    channels: tuple[str, ...] = PARAMETERS
    two_sided: float = 0.6
    density: float = 1.0
    present: float = 0.0
    load: float = 0.8
    base: float = 0.7
    noise: float = 0.5
    trend: float = 0.6
    kind: float = 0.4

    def __post_init__(self):
        unknown = [name for name in self.channels if name not in CHANNELS]
        if unknown or not self.channels:
            raise ValueError(f"channels must be one or more of {', '.join(PARAMETERS)}, got {unknown or 'none'}")
        for name in ("two_sided", "present"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        if not 0 < self.density < math.inf:
            raise ValueError(f"density must be positive, got {self.density}")
        for name in ("load", "base", "noise", "trend", "kind"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a standard deviation, got {getattr(self, name)}")


def generate(n: int = 2000, seed: int = 0, config: GeneratorConfig | None = None) -> Records:
    """Draw n stays. `factors` holds their severity, phenotype (r), and the slope of their trend.

    The values of a channel follow its percentiles: a standard normal latent, mapped through them. A stay's latent is
    severity + level + trend + noise, scaled to variance one. Vital signs come about hourly, blood gases and laboratory
    values in panels 6 to 12 hours apart, and a channel that a stay lacks never comes.

    Raises: ValueError when n is below 1.
    Book: chapters 08, 09.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    c = config or GeneratorConfig()
    world = np.random.default_rng(20120917)  # loads and shifts belong to the channels: the same for every seed
    direction = dict(zip(PARAMETERS, world.choice([-1.0, 1.0], len(PARAMETERS)), strict=True))
    drift = dict(zip(PARAMETERS, world.choice([-1.0, 1.0], len(PARAMETERS)), strict=True))
    shifts = world.normal(size=(len(PARAMETERS), 4))
    shifts = (shifts - shifts.mean(1, keepdims=True)) / shifts.std(1, keepdims=True)
    shift = dict(zip(PARAMETERS, shifts, strict=True))
    rng = np.random.default_rng(seed)
    severity, slope = rng.normal(size=n), rng.normal(size=n)
    phenotype = rng.choice([-1.0, 1.0], n)
    unit = rng.integers(0, 4, n)
    # 14 % of the stays end in death.
    death = rng.random(n) < 1 / (1 + np.exp(2.75 - 1.9 * severity))
    one_way, other_way = severity, phenotype * 1.3 * np.maximum(severity + 1, 0)
    felt = (1 - c.two_sided) * one_way + c.two_sided * other_way
    spread = math.sqrt(_variance(c.two_sided) * c.load**2 + c.base**2 + c.noise**2 + c.trend**2 / 12 + c.kind**2)
    panels = _panels(rng, n)
    stays, minutes, features, values = [], [], [], []
    luck: dict[str, np.ndarray] = {}
    for name in c.channels:
        channel = CHANNELS[name]
        drawn = luck.setdefault(channel.panel or name, rng.random(n))
        here = np.flatnonzero(drawn < (c.present or channel.share))
        row, minute = _moments(rng, here, panels["vital" if channel.count >= 10 else "laboratory"], channel, c.density)
        level = c.load * direction[name] * felt + c.base * rng.normal(size=n) + c.kind * shift[name][unit]
        latent = level[row] + c.trend * drift[name] * slope[row] * (minute / 2880 - 0.5)
        latent = (latent + c.noise * rng.normal(size=len(row))) / spread
        stays.append(row)
        minutes.append(minute)
        features.append(np.full(len(row), PARAMETERS.index(name)))
        values.append(np.round(_through(latent, channel.percentiles), channel.digits))
    stay, minute, feature, value = (np.concatenate(column) for column in (stays, minutes, features, values))
    order = np.lexsort((feature, minute, stay))
    stay, minute, feature, value = (column[order] for column in (stay, minute, feature, value))
    return Records(
        tuple(str(_FIRST + i) for i in range(n)),
        torch.from_numpy(np.searchsorted(stay, np.arange(n + 1))),
        torch.from_numpy(minute / 60).float(),
        torch.from_numpy(feature),
        torch.from_numpy(value).float(),
        _descriptors(rng, n, unit),
        torch.from_numpy(death).long(),
        {
            name: torch.from_numpy(column).float()
            for name, column in {"severity": severity, "phenotype": phenotype, "trend": slope}.items()
        },
    )


def _variance(two_sided: float) -> float:
    """Of (1 - w) s + w r 1.3 max(s + 1, 0) over a standard normal s and a fair r: the mixed term has mean zero."""
    s = np.linspace(-6, 6, 2401)
    weight = np.exp(-s * s / 2)
    part = (weight * np.maximum(s + 1, 0) ** 2).sum() / weight.sum()
    return (1 - two_sided) ** 2 + (1.3 * two_sided) ** 2 * part


def _panels(rng, n: int) -> dict[str, np.ndarray]:
    """Minutes at which the nurse comes (60 times) and blood is drawn (8 times), sorted, for every stay."""
    found = {}
    for name, times in (("vital", 60), ("laboratory", 8)):
        every = 2880 / times
        minutes = (np.arange(times) + rng.random((n, times))) * every
        found[name] = np.minimum(minutes.astype(np.int64), 2880)
    return found


def _moments(rng, here, panel, channel: Channel, density: float) -> tuple[np.ndarray, np.ndarray]:
    """Which of the panel's minutes have this channel, in the stays that have it at all; each has it once at least."""
    times = panel.shape[1]
    count = channel.count * density * np.exp(0.3 * rng.normal(size=len(here)))
    count = np.clip(np.round(count), 1, times).astype(np.int64)
    rank = rng.random((len(here), times)).argsort(1)
    row, place = np.nonzero(rank < count[:, None])
    return here[row], panel[here[row], place]


def _through(latent: np.ndarray, percentiles: Sequence[int | float]) -> np.ndarray:
    """The value whose percentile is that of the latent: straight lines between the known ones over a logarithmic axis,
    and not beyond."""
    return np.expm1(np.interp(latent, _NORMAL, np.log1p(percentiles)))


def _descriptors(rng, n: int, unit: np.ndarray) -> Tensor:
    """Age, gender, height (known of half), ICU type (1 to 4) and weight (of 92 %)."""
    age = np.clip(np.round(rng.normal(64, 17, n)), 16, 90)
    height = np.where(rng.random(n) < 0.53, np.round(rng.normal(170, 10, n), 1), np.nan)
    weight = np.where(rng.random(n) < 0.92, np.round(np.exp(rng.normal(4.4, 0.25, n)), 1), np.nan)
    static = {"Age": age, "Gender": rng.integers(0, 2, n), "Height": height, "ICUType": unit + 1, "Weight": weight}
    return torch.from_numpy(np.stack([static[name] for name in DESCRIPTORS], 1)).float()


def write_records(records: Records, folder: str | Path, part: str = "a") -> None:
    """Write `set-PART.tar.gz` and `Outcomes-PART.txt`, in the format that `clinical.read_records` reads.

    The factors that only a generator knows are not written: no real record says how severe it is.
    Book: chapter 08.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    start = records.start.tolist()
    time, feature, value = (column.tolist() for column in (records.time, records.feature, records.value))
    with tarfile.open(folder / f"set-{part}.tar.gz", "w:gz") as archive:
        for i, name in enumerate(records.name):
            known = zip(DESCRIPTORS, records.static[i].tolist(), strict=True)
            lines = [HEADER, f"00:00,RecordID,{name}"]
            lines += [f"00:00,{what},{-1 if math.isnan(number) else f'{number:g}'}" for what, number in known]
            for j in range(start[i], start[i + 1]):
                minute = round(time[j] * 60)
                lines.append(f"{minute // 60:02d}:{minute % 60:02d},{records.features[feature[j]]},{value[j]:g}")
            payload = "\n".join([*lines, ""]).encode()
            member = tarfile.TarInfo(f"set-{part}/{name}.txt")
            member.size = len(payload)
            archive.addfile(member, io.BytesIO(payload))
    outcomes = [f"{name},-1,-1,-1,-1,{label}" for name, label in zip(records.name, records.label.tolist(), strict=True)]
    (folder / f"Outcomes-{part}.txt").write_text("\n".join([OUTCOME_HEADER, *outcomes, ""]))
