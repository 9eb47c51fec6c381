"""Is the file whole? Writes that leave the old file or the new one, and a cache that one may delete at any time."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

CACHE_VARIABLE = "JEPA_LAB_CACHE"


def write_atomic(path: Path, content: bytes) -> Path:
    """Write to a temporary file beside `path`, then rename: a crash leaves the old file or the new one, whole.

    Raises: OSError naming the path if the folder cannot be written or the disk is full; the old file is then still
        there.
    Book: chapter 12.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # a rename may reach the disk before the bytes do
        part.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a write that fails does not know what it was writing to
        raise
    finally:
        part.unlink(missing_ok=True)
    return path


def cache_folder() -> Path:
    """The folder of the environment variable JEPA_LAB_CACHE, else `~/.cache/jepa_lab`.

    Book: chapter 12.
    """
    return Path(os.environ.get(CACHE_VARIABLE) or Path("~/.cache/jepa_lab").expanduser())


def cached(name: str, make: Callable[[], T], dump: Callable[[T], bytes], load: Callable[[bytes], T]) -> T:
    """Return what the cache holds under `name`, else make it and store it.

    The name has to change whenever the content would. A cache that is broken or cannot be written costs time,
    never a result: the value is made anew, with a warning.

    Raises: what `make` raises.
    Book: chapter 12.
    """
    path = cache_folder() / name
    try:
        return load(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        pass
    except Exception as error:  # the bytes may be anything, and each format has its own words for that
        _warn(f"{path} cannot be read ({_reason(error)}); its content is computed anew")
    value = make()
    try:
        write_atomic(path, dump(value))
    except OSError as error:
        _warn(f"{path} cannot be written ({_reason(error)}): set {CACHE_VARIABLE} to another folder, or wait each time")
    return value


def _warn(message: str) -> None:
    # Python shows equal warnings from one line once per process, so a loop over splits does not repeat it.
    warnings.warn(message, RuntimeWarning, stacklevel=3)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
