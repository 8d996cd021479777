"""The bundled pair and its command; the limits for the shipped weights are far below their results."""

from __future__ import annotations

import tomllib
from pathlib import Path

import cv2
import numpy as np
import pytest
import rasterio
from make_demo_pair import MARGIN, SEED, SIZE, make
from matplotlib.figure import Figure
from scipy import ndimage

from companion.baselines.gradients import oriented_gradients, shift_scores
from sarmatch import cli, demo, load_matcher
from sarmatch.data import read_pair
from sarmatch.data.synthetic import render_pair
from sarmatch.matching.matches import Matches
from sarmatch.model.oriented_gradients import OPTICAL_SIGMA_PX, SAR_SIGMA_PX

FILES = ("sar.tif", "optical.tif")


@pytest.fixture(scope="module")
def result() -> demo.Demo:
    return demo.match_pair(load_matcher("s1s2", device="cpu"))


def test_the_files_are_what_the_seed_makes(tmp_path: Path) -> None:
    make(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(FILES)
    for name in FILES:
        with rasterio.open(demo.FOLDER / name) as kept, rasterio.open(tmp_path / name) as made:
            assert kept.profile == made.profile
            assert kept.tags() == made.tags()
            # Other builds of the libraries may round or decide a few pixels otherwise.
            assert np.mean(kept.read() != made.read()) < 0.01


def test_the_files_are_small_and_part_of_the_package() -> None:
    assert sorted(file.name for file in demo.FOLDER.iterdir()) == sorted(FILES)
    assert sum((demo.FOLDER / name).stat().st_size for name in FILES) < 250_000
    pyproject = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    assert f"{demo.FOLDER.name}/*" in pyproject["tool"]["setuptools"]["package-data"]["sarmatch"]


@pytest.mark.parametrize(("name", "bands"), [(FILES[0], 1), (FILES[1], 3)])
def test_a_gis_finds_grid_and_truth(name: str, bands: int) -> None:
    with rasterio.open(demo.FOLDER / name) as file:
        assert (file.count, file.height, file.width) == (bands, SIZE, SIZE)
        assert file.crs.is_projected and file.crs.to_epsg() == 32631
        assert file.res == (10.0, 10.0) and file.transform.e < 0
        assert (float(file.tags()["SHIFT_X_PX"]), float(file.tags()["SHIFT_Y_PX"])) == demo.SHIFT_PX
        assert file.dataset_mask().all()


def test_oriented_gradients_find_the_known_shift_between_the_sensors() -> None:
    pair = read_pair(*(demo.FOLDER / name for name in FILES), id="demo")
    sar, optical = oriented_gradients(pair.sar, SAR_SIGMA_PX), oriented_gradients(pair.optical, OPTICAL_SIGMA_PX)
    scores = shift_scores(sar, optical, 20)
    dy, dx = np.array(np.unravel_index(np.argmax(scores), scores.shape)) - 20
    assert np.hypot(dx - demo.SHIFT_PX[0], dy - demo.SHIFT_PX[1]) < 1.5  # layover moves some of SAR, whole pixels


def test_the_optical_image_is_displaced_by_exactly_the_known_shift() -> None:
    scene, inner = render_pair(SEED, SIZE + 2 * MARGIN), slice(MARGIN, -MARGIN)
    with rasterio.open(demo.FOLDER / "sar.tif") as file:
        assert np.mean(file.read() != (255 * scene.sar[:, inner, inner].numpy()).round()) < 0.01
    with rasterio.open(demo.FOLDER / "optical.tif") as file:
        moved = file.read(1) / 255.0
    around = np.stack(np.meshgrid([-0.25, 0.0, 0.25], [-0.25, 0.0, 0.25]), -1).reshape(
        -1, 2
    )  # px off the truth, (x, y)
    wide = scene.optical[0].numpy().astype(np.float64)
    tried = [ndimage.shift(wide, (np.array(demo.SHIFT_PX) + off)[::-1], order=3)[inner, inner] for off in around]
    differences = np.array([np.sqrt(np.mean((image - moved) ** 2)) for image in tried])
    assert around[differences.argmin()].tolist() == [0.0, 0.0]
    assert differences.min() < 0.02 and np.median(differences) > 2 * differences.min(), differences


def test_shipped_weights_find_the_shift(result: demo.Demo) -> None:
    assert len(result.matches) >= 100
    offsets = result.matches.xy_optical - result.matches.xy_sar - np.float32(demo.SHIFT_PX)
    np.testing.assert_allclose(result.errors, np.linalg.norm(offsets, axis=1), atol=1e-4)
    assert np.mean(result.errors <= 3) > 0.5


def test_the_summary_is_counted_by_hand() -> None:
    xy = np.zeros((4, 2))
    away = np.array([[0, 0], [1, 0], [0, 3], [30, 40]])
    matches = Matches(xy, xy + demo.SHIFT_PX + away, np.ones(4))
    text = str(demo.Demo(matches, np.array([0.0, 1.0, 3.0, 50.0]), 1.25))
    assert text.startswith("4 matches in 1.2 s on a generated pair")
    assert "75% within 3 px of the known shift (9.5, -6.25) px, median error 2.00 px" in text
    assert str(demo.Demo(Matches.empty(), np.zeros(0), 1.0)) == "0 matches in 1.0 s on a generated pair"


def test_the_command_prints_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output, drawn, draw = tmp_path / "demo.png", [], demo.draw_pair
    monkeypatch.setattr(demo, "draw_pair", lambda made, path: (drawn.append(made), draw(made, path)))
    assert cli.main(["demo", "--device", "cpu", "--mc-passes", "2", "--output", str(output)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [*str(drawn[0]).splitlines(), f"matches -> {output}"] and len(lines) == 3
    assert [file.name for file in tmp_path.iterdir()] == [output.name]
    picture = cv2.imread(str(output))
    assert picture.shape[1] > picture.shape[0] > 300 and picture.std() > 10
    assert np.isfinite(drawn[0].matches.epistemic).all(), "the passes with dropout were not made"


def test_no_matches_can_be_drawn_in_any_format(tmp_path: Path) -> None:
    nothing = demo.Demo(Matches.empty(), np.zeros(0), 1.0)
    for name, start in {"demo.PNG": b"\x89PNG", "demo.svg": b"<?xml"}.items():
        demo.draw_pair(nothing, tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(start)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("demo.gis", "demo.gis: pictures are saved as"),
        ("demo", "got suffix ''"),
        ("demo.pgf", "got suffix '.pgf'"),
        ("nowhere/demo.png", "nowhere does not exist; make it first"),
    ],
)
def test_an_output_that_cannot_be_written_is_named_first(
    output: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["demo", "--model", "nothing", "-o", output]) == 2  # before the weights are looked for
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_failed_drawing_leaves_the_old_picture_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, result: demo.Demo
) -> None:
    output = tmp_path / "demo.png"
    output.write_bytes(b"old")

    def fail(figure: Figure, path: Path, **options: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        demo.draw_pair(result, output)
    assert output.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["demo.png"]
