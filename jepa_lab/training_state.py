"""What a checkpoint holds: everything that the next step depends on, as tensors and plain data.

Book: chapter 12.
"""

import copy
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from jepa_lab import __version__
from jepa_lab.checkpoints import CheckpointError, differences
from jepa_lab.recipe import HARMLESS, TrainConfig

if TYPE_CHECKING:
    from jepa_lab.training import Trainer


def describe(config: TrainConfig, objective: nn.Module, batches: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run as plain data: those given, else those one can see."""
    seen: dict[str, Any] = {"trainer": asdict(config), "objective": {"name": type(objective).__name__}}
    if is_dataclass(own := getattr(objective, "config", None)):
        seen["objective"] |= asdict(own)
    if isinstance(batches, dict):
        seen["batches"] = {key: list(value.shape) for key, value in batches.items()}
    return plain(seen | {key: value for key, value in settings.items() if key != "trainer"})


def check(path: str | Path, content: dict[str, Any], settings: dict[str, Any]) -> None:
    """Raises: CheckpointError naming the settings in which the run of a checkpoint differs from this one."""
    old = content.get("settings", {})
    # A setting that did not exist yet has its default, which does what the code did before it had the setting.
    defaults = {field.name: plain(field.default) for field in fields(TrainConfig)}
    old = old | {"trainer": defaults | old.get("trainer", {})}
    changed = differences(old, settings, ["run", *(f"trainer.{name}" for name in HARMLESS)])
    if changed:
        raise CheckpointError(
            f"the checkpoint {path} belongs to a run with other settings, and going on would be neither run: "
            f"{'; '.join(changed)}"
        )


def capture(trainer: "Trainer") -> dict[str, Any]:
    """The state of a trainer between two epochs. The tensors are the living ones: write or copy before the next step.

    Raises: FloatingPointError when a weight is not finite, naming it.
    """
    objective, best = trainer.objective, trainer.best
    _check_finite(objective, trainer.step)
    batches = trainer.batches
    return {
        "settings": trainer.settings,
        "versions": {"jepa_lab": __version__, "torch": str(torch.__version__)},
        "epoch": trainer.epoch,
        "step": trainer.step,
        "core_seconds": trainer.core_seconds,
        "objective": objective.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.engine.scaler.state_dict() if trainer.engine.scaler else None,
        "random": trainer.engine.gather(_random(trainer)),
        "batches": batches.state_dict() if hasattr(batches, "state_dict") else None,
        # As tensors: a list of a million floats takes seconds to write.
        "history": {name: _column(values) for name, values in trainer.history.items()},
        "evaluations": {name: [plain(value) for value in values] for name, values in trainer.evaluations.items()},
        "best": best,
        # The weights of the best epoch, unless they are those above.
        "best_weights": trainer.best_weights if best and best["epoch"] != trainer.epoch else None,
        "waited": trainer.waited,
    }


def restore(path: str | Path, trainer: "Trainer", content: dict[str, Any]) -> None:
    """Put a captured state back.

    Raises: CheckpointError when the weights do not fit the model.
    """
    try:
        trainer.objective.load_state_dict(content["objective"])
        trainer.optimizer.load_state_dict(content["optimizer"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(f"the checkpoint {path} does not fit this model: {error}") from error
    if trainer.engine.scaler and content["scaler"]:
        trainer.engine.scaler.load_state_dict(content["scaler"])
    if content["batches"] is not None and hasattr(trainer.batches, "load_state_dict"):
        trainer.batches.load_state_dict(content["batches"])
    trainer.epoch, trainer.step = content["epoch"], content["step"]
    trainer.core_seconds = content["core_seconds"]
    trainer.history = {name: values.tolist() for name, values in content["history"].items()}
    trainer.evaluations = {name: list(values) for name, values in content["evaluations"].items()}
    trainer.best, trainer.waited = content["best"], content["waited"]
    trainer.best_weights = content["best_weights"]
    if trainer.config.restore_best and trainer.best and trainer.best_weights is None:
        trainer.best_weights = copy.deepcopy(trainer.objective.state_dict())
    if trainer.engine.rank < len(content["random"]):  # more processes than before: the new ones draw afresh
        _set_random(trainer, content["random"][trainer.engine.rank])


def plain(value: Any) -> Any:
    """A value as numbers, strings, lists and dicts, which is all that a checkpoint may hold besides tensors."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, int):
        return int(value)
    # NumPy's float64 is a float, but would be stored as an object that is refused at loading.
    return float(value) if isinstance(value, float) or hasattr(value, "item") else str(value)


def _check_finite(objective: nn.Module, step: int) -> None:
    named = [(name, p) for name, p in objective.named_parameters() if p.is_floating_point()]
    if not named:
        return
    finite = torch.stack([p.detach().isfinite().all() for _, p in named]).tolist()  # one transfer
    broken = [name for (name, _), fine in zip(named, finite, strict=True) if not fine]
    if broken:
        raise FloatingPointError(
            f"{len(broken)} weights are not finite after step {step}, {broken[0]} is the first: stopped, and no "
            "checkpoint is written. Try a lower trainer.lr or a stronger clip_norm"
        )


def _random(trainer: "Trainer") -> dict[str, Any]:
    """The generators' states of this process: torch's own, and the one that the objective draws from."""
    device = trainer.device
    state: dict[str, Any] = {"cpu": torch.get_rng_state(), "device": None, "objective": None}
    if device.type != "cpu":
        state["device"] = torch.get_device_module(device).get_rng_state()
    if hasattr(trainer.objective, "generator"):
        state["objective"] = trainer.objective.generator.get_state()
    return state


def _set_random(trainer: "Trainer", state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if state["device"] is not None and trainer.device.type != "cpu":
        torch.get_device_module(trainer.device).set_rng_state(state["device"])
    if state["objective"] is not None:
        trainer.objective.generator.set_state(state["objective"])


def _column(values: list[int | float]) -> Tensor:
    whole = all(isinstance(value, int) for value in values)
    return torch.tensor(values, dtype=torch.int64 if whole else torch.float64)
