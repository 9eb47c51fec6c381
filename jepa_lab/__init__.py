"""jepa_lab: joint-embedding predictive architectures and contrastive learning, small enough to read.

Import the part you need from the file that answers your question: `jepa_lab.losses`, `jepa_lab.masking`,
`jepa_lab.ema`, `jepa_lab.predictors`, `jepa_lab.objectives`, `jepa_lab.training`, `jepa_lab.probes`,
`jepa_lab.metrics`, `jepa_lab.plots`, `jepa_lab.widgets`, `jepa_lab.data`.
"""

__version__ = "0.1.0"
