"""How fast, against what others wrote and against the limit of the machine: `python -m benchmarks`."""
