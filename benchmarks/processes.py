"""One process, one with two threads, or two processes on the CPU: rows a second of a JEPA step. `torchrun` starts this
file; see `measure`.

Two processes, of one thread each, share the batch.
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
WAYS = {"one_process": (1, 1), "two_threads": (1, 2), "two_processes": (2, 1)}  # processes, threads of each


def measure() -> list[dict]:
    """Rows a second for each global batch size, by wall-clock time."""
    found = {name: _run(*how) for name, how in WAYS.items()}
    rows = []
    for i, batch in enumerate(BATCHES):
        rates = {f"{name}_rows_per_second": values[i] for name, values in found.items()}
        ratio = rates["two_processes_rows_per_second"] / rates["one_process_rows_per_second"]
        rows.append({"batch": batch, **rates, "ratio": float(f"{ratio:.4g}")})
    return rows


def _run(processes: int, threads: int) -> list[float]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command += ["-m", "benchmarks.processes", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=True)
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("[")))


def main() -> None:
    warnings.filterwarnings("ignore")
    from benchmarks.steps import images, trainer_of

    torch.set_num_threads(int(sys.argv[1]))
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
