"""Two scenes of any size, reference system and resolution: matched window by window, and registered.

from sarmatch.scenes import match_scenes, register
register("sar.tif", "optical.tif", "registered.tif", model="affine", report="report.html")
"""

from sarmatch.scenes.files import SceneRefusal
from sarmatch.scenes.pair import SceneOptions
from sarmatch.scenes.pipeline import MatchSettings, match_scenes
from sarmatch.scenes.registering import SceneRegistration, register

__all__ = ["MatchSettings", "SceneOptions", "SceneRefusal", "SceneRegistration", "match_scenes", "register"]
