"""Confidence of a finished run: fitted once on validation scenes, and kept with it."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from sarmatch.cache import digest
from sarmatch.confidence import (
    CONFIDENCE_FILE,
    Confidence,
    Overlap,
    cross_fitted,
    fit_calibrator,
    fit_overlap,
    pair_agreements,
    read_confidence,
)
from sarmatch.config import EvaluationConfig
from sarmatch.data.pairs import Pairs
from sarmatch.data.splits import Split
from sarmatch.evaluation import mismatched, spread
from sarmatch.experiments import Run, matches_or_load, run_lock
from sarmatch.files import atomic_path
from sarmatch.inference import Matcher
from sarmatch.models import SarOpticalNet
from sarmatch.precision import fit_precision

MC_PASSES = 20
"""Of section 3.2.4."""
MODES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "single": ({}, ("logit_probability", "aleatoric")),
    "distilled": ({"distilled": True}, ("logit_probability", "aleatoric", "epistemic")),
    "monte_carlo": ({"mc_passes": MC_PASSES}, ("logit_probability", "aleatoric", "epistemic")),
}
"""Ways of inference: arguments of `Matcher`, and the raw scores from which their confidence is made."""
SINGLE_PAIRS = 10
"""One pass is fitted on up to so many times as many pairs as the passes with dropout, which take longer."""


def confidence_or_load(run: Run, split: Split) -> Confidence:
    """Calibrators, decisions on overlap and precision of a run, fitted once under `shift` at the headline radius.

    All are fitted on `split.calibration`, scenes that had no part in the choice of the weights. What is told of one of
    these scenes (whether its pairs are accepted, how far its matches lie off) is told with calibrators that were fitted
    without it. The distilled mode is left out where the head was not distilled. Weights that come with the package
    keep the confidence that came with them.
    """
    taught = bool(run.net.epistemic_head.distilled)
    key = fitted_on(run, split)
    with run_lock(run.path):
        stored = read_confidence(run.path)
        complete = stored is not None and ("distilled" in stored.calibrators or not taught)
        if stored is not None and complete and (run.shipped or stored.fitted_on == key):
            return stored
        confidence = fit_confidence(run, split)
        with atomic_path(run.path / CONFIDENCE_FILE) as temporary:
            temporary.write_text(confidence.to_json())
    return confidence


def fitted_on(run: Run, split: Split) -> str:
    """Digits of what a confidence is fitted on and how; the head of the distilled mode may be taught in between."""
    sizes = [run.config.studies.calibration_pairs, MC_PASSES, SINGLE_PAIRS]
    return digest([trained_weights(run.net), run.net.config, split.calibration, run.config.evaluation, sizes])


def trained_weights(net: SarOpticalNet) -> dict[str, Tensor]:
    """All but the head of the distilled mode, which is taught after training."""
    return {name: t for name, t in net.state_dict().items() if not name.startswith("epistemic_head.")}


def fit_confidence(run: Run, split: Split) -> Confidence:
    """What `confidence_or_load` keeps, fitted now; matches that were measured for it before are read from the run."""
    taught = bool(run.net.epistemic_head.distilled)
    calibrators, overlaps, precision = {}, {}, {}
    for mode, (arguments, names) in MODES.items():
        if mode == "distilled" and not taught:
            continue
        matcher = Matcher(run.net, **arguments)
        at_most = run.config.studies.calibration_pairs * (SINGLE_PAIRS if mode == "single" else 1)
        config = dataclasses.replace(run.config.evaluation, max_pairs=at_most)
        usable = names if run.config.model.uncertainty else tuple(n for n in names if n != "aleatoric")
        table = matches_or_load(run, matcher, "validation", split.calibration, "shift", config)
        calibrators[mode] = fit_calibrator(table, usable)
        if len(table):
            precision[mode] = fit_precision(table, calibrators[mode], partial(fit_calibrator, names=usable))
        if split.calibration.index["scene"].nunique() > 1:  # else there are no unrelated pairs
            overlaps[mode] = _overlap(run, matcher, split.calibration, table, usable, config)
    return Confidence(
        calibrators, overlaps, run.config.evaluation.headline_radius, MC_PASSES, precision, fitted_on(run, split)
    )


def _overlap(
    run: Run,
    matcher: Matcher,
    pairs: Pairs,
    table: pd.DataFrame,
    names: tuple[str, ...],
    config: EvaluationConfig,
) -> Overlap:
    """The decision on a pair, chosen on agreements whose calibrators have not seen the scene of the SAR image."""
    others = mismatched(pairs)
    unrelated = matches_or_load(run, matcher, "unrelated", others, "shift", config)

    def agreements(matches: pd.DataFrame, of: Pairs) -> np.ndarray:
        confidence = cross_fitted(table, matches, partial(fit_calibrator, names=names))
        return pair_agreements(matches, confidence, spread(of, config.max_pairs)).to_numpy()

    return fit_overlap(agreements(table, pairs), agreements(unrelated, others))
