"""Polar-V1: a model of visual cortex in amplitudes and phases, with a JEPA as an auxiliary loss. One stage a file.

Book: chapter 15.
"""

# The objectives first: their table names PolarV1, which is built on them. In the other order either would meet the
# other half made.
import jepa_lab.objectives  # noqa: F401
