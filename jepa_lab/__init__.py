"""jepa_lab: joint-embedding predictive architectures and contrastive learning, small enough to read.

Import the part you need from the file that answers your question: `jepa_lab.losses`, `jepa_lab.masking`,
`jepa_lab.ema`, `jepa_lab.predictors`, `jepa_lab.objectives`, `jepa_lab.training`, `jepa_lab.monitor`,
`jepa_lab.probes`, `jepa_lab.metrics`, `jepa_lab.plots`, `jepa_lab.widgets`, `jepa_lab.data`.
The collapse report can be had from here: `from jepa_lab import diagnose`.
"""

__version__ = "0.1.0"


def __getattr__(name: str):
    if name == "diagnose":  # looked up on demand, so that a plain `import jepa_lab` does not load torch
        from jepa_lab.metrics import diagnose

        return diagnose
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), "diagnose"])
