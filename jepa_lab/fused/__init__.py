"""Fast forms of the batch losses: the same values and gradients, in less time and far less memory.

The readable forms in `losses.py`, `regularisers.py` and `sigreg.py` explain each loss, and the tests compare these with
them. They hand over through their argument `implementation`.

Book: appendix A1.
"""

from jepa_lab.fused.choice import Implementation, use_fused
from jepa_lab.fused.moments import vicreg_terms
from jepa_lab.fused.pairs import log_sum_exp_of_pairs
from jepa_lab.fused.panels import log_sum_exp_of_candidates
from jepa_lab.fused.slices import epps_pulley_of_slices

__all__ = [
    "Implementation",
    "epps_pulley_of_slices",
    "log_sum_exp_of_candidates",
    "log_sum_exp_of_pairs",
    "use_fused",
    "vicreg_terms",
]
