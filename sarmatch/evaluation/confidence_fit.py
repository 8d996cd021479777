"""The fit of a network's confidence on validation scenes: collecting matches, then calibrators, decision, precision."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from torch import Tensor
from tqdm import tqdm

from sarmatch.calibration.calibrators import cross_fitted
from sarmatch.calibration.confidence import SCORES, SPREAD, Confidence, fit_calibrator, fit_overlap, pair_agreements
from sarmatch.calibration.position_error import fit_precision
from sarmatch.config import Config, EvaluationConfig, Protocol
from sarmatch.data.crops import EvaluationCrops
from sarmatch.data.pairs import Pairs
from sarmatch.evaluation.metrics import match_residuals
from sarmatch.evaluation.protocols import evaluation_crops, mismatched, spread
from sarmatch.io import digest
from sarmatch.matching.cues import CUES
from sarmatch.matching.matcher import Matcher
from sarmatch.matching.refinement import RawMatches
from sarmatch.model import SarOpticalNet

MC_PASSES = 20  #: Of section 3.2.4.
MODES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "single": ({}, ("logit_probability", "aleatoric", *CUES)),
    "distilled": ({"distilled": True}, ("logit_probability", "aleatoric", "epistemic", *CUES)),
    "monte_carlo": ({"mc_passes": MC_PASSES}, ("logit_probability", "aleatoric", "epistemic", *CUES)),
}
"""Ways of inference: arguments of `Matcher`, and the raw scores from which their confidence is made."""
SINGLE_PAIRS = 10  #: One pass is fitted on so many times as many pairs as the slower passes with dropout.
FITTED_UNDER: tuple[Protocol, ...] = ("shift", "affine", "deform")  #: Protocols whose matches a fit takes together.
Collect: TypeAlias = Callable[[Matcher, str, Pairs, EvaluationConfig, Protocol], pd.DataFrame]
"""Gives the `match_table` of a matcher, pairs and a protocol at the headline radius; the string names the table."""


def match_table(
    matcher: Callable[[EvaluationCrops], RawMatches], pairs: Pairs, protocol: Protocol, config: EvaluationConfig
) -> pd.DataFrame:
    """All matches of all pairs with their raw scores and errors, one row a match: the columns x, y (SAR position, px),
    error_px, `confidence.SCORES`, `cues.CUES`, `confidence.SPREAD`, id, dataset and scene."""
    parts = []
    for pair in tqdm(spread(pairs, config.max_pairs), desc=f"matches, {protocol}", disable=None):
        crops = evaluation_crops(pair, protocol, config)
        raw = matcher(crops).columns()
        residuals = match_residuals((raw["xy_sar"], raw["xy_optical"]), crops.truth)
        scores, upper = [raw[name] for name in (*SCORES, *CUES)], raw["covariance"][:, [0, 0, 1], [0, 1, 1]]
        values = np.column_stack([raw["xy_sar"], np.linalg.norm(residuals, axis=1), *scores, residuals, upper])
        table = pd.DataFrame(values.astype(np.float32), columns=["x", "y", "error_px", *SCORES, *CUES, *SPREAD])
        parts.append(table.assign(id=pair.id, dataset=pair.dataset, scene=pair.scene))
    return pd.concat(parts, ignore_index=True)


def collect_matches(
    matcher: Matcher, name: str, pairs: Pairs, config: EvaluationConfig, protocol: Protocol
) -> pd.DataFrame:
    """`match_table` at the headline radius, made now."""
    raw = partial(matcher.raw_matches, search_radius=config.headline_radius)
    return match_table(raw, pairs, protocol, config)


def fitted_on(net: SarOpticalNet, config: Config, pairs: Pairs) -> str:
    """Digest of what a confidence is fitted on and how."""
    sizes = [config.evaluation.calibration_pairs, MC_PASSES, SINGLE_PAIRS, FITTED_UNDER, CUES]
    return digest([trained_weights(net), net.config, pairs, config.evaluation, sizes])


def trained_weights(net: SarOpticalNet) -> dict[str, Tensor]:
    """All but the head of the distilled mode, which is distilled after training."""
    return {name: t for name, t in net.state_dict().items() if not name.startswith("epistemic_head.")}


def fit_confidence(net: SarOpticalNet, config: Config, pairs: Pairs, collect: Collect = collect_matches) -> Confidence:
    """Calibrators, decisions on overlap and precision of a network, at the headline radius.

    Calibrators and precision are of matches under all of `FITTED_UNDER`, decisions of pairs under `shift`. Decisions
    and precision are cross-fitted over scenes, which must have had no part in the choice of the weights. The distilled
    mode is left out where the head was not distilled.
    """
    calibrators, overlaps, precision = {}, {}, {}
    for mode, (arguments, names) in MODES.items():
        if mode == "distilled" and not net.epistemic_head.distilled:
            continue
        matcher = Matcher(net, **arguments)
        at_most = config.evaluation.calibration_pairs * (SINGLE_PAIRS if mode == "single" else 1)
        limited = dataclasses.replace(config.evaluation, max_pairs=at_most)
        usable = names if config.model.uncertainty else tuple(n for n in names if n != "aleatoric")
        fit = partial(fit_calibrator, names=usable)
        tables = {protocol: collect(matcher, "validation", pairs, limited, protocol) for protocol in FITTED_UNDER}
        table = pd.concat(tables.values(), ignore_index=True)
        calibrators[mode] = fit(table)
        if len(table):
            precision[mode] = fit_precision(table, fit)
        if pairs.index["scene"].nunique() > 1:  # else there are no unrelated pairs
            others = mismatched(pairs)
            unrelated = collect(matcher, "unrelated", others, limited, "shift")
            agreements = (
                pair_agreements(t, cross_fitted(table, t, fit), spread(of, at_most).index["id"]).to_numpy()
                for t, of in ((tables["shift"], pairs), (unrelated, others))
            )
            overlaps[mode] = fit_overlap(*agreements)
    radius, key = config.evaluation.headline_radius, fitted_on(net, config, pairs)
    return Confidence(calibrators, overlaps, radius, MC_PASSES, precision, key)
