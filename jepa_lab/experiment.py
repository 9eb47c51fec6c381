"""Run a configuration over its seeds and write one results file: the source of every table too long for a chapter."""

import gc
import hashlib
import json
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentError, Namespace

from jepa_lab import __version__, checkpoints
from jepa_lab.config import build, family, parser_of, repetition, reread, stored
from jepa_lab.distributed import rank
from jepa_lab.families.base import Prepared
from jepa_lab.files import write_atomic
from jepa_lab.objectives.base import Objective
from jepa_lab.recipe import HARMLESS
from jepa_lab.training import Trainer, pick_device


def run(config: Namespace, arguments: list[str], report: Callable[[str], None] = print) -> Path:
    """Train and probe every seed of every sweep value; write `OUT/NAME.json` and return its path.

    `arguments` is the command line that `config` was parsed from; a sweep appends its overrides to it. Control rows do
    not depend on the objective, so repetitions that differ in nothing else have them once, in the first of them.

    The file is written anew after every run. With `config.resume` the runs that it already holds are kept: those of an
    interrupted sweep, or of one that has been given more values or seeds since. The run that was interrupted goes on
    from its last checkpoint.
    """
    path = Path(config.out) / f"{config.name}.json"
    done = _resume(path, config) if config.resume is True else None  # not with the path of a checkpoint
    revision = git_revision()
    result = {
        "name": config.name,
        "config": stored(config),
        "overrides": _overrides(arguments),
        "seeds": list(config.seeds),
        "git_revision": revision
        if done is None
        else " ".join(dict.fromkeys([*done["git_revision"].split(), revision])),
        "device": str(pick_device(config.trainer.device)),
        "core_seconds": 0.0 if done is None else done["core_seconds"],
        "wall_seconds": 0.0 if done is None else done["wall_seconds"],
        "versions": _versions(),
        "runs": [],
    }
    known = {_key(one): one for one in done["runs"]} if done else {}
    controlled = []
    for case, extra in build(config).sweep.overrides().items():
        one = repetition(arguments, extra)
        rest = {key: value for key, value in stored(one).items() if key not in ("objective", "sweep")}
        if rest in controlled:
            one.controls = []
        controlled.append(rest)
        for seed in one.seeds:
            named = ({"case": case} if config.sweep.cases else {}) | {"seed": seed, "overrides": extra}
            if _key(named) in known:
                result["runs"].append(known.pop(_key(named)) | named)
                continue
            cpu, wall = time.process_time(), time.perf_counter()
            result["runs"].append(named | run_seed(one, seed, named))
            result["core_seconds"] = round(result["core_seconds"] + time.process_time() - cpu, 1)
            result["wall_seconds"] = round(result["wall_seconds"] + time.perf_counter() - wall, 1)
            # The kept runs whose turn has not come yet stay in the file: a crash now must not lose them.
            _write(path, result | {"runs": [*result["runs"], *known.values()]})
            if rank() == 0:
                report(_line(one, result["runs"][-1]))
            gc.collect()  # model and trainer refer to each other: their memory would pile up over a sweep
    return _write(path, result)


def _write(path: Path, result: dict[str, Any]) -> Path:
    """Of several processes the first one writes."""
    return write_json(path, result) if rank() == 0 else path


def _key(one: dict[str, Any]) -> tuple:
    """What tells the runs of one base configuration apart."""
    return one["seed"], *one["overrides"]


def _resume(path: Path, config: Namespace) -> dict[str, Any] | None:
    """The result to go on with, or None where there is none yet.

    Raises: ValueError when it was made by another base configuration, on another device or with other versions: its
        runs would not be what this command makes.
    """
    if not path.exists():
        return None
    try:
        done = json.loads(path.read_text())
        old = reread(done["config"])
        found = {"device": done["device"], "versions": done["versions"]}
    except (ArgumentError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"resume: {path} is not a results file that this version can go on with ({type(error).__name__}: {error}); "
            "run without --resume to make it anew"
        ) from error
    here = {"device": str(pick_device(config.trainer.device)), "versions": _versions()}
    harmless = ["seeds", "sweep", "monitoring", *(f"trainer.{name}" for name in HARMLESS)]
    changed = checkpoints.differences(old | found, stored(config) | here, harmless)
    if changed:
        raise ValueError(f"resume: {path} differs in {'; '.join(changed)}. Run without --resume to make it anew")
    return done


