"""Records of intensive-care stays in the text format of the PhysioNet/CinC Challenge 2012.

A record is a file `RECORDID.txt`: a header, then rows `HH:MM,Parameter,Value`, sorted by time, of the first 48 hours.
Rows at 00:00 named Age, Gender, Height, ICUType and Weight describe the stay; all others are observations. What cannot
be used is left out and *counted*, by reason, in `Records.skipped`.

Book: chapter 08.
"""

import os
import re
import tarfile
import tempfile
import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

HOME = "https://physionet.org/content/challenge-2012/1.0.0/"
FILES = "https://physionet.org/files/challenge-2012/1.0.0/"
PARAMETERS = (
    "HR", "MAP", "SysABP", "DiasABP", "Urine", "Weight", "NISysABP", "NIDiasABP", "NIMAP", "Temp", "GCS", "RespRate",
    "FiO2", "MechVent", "pH", "PaCO2", "PaO2", "HCT", "K", "Platelets", "Creatinine", "BUN", "HCO3", "Mg", "Na",
    "Glucose", "WBC", "SaO2", "Lactate", "Bilirubin", "AST", "ALT", "ALP", "Albumin", "TroponinT", "TroponinI",
    "Cholesterol",
)  # fmt: skip
DESCRIPTORS = ("Age", "Gender", "Height", "ICUType", "Weight")
HEADER = "Time,Parameter,Value"
OUTCOME_HEADER = "RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death"

# What nobody alive has: a slipped decimal point (a pH of 735), a zero for "not measured", a probe that fell off. Others
# must not be negative.
_POSSIBLE = {
    "Weight": (20.0, 400.0), "Height": (100.0, 250.0), "Temp": (20.0, 45.0), "pH": (6.5, 8.0), "HR": (1.0, 350.0),
    "MAP": (1.0, 300.0), "SysABP": (1.0, 350.0), "DiasABP": (1.0, 300.0), "NIMAP": (1.0, 300.0),
    "NISysABP": (1.0, 350.0), "NIDiasABP": (1.0, 300.0), "RespRate": (1.0, 150.0), "PaCO2": (5.0, 250.0),
    "PaO2": (5.0, 800.0), "Age": (10.0, 120.0), "Gender": (0.0, 1.0), "ICUType": (1.0, 4.0),
}  # fmt: skip
_TIMES = {f"{minute // 60:02d}:{minute % 60:02d}": minute for minute in range(48 * 60 + 1)}
_CLOCK = re.compile(r"\d{2,}:[0-5]\d")
_FEATURE = {name: (i, *_POSSIBLE.get(name, (0.0, np.inf))) for i, name in enumerate(PARAMETERS)}
_STATIC = {name: (i, *_POSSIBLE[name]) for i, name in enumerate(DESCRIPTORS)}


@dataclass(frozen=True)
class Records:
    """n stays, their observations end to end: those of stay i are `start[i]` to `start[i + 1]`, sorted by time.

    Shapes:
        name: the record numbers. start: Int[n + 1].
        time: Float[T], hours since admission. feature: Int[T], the index in `features`. value: Float[T].
        static: Float[n, 5], `DESCRIPTORS`, NaN = not known. label: Int[n], death in hospital, -1 = not known.
        factors: what else is known of a stay, Float[n] each, NaN = not known.
        skipped: how many rows or files were left out, by reason.
    """

    name: tuple[str, ...]
    start: Tensor
    time: Tensor
    feature: Tensor
    value: Tensor
    static: Tensor
    label: Tensor
    factors: dict[str, Tensor] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    features: tuple[str, ...] = PARAMETERS

    def __len__(self) -> int:
        return len(self.name)

    @property
    def count(self) -> Int[Tensor, " n"]:
        """How many observations each stay has."""
        return self.start.diff()

    @property
    def row(self) -> Int[Tensor, " T"]:
        """The stay that each observation belongs to."""
        return torch.repeat_interleave(torch.arange(len(self)), self.count)

    def take(self, index: Int[Tensor, " m"]) -> "Records":
        """The stays at these places, in this order."""
        count = self.count[index]
        start = torch.cat([count.new_zeros(1), count.cumsum(0)])
        inside = torch.arange(int(start[-1])) - torch.repeat_interleave(start[:-1], count)
        where = torch.repeat_interleave(self.start[:-1][index], count) + inside
        return replace(
            self,
            name=tuple(self.name[i] for i in index.tolist()),
            start=start,
            time=self.time[where],
            feature=self.feature[where],
            value=self.value[where],
            static=self.static[index],
            label=self.label[index],
            factors={name: column[index] for name, column in self.factors.items()},
        )


