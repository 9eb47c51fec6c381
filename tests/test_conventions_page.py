"""Is every value on the page of constants what its expression gives?"""

import math
import re
from pathlib import Path

import pytest
import torch

import jepa_lab.losses
from jepa_lab.conventions import convert_covariance_weight, convert_lambda
from jepa_lab.ema import from_half_life
from jepa_lab.metrics import effective_rank, mean_cosine, normalized_std, rankme
from jepa_lab.sigreg import quadrature

PAGE = Path(__file__).resolve().parent.parent / "book" / "conventions.md"
ROW = re.compile(r"^\| (?P<state>.+?) \| `(?P<expression>[^`]+)` \| (?P<value>-?[\d.]+) \|$", re.MULTILINE)


def gaussian(n, d, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=g, dtype=torch.float64)


KNOTS, WEIGHTS = quadrature(17, 3.0, torch.zeros(1, dtype=torch.float64))

NAMES = {name: getattr(jepa_lab.losses, name) for name in jepa_lab.losses.__all__} | {
    "convert_covariance_weight": convert_covariance_weight,
    "convert_lambda": convert_lambda,
    "effective_rank": effective_rank,
    "from_half_life": from_half_life,
    "gaussian": gaussian,
    "math": math,
    "mean_cosine": mean_cosine,
    "normalized_std": normalized_std,
    "ones": torch.ones,
    "rankme": rankme,
    "t": KNOTS,
    "w": WEIGHTS,
    "torch": torch,
    "zeros": torch.zeros,
}
ROWS = [match.groupdict() for match in ROW.finditer(PAGE.read_text())]


def test_the_page_has_its_rows():
    assert len(ROWS) >= 30
    # No row of a table with an expression escapes the pattern, by a typo say.
    assert len([line for line in PAGE.read_text().splitlines() if re.match(r"\|.*\| `.*\(", line)]) <= len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["expression"])
def test_value(row):
    torch.manual_seed(0)
    value = float(eval(row["expression"], NAMES))  # our own page
    decimals = len(row["value"].partition(".")[2])
    assert abs(value - float(row["value"])) <= 0.5001 * 10**-decimals, f"{row['state']}: {value}"
