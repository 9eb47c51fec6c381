"""Refuse files over 1000 kB: `python tools/large_files.py [FILE ...]`, by default every file that git tracks."""

import subprocess
import sys
from pathlib import Path

LIMIT = 1_000_000  # bytes


def too_large(names: list[str]) -> list[str]:
    """One line for each file above the limit."""
    files = [path for path in map(Path, names) if path.is_file()]
    return [f"{path}: {path.stat().st_size / 1000:.0f} kB" for path in files if path.stat().st_size > LIMIT]


def main() -> int:
    names = sys.argv[1:]
    if not names:
        listed = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, check=True)
        names = [name for name in listed.stdout.split("\0") if name]
    complaints = too_large(names)
    if complaints:
        print(f"larger than {LIMIT // 1000} kB:", *complaints, sep="\n  ")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