def physionet2012(root: str | Path | None = None, download: bool = False, part: str = "a") -> Records:
    """Read set A (or `part` b, c) of the PhysioNet/CinC Challenge 2012: 4,000 stays, 14 % of which ended in death.

    `set-a.tar.gz` (or a folder `set-a`) and `Outcomes-a.txt` are looked for in ``root/physionet2012``, then in
    ``root``, which defaults to the environment variable ``JEPA_LAB_DATA``. ``download=True`` fetches them from the
    public page where they are missing.

    Raises: FileNotFoundError that names the page and the folder if a file is missing; ValueError if one is not what it
        should be or, to download, no root is known.
    Paper: Silva et al. 2012. Book: chapters 08, 09.
    """
    if part not in ("a", "b", "c"):
        raise ValueError(f"part must be a, b or c, got {part!r}")
    root = root if root is not None else os.environ.get("JEPA_LAB_DATA") or None
    if root is None:
        remedy = "pass root=FOLDER or set the environment variable JEPA_LAB_DATA"
        if download:
            raise ValueError(f"root is None and JEPA_LAB_DATA is not set: no folder to download to; {remedy}")
        raise FileNotFoundError(f"PhysioNet 2012 ({HOME}): no folder to look in; {remedy}")
    archive, outcomes = f"set-{part}.tar.gz", f"Outcomes-{part}.txt"
    folder = Path(root) / "physionet2012"
    if not folder.is_dir() and (Path(root) / outcomes).is_file():
        folder = Path(root)
    source = folder / archive
    if not source.is_file() and (folder / f"set-{part}").is_dir():
        source = folder / f"set-{part}"
    wanted = [path for path in (source, folder / outcomes) if not path.exists()]
    if download:
        for path in wanted:
            _download(FILES + path.name, path)
    elif wanted:
        raise FileNotFoundError(
            f"PhysioNet 2012: {', '.join(path.name for path in wanted)} not found in {folder}. Put them there (from "
            f"{HOME}), or pass download=True."
        )
    return read_records(source, folder / outcomes)


def read_records(source: str | Path, outcomes: str | Path | None = None) -> Records:
    """Read all records of a tarball or a folder, sorted by their number, with their outcomes where given.

    Left out and counted are: files that are empty or have another header; rows that are malformed, of an unknown
    parameter, beyond 48 h, of a value that is not known (-1) or not possible. Several values of one parameter at one
    minute are averaged, and those beyond the first are counted. A record without any observation stays, empty.

    Raises: ValueError when `source` is neither, or holds no record, or when `outcomes` is another table.
    Book: chapter 08.
    """
    skipped: Counter[str] = Counter()
    names, stays, minutes, features, values, descriptors = [], [], [], [], [], []
    for name, text in sorted(_texts(Path(source))):
        lines = text.splitlines()
        if not lines or lines[0].strip() != HEADER:
            skipped["empty file" if not text.strip() else "file with another header"] += 1
            continue
        static = [np.nan] * len(DESCRIPTORS)
        described = set()
        for line in lines[1:]:
            try:
                clock, parameter, number = line.split(",")
                minute, value = _TIMES[clock], float(number)
            except (ValueError, KeyError):
                if line.strip():
                    skipped[_why(line)] += 1
                continue
            # Not "the first six rows": descriptors may stand among the observations of 00:00.
            if minute == 0 and parameter in _STATIC and parameter not in described:
                described.add(parameter)
                place, low, high = _STATIC[parameter]
                if low <= value <= high:
                    static[place] = value
                elif value != -1:
                    skipped["impossible descriptor"] += 1
            elif parameter in _FEATURE:
                place, low, high = _FEATURE[parameter]
                if low <= value <= high:
                    stays.append(len(names))
                    minutes.append(minute)
                    features.append(place)
                    values.append(value)
                else:
                    skipped["unknown value (-1)" if value == -1 else "impossible value"] += 1
            elif parameter != "RecordID":
                skipped["unknown parameter"] += 1
        names.append(name)
        descriptors.append(static)
    if not names:
        raise ValueError(f"{source} holds no record: no RECORDID.txt with the header {HEADER!r}")
    columns = (np.array(column, dtype=np.int64) for column in (stays, minutes, features))
    stay, minute, feature, value, repeated = _average(*columns, np.array(values))
    if repeated:
        skipped["repeated (time, parameter), averaged"] = repeated
    label, factors = _outcomes(None if outcomes is None else Path(outcomes), names, skipped)
    return Records(
        tuple(names),
        torch.from_numpy(np.searchsorted(stay, np.arange(len(names) + 1))),
        torch.from_numpy(minute / 60).float(),
        torch.from_numpy(feature),
        torch.from_numpy(value).float(),
        torch.tensor(descriptors, dtype=torch.float32),
        label,
        factors,
        dict(skipped),
    )


