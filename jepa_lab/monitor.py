"""Watch a collapse happen: one call a step in any training loop, a history of what matters, and an alarm.

Book: chapter 06.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from jepa_lab.metrics import diagnose, mean_cosine, mean_norm_ratio, normalized_std
from jepa_lab.report import CollapseReport
from jepa_lab.spectra import spectral_entropy_rank, spectrum
from jepa_lab.training_monitor import TrainingMonitor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["CollapseMonitor", "TrainingMonitor", "measure"]

# The normalised std fell by this factor from its highest value so far: an alarm. On digits, over 120 steps and five
# seeds, it falls to below 1/15 when the targets carry gradient, and with an EMA never below 1/2.
ALARM_FACTOR = 5.0
# Readings that wait on the device before they are measured together: their rows must fit there.
_PENDING = 16
_NAMES = ("normalized_std", "mean_cosine", "effective_rank", "rankme", "mean_norm_ratio", "std")


class CollapseMonitor:
    """Six numbers of the embeddings of a batch, over training.

        monitor = CollapseMonitor(every=10)
        for batch in batches:
            ...
            monitor(z, loss=loss)
        monitor.plot()

    Args:
        every: measure at every so many calls; the calls in between cost nothing. The first call is measured.
        max_rows: measure at most so many rows of a batch, drawn at random from a generator of the monitor's own. A rank
            cannot exceed the number of rows: keep it well above the width if you can, and fixed over a run.
        seed: of that generator.

    `history` is a dict of equally long lists: `step`, `normalized_std`, `mean_cosine`, `effective_rank` (centred),
    `rankme` (not centred), `mean_norm_ratio`, `std` (root mean square over the features) and what came by keyword.
    Nothing is copied from the device during a call; the rows wait there, and 16 readings are measured together.

    Raises: ValueError for every < 1 or max_rows < 2.
    Book: chapter 06.
    """

    def __init__(self, every: int = 1, max_rows: int = 256, seed: int = 0):
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        if max_rows < 2:
            raise ValueError(f"max_rows must be at least 2, got {max_rows}")
        self.every, self.max_rows = every, max_rows
        self.generator = torch.Generator().manual_seed(seed)
        self.calls = 0
        self._history: dict[str, list[int | float]] = {}
        self._pending: list[tuple[int, Tensor, dict[str, Tensor | float]]] = []
        self._extra: tuple[str, ...] | None = None
        self._last: Tensor | None = None

    @torch.no_grad()
    def __call__(self, z: Tensor | np.ndarray, step: int | None = None, **extra: Tensor | float) -> None:
        """Take a reading of embeddings [n, D], if it is time for one; `extra` are scalars to keep beside it.

        `step` is the number of the reading on the axis of the plot; without it, the number of the call, from 1.
        Raises: ValueError when z is not [n, D] with two rows or more, or `extra` has other names than before.
        """
        self.calls += 1
        if (self.calls - 1) % self.every:
            return
        z = torch.as_tensor(z).detach()
        if z.ndim != 2 or len(z) < 2:
            raise ValueError(f"z must be [n, D] with at least 2 rows, got shape {tuple(z.shape)}")
        taken = ("step", *_NAMES)
        if self._extra is None:
            if set(extra) & set(taken):
                raise ValueError(f"extra must not be called {', '.join(taken)}, got {', '.join(extra)}")
            self._extra = tuple(extra)
        if set(extra) != set(self._extra):
            raise ValueError(f"extra must be {', '.join(self._extra) or 'empty'} as before, got {', '.join(extra)}")
        if len(z) > self.max_rows:
            chosen = torch.randperm(len(z), generator=self.generator)[: self.max_rows]
            rows = z[chosen.to(z.device)]
        else:
            rows = z.clone()  # the caller may write into its own tensor before the reading is measured
        kept = {name: v.detach().clone() if isinstance(v, Tensor) else float(v) for name, v in extra.items()}
        self._pending.append((self.calls if step is None else int(step), rows, kept))
        self._last = rows
        if len(self._pending) >= _PENDING:
            self._measure()

    @torch.no_grad()
    def _measure(self) -> None:
        """Measure the waiting readings on their device, and bring all numbers to the host at once."""
        if not self._pending:
            return
        columns = []
        for _, rows, extra in self._pending:
            values = [measure(rows), *(torch.as_tensor(extra[name]).reshape(1).to(rows.device) for name in self._extra)]
            columns.append(torch.cat([v.float() for v in values]))
        names = (*_NAMES, *self._extra)
        for (step, _, _), row in zip(self._pending, torch.stack(columns).tolist(), strict=True):
            for name, value in {"step": step, **dict(zip(names, row, strict=True))}.items():
                self._history.setdefault(name, []).append(value)
        self._pending.clear()

    @property
    def history(self) -> dict[str, list[int | float]]:
        self._measure()
        return self._history

    @property
    def alarms(self) -> list[int]:
        """Steps at which the normalised std first lay below a fifth of its highest value so far.

        A fall that lasts counts once. A loss that falls at the same time is no good news: it is how a collapse looks.
        """
        steps, std = self.history.get("step", []), self.history.get("normalized_std", [])
        peak, below, found = 0.0, False, []
        for step, value in zip(steps, std, strict=True):
            peak = max(peak, value)  # NaN never becomes the peak
            fallen = value < peak / ALARM_FACTOR
            if fallen and not below:
                found.append(step)
            below = fallen
        return found

    def report(self, reference_std: float | None = None) -> CollapseReport:
        """The verdict of `metrics.diagnose` on the rows of the last reading.

        Raises: ValueError before the first reading.
        """
        if self._last is None:
            raise ValueError("nothing to report: the monitor has not been called yet")
        return diagnose(self._last, reference_std=reference_std)

    def watch(self, data: dict[str, Tensor], name: str = "pooled") -> Callable:
        """A function `evaluate(objective)` for `Trainer`: reads `objective.represent(data, name)`, returns the numbers.

            Trainer(objective, train, config, evaluate=monitor.watch(validation))

        Each evaluation is a reading, whatever `every` is; it says nothing of the training step, which the trainer keeps
        beside it in `evaluations`, and so `step` counts evaluations here.
        """

        def evaluate(objective) -> dict[str, float]:
            device = next(objective.parameters()).device
            z = objective.represent({key: value.to(device) for key, value in data.items()}, name)
            self.calls += -self.calls % self.every  # so that this call is a reading
            self(z.flatten(1), step=len(self.history.get("step", [])) + 1)
            return {key: values[-1] for key, values in self.history.items() if key != "step"}

        return evaluate

    def plot(self) -> "Figure":
        """Draw every quantity over the steps, in small panels; alarms are vertical lines.

        Raises: ValueError before the first reading.
        """
        from jepa_lab.style import COLORS, figure  # here, since drawing stands at the other end of the import graph

        history = self.history
        if not history:
            raise ValueError("nothing to draw: the monitor has not been called yet")
        names = [name for name in history if name != "step"]
        rows = math.ceil(len(names) / 3)
        fig, axes = figure(rows, 3, height=1.7 * rows + 0.3)
        marker = "o" if len(history["step"]) < 3 else ""
        for i, (ax, name) in enumerate(zip(axes.flat, names, strict=False)):
            ax.plot(history["step"], history[name], color=COLORS["JEPA"], marker=marker)
            ax.set(title=name, xlabel="training step" if i + 3 >= len(names) else "")
            if name in ("normalized_std", "std") and min(history[name]) > 0:
                ax.set_yscale("log")  # a fall to a hundredth is not the same as one to a tenth
            elif name in ("effective_rank", "rankme"):
                ax.set_ylim(bottom=0)  # the sampled rows alone make it waver by a little
            for step in self.alarms:
                ax.axvline(step, color=COLORS["contrastive"], linestyle="dashed", linewidth=1)
        for ax in axes.flat[len(names) :]:
            ax.set_axis_off()
        return fig


def measure(rows: Tensor) -> Tensor:
    """The six numbers of a reading, in the order of the history, on the device of the rows; NaN if a row is not finite.

    Shapes: [n, D] -> [6].
    """
    rows = rows if rows.dtype == torch.float64 else rows.float()
    if not rows.isfinite().all():  # an eigenvalue solver would raise, and stop a training run for a broken reading
        return torch.full((len(_NAMES),), math.nan, device=rows.device)
    values = [
        normalized_std(rows),
        mean_cosine(rows),
        spectral_entropy_rank(spectrum(rows)),
        spectral_entropy_rank(spectrum(rows, center=False), 1e-7),
        mean_norm_ratio(rows),
        rows.std(0).square().mean().sqrt(),
    ]
    return torch.stack([value.float() for value in values])
