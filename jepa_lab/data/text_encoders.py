"""Where does a text lie? TF-IDF with a truncated SVD (LSA), or a sentence encoder from outside, behind one interface.

`fit` sees training texts only; `encode` takes any text afterwards, also one that a reader types.

Book: chapter 12.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.sparse import csr_matrix
from torch import Tensor

ENCODERS = ("lsa", "minilm")
MINILM = "sentence-transformers/all-MiniLM-L6-v2"

# Letters or digits in a row, so that `null_space` meets "null space". One-letter words and stop words stay: the names
# `any` and `all` would have no vector without them.
WORD = r"(?u)[^\W_]+"


def name_to_words(name: str) -> str:
    """The words of an identifier: "null_space" -> "null space", "BatchNorm2d" -> "batch norm 2d".

    Book: chapter 12.
    """
    return " ".join(re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+[a-z]*", name.replace("_", " "))).lower()


class TfidfEncoder:
    """Sparse unit rows t / ||t|| with one column a word, for a word that stands c > 0 times in the text

        t = (1 + ln c) (1 + ln((1 + n) / (1 + n_word))),   n texts were fitted, n_word of them hold the word.

    Raw counts in place of 1 + ln c would let the parameter that a body names twenty times outweigh what it is about.

    Shapes: n texts -> sparse [n, words], float32.
    Paper: Salton and Buckley, Term-weighting approaches in automatic text retrieval, IPM 1988.
    Book: chapter 12.
    """

    def fit(self, texts: Sequence[str]) -> "TfidfEncoder":
        """Learn the vocabulary and the weights of its words.

        Raises: ValueError if there are no texts, or none holds a word.
        """
        from sklearn.feature_extraction.text import TfidfVectorizer

        if len(texts) == 0:
            raise ValueError("texts must not be empty: there is nothing to fit on")
        self.vectorizer = TfidfVectorizer(token_pattern=WORD, sublinear_tf=True, dtype=np.float32)
        try:
            self.vectorizer.fit(texts)
        except ValueError as error:
            raise ValueError(f"texts: none of the {len(texts)} holds a word ({error})") from error
        return self

    def knows(self, texts: Sequence[str]) -> Bool[Tensor, " n"]:
        """Which texts share a word with the training texts; `encode` refuses the others."""
        return torch.from_numpy(np.diff(self._rows(texts).indptr) > 0)

    def encode(self, texts: Sequence[str]) -> csr_matrix:
        """Raises: ValueError naming a text without a known word: it has no direction."""
        rows = self._rows(texts)
        _check_directions(np.diff(rows.indptr) > 0, texts)
        return rows

    def _rows(self, texts: Sequence[str]) -> csr_matrix:
        if isinstance(texts, str) or len(texts) == 0:
            raise ValueError(f"texts must be a sequence of at least one text, got {texts!r}")
        return csr_matrix(_fitted(self, "vectorizer").transform(texts))


class LsaEncoder:
    """Latent semantic analysis: x = V^T t / ||V^T t||, V the first `dim` right singular vectors of the TF-IDF rows.

    Shapes: n texts -> [n, dim], unit norm, float32.
    Raises: ValueError if dim < 1.
    Paper: Deerwester et al., Indexing by Latent Semantic Analysis, JASIS 1990.
    Book: chapter 12.
    """

    def __init__(self, dim: int = 256):
        check_encoder("lsa", dim)
        self.dim = dim

    def fit(self, texts: Sequence[str]) -> "LsaEncoder":
        """Learn words, weights and directions.

        Raises: ValueError as `TfidfEncoder.fit`, or if dim is larger than the rank that so many texts and words allow.
        """
        from sklearn.decomposition import TruncatedSVD

        self.tfidf = TfidfEncoder().fit(texts)
        rows = self.tfidf.encode(texts)
        if self.dim >= min(rows.shape):
            raise ValueError(
                f"dim must be < {min(rows.shape)} ({rows.shape[0]} texts with {rows.shape[1]} different words), "
                f"got {self.dim}"
            )
        # The default solver is a randomised one, and the spectrum of text is flat: its directions depend on the seed.
        # This one is exact; the seed is where its iteration starts, and the signs are fixed inside.
        self.svd = TruncatedSVD(self.dim, algorithm="arpack", random_state=0).fit(rows)
        strength = self.svd.singular_values_
        rank = int((strength > 1e-5 * strength[0]).sum())
        if rank < self.dim:  # further directions would be noise of the solver
            raise ValueError(f"dim must be <= {rank}, the rank of the TF-IDF rows of these texts, got {self.dim}")
        return self

    @property
    def explained_variance(self) -> float:
        """The share of the variance of the fitted TF-IDF rows that the directions keep."""
        return float(_fitted(self, "svd").explained_variance_ratio_.sum())

    def knows(self, texts: Sequence[str]) -> Bool[Tensor, " n"]:
        """Which texts share a word with the training texts; `encode` refuses the others."""
        return _fitted(self, "tfidf").knows(texts)

    def encode(self, texts: Sequence[str]) -> Float[Tensor, "n D"]:
        """Raises: ValueError naming a text without a known word: it has no direction."""
        x = torch.from_numpy(_fitted(self, "svd").transform(self.tfidf.encode(texts))).float()
        norm = x.norm(dim=1, keepdim=True)
        _check_directions((norm[:, 0] > 1e-6).numpy(), texts)
        return x / norm


class MiniLmEncoder:
    """A sentence encoder that others trained, through the optional extra `[text]`; `fit` changes nothing.

    `model` is a folder or a public name. By default it is the folder `all-MiniLM-L6-v2` below the environment variable
    JEPA_LAB_DATA where that exists, else the public model of that name, which is downloaded at first use (90 MB).

    Shapes: n texts -> [n, 384], unit norm, float32.
    Raises: ImportError naming the extra if sentence-transformers is not installed; OSError if there is no such model.
    Paper: Wang et al., MiniLM, NeurIPS 2020, arXiv:2002.10957.
    Book: chapter 12.
    """

    def __init__(self, model: str | Path | None = None):
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise ImportError(
                'encoder "minilm" needs sentence-transformers: pip install "jepa-lab[text]", or use encoder="lsa"'
            ) from error
        folder = Path(os.environ.get("JEPA_LAB_DATA", ""), MINILM.rpartition("/")[2])
        model = str(model or (folder if folder.is_dir() else MINILM))
        try:
            self.model = SentenceTransformer(model)
        except OSError as error:
            raise OSError(
                f"model {model!r} is not on this machine and could not be downloaded ({error}); pass MiniLmEncoder the "
                'folder of a copy, or use encoder="lsa"'
            ) from error

    def fit(self, texts: Sequence[str]) -> "MiniLmEncoder":
        """Nothing to learn: other texts have done that."""
        return self

    def knows(self, texts: Sequence[str]) -> Bool[Tensor, " n"]:
        """All of them: unknown words are cut into known pieces."""
        return torch.ones(len(texts), dtype=torch.bool)

    def encode(self, texts: Sequence[str]) -> Float[Tensor, "n D"]:
        rows = self.model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)
        return torch.as_tensor(np.asarray(rows, dtype=np.float32))


def check_encoder(encoder: str, dim: int) -> None:
    """Raises: ValueError naming the known encoders, or if dim < 1."""
    if encoder not in ENCODERS:
        raise ValueError(f"encoder must be one of {', '.join(ENCODERS)}, got {encoder!r}")
    if dim < 1:
        raise ValueError(f"dim must be >= 1, got {dim}")


TextEncoder = LsaEncoder | MiniLmEncoder


def build_text_encoder(encoder: str, dim: int = 256) -> TextEncoder:
    """The encoder of that name; `dim` is the width of "lsa", "minilm" has its own.

    Raises: as `check_encoder`; ImportError if the extra `[text]` is missing.
    Book: chapter 12.
    """
    check_encoder(encoder, dim)
    return LsaEncoder(dim) if encoder == "lsa" else MiniLmEncoder()


def _fitted(encoder: object, part: str):
    if not hasattr(encoder, part):
        raise ValueError(f"{type(encoder).__name__} is not fitted: call fit(texts) with the training texts first")
    return getattr(encoder, part)


def _check_directions(known: np.ndarray, texts: Sequence[str]) -> None:
    if not known.all():
        row = int(np.flatnonzero(~known)[0])
        raise ValueError(
            f"texts[{row}] = {texts[row][:60]!r} shares no word with the training texts, so it has no direction "
            f"({int((~known).sum())} such texts)"
        )
