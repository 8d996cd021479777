"""Matches whose error model is known, for tests of precision."""

from __future__ import annotations

import numpy as np
import pandas as pd

from sarmatch.calibration.calibrators import Isotonic
from sarmatch.calibration.position_error import Precision, fit_precision
from sarmatch.config import CONFIDENT_PX

AS_STATED = Isotonic((0.0, 1.0), (0.0, 1.0))
"""Takes the probability for the confidence."""


def simulated(n_scenes: int = 20, per_scene: int = 400, seed: int = 0, hard: float = 1.0) -> pd.DataFrame:
    """Matches right with their probability; right ones off as 0.4 raw + 0.2 I says, wrong ones by 3 to 50 px.

    `hard` multiplies the errors of right matches: 2 makes a model that is fitted on 1 too narrow.
    """
    rng = np.random.default_rng(seed)
    n = n_scenes * per_scene
    factors = rng.normal(size=(n, 2, 2)) * 0.7
    raw = factors @ factors.transpose(0, 2, 1)
    confidence = rng.beta(8, 1, n)
    error = hard * np.einsum("nij,nj->ni", np.linalg.cholesky(0.4 * raw + 0.2 * np.eye(2)), rng.normal(size=(n, 2)))
    error *= np.minimum(1, CONFIDENT_PX / np.linalg.norm(error, axis=1))[:, None]
    wrong = rng.random(n) > confidence
    angle, distance = rng.uniform(0, 2 * np.pi, n), rng.uniform(3.01, 50, n)
    error[wrong] = (distance * np.stack([np.cos(angle), np.sin(angle)])).T[wrong]
    table = pd.DataFrame(dict(zip(("var_x", "var_xy", "var_y"), raw[:, [0, 0, 1], [0, 1, 1]].T, strict=True)))
    scene = np.repeat([f"scene{i}" for i in range(n_scenes)], per_scene)
    places = {"error_x": error[:, 0], "error_y": error[:, 1], "error_px": np.linalg.norm(error, axis=1)}
    return table.assign(scene=scene, probability=confidence, **places)


def fitted(table: pd.DataFrame) -> Precision:
    return fit_precision(table, lambda _: AS_STATED)
