"""Text pairs: the corpus does not depend on the machine, splits share no text, encoders see training texts only."""

import errno
import hashlib
import json
import math
import os
import random
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from jepa_lab import files
from jepa_lab.data import docstrings, squad, text, text_encoders
from jepa_lab.data.docstrings import (
    Entry,
    package_folder,
    python_files,
    read_entries,
    select,
    split_docstring,
    topic_of,
)
from jepa_lab.data.text import Pairs, docstring_pairs, embed, fit_encoder, name_to_words, split, squad_pairs, tfidf
from jepa_lab.data.text_encoders import LsaEncoder, MiniLmEncoder, TfidfEncoder

WORDS = [f"{a}{b}" for a in ("ba", "do", "ki", "lu", "me") for b in ("ra", "so", "ti", "vu", "ne")]


def body(seed: object, n: int = 25) -> str:
    """n different words, drawn for this seed."""
    return " ".join(f"{word}{i % 7}" for i, word in enumerate(random.Random(str(seed)).choices(WORDS, k=n)))


def function(name: str, seed: object = None) -> str:
    """The source of a documented function that must never run."""
    seed = name if seed is None else seed
    return f'def {name}():\n    """Summary of {seed} here.\n\n    {body(seed)}\n    """\n    raise SystemExit\n'


