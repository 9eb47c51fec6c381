"""The JEPA step as one writes it first, to measure ours against. Frozen: it stays as it was first committed.

Every token goes through both encoders, and a mask keeps the hidden ones from being attended to; the predictor gets the
whole grid, mask tokens in the hidden slots; the optimizer is AdamW as it comes; the moving average is a loop over the
weights. The result is that of `objectives.JEPA` with `target="ema"` and random masks, which `tests/test_benchmarks.py`
checks to rounding. Names of the weights are those of the objective, so that its state loads.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_lab.masking import random_mask
from jepa_lab.nets import sincos_2d


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, attend: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        q, k, v = (y.view(batch, tokens, self.heads, -1).transpose(1, 2) for y in self.qkv(x).chunk(3, dim=-1))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=attend[:, None, None, :])
        return self.out(y.transpose(1, 2).reshape(batch, tokens, dim))


class Block(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.Identity(), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor, attend: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x), attend)
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    def __init__(self, dim: int, depth: int, heads: int):
        super().__init__()
        self.blocks = nn.ModuleList([Block(dim, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, attend: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, attend)
        return self.norm(x)


class Encoder(nn.Module):
    def __init__(self, image: Tensor, patch: int, dim: int, depth: int, heads: int):
        super().__init__()
        _, channels, height, width = image.shape
        self.patch = patch
        self.register_buffer("mean", image.mean((0, 2, 3)))
        self.register_buffer("std", image.std((0, 2, 3)))
        self.embed = nn.Linear(channels * patch**2, dim)
        self.register_buffer("position", sincos_2d((height // patch, width // patch), dim))
        self.transformer = Transformer(dim, depth, heads)

    def forward(self, image: Tensor, attend: Tensor) -> Tensor:
        x = (image - self.mean[:, None, None]) / self.std[:, None, None]
        patches = F.unfold(x, self.patch, stride=self.patch)  # [B, C patch^2, N], channels first
        batch, _, tokens = patches.shape
        patches = patches.view(batch, -1, self.patch**2, tokens).permute(0, 3, 2, 1).reshape(batch, tokens, -1)
        return self.transformer(self.embed(patches) + self.position, attend)


class Predictor(nn.Module):
    def __init__(self, dim: int, width: int, depth: int, heads: int):
        super().__init__()
        self.project = nn.Linear(dim, width)
        self.project_query = nn.Linear(dim, width)
        self.mask_token = nn.Parameter(torch.randn(width) * 0.02)
        self.transformer = Transformer(width, depth, heads)
        self.back = nn.Linear(width, dim)

    def forward(self, h: Tensor, position: Tensor, hidden: Tensor) -> Tensor:
        x = torch.where(hidden[..., None], self.mask_token, self.project(h)) + self.project_query(position)
        return self.back(self.transformer(x, torch.ones_like(hidden)))


class PlainJEPA(nn.Module):
    def __init__(self, image: Tensor, patch: int = 2, dim: int = 64, depth: int = 3, heads: int = 2):
        super().__init__()
        self.encoder = Encoder(image, patch, dim, depth, heads)
        self.predictor = Predictor(dim, 64, 2, 2)
        self.target_encoder = copy.deepcopy(self.encoder).requires_grad_(False)

    def forward(self, image: Tensor, hidden: Tensor) -> Tensor:
        prediction = self.predictor(self.encoder(image, ~hidden), self.encoder.position, hidden)
        with torch.no_grad():
            target = self.target_encoder(image, torch.ones_like(hidden))
            target = F.layer_norm(target, target.shape[-1:])
        return F.smooth_l1_loss(prediction[hidden], target[hidden])

    def take(self, state: dict[str, Tensor]) -> "PlainJEPA":
        """Load the weights of an `objectives.JEPA`."""
        state = {key.replace(".target.", ".").replace("tokenizer.", ""): value for key, value in state.items()}
        missing, _ = self.load_state_dict(state, strict=False)
        if any("position" not in name for name in missing):
            raise ValueError(f"state lacks {', '.join(missing)}")
        return self


def make_step(model: PlainJEPA, lr: float = 2e-3, tau: float = 0.99, ratio: float = 0.6, seed: int = 0):
    """A function that takes a batch of images and makes one training step; returns the loss."""
    generator = torch.Generator().manual_seed(seed)
    weights = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in weights if p.ndim >= 2]},
        {"params": [p for p in weights if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), weight_decay=0.05)

    def step(image: Tensor) -> Tensor:
        tokens = len(model.encoder.position)
        hidden = random_mask(torch.ones(len(image), tokens, dtype=torch.bool), ratio, generator).targets[:, 0]
        loss = model(image, hidden)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        with torch.no_grad():
            for target, source in zip(model.target_encoder.parameters(), model.encoder.parameters(), strict=True):
                target.mul_(tau).add_(source, alpha=1 - tau)
        return loss.detach()

    return step
