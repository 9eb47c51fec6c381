"""The README says what is true: its snippet runs, its figure is the chapter's, its chapters exist."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tools.readme_figure import CHAPTER, FIGURE, read_figure

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")

SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.S)


@pytest.mark.slow
def test_the_snippet_trains_and_beats_random_init(tmp_path):
    code = SNIPPETS[0]
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    seconds = time.perf_counter() - started
    assert done.returncode == 0, done.stderr
    knn = {line.split("linear")[0].strip(): int(line.split("kNN")[1].strip(" %")) for line in done.stdout.splitlines()}
    assert list(knn) == ["chance", "raw input", "random init", "supervised", "JEPA"]
    assert knn["JEPA"] > knn["random init"] + 20  # in each of the five seeds of results/digits_jepa.json
    assert seconds < 180  # "under a minute of CPU time", on cores that other tests share


@pytest.mark.slow
def test_the_collapse_report_sees_what_the_rank_does_not(tmp_path):
    done = subprocess.run([sys.executable, "-c", SNIPPETS[1]], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(SNIPPETS) == 2
    verdict, rank = done.stdout.splitlines()[0].rsplit(" ", 1)
    assert verdict == "complete collapse" and float(rank) > 55


def test_the_figure_is_the_one_that_the_chapter_has_drawn():
    assert FIGURE.read_bytes() == read_figure(), "run `python tools/readme_figure.py`"


def test_the_figure_is_found_by_its_alt_text_alone(tmp_path):
    path = tmp_path / "chapter.ipynb"
    path.write_text(CHAPTER.read_text(encoding="utf-8").replace("Three panels", "Some panels"), encoding="utf-8")
    with pytest.raises(ValueError, match="holds 0 figures"):
        read_figure(path)


def test_every_link_leads_to_a_file():
    links = re.findall(r"\]\((?!https?://)([^)#]+)\)", README)
    assert len(links) > 5
    assert not [link for link in links if not (ROOT / link).exists()]


def test_every_chapter_is_in_the_table():
    rows = set(re.findall(r"\(notebooks/([\w]+)\.ipynb\)", README.split("## The chapters")[1]))
    assert rows == {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