def toy_pairs(n: int = 60, topics: int = 4) -> Pairs:
    rows = range(n)
    return Pairs(
        tuple(f"what is {body(i, 3)} number{i % 5}" for i in rows),
        tuple(body(i) for i in rows),
        tuple(f"t{i % topics}" for i in rows),
        tuple(f"name{i}" for i in rows),
    )


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("JEPA_LAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Writes packages; importing any of their files ends the test run."""

    def write(name: str, contents: dict[str, str]) -> str:
        for path, source in {"__init__.py": "", **contents}.items():
            file = tmp_path / "site" / name / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("raise SystemExit\n" + source if source else source, encoding="utf-8")
        return name

    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return write


@pytest.fixture(scope="module")
def corpus() -> Pairs:
    return docstring_pairs()


# --- which docstrings
# ------------------------------------------------------------------------------------------------


def test_corpus_is_the_published_one(corpus):
    """Whoever moves a pin, a rule or a package moves every number of chapter 12: say so by changing the constant."""
    assert corpus.hash == text.CORPUS_SHA256


@pytest.mark.slow
def test_a_fresh_parse_gives_the_published_corpus():
    """As above, but past every cache."""
    assert docstring_pairs(cache=False).hash == text.CORPUS_SHA256


def test_corpus_is_rich_enough(corpus):
    size = Counter(corpus.topic)
    assert min(size.values()) >= 20 and max(size.values()) <= 120
    assert {topic.partition(".")[0] for topic in corpus.topics} == set(docstrings.PACKAGES)
    # The two packages that a rule of public *files* would lose, and numpy's top level behind its one private folder.
    assert {"sklearn.linear_model", "scipy.linalg", "numpy._core", "torch.nn"} <= set(corpus.topics)
    assert len(set(corpus.source)) == len(corpus) and len(set(zip(corpus.topic, corpus.question, strict=True))) == len(
        corpus
    )
    of_name: dict[str, set[str]] = {}
    for name, topic in zip(corpus.name, corpus.topic, strict=True):
        of_name.setdefault(name, set()).add(topic)
    # What steering is for: the same short name in several topics.
    assert sum(len(of_name[name]) > 1 for name in corpus.name) > 500


def test_packages_are_pinned_and_need_no_extra():
    """Followed from the dependencies of a plain install, as importlib.metadata gives them."""
    from importlib.metadata import requires

    def name_of(requirement: str) -> str:
        return re.split(r"[\[<>=!~; (]", requirement)[0].lower().replace("_", "-")

    reached, todo = set(), ["jepa-lab"]
    while todo:
        for requirement in requires(todo.pop()) or []:
            name = name_of(requirement)
            if "extra ==" not in requirement and "python_version <" not in requirement and name not in reached:
                reached.add(name)
                if name in {"torch", "scikit-learn", "matplotlib", "ipywidgets", "sympy", "numpy", "scipy"}:
                    todo.append(name)
    distributions = {{"PIL": "pillow", "sklearn": "scikit-learn"}.get(p, p.lower()) for p in docstrings.PACKAGES}
    assert distributions <= reached
    pins = (Path(__file__).parents[1] / "constraints.txt").read_text().splitlines()
    assert distributions <= {name_of(line) for line in pins}
    assert not set(docstrings.PACKAGES) & sys.stdlib_module_names


def test_files_of_public_folders_only_and_nothing_is_imported(package):
    name = package(
        "toy_files",
        {
            "_private.py": function("a"),
            "sub/_hidden.py": function("b"),
            "sub/_core/c.py": function("c"),
            "_internal/d.py": function("d"),
            "tests/e.py": function("e"),
            "sub/test_f.py": function("f"),
            "sub/conftest.py": function("g"),
            "sub/__config__.py": function("h"),
            "version.py": function("i"),
            "sub/externals/j.py": function("j"),
            "distutils/k.py": function("k"),
            "sub/l.pyi": function("l"),
        },
    )
    found = python_files(name)
    assert [module for module, _ in found] == [
        "toy_files", "toy_files._private", "toy_files.sub._core.c", "toy_files.sub._hidden",
    ]  # fmt: skip
    entries = docstrings.harvest(found)
    assert [(e.topic, e.path) for e in entries] == [("toy_files", "a"), ("toy_files.sub", "c"), ("toy_files.sub", "b")]
    assert not [module for module in sys.modules if module.startswith("toy_files")]


def test_public_objects_only():
    source = f'''
"""The docstring of a module. Not an entry.

{body("module")}
"""
{function("shown")}
{function("_private")}
async {function("awaited")}
class Shown:
    """A class with words.

    {body("class")}
    """
    {function("method").replace(chr(10), chr(10) + "    ")}
    {function("__init__").replace(chr(10), chr(10) + "    ")}
class _Private:
    {function("lost").replace(chr(10), chr(10) + "    ")}
def outer():
    {function("inner").replace(chr(10), chr(10) + "    ")}
'''
    entries = list(read_entries("pack.sub.mod", source.encode()))
    assert {e.path for e in entries} == {"shown", "awaited", "Shown", "Shown.method"}
    assert {e.name for e in entries} == {"shown", "awaited", "Shown", "method"}
    assert {e.topic for e in entries} == {"pack.sub"}


@pytest.mark.parametrize(
    ("module", "topic"),
    [
        ("scipy.linalg._decomp", "scipy.linalg"),
        ("sklearn.base", "sklearn.base"),
        ("numpy._core.numeric", "numpy._core"),
        ("torch._tensor", "torch"),
        ("torch", "torch"),
        ("torch.nn.modules.linear", "torch.nn"),
    ],
)
def test_topic_is_package_and_subpackage(module, topic):
    assert topic_of(module) == topic


def test_summary_is_one_line_and_body_keeps_its_shape():
    text_of = "Two lines\n    in one.\n\n    Parameters\n    ----------\n    x : int   \n\n\n      deeper\n    "
    assert split_docstring(text_of, "f") == ("Two lines in one.", "Parameters\n----------\nx : int\n\n  deeper")
    assert split_docstring("Only a summary.", "f") == ("Only a summary.", "")


def test_a_signature_is_not_a_summary():
    assert split_docstring("f(x, axis=(0, 1)) -> y\n\nThe summary.\n\nThe body.", "f") == ("The summary.", "The body.")
    assert split_docstring("np.f(x)\n\nThe summary.\n\nThe body.", "f") == ("The summary.", "The body.")
    # Another function's call is not the own signature, and a lone signature is all there is.
    assert split_docstring("g(x)\n\nThe body.", "f") == ("g(x)", "The body.")
    assert split_docstring("f(x)", "f") == ("f(x)", "")


def test_too_short_docstrings_are_left_out():
    def entries(summary: str, words: int) -> int:
        return len(list(read_entries("a.b", f'def f():\n    """{summary}\n\n    {body(0, words)}"""\n'.encode())))

    assert entries("Three words here.", docstrings.MIN_BODY_WORDS) == 1
    assert entries("Three words here.", docstrings.MIN_BODY_WORDS - 1) == 0
    assert entries("Two words.", docstrings.MIN_BODY_WORDS) == 0


def test_a_file_that_is_not_python_is_left_out_with_a_warning():
    for source in (b'def f(:\n    """x"""', b'"""\0"""'):
        with pytest.warns(RuntimeWarning, match=r"pack\.template is left out"):
            assert list(read_entries("pack.template", source)) == []


def test_line_ends_and_encodings_do_not_matter():
    source = function("f").replace("Summary", "Größe")
    (entry,) = read_entries("a.b", source.encode())
    assert entry.summary.startswith("Größe")
    assert list(read_entries("a.b", source.replace("\n", "\r\n").encode())) == [entry]
    assert list(read_entries("a.b", b"\xef\xbb\xbf" + source.encode())) == [entry]
    assert list(read_entries("a.b", b"# coding: latin-1\n" + source.encode("latin-1"))) == [entry]


def test_selection_does_not_depend_on_the_order():
    entries = [Entry(f"p.{i % 3}", f"f{i}", f"Summary of {i}", body(i)) for i in range(200)]
    once = select(entries, 20, 30)
    random.Random(1).shuffle(entries)
    assert select(entries, 20, 30) == once == sorted(once)
    assert Counter(e.topic for e in once) == {"p.0": 30, "p.1": 30, "p.2": 30}
    # The cut is a draw over the whole topic, not its first entries in the alphabet, and a smaller cut is part of it.
    first = [e for e in sorted(entries) if e.topic == "p.0"][:30]
    assert len(set(first) & set(once)) < 25
    assert set(select(entries, 20, 25)) < set(once)


def test_repeats_and_small_topics_are_dropped():
    same = " ".join(["word"] * 60)
    entries = [
        Entry("p.a", "f", "One summary", same + " ending"),
        Entry("p.b", "g", "Another summary", "  word\n" + same + " other end"),  # the first 200 characters agree
        Entry("p.a", "h", "One summary", body("h")),
        Entry("p.b", "h", "One summary", body("b")),  # the same summary in another topic: that is the point
        Entry("p.c", "i", "Third summary", body("i")),
    ]
    assert [(e.topic, e.path) for e in select(entries, 1, 9)] == [("p.a", "f"), ("p.b", "h"), ("p.c", "i")]
    for seed in range(9):
        assert select(random.Random(seed).sample(entries * 3, 15), 1, 9) == select(entries, 1, 9)
    assert select(entries, 2, 9) == []


@pytest.mark.parametrize(("low", "high"), [(5, 4), (0, 4), (-1, -1)])
def test_bounds_that_contradict_each_other(low, high):
    with pytest.raises(ValueError, match=f"min_pairs={low}, max_pairs={high}"):
        select([], low, high)
    with pytest.raises(ValueError, match="min_pairs <= max_pairs"):
        docstring_pairs(low, high, packages=("PIL",))


@pytest.mark.parametrize("name", ["no_such_package_xyz", "six", "jepa_lab.data"])
def test_a_missing_package_is_named(name):
    # six is a single file, jepa_lab.data no package of its own.
    with pytest.raises(ImportError, match=re.escape(f"{name!r} is not an installed package")):
        package_folder(name)


def test_no_topic_is_large_enough(package):
    with pytest.raises(ValueError, match=r"no topic of packages=\('toy_small',\) has min_pairs=2"):
        docstring_pairs(2, 5, packages=(package("toy_small", {"a.py": function("f")}),), cache=False)


@pytest.mark.slow
def test_hash_seed_does_not_matter(package, tmp_path):
    name = package("toy_seed", {f"m{i}.py": "".join(function(f"f{i}_{j}") for j in range(9)) for i in range(4)})
    script = (
        "import sys, json; from jepa_lab.data.text import docstring_pairs; "
        f"sys.path.insert(0, {str(tmp_path / 'site')!r}); print(docstring_pairs(1, 5, ({name!r},), cache=False).hash)"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1] == docstring_pairs(1, 5, (name,), cache=False).hash + "\n"


# --- the cache
# -------------------------------------------------------------------------------------------------------


def toy_corpus(package, name: str) -> str:
    return package(name, {"a.py": "".join(function(f"f{j}") for j in range(5))})


def test_second_call_parses_nothing(package, cache, monkeypatch):
    name = toy_corpus(package, "toy_cached")
    first = docstring_pairs(1, 9, packages=(name,))
    (stored,) = cache.iterdir()
    assert stored.suffix == ".json"
    monkeypatch.setattr(text, "harvest", lambda files: pytest.fail("parsed again"))
    assert docstring_pairs(1, 9, packages=(name,)) == first


def test_what_changes_the_corpus_changes_the_name_of_its_file(package, cache, tmp_path, monkeypatch):
    name = toy_corpus(package, "toy_renamed")
    docstring_pairs(1, 9, packages=(name,))
    docstring_pairs(1, 8, packages=(name,))
    assert len(list(cache.iterdir())) == 2
    file = tmp_path / "site" / name / "a.py"
    file.write_text(function("new"))
    assert docstring_pairs(1, 9, packages=(name,)).name == ("new",)
    monkeypatch.setattr(text, "_code", lambda module: "other rules")
    docstring_pairs(1, 9, packages=(name,))
    assert len(list(cache.iterdir())) == 4


@pytest.mark.parametrize("damage", ["cut", "other text", "list", "binary", "empty", "short column"])
def test_a_broken_cache_costs_time_only(package, cache, damage):
    name = toy_corpus(package, "toy_broken")
    first = docstring_pairs(1, 9, packages=(name,))
    (stored,) = cache.iterdir()
    content = stored.read_bytes()
    short = json.loads(content)
    short["pairs"]["name"].pop()
    stored.write_bytes(
        {
            "cut": content[:-20],
            "other text": content.replace(b"Summary", b"Mummary", 1),
            "list": b"[1]",
            "binary": b"\xff\x00",
            "empty": b"",
            "short column": json.dumps(short).encode(),
        }[damage]
    )
    with pytest.warns(RuntimeWarning, match="cannot be read") as caught:
        assert docstring_pairs(1, 9, packages=(name,)) == first
    assert len(caught) == 1
    assert docstring_pairs(1, 9, packages=(name,)) == first  # repaired, so no warning now


def test_an_unwritable_cache_costs_time_only(package, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("JEPA_LAB_CACHE", str(tmp_path / "file"))
    name = toy_corpus(package, "toy_unwritable")
    with pytest.warns(RuntimeWarning, match="JEPA_LAB_CACHE") as caught:
        assert len(docstring_pairs(1, 9, packages=(name,))) == 5
    assert len(caught) == 1


def test_a_full_disk_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = files.write_atomic(tmp_path / "new" / "x.bin", b"old")
    assert path.read_bytes() == b"old"

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*x\.bin'"):
        files.write_atomic(path, b"new, and longer")
    assert path.read_bytes() == b"old" and [p.name for p in path.parent.iterdir()] == ["x.bin"]
    monkeypatch.undo()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)  # the last moment before the new file counts
    with pytest.raises(KeyboardInterrupt):
        files.write_atomic(path, b"new, and longer")
    assert path.read_bytes() == b"old" and [p.name for p in path.parent.iterdir()] == ["x.bin"]


def test_where_the_cache_lies(monkeypatch):
    monkeypatch.setenv("JEPA_LAB_CACHE", "/some/where")
    assert files.cache_folder() == Path("/some/where")
    monkeypatch.delenv("JEPA_LAB_CACHE")
    assert files.cache_folder() == Path.home() / ".cache" / "jepa_lab"


# --- pairs
# -----------------------------------------------------------------------------------------------------------


def test_pairs_are_checked():
    with pytest.raises(ValueError, match=r"equally long.*'source': 2"):
        Pairs(("q",), ("s", "s2"), ("t",), ("n",))
    with pytest.raises(ValueError, match="not empty"):
        Pairs((), (), (), ())
    with pytest.raises(ValueError, match=r"source\[1\] is an empty text"):
        Pairs(("q", "r"), ("s", " \n"), ("t", "t"), ("n", "m"))


def test_take_and_indices():
    pairs = Pairs(("q0", "q1", "q2"), ("s", "u", "s"), ("b", "a", "b"), ("x", "y", "z"))
    assert pairs.topics == ("a", "b") and pairs.topic_index.tolist() == [1, 0, 1]
    rows, place = pairs.pool
    assert rows.tolist() == [0, 1] and place.tolist() == [0, 1, 0]
    taken = pairs.take(torch.tensor([2, 0]))
    assert taken == Pairs(("q2", "q0"), ("s", "s"), ("b", "b"), ("z", "x")) == pairs.take([2, 0])
    assert len(taken) == 2 and pairs.take(range(3)) == pairs


def test_hash_sees_every_text():
    pairs = toy_pairs(6)
    for column in ("question", "source", "topic", "name"):
        changed = {c: getattr(pairs, c) for c in ("question", "source", "topic", "name")}
        changed[column] = (*changed[column][:-1], "other")
        assert Pairs(**changed).hash != pairs.hash
    # A border that moves between two texts is a change too.
    assert Pairs(("ab", "c"), *[("x", "y")] * 3).hash != Pairs(("a", "bc"), *[("x", "y")] * 3).hash


def test_name_to_words():
    said = {
        "null_space": "null space", "Linear": "linear", "BatchNorm2d": "batch norm 2d", "LSTMCell": "lstm cell",
        "KMeans": "k means", "r2_score": "r 2 score", "conv_transpose3d": "conv transpose 3d", "HTML": "html",
    }  # fmt: skip
    assert {name: name_to_words(name) for name in said} == said


# --- split
# -----------------------------------------------------------------------------------------------------------


def assert_partition(pairs: Pairs, parts: dict[str, torch.Tensor]) -> None:
    assert list(parts) == ["train", "validation", "test"]
    assert sorted(torch.cat(list(parts.values())).tolist()) == list(range(len(pairs)))
    owner = {}
    for name, rows in parts.items():
        assert rows.tolist() == sorted(rows.tolist()) and len(rows) > 0
        for row in rows.tolist():
            assert owner.setdefault(pairs.source[row], name) == name, "one source in two parts"


def test_split_by_pair_has_the_shares_in_every_topic(corpus):
    parts = split(corpus, 0)
    assert_partition(corpus, parts)
    n = len(corpus)
    for name, share in {"train": 0.7, "validation": 0.1, "test": 0.2}.items():
        assert abs(len(parts[name]) - share * n) <= 1
        size = corpus.topic_index.bincount()
        inside = corpus.topic_index[parts[name]].bincount(minlength=len(size))
        assert (inside - share * size).abs().max() < 2


def test_split_depends_on_the_seed_alone(corpus):
    one, again, other = split(corpus, 0), split(corpus, 0), split(corpus, 1)
    assert all(torch.equal(one[name], again[name]) for name in one)
    both = set(one["test"].tolist()) & set(other["test"].tolist())
    # Two independent draws of a fifth share a twenty-fifth; three standard deviations are 0.9 points.
    assert abs(len(both) / len(corpus) - 0.04) < 0.01


def test_split_is_the_published_one(corpus):
    digest = {
        by: hashlib.sha256(json.dumps({k: v.tolist() for k, v in split(corpus, 0, by).items()}).encode()).hexdigest()[
            :8
        ]
        for by in ("pair", "topic")
    }
    assert digest == {"pair": "89bf9143", "topic": "b4da017f"}


def test_split_by_topic_shares_no_topic(corpus):
    for seed in range(5):
        parts = split(corpus, seed, by="topic")
        assert_partition(corpus, parts)
        topics = [set(corpus.topic_index[rows].tolist()) for rows in parts.values()]
        assert sum(map(len, topics)) == len(corpus.topics) == len(set.union(*topics))
        for rows, share in zip(parts.values(), (0.7, 0.1, 0.2), strict=True):
            assert abs(len(rows) / len(corpus) - share) < 0.02  # half of the largest topic at each cut


def test_split_by_package_shares_no_package(corpus):
    assert set(corpus.package) <= set(docstrings.PACKAGES) and corpus.package[0] == corpus.topic[0].split(".")[0]
    tests = set()
    for seed in range(5):
        parts = split(corpus, seed, by="package")
        assert_partition(corpus, parts)
        packages = [{corpus.package[row] for row in rows.tolist()} for rows in parts.values()]
        assert sum(map(len, packages)) == len(set(corpus.package)) == len(set.union(*packages))
        tests.add(frozenset(packages[2]))
    assert len(tests) > 1


def test_questions_about_one_source_stay_together():
    for seed in range(30):
        draw = random.Random(seed)
        # 30 paragraphs with one to many questions each; some occur in two topics.
        rows = [(f"q{i}", f"s{draw.randrange(30)}", f"t{draw.randrange(4)}", f"n{i}") for i in range(90)]
        pairs = Pairs(*zip(*rows, strict=True))
        parts = split(pairs, seed)
        assert_partition(pairs, parts)
        for name, share in {"train": 0.7, "validation": 0.1, "test": 0.2}.items():
            # A cut falls at most half of the largest group away from where it should.
            assert abs(len(parts[name]) - share * 90) <= max(Counter(pairs.source).values())


def test_topics_that_share_a_source_stay_together():
    pairs = toy_pairs(60, topics=12)
    source = list(pairs.source)
    source[0] = source[1]  # of topics t0 and t1
    linked = Pairs(pairs.question, tuple(source), pairs.topic, pairs.name)
    together = []
    for seed in range(20):
        parts = split(linked, seed, by="topic")
        assert_partition(linked, parts)
        part_of = {linked.topic[row]: name for name, rows in parts.items() for row in rows.tolist()}
        assert part_of["t0"] == part_of["t1"]
        together.append(part_of["t0"] == part_of["t2"])
    assert not all(together)


def test_splits_that_cannot_be():
    with pytest.raises(ValueError, match="by must be one of pair, topic, package, got 'body'"):
        split(toy_pairs(), 0, by="body")
    with pytest.raises(ValueError, match="1 separate packages are too few"):
        split(replace(toy_pairs(60), topic=tuple(f"t.{i % 4}" for i in range(60))), 0, by="package")
    with pytest.raises(ValueError, match="2 separate topics are too few"):
        split(toy_pairs(60, topics=2), 0, by="topic")
    same = Pairs(("a", "b", "c"), ("s", "s", "s"), ("t", "t", "t"), ("x", "y", "z"))
    with pytest.raises(ValueError, match=r"1 separate sources are too few, nothing is left for"):
        split(same, 0)


# --- SQuAD files
# -----------------------------------------------------------------------------------------------------


def squad_file(folder: Path, data: object, name: str = "toy.json") -> Path:
    (folder / name).write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return folder


ARTICLES = {
    "version": "1.1",
    "data": [
        {
            "title": "Lakes",
            "paragraphs": [
                {
                    "context": "The lake is deep.",
                    "qas": [
                        {"id": "1", "question": "How deep?", "answers": [{"text": "deep", "answer_start": 12}]},
                        {"id": "2", "question": "What is deep?", "answers": []},
                    ],
                }
            ],
        },
        {"title": "Hills", "paragraphs": [{"context": "Hills roll.", "qas": [{"id": "3", "question": "Who rolls?"}]}]},
    ],
}


def test_squad_rows(tmp_path):
    pairs = squad_pairs(squad_file(tmp_path, ARTICLES), "toy.json")
    assert pairs == Pairs(
        ("How deep?", "What is deep?", "Who rolls?"),
        ("The lake is deep.", "The lake is deep.", "Hills roll."),
        ("Lakes", "Lakes", "Hills"),
        ("1", "2", "3"),
    )
    assert pairs.pool[0].tolist() == [0, 2] and pairs.pool[1].tolist() == [0, 0, 1]


def test_squad_root_defaults_to_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("JEPA_LAB_DATA", str(squad_file(tmp_path, ARTICLES)))
    assert len(squad_pairs(name="toy.json")) == 3
    monkeypatch.delenv("JEPA_LAB_DATA")
    with pytest.raises(FileNotFoundError, match=r"xquad.*no folder to look in; .*JEPA_LAB_DATA"):
        squad_pairs()


def test_squad_file_missing(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        squad_pairs(tmp_path)
    assert squad.XQUAD_HOME in str(error.value) and str(tmp_path / "xquad-en") in str(error.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (json.dumps(ARTICLES)[:-40], "is not JSON, perhaps cut short"),
        ({"data": [{"title": "x", "paragraphs": [{"qas": []}, {"context": "y", "qas": []}]}]}, "holds no question"),
        ({"data": [{"title": "x", "paragraphs": [{"qas": [{"id": "1", "question": "q"}]}]}]}, "KeyError 'context'"),
        ({"articles": []}, "KeyError 'data'"),
        ([1, 2], "has not the schema of SQuAD"),
        ({"data": [{"title": 3, "paragraphs": [{"context": "y", "qas": [{"id": "1", "question": "q"}]}]}]}, "strings"),
        ({"data": [{"title": "t", "paragraphs": [{"context": " ", "qas": [{"id": "1", "question": "q"}]}]}]}, "empty"),
    ],
)
def test_squad_files_of_another_kind(tmp_path, data, message):
    with pytest.raises(ValueError, match=message):
        squad_pairs(squad_file(tmp_path, data), "toy.json")


def test_squad_known_file_is_checked(tmp_path):
    squad_file(tmp_path, ARTICLES, "xquad.en.json")
    with pytest.raises(ValueError, match=r"xquad\.en\.json is corrupt: its sha256 is"):
        squad_pairs(tmp_path, "xquad.en.json")


def test_xquad():
    root = os.environ.get("JEPA_LAB_DATA")
    if not root or not (Path(root) / "xquad-en" / "xquad.en.json").is_file():
        pytest.skip("JEPA_LAB_DATA has no xquad-en/xquad.en.json")
    pairs = squad_pairs()
    assert (len(pairs), len(pairs.pool[0]), len(pairs.topics)) == (1190, 240, 48)
    for by in ("pair", "topic"):
        assert_partition(pairs, split(pairs, 0, by))
    # Whole paragraphs go to one part, so the shares of questions are met less exactly than with docstrings.
    assert abs(len(split(pairs, 0)["train"]) / 1190 - 0.7) < 0.02


# --- encoders
# --------------------------------------------------------------------------------------------------------


def test_tfidf_is_its_formula():
    texts = ["any cat, any dog", "the dog_house", "all of it"]
    encoder = TfidfEncoder().fit(texts)
    words = encoder.vectorizer.get_feature_names_out().tolist()
    assert words == ["all", "any", "cat", "dog", "house", "it", "of", "the"]  # no stop list; dog_house is two words
    query = "Dog dog dog house, unknown"
    in_texts = {word: sum(word in re.findall("[a-z]+", t) for t in texts) for word in words}
    slow = np.zeros(len(words))
    for word in words:
        count = re.findall("[a-z]+", query.lower()).count(word)
        if count:
            slow[words.index(word)] = (1 + math.log(count)) * (1 + math.log((1 + len(texts)) / (1 + in_texts[word])))
    np.testing.assert_allclose(encoder.encode([query]).toarray()[0], slow / np.linalg.norm(slow), rtol=1e-6)


def test_lsa_is_the_projection_on_the_singular_vectors():
    texts = [body(i, 12) for i in range(40)]
    encoder = LsaEncoder(5).fit(texts)
    rows = TfidfEncoder().fit(texts).encode(texts).toarray().astype(np.float64)
    v = np.linalg.svd(rows, full_matrices=False)[2][:5]
    x = rows @ v.T
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    ours = encoder.encode(texts).double().numpy()
    # Signs are free, so compare the cosines between texts. The solver works in float32.
    np.testing.assert_allclose(ours @ ours.T, x @ x.T, atol=1e-4)
    total = (rows - rows.mean(0)).var(0).sum()
    assert encoder.explained_variance == pytest.approx((rows @ v.T).var(0).sum() / total, rel=1e-4)


def test_embeddings_have_unit_norm_and_repeat(cache):
    pairs, rows = toy_pairs(), torch.arange(40)
    one = embed(pairs, rows, dim=8, cache=False)
    for part in one:
        assert part.shape == (60, 8) and part.dtype == torch.float32
        torch.testing.assert_close(part.norm(dim=1), torch.ones(60), rtol=1e-5, atol=0)
    two = embed(pairs, rows, dim=8, cache=False)
    assert torch.equal(one.question, two.question) and torch.equal(one.source, two.source)
    later = fit_encoder(pairs, rows, dim=8).encode(pairs.source[:3])
    torch.testing.assert_close(later, one.source[:3])


def test_the_fit_sees_training_texts_only():
    pairs, rows = toy_pairs(), torch.arange(40)
    changed = Pairs(
        (*pairs.question[:50], *(f"{q} secret" for q in pairs.question[50:])),
        (*pairs.source[:50], *(f"{s} secret" for s in pairs.source[50:])),
        pairs.topic,
        pairs.name,
    )
    one, two = embed(pairs, rows, dim=8, cache=False), embed(changed, rows, dim=8, cache=False)
    assert torch.equal(one.question, two.question) and torch.equal(one.source, two.source)
    assert (tfidf(pairs, rows).source != tfidf(changed, rows).source).nnz == 0
    assert not fit_encoder(changed, rows, dim=8).knows(["secret"]).item()
    # The questions are part of the fit: only they hold "what".
    assert fit_encoder(pairs, rows, dim=8).knows(["what"]).item()
    # And a training text does move it.
    assert not torch.equal(embed(changed, torch.arange(60), dim=8, cache=False).source, one.source)


def test_a_paragraph_with_many_questions_is_one_training_text():
    pairs = Pairs(("q a", "q b", "q c"), ("same", "same", "other"), ("t",) * 3, ("x", "y", "z"))
    assert text.training_texts(pairs, torch.arange(3)) == ["q a", "q b", "q c", "same", "other"]


def test_raw_tfidf_rows():
    pairs, rows = toy_pairs(), torch.arange(40)
    raw = tfidf(pairs, rows)
    for part in raw:
        np.testing.assert_allclose(np.sqrt(part.multiply(part).sum(1)), 1, rtol=1e-5)
    assert raw.question.shape == raw.source.shape and raw.question.shape[0] == 60


def test_names_that_are_stop_words_have_a_direction(corpus):
    encoder = fit_encoder(corpus, split(corpus, 0)["train"], dim=16)
    assert encoder.knows(["any", "all", "full", "xyzzyq"]).tolist() == [True, True, True, False]
    torch.testing.assert_close(encoder.encode(["any", "all"]).norm(dim=1), torch.ones(2))


def test_a_text_without_a_known_word_is_named():
    encoder = fit_encoder(toy_pairs(), torch.arange(40), dim=8)
    with pytest.raises(ValueError, match=r"texts\[1\] = 'zzz' shares no word with the training texts"):
        encoder.encode(["what is", "zzz"])
    with pytest.raises(ValueError, match=r"2 such texts"):
        TfidfEncoder().fit(["a b"]).encode(["", "a", "c"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: embed(p, torch.tensor([], dtype=torch.long)), "fit_on must not be empty"),
        (lambda p: embed(p, torch.tensor([0, 60])), r"fit_on must hold rows in 0\.\.59, got 0 to 60"),
        (lambda p: tfidf(p, torch.tensor([-1, 3])), "got -1 to 3"),
        (lambda p: embed(p, torch.arange(9), encoder="bert"), "encoder must be one of lsa, minilm, got 'bert'"),
        (lambda p: embed(p, torch.arange(9), dim=0), "dim must be >= 1, got 0"),
        (lambda p: embed(p, torch.arange(9), dim=18), r"dim must be < 18 \(18 texts with \d+ different words\)"),
        (lambda p: LsaEncoder(3).fit(["a b", "c d"] * 4), "dim must be <= 2, the rank"),
        (lambda p: LsaEncoder(4).encode(["a"]), "LsaEncoder is not fitted"),
        (lambda p: TfidfEncoder().encode(["a"]), "TfidfEncoder is not fitted"),
        (lambda p: TfidfEncoder().fit([]), "texts must not be empty"),
        (lambda p: TfidfEncoder().fit(["?!", "--"]), "none of the 2 holds a word"),
        (lambda p: TfidfEncoder().fit(["a"]).encode("a"), "texts must be a sequence of at least one text, got 'a'"),
        (lambda p: TfidfEncoder().fit(["a"]).encode([]), "at least one text"),
    ],
)
def test_bad_requests(call, message, cache):
    with pytest.raises(ValueError, match=message):
        call(toy_pairs())
    assert not cache.exists()


