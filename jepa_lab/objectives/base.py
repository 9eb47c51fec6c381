"""The contract between an objective and everything else: the trainer, the probes and the notebooks know only this."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jepa_lab.nets import TokenEncoder, masked_mean


class Objective(nn.Module, ABC):
    """A loss on a batch, hooks around the optimizer step, and the representation that a probe sees.

    `generator` draws everything random in the loss (masks, augmentations). It lives on the CPU, so that a seed gives
    the same draws on every device, and its state is saved with the weights, so that a resumed run goes on the same.
    Several processes each draw for the rows of all and keep their own (`distributed.own`): the states stay equal.
    """

    Config: ClassVar[type]
    family: ClassVar[str] = "images"  # the kind of data, and with it the settings, that a run from a config file has
    representations: tuple[str, ...] = ("pooled", "tokens")
    some_without_gradient: ClassVar[bool] = False  # whether a step may leave trainable parameters without a gradient

    def __init__(self, encoder: nn.Module, seed: int = 0):
        super().__init__()
        self.encoder = encoder
        self.generator = torch.Generator().manual_seed(seed)

    @abstractmethod
    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar loss, and detached 0-d metrics for the history."""

    def before_step(self, progress: float) -> None:
        """Called before each forward pass, with progress in [0, 1]: set temperatures, weights, frozen parts here."""

    def after_step(self, progress: float) -> None:
        """Called once after each optimizer step: EMA updates live here and only here."""

    def represent(self, batch: dict[str, Tensor], name: str = "pooled") -> Float[Tensor, "B *rest"]:
        """What a probe sees, in eval mode and without gradient: `pooled` [B, D] is the mean over the real tokens,
        `tokens` [B, N, D] all of them, zeros where padded. A row with nothing real is NaN.

        Raises: ValueError for a name that is not in `representations`.
        """
        if name not in self.representations:
            raise ValueError(f"unknown representation {name!r}; known: {', '.join(self.representations)}")
        was_training = self.training
        self.eval()
        try:
            with torch.no_grad():
                return self._represent(batch, name)
        finally:
            self.train(was_training)

    def _represent(self, batch: dict[str, Tensor], name: str) -> Tensor:
        return self._read(self.representing_encoder, batch, name)

    @staticmethod
    def _read(encoder: TokenEncoder, batch: dict[str, Tensor], name: str) -> Tensor:
        tokens = encoder.tokenize(batch)
        h = encoder.encode(tokens.x, tokens.valid)
        if name == "pooled":
            return masked_mean(h, tokens.valid)
        return h.masked_fill(~tokens.valid.any(1)[:, None, None], torch.nan)

    @property
    def representing_encoder(self) -> TokenEncoder:
        return self.encoder

    def param_groups(self, lr: float) -> list[dict]:
        """Weight decay for the matrices, none for biases, norms and single vectors."""
        trainable = [p for p in self.parameters() if p.requires_grad]
        return [
            {"params": [p for p in trainable if p.ndim >= 2], "lr": lr},
            {"params": [p for p in trainable if p.ndim < 2], "lr": lr, "weight_decay": 0.0},
        ]

    def get_extra_state(self) -> dict[str, Tensor]:
        return {"generator": self.generator.get_state()}

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        self.generator.set_state(state["generator"].cpu())
