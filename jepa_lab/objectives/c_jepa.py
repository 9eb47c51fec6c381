"""Two systems called C-JEPA: a JEPA on two views with negatives (NT-Xent), and one with VICReg, which has none.

`c_jepa` adds NT-Xent to a JEPA of several scales. `c_jepa_vicreg` is the C-JEPA of Mo & Tong 2024, whose name says
"contrastive" and whose loss holds no negatives. Both predict within each of two views, and compare what the context
encoder says of the two.

Book: chapter 11.
"""

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from jepa_lab.data.augment import Augmentation
from jepa_lab.distributed import gather
from jepa_lab.losses import nt_xent, vicreg
from jepa_lab.masking import Mask
from jepa_lab.nets import MLP, TokenEncoder, masked_mean
from jepa_lab.objectives.hierarchical import HJEPA, HJEPAConfig
from jepa_lab.objectives.jepa import JEPA, JEPAConfig, Step
from jepa_lab.objectives.masked import draw_mask
from jepa_lab.objectives.two_view import augmented_pair
from jepa_lab.tokens import Tokens


@dataclass(frozen=True)
class TwoViewJEPAConfig(JEPAConfig):
    """`augmentation` draws the two views; its default changes nothing, and the views then differ by their masks alone.
    `projection_dim` (0 = no head), `head_hidden` and `head_norm` describe the head in front of the second loss."""

    augmentation: Augmentation = field(default_factory=Augmentation)
    projection_dim: int = 64
    head_hidden: int = 128
    head_norm: Literal["layer", "batch", "none"] = "layer"

    def __post_init__(self):
        super().__post_init__()
        if self.projection_dim < 0:
            raise ValueError(f"projection_dim must not be negative (0 = no head), got {self.projection_dim}")


class TwoViewJEPA(JEPA):
    """A JEPA in each of two views of an image, and a second loss on an embedding of either view.

        loss = 1.0 L_JEPA(both views) + w L(z1, z2),   z = head(mean of the context encoder's outputs)

    The views are one batch of twice the rows, with masks of their own. A subclass says what L and w are.
    """

    def __init__(self, encoder: TokenEncoder, config: TwoViewJEPAConfig | None = None, seed: int = 0):
        super().__init__(encoder, config, seed)
        if encoder.grid is None:
            raise ValueError("a JEPA on two augmented views needs images; use 'jepa' for series and sequences")
        config = self.config
        if config.projection_dim:
            self.head = MLP(encoder.dim, config.head_hidden, config.projection_dim, norm=config.head_norm)
        else:
            self.head = nn.Identity()

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        step = self.step({"image": augmented_pair(batch["image"], self.config.augmentation, self.generator)})
        z1, z2 = (gather(z) for z in self.head(self.embed(step)).chunk(2))
        term, weight, more = self.second(z1, z2)
        metrics = step.metrics | more
        metrics["ssl_loss"] = metrics["ssl_loss"] + weight * term.detach()
        return step.loss + weight * term, metrics

    def embed(self, step: Step) -> Tensor:
        """What the head gets of either view, [2B, D]: the mean of the context encoder's outputs."""
        return masked_mean(step.seen.h, step.seen.valid)

    @abstractmethod
    def second(self, z1: Tensor, z2: Tensor) -> tuple[Tensor, float, dict[str, Tensor]]:
        """The second loss on the embeddings of all processes, its weight and its metrics."""

    def draw(self, tokens: Tokens) -> tuple[Mask, dict[str, Tensor]]:
        """Masks of one view after the other, so that several processes draw what one would."""
        half = len(tokens.valid) // 2
        drawn = []
        for rows in (slice(0, half), slice(half, None)):
            view = Tokens(tokens.x[rows], tokens.valid[rows], tokens.query[rows], tokens.raw[rows])
            drawn.append(draw_mask(self.config.mask, self.encoder, view, self.generator))
        (first, counts), (other, counts_of_other) = drawn
        mask = Mask(*(torch.cat(parts) for parts in zip(first, other, strict=True)))
        return mask, {name: (counts[name] + counts_of_other[name]) / 2 for name in counts}


