"""Is the repository whole, and free of what belongs to one machine?"""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from tools.large_files import LIMIT, too_large

ROOT = Path(__file__).resolve().parent.parent
TEXT = {".py", ".md", ".yaml", ".yml", ".toml", ".cff", ".cfg", ".bib", ".css", ".txt", ""}

PRESENT = [
    "README.md", "CONTRIBUTING.md", "CITATION.cff", "LICENSE", "Makefile", "pyproject.toml", "constraints.txt",
    "environment.yml", ".gitignore", ".pre-commit-config.yaml", ".ci/run", ".github/workflows/check.yml",
    "_config.yml", "_toc.yml", "book/references.bib", "book/intro.md",
]  # fmt: skip

ABSOLUTE_PATH = re.compile(r"(?<![\w.:/~$}*-])/(?:home|root|Users|work|tmp|opt|mnt|private|builds|workspace)/\w")
UNFINISHED = re.compile(r"\b(?:TODO|FIXME|XXX)\b")
CUDA = re.compile(r"""["']cuda""")


def tracked():
    """The text files of the repository: what git tracks or would add."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [path for path in paths if path.is_file() and path.suffix in TEXT]


def matches(pattern, paths):
    found = []
    for path in paths:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if pattern.search(line):
                found.append(f"{path.relative_to(ROOT).as_posix()}:{number}: {line.strip()[:100]}")
    return found


def others(paths):
    """Without the tests of hygiene themselves, which have to spell out what they forbid."""
    return [path for path in paths if path.name not in ("test_repository.py", "test_notebook_hygiene.py")]


@pytest.mark.parametrize("name", PRESENT)
def test_file_is_present(name):
    assert (ROOT / name).is_file()


def test_ci_script_can_be_run():
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o100


def test_no_absolute_path():
    assert matches(ABSOLUTE_PATH, others(tracked())) == []


def test_nothing_unfinished():
    assert matches(UNFINISHED, others(tracked())) == []


def test_devices_are_chosen_in_one_place():
    package = [path for path in tracked() if path.suffix == ".py" and path.name != "recipe.py"]
    package = [path for path in package if path.parent.name != "benchmarks"]  # they measure the device that they name
    assert matches(CUDA, others(package)) == []


@pytest.mark.parametrize(
    ("pattern", "line"),
    [(ABSOLUTE_PATH, "see /home/me/x"), (UNFINISHED, "# TODO: later"), (CUDA, 'x.to("cuda:0")')],
)
def test_the_patterns_bark(pattern, line):
    assert pattern.search(line)


def test_a_large_file_is_refused(tmp_path):
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(b"x" * LIMIT)
    large.write_bytes(b"x" * (LIMIT + 1))
    assert too_large([str(small), str(large)]) == [f"{large}: 1000 kB"]


def test_every_dependency_is_pinned():
    """A range without a pin would let CI take another version tomorrow."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + [d for extra in project["optional-dependencies"].values() for d in extra]

    def name(requirement):
        return re.split(r"[\[<>=!~; ]", requirement)[0].lower().replace("_", "-")

    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {name(line) for line in lines if line and not line.startswith("#")}
    assert {name(requirement) for requirement in wanted} - pins - {"jepa-lab"} == set()
    assert "torch==2.13.0" in lines, "no local suffix: CPU and GPU machines take the same version"
    assert not [line for line in lines if "+" in line or line.startswith("-e")]