def _versions() -> dict[str, str]:
    return {"jepa_lab": __version__, "torch": torch.__version__.split("+")[0]}


def run_seed(config: Namespace, seed: int, named: dict[str, Any] | None = None) -> dict[str, Any]:
    """Train and measure one model: `rows`, one a method, `core_seconds` of the training and maybe `curves`.

    `named` is what tells this run from others of its sweep: it names the folders of its checkpoints and exports.
    """
    named = named or {"seed": seed, "overrides": []}
    parts, place = build(config), _place(config, named)
    prepared = family(config).prepare(config, parts, seed)
    monitoring, folder = parts.monitoring, Path(parts.monitoring.folder) / config.name / place

    def evaluate(objective: Objective) -> dict[str, float]:
        if monitoring.explain_every and trainer.epoch % monitoring.explain_every == 0:
            told = family(config).explain(config, prepared, objective, monitoring.explain_pairs)
            monitoring.write_explanations(told, folder, trainer.epoch)
        return prepared.evaluate(objective)

    before = prepared.evaluate(prepared.objective) if prepared.trainer.evaluate_every else {}
    trainer = Trainer(
        prepared.objective,
        prepared.batches,
        prepared.trainer,
        prepared.evaluate and evaluate,
        checkpoints=None if config.checkpoints == "none" else checkpoint_root(config) / place,
        settings=_settings(config, named, prepared.texts),
    )
    start = _start(config, trainer)
    if monitoring.folder and rank() == 0:
        monitoring.ready(folder, fresh=start is None)
    if start:
        trainer.load_checkpoint(start)
    trainer.fit()
    rows = family(config).measure(config, parts, prepared, seed)
    result = {"core_seconds": round(trainer.core_seconds, 2), "rows": rows}
    if prepared.trainer.evaluate_every:
        result["curves"] = family(config).curves(before, trainer)
    if monitoring.folder and rank() == 0:
        monitoring.export(trainer, folder)
    return result


def evaluate(path: str | Path, split: str | None = None) -> list[dict[str, Any]]:
    """The rows of the run that a checkpoint belongs to, measured with the weights in it: the data and the model are
    made from the configuration that the checkpoint holds.

    Raises: CheckpointError for a file that cannot be read, or was not written by the command line.
    """
    config, parts, prepared, seed = restore(path, split)
    return family(config).measure(config, parts, prepared, seed)


def restore(path: str | Path, split: str | None = None) -> tuple[Namespace, Namespace, Prepared, int]:
    """The run that a checkpoint belongs to, with the weights in it: its configuration, as parsed and with its parts
    built, data and model, and seed.

    Raises: CheckpointError for a file that cannot be read, or was not written by the command line.
    """
    content = checkpoints.load(path)
    run = content["settings"].get("run", {})
    if "config" not in run:
        raise checkpoints.CheckpointError(
            f"the checkpoint {path} does not hold the configuration of a run: it was not written by "
            "`python -m jepa_lab train`; load it with Trainer.load_checkpoint"
        )
    config = parser_of(run["config"]).parse_object(run["config"])
    if split:
        config.split = split
    parts = build(config)
    prepared = family(config).prepare(config, parts, run["seed"])
    if content["settings"].get("texts", "") != prepared.texts:
        raise checkpoints.CheckpointError(
            f"the checkpoint {path} was trained on other texts than its configuration gives here: install the versions "
            "of its run (constraints.txt), or take the data file it had"
        )
    try:
        prepared.objective.load_state_dict(content["objective"])
    except RuntimeError as error:
        raise checkpoints.CheckpointError(
            f"the checkpoint {path} does not fit the model that its configuration makes of the data here: {error}"
        ) from error
    prepared.objective.to(pick_device(config.trainer.device))
    return config, parts, prepared, run["seed"]


def checkpoint_root(config: Namespace) -> Path:
    """Where the checkpoints of all runs of a configuration are: beside its results file, unless it says."""
    root = Path(config.out) / "checkpoints" if config.checkpoints == "auto" else Path(config.checkpoints)
    return root / config.name


