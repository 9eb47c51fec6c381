"""Which text answers which question? Pairs of docstring summary and docstring body, or of question and paragraph.

A pair also has a topic, and names repeat from topic to topic ("Linear" is a layer, a model and a kernel): the topic is
what a steering signal can add to a question.

Book: chapter 12.
"""

import hashlib
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import coo_array, csr_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from jepa_lab.data import docstrings, text_encoders
from jepa_lab.data.docstrings import PACKAGES, harvest, python_files, select
from jepa_lab.data.images import stratified_order
from jepa_lab.data.squad import read_squad
from jepa_lab.data.text_encoders import TextEncoder, TfidfEncoder, build_text_encoder, check_encoder, name_to_words
from jepa_lab.files import cached

__all__ = [
    "CORPUS_SHA256", "PACKAGES", "Embedded", "Pairs", "Tfidf", "docstring_pairs", "embed", "fit_encoder",
    "name_to_words", "split", "squad_pairs", "tfidf", "training_texts",
]  # fmt: skip

# Pairs.hash of docstring_pairs() with the versions of constraints.txt: a changed pin changes every number of the book.
CORPUS_SHA256 = "99b0905c2264878b16bd8de66eae3487d6c9df73eeed851dadd17714f327e079"

SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}
SPLITS = ("pair", "topic", "package")


@dataclass(frozen=True)
class Pairs:
    """Equally long columns of text; row i says that `source[i]` answers `question[i]`.

    Raises: ValueError if the columns differ in length or are empty, or a text is.
    Book: chapter 12.
    """

    question: tuple[str, ...]  # a docstring's summary
    source: tuple[str, ...]  # a docstring's body, without the summary
    topic: tuple[str, ...]  # "scipy.linalg"
    name: tuple[str, ...]  # "null_space"; the question's id in SQuAD files

    def __post_init__(self) -> None:
        columns = asdict(self)
        sizes = {key: len(column) for key, column in columns.items()}
        if len(set(sizes.values())) != 1 or not self.question:
            raise ValueError(f"the columns of Pairs must be equally long and not empty, got {sizes}")
        for key, column in columns.items():
            for row, text in enumerate(column):
                if not text.strip():
                    raise ValueError(f"{key}[{row}] is an empty text; leave that pair out")

    def __len__(self) -> int:
        return len(self.question)

    def take(self, index: Int[Tensor, " m"] | Sequence[int]) -> "Pairs":
        """The pairs of these rows, in this order."""
        rows = torch.as_tensor(index).tolist()
        return Pairs(*(tuple(getattr(self, field.name)[row] for row in rows) for field in fields(self)))

    @cached_property
    def hash(self) -> str:
        """The sha256 over all texts."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    @cached_property
    def topics(self) -> tuple[str, ...]:
        """The distinct topics, sorted."""
        return tuple(sorted(set(self.topic)))

    @cached_property
    def package(self) -> tuple[str, ...]:
        """The package of each pair, the part of its topic before the first dot."""
        return tuple(topic.partition(".")[0] for topic in self.topic)

    @cached_property
    def topic_index(self) -> Int[Tensor, " n"]:
        """For each pair the place of its topic in `topics`."""
        return _places(self.topic, self.topics)

    @cached_property
    def pool(self) -> tuple[Int[Tensor, " m"], Int[Tensor, " n"]]:
        """Rows of the m distinct sources, and for each pair the place of its source among them.

        Several questions share a paragraph in SQuAD files: rank the m paragraphs, not n copies, or the right answer
        competes with itself. With docstrings, whose bodies all differ, both are 0 ... n - 1.
        """
        first: dict[str, int] = {}
        for row, text in enumerate(self.source):
            first.setdefault(text, row)
        return torch.tensor(list(first.values())), _places(self.source, tuple(first))


def _places(texts: Sequence[str], distinct: Sequence[str]) -> Int[Tensor, " n"]:
    place = {text: i for i, text in enumerate(distinct)}
    return torch.tensor([place[text] for text in texts])


def docstring_pairs(
    min_pairs: int = 20, max_pairs: int = 120, packages: Sequence[str] = PACKAGES, cache: bool = True
) -> Pairs:
    """Pairs of summary and body from the docstrings of installed packages; topic = package.subpackage.

    Topics with fewer than `min_pairs` are dropped, larger ones than `max_pairs` are cut (`docstrings.select` says how).
    Parsing takes some core-seconds; the outcome is kept in the folder of the environment variable JEPA_LAB_CACHE (else
    `~/.cache/jepa_lab`), under a name made of the parsed files, the rules and the arguments.

    Raises: ValueError unless 1 <= min_pairs <= max_pairs, or if no topic is large enough; ImportError naming a package
        that is not installed.
    Book: chapter 12.
    """
    files = [item for package in sorted(set(packages)) for item in python_files(package)]

    def parse() -> Pairs:
        chosen = select(harvest(files), min_pairs, max_pairs)
        if not chosen:
            raise ValueError(f"no topic of packages={tuple(packages)} has min_pairs={min_pairs} documented objects")
        return Pairs(*zip(*((entry.summary, entry.body, entry.topic, entry.name) for entry in chosen), strict=True))

    if not cache:
        return parse()
    stats = [(module, path.stat().st_size, path.stat().st_mtime_ns) for module, path in files]
    key = _key(stats, _code(docstrings), sys.version_info[:2], min_pairs, max_pairs)
    return cached(f"docstrings-{key}.json", parse, _dump_pairs, _load_pairs)


def _key(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:20]


def _code(module: ModuleType) -> str:
    """The code itself is part of a cache's name: a rule that changed must not find what the old one made."""
    return hashlib.sha256(Path(module.__file__).read_bytes()).hexdigest()


