"""`python -m benchmarks`: measure, print and write `results/speed.json`; `--quick` for a look in under a minute,
`--device cuda` for `results/speed_gpu.json`."""

import argparse
import time
from pathlib import Path

import torch

from benchmarks import losses, machine, parts, processes, steps
from benchmarks.table import goals, loss_lines, report
from jepa_lab.experiment import git_revision, write_json

GRID = [(rows, dim) for dim in (128, 512, 2048) for rows in (256, 1024, 4096)]
GPU_GRID = [*GRID, (8192, 128), (8192, 512), (8192, 2048), (16384, 128)]
QUICK = [(256, 128), (1024, 128)]
FILES = {"cpu": "speed", "cuda": "speed_gpu"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes and one thread, in under a minute")
    parser.add_argument("--device", choices=FILES, default="cpu", help="cuda writes results/speed_gpu.json")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of the file (--quick writes none)")
    parser.add_argument("--seconds", type=float, default=None, help="about how long each race takes")
    arguments = parser.parse_args()
    quick, device = arguments.quick, arguments.device
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a GPU that torch can see; leave it out to measure the CPU")
    seconds = arguments.seconds or (0.5 if quick else 3.0 if device == "cpu" else 1.0)
    torch.set_num_threads(1)
    wall, core = time.perf_counter(), time.process_time()

    all_threads = (1,) if quick or device == "cuda" else (1, 2)
    grid = QUICK if quick else GRID if device == "cpu" else GPU_GRID
    spent, rows = {}, []
    for threads in all_threads:
        for loss in losses.LOSSES:
            for size in grid:
                row = losses.measure(loss, *size, seconds, threads, threads == 1 and not quick, device)
                spent[loss, *size, threads] = row.pop("spent")
                rows.append(row)
                print(loss_lines(row), flush=True)
    found = {
        "masks": parts.masks(256 if quick else 1024, seconds, device),
        "optimizer": parts.optimizer_and_average(seconds, device),
        "steps": [parts.plain_step(side, seconds, device=device) for side in ((8,) if quick else (8, 12, 16, 24))],
    }
    step_seconds = 0.2 if quick else seconds
    result = {
        "name": FILES[device],
        "kind": "speed",
        "git_revision": git_revision(),
        "device": device,
        "machine": machine.describe(device),
        "roof": [machine.roof(seconds / 2, threads, device) for threads in all_threads],
        "goals": goals(spent, rows, found),
        "losses": rows,
        "plain": [report(one) for one in found["steps"]],
        "parts": {name: report(found[name]) for name in ("masks", "optimizer")},
        "objectives": steps.objectives(step_seconds, device=device),
        "monitors": parts.monitors(seconds, device),
        "processes": [] if quick or device == "cuda" else processes.measure(),
    }
    if device == "cuda":  # 64 rows leave a GPU idle; this is what it can do
        result["large"] = steps.objectives(step_seconds, 4096, device)
    result |= {
        "core_seconds": round(time.process_time() - core, 1),
        "wall_seconds": round(time.perf_counter() - wall, 1),
    }
    for goal in result["goals"]:
        print(
            "{what:34} {ratio_median:8.3g} x ({ratio_q1:.3g}..{ratio_q3:.3g}), floor {floor}, aim {aim}".format(**goal)
        )
    for row in result["objectives"]:
        print(f"{row['objective']:16} {row['median_ms']:8.3g} ms a step, {row['rows_per_second']:.4g} rows/s")
    for row in result["monitors"]:
        print(f"{row['what']:34} {row['share_of_a_step']:8.2%} of a step")
    if not quick:
        print(write_json(arguments.out / f"{FILES[device]}.json", result))


if __name__ == "__main__":
    main()
