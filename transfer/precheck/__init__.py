"""The pre-check: can this adapter move between these bases at all? A verdict with reasons, before the work.

It reads configs, headers, the vocabularies and the weights of a few probe sites (first, middle, last layer).
What those can and cannot show is said in `rules`, next to each threshold.
"""

from rebase.methods.auto.rules import choose
from transfer.precheck.judge import PROBE_NEEDS, Offer, precheck
from transfer.precheck.measure import probe_pairs
from transfer.precheck.result import PrecheckResult, Verdict

__all__ = [
    "PROBE_NEEDS",
    "Offer",
    "PrecheckResult",
    "Verdict",
    "choose",
    "precheck",
    "probe_pairs",
]
