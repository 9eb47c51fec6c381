"""What JEPA and the masked autoencoder share: the mask, the encoding of what is seen, the questions about the rest.

Both call the same functions. What is left to differ is the target, and the width of the answer.

Book: chapters 01, 03, 08.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor

from jepa_lab.distributed import gather, own
from jepa_lab.masking import Mask, MaskConfig, take_visible
from jepa_lab.nets import TokenEncoder
from jepa_lab.predictors import MaskedTokenPredictor
from jepa_lab.tokens import Series, Tokens, gather_tokens


@dataclass(frozen=True)
class PredictorConfig:
    """The predictor's own width, depth, heads, MLP width (`mlp_ratio` x width) and dropout; usually narrower than the
    encoder. The decoder of a masked autoencoder is the same network with another head."""

    width: int = 64
    depth: int = 2
    heads: int = 2
    mlp_ratio: float = 2.0
    dropout: float = 0.0

    def build(self, dim: int, dim_out: int | None = None) -> MaskedTokenPredictor:
        """A predictor on an encoder of width `dim` whose answers have width `dim_out` (default: the same)."""
        return MaskedTokenPredictor(
            dim, self.width, self.depth, self.heads, self.mlp_ratio, dim_out=dim_out, dropout=self.dropout
        )


class Seen(NamedTuple):
    """What the context encoder saw, and says about it.

    Shapes:
        h: [B, K, D], the context encoder's outputs.
        valid: Bool[B, K].
        query: [B, K, D], where the seen tokens are.
    """

    h: Tensor
    valid: Tensor
    query: Tensor


class Answers(NamedTuple):
    """What the predictor says about the hidden tokens, and what the context encoder saw.

    Shapes:
        prediction: [B M, L, R], zeros where padded.
        asked: Bool[B M, L], True = a hidden token of a row that has context.
        slot: Int[B M, L], the token that was asked for.
        context: [B, K, D], the context encoder's outputs.
        context_valid: Bool[B, K].
    """

    prediction: Tensor
    asked: Tensor
    slot: Tensor
    context: Tensor
    context_valid: Tensor


def draw_mask(
    config: MaskConfig, encoder: TokenEncoder, tokens: Tokens, generator: torch.Generator
) -> tuple[Mask, dict[str, Tensor]]:
    """A mask for each row of this process, drawn for the rows of all, and `mask_counts` over all of them."""
    valid, series = of_all(tokens)
    mask = config.draw(valid, encoder.grid, generator, series)
    counts = mask_counts(valid, mask.context, mask.targets.any(1))
    return Mask(*(own(part, len(tokens.valid)) for part in mask)), counts


def of_all(tokens: Tokens) -> tuple[Tensor, Series | None]:
    """What masks are drawn from, for the rows of all processes: which tokens are real, and their times and features."""
    series = tokens.series and Series(*(gather(part) for part in tokens.series))
    return gather(tokens.valid), series


def mask_counts(valid: Tensor, visible: Tensor, masked: Tensor) -> dict[str, Tensor]:
    """Tokens a row has, shows and hides, on average, and the hidden share of all tokens.

    Shapes: Bool[B, N] each -> four scalars.
    """
    n, seen, hidden = (part.sum() / len(valid) for part in (valid, visible, masked))
    return {
        "mask_ratio_actual": hidden / n,
        "n_tokens_per_sample": n,
        "n_visible_per_sample": seen,
        "n_masked_per_sample": hidden,
    }


def see(encoder: TokenEncoder, tokens: Tokens, mask: Mask) -> Seen:
    """Encode the context tokens alone."""
    context, valid, index = take_visible(tokens.x, mask.context)  # hidden tokens are gone from here on
    return Seen(encoder.encode(context, valid), valid, gather_tokens(tokens.query, index))


def ask(
    predictor: MaskedTokenPredictor, seen: Seen, query: Float[Tensor, "B N D"], where: Bool[Tensor, "B M N"]
) -> Answers:
    """Ask the predictor for every marked slot, each of the M blocks by itself; `query` says where the slots are.

    A row without context has no answers: it would predict from nothing.
    """
    m = where.shape[1]
    flat = rearrange(where & seen.valid.any(1)[:, None, None], "b m n -> (b m) n")
    query, asked, slot = take_visible(repeat(query, "b n d -> (b m) n d", m=m), flat)
    prediction = predictor(
        seen.h,
        seen.valid,
        seen.query,
        rearrange(query, "(b m) l d -> b m l d", m=m),
        rearrange(asked, "(b m) l -> b m l", m=m),
    )
    return Answers(rearrange(prediction, "b m l d -> (b m) l d"), asked, slot, seen.h, seen.valid)


def answer(encoder: TokenEncoder, predictor: MaskedTokenPredictor, tokens: Tokens, mask: Mask) -> Answers:
    """Encode the context tokens alone, and ask the predictor for every target block."""
    return ask(predictor, see(encoder, tokens, mask), tokens.query, mask.targets)
