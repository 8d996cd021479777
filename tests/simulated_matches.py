"""Matches whose chance of being right is known, for tests of calibration."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.special import expit, logit


def simulate(n: int = 4000, seed: int = 0, scenes: int = 12) -> pd.DataFrame:
    """Matches whose chance of being correct is known: logit = 0.8 logit(probability) - 0.7 logit(aleatoric) + 0.3."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"probability": rng.uniform(0.01, 0.99, n), "aleatoric": rng.uniform(0.05, 0.95, n)})
    truth = expit(0.8 * logit(table["probability"]) - 0.7 * logit(table["aleatoric"]) + 0.3)
    scene = rng.integers(0, scenes, n)
    known = {"truth": truth, "epistemic": rng.uniform(0, 0.1, n), "scene": scene, "id": scene}
    error = np.where(rng.random(n) < truth, 1.0, 9.0)
    return table.assign(**known, error_px=error, confidence=table["probability"])
