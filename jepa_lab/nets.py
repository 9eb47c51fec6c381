"""The networks: MLP, pre-norm transformer, position codes, tokenizers, and the token encoder that all systems share.

Book: chapters 01, 03.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from jepa_lab.distributed import BatchNorm
from jepa_lab.tokens import nothing_padded


class MLP(nn.Sequential):
    """`depth` hidden layers of width `hidden`, each linear, norm, GELU; then a linear layer to `dim_out`.

    Shapes: [..., dim_in] -> [..., dim_out] ([B, dim_in] only, with norm="batch").
    """

    def __init__(
        self,
        dim_in: int,
        hidden: int,
        dim_out: int,
        depth: int = 1,
        norm: Literal["layer", "batch", "none"] = "layer",
    ):
        norms = {"layer": nn.LayerNorm, "batch": BatchNorm, "none": nn.Identity}
        if norm not in norms:
            raise ValueError(f"norm must be one of {sorted(norms)}, got {norm!r}")
        widths = [dim_in] + [hidden] * depth
        layers = []
        for a, b in pairwise(widths):
            layers += [nn.Linear(a, b), norms[norm](b), nn.GELU()]
        super().__init__(*layers, nn.Linear(widths[-1], dim_out))


# ------------------------------------------------------------------------------------------------- transformer


class Attention(nn.Module):
    """Multi-head self-attention in which padding takes no part."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim must be a multiple of heads, got dim={dim} and heads={heads}")
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "B N D"], attend: Bool[Tensor, "B 1 1 N"] | None) -> Float[Tensor, "B N D"]:
        q, k, v = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=attend)
        return self.out(rearrange(x, "b h n d -> b n (h d)"))


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + MLP(norm(x)), with dropout on what is added."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float, dropout: float = 0.0):
        super().__init__()
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.mlp = MLP(dim, round(dim * mlp_ratio), dim, norm="none")
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, x: Float[Tensor, "B N D"], attend: Bool[Tensor, "B 1 1 N"] | None) -> Float[Tensor, "B N D"]:
        x = x + self.dropout(self.attention(self.norm1(x), attend))
        return x + self.dropout(self.mlp(self.norm2(x)))


