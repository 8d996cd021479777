"""Trials of registration: what is counted as success, and that the truth is what was applied."""

from __future__ import annotations

from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from patch_net import PatchNet
from scene_files import texture

from companion.figures import scenes as trial_plots
from companion.settings import book_profile
from companion.studies import scenes as trials
from companion.studies.data import CheckPoints
from sarmatch.config import Config
from sarmatch.data.pairs import Pair, PairError
from sarmatch.matching.matcher import Matcher
from sarmatch.matching.matches import Matches
from sarmatch.model import SarOpticalNet
from sarmatch.profiles import ON_REAL_DATA
from sarmatch.scenes.grids import Region
from sarmatch.scenes.report import View


@pytest.fixture(scope="module")
def matcher() -> Matcher:
    return Matcher(PatchNet(), "cpu")  # type: ignore[arg-type]


def pair_of(seed: int, shift: tuple[int, int] = (0, 0), size: int = 240) -> Pair:
    ground = torch.from_numpy(texture(size + 40, size + 40, seed)) / 255
    x, y = 20 - shift[0], 20 - shift[1]
    first, second = ground[20 : 20 + size, 20 : 20 + size], ground[y : y + size, x : x + size]
    valid = torch.ones(size, size, dtype=torch.bool)
    return Pair(first[None], second[None].expand(3, -1, -1), valid, f"pair {seed}", scene=f"scene {seed}")


def shifted(matcher: Matcher, pair: Pair, n: int, max_shift_px: float, model: str = "shift") -> pd.DataFrame:
    """Trials of one pair by one model."""
    return trials.registration_trials(matcher, [pair], n, max_shift_px).query("model == @model")


@pytest.mark.parametrize("model", ["shift", "affine"])
def test_an_applied_shift_is_the_truth(matcher: Matcher, model: str) -> None:
    table = shifted(matcher, pair_of(0), 2, 30.0, model)
    assert len(table) == 2 and (table["refused"] == "").all() and table[["dx", "dy"]].abs().to_numpy().max() <= 30
    assert table["corner_error_px"].max() < 0.5 and (table["share"] > table["required"]).all()


def test_check_points_know_what_a_pair_is_off_by_itself(matcher: Matcher) -> None:
    table = shifted(matcher, pair_of(1, (3, -2)), 1, 20.0)
    (row,) = table.to_dict("records")
    assert row["corner_error_px"] == pytest.approx(np.hypot(3, 2), abs=0.4)
    assert row["n_checks"] > 0 and row["check_corner_px"] < 0.7 and row["check_rmse_px"] < 0.7
    assert 0 <= row["within_ce90"] <= 1


