"""Methods under a smooth displacement field: its amplitude and smoothness against the width of what they compare."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import pandas as pd

from companion.baselines import TemplateMatcher
from companion.cache import records_or_load
from companion.studies.sensitivity import named_records, with_neighbourhoods
from sarmatch.config import EvaluationConfig
from sarmatch.data.pairs import Pairs
from sarmatch.evaluation.protocols import CropMatcher
from sarmatch.matching.matcher import Matcher
from sarmatch.model import STRIDE
from sarmatch.training.runs import Run

AMPLITUDES_PX = (0.0, 2.0, 4.0, 8.0)  #: Largest component of the field; with 0 the protocol is a shift.
LENGTHS_PX = (24.0, 48.0, 96.0)  #: Standard deviation of the Gaussian that makes it smooth.
TEMPLATES_PX = (17, 33, 65, 97)


def field_records(run: Run, methods: Mapping[str, CropMatcher], pairs: Pairs, config: EvaluationConfig) -> pd.DataFrame:
    """Records of each method under `deform` at the headline radius, measured once, with amplitude_px and length_px.

    Without amplitude there is no length: those records stand with every length.
    """
    parts = []
    for amplitude in AMPLITUDES_PX:
        for length in LENGTHS_PX:
            sigma = length if amplitude else LENGTHS_PX[0]
            changed = dataclasses.replace(config, deformation_px=amplitude, deformation_sigma_px=sigma)
            for name, matcher in methods.items():
                found = records_or_load(run, matcher, name, pairs, "deform", config.headline_radius, changed)
                parts.append(found.assign(amplitude_px=amplitude, length_px=length))
    return pd.concat(parts, ignore_index=True)


def window_records(run: Run, pairs: Pairs, config: EvaluationConfig) -> pd.DataFrame:
    """Records under `shift` and `deform` of methods that compare windows of one width, in the column window_px.

    `network` is that of a run, with a single side of aggregation at a time; `template` the gradient template.
    """
    sides = run.config.model.consensus_cells
    of_network: dict[str, CropMatcher] = {
        str(side * STRIDE): Matcher(with_neighbourhoods(run.net, (side,))) for side in sides
    }
    of_template: dict[str, CropMatcher] = {str(side): TemplateMatcher(template_px=side) for side in TEMPLATES_PX}
    parts = []
    for method, matchers in (("network", of_network), ("template", of_template)):
        found = named_records(run, f"{method} window", matchers, pairs, config, ("shift", "deform"))
        parts.append(found.assign(method=method, window_px=found[f"{method} window"].astype(int)))
    return pd.concat(parts, ignore_index=True)
