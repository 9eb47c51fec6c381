"""From a movie and the eye's movements to the spikes of V1, with parts that can be switched on and off.

Book: chapter 15.
"""

import math
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from jepa_lab.distributed import gather, global_mean
from jepa_lab.objectives.base import Objective
from jepa_lab.polar.behavior import Behavior, BehaviorConfig, BehaviorEncoder, blinks
from jepa_lab.polar.dynamics import DynamicsConfig, phase_advance, relaxed_amplitude, rotated_memory
from jepa_lab.polar.features import FeatureConfig, PolarFeatures, Response
from jepa_lab.polar.jepa import PolarJEPA, PolarJEPAConfig, Pooled
from jepa_lab.polar.readout import GaussianReadout
from jepa_lab.polar.score import poisson_nll
from jepa_lab.polar.summary import CHANNELS, Summary, TemporalSummarizer

_FILTERS = 0.1  # the filters' share of the learning rate: they start where they should be
_QUIET = 0.1  # of the readout's weights are left at the start: at first a model says the mean rate
_FLOOR = 0.01  # counts a frame; a neuron that is silent in the first batch must still be able to fire


@dataclass(frozen=True)
class PolarV1Config:
    """Three switches make the six models of the book, the rest is their size.

    | model | dynamics | summary | use_jepa |
    |---|---|---|---|
    | minimal, jepa | none | temporal | false, true |
    | behavior, behavior_jepa | behavior | temporal | false, true |
    | static, static_jepa | none | static | false, true |

    `window` is the s.d. of a neuron's readout window at the start, in pixels of the level. It averages over phases: of
    Re and Im exp(-(2 pi f window)^2 / 2) are left, a quarter at 1.8 pixels and nothing at 6.

    Raises: ValueError for settings out of range or that do not fit together.
    Book: chapter 15.
    """

    dynamics: Literal["none", "behavior"] = "none"
    summary: Summary = "temporal"
    use_jepa: bool = False
    lambda_jepa: float = 0.5
    window: float = 1.8
    features: FeatureConfig = field(default_factory=FeatureConfig)
    recurrence: DynamicsConfig = field(default_factory=DynamicsConfig)
    behavior: BehaviorConfig = field(default_factory=BehaviorConfig)
    jepa: PolarJEPAConfig = field(default_factory=PolarJEPAConfig)

    def __post_init__(self):
        for name, allowed in (("dynamics", ("none", "behavior")), ("summary", tuple(CHANNELS))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if not (math.isfinite(self.lambda_jepa) and self.lambda_jepa >= 0):
            raise ValueError(f"lambda_jepa must be a number of 0 or more, got {self.lambda_jepa}")
        if not (math.isfinite(self.window) and self.window > 0):
            raise ValueError(f"window must be a positive number of pixels, got {self.window}")
        if self.dynamics == "behavior" and self.features.filters == "noise":
            raise ValueError("dynamics=behavior rotates phases and needs features.filters=gabor, got noise")


class _Seen(NamedTuple):
    """The pooled responses of each level, their energy, and with behaviour the memory of them."""

    pooled: list[Pooled]
    energy: list[Tensor]
    memory: list[Pooled] | None
    behavior: Behavior | None


class PolarV1(Objective):
    """Movie and gaze in, a rate for each neuron and frame out.

        rate_u = m_u softplus(readout_u(features)) / ln 2 gain_u,   loss = Poisson NLL + lambda_jepa JEPA

    m_u is the neuron's mean count in the first training batch, from which the scale of each level is taken too. What
    the readout sees: the summary of the pooled responses and, with behaviour, the relaxed amplitude h and the rotated
    memory z. The gain is that of the behaviour, 1 without. Without behaviour the gaze is not looked at, except for
    blinks: frames whose gaze is NaN are never scored.

    A batch: movie [B, T, H, W], counts [B, T, U] and scored Bool[B, T], where the counts are known and the memory is
    filled; gaze [B, T, 2] in degrees, x right and y down, needed with behaviour only. A batch without a scored frame is
    allowed with JEPA: an unlabelled movie.

    JEPA is computed in training only. With lambda_jepa = 0 it is watched and changes nothing.

    Represents: `rates` [B, T, U]; with JEPA `embedding` [B, T, D], that of the target encoder.

    Metrics: `nll`, `blinks` (frames a batch), and with JEPA those of `PolarJEPA`.
    Raises: ValueError for gaze that is missing or of another length, counts below 0, and movies of another size or too
        short; TypeError for movies that are not float.
    Book: chapter 15.
    """

    Config = PolarV1Config
    family = "polar"
    some_without_gradient = True  # an unlabelled batch leaves the readout alone, lambda_jepa = 0 the predictor

    def __init__(self, config: PolarV1Config | None = None, units: int = 8, image_size: int = 24, seed: int = 0):
        self.config = config = config or PolarV1Config()
        super().__init__(PolarFeatures(config.features), seed)
        levels, pairs = config.features.levels, config.features.pairs
        self.units, self.image_size = units, image_size
        self.with_behavior = config.dynamics == "behavior"
        self.representations = ("rates", "embedding") if config.use_jepa else ("rates",)
        channels = (CHANNELS[config.summary] + 3 * self.with_behavior) * pairs
        self.summary = TemporalSummarizer(config.summary)
        self.readout = GaussianReadout(levels, channels, units)
        with torch.no_grad():
            half = image_size / 2 / 2.0 ** torch.arange(levels)
            self.readout.log_width.copy_((config.window / half).log()[:, None, None].expand_as(self.readout.log_width))
            self.readout.weight.mul_(_QUIET)
        self.behavior = None
        if self.with_behavior:
            self.behavior = BehaviorEncoder(config.behavior, levels, pairs, units, config.recurrence.dt)
            self.rest = nn.Parameter(torch.ones(levels, pairs))  # amplitudes are scaled to a mean of 1
        self.register_buffer("scale", torch.ones(levels))
        self.register_buffer("mean_count", torch.ones(units))
        self.register_buffer("started", torch.zeros((), dtype=torch.long))
        # Last, so that what comes before has the same weights with and without it.
        self.jepa = None
        if config.use_jepa:
            self.jepa = PolarJEPA(config.jepa, self.encoder.bank, levels, pairs, self.with_behavior)
        self._behind = False  # whether `started` is known to be set: reading the buffer would stall a GPU every step

    @torch.no_grad()
    def start(self, batch: dict[str, Tensor]) -> None:
        """Take the scales and the mean counts from this batch. The first training step does so by itself.

        Raises: as `forward`; ValueError when no frame of the batch is scored.
        """
        self._check(batch)
        levels = self.encoder(batch["movie"])
        amplitude = torch.stack([w.amplitude.flatten(1).mean(1) for w in levels], dim=1)
        self.scale.copy_(gather(amplitude).mean(0))
        counts = gather(batch["counts"], self._scored(batch))
        if not len(counts):
            raise ValueError("scored: no frame of the first batch is; its counts set the neurons' mean rates")
        self.mean_count.copy_(counts.to(self.mean_count.dtype).mean(0).clamp(min=_FLOOR))
        if self.jepa is not None:
            self.jepa.standardise.start(self.jepa.flat(self.jepa.pool(levels, self.scale)))
        self.started.fill_(1)

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        if self.training and not self._behind:
            if not self.started:
                self.start(batch)
            self._behind = True
        self._check(batch)
        bands = self.encoder.bands(batch["movie"])
        levels = self.encoder.bank(bands, len(batch["movie"]))
        watched, weight = self.jepa is not None and self.training, self.config.lambda_jepa
        behavior = self._behavior(batch)
        seen = self._see(levels, behavior, with_cells=watched and weight > 0)
        rates = self._rates(seen)
        scored = self._scored(batch)
        nll = self._nll(rates, batch["counts"], scored)
        metrics = {"nll": nll.detach(), "blinks": gather(self._blinked(batch)).sum().float()}
        if not watched:
            return nll, metrics
        if weight > 0:
            jepa, found = self._jepa(seen, bands, batch)
            return nll + weight * jepa, metrics | found
        # A product with more columns rounds otherwise: what is only watched is pooled apart.
        with torch.no_grad():
            return nll, metrics | self._jepa(self._cells(levels, behavior), bands, batch)[1]

    def rates(self, batch: dict[str, Tensor]) -> Float[Tensor, "B T U"]:
        """Expected counts of every neuron and frame; the first frames have little past to go by.

        Raises: as `forward`.
        """
        self._check(batch, counted=False)
        return self._rates(self._see(self.encoder(batch["movie"]), self._behavior(batch), with_cells=False))

    @torch.no_grad()
    def forecast_errors(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """The JEPA's error on this batch beside those of its two baselines: `jepa`, `persistence`, `rotation`.

        Raises: ValueError for a model without JEPA; as `forward`.
        """
        if self.jepa is None:
            raise ValueError("forecast_errors needs a model with use_jepa=true")
        self._check(batch, counted=False)
        bands = self.encoder.bands(batch["movie"])
        levels = self.encoder.bank(bands, len(batch["movie"]))
        metrics = self._jepa(self._cells(levels, self._behavior(batch)), bands, batch)[1]
        return {name: metrics[name].item() for name in ("jepa", "persistence", "rotation") if name in metrics}

    def after_step(self, progress: float) -> None:
        if self.jepa is not None:
            self.jepa.update(progress)

    def param_groups(self, lr: float) -> list[dict]:
        """The filters learn ten times slower, and do not decay."""
        filters = list(self.encoder.parameters())
        known = {id(p) for p in filters}
        groups = super().param_groups(lr)
        for group in groups:
            group["params"] = [p for p in group["params"] if id(p) not in known]
        return [*groups, {"params": filters, "lr": _FILTERS * lr, "weight_decay": 0.0}]

    def _represent(self, batch: dict[str, Tensor], name: str) -> Tensor:
        if name == "rates":
            return self.rates(batch)
        self._check(batch, counted=False)
        jepa, movie = self.jepa, batch["movie"]
        bank = self.encoder.bank if jepa.target_bank is None else jepa.target_bank
        return jepa.aim(jepa.pool(bank(self.encoder.bands(movie), len(movie)), self.scale))

    # ------------------------------------------------------------------------------------------------ the stages

    def _behavior(self, batch: dict[str, Tensor]) -> Behavior | None:
        return self.behavior(batch["gaze"]) if self.with_behavior else None

    def _see(self, levels: list[Response], behavior: Behavior | None, with_cells: bool) -> _Seen:
        """Pool every map to the neurons' windows and, behind them, to the cells of the JEPA's grid, in one product.

        All that follows in time is linear with the same coefficients at all places, the temporal energy apart: pooled
        first, it costs next to nothing.
        """
        pooled, energies = [], []
        for level, w in enumerate(levels):
            masks = self.readout.masks(level, *w.maps.shape[-2:]).flatten(1)
            if with_cells:
                masks = torch.cat([masks, self.jepa.cells(*w.maps.shape[-2:])])
            masks = masks.T / self.scale[level]
            amplitude, parts = (x.flatten(-2) @ masks for x in (w.amplitude, w.maps))
            pooled.append(Pooled(amplitude, *parts.unbind(2)))
            # A change over two frames is known from the third on.
            energies.append(F.pad(w.energy.flatten(-2) @ masks[:, : self.units], (0, 0, 0, 0, 2, 0)))
        return _Seen(pooled, energies, self._memory(pooled, behavior) if behavior else None, behavior)

    def _cells(self, levels: list[Response], behavior: Behavior | None) -> _Seen:
        """What the JEPA is shown, alone."""
        pooled = self.jepa.pool(levels, self.scale)
        return _Seen(pooled, [], self._memory(pooled, behavior) if behavior else None, behavior)

    def _memory(self, levels: list[Pooled], behavior: Behavior) -> list[Pooled]:
        """The relaxed amplitude and the rotated memory of each level."""
        recurrence = self.config.recurrence
        leak, pixels = recurrence.leak(behavior.q), recurrence.pixels_per_degree * behavior.moved
        found = []
        for level, (w, k) in enumerate(zip(levels, self.encoder.wave_vectors(), strict=True)):
            advance = phase_advance(pixels, k, behavior.gamma[:, :, level], behavior.rho[:, :, level])
            h = relaxed_amplitude(w.amplitude, behavior.q, leak, self.rest[level])
            found.append(Pooled(h, *rotated_memory(w.re, w.im, leak, advance)))
        return found

    def _rates(self, seen: _Seen) -> Float[Tensor, "B T U"]:
        units = slice(self.units)
        windows = [Pooled(*(x[..., units] for x in w)) for w in seen.pooled]
        features = [self.summary(w.amplitude, e, w.re, w.im) for w, e in zip(windows, seen.energy, strict=True)]
        gain = 1.0
        if seen.behavior is not None:
            gain = seen.behavior.gain
            features = [
                torch.cat([x, *(m[..., units] for m in memory)], dim=2)
                for x, memory in zip(features, seen.memory, strict=True)
            ]
        return self.mean_count * F.softplus(self.readout(features)) / math.log(2) * gain

    def _jepa(self, seen: _Seen, bands: list[Tensor], batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        def cells(levels: list[Pooled]) -> list[Pooled]:
            last = -(self.jepa.config.grid**2)
            return [Pooled(*(x[..., last:] for x in w)) for w in levels]

        given = {}
        if seen.behavior is not None:
            given = {
                "k": self.encoder.wave_vectors(),
                "memory": cells(seen.memory),
                "behavior": seen.behavior,
                "pixels_per_degree": self.config.recurrence.pixels_per_degree,
            }
        valid = ~self._blinked(batch)
        return self.jepa(cells(seen.pooled), bands, self.scale, valid, generator=self.generator, **given)

    # ------------------------------------------------------------------------------------------------- the batch

    def _nll(self, rates: Tensor, counts: Tensor, scored: Tensor) -> Tensor:
        if scored.any():
            return global_mean(poisson_nll(rates, counts, scored), scored)
        if self.jepa is None and not gather(scored).any():
            raise ValueError("scored: no frame of the batch is, and without JEPA there is nothing to learn from it")
        return global_mean(rates.sum() * 0, scored) if gather(scored).any() else rates.sum() * 0

    def _scored(self, batch: dict[str, Tensor]) -> Bool[Tensor, "B T"]:
        return batch["scored"] & ~self._blinked(batch)

    def _blinked(self, batch: dict[str, Tensor]) -> Bool[Tensor, "B T"]:
        if "gaze" in batch:
            return blinks(batch["gaze"])
        return torch.zeros(batch["movie"].shape[:2], dtype=torch.bool, device=batch["movie"].device)

    def _check(self, batch: dict[str, Tensor], counted: bool = True) -> None:
        movie, size = batch["movie"], self.image_size
        if not movie.is_floating_point():
            raise TypeError(f"movie must be float (grey values around 0), got {movie.dtype}; call .float() on it")
        if movie.ndim != 4 or movie.shape[2:] != (size, size):
            raise ValueError(f"movie must be [B, T, {size}, {size}], got {list(movie.shape)}")
        if self.with_behavior and "gaze" not in batch:
            raise ValueError("gaze is missing from the batch, and dynamics=behavior needs it; or set dynamics=none")
        if "gaze" in batch and batch["gaze"].shape != (*movie.shape[:2], 2):
            raise ValueError(f"gaze must be [B, T, 2] = {[*movie.shape[:2], 2]}, got {list(batch['gaze'].shape)}")
        if counted and batch["counts"].shape != (*movie.shape[:2], self.units):
            expected = [*movie.shape[:2], self.units]
            raise ValueError(f"counts must be [B, T, U] = {expected}, got {list(batch['counts'].shape)}")
