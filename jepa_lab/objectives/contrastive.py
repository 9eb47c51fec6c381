"""Contrastive learning: two views of a sample must find each other among all the others (SimCLR).

Book: chapter 04.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from jepa_lab.data.augment import Augmentation, augment
from jepa_lab.losses import nt_xent
from jepa_lab.masking import MaskConfig, complementary_masks, take_visible
from jepa_lab.nets import MLP, TokenEncoder, masked_mean
from jepa_lab.objectives.base import Objective


@dataclass(frozen=True)
class ContrastiveConfig:
    """`views` are two random augmentations of the image (`augment`), two independent masks (`mask`), or two masks
    that share no token (`complementary`); `mask.ratio` is the hidden share. `projection_dim` is the width P of the
    embedding that the loss sees, `head_hidden` that of the projection head's hidden layer."""

    views: Literal["augment", "mask", "complementary"] = "augment"
    augmentation: Augmentation = field(default_factory=Augmentation)
    mask: MaskConfig = field(default_factory=lambda: MaskConfig(ratio=0.5))
    temperature: float = 0.2
    projection_dim: int = 64
    head_hidden: int = 128


class Contrastive(Objective):
    """Encoder, mean over the visible tokens, projection head, NT-Xent.

    The head is thrown away afterwards: what it must discard to please the loss stays in the encoder's output. Its
    norm is a LayerNorm, since a BatchNorm would leak information between the rows of a batch.
    Both views go through the encoder in one batch.

    Metrics: `accuracy`, `positive_cosine`, `negative_cosine` of `losses.nt_xent`.
    Paper: Chen et al. 2020 (SimCLR). Book: chapter 04.
    """

    Config = ContrastiveConfig

    def __init__(self, encoder: TokenEncoder, config: ContrastiveConfig | None = None, seed: int = 0):
        super().__init__(encoder, seed)
        self.config = config = config or ContrastiveConfig()
        if config.views not in ("augment", "mask", "complementary"):
            raise ValueError(f"views must be augment, mask or complementary, got {config.views!r}")
        if not config.temperature > 0:
            raise ValueError(f"temperature must be positive, got {config.temperature}")
        if config.views == "complementary" and config.mask.kind != "random":
            raise ValueError(f"views='complementary' draws random masks, got mask.kind={config.mask.kind!r}")
        if config.views == "augment" and config.augmentation == Augmentation():
            raise ValueError("augmentation: the identity makes the two views equal; set crop, rotation, noise, ...")
        config.mask.check(encoder.grid)
        self.head = MLP(encoder.dim, config.head_hidden, config.projection_dim, norm="layer")

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        h = self.encode_views(batch)
        z1, z2 = self.head(h).chunk(2)
        return nt_xent(z1, z2, self.config.temperature)

    def encode_views(self, batch: dict[str, Tensor]) -> Tensor:
        """Pooled encoder outputs of both views, [2B, D]; rows that a mask left without a view are dropped."""
        if self.config.views == "augment":
            image = batch["image"]
            views = augment(torch.cat([image, image]), self.config.augmentation, self.generator)
            tokens = self.encoder.tokenize(batch | {"image": views})
            return masked_mean(self.encoder.encode(tokens.x, tokens.valid), tokens.valid)

        tokens = self.encoder.tokenize(batch)
        if self.config.views == "complementary":
            masks = complementary_masks(tokens.valid, self.config.mask.ratio, self.generator)
        else:
            masks = [self.config.mask.draw(tokens.valid, self.encoder.grid, self.generator) for _ in range(2)]
        keep = torch.stack([mask.context for mask in masks])  # [2, B, N]
        both = keep.any(2).all(0)
        x, valid, _ = take_visible(tokens.x[both].repeat(2, 1, 1), keep[:, both].flatten(0, 1))
        return masked_mean(self.encoder.encode(x, valid), valid)
