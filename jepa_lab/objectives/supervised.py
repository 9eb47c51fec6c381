"""The same encoder trained with labels: the control that says how far the encoder could go."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from jepa_lab.distributed import global_mean
from jepa_lab.nets import TokenEncoder, masked_mean
from jepa_lab.objectives.base import Objective


@dataclass(frozen=True)
class SupervisedConfig:
    """`n_classes` counts the labels 0..n_classes-1."""

    n_classes: int = 10


class Supervised(Objective):
    """Mean over the real tokens, a linear layer, cross-entropy with batch["label"].

    Metrics: `accuracy` on the training batch.
    """

    Config = SupervisedConfig

    def __init__(self, encoder: TokenEncoder, config: SupervisedConfig | None = None, seed: int = 0):
        super().__init__(encoder, seed)
        self.config = config or SupervisedConfig()
        self.classify = nn.Linear(encoder.dim, self.config.n_classes)

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        tokens = self.encoder.tokenize(batch)
        h = masked_mean(self.encoder.encode(tokens.x, tokens.valid), tokens.valid)
        some = tokens.valid.any(1)
        logits, label = self.classify(h[some]), batch["label"][some]
        loss = F.cross_entropy(logits, label)
        accuracy = (logits.argmax(1) == label).float().mean().detach()
        return global_mean(loss, len(label)), {"accuracy": global_mean(accuracy, len(label))}
