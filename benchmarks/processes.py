"""One process or two on the CPU: rows a second of a JEPA step. `torchrun` starts this file; see `measure`.

Each process has one thread. Two share a batch of 64, then each has 64 of 128 rows.
"""

import json
import statistics
import subprocess
import sys
import time
import warnings

import torch

BATCHES = (64, 128, 512)
TIMEOUT = 300


def measure() -> list[dict]:
    """Rows a second with one process and with two, for each global batch size; wall-clock time."""
    found = []
    for n in (1, 2):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={n}"]
        done = subprocess.run(
            [*command, "-m", "benchmarks.processes"], capture_output=True, text=True, timeout=TIMEOUT, check=True
        )
        found.append(json.loads(next(line for line in done.stdout.splitlines() if line.startswith("["))))
    rows = []
    for batch, one, two in zip(BATCHES, *found, strict=True):
        rows.append(
            {
                "batch": batch,
                "one_process_rows_per_second": one,
                "two_processes_rows_per_second": two,
                "ratio": float(f"{two / one:.4g}"),
            }
        )
    return rows


def main() -> None:
    warnings.filterwarnings("ignore")
    from benchmarks.steps import images, trainer_of

    torch.set_num_threads(1)
    found = []
    for batch in BATCHES:
        trainer = trainer_of("jepa", {"image": images(8 * batch)}, batch)
        times = []
        for _ in range(8):
            start = time.perf_counter()
            trainer.train_epoch(0)
            times.append(time.perf_counter() - start)
        found.append(float(f"{8 * batch / statistics.median(times[2:]):.4g}"))
    if trainer.engine.rank == 0:
        print(json.dumps(found), flush=True)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