def test_embeddings_are_cached_by_content(cache, monkeypatch):
    pairs, rows = toy_pairs(), torch.arange(40)
    first = embed(pairs, rows, dim=8)
    (stored,) = cache.iterdir()
    with np.load(stored, allow_pickle=False) as arrays:
        assert set(arrays) == {"question", "source"}
    with monkeypatch.context() as patch:
        patch.setattr(text, "fit_encoder", lambda *_: pytest.fail("fitted again"))
        again = embed(pairs, rows, dim=8)
    assert torch.equal(first.question, again.question) and torch.equal(first.source, again.source)
    embed(pairs, rows, dim=9)
    embed(pairs, torch.arange(41), dim=8)
    embed(toy_pairs(61), rows, dim=8)
    assert len(list(cache.iterdir())) == 4


def test_a_pickle_in_the_cache_is_not_opened(cache):
    class Trap:
        def __reduce__(self):
            return pytest.fail, ("unpickled",)

    pairs, rows = toy_pairs(), torch.arange(40)
    first = embed(pairs, rows, dim=8)
    (stored,) = cache.iterdir()
    np.savez(stored, question=np.array([Trap()], dtype=object), source=np.zeros(2))
    with pytest.warns(RuntimeWarning, match=r"cannot be read .*allow_pickle"):
        assert torch.equal(embed(pairs, rows, dim=8).source, first.source)
    stored.write_bytes(stored.read_bytes()[:-100])
    with pytest.warns(RuntimeWarning, match="cannot be read"):
        assert torch.equal(embed(pairs, rows, dim=8).source, first.source)


