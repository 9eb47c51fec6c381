"""Which epoch was it? The steps of a trainer's history gathered into epochs, and the best of them.

Book: chapter 12.
"""

import math
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from jepa_lab.history_files import Column
from jepa_lab.metric_names import held_out

if TYPE_CHECKING:
    from jepa_lab.training import Trainer


def epochs_of(trainer: "Trainer") -> dict[int, dict[str, float]]:
    """A row per epoch: the mean over its steps of every metric of training, and the evaluation after it, if any.

    Raises: ValueError when the trainer has not taken a step.
    """
    history, log = trainer.history, trainer.evaluations
    if not history.get("step"):
        raise ValueError("nothing to read: the trainer has not taken a step")
    steps: dict[int, list[int]] = {}
    for i, epoch in enumerate(history["epoch"] if "epoch" in history else _epoch_of_steps(trainer)):
        steps.setdefault(int(epoch), []).append(i)
    names = [name for name in history if name not in ("step", "epoch")]
    rows = {epoch: {n: sum(history[n][i] for i in at) / len(at) for n in names} for epoch, at in steps.items()}
    for i, epoch in enumerate(log.get("epoch", [])):
        values = {held_out(name): log[name][i] for name in log if name not in ("step", "epoch")}
        rows[epoch] = rows.get(epoch, {}) | {name: value for name, value in values.items() if value is not None}
    return rows


def _epoch_of_steps(trainer: "Trainer") -> list[int]:
    """The epoch of every step: evaluations tell the step at which an epoch ended, and epochs in between are alike."""
    log = trainer.evaluations
    # By step, since two evaluations at one step tell nothing of its length.
    ends = {0: 0} | dict(zip(log.get("step", []), log.get("epoch", []), strict=True))
    if trainer._whole:
        ends[trainer.step] = trainer.epoch
    elif len(ends) == 1:  # interrupted, and nothing says where an epoch ended: ask how long the first one is
        ends[len(trainer.batches(0))] = 1
    steps, epochs = list(ends), list(ends.values())
    found, place = [], 1
    for step in trainer.history["step"]:
        while place + 1 < len(steps) and step > steps[place]:
            place += 1
        length, number = steps[place] - steps[place - 1], epochs[place] - epochs[place - 1]
        # In whole numbers: rounding must not move the last step of an epoch into the next one.
        found.append(epochs[place - 1] - (steps[place - 1] - step) * number // length)
    return found


def best(history: Mapping[str, Column], name: str, higher: bool) -> tuple[int, float]:
    """The first epoch with the highest (lowest) finite value of a metric, and the value.

    Raises: ValueError for a metric without any finite value.
    """
    pairs = zip(history["epoch"], history.get(name, [None] * len(history["epoch"])), strict=True)
    finite = [(epoch, value) for epoch, value in pairs if value is not None and math.isfinite(value)]
    if not finite:
        known = ", ".join(key for key in history if key != "epoch") or "nothing"
        raise ValueError(f"{name!r} has no finite value; logged: {known}")
    return (max if higher else min)(finite, key=lambda pair: pair[1])


def span(epochs: Collection[int | float | None]) -> str:
    """How many epochs there are, and which: `3 epochs, 1 to 5`."""
    if not epochs:
        return "Nothing logged yet"
    return f"{len(epochs)} epochs, {min(epochs)} to {max(epochs)}" if len(epochs) > 1 else f"Epoch {min(epochs)}"