@dataclass(frozen=True)
class NTXentConfig(TwoViewJEPAConfig):
    """`contrastive_weight` of NT-Xent beside the prediction loss's 1 (0.05 to 0.15 is the usual range, 0 switches it
    off) and its `contrastive_temperature` (0.05 to 0.3). `use_cosine_similarity=False` compares inner products.
    `contrastive_on_context=False` takes the embeddings from the target encoder, which no gradient reaches.
    `use_contrastive` is what makes `name: jepa` or `name: h_jepa` this objective."""

    use_contrastive: bool = True
    contrastive_weight: float = 0.1
    contrastive_temperature: float = 0.1
    use_cosine_similarity: bool = True
    contrastive_on_context: bool = True

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.contrastive_weight < float("inf"):
            raise ValueError(f"contrastive_weight must be finite and not negative, got {self.contrastive_weight}")
        if not 0 < self.contrastive_temperature < float("inf"):
            raise ValueError(f"contrastive_temperature must be a positive number, got {self.contrastive_temperature}")


class ContrastiveJEPA(TwoViewJEPA):
    """JEPA on two views with NT-Xent between them: the objective `jepa` with `use_contrastive`.

        loss = 1.0 L_JEPA + contrastive_weight NT-Xent(z1, z2; contrastive_temperature)

    With `contrastive_on_context`, z comes from the mean of the context tokens, and the gradient of NT-Xent reaches the
    head and the context encoder. Without it, z comes from the mean of the target encoder's tokens of the whole view:
    the gradient then ends at the head, and the encoder learns from the prediction loss alone, unless `target` is
    "none" and lets it through.

    Metrics: those of `JEPA`, and `contrastive_loss` (unweighted), `contrastive_accuracy`, `contrastive_pos_similarity`
    and `contrastive_neg_similarity`, mean cosines before the temperature; the second leaves out the positive pairs and
    each row's own. `ssl_loss` is the sum of both losses.
    Book: chapter 11.
    """

    Config = NTXentConfig
    contrastive: ClassVar[bool] = True

    def embed(self, step: Step) -> Tensor:
        return super().embed(step) if self.config.contrastive_on_context else step.everything.mean(1)

    def second(self, z1: Tensor, z2: Tensor) -> tuple[Tensor, float, dict[str, Tensor]]:
        config = self.config
        similarity = "cosine" if config.use_cosine_similarity else "dot"
        loss, found = nt_xent(z1, z2, config.contrastive_temperature, similarity=similarity)
        metrics = {
            "contrastive_loss": loss.detach(),
            "contrastive_accuracy": found["accuracy"],
            "contrastive_pos_similarity": found["positive_cosine"],
            "contrastive_neg_similarity": found["negative_cosine"],
        }
        return loss, config.contrastive_weight, metrics


@dataclass(frozen=True)
class CJEPAConfig(NTXentConfig, HJEPAConfig):
    """The settings of `HJEPAConfig` and of `NTXentConfig`."""


class CJEPA(ContrastiveJEPA, HJEPA):
    """H-JEPA with NT-Xent between two views.

        loss = 1.0 sum_l w_l L_l + contrastive_weight NT-Xent(z1, z2; contrastive_temperature)

    Where gradients go, and the metrics, are those of `ContrastiveJEPA` and `HJEPA`. Not the C-JEPA of Mo & Tong, which
    is `CJEPAVicReg`. Book: chapter 11.
    """

    Config = CJEPAConfig


@dataclass(frozen=True)
class CJEPAVicRegConfig(TwoViewJEPAConfig):
    """`vicreg_weight` of VICReg beside the prediction loss's 1, and the weights of VICReg's own three terms."""

    vicreg_weight: float = 0.01
    invariance: float = 25.0
    variance: float = 25.0
    covariance: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        for name in ("vicreg_weight", "invariance", "variance", "covariance"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be finite and not negative, got {getattr(self, name)}")


class CJEPAVicReg(TwoViewJEPA):
    """C-JEPA as in its paper: JEPA on two views with VICReg between them, and no negatives.

        loss = 1.0 L_JEPA + vicreg_weight (25 invariance + 25 variance + 1 covariance)(z1, z2)

    Metrics: those of `JEPA`, `vicreg_loss` (unweighted) and its terms `invariance`, `variance`, `covariance`;
    `ssl_loss` is the sum of both losses.
    Paper: Mo & Tong 2024, section 3. Book: chapter 11.
    """

    Config = CJEPAVicRegConfig

    def second(self, z1: Tensor, z2: Tensor) -> tuple[Tensor, float, dict[str, Tensor]]:
        config = self.config
        loss, terms = vicreg(z1, z2, config.invariance, config.variance, config.covariance)
        return loss, config.vicreg_weight, terms | {"vicreg_loss": loss.detach()}
