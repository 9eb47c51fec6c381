"""From what is seen to what is not: the predictors.

Book: chapters 01, 03.
"""

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn

from jepa_lab.nets import MLP, Transformer


class MaskedTokenPredictor(nn.Module):
    """I-JEPA's predictor: context tokens and mask tokens in, representations of the masked tokens out.

    Every token is projected to the predictor's own, usually smaller, width. A hidden slot enters as one learnable
    mask token plus the code of *where* (or when, or which feature) it is: that code is its whole question. A light
    transformer lets the questions look at the context, and the answers are projected back to the encoder's width.
    The M target blocks of a row are M sequences of their own, so that no block sees another's questions.

    Shapes:
        context [B, K, D], context_valid Bool[B, K], context_query [B, K, D],
        target_query [B, M, L, D], target_valid Bool[B, M, L] -> prediction [B, M, L, D], zeros at padded slots.
    Paper: Assran et al. 2023, section 3 (narrow predictor, appendix A). Book: chapters 01, 03.
    """

    def __init__(self, dim: int, width: int = 64, depth: int = 2, heads: int = 2, mlp_ratio: float = 2.0):
        super().__init__()
        self.project = nn.Linear(dim, width)
        self.project_query = nn.Linear(dim, width)
        self.mask_token = nn.Parameter(torch.randn(width) * 0.02)
        self.transformer = Transformer(width, depth, heads, mlp_ratio)
        self.back = nn.Linear(width, dim)

    def forward(
        self,
        context: Float[Tensor, "B K D"],
        context_valid: Bool[Tensor, "B K"],
        context_query: Float[Tensor, "B K D"],
        target_query: Float[Tensor, "B M L D"],
        target_valid: Bool[Tensor, "B M L"],
    ) -> Float[Tensor, "B M L D"]:
        m, k = target_query.shape[1], context.shape[1]
        seen = self.project(context) + self.project_query(context_query)
        asked = self.mask_token + self.project_query(rearrange(target_query, "b m l d -> (b m) l d"))
        x = torch.cat([repeat(seen, "b k w -> (b m) k w", m=m), asked], dim=1)
        asked_valid = rearrange(target_valid, "b m l -> (b m) l")
        valid = torch.cat([repeat(context_valid, "b k -> (b m) k", m=m), asked_valid], dim=1)
        answer = self.back(self.transformer(x, valid)[:, k:]).masked_fill(~asked_valid[..., None], 0.0)
        return rearrange(answer, "(b m) l d -> b m l d", m=m)


class MLPPredictor(nn.Module):
    """A two-layer MLP from one embedding to another of the same width, as in BYOL and SimSiam.

    Shapes: [..., D] -> [..., D].
    Paper: Grill et al. 2020, section 3.2.
    """

    def __init__(self, dim: int, hidden: int | None = None, depth: int = 1, norm: str = "layer"):
        super().__init__()
        self.net = MLP(dim, hidden or 2 * dim, dim, depth, norm)

    def forward(self, h: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape D"]:
        return self.net(h)
