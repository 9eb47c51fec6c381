"""The one training loop.

Book: chapters 01, 12.
"""

import copy
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from jepa_lab import checkpoints as files
from jepa_lab import training_state
from jepa_lab.batches import Batch, shuffled_batches
from jepa_lab.checkpoints import CheckpointError
from jepa_lab.distributed import alone
from jepa_lab.engine import make_engine
from jepa_lab.objectives.base import Objective
from jepa_lab.recipe import TrainConfig, lr_factor, pick_device

__all__ = ["Batch", "History", "TrainConfig", "Trainer", "lr_factor", "pick_device", "seed_all", "shuffled_batches"]

History = dict[str, list[int | float]]


class Trainer:
    """Train an objective: `Trainer(objective, batches, config).fit()`.

    Args:
        batches: a dict of tensors with a common first axis, served as shuffled index batches from memory; or a function
            `batches(epoch)` that returns an iterable of batches with a length, for anything else. A curriculum is such
            a function. What it returns must depend on the epoch alone; if it has a state all the same, let it be an
            object with `state_dict` and `load_state_dict`, which checkpoints then hold.
        evaluate: called as `evaluate(objective)` every `config.evaluate_every` epochs and at the end; returns floats.
        checkpoints: the folder for checkpoints; None writes none. Each run needs a folder of its own.
        settings: what else a checkpoint must say about the run, as plain data: how the data were made, for one. A run
            only goes on from a checkpoint with the same settings, those under `run` excepted.

    After (and during) `fit`: `history`, a dict of equally long lists with one entry a step (`step`, `loss`, `lr`,
    `grad_norm` and the objective's metrics); `evaluations`, likewise with one entry an evaluation; `core_seconds`,
    the CPU time of the training itself without the evaluations; `epoch` and `step`, how many are done; `best`, the
    epoch, step and value of the best `config.monitor` so far.

    Several processes, started with `torchrun` or `accelerate launch`, each train on their share of every batch; the
    first of them evaluates and writes. Every method must be called in all of them.
    Book: chapters 01, 12.
    """

    def __init__(
        self,
        objective: Objective,
        batches: Batch | Callable[[int], Iterable[Batch]],
        config: TrainConfig | None = None,
        evaluate: Callable[[Objective], dict[str, float]] | None = None,
        checkpoints: str | Path | None = None,
        settings: dict[str, Any] | None = None,
    ):
        self.config = config = config or TrainConfig()
        self.checkpoints = None if checkpoints is None else Path(checkpoints)
        self.settings = training_state.describe(config, objective, batches, settings or {})
        self.engine = make_engine(config.precision, config.trackers, config.device, self.checkpoints or "runs")
        if config.batch_size % self.engine.world:
            raise ValueError(
                f"trainer.batch_size={config.batch_size} is the batch of all processes together and must be divisible "
                f"by their number, {self.engine.world}"
            )
        self.device = self.engine.device
        self.objective = objective.to(self.device)
        if isinstance(batches, dict):
            data = {key: value.to(self.device) for key, value in batches.items()}
            batches = shuffled_batches(data, config.batch_size, config.seed)
        self.batches, self.evaluate = batches, evaluate
        self.history: History = {}
        self.evaluations: History = {}
        self.core_seconds = 0.0
        self.epoch, self.step = 0, 0
        self.best: dict[str, int | float] | None = None
        self.best_weights: dict[str, Any] | None = None
        self.waited = 0  # evaluations since the best one
        self.optimizer: Any = None
        self._whole = True  # False in the middle of an epoch
        self._unsaved = False
        self._snapshot: dict[str, Any] | None = None

    def fit(self) -> History:
        """Run the epochs that are left, and return `history`.

        After an interruption by Ctrl-C, or a loss that is not finite, the last checkpoint is that of the last whole
        epoch, and `load_checkpoint` goes on from there. A checkpoint that cannot be written stops the training: without
        one the next fault would cost hours. Nothing is lost by the stop: call `fit` again when there is space.

        Raises: FloatingPointError at a loss or metric (with checkpoints also a weight) that is not finite, naming it
            and the step; CheckpointError when a checkpoint cannot be written, or when a new run finds those of another
            one in its folder; ValueError for a monitored metric that the evaluation does not return; RuntimeError
            after an interruption, until a checkpoint is loaded.
        """
        config = self.config
        if config.monitor and self.evaluate is None:
            raise ValueError(f"trainer.monitor={config.monitor!r} names a metric of evaluate, but there is no evaluate")
        if self.checkpoints:
            if self.engine.rank == 0:
                files.ready(self.checkpoints)
            if self.epoch == 0 and (other := files.latest(self.checkpoints)):
                raise CheckpointError(
                    f"the folder {self.checkpoints} holds checkpoints of another run, the latest is {other.name}: load "
                    "it to go on with that run, name another folder, or delete this one"
                )
        epochs = range(self.epoch, config.epochs)
        quiet = True if self.engine.rank else _quiet()
        self.engine.start(type(self.objective).__name__)
        try:
            with self._threads():
                if self._unsaved:
                    self._keep()
                for epoch in tqdm(
                    epochs, desc="epoch", disable=quiet, leave=False, initial=self.epoch, total=config.epochs
                ):
                    if self.stopped:
                        break
                    self.train_epoch(epoch)
                    last = self.epoch == config.epochs
                    if self.evaluate and (last or (config.evaluate_every and self.epoch % config.evaluate_every == 0)):
                        self.validate()
                    self._keep()
        except (KeyboardInterrupt, FloatingPointError):
            self._rescue()
            raise
        finally:
            self.engine.finish()
        if config.restore_best and self.best_weights is not None:
            self.objective.load_state_dict(self.best_weights)
        return self.history

    def train_epoch(self, epoch: int) -> dict[str, float]:
        """One pass over `batches(epoch)`, epochs counted from 0; returns the mean of every metric over its steps.

        Raises: FloatingPointError at a loss or metric that is not finite, naming the metric and the step.
        """
        self._check_whole()
        before = {name: len(values) for name, values in self.history.items()}
        with self._threads():
            started = time.process_time()
            self._prepare()
            self._whole = False
            self._steps(epoch)
            self._whole, self._unsaved = True, True
            self.epoch = epoch + 1
            self.core_seconds += time.process_time() - started
        new = {name: values[before.get(name, 0) :] for name, values in self.history.items() if name != "step"}
        return {name: sum(values) / len(values) for name, values in new.items() if values}

    def _steps(self, epoch: int) -> None:
        config, engine, objective, pending = self.config, self.engine, self.objective.train(), []
        batches = self.batches(epoch)
        for i, batch in enumerate(batches):
            progress = (epoch + i / len(batches)) / config.epochs
            factor = lr_factor(self.step, progress, config.warmup_steps)
            for group, lr in zip(self.optimizer.param_groups, self._peak_lr, strict=True):
                group["lr"] = lr * factor

            batch = {key: value.to(self.device, non_blocking=True) for key, value in engine.share(batch).items()}
            objective.before_step(progress)
            loss, metrics = self._model(batch)
            self.optimizer.zero_grad(set_to_none=True)
            engine.backward(loss)
            grad_norm = engine.clip(self._parameters, config.clip_norm)
            self.optimizer.step()
            objective.after_step(progress)  # the EMA follows the weights that the step has just made

            self.step += 1
            logged = {"loss": loss.detach(), "grad_norm": grad_norm.detach(), **metrics}
            pending.append((self.step, config.lr * factor, logged))
            if len(pending) == config.log_every:
                self._log(pending)
        self._log(pending)

    def _log(self, pending: list) -> None:
        """Move the pending metrics to the host in one transfer, check them, and append them to the history."""
        if not pending:
            return
        names = list(pending[0][2])
        values = torch.stack([torch.stack([logged[name].float() for name in names]) for _, _, logged in pending])
        # A gradient that overflows in fp16 is no fault: the step is left out and the scale lowered.
        unchecked = ("grad_norm",) if self.engine.scaler else ()
        for (step, lr, _), row in zip(pending, self.engine.mean(values).tolist(), strict=True):
            for name, value in zip(names, row, strict=True):
                if not math.isfinite(value) and name not in unchecked:
                    raise FloatingPointError(
                        f"{name} is {value} at step {step}: stopped. Try a lower trainer.lr, a higher temperature or a "
                        "stronger clip_norm, and look for NaN in the data"
                    )
            new = {"step": step, "lr": lr, **dict(zip(names, row, strict=True))}
            for name, value in new.items():
                self.history.setdefault(name, []).append(value)
            self.engine.log(new, step)
        pending.clear()

    def validate(self) -> dict[str, Any]:
        """Evaluate now, append the result to `evaluations`, keep it if it is the best, and return it.

        Raises: ValueError without an `evaluate`, or when the monitored metric is not in its result.
        """
        if self.evaluate is None:
            raise ValueError("validate needs the evaluate function, which was not given to the Trainer")
        with self._threads():
            with alone():  # the others wait: whatever it computes must not wait for them
                row = self.evaluate(self.objective) if self.engine.rank == 0 else {}
            row = self.engine.same(row)
        self.objective.train()
        for key, value in {"epoch": self.epoch, "step": self.step, **row}.items():
            self.evaluations.setdefault(key, []).append(value)
        self.engine.log({f"validation/{name}": float(value) for name, value in row.items()}, self.step)
        if name := self.config.monitor:
            if name not in row:
                raise ValueError(f"trainer.monitor={name!r} is not a metric of the evaluation; known: {', '.join(row)}")
            value = float(row[name])
            self.waited += 1
            if self.config.is_better(value, self.best and self.best["value"]):
                self.best, self.waited = {"epoch": self.epoch, "step": self.step, "value": value}, 0
                if self.config.restore_best:
                    self.best_weights = copy.deepcopy(self.objective.state_dict())
        return row

    @property
    def stopped(self) -> bool:
        """Whether `config.patience` evaluations have brought nothing better."""
        return 0 < self.config.patience <= self.waited

    def save_checkpoint(self, path: str | Path) -> Path:
        """Write the state after the last epoch: whoever loads it goes on as if nothing had happened, bit for bit.

        Raises: CheckpointError when the file cannot be written, FloatingPointError when a weight is not finite: the old
            file then stays; RuntimeError in the middle of an interrupted epoch.
        """
        self._check_whole()
        self._prepare()
        content = training_state.capture(self)
        return files.save(path, content) if self.engine.rank == 0 else Path(path)

    def load_checkpoint(self, path: str | Path) -> None:
        """Go on from a checkpoint: `fit` then runs the epochs that are left.

        Raises: CheckpointError when it cannot be read, or belongs to a run with other settings, which are named.
        """
        content = files.load(path)
        training_state.check(path, content, self.settings)
        self._prepare()
        training_state.restore(path, self, content)
        self._whole, self._unsaved, self._snapshot = True, False, None

    def _keep(self) -> None:
        """After an epoch: write the checkpoints that are due, and remember the state if none is."""
        if self.checkpoints is None:
            return
        every = self.config.checkpoint_every
        due = self.stopped or self.epoch == self.config.epochs or (every > 0 and self.epoch % every == 0)
        content = training_state.capture(self)
        if self.engine.rank == 0:
            # The best one first: a crash in between repeats the epoch, and writes both again.
            if self.best and self.best["epoch"] == self.epoch:
                files.save(self.checkpoints / files.BEST, content)
            if due:
                files.save(self.checkpoints / files.name_of(self.epoch), content)
                files.prune(self.checkpoints, self.config.keep_last)
            self._snapshot = None if due else copy.deepcopy(content)
        self._unsaved = False

    def _rescue(self) -> None:
        """Write the last whole epoch, if that has not been done yet."""
        if self._snapshot:
            files.save(self.checkpoints / files.name_of(self._snapshot["epoch"]), self._snapshot)
            files.prune(self.checkpoints, self.config.keep_last)
            self._snapshot = None

    def _prepare(self) -> None:
        """Make the optimizer, once: as late as this, so that parameters may be frozen before the first step."""
        if self.optimizer is not None:
            return
        config = self.config
        groups = self.objective.param_groups(config.lr)
        optimizer = torch.optim.AdamW(groups, betas=config.betas, weight_decay=config.weight_decay, fused=True)
        self._peak_lr = [group["lr"] for group in optimizer.param_groups]
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._model, self.optimizer = self.engine.prepare(self.objective, optimizer)

    def _check_whole(self) -> None:
        if not self._whole:
            raise RuntimeError(
                f"the training was interrupted in the middle of epoch {self.epoch + 1}, and its weights belong to no "
                "epoch: load a checkpoint, or start again with a new model and Trainer"
            )

    @contextmanager
    def _threads(self) -> Iterator[None]:
        threads = torch.get_num_threads()
        if self.config.threads:
            torch.set_num_threads(self.config.threads)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def _quiet() -> bool | None:
    """Whether to hide progress bars: with TQDM_DISABLE=1 always, else (None) where there is no terminal or notebook."""
    return True if os.environ.get("TQDM_DISABLE", "0") not in ("", "0") else None


def seed_all(seed: int) -> None:
    """Seed torch: the weights' initialisation and everything else that has no generator of its own."""
    torch.manual_seed(seed)
