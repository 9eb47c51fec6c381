"""Checkpoints as files: written whole or not at all, read without running what is inside, the old ones cleared away.

A checkpoint is one file, `epoch_00012.pt`: tensors, numbers, strings, lists and dicts, nothing else. What is in it, and
that a run goes on from it bit for bit, is the business of `training.Trainer`.

Book: chapter 12.
"""

import io
import pickle
import re
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from jepa_lab.files import write_atomic

FORMAT = 1  # of the content; a reader refuses what is newer than itself
BEST = "best.pt"
_NAME = re.compile(r"epoch_(\d{5,})\.pt")


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, read or used; the message names the path and the cause."""


def name_of(epoch: int) -> str:
    """The file name of the checkpoint after this many epochs."""
    return f"epoch_{epoch:05d}.pt"


def save(path: str | Path, content: dict[str, Any]) -> Path:
    """Write `content` to a temporary file beside `path`, then rename: the old file stays until the new one is whole.

    Raises: CheckpointError naming path and cause (a full disk, a folder that cannot be written).
    """
    path, buffer = Path(path), io.BytesIO()
    # Into memory first: from there a full disk is an OSError of one write, not a half-finished archive.
    torch.save({"format": FORMAT, **content}, buffer)
    try:
        return write_atomic(path, buffer.getvalue())
    except OSError as error:
        raise CheckpointError(
            f"cannot write the checkpoint {path}: {_reason(error)}. Older checkpoints in the folder are untouched"
        ) from error


def load(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU. Nothing in the file is executed (`weights_only`), and every byte is checked.

    Raises: CheckpointError naming path and cause: no such file, cut short or damaged, with a pickle of something else
        than data inside, or no checkpoint of this package.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            # torch.load does not compare the checksums that torch.save has written.
            if damaged := zipfile.ZipFile(file).testzip():
                raise CheckpointError(f"the checkpoint {path} is damaged: wrong checksum of {damaged}")
            file.seek(0)
            content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {_reason(error)}") from error
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"the checkpoint {path} is cut short, or is no checkpoint: {error}") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"the checkpoint {path} is refused: it holds a pickle of something else than tensors and plain data, which "
            f"could run any code when loaded ({_first_line(error)})"
        ) from error
    except (RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"cannot read the checkpoint {path}: {_first_line(error)}") from error
    found = content.get("format") if isinstance(content, dict) else None
    if not isinstance(found, int):
        raise CheckpointError(f"{path} is not a checkpoint of jepa_lab: it has no format number")
    if found > FORMAT:
        raise CheckpointError(
            f"the checkpoint {path} has format {found}; this version of jepa_lab reads up to {FORMAT}"
        )
    return content


def latest(folder: str | Path) -> Path | None:
    """The checkpoint of the latest epoch in `folder`, or None; temporary files and `best.pt` are not looked at."""
    found = _checkpoints(Path(folder))
    return found[max(found)] if found else None


def prune(folder: str | Path, keep_last: int, keep: Collection[str] = (BEST,)) -> list[Path]:
    """Delete all checkpoints but the `keep_last` latest, and those whose names are in `keep`; returns what is gone.

    A checkpoint that cannot be deleted stays: it costs space, and no run should stop for it.

    Raises: ValueError for keep_last < 1.
    """
    if keep_last < 1:
        raise ValueError(f"keep_last must be at least 1, got {keep_last}")
    found = _checkpoints(Path(folder))
    return _delete([found[epoch] for epoch in sorted(found)[:-keep_last] if found[epoch].name not in keep])


def clear(folder: str | Path) -> list[Path]:
    """Delete all checkpoints of a folder, `best.pt` too; returns what is gone."""
    folder = Path(folder)
    best = [folder / BEST] if (folder / BEST).exists() else []
    return _delete([*_checkpoints(folder).values(), *best])


def ready(folder: str | Path) -> list[Path]:
    """Make the folder, see whether it can be written, and delete the temporary files that a killed run has left there.

    Returns what is gone. Raises: CheckpointError naming path and cause: better now than after the first epoch.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial = folder / "trial.pt.0.part"
        trial.write_bytes(b"")
    except OSError as error:
        raise CheckpointError(f"cannot write checkpoints into the folder {folder}: {_reason(error)}") from error
    return [path for path in _delete(sorted(folder.glob("*.pt.*.part"))) if path != trial]


def differences(old: dict[str, Any], new: dict[str, Any], harmless: Collection[str] = ()) -> list[str]:
    """The settings in which two nested configurations differ, as `trainer.lr: 0.1 -> 0.2`, in the order of the keys.

    `harmless` names settings, or whole sections, that are not compared.
    """
    a, b = _flat(old), _flat(new)
    keys = [key for key in sorted(a.keys() | b.keys()) if a.get(key, _ABSENT) != b.get(key, _ABSENT)]
    compared = [key for key in keys if not any(key == name or key.startswith(f"{name}.") for name in harmless)]
    return [f"{key}: {a.get(key, _ABSENT)} -> {b.get(key, _ABSENT)}" for key in compared]


_ABSENT = "(not set)"


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        nested = _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
        flat |= nested
    return flat


def _checkpoints(folder: Path) -> dict[int, Path]:
    names = list(folder.iterdir()) if folder.is_dir() else []
    return {int(match[1]): path for path in names if (match := _NAME.fullmatch(path.name))}


def _delete(paths: list[Path]) -> list[Path]:
    gone = []
    for path in paths:
        try:
            path.unlink()
        except OSError:
            continue
        gone.append(path)
    return gone


def _reason(error: OSError) -> str:
    return f"{type(error).__name__}: {error.strerror or error}"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