def test_own_displacements_are_those_of_the_pair_and_unknown_where_nothing_agrees(
    matcher: Matcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = shifted(matcher, pair_of(1, (3, -2)), 2, 10.0)
    (known,) = table.drop_duplicates("id")[["id", *trials.OWN]].to_dict("records")
    assert known["n_checks"] == known["n_blocks"] == 1
    assert known["own_median_px"] == known["own_corner_px"] == pytest.approx(np.hypot(3, 2), abs=0.4)
    nothing = CheckPoints(np.empty((0, 2)), np.empty((0, 2)), 1)
    monkeypatch.setattr(trials, "check_points", lambda pair: nothing)
    (row,) = shifted(matcher, pair_of(1, (3, -2)), 1, 10.0).to_dict("records")
    assert row["n_checks"] == 0 and row["refused"] == "" and row["corner_error_px"] > 0
    assert all(np.isnan(row[name]) for name in ("own_corner_px", "check_corner_px", "check_rmse_px", "within_ce90"))


def test_success_counts_refusals_as_failures() -> None:
    errors = ("corner_error_px", "check_corner_px", "check_rmse_px", "within_ce90")
    rows = [
        {"model": "shift", "refused": "", **dict(zip(errors, (4.0, 1.0, 0.5, 0.75), strict=True))},
        {"model": "shift", "refused": "too few", **dict.fromkeys(errors, np.nan)},
    ]
    (row,) = trials.success_table(pd.DataFrame(rows)).to_dict("records")
    assert (row["refused"], row["success"], row["success_checks"], row["within_ce90"]) == (0.5, 0.0, 0.5, 0.75)


def test_refusals_say_why(matcher: Matcher) -> None:
    pair = pair_of(0)
    assert "constant" in trials.refusal(torch.zeros(1, 100, 100), pair.optical, matcher)
    assert "in common" in trials.refusal(pair.sar, pair.optical, matcher, (900.0, 0.0))
    assert trials.refusal(pair.sar, pair.optical, matcher) == "accepted"


def test_false_successes_are_counted() -> None:
    table = pd.DataFrame({"refused": ["", "no"], "share": [0.9, 0.2], "required": [0.5, 0.5]})
    (row,) = trials.false_successes({"crops": table}).to_dict("records")
    assert row["pairings"] == 2 and row["false_successes"] == 1 and row["least_margin"] == pytest.approx(-0.4)


def test_joined_matches_are_those_inside_the_view_and_keep_their_confidence() -> None:
    picture = np.zeros((40, 60, 3), np.uint8)
    view = View("detail", Region(100, 200, 120, 80), 2, picture, picture, picture)
    xy = np.array([[110.0, 210], [219, 279], [99, 210], [110, 281]])
    matches = Matches(xy, xy, np.array([0.25, 0.75, 0.5, 0.5]))
    _, ax = plt.subplots()
    trial_plots.joined(ax, view, matches)
    (lines,) = ax.collections
    np.testing.assert_array_equal(lines.get_array(), [0.25, 0.75])
    np.testing.assert_allclose(lines.get_segments()[0][0], [4.75, 4.75])
    plt.close("all")


def real_config(root: Path, names: list[str], manifest: str = "") -> Config:
    """The profile on real pairs, of a folder of small images with these names."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        channels = 1 if "S1" in name else 3
        assert cv2.imwrite(str(root / name), np.full((32, 32, channels), 90, np.uint8))
    if manifest:
        (root / "manifest.csv").write_text(f"dataset,id,sar,optical\n{manifest}\n")
    return book_profile("s1s2", str(root))


def test_scenes_are_generated_where_a_folder_holds_none(tmp_path: Path) -> None:
    names = [f"OmbriaS{i}/train/{when}/S{i}_{when.lower()}_0001.png" for i in (1, 2) for when in ("BEFORE", "AFTER")]
    ombria = real_config(tmp_path / "ombria", names)
    described = real_config(tmp_path / "described", ["S1.png", "S2.png"], "ombria,a,S1.png,S2.png")
    for config in (ombria, described):
        scenes = trials.scenes_of(config)
        assert set(scenes.index["dataset"]) == {"synthetic"} and len(scenes) == 8


def test_scenes_are_those_of_the_folder_and_missing_files_are_no_reason_to_generate_some(tmp_path: Path) -> None:
    rows = "scenes,a,S1.png,S2.png\nombria,b,S1.png,S2.png"
    config = real_config(tmp_path, ["S1.png", "S2.png"], rows)
    assert list(trials.scenes_of(config).index["id"]) == ["a"]
    (tmp_path / "S2.png").unlink()
    with pytest.raises(PairError, match=r"no usable pair is left; a: optical file .*S2\.png is missing"):
        trials.scenes_of(config)


@pytest.mark.parametrize(("name", "numbers"), [("smoke", (1, 1, 0)), ("demo", (2, 12, 4)), ("s1s2", (2, 200, 6))])
def test_a_study_has_the_numbers_of_its_profile(
    name: str, numbers: tuple[int, int, int], matcher: Matcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def registrations(matcher: Matcher, pairs: object, n_shifts: int, **_: object) -> pd.DataFrame:
        return asked.append(n_shifts) or pd.DataFrame()

    def unrelated(matcher: Matcher, pairs: object, n: int, *_: object) -> pd.DataFrame:
        return asked.append(n) or pd.DataFrame()

    monkeypatch.setattr(trials, "registration_trials", registrations)
    monkeypatch.setattr(trials, "unrelated_trials", unrelated)
    root = str(tmp_path) if name in ON_REAL_DATA else None
    config = book_profile(name, root).replace(data={"source": "synthetic"}, profile="another name")
    trials.study_or_load(config, tmp_path, matcher)
    assert tuple(asked) == numbers
    studies = config.studies
    assert (studies.scene_shifts, studies.unrelated_crops, studies.unrelated_scenes) == numbers


def test_a_study_is_measured_again_after_a_training_or_a_change_of_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[int] = []

    def trial(matcher: Matcher, pairs: object, n: int, *_: object, **__: object) -> pd.DataFrame:
        measured.append(n)
        return pd.DataFrame({"n": [len(measured)]})

    monkeypatch.setattr(trials, "registration_trials", trial)
    monkeypatch.setattr(trials, "unrelated_trials", trial)
    smoke, demo = book_profile("smoke"), book_profile("demo")
    nets = [SarOpticalNet(smoke.model).eval() for _ in range(2)]
    first, trained_again = (Matcher(net, "cpu") for net in nets)
    for config, matcher, tables in ((smoke, first, 3), (smoke, trained_again, 6), (demo, trained_again, 9)):
        for _ in range(2):  # the second time it is read
            trials.study_or_load(config, tmp_path, matcher)
            assert len(measured) == tables


def test_registrations_use_shipped_weights_only_for_their_own_data_or_by_a_small_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fitted_run(config: Config, *_: object) -> None:
        asked.append(config.profile)
        raise LookupError

    monkeypatch.setattr(trials, "fitted_run", fitted_run)
    monkeypatch.setattr(trials, "open_split", lambda config: None)
    assert trials.matcher_of(book_profile("smoke"), tmp_path).confidence is not None
    assert not asked
    with pytest.raises(LookupError):
        trials.matcher_of(book_profile("s1s2", str(tmp_path)), tmp_path)
    assert asked == ["s1s2"]
