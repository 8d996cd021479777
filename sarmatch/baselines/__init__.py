"""Methods to compare with, one file each, all called like our matcher.

    matches = TemplateMatcher().match(sar, optical, search_radius=32)

`sar` (1 or 2, H, W) and `optical` (C, H', W') are float tensors in [0, 1]; `search_radius` is the largest distance in
px between the position in the SAR image and the position in the optical image, None where nothing is known of it; the
result is `sarmatch.matches.Matches`. A new method is one more file with one more subclass of `Baseline`, or of
`learned.PeerNet` and a name in `peers.PEERS` where it has to be trained.
"""

from sarmatch.baselines.akaze import AkazeMatcher
from sarmatch.baselines.base import Baseline
from sarmatch.baselines.brisk import BriskMatcher
from sarmatch.baselines.edge_orientation import EdgeOrientationMatcher
from sarmatch.baselines.learned import LearnedMatcher
from sarmatch.baselines.lightglue import LightGlueMatcher
from sarmatch.baselines.local_features import LocalFeatureMatcher, LocalFeatures
from sarmatch.baselines.mutual_information import MutualInformationMatcher
from sarmatch.baselines.orb import OrbMatcher
from sarmatch.baselines.phase_correlation import PhaseCorrelationMatcher
from sarmatch.baselines.rift import RiftMatcher
from sarmatch.baselines.sift import SiftMatcher
from sarmatch.baselines.template import TemplateMatcher

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
