"""Racing several calls against each other in one process: in turns, so that a busy moment hits all of them."""

import statistics
import time
from collections.abc import Callable
from contextlib import contextmanager

import torch

Call = Callable[[], object]


def race(
    calls: dict[str, Call], seconds: float, threads: int = 1, most: int = 30, device: str = "cpu"
) -> dict[str, list[float]]:
    """Milliseconds of every call, one number a round, after a round that does not count.

    At least 5 rounds, at most `most`, about `seconds` in all. With one thread the clock is that of the CPU, which other
    processes hardly touch; with more it is the one on the wall, since the CPU's counts all threads. A GPU works on
    while the program goes on: there the wall's clock is read when the device has finished.
    """
    clock = clock_of(device, threads)
    with use_threads(threads):
        started = clock()
        repeats = {name: _repeats(call, clock) for name, call in calls.items()}
        first = clock() - started
        rounds = int(min(most, max(5, seconds / max(first, 1e-9))))
        spent = {name: [] for name in calls}
        for i in range(rounds):
            order = list(calls) if i % 2 == 0 else list(reversed(calls))
            for name in order:
                start = clock()
                for _ in range(repeats[name]):
                    calls[name]()
                spent[name].append((clock() - start) / repeats[name] * 1e3)
    return spent


def clock_of(device: str, threads: int = 1) -> Callable[[], float]:
    if device == "cpu":
        return time.process_time if threads == 1 else time.perf_counter

    def after_all_work() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return after_all_work


def _repeats(call: Call, clock: Callable[[], float]) -> int:
    """How often in a row: a clock is no better than some microseconds, so that a measurement takes 2 ms or more."""
    start = clock()
    call()
    if clock() - start < 0.05:  # what was slow because it was the first is measured again
        start = clock()
        call()
    return max(1, min(1000, round(0.002 / max(clock() - start, 1e-6))))


def summary(times: list[float]) -> dict[str, float | int]:
    """Best, median and quartiles in ms, and the number of rounds."""
    low, middle, high = quartiles(times)
    return {
        "best_ms": digits(min(times)),
        "median_ms": digits(middle),
        "q1_ms": digits(low),
        "q3_ms": digits(high),
        "rounds": len(times),
    }


def ratio(slow: list[float], fast: list[float]) -> dict[str, float]:
    """How many times as fast: of the best times, and median and quartiles over rounds, where each round compares its
    own two."""
    pairs = [a / b for a, b in zip(slow, fast, strict=True)]
    low, middle, high = quartiles(pairs)
    return {
        "ratio_best": digits(min(slow) / min(fast)),
        "ratio_median": digits(middle),
        "ratio_q1": digits(low),
        "ratio_q3": digits(high),
        "rounds": len(pairs),
    }


def quartiles(values: list[float]) -> tuple[float, float, float]:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def digits(value: float) -> float:
    return float(f"{value:.4g}")


@contextmanager
def use_threads(threads: int):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