def _place(config: Namespace, named: dict[str, Any]) -> Path:
    """A run's folder: its case or the settings that its sweep changes, as a name, and its seed."""
    text = named.get("case") or " ".join(argument.removeprefix("--") for argument in named["overrides"])
    slug = re.sub(r"[^\w.=]+", "-", text).strip("-.")
    if len(slug) > 80 or re.search(r"[^\w.= ]", text):  # a file system takes 255 bytes; [1, 2] and [1, -2] are not one
        slug = f"{slug[:60]}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    return Path(slug) / f"seed{named['seed']}"


# What says how a model is measured, not how it is trained; a checkpoint keeps it without insisting on it.
_MEASURED = ("name", "seeds", "sweep", "split", "controls", "tokens", "probe_rows", "readouts", "monitoring")


def _settings(config: Namespace, named: dict[str, Any], texts: str) -> dict[str, Any]:
    """What a checkpoint says about its run."""
    plain = stored(config)
    trained = {key: value for key, value in plain.items() if key not in _MEASURED} | ({"texts": texts} if texts else {})
    return trained | {"run": {"config": plain, **named}}


def _start(config: Namespace, trainer: Trainer) -> Path | None:
    """The checkpoint that a run goes on from, if any.

    Raises: CheckpointError when a new run would write over one that was interrupted.
    """
    if isinstance(config.resume, str):
        return Path(config.resume)
    if trainer.checkpoints is None:
        return None
    # The first process looks and deletes, and the others wait for it: they would see a folder half cleared.
    return trainer.engine.same(_latest(config, trainer.checkpoints) if rank() == 0 else None)


def _latest(config: Namespace, folder: Path) -> Path | None:
    latest = checkpoints.latest(folder)
    if latest is None or config.resume:
        return latest
    content = checkpoints.load(latest)
    recipe = content["settings"]["trainer"]
    if content["epoch"] < recipe["epochs"] and not 0 < recipe["patience"] <= content["waited"]:
        raise checkpoints.CheckpointError(
            f"{latest} is of a run that was interrupted after epoch {content['epoch']}: add --resume true to go on "
            f"with it, or delete {folder} to start anew"
        )
    checkpoints.clear(folder)  # of a run that came to its end: this one replaces it
    return None


def load_result(name: str, folder: str | Path = "../results") -> dict[str, Any]:
    """Read results/NAME.json; a notebook's folder is the sibling of `results`.

    Raises: FileNotFoundError that names the command which makes the file.
    """
    path = Path(folder) / f"{name}.json"
    if not path.exists():
        train = f"python -m jepa_lab train --config jepa_lab/configs/{name}.yaml"
        speed = {"speed": "", "speed_gpu": " --device cuda", "speed_i_jepa": ".i_jepa", "speed_polar": ".polar"}
        command = f"python -m benchmarks{speed[name]}" if name in speed else train
        raise FileNotFoundError(f"{path} is missing; make it with `{command}`")
    return json.loads(path.read_text())


def write_json(path: Path, content: dict[str, Any]) -> Path:
    """Write to a temporary file beside `path`, then rename: a crash leaves the old file or the new one, whole."""
    return write_atomic(path, (json.dumps(content, indent=1) + "\n").encode())


def git_revision() -> str:
    """The commit of the working tree, with `+` when files differ from it; `unknown` outside a git checkout."""
    try:
        here = Path(__file__).parent
        call = {"cwd": here, "capture_output": True, "text": True, "check": True}
        revision = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], **call).stdout.strip()
        changed = subprocess.run(["git", "status", "--porcelain", "--untracked-files=no"], **call).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return revision + ("+" if changed else "")


_HOW = ("--config", "--out", "--resume", "--checkpoints")


def _overrides(arguments: list[str]) -> list[str]:
    """The command line without what says where and how, such as `--config FILE` and `--out FOLDER`."""
    kept, skip = [], False
    for argument in arguments:
        if skip:
            skip = False
        elif argument in _HOW:
            skip = True
        elif not argument.startswith(tuple(f"{name}=" for name in _HOW)):
            kept.append(argument)
    return kept


def _line(config: Namespace, one: dict[str, Any]) -> str:
    scores = family(config).line(one["rows"])
    return f"{' '.join(one['overrides'])} seed {one['seed']}, {one['core_seconds']} core-s, {scores}"
