"""Matching of SAR and optical satellite images.

    import sarmatch
    matcher = sarmatch.load_matcher("runs/s1s2/matcher-0123abcd")
    matches = matcher.match("sar.tif", "optical.tif", search_radius=32)

Heavy modules are imported when a name is first used, so that `sarmatch --help` is instant.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sarmatch.config import Config as Config
    from sarmatch.evaluation.protocols import evaluate as evaluate
    from sarmatch.matching.matcher import Matcher as Matcher
    from sarmatch.matching.matcher import load_matcher as load_matcher
    from sarmatch.matching.matches import Matches as Matches
    from sarmatch.profiles import profile as profile
    from sarmatch.scenes.pipeline import match_scenes as match_scenes
    from sarmatch.scenes.pipeline import register as register
    from sarmatch.training.runs import train_or_load as train_or_load

__version__ = "0.1.0"
_HOMES = {
    "Config": "config",
    "Matcher": "matching.matcher",
    "Matches": "matching.matches",
    "evaluate": "evaluation.protocols",
    "load_matcher": "matching.matcher",
    "match_scenes": "scenes.pipeline",
    "profile": "profiles",
    "register": "scenes.pipeline",
    "train_or_load": "training.runs",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sarmatch' has no attribute {name!r}")
    return getattr(importlib.import_module(f"sarmatch.{_HOMES[name]}"), name)
