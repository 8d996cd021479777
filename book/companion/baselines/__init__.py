"""Methods to compare with, one file each, all called like our matcher.

    matches = TemplateMatcher().match(sar, optical, search_radius=32)

`sar` (1 or 2, H, W) and `optical` (C, H', W') are float tensors in [0, 1]; `search_radius` is the largest distance in
px between the position in the SAR image and the position in the optical image, None where nothing is known of it; the
result is `sarmatch.matching.matches.Matches`. A new method is one more file with one more subclass of `Baseline`, or of
`learned.PeerNet` and a name in `learned_baselines.PEERS` where it has to be trained.
"""

from companion.baselines.akaze import AkazeMatcher
from companion.baselines.base import Baseline
from companion.baselines.brisk import BriskMatcher
from companion.baselines.edge_orientation import EdgeOrientationMatcher
from companion.baselines.learned import LearnedMatcher
from companion.baselines.lightglue import LightGlueMatcher
from companion.baselines.local_features import LocalFeatureMatcher, LocalFeatures
from companion.baselines.mutual_information import MutualInformationMatcher
from companion.baselines.orb import OrbMatcher
from companion.baselines.phase_correlation import PhaseCorrelationMatcher
from companion.baselines.rift import RiftMatcher
from companion.baselines.sift import SiftMatcher
from companion.baselines.template import TemplateMatcher

__all__ = [
    "AkazeMatcher",
    "Baseline",
    "BriskMatcher",
    "EdgeOrientationMatcher",
    "LearnedMatcher",
    "LightGlueMatcher",
    "LocalFeatureMatcher",
    "LocalFeatures",
    "MutualInformationMatcher",
    "OrbMatcher",
    "PhaseCorrelationMatcher",
    "RiftMatcher",
    "SiftMatcher",
    "TemplateMatcher",
]
