"""A retrieval model with the parts of a JEPA: questions and sources embedded, and one predicted from the other.

Book: chapter 14.
"""

import copy

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from jepa_lab.distributed import gather
from jepa_lab.losses import alignment, covariance_term, info_nce, isotropy, prediction_loss, sigreg, variance_term
from jepa_lab.metrics import normalized_std
from jepa_lab.objectives.base import Objective
from jepa_lab.objectives.retrieval_config import (
    PRESETS,
    PhaseConfig,
    RetrievalConfig,
    RetrievalLossConfig,
)
from jepa_lab.ranking import ranks, retrieval_metrics
from jepa_lab.text_nets import RetrievalPredictor

__all__ = ["PRESETS", "PhaseConfig", "Retrieval", "RetrievalConfig", "RetrievalLossConfig"]

# VICReg's weights of variance and covariance are 25 and 1.
_COVARIANCE = 1 / 25


class Retrieval(Objective):
    """Question and source in, two embeddings out, and a prediction of the one from the other.

        L = lambda_p prediction(P(q), stop(y)) + lambda_c contrast(q, y) + lambda_i isotropy([q; y]) + lambda_r norm

    q and y are the embeddings of question and source, brought to length sqrt(D): a search compares directions, so
    directions are what the losses see, and a feature then has size 1. Only `norm`, the mean of (|x| / sqrt(D) - 1)^2,
    sees the lengths x before. `bidirectional` adds the prediction of q from y, and contrasts both ways. The search is
    done with q and y, not with the prediction, unless `mix` says so. One loss over the global batch.

    Represents: `query` and `source` [B, D], unit length; with a predictor `predicted`, the source that a question
    predicts, and in `bidirectional` `predicted_query`.

    Metrics: the unweighted losses `predictive`, `contrastive`, `isotropy`, `norm`, where their weight is not 0 (all of
    them, whatever the phase); those of `info_nce` as `contrastive_...`; `prediction_cosine`; `source_std`, the
    normalised std of the sources (0 = collapsed); `encoder_frozen`, 1 while the encoders stay as they are.
    Book: chapter 14.

    Args:
        encoder: called as `encoder(text, weight)`, with a width `dim`; one of `jepa_lab.text_nets`.
    """

    Config = RetrievalConfig
    family = "retrieval"
    # Parameters have no gradient at all while they are frozen, which several processes must expect.
    some_without_gradient = True

    def __init__(self, encoder: nn.Module, config: RetrievalConfig | None = None, seed: int = 0):
        super().__init__(encoder, seed)
        self.config = config = config or RetrievalConfig()
        separate = config.architecture == "asymmetric" and not config.shared
        self.source_encoder = copy.deepcopy(encoder) if separate else None
        predicts = config.loss.lambda_predictive > 0
        both = predicts and config.architecture == "bidirectional"
        self.predictor = RetrievalPredictor(encoder.dim, config.predictor) if predicts else None
        self.back_predictor = RetrievalPredictor(encoder.dim, config.predictor) if both else None
        self.representations = (
            "query",
            "source",
            *(["predicted"] if predicts else []),
            *(["predicted_query"] if both else []),
        )
        self.before_step(0.0)

    def before_step(self, progress: float) -> None:
        phases = self.config.phases
        self.frozen = progress < phases.frozen_until
        self.isotropic = progress >= phases.isotropy_from

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        # A frozen encoder has no graph, so the optimiser leaves its weights alone, weight decay included.
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            q, y = gather(self.embed("query", batch)), gather(self.embed("source", batch))
            negatives = gather(self.embed("negatives", batch)) if self._hard(batch) else None
        loss, scale = self.config.loss, q.shape[1] ** 0.5
        a, b = F.normalize(q, dim=1) * scale, F.normalize(y, dim=1) * scale
        parts, metrics = {}, {}
        if self.predictor is not None:
            parts["predictive"], cosine = self._predict(self.predictor, a, b)
            if self.back_predictor is not None:
                back, _ = self._predict(self.back_predictor, b, a)
                parts["predictive"] = parts["predictive"] + back
            metrics["prediction_cosine"] = cosine
        if loss.lambda_contrastive:
            parts["contrastive"], found = self._contrast(a, b, negatives, batch)
            metrics |= {f"contrastive_{name}": value for name, value in found.items()}
        if loss.lambda_isotropy:
            parts["isotropy"] = self._isotropy(torch.cat([a, b]))
        if loss.lambda_reg:
            parts["norm"] = (torch.cat([q, y]).norm(dim=1) / scale - 1).square().mean()
        weights = {
            "predictive": loss.lambda_predictive,
            "contrastive": loss.lambda_contrastive,
            "isotropy": loss.lambda_isotropy if self.isotropic else 0.0,
            "norm": loss.lambda_reg,
        }
        total = sum(weights[name] * value for name, value in parts.items())
        metrics |= {name: value.detach() for name, value in parts.items()}
        metrics["encoder_frozen"] = torch.tensor(float(self.frozen), device=a.device)
        if len(b) > 1:
            metrics["source_std"] = normalized_std(b.detach())
        return total, metrics

    def _predict(self, predictor: nn.Module, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """The distance of the prediction from a to b, without gradient through b unless the config says otherwise."""
        loss = self.config.loss
        p, target = predictor(a), b.detach() if loss.stop_gradient else b
        cosine = F.cosine_similarity(p.detach(), target.detach(), dim=1).mean()
        return prediction_loss(p, target, kind=loss.kind, target_norm="none"), cosine

    def _contrast(
        self, a: Tensor, b: Tensor, negatives: Tensor | None, batch: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        loss = self.config.loss
        if loss.contrast == "attraction":
            return alignment(a, b), {}
        source = gather(batch["source_id"])
        same = source[:, None] == source
        found = info_nce(
            a,
            b,
            negatives,
            loss.temperature,
            ignore=same,
            ignore_negatives=None if negatives is None else gather(batch["negative_id"]) == source[:, None],
            in_batch=loss.in_batch,
        )
        if self.config.architecture != "bidirectional":
            return found
        # There are no hard negatives among the questions: the way back is told from the other questions alone.
        back, _ = info_nce(b, a, None, loss.temperature, ignore=same)
        return (found[0] + back) / 2, found[1]

    def _isotropy(self, z: Tensor) -> Tensor:
        loss = self.config.loss
        if loss.isotropy == "sigreg":
            return sigreg(z, loss.n_slices, generator=self.generator)
        if loss.isotropy == "vicreg":
            return variance_term(z) + _COVARIANCE * covariance_term(z)
        return isotropy(z)

    def _hard(self, batch: dict[str, Tensor]) -> bool:
        loss = self.config.loss
        wanted = loss.lambda_contrastive > 0 and loss.contrast == "info_nce" and loss.hard_negatives
        if wanted and not loss.in_batch and "negatives" not in batch:
            raise ValueError("loss.in_batch=false needs batches with `negatives` (negatives.n_neg > 0)")
        return wanted and "negatives" in batch

    def embed(self, name: str, batch: dict[str, Tensor]) -> Float[Tensor, "B *K D"]:
        """The embeddings of a batch's `query` (its `question`), `source` or `negatives`, at their own length."""
        key = "question" if name == "query" else name
        separate = self.source_encoder is not None and name != "query"
        encoder = self.source_encoder if separate else self.encoder
        return encoder(batch[key], batch.get(f"{key}_weight"))

    def _represent(self, batch: dict[str, Tensor], name: str) -> Tensor:
        if name in ("query", "source"):
            return F.normalize(self.embed(name, batch), dim=1)
        start, predictor = ("query", self.predictor) if name == "predicted" else ("source", self.back_predictor)
        z = F.normalize(self.embed(start, batch), dim=1)
        return F.normalize(predictor(z * z.shape[1] ** 0.5), dim=1)

    @torch.no_grad()
    def evaluate(self, data: dict[str, Tensor], chunk: int = 1024) -> dict[str, float]:
        """Search the sources of `data` with its questions: recall@1, recall@10, mrr, ndcg@10, by the `mix` of the
        config; with a predictor also `prediction_error`, 1 - cosine of predicted and actual source. `data` is a batch,
        where rows with one `source_id` share the source."""
        device = next(self.parameters()).device
        data = {key: value.to(device) for key, value in data.items()}
        query, source = self.represent(data, "query"), self.represent(data, "source")
        result, predicted = {}, None
        if self.predictor is not None:
            predicted = self.represent(data, "predicted")
            result["prediction_error"] = float(1 - (predicted * source).sum(1).mean())
        _, right = torch.unique(data["source_id"], return_inverse=True)
        first = torch.full((int(right.max()) + 1,), len(right), device=device)
        pool = source[first.scatter_reduce_(0, right, torch.arange(len(right), device=device), "amin")]
        found = []
        for some in torch.arange(len(query), device=device).split(chunk):
            scores = query[some] @ pool.T
            if self.config.mix:
                scores = (1 - self.config.mix) * scores + self.config.mix * predicted[some] @ pool.T
            found.append(ranks(scores, right[some]))
        return retrieval_metrics(torch.cat(found)) | result
