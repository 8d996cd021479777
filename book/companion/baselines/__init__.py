"""Methods to compare with, all called like our matcher: `TemplateMatcher().match(sar, optical, search_radius=32)`.

To add a baseline, write a subclass of `Baseline` with `match` in a file of its own and name it below.
One that is trained here is a subclass of `learned.PeerNet`, named in `studies.learned_baselines.PEERS`.
Then add it to `studies.comparison.methods` and describe it in `STANDS_FOR` there, under the same name.
"""

from companion.baselines.base import Baseline
from companion.baselines.local_features import AkazeMatcher, BriskMatcher, OrbMatcher, RiftMatcher, SiftMatcher
from companion.baselines.similarities import EdgeOrientationMatcher, MutualInformationMatcher, PhaseCorrelationMatcher
from companion.baselines.template import TemplateMatcher

__all__ = [
    "AkazeMatcher",
    "Baseline",
    "BriskMatcher",
    "EdgeOrientationMatcher",
    "MutualInformationMatcher",
    "OrbMatcher",
    "PhaseCorrelationMatcher",
    "RiftMatcher",
    "SiftMatcher",
    "TemplateMatcher",
]
