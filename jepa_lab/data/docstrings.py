"""What do the docstrings of installed packages say? Parsed with `ast`: nothing is imported, nothing runs.

An entry is one public function, class or method: the first paragraph of its docstring, the rest, and the
subpackage that it stands in. The same versions of the packages give the same entries, in the same order, on every
machine.

Book: chapter 12.
"""

import ast
import gc
import hashlib
import importlib.util
import inspect
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

# Packages that a plain install of jepa_lab brings, pinned in constraints.txt. Never the standard library: its
# docstrings change with the version of Python.
PACKAGES = (
    "IPython", "PIL", "fsspec", "ipywidgets", "matplotlib", "mpmath", "networkx", "numpy", "scipy", "sklearn", "torch",
)  # fmt: skip

# Folders and files that are not part of what a package offers: tests, copies of other packages, and what only some
# builds of the same version hold (numpy.distutils exists up to Python 3.11).
SKIPPED_FOLDERS = {"tests", "test", "externals", "extern", "vendor", "vendored", "third_party", "distutils"}
SKIPPED_FILES = re.compile(r"test_.*|.*_test|conftest|setup|version|__(?!init__).*")
PRIVATE_BUT_PUBLIC = {"_core"}  # numpy keeps the code of its top level in numpy._core

MIN_SUMMARY_WORDS = 3
MIN_BODY_WORDS = 20
REPEATED = 200  # bodies that agree in so many first characters count as one

SIGNATURE = re.compile(r"(?:\w+\.)*(\w+)\s*\(.*\)(?:\s*->.*)?", re.DOTALL)


class Entry(NamedTuple):
    """The docstring of one public object; the fields are in the order in which entries are sorted."""

    topic: str  # "scipy.linalg"
    path: str  # "null_space", "Linear.forward"
    summary: str
    body: str

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]


def package_folder(package: str) -> Path:
    """Where a package lies, found without importing it.

    Raises: ImportError naming the package if it is not installed or is a single file.
    Book: chapter 12.
    """
    spec = importlib.util.find_spec(package) if "." not in package else None
    if spec is None or spec.origin is None or not spec.submodule_search_locations:
        raise ImportError(
            f"packages: {package!r} is not an installed package; pip install it (a plain install of jepa_lab brings "
            f"all of {', '.join(PACKAGES)}), or leave it out of packages"
        )
    return Path(spec.origin).parent


def python_files(package: str) -> list[tuple[str, Path]]:
    """The files of a package whose every *folder* is public, each with its dotted name; sorted.

    The file itself may be private: scikit-learn and SciPy keep most of their public objects in such files.

    Raises: ImportError as `package_folder`.
    Book: chapter 12.
    """
    root = package_folder(package)
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [
            name
            for name in folders
            if name not in SKIPPED_FOLDERS and (not name.startswith("_") or name in PRIVATE_BUT_PUBLIC)
        ]
        dotted = ".".join((package, *Path(folder).relative_to(root).parts))
        for name in files:
            stem, suffix = os.path.splitext(name)
            if suffix == ".py" and not SKIPPED_FILES.fullmatch(stem):
                found.append((dotted if stem == "__init__" else f"{dotted}.{stem}", Path(folder, name)))
    return sorted(found)


def topic_of(module: str) -> str:
    """package.subpackage of a dotted module name; a private file at the top level belongs to the package itself."""
    first, *rest = module.split(".")
    private = not rest or (rest[0].startswith("_") and rest[0] not in PRIVATE_BUT_PUBLIC)
    return first if private else f"{first}.{rest[0]}"


def harvest(files: Iterable[tuple[str, Path]]) -> list[Entry]:
    """The entries of all files.

    Book: chapter 12.
    """
    # A syntax tree is a hundred thousand objects without a cycle. The collector would visit them, and everything that
    # is imported, again and again: without these lines the corpus takes two and a half times as long.
    collects = gc.isenabled()
    gc.disable()
    try:
        return [entry for module, path in files for entry in read_entries(module, path.read_bytes())]
    finally:
        if collects:
            gc.enable()


def read_entries(module: str, source: bytes) -> Iterator[Entry]:
    """The entries of one file: its public functions and classes, and the public methods of these.

    Book: chapter 12.
    """
    # A docstring with a body spans lines, so it has triple quotes. A fifth of the files are skipped here, unparsed.
    if b'"""' not in source and b"'''" not in source:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            tree = ast.parse(source)
    except (SyntaxError, ValueError) as error:  # a template, or a null byte
        warnings.warn(f"{module} is left out of the corpus, it is not Python: {error}", RuntimeWarning, stacklevel=2)
        return
    yield from _walk(tree, topic_of(module), "")


def _walk(node: ast.Module | ast.ClassDef, topic: str, prefix: str) -> Iterator[Entry]:
    for child in node.body:
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or child.name.startswith("_"):
            continue
        docstring = ast.get_docstring(child, clean=False)
        if docstring:
            summary, body = split_docstring(docstring, child.name)
            if len(summary.split()) >= MIN_SUMMARY_WORDS and len(body.split()) >= MIN_BODY_WORDS:
                yield Entry(topic, prefix + child.name, summary, body)
        if isinstance(child, ast.ClassDef):
            yield from _walk(child, topic, f"{prefix}{child.name}.")


def split_docstring(docstring: str, name: str) -> tuple[str, str]:
    """The first paragraph as one line, and the rest. A first paragraph that is the signature `name(...)` is dropped.

    Book: chapter 12.
    """
    paragraphs = re.split(r"\n\s*\n", inspect.cleandoc(docstring), maxsplit=2)
    call = SIGNATURE.fullmatch(paragraphs[0])
    if call and call[1] == name and len(paragraphs) > 1:
        paragraphs = paragraphs[1:]  # it holds the name that the reader is to search for, and nothing else
    summary, *rest = paragraphs
    lines = (line.rstrip() for line in "\n\n".join(rest).split("\n"))
    return " ".join(summary.split()), "\n".join(lines).strip("\n")


def select(entries: Iterable[Entry], min_pairs: int, max_pairs: int) -> list[Entry]:
    """Drop repeats and small topics, cut large ones; the outcome does not depend on the order of `entries`.

    In sorted order the first of several equal bodies (in their first 200 characters, white space aside) stays, and
    the first of several equal summaries in one topic. Of a topic with more than `max_pairs` those stay whose
    sha256 of "topic/path/summary" is smallest: a draw that no seed and no file order moves.

    Raises: ValueError if 1 <= min_pairs <= max_pairs does not hold.
    Book: chapter 12.
    """
    if not 1 <= min_pairs <= max_pairs:
        raise ValueError(f"need 1 <= min_pairs <= max_pairs, got min_pairs={min_pairs}, max_pairs={max_pairs}")
    bodies: set[str] = set()
    summaries: set[tuple[str, str]] = set()
    distinct = []
    for entry in sorted(set(entries)):
        body, summary = " ".join(entry.body.split())[:REPEATED], (entry.topic, entry.summary)
        if body not in bodies and summary not in summaries:
            bodies.add(body)
            summaries.add(summary)
            distinct.append(entry)
    size = Counter(entry.topic for entry in distinct)
    kept = Counter()
    chosen = []
    for entry in sorted(distinct, key=_draw):
        if size[entry.topic] >= min_pairs and kept[entry.topic] < max_pairs:
            kept[entry.topic] += 1
            chosen.append(entry)
    return sorted(chosen)


def _draw(entry: Entry) -> bytes:
    return hashlib.sha256(f"{entry.topic}/{entry.path}/{entry.summary}".encode()).digest()
