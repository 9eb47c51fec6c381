"""What all methods on two views share: draw the views, encode both in one batch, project.

Book: chapters 04, 06.
"""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jepa_lab.data.augment import Augmentation, augment
from jepa_lab.distributed import gather, own, positions, world_size
from jepa_lab.masking import MaskConfig, take_visible
from jepa_lab.nets import MLP, TokenEncoder, masked_mean
from jepa_lab.objectives.base import Objective
from jepa_lab.objectives.masked import mask_counts, of_all
from jepa_lab.series_masks import SERIES_KINDS, check_complementary


@dataclass(frozen=True)
class TwoViewConfig:
    """`views` are two random augmentations of the image (`augment`), two independent masks (`mask`), or two masks
    that share no token (`complementary`); `mask.ratio` is the hidden share of each, at least one half for the last.
    `projection_dim` is the width P of the embedding that the loss sees, 0 for no head at all: the loss then acts on the
    encoder's own output. `head_hidden` is the width of the projection head's hidden layer, `head_norm` its norm."""

    views: Literal["augment", "mask", "complementary"] = "augment"
    augmentation: Augmentation = field(default_factory=Augmentation)
    mask: MaskConfig = field(default_factory=lambda: MaskConfig(ratio=0.5))
    projection_dim: int = 64
    head_hidden: int = 128
    head_norm: Literal["layer", "batch", "none"] = "layer"


class Views(NamedTuple):
    """Two views of a batch. With masks: the batch once, keep [2, B, N], the visible tokens of either view, and
    `mask_counts` over both; with augmentations: the batch twice over, keep None and no counts."""

    batch: dict[str, Tensor]
    keep: Tensor | None
    counts: dict[str, Tensor]


def augmented_pair(
    image: Float[Tensor, "B C H W"], augmentation: Augmentation, generator: torch.Generator
) -> Float[Tensor, "B2 C H W"]:
    """Two random versions of every image, all first ones before all second ones: [2B, C, H, W]."""
    rows = None
    if world_size() > 1:
        index, total = positions(len(image), image)
        rows = (torch.cat([index, index + total]), 2 * total)
    return augment(torch.cat([image, image]), augmentation, generator, rows)


class TwoView(Objective):
    """Encoder, mean over the visible tokens, projection head; a subclass says what the two embeddings must satisfy.

    The head is thrown away afterwards: what it must discard to please the loss stays in the encoder's output. Its
    norm is a LayerNorm by default, since a BatchNorm leaks information between the rows of a batch.
    """

    Config = TwoViewConfig

    def __init__(self, encoder: TokenEncoder, config: TwoViewConfig | None = None, seed: int = 0):
        super().__init__(encoder, seed)
        self.config = config = config or self.Config()
        if config.views not in ("augment", "mask", "complementary"):
            raise ValueError(f"views must be augment, mask or complementary, got {config.views!r}")
        if config.views == "complementary":
            if config.mask.kind not in SERIES_KINDS:
                kinds = ", ".join(SERIES_KINDS)
                raise ValueError(f"views='complementary' needs one of {kinds}, got mask.kind={config.mask.kind!r}")
            check_complementary(config.mask.ratio, "mask.ratio")
        if config.views == "augment" and encoder.is_series:
            raise ValueError("views='augment' changes images; for observations use 'complementary' or 'mask'")
        if config.views == "augment" and config.augmentation == Augmentation():
            raise ValueError("augmentation: the identity makes the two views equal; set crop, rotation, noise, ...")
        if config.projection_dim < 0:
            raise ValueError(f"projection_dim must not be negative (0 = no head), got {config.projection_dim}")
        config.mask.check(encoder.grid, encoder.is_series)
        self.embedding_dim = config.projection_dim or encoder.dim
        if config.projection_dim:
            self.head = MLP(encoder.dim, config.head_hidden, config.projection_dim, norm=config.head_norm)
        else:
            self.head = nn.Identity()

    def embed(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Embeddings z1, z2 of two fresh views, [B, P] each; rows that a mask left without a view are dropped."""
        return self.head(self.encode_views(batch)).chunk(2)

    def embed_all(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The embeddings of all processes: what a loss over the batch needs. In one process the same as `embed`."""
        z1, z2 = self.embed(batch)
        return gather(z1), gather(z2)

    def encode_views(self, batch: dict[str, Tensor]) -> Tensor:
        """Pooled encoder outputs of two fresh views, one after the other, [2B, D]."""
        return self.encode(self.encoder, self.draw(batch))

    def draw(self, batch: dict[str, Tensor]) -> Views:
        """Two fresh views of a batch, which any encoder can then encode."""
        config = self.config
        if config.views == "augment":
            both = augmented_pair(batch["image"], config.augmentation, self.generator)
            return Views(batch | {"image": both}, None, {})
        tokens = self.encoder.tokenize(batch)
        valid, series = of_all(tokens)  # masks are drawn for the rows of all processes
        if config.views == "complementary":
            masks = config.mask.pair(valid, self.generator, series)
        else:
            masks = [config.mask.draw(valid, self.encoder.grid, self.generator, series) for _ in range(2)]
        keep = torch.stack([mask.context for mask in masks])
        counts = mask_counts(valid.repeat(2, 1), keep.flatten(0, 1), (valid & ~keep).flatten(0, 1))
        return Views(batch, torch.stack([own(view, len(tokens.valid)) for view in keep]), counts)

    @staticmethod
    def encode(encoder: TokenEncoder, views: Views) -> Tensor:
        """Mean over the visible tokens of both views, in one pass of the encoder, [2B, D]."""
        tokens = encoder.tokenize(views.batch)
        if views.keep is None:
            return masked_mean(encoder.encode(tokens.x, tokens.valid), tokens.valid)
        both = views.keep.any(2).all(0)
        x, valid, _ = take_visible(tokens.x[both].repeat(2, 1, 1), views.keep[:, both].flatten(0, 1))
        return masked_mean(encoder.encode(x, valid), valid)
