"""What will the picture's features be a moment later? The auxiliary loss of Polar-V1.

It looks at the responses averaged over the cells of a coarse grid. One average over the whole map would keep the
amplitudes and lose the phases: they run through all values over space and cancel.

Book: chapter 15.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from jepa_lab.distributed import gather, global_mean
from jepa_lab.ema import EMAEncoder
from jepa_lab.losses import normalize_targets, prediction_loss
from jepa_lab.metrics import feature_std
from jepa_lab.nets import MLP
from jepa_lab.objectives.jepa import REGULARISERS
from jepa_lab.polar.behavior import Behavior
from jepa_lab.polar.dynamics import carried
from jepa_lab.polar.features import QuadratureBank, Response
from jepa_lab.polar.summary import trace

_TRACES = (0.74, 0.95)
_STEP = 0.05  # degrees: what an eye drifts in a few frames


class Pooled(NamedTuple):
    """Responses of one level as readout windows or the cells of a grid show them.

    Shapes: amplitude, re, im [B, T, M, U].
    Book: chapter 15.
    """

    amplitude: Tensor
    re: Tensor
    im: Tensor


@dataclass(frozen=True)
class PolarJEPAConfig:
    """`grid` cells a side, `delta_frames` to look ahead, widths of the hidden layers and of the embedding.

    `target`, `target_norm` and `regulariser` are those of `objectives.jepa.JEPAConfig`; `momentum` is the constant tau
    of the EMA, and `regulariser_rows` the most embeddings that it looks at.

    Raises: ValueError for a setting out of range.
    Book: chapter 15.
    """

    grid: int = 2
    delta_frames: int = 5
    hidden: int = 256
    dim: int = 128
    target: Literal["ema", "stop_gradient", "none"] = "ema"
    target_norm: Literal["layer", "none"] = "layer"
    momentum: float = 0.99
    regulariser: Literal["none", "vicreg", "sigreg", "isotropy"] = "none"
    regulariser_weight: float = 0.1
    regulariser_rows: int = 512

    def __post_init__(self):
        for name in ("delta_frames", "hidden", "dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"jepa.{name} must be at least 1, got {getattr(self, name)}")
        if self.grid < 2:
            raise ValueError(f"jepa.grid must be at least 2: one cell would average the phases away, got {self.grid}")
        if not 0 <= self.momentum <= 1:
            raise ValueError(f"jepa.momentum must lie in [0, 1], got {self.momentum}")
        for name, allowed in (
            ("target", ("ema", "stop_gradient", "none")),
            ("target_norm", ("layer", "none")),
            ("regulariser", tuple(REGULARISERS)),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"jepa.{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if not self.regulariser_weight >= 0 or self.regulariser_rows < 2:
            raise ValueError(
                "jepa.regulariser_weight must not be negative and jepa.regulariser_rows must be at least 2, got "
                f"{self.regulariser_weight} and {self.regulariser_rows}"
            )


class FirstBatch(nn.Module):
    """(x - mean) / s.d., with the statistics of the first training batch, for good.

    Raw, the coarse levels would drown the fine ones, and of the embedding's directions few would be used.

    Shapes: [..., F] -> [..., F].
    Book: chapter 15.
    """

    def __init__(self, features: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))

    @torch.no_grad()
    def start(self, x: Float[Tensor, "B T F"]) -> None:
        """Take the statistics of x, over the rows of all processes."""
        rows = gather(x).flatten(0, 1)
        self.mean.copy_(rows.mean(0))
        self.std.copy_(rows.std(0).clamp(min=1e-4))

    def forward(self, x: Float[Tensor, "*N F"]) -> Float[Tensor, "*N F"]:
        return (x - self.mean) / self.std


class PolarJEPA(nn.Module):
    """Predict the embedding of the features `delta_frames` ahead from those seen so far.

        loss = smooth_l1(predictor(c_t), layer_norm(f'(x_(t+D))))
        c_t = [z_t, fast and slow trace of z],   z_t = f(x_t),   x_t = amplitudes, Re and Im on the grid

    f' is an EMA of the encoder *and of the filters*; its output carries no gradient. With behaviour the coming gaze is
    given, as an action is: c_t then also holds the coming displacement, the mean gate q on the way, and f of the memory
    carried along by that displacement, so that the gradient reaches dynamics and behaviour. Without behaviour it is
    not given: the movie alone must tell.

    Pairs of frames with a blink on the way do not count. The regulariser acts on z.

    Metrics: `jepa`, the loss without the regulariser; on the same scale `persistence`, the error of predicting that
    nothing changes, and with behaviour `rotation`, that of turning the responses of frame t by the coming displacement;
    `jepa_std`, mean s.d. of the features of z.
    Papers: LeCun 2022; Assran et al. 2023 (I-JEPA). Book: chapter 15.
    """

    def __init__(self, config: PolarJEPAConfig, bank: QuadratureBank, levels: int, pairs: int, behavior: bool):
        super().__init__()
        self.config, self.behavior = config, behavior
        features = 3 * levels * pairs * config.grid**2
        self.standardise = FirstBatch(features)
        self.encoder = MLP(features, config.hidden, config.dim)
        self.predictor = MLP(3 * config.dim + behavior * (config.dim + 3), config.hidden, config.dim)
        ema = config.target == "ema"
        self.target_bank = EMAEncoder(bank, config.momentum) if ema else None
        self.target_encoder = EMAEncoder(self.encoder, config.momentum) if ema else None

    def cells(self, height: int, width: int) -> Float[Tensor, "G P"]:
        """The cells of the grid as masks on a map of this size, each with the sum 1.

        Shapes: -> [grid^2, height width].
        """
        mean = self.standardise.mean
        pixels = torch.eye(height * width, device=mean.device, dtype=mean.dtype).view(-1, height, width)
        return F.adaptive_avg_pool2d(pixels, self.config.grid).flatten(1).T

    def pool(self, levels: list[Response], scale: Float[Tensor, " L"]) -> list[Pooled]:
        """Average over the cells of the grid, and divide each level by its scale.

        Shapes: one Response of [B, T, M, H, W] a level -> one Pooled of [B, T, M, grid^2].
        """
        found = []
        for w, size in zip(levels, scale, strict=True):
            masks = self.cells(*w.maps.shape[-2:]).T / size
            found.append(Pooled(w.amplitude.flatten(-2) @ masks, *(w.maps.flatten(-2) @ masks).unbind(2)))
        return found

    @staticmethod
    def flat(levels: list[Pooled]) -> Float[Tensor, "B T F"]:
        """All features of a frame in one row."""
        return torch.cat([x.flatten(2) for level in levels for x in level], dim=-1)

    def embed(self, levels: list[Pooled]) -> Float[Tensor, "B T D"]:
        """z of every frame."""
        return self.encoder(self.standardise(self.flat(levels)))

    def update(self, progress: float) -> None:
        """Let the target follow; after each optimizer step."""
        if self.target_encoder is not None:
            self.target_bank.update(progress)
            self.target_encoder.update(progress)

    def forward(
        self,
        seen: list[Pooled],
        bands: list[Float[Tensor, "N _ _"]],
        scale: Float[Tensor, " L"],
        valid: Bool[Tensor, "B T"],
        k: Float[Tensor, "L M 2"] | None = None,
        memory: list[Pooled] | None = None,
        behavior: Behavior | None = None,
        pixels_per_degree: float = 16.0,
        generator: torch.Generator | None = None,
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The loss and its metrics; `seen` and `memory` are pooled on the grid and scaled, `bands` those of the movie.

        Raises: ValueError for a movie that is not longer than `delta_frames`.
        """
        config, ahead, frames = self.config, self.config.delta_frames, valid.shape[1]
        if frames <= ahead:
            raise ValueError(f"the movie must be longer than jepa.delta_frames={ahead} frames, got T = {frames}")
        z = self.embed(seen)
        context = [z, *(trace(z, z.new_tensor(alpha)) for alpha in _TRACES)]
        blocked = ~valid
        move = None
        if self.behavior:
            move = pixels_per_degree * _coming(behavior.moved, ahead)
            coming = _coming(behavior.q[..., None], ahead) / ahead
            action = torch.asinh(move / pixels_per_degree / _STEP)
            context += [self.embed(turned(memory, move, k)), action, coming]
            blocked = blocked | behavior.lost
        prediction = self.predictor(torch.cat(context, dim=-1)[:, :-ahead])

        looked = seen if self.target_bank is None else self.pool(self.target_bank(bands, len(z)), scale)
        now = z if self.target_encoder is None else self.aim(looked)
        target = now if config.target == "none" else now.detach()
        # A frame that cannot be seen spoils what lies before it as well: the way from t to t + D must be whole.
        whole = ~blocked[:, :-ahead] & (_coming(blocked[..., None].to(z.dtype), ahead)[:, :-ahead, 0] == 0)
        if not gather(whole).any():
            raise ValueError(f"no {ahead + 1} frames in a row are seen anywhere in the batch: all gaze is NaN")
        loss = self._compare(prediction, target[:, ahead:], whole)
        metrics = {"jepa": loss.detach(), "jepa_std": feature_std(gather(z.detach(), valid)).mean()}
        with torch.no_grad():
            still = normalize_targets(now, config.target_norm)
            metrics["persistence"] = self._compare(still[:, :-ahead], target[:, ahead:], whole)
            if self.behavior:
                there = normalize_targets(self.aim(turned(looked, move, k)), config.target_norm)
                metrics["rotation"] = self._compare(there[:, :-ahead], target[:, ahead:], whole)
        if config.regulariser != "none":
            rows = gather(z, valid)
            if len(rows) > config.regulariser_rows:
                rows = rows[torch.randperm(len(rows), generator=generator)[: config.regulariser_rows].to(rows.device)]
            loss = loss + config.regulariser_weight * REGULARISERS[config.regulariser](rows, generator)
        return loss, metrics

    def _compare(self, prediction: Tensor, target: Tensor, whole: Tensor) -> Tensor:
        if not whole.any():  # none on this process, some on another
            return global_mean(prediction.sum() * 0, whole)
        return global_mean(prediction_loss(prediction, target, whole, "smooth_l1", self.config.target_norm), whole)

    def aim(self, levels: list[Pooled]) -> Float[Tensor, "B T D"]:
        """Embeddings by the encoder that makes the targets, before the target norm."""
        encoder = self.encoder if self.target_encoder is None else self.target_encoder
        return encoder(self.standardise(self.flat(levels)))


def turned(levels: list[Pooled], move: Float[Tensor, "B T 2"], k: Float[Tensor, "L M 2"]) -> list[Pooled]:
    """The responses once the gaze has moved by so many pixels, if rotation were all; the amplitudes stay.

    Shapes: as `levels`.
    Book: chapter 15.
    """
    return [Pooled(w.amplitude, *carried(w.re, w.im, move, one)) for w, one in zip(levels, k, strict=True)]


def _coming(x: Float[Tensor, "B T F"], ahead: int) -> Float[Tensor, "B T F"]:
    """The sum of x over the next `ahead` frames, t + 1 to t + ahead; of fewer at the end."""
    total = F.pad(x.cumsum(1), (0, 0, 1, ahead))
    total[:, -ahead:] = total[:, -ahead - 1, None]
    return total[:, ahead + 1 :] - total[:, 1:-ahead]
