"""From a text to one vector: a projection of a frozen embedding, a bag of trainable word vectors, a small transformer.

Each is called as `encoder(text, weight)` and has a width `dim`. A text is either a vector (of an encoder that is not
trained) or a row of word numbers with weights, 0 where the row is padded.

Book: chapter 14.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from jepa_lab.nets import Transformer, masked_mean, sincos_1d

BASES, NETS, STARTS, SHAPES = (
    ("frozen", "scratch"),
    ("bag", "transformer"),
    ("lsa", "random"),
    ("simple", "deep", "residual"),
)


@dataclass(frozen=True)
class TextEncoderConfig:
    """`base`: `frozen` embeddings of the data under a trainable projection to `dim`, or an encoder trained from
    `scratch` on the words. `net`: a `bag` of word vectors, weighted as TF-IDF does, or a `transformer` of `width`,
    `depth` and `heads` over the first `max_words` words. `start` of the bag's word vectors: the directions of `lsa`,
    with which the encoder is LSA to begin with (`dim` is then that of the data), or `random` ones."""

    base: Literal["frozen", "scratch"] = "frozen"
    net: Literal["bag", "transformer"] = "bag"
    start: Literal["lsa", "random"] = "random"
    dim: int = 512
    width: int = 64
    depth: int = 2
    heads: int = 2
    max_words: int = 64

    def __post_init__(self):
        for name, known in {"base": BASES, "net": NETS, "start": STARTS}.items():
            if getattr(self, name) not in known:
                raise ValueError(f"encoder.{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        for name in ("dim", "width", "depth", "heads", "max_words"):
            if getattr(self, name) < 1:
                raise ValueError(f"encoder.{name} must be at least 1, got {getattr(self, name)}")
        if self.start == "lsa" and (self.base, self.net) != ("scratch", "bag"):
            raise ValueError("encoder.start=lsa is for base=scratch and net=bag; use start=random")
        if self.width % self.heads or self.width % 2:
            raise ValueError(f"encoder.width must be even and a multiple of heads={self.heads}, got {self.width}")

    @property
    def words(self) -> Literal["none", "weighted", "ordered"]:
        """What the encoder reads: vectors (`none`), words with TF-IDF weights, or words in their order."""
        if self.base == "frozen":
            return "none"
        return "weighted" if self.net == "bag" else "ordered"


class Projection(nn.Module):
    """A linear map of a frozen embedding. It starts orthogonal: where dim >= dim_in, all cosines are those of the
    embeddings until the first step.

    Shapes: [..., dim_in] -> [..., dim].
    Book: chapter 14.
    """

    def __init__(self, dim_in: int, dim: int = 512):
        super().__init__()
        self.dim, self.linear = dim, nn.Linear(dim_in, dim)
        nn.init.orthogonal_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, text: Float[Tensor, "*rest E"], weight: None = None) -> Float[Tensor, "*rest D"]:
        return self.linear(text)


class WordBag(nn.Module):
    """The weighted sum of the vectors of a text's words, in any order: x = sum_w weight_w v_w.

    With TF-IDF weights and the right singular vectors for v it is LSA, and may leave it in training.

    Shapes: text Int[..., L] word numbers, weight [..., L], 0 = padding -> [..., D].
    Raises: ValueError for fewer than 1 word, or a `start` of another shape than [words, dim].
    Book: chapter 14.
    """

    def __init__(self, words: int, dim: int = 256, start: Float[Tensor, "V D"] | None = None):
        super().__init__()
        if words < 1:
            raise ValueError(f"words must be at least 1, got {words}")
        if start is not None and tuple(start.shape) != (words, dim):
            raise ValueError(f"start must hold a vector for each word, [{words}, {dim}], got {tuple(start.shape)}")
        self.dim = dim
        # A text of weights at unit length then has a norm of about 1, as with the directions of LSA.
        self.vectors = nn.Parameter(torch.randn(words, dim) * dim**-0.5 if start is None else start.clone())

    def forward(self, text: Int[Tensor, "*rest L"], weight: Float[Tensor, "*rest L"]) -> Float[Tensor, "*rest D"]:
        real = weight != 0
        lengths = real.reshape(-1, real.shape[-1]).sum(1)
        starts = lengths.cumsum(0) - lengths
        # Only the real words are visited: half of a padded batch of bodies, or more, is padding.
        bag = F.embedding_bag(text[real], self.vectors, starts, mode="sum", per_sample_weights=weight[real])
        return bag.view(*text.shape[:-1], self.dim)


class WordTransformer(nn.Module):
    """Word vectors and codes of their places, a transformer, the mean over the words, and a linear map to `dim`.

    Shapes: text Int[..., L] word numbers in the order of the text, weight [..., L], 0 = padding -> [..., D].
    Book: chapter 14.
    """

    def __init__(self, words: int, dim: int, width: int = 64, depth: int = 2, heads: int = 2):
        super().__init__()
        self.dim = dim
        self.vectors = nn.Parameter(torch.randn(words, width))  # as large as the codes of the places
        self.transformer = Transformer(width, depth, heads)
        self.out = nn.Linear(width, dim)

    def forward(self, text: Int[Tensor, "*rest L"], weight: Float[Tensor, "*rest L"]) -> Float[Tensor, "*rest D"]:
        ids, valid = text.reshape(-1, text.shape[-1]), (weight != 0).reshape(-1, text.shape[-1])
        x = F.embedding(ids, self.vectors)
        place = torch.arange(ids.shape[1], device=ids.device).float()
        x = x + sincos_1d(place, x.shape[-1]).to(x.dtype)
        h = masked_mean(self.transformer(x, valid), valid)
        return self.out(h).view(*text.shape[:-1], self.dim)


def build_text_encoder(
    config: TextEncoderConfig, dim_in: int, words: int = 0, start: Float[Tensor, "V D"] | None = None
) -> Projection | WordBag | WordTransformer:
    """The encoder that a configuration describes. `dim_in` is the width of the frozen embeddings, `words` the size of
    the vocabulary, `start` the word vectors of LSA [words, dim_in].

    Raises: ValueError for start=lsa with another `dim` than `dim_in`, or without `start`.
    """
    if config.base == "frozen":
        return Projection(dim_in, config.dim)
    if config.net == "transformer":
        return WordTransformer(words, config.dim, config.width, config.depth, config.heads)
    if config.start == "random":
        return WordBag(words, config.dim)
    if config.dim != dim_in or start is None:
        raise ValueError(f"encoder.start=lsa needs encoder.dim={dim_in}, the width of LSA (data.dim), got {config.dim}")
    return WordBag(words, config.dim, start)


@dataclass(frozen=True)
class RetrievalPredictorConfig:
    """`shape`: `simple`, one hidden layer of twice the width; `deep`, three of them; `residual`, q + f(q) with f simple
    and zero at first, so that the predictor begins by predicting that source and question lie at one place."""

    shape: Literal["simple", "deep", "residual"] = "simple"
    dropout: float = 0.1

    def __post_init__(self):
        if self.shape not in SHAPES:
            raise ValueError(f"predictor.shape must be one of {', '.join(SHAPES)}, got {self.shape!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"predictor.dropout must lie in [0, 1), got {self.dropout}")


class RetrievalPredictor(nn.Module):
    """Where does the embedding of the source lie, given that of the question?

    Shapes: [..., D] -> [..., D].
    Book: chapter 14.
    """

    def __init__(self, dim: int, config: RetrievalPredictorConfig | None = None):
        super().__init__()
        self.config = config = config or RetrievalPredictorConfig()
        layers: list[nn.Module] = []
        for i in range(3 if config.shape == "deep" else 1):
            layers += [nn.Linear(2 * dim if i else dim, 2 * dim), nn.GELU(), nn.Dropout(config.dropout)]
        last = nn.Linear(2 * dim, dim)
        if config.shape == "residual":
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        self.net = nn.Sequential(*layers, last)

    def forward(self, q: Float[Tensor, "*rest D"]) -> Float[Tensor, "*rest D"]:
        p = self.net(q)
        return q + p if self.config.shape == "residual" else p