# --- the optional extra
# ----------------------------------------------------------------------------------------------


@pytest.fixture
def sentence_transformers(monkeypatch, tmp_path):
    """A stand-in with the one class that the adapter calls; it records what it was asked."""
    calls = SimpleNamespace(models=[], settings=[])

    class SentenceTransformer:
        def __init__(self, model: str):
            if model.startswith("sentence-transformers/"):
                raise OSError("no network")
            calls.models.append(model)

        def encode(self, texts, **kwargs):
            calls.settings.append(kwargs)
            rows = np.array([[len(t), t.count("a") + 1.0] for t in texts], dtype=np.float64)
            return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    module = ModuleType("sentence_transformers")
    module.SentenceTransformer = SentenceTransformer
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)
    (tmp_path / "all-MiniLM-L6-v2").mkdir()
    monkeypatch.setenv("JEPA_LAB_DATA", str(tmp_path))
    return calls


def test_minilm_without_the_extra(monkeypatch, cache):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ImportError, match=r'pip install "jepa-lab\[text\]"'):
        embed(toy_pairs(), torch.arange(40), encoder="minilm")


def test_minilm_adapter(sentence_transformers, cache, tmp_path):
    pairs = toy_pairs()
    one = embed(pairs, torch.arange(40), encoder="minilm")
    assert sentence_transformers.models == [str(tmp_path / "all-MiniLM-L6-v2")]
    assert all(kwargs["normalize_embeddings"] for kwargs in sentence_transformers.settings)
    assert one.question.shape == (60, 2) and one.source.dtype == torch.float32
    # It was fitted by others: another split finds the same vectors in the cache.
    two = embed(pairs, torch.arange(7), encoder="minilm", dim=3)
    assert len(sentence_transformers.models) == 1 and torch.equal(one.source, two.source)
    encoder = fit_encoder(pairs, torch.arange(40), encoder="minilm")
    assert encoder.knows(["xyzzyq"]).tolist() == [True]


def test_minilm_model_that_is_nowhere(sentence_transformers, monkeypatch):
    monkeypatch.delenv("JEPA_LAB_DATA")
    with pytest.raises(OSError, match=r"not on this machine and could not be downloaded \(no network\)"):
        MiniLmEncoder()
    assert MiniLmEncoder("/a/folder") is not None and sentence_transformers.models == ["/a/folder"]


def test_known_encoders_are_built():
    assert text_encoders.ENCODERS == ("lsa", "minilm")
    assert isinstance(text_encoders.build_text_encoder("lsa", 7), LsaEncoder)