def _dump_pairs(pairs: Pairs) -> bytes:
    return json.dumps({"hash": pairs.hash, "pairs": asdict(pairs)}).encode()


def _load_pairs(content: bytes) -> Pairs:
    stored = json.loads(content)
    pairs = Pairs(**{key: tuple(column) for key, column in stored["pairs"].items()})
    if pairs.hash != stored["hash"]:
        raise ValueError(f"the texts have the hash {pairs.hash}, expected {stored['hash']}")
    return pairs


def squad_pairs(root: str | Path | None = None, name: str = "xquad-en/xquad.en.json") -> Pairs:
    """Pairs of question and paragraph from a SQuAD v1.1 file `root/name`; topic = the title of the article.

    `root` defaults to the environment variable JEPA_LAB_DATA. Several questions share a paragraph: rank the paragraphs
    of `Pairs.pool`.

    Raises: FileNotFoundError naming the public home page and the folder looked in; ValueError if the file is damaged or
        has another schema.
    Paper: Rajpurkar et al., SQuAD, EMNLP 2016, arXiv:1606.05250; Artetxe et al., XQuAD, ACL 2020, arXiv:1910.11856.
    Book: chapter 12.
    """
    return Pairs(*zip(*read_squad(root, name), strict=True))


def split(pairs: Pairs, seed: int, by: str = "pair") -> dict[str, Int[Tensor, " m"]]:
    """Rows of "train", "validation" and "test": 70, 10 and 20 % of the pairs, sorted.

    by="pair" cuts every topic in these shares. by="topic" gives whole topics away, so that the topics of the test are
    new, by="package" whole packages; the shares are met as well as these allow. Pairs with the same source never stand
    in two parts: by "pair" all questions about one paragraph stay together, otherwise two topics that share a source.

    Raises: ValueError if `by` is another word, or there are too few sources, topics or packages to fill three parts.
    Book: chapters 12, 14.
    """
    if by not in SPLITS:
        raise ValueError(f"by must be one of {', '.join(SPLITS)}, got {by!r}")
    rows, source = pairs.pool
    group = source if by == "pair" else _linked(pairs, pairs.topic if by == "topic" else pairs.package)
    n_groups = int(group.max()) + 1
    strata = pairs.topic_index[rows] if by == "pair" else torch.zeros(n_groups, dtype=torch.long)
    order = stratified_order(strata, seed)
    size = group.bincount(minlength=n_groups)[order]
    middle = (size.cumsum(0) - size / 2) / len(pairs)  # a group goes where its middle falls
    part = torch.empty(n_groups, dtype=torch.long)
    part[order] = torch.bucketize(middle, torch.tensor([SHARES["train"], SHARES["train"] + SHARES["validation"]]))
    index = {name: (part[group] == i).nonzero()[:, 0] for i, name in enumerate(SHARES)}
    empty = [name for name, members in index.items() if len(members) == 0]
    if empty:
        what = {"pair": "sources", "topic": "topics", "package": "packages"}[by]
        raise ValueError(f"pairs: {n_groups} separate {what} are too few, nothing is left for {', '.join(empty)}")
    return index