def _why(line: str) -> str:
    """Why a row cannot be used: its time is a time, but not one of the first 48 hours; or anything else."""
    clock, *rest = line.split(",")
    beyond = len(rest) == 2 and clock not in _TIMES and _CLOCK.fullmatch(clock)
    return "time beyond 48 h" if beyond else "malformed row"


def _average(stay, minute, feature, value) -> tuple:
    """Sorted by stay, minute and feature, one row each; and how many rows were too many."""
    key = (stay * (len(_TIMES)) + minute) * len(PARAMETERS) + feature
    found, inverse, count = np.unique(key, return_inverse=True, return_counts=True)
    mean = np.bincount(inverse, value, minlength=len(found)) / count
    moment, feature = np.divmod(found, len(PARAMETERS))
    stay, minute = np.divmod(moment, len(_TIMES))
    return stay, minute, feature, mean, len(key) - len(found)


def _texts(source: Path) -> Iterator[tuple[str, str]]:
    """The name and the content of every RECORDID.txt."""
    if source.is_dir():
        for path in source.glob("*.txt"):
            if path.stem.isdigit():
                yield path.stem, path.read_text(encoding="utf-8", errors="replace")
        return
    try:
        with tarfile.open(source) as archive:
            for member in archive:
                path = Path(member.name)
                if member.isfile() and path.suffix == ".txt" and path.stem.isdigit():
                    yield path.stem, archive.extractfile(member).read().decode("utf-8", errors="replace")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(
            f"{source} is neither a folder of records nor a tarball that can be read ({' '.join(str(error).split())}); "
            f"get set-a.tar.gz from {HOME}"
        ) from error


def _outcomes(path: Path | None, names: Iterable[str], skipped: Counter) -> tuple[Int[Tensor, " n"], dict]:
    """Labels and severity scores in the order of the records."""
    table: dict[str, list[str]] = {}
    if path is not None:
        header, *lines = path.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
        if header.strip() != OUTCOME_HEADER:
            raise ValueError(f"{path} must start with {OUTCOME_HEADER!r}, got {header[:80]!r}")
        for line in lines:
            cells = line.strip().split(",")
            if len(cells) == 6 and re.fullmatch(r"-?\d+(,-?\d+){5}", line.strip()):
                table[cells[0]] = cells
            elif line.strip():
                skipped["malformed outcome"] += 1
    unknown = ["", "-1", "-1", "-1", "-1", "-1"]
    rows = [table.get(name, unknown) for name in names]
    if path is not None and (lacking := sum(row is unknown for row in rows)):
        skipped["record without outcome"] = lacking
    label = torch.tensor([int(row[5]) for row in rows])
    columns = {"saps": 1, "sofa": 2, "length_of_stay": 3}
    return label, {name: _known(row[place] for row in rows) for name, place in columns.items()}


def _known(cells: Iterable[str]) -> Float[Tensor, " n"]:
    values = torch.tensor([float(cell) for cell in cells])
    return values.masked_fill(values == -1, torch.nan)


def _download(url: str, path: Path) -> None:
    """Fetch a file; it gets its name only once it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".download-") as scratch:
        fresh = Path(scratch) / path.name
        with urllib.request.urlopen(url, timeout=60) as source:
            fresh.write_bytes(source.read())
        fresh.replace(path)