class Transformer(nn.Module):
    """`depth` pre-norm blocks and a final LayerNorm; padded slots are never attended to and come out as zeros.

    Shapes: x [B, N, D], valid Bool[B, N] (True = real token) -> [B, N, D].
    Papers: Vaswani et al. 2017; pre-norm as in the ViT (Dosovitskiy et al. 2021).
    """

    def __init__(self, dim: int, depth: int, heads: int, mlp_ratio: float = 2.0, dropout: float = 0.0):
        super().__init__()
        self.blocks = nn.ModuleList(Block(dim, heads, mlp_ratio, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Float[Tensor, "B N D"], valid: Bool[Tensor, "B N"]) -> Float[Tensor, "B N D"]:
        # A row of padding alone would attend to nothing, which is 0/0 and NaN in some versions of torch; let it attend
        # to itself, it is zeroed below.
        whole = nothing_padded(valid)
        attend = None if whole else (valid | ~valid.any(1, keepdim=True))[:, None, None, :]
        for block in self.blocks:
            x = block(x, attend)
        return self.norm(x) if whole else self.norm(x).masked_fill(~valid[..., None], 0.0)


# ---------------------------------------------------------------------------------------------- position codes


def sincos_1d(position: Float[Tensor, "*shape"], dim: int, longest: float = 10000.0) -> Float[Tensor, "*shape D"]:
    """Fixed sine-cosine code of a real-valued position: [sin(p w_i), cos(p w_i)], w_i = longest^(-2i/dim).

    Shapes: position [...] -> [..., dim].
    Raises: ValueError for an odd `dim`.
    Paper: Vaswani et al. 2017, section 3.5.
    """
    if dim % 2:
        raise ValueError(f"dim must be even (half sines, half cosines), got {dim}")
    frequency = torch.exp(-math.log(longest) * torch.arange(dim // 2, device=position.device) / (dim // 2))
    angle = position[..., None].float() * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def sincos_2d(grid: tuple[int, int], dim: int) -> Float[Tensor, "N D"]:
    """Fixed code of every cell of an H x W grid, in raster order: half of the features for the row, half the column.

    Raises: ValueError when `dim` is not a multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"dim must be a multiple of 4 (two coordinates, sines and cosines), got {dim}")
    y, x = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    return torch.cat([sincos_1d(y.flatten().float(), dim // 2), sincos_1d(x.flatten().float(), dim // 2)], dim=-1)


# -------------------------------------------------------------------------------------------------- tokenizers


class Tokens(NamedTuple):
    """A batch as tokens, before any masking.

    Shapes:
        x: [B, N, D], the embedded tokens (content and position).
        valid: Bool[B, N], True = real token, False = padding.
        query: [B, N, D], what identifies a slot without its content: position, feature, time.
        raw: [B, N, R], what the token held before embedding (pixels, a lab value): the target of reconstruction.
    """

    x: Tensor
    valid: Tensor
    query: Tensor
    raw: Tensor


class PatchTokenizer(nn.Module):
    """Cut an image into square patches, one token each: a linear map of the pixels plus a fixed 2-D position code.

    Pixels are first standardised by `mean` and `std` (one number per channel, of the training images): otherwise the
    position code outweighs the content, and JEPA learns much more slowly. `Tokens.raw` keeps the pixels as they are.

    Shapes: batch["image"] [B, C, H, W] -> Tokens with N = (H/patch)(W/patch) in raster order and R = C patch^2.
    Raises: ValueError when the patch does not divide the image, or when an image has another size.
    Paper: Dosovitskiy et al. 2021 (ViT), section 3.1. Book: chapters 01, 03.
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        channels: int,
        patch: int,
        dim: int,
        mean: Float[Tensor, " C"] | None = None,
        std: Float[Tensor, " C"] | None = None,
    ):
        super().__init__()
        height, width = image_size
        if patch < 1 or height % patch or width % patch:
            raise ValueError(f"patch must divide the image size {height} x {width}, got patch={patch}")
        self.image_size, self.channels, self.patch = (height, width), channels, patch
        self.grid = (height // patch, width // patch)
        self.raw_dim = channels * patch**2
        self.embed = nn.Linear(self.raw_dim, dim)
        self.register_buffer("position", sincos_2d(self.grid, dim), persistent=False)
        self.register_buffer("mean", torch.zeros(channels) if mean is None else mean.clone())
        self.register_buffer("std", torch.ones(channels) if std is None else std.clamp(min=1e-6))

    def forward(self, batch: dict[str, Tensor]) -> Tokens:
        image = batch["image"]
        if tuple(image.shape[1:]) != (self.channels, *self.image_size):
            expected = (self.channels, *self.image_size)
            raise ValueError(f"batch['image'] must be [B, C, H, W] with C, H, W = {expected}, got {tuple(image.shape)}")
        standard = (image - self.mean[:, None, None]) / self.std[:, None, None]
        content = self.embed(patchify(standard.to(self.embed.weight.dtype), self.patch))
        query = self.position.to(content.dtype).expand(len(image), -1, -1)
        valid = torch.ones(content.shape[:2], dtype=torch.bool, device=image.device)
        return Tokens(content + query, valid, query, patchify(image, self.patch))


def patchify(image: Float[Tensor, "B C H W"], patch: int) -> Float[Tensor, "B N R"]:
    """Non-overlapping square patches in raster order, pixels flattened row by row, channels last."""
    return rearrange(image, "b c (h p) (w q) -> b (h w) (p q c)", p=patch, q=patch)


def unpatchify(patches: Float[Tensor, "B N R"], patch: int, grid: tuple[int, int]) -> Float[Tensor, "B C H W"]:
    """The inverse of `patchify`."""
    return rearrange(patches, "b (h w) (p q c) -> b c (h p) (w q)", h=grid[0], w=grid[1], p=patch, q=patch)


# ------------------------------------------------------------------------------------------------ token encoder


class TokenEncoder(nn.Module):
    """A tokenizer and a transformer, kept apart so that masking can sit in between.

    `tokenize` and `encode` are the contract every objective builds on; calling the encoder does both on all tokens.

    Shapes: tokenize(batch) -> Tokens; encode(x [B, K, D], valid Bool[B, K]) -> [B, K, D]; forward(batch) -> [B, N, D].
    """

    def __init__(self, tokenizer: nn.Module, transformer: Transformer, dim: int):
        super().__init__()
        self.tokenizer, self.transformer, self.dim = tokenizer, transformer, dim

    @property
    def grid(self) -> tuple[int, int] | None:
        """(height, width) of the token grid, or None where tokens form a sequence or a set."""
        return getattr(self.tokenizer, "grid", None)

    @property
    def raw_dim(self) -> int:
        """R, how many numbers a token holds before it is embedded: the width of what a masked autoencoder predicts."""
        return self.tokenizer.raw_dim

    def tokenize(self, batch: dict[str, Tensor]) -> Tokens:
        return self.tokenizer(batch)

    def encode(self, x: Float[Tensor, "B K D"], valid: Bool[Tensor, "B K"]) -> Float[Tensor, "B K D"]:
        return self.transformer(x, valid)

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "B N D"]:
        tokens = self.tokenize(batch)
        return self.encode(tokens.x, tokens.valid)


@dataclass(frozen=True)
class EncoderConfig:
    """Size of the vision transformer: token width `dim`, `depth` blocks, `heads`, MLP width `mlp_ratio` x dim."""

    patch: int = 2
    dim: int = 64
    depth: int = 3
    heads: int = 2
    mlp_ratio: float = 2.0


def image_encoder(image: Float[Tensor, "B C H W"], config: EncoderConfig | None = None) -> TokenEncoder:
    """A small ViT (0.1 M parameters by default) that fits these training images: their size, channels, mean and s.d.

    Shapes: image [n, C, H, W], the training images.
    """
    config = config or EncoderConfig()
    _, channels, height, width = image.shape
    mean, std = image.mean((0, 2, 3)), image.std((0, 2, 3))
    tokenizer = PatchTokenizer((height, width), channels, config.patch, config.dim, mean, std)
    transformer = Transformer(config.dim, config.depth, config.heads, config.mlp_ratio)
    return TokenEncoder(tokenizer, transformer, config.dim)


def masked_mean(h: Float[Tensor, "B N D"], valid: Bool[Tensor, "B N"]) -> Float[Tensor, "B D"]:
    """Mean over the real tokens of a row; NaN for a row that has none (a zero vector would pass as an embedding)."""
    total = (h if nothing_padded(valid) else h.masked_fill(~valid[..., None], 0.0)).sum(1)
    return total / valid.sum(1, keepdim=True).to(h.dtype)
