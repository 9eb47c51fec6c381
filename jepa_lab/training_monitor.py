"""How does a training run go, epoch by epoch? Log it, look at it, take it elsewhere, and go on after a resume.

Book: chapter 12.
"""

import math
import numbers
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from jepa_lab import history_files
from jepa_lab.history_files import Column
from jepa_lab.metric_names import VALIDATION, held_out, higher_is_better, split_of
from jepa_lab.training_history import best, epochs_of, span

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from jepa_lab.training import Trainer
    from jepa_lab.training_summary import Summary

# Numbers that may wait on the device before they are fetched.
_PENDING = 1024


class TrainingMonitor:
    """The metrics of training, one row an epoch.

        monitor = TrainingMonitor()
        for epoch in range(10):
            monitor.log_metrics(epoch + 1, trainer.train_epoch(epoch))
        monitor.plot_losses()
        print(monitor.summary())
        monitor.export_history("history.csv")

    Names follow `metric_names`: `validation/NAME` is NAME on the validation split, `steering/VARIANT` a share, all
    others are metrics of training. Epochs count from 1 as in `Trainer.evaluations`: how many are done.
    `TrainingMonitor.from_trainer(trainer)` reads a trainer that has run.

    Args:
        higher, lower: names of metrics of which more (less) is better, where `higher_is_better` does not know it.

    Raises: ValueError if a name stands in both.
    Book: chapter 12.
    """

    def __init__(self, higher: Collection[str] = (), lower: Collection[str] = ()):
        both = sorted(set(higher) & set(lower))
        if both:
            raise ValueError(f"higher and lower must not name the same metric, got {', '.join(both)} in both")
        self.higher, self.lower = set(higher), set(lower)
        self._rows: dict[int, dict[str, float | Tensor]] = {}
        self._waiting = 0

    def log_metrics(self, epoch: int, metrics: Mapping[str, Any]) -> None:
        """Keep the metrics of an epoch: numbers, or tensors with one element, which are fetched later and together.

        Not every epoch needs every name. A second call for the last epoch adds its names, and replaces those that
        were there. An earlier epoch means that a run goes on from a checkpoint: that epoch and all after it are
        forgotten. A value that is not finite is kept, and marked in tables and figures.

        Raises: TypeError or ValueError naming the metric that is no scalar; ValueError for an earlier epoch without
            any of the names it had: that is no repetition, and the later epochs would be lost.
        """
        if isinstance(epoch, bool) or not isinstance(epoch, numbers.Integral) or epoch < 0:
            raise ValueError(f"epoch must be a whole number from 0, got {epoch!r}")
        kept = {_checked_name(name): _scalar(name, value) for name, value in metrics.items()}
        epoch, last = int(epoch), max(self._rows, default=-1)
        if epoch < last:
            old = self._rows.get(epoch)
            if old and not set(old) & set(kept):
                raise ValueError(
                    f"epoch {epoch} lies before epoch {last}, and its metrics ({', '.join(kept) or 'none'}) are not "
                    f"those it had: log in the order of the epochs, or call truncate({epoch - 1}) to start again there"
                )
            self.truncate(epoch - 1)
        self._rows.setdefault(epoch, {}).update(kept)
        self._waiting += sum(isinstance(value, Tensor) for value in kept.values())
        if self._waiting >= _PENDING:
            self._fetch()

    def truncate(self, epoch: int) -> None:
        """Forget what lies after an epoch."""
        self._rows = {known: row for known, row in self._rows.items() if known <= epoch}

    def _fetch(self) -> None:
        """Bring the tensors that wait to the host: one transfer for each device and precision."""
        waiting: dict[tuple, list[tuple[dict, str]]] = {}
        for row in self._rows.values():
            for name, value in row.items():
                if isinstance(value, Tensor):
                    waiting.setdefault((value.device, value.dtype), []).append((row, name))
        for places in waiting.values():
            for (row, name), value in zip(places, torch.stack([row[n] for row, n in places]).tolist(), strict=True):
                row[name] = float(value)
        self._waiting = 0

    @property
    def history(self) -> dict[str, Column]:
        """Equally long lists: `epoch`, and every metric in the order of its first appearance, None where missing."""
        self._fetch()
        names = dict.fromkeys(name for row in self._rows.values() for name in row)
        columns: dict[str, Column] = {"epoch": list(self._rows)}
        return columns | {name: [row.get(name) for row in self._rows.values()] for name in names}

    @property
    def not_finite(self) -> dict[str, list[int]]:
        """The epochs at which a metric was NaN or infinite, by metric; empty when all is well."""
        self._fetch()
        found: dict[str, list[int]] = {}
        for epoch, row in self._rows.items():
            for name, value in row.items():
                if not math.isfinite(value):
                    found.setdefault(name, []).append(epoch)
        return found

    # --- with the trainer

    def watch(self, evaluate: Callable | None = None, every: int = 1) -> Callable:
        """A function `evaluate(objective)` for `Trainer` that logs what it returns as validation metrics.

            Trainer(objective, train, config, evaluate=monitor.watch(evaluate))

        The trainer does not tell the epoch: it is `every` (the trainer's `evaluate_every`) after the last one with
        validation metrics, also after a resume. `read(trainer)` adds the training metrics, and the exact epochs.
        Without `evaluate` nothing is measured, and the trainer merely notes when it could have been.

        Raises: ValueError for every < 1.
        """
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")

        def watched(objective) -> dict[str, float]:
            values = dict(evaluate(objective)) if evaluate else {}
            seen = [epoch for epoch, row in self._rows.items() if any(name.startswith(VALIDATION) for name in row)]
            if values:
                self.log_metrics(max(seen, default=0) + every, {held_out(name): v for name, v in values.items()})
            return values

        return watched

    def read(self, trainer: "Trainer") -> "TrainingMonitor":
        """Take over `trainer.history`, as the mean over the steps of each epoch, and `trainer.evaluations`.

        Evaluations become `validation/NAME`. Whatever else was logged stays, except after the trainer's last epoch.
        The trainer counts steps: those between two evaluations, and up to the last epoch, are divided evenly among
        their epochs. Of an epoch that was interrupted, the steps so far count.

        Raises: ValueError when the trainer has not taken a step.
        """
        rows = epochs_of(trainer)
        self.truncate(max(rows))
        names = {name for row in rows.values() for name in row}
        for epoch, row in self._rows.items():
            if epoch >= min(rows):
                self._rows[epoch] = {name: value for name, value in row.items() if name not in names}
        for epoch, row in rows.items():
            self._rows[epoch] = self._rows.get(epoch, {}) | {name: _scalar(name, v) for name, v in row.items()}
        self._rows = {epoch: self._rows[epoch] for epoch in sorted(self._rows)}
        return self

    @classmethod
    def from_trainer(cls, trainer: "Trainer", **settings) -> "TrainingMonitor":
        """A monitor of what a trainer has done: `TrainingMonitor().read(trainer)`."""
        return cls(**settings).read(trainer)

    # --- to look at

    def best(self, name: str, higher: bool | None = None) -> tuple[int, float]:
        """The first epoch with the best value of a metric, and the value; `higher` says which end is best.

        Raises: ValueError for a metric that was never finite, or whose better end is not known.
        """
        higher = self._higher(name) if higher is None else higher
        if higher is None:
            raise ValueError(f"higher must be True or False for {name!r}: its name does not tell which end is better")
        return best(self.history, name, higher)

    def _higher(self, name: str) -> bool | None:
        for given, answer in ((self.higher, True), (self.lower, False)):
            if {name, split_of(name)[1]} & given:
                return answer
        return higher_is_better(name)

    def summary(self) -> "Summary":
        """First, last and best value of every metric, and the epoch of the best.

        Best is the lowest loss or error and the highest recall or accuracy, by the rule of `higher_is_better` and the
        settings `higher` and `lower`; a metric of neither kind has none. The first of equal epochs counts.
        """
        from jepa_lab.training_summary import summarise  # here, as drawing: at the other end of the import graph

        return summarise(self.history, self._higher)

    def __str__(self) -> str:
        return str(self.summary())

    def __repr__(self) -> str:
        history = self.history
        return f"<TrainingMonitor: {span(history['epoch'])}, {len(history) - 1} metrics>"

    def _repr_html_(self) -> str:
        return self.summary()._repr_html_()

    def plot_losses(self, path: str | Path | None = None, names: list[str] | None = None) -> "Figure":
        """Draw a small panel per loss, training and validation together; `names` chooses others. Saves to `path`.

        Raises: ValueError if no loss was logged.
        """
        from jepa_lab.training_plots import (
            losses,
            saved,
        )  # here, since drawing stands at the other end of the import graph

        return saved(losses(self.history, names), path)

    def plot_steering_distribution(self, path: str | Path | None = None) -> "Figure":
        """Draw the share of each steering variant (metrics `steering/VARIANT`) per epoch. Saves to `path`.

        Raises: ValueError if none was logged, or the shares of an epoch do not sum to 1.
        """
        from jepa_lab.training_plots import saved, steering_distribution

        return saved(steering_distribution(self.history), path)

    # --- to keep

    def export_history(self, path: str | Path) -> Path:
        """Write the history to a `.csv` or `.json` file, whole or not at all; `load` reads both without any loss.

        CSV has a row an epoch and an empty cell where a value is missing. JSON is `history`, with null where missing
        and "nan", "inf" or "-inf" as text, since JSON has no such numbers.

        Raises: ValueError for another suffix; OSError if it cannot be written: an old file is then left as it was.
        """
        return history_files.write(path, self.history)

    @classmethod
    def load(cls, path: str | Path, **settings) -> "TrainingMonitor":
        """A monitor with the history of a file that `export_history` wrote.

        Raises: ValueError naming what is wrong with the file; OSError if it cannot be read.
        """
        return cls.from_history(history_files.read(path), **settings)

    @classmethod
    def from_history(cls, history: Mapping[str, Sequence[int | float | None]], **settings) -> "TrainingMonitor":
        """A monitor with the given `history`.

        Raises: ValueError unless all columns are as long as `epoch`, and the epochs rise.
        """
        try:
            history_files.check(history)
        except ValueError as error:
            raise ValueError(f"history is no history of training: {error}") from error
        monitor = cls(**settings)
        names = [name for name in history if name != "epoch"]
        for i, epoch in enumerate(history["epoch"]):
            row = {name: history[name][i] for name in names if history[name][i] is not None}
            monitor.log_metrics(epoch, row)
        return monitor

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs so that a resumed run goes on with its history; plain data, no code."""
        return {"history": self.history, "higher": sorted(self.higher), "lower": sorted(self.lower)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state. What was logged before is forgotten.

        Raises: ValueError as `from_history`.
        """
        loaded = self.from_history(state["history"], higher=state["higher"], lower=state["lower"])
        self.higher, self.lower, self._rows, self._waiting = loaded.higher, loaded.lower, loaded._rows, 0


def _checked_name(name: Any) -> str:
    if not isinstance(name, str) or not name or name == "epoch":
        raise ValueError(f"metrics must be called by text other than 'epoch', got {name!r}")
    return name


def _scalar(name: str, value: Any) -> float | Tensor:
    """A number, or a detached copy of a tensor that stays on its device: no call waits for the device."""
    if isinstance(value, Tensor):
        if value.numel() != 1 or value.is_complex():
            raise ValueError(f"metrics[{name!r}] must be one real number, got {value.dtype} {tuple(value.shape)}")
        return value.detach().reshape(()).clone()  # a copy, since the caller may go on adding to its tensor
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    if not isinstance(value, numbers.Real):
        shape = f" of shape {value.shape}" if isinstance(value, np.ndarray) else f" {value!r}"
        raise TypeError(f"metrics[{name!r}] must be one real number, got {type(value).__name__}{shape}")
    return float(value)
