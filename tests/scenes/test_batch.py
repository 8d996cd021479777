"""Lists of pairs: read, registered in parallel, one failure reported and the rest done."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
import torch
from scene_files import write
from scipy.spatial import cKDTree

from sarmatch import cli
from sarmatch.demo import FOLDER
from sarmatch.io import SAME_MATCH_PX, SAME_MATCH_SHARE
from sarmatch.matching.matcher import load_matcher
from sarmatch.scenes import batch
from sarmatch.scenes.batch import OUTCOME, PairFiles, read_pairs, register_all
from sarmatch.scenes.pipeline import match_scenes
from sarmatch.scenes.settings import MatchSettings

SAR, OPTICAL = str(FOLDER / "sar.tif"), str(FOLDER / "optical.tif")


def test_paths_in_a_list_are_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("output,sar,optical,note\nout.tif,sar.tif,/data/optical.tif,x\n")
    expected = PairFiles(str(tmp_path / "sar.tif"), "/data/optical.tif", str(tmp_path / "out.tif"))
    assert read_pairs(tmp_path / "list.csv") == [expected]


@pytest.mark.parametrize("form", ["collection", "list", "item"])
def test_stac_items(form: str, tmp_path: Path) -> None:
    assets = {"sar": {"href": "s1/a%20b.tif"}, "optical": {"href": "https://example.org/b.tif"}, "other": {"href": "x"}}
    item = {"type": "Feature", "id": "scene-7", "assets": assets}
    content = {"collection": {"type": "FeatureCollection", "features": [item]}, "list": [item], "item": item}[form]
    (tmp_path / "items.json").write_text(json.dumps(content))
    (pair,) = read_pairs(tmp_path / "items.json")
    assert pair.sar == str(tmp_path / "s1/a%20b.tif") and pair.optical == "https://example.org/b.tif"
    assert pair.output == str(tmp_path / "scene-7.tif")


def test_an_id_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    item = {"id": "../../etc/scene", "assets": {"sar": {"href": "a"}, "optical": {"href": "b"}}}
    (tmp_path / "items.json").write_text(json.dumps(item))
    assert read_pairs(tmp_path / "items.json")[0].output == str(tmp_path / "scene.tif")


def test_an_output_named_twice_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("sar,optical,output\na,b,z.tif\na,b,o.tif\na,b,o.tif\na,b,z.tif\na,b,p.tif\n")
    with pytest.raises(ValueError, match=r"names the output .*o\.tif more than once; give each pair its own"):
        read_pairs(tmp_path / "list.csv")


def test_a_long_list_is_not_compared_each_with_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    n, compared = 50_000, 0

    class Counted(str):
        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            assert compared < 10 * n, "comparisons grow with the square of the list"
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    def pairs(source: Path) -> Iterator[PairFiles]:
        return (PairFiles("sar.tif", "optical.tif", Counted(f"{i}.tif")) for i in range(n))

    monkeypatch.setattr(batch, "_csv_pairs", pairs)
    (tmp_path / "list.csv").touch()
    assert len(read_pairs(tmp_path / "list.csv")) == n


@pytest.fixture
def jobs(tmp_path: Path) -> list[PairFiles]:
    return [
        PairFiles(SAR, str(tmp_path / "gone.tif"), str(tmp_path / "a.tif")),
        PairFiles(SAR, OPTICAL, str(tmp_path / "b.tif")),
    ]


def check(outcomes: pd.DataFrame, tmp_path: Path) -> None:
    assert list(outcomes.columns) == list(OUTCOME) and list(outcomes["status"]) == ["failed", "registered"]
    assert "no such file" in outcomes["reason"][0] and outcomes["ce90_m"][1] > 0
    assert (tmp_path / "b.tif").is_file() and not (tmp_path / "a.tif").exists()


def test_one_failure_does_not_stop_the_rest(jobs: list[PairFiles], tmp_path: Path) -> None:
    check(register_all(jobs, MatchSettings(progress=False), "shift"), tmp_path)


def test_the_command_reports_failures(
    jobs: list[PairFiles], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pd.DataFrame(jobs).to_csv(tmp_path / "list.csv", index=False)
    command = ["batch", str(tmp_path / "list.csv"), "--model", "shift", "-o", str(tmp_path / "outcomes.csv")]
    assert cli.main(command) == 1
    printed = capsys.readouterr()
    assert "1 of 2 pairs registered" in printed.out and "gone.tif" in printed.err
    check(pd.read_csv(tmp_path / "outcomes.csv"), tmp_path)


def test_two_workers_of_a_dask_cluster(jobs: list[PairFiles], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = pytest.importorskip("distributed")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # for the workers, which are new processes
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster:
        outcomes = register_all(jobs, MatchSettings(progress=False), "shift", scheduler=cluster.scheduler_address)
    check(outcomes, tmp_path)


def test_no_scheduler_is_an_error(jobs: list[PairFiles]) -> None:
    pytest.importorskip("distributed")
    with pytest.raises(ValueError, match="no Dask scheduler answers"):
        register_all(jobs, MatchSettings(progress=False), scheduler="tcp://127.0.0.1:9")


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets the number of torch's threads in this process; it is put back afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_windows_in_two_processes_are_those_of_one(tmp_path: Path, threads: Callable[[int], None]) -> None:
    """Bit for bit, where all have one thread: more of them add in another order."""
    threads(1)
    with rasterio.open(SAR) as first, rasterio.open(OPTICAL) as second:
        images = [np.concatenate([f.read(), f.read()], axis=2) for f in (first, second)]  # wide enough for two windows
        place = {"crs": first.crs, "transform": first.transform}
    pair = [write(tmp_path / name, v, **place) for name, v in zip(("sar.tif", "optical.tif"), images, strict=True)]
    one, two = (match_scenes(*pair, search_radius=32.0, workers=n, force=True, progress=False) for n in (1, 2))
    assert len(one) > 1000
    for name in ("xy_sar", "xy_optical", "confidence", "aleatoric", "epistemic", "covariance", "radius"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


def test_more_threads_find_the_same_matches_but_for_rounding(threads: Callable[[int], None]) -> None:
    matcher, found = load_matcher("s1s2"), []
    for n in (1, 2):
        threads(n)
        matches = matcher.match(SAR, OPTICAL)
        found.append(np.concatenate([matches.xy_sar, matches.xy_optical], axis=1))
    for some, others in (found, found[::-1]):  # cells are 4 px apart: what is so near is of one cell
        nearest, _ = cKDTree(others).query(some)
        assert len(some) > 1000 and (nearest <= SAME_MATCH_PX).mean() >= SAME_MATCH_SHARE


def test_no_workers_are_an_error() -> None:
    with pytest.raises(ValueError, match="workers"):
        register_all([], MatchSettings(workers=0))
