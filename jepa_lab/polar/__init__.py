"""Polar-V1: a model of visual cortex in amplitudes and phases, with a JEPA as an auxiliary loss. One stage a file.

Book: chapter 15.
"""