def _linked(pairs: Pairs, name: Sequence[str]) -> Int[Tensor, " n"]:
    """The group of each pair: names (of topics or packages) that share a source belong to one group."""
    distinct = tuple(sorted(set(name)))
    named, source = _places(name, distinct).numpy(), pairs.pool[1].numpy()
    n = len(distinct) + int(source.max()) + 1
    links = coo_array((np.ones(len(pairs)), (named, source + len(distinct))), shape=(n, n))
    # The first nodes are the names, so the groups are numbered in their order.
    return torch.from_numpy(connected_components(links, directed=False)[1][named]).long()


class Embedded(NamedTuple):
    """Row i embeds pair i; unit norm, float32."""

    question: Float[Tensor, "n D"]
    source: Float[Tensor, "n D"]


class Tfidf(NamedTuple):
    """Row i is pair i; sparse, unit norm."""

    question: csr_matrix
    source: csr_matrix


def embed(
    pairs: Pairs, fit_on: Int[Tensor, " m"], encoder: str = "lsa", dim: int = 256, cache: bool = True
) -> Embedded:
    """Embed all questions and sources with an encoder that was fitted on the pairs `fit_on` alone.

    encoder="lsa" is TF-IDF and a truncated SVD of width `dim`; "minilm" needs the extra `[text]` and has its own width.
    The result is cached as `docstring_pairs` caches the texts. `fit_encoder` with the same arguments is the same
    encoder, for texts that come later.

    Shapes: -> question [n, D], source [n, D], unit norm.
    Raises: ValueError if fit_on is empty or out of range, the encoder is unknown, or dim exceeds the rank; ImportError
        if the extra is missing.
    Book: chapter 12.
    """
    check_encoder(encoder, dim)
    training_texts(pairs, fit_on)  # bad rows are refused here, not only where the cache holds nothing

    def make() -> Embedded:
        fitted = fit_encoder(pairs, fit_on, encoder, dim)
        return Embedded(fitted.encode(pairs.question), fitted.encode(pairs.source))

    if not cache:
        return make()
    import sklearn

    fit = (fit_on.tolist(), dim, sklearn.__version__, np.__version__) if encoder == "lsa" else ()
    key = _key(pairs.hash, encoder, fit, _code(text_encoders))
    return cached(f"embedded-{key}.npz", make, _dump_embedded, _load_embedded)


def fit_encoder(pairs: Pairs, fit_on: Int[Tensor, " m"], encoder: str = "lsa", dim: int = 256) -> TextEncoder:
    """The encoder that `embed` uses, fitted on the pairs `fit_on`: its `encode` takes what a reader types.

    Raises: as `embed`.
    Book: chapter 12.
    """
    return build_text_encoder(encoder, dim).fit(training_texts(pairs, fit_on))


def training_texts(pairs: Pairs, fit_on: Int[Tensor, " m"]) -> list[str]:
    """What an encoder may see before it meets the test: summaries and bodies of the training pairs.

    Raises: ValueError if fit_on is empty or out of range.
    Book: chapter 12.
    """
    if len(fit_on) == 0:
        raise ValueError("fit_on must not be empty: pass the rows of the training split")
    if not (fit_on.min() >= 0 and fit_on.max() < len(pairs)):
        raise ValueError(
            f"fit_on must hold rows in 0..{len(pairs) - 1}, got {int(fit_on.min())} to {int(fit_on.max())}"
        )
    rows = fit_on.tolist()
    # A paragraph with five questions is one text: its words must not count five times.
    return [pairs.question[row] for row in rows] + list(dict.fromkeys(pairs.source[row] for row in rows))


def tfidf(pairs: Pairs, fit_on: Int[Tensor, " m"]) -> Tfidf:
    """Raw TF-IDF rows of all questions and sources, with words and weights from the pairs `fit_on` alone.

    Raises: ValueError if fit_on is empty or out of range.
    Book: chapter 12.
    """
    encoder = TfidfEncoder().fit(training_texts(pairs, fit_on))
    return Tfidf(encoder.encode(pairs.question), encoder.encode(pairs.source))


def _dump_embedded(embedded: Embedded) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, question=embedded.question.numpy(), source=embedded.source.numpy())
    return buffer.getvalue()


def _load_embedded(content: bytes) -> Embedded:
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        return Embedded(torch.from_numpy(stored["question"]), torch.from_numpy(stored["source"]))
