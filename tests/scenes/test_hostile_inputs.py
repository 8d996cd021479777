"""Broken, lying and contradictory inputs: one clear line and a status each, never a traceback or a partial file."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio import Affine
from rasterio.control import GroundControlPoint
from scene_files import TRANSFORM, UTM, texture, write, write_pair

from sarmatch import cli
from sarmatch.matching.matches import Matches
from sarmatch.scenes import pipeline

Build = Callable[[Path], None]
GREY = texture(64, 64).astype(np.uint8)
RGB = np.stack([GREY, GREY[::-1], GREY.T])
DB = (GREY / 10 - 25).astype(np.float32)


class BlindMatcher:
    """Finds nothing: what is refused here is refused before, or for want of matches."""

    net = SimpleNamespace(config=SimpleNamespace(sar_channels=1, optical_channels=3))
    at_once = 1

    def match_batch(self, pairs: Any, *_: Any, **__: Any) -> list[Matches]:
        return [Matches.empty() for _ in pairs]


@pytest.fixture(autouse=True)
def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "load_matcher", lambda *_, **__: BlindMatcher())


def sar(values: np.ndarray, **options: Any) -> Build:
    return lambda folder: write(folder / "sar.tif", values, **options) and None


def optical(values: np.ndarray, **options: Any) -> Build:
    return lambda folder: write(folder / "optical.tif", values, **options) and None


def both(*builds: Build) -> Build:
    return lambda folder: [build(folder) for build in builds] and None


def text(name: str, content: str | bytes) -> Build:
    raw = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(raw) and None


def vrt(name: str, width: int, height: int, band: str = "", extra: str = "") -> Build:
    georeference = f"<SRS>{UTM}</SRS><GeoTransform>500000, 10, 0, 5000000, 0, -10</GeoTransform>"
    body = band or '<VRTRasterBand dataType="Byte" band="1"/>'
    head = f'<VRTDataset rasterXSize="{width}" rasterYSize="{height}">'
    return text(name, f"{head}{extra or georeference}{body}</VRTDataset>")


def cut(name: str, share: float) -> Build:
    def build(folder: Path) -> None:
        path = folder / name
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])

    return build


def noisy(name: str, driver: str) -> Build:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    return lambda folder: write(folder / name, noise, crs=None, transform=None, driver=driver) and None


def lying(tag: int, value: int) -> Build:
    """A TIFF whose directory states another number for a tag than the file holds."""

    def build(folder: Path) -> None:
        path = folder / "sar.tif"
        content = bytearray(path.read_bytes())
        start = int.from_bytes(content[4:8], "little")
        for i in range(int.from_bytes(content[start : start + 2], "little")):
            entry = start + 2 + 12 * i
            if int.from_bytes(content[entry : entry + 2], "little") == tag:
                content[entry + 2 : entry + 4] = (4).to_bytes(2, "little")  # LONG
                content[entry + 8 : entry + 12] = value.to_bytes(4, "little")
        path.write_bytes(content)

    return build


def one_block(folder: Path) -> None:
    """1.4 GB in one strip, of which nothing is stored."""
    profile = {"width": 70_000, "height": 20_000, "count": 1, "dtype": "uint8", "blockysize": 20_000}
    profile |= {"compress": "deflate", "sparse_ok": True}
    rasterio.open(folder / "sar.tif", "w", driver="GTiff", crs=UTM, transform=TRANSFORM, **profile).close()


def half(values: np.ndarray, left: bool) -> np.ndarray:
    middle, kept = values.shape[-1] // 2, values.copy()
    kept[..., slice(None, middle) if left else slice(middle, None)] = 0
    return kept


def masked(name: str, values: np.ndarray) -> Build:
    def build(folder: Path) -> None:
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
            write(folder / name, values)
            with rasterio.open(folder / name, "r+") as file:
                file.write_mask(np.zeros(values.shape[-2:], bool))

    return build


def gcps(points: list[tuple[float, float, float, float]]) -> Build:
    def build(folder: Path) -> None:
        control = [GroundControlPoint(row, column, x, y) for row, column, x, y in points]
        write(folder / "sar.tif", GREY, transform=None, crs=None)
        with rasterio.open(folder / "sar.tif", "r+") as file:
            file.gcps = (control, rasterio.crs.CRS.from_string(UTM))

    return build


def at(x: float, y: float, size: float = 10.0) -> Affine:
    return Affine(size, 0, x, 0, -size, y)


LOCAL = 'LOCAL_CS["a drawing board",UNIT["metre",1]]'
NAN, ZERO = np.full_like(DB, np.nan), np.zeros_like(GREY)
CASES: dict[str, tuple[Build, int, str]] = {
    # broken files
    "no SAR image": (lambda folder: (folder / "sar.tif").unlink(), 2, "no such file"),
    "no optical image": (lambda folder: (folder / "optical.tif").unlink(), 2, "no such file"),
    "empty file": (text("sar.tif", b""), 2, "not a raster"),
    "text": (text("sar.tif", "not an image"), 2, "not a raster"),
    "html of a failed download": (text("optical.tif", "<html><body>404</body></html>"), 2, "not a raster"),
    "random bytes": (text("sar.tif", np.random.default_rng(0).bytes(5000)), 2, "not a raster"),
    "only a TIFF's first bytes": (text("sar.tif", b"II*\0\x08\0\0\0"), 2, "not a raster"),
    "truncated SAR": (cut("sar.tif", 0.5), 2, "truncated"),
    "truncated optical": (cut("optical.tif", 0.7), 2, "truncated"),
    "truncated within the header": (cut("sar.tif", 0.01), 2, "not a raster"),
    "truncated PNG": (both(noisy("sar.tif", "PNG"), cut("sar.tif", 0.5)), 2, "truncated"),
    "truncated JPEG": (both(noisy("sar.tif", "JPEG"), cut("sar.tif", 0.3)), 2, "sar.tif"),
    # lying headers and huge sizes
    "declares a billion rows": (lying(257, 1_000_000_000), 2, "sar.tif"),
    "declares a billion columns": (lying(256, 1_000_000_000), 2, "sar.tif"),
    "declares more rows than it has": (lying(257, 4000), 3, "agree"),
    "strips beyond the end": (lying(273, 900_000_000), 2, "sar.tif"),
    "declares 2 billion px a side": (vrt("sar.tif", 2_000_000_000, 2_000_000_000), 2, "broken header"),
    "declares 600,000 px a side": (vrt("sar.tif", 600_000, 64), 2, "broken header"),
    "400,000 px a side of nothing": (vrt("sar.tif", 400_000, 400_000), 3, "constant"),
    "zero px": (vrt("sar.tif", 0, 0), 2, "sar.tif"),
    "negative size": (vrt("sar.tif", -5, 64), 2, "sar.tif"),
    "no bands": (vrt("sar.tif", 64, 64, " "), 2, "sar.tif"),
    "points to a missing file": (
        vrt(
            "sar.tif",
            64,
            64,
            '<VRTRasterBand dataType="Byte" band="1"><SimpleSource><SourceFilename>gone.tif'
            "</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand>",
        ),
        2,
        "sar.tif",
    ),
    "broken XML": (text("sar.tif", "<VRTDataset rasterXSize='5'"), 2, "not a raster"),
    "one block that holds all": (one_block, 2, "sar.tif"),
    # shapes
    "one px": (sar(GREY[:1, :1]), 3, "constant"),
    "one row": (sar(GREY[:1]), 3, "in common"),
    "one column": (sar(GREY[:, :1]), 3, "in common"),
    "too small": (sar(GREY[:40, :40]), 3, "48 x 48 are needed"),
    "one optical px": (optical(RGB[:, :1, :1]), 3, "optical"),
    # bands
    "a hundred SAR bands": (sar(np.stack([GREY + i for i in range(100)]).astype(np.uint8)), 2, "look like an optical"),
    "complex SAR": (sar((GREY + 1j).astype(np.complex64)), 2, "complex"),
    "complex optical": (optical(RGB.astype(np.complex64)), 2, "complex"),
    "complex integers": (sar(GREY.astype(np.complex64), dtype="complex_int16"), 2, "complex"),
    "optical image as SAR": (sar(RGB), 2, "the order is SAR, then optical"),
    "13 bands as SAR": (sar(np.stack([GREY.astype(np.uint16) * i for i in range(13)])), 2, "the order is SAR"),
    "SAR in dB as optical": (optical(np.stack([DB, DB + 1])), 2, "the order is SAR, then optical"),
    "swapped": (both(sar(RGB), optical(DB)), 2, "the order is SAR, then optical"),
    "units unknown": (optical(RGB.astype(np.float32) / 5), 2, "optical_units"),
    # values
    "all NaN": (sar(NAN), 3, "no valid pixel"),
    "all infinite": (sar(np.full_like(DB, np.inf)), 3, "no valid pixel"),
    "all minus infinity": (sar(np.full_like(DB, -np.inf)), 3, "no valid pixel"),
    "all NaN, optical": (optical(np.stack([NAN] * 3)), 3, "no valid pixel"),
    "all nodata": (sar(np.full_like(DB, -9999), nodata=-9999), 3, "no valid pixel"),
    "all nodata, optical": (optical(np.zeros((3, 64, 64), np.uint16), nodata=0), 3, "no valid pixel"),
    "masked": (masked("sar.tif", GREY), 3, "no valid pixel"),
    "masked, optical": (masked("optical.tif", RGB), 3, "no valid pixel"),
    "transparent": (optical(np.concatenate([RGB, ZERO[None]]), photometric="RGB", alpha="yes"), 3, "no valid pixel"),
    "constant": (sar(np.full_like(DB, -12)), 3, "constant"),
    "zeros": (sar(ZERO), 3, "constant"),
    "constant optical": (optical(np.full((3, 64, 64), 7, np.uint8)), 3, "constant"),
    "nodata in different halves": (
        both(sar(half(GREY, True), nodata=0), optical(half(RGB, False), nodata=0)),
        3,
        "agree",
    ),
    "one valid px": (sar(np.where(np.arange(4096).reshape(64, 64) == 99, DB, np.nan)), 3, "constant"),
    "NaN strewn over all of it": (
        sar(np.where(np.random.default_rng(0).random((64, 64)) < 0.5, DB, np.nan).astype(np.float32)),
        3,
        "agree",
    ),
    "unrelated": (sar(texture(64, 64, seed=5).astype(np.uint8)), 3, "agree"),
    # places
    "far apart": (sar(GREY, transform=at(900_000, 5_000_000)), 3, "in common"),
    "side by side": (sar(GREY, transform=at(500_640, 5_000_000)), 3, "0 x 64 px in common"),
    "other zone, no overlap": (sar(GREY, crs="EPSG:32640"), 3, "in common"),
    "degrees against metres, elsewhere": (sar(GREY, crs="EPSG:4326", transform=at(100, 40, 1e-4)), 3, "in common"),
    "across the antimeridian": (
        both(
            sar(GREY, crs="EPSG:4326", transform=at(179.999, 10, 1e-4)),
            optical(RGB, crs="EPSG:4326", transform=at(-179.9999, 10, 1e-4)),
        ),
        3,
        "in common",
    ),
    "latitude 5000": (sar(GREY, crs="EPSG:4326", transform=at(3, 5000, 1e-4)), 3, "in common"),
    "a local reference system": (sar(GREY, crs=LOCAL), 2, "one system"),
    "px of a thousand km": (sar(GREY, transform=at(500_000, 5_000_000, 1e6)), 3, "in common"),
    "px of a nanometre": (sar(GREY, transform=at(500_000, 5_000_000, 1e-9)), 3, "in common"),
    "px without size": (sar(GREY, transform=Affine(0, 0, 5e5, 0, 0, 5e6)), 3, "agree"),
    "geotransform of NaN": (
        vrt("sar.tif", 64, 64, extra=f"<SRS>{UTM}</SRS><GeoTransform>nan, nan, 0, nan, 0, nan</GeoTransform>"),
        3,
        "",
    ),
    "no reference system": (both(sar(GREY, crs=None), optical(RGB, crs=None)), 3, "agree"),
    "nonsense reference system": (
        vrt("sar.tif", 64, 64, extra="<SRS>EPSG:999999</SRS><GeoTransform>1, 10, 0, 2, 0, -10</GeoTransform>"),
        3,
        "",
    ),
    "rotated, elsewhere": (sar(GREY, transform=at(9e5, 5e6) @ Affine.rotation(30)), 3, "in common"),
    "control points in one place": (gcps([(i, i, 500_000, 5_000_000) for i in range(4)]), 2, "sar.tif"),
    "control points elsewhere": (
        gcps([(r, c, 900_000 + 10 * c, 5_000_000 - 10 * r) for r in (0, 64) for c in (0, 64)]),
        3,
        "in common",
    ),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inputs = tmp_path / "in"
    inputs.mkdir()
    (tmp_path / "out").mkdir()
    write_pair(inputs, (64, 64))
    return tmp_path


def run(folder: Path, *options: str, command: str = "register", output: str = "out/registered.tif") -> int:
    inputs = [str(folder / "in" / name) for name in ("sar.tif", "optical.tif")]
    arguments = [command, *inputs, "-o", str(folder / output), "--device", "cpu"]
    return cli.main([*arguments, *(() if "--search-radius" in options else ("--search-radius", "32")), *options])


def one_line(capsys: pytest.CaptureFixture[str], *words: str) -> None:
    error = capsys.readouterr().err
    assert error.startswith("sarmatch: ") and error.count("\n") == 1, error
    assert "Traceback" not in error and all(word in error for word in words), error


@pytest.mark.parametrize("command", ["register", "match"])
@pytest.mark.parametrize("name", CASES)
def test_bad_images(name: str, command: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build, status, words = CASES[name]
    build(folder / "in")
    output = "out/registered.tif" if command == "register" else "out/matches.csv"
    (folder / output).write_text("what was there before")
    assert run(folder, command=command, output=output) == status
    one_line(capsys, words)
    assert (folder / output).read_text() == "what was there before"
    assert [path.name for path in (folder / "out").iterdir()] == [Path(output).name]


@pytest.mark.parametrize(
    ("options", "output", "words"),
    [
        ((), "nowhere/registered.tif", "make it first"),
        ((), "in", "suffix"),
        ((), "out/registered.png", "saved as .tif"),
        ((), "out/registered", "saved as .tif"),
        ((), "in/sar.tif", "is an input"),
        ((), "in/optical.tif", "is an input"),
        (("--report", "report.pdf"), "out/registered.tif", "saved as .html"),
        (("--report", "nowhere/report.html"), "out/registered.tif", "make it first"),
        (("--error-map", "error.png"), "out/registered.tif", "saved as .tif"),
        (("--error-map", "nowhere/error.tif"), "out/registered.tif", "make it first"),
        (("--search-radius", "0"), "out/registered.tif", "search_radius"),
        (("--search-radius", "-3"), "out/registered.tif", "search_radius"),
        (("--search-radius", "nan"), "out/registered.tif", "search_radius"),
        (("--search-radius", "1e9"), "out/registered.tif", "search_radius"),
        (("--spacing", "0"), "out/registered.tif", "spacing"),
        (("--spacing", "nan"), "out/registered.tif", "spacing"),
        (("--workers", "0"), "out/registered.tif", "workers"),
        (("--order", "7"), "out/registered.tif", "order"),
        (("--sar-bands", "5"), "out/registered.tif", "sar_bands"),
        (("--sar-bands", "-1"), "out/registered.tif", "sar_bands"),
        (("--sar-bands", "0", "0"), "out/registered.tif", "sar_bands"),
        (("--optical-bands", "0", "1", "9"), "out/registered.tif", "optical_bands"),
        (("--optical-bands", "0"), "out/registered.tif", "optical_bands"),
    ],
)
def test_bad_options(
    options: tuple[str, ...], output: str, words: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in (folder / "in").iterdir()}
    files = (".pdf", ".html", ".png", ".tif")
    placed = tuple(str(folder / value) if value.endswith(files) else value for value in options)
    assert run(folder, *placed, output=output) == 2
    one_line(capsys, words)
    assert {path: path.read_bytes() for path in (folder / "in").iterdir()} == before
    assert not list((folder / "out").iterdir())


@pytest.mark.parametrize("which", ["sar.tif", "optical.tif"])
def test_a_folder_is_no_image(which: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "in" / which).unlink()
    (folder / "in" / which).mkdir()
    assert run(folder) == 2
    one_line(capsys, "a folder", which)


@pytest.mark.parametrize("output", ["out/matches.txt", "out/matches", "nowhere/matches.csv", "out"])
def test_bad_files_of_matches(output: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, command="match", output=output) == 2
    one_line(capsys, "matches")


def test_a_read_only_folder(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert run(folder) == 2
    one_line(capsys, "read-only")


def test_a_folder_that_only_turns_out_to_be_read_only(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "out")

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert run(folder) == 2
    one_line(capsys, "Permission denied")


def test_the_disk_is_full_while_windows_are_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    assert run(folder) == 2
    one_line(capsys, "No space left")
    assert not (folder / "out" / "registered.tif").exists()


LISTS: dict[str, tuple[str, bytes, str]] = {
    "no columns": ("list.csv", b"a,b\n1,2\n", "columns"),
    "a column missing": ("list.csv", b"sar,optical\na,b\n", "columns"),
    "empty": ("list.csv", b"", "neither a CSV"),
    "no rows": ("list.csv", b"sar,optical,output\n", "no pairs"),
    "a hole": ("list.csv", b"sar,optical,output\na.tif,,c.tif\n", "empty"),
    "binary": ("list.csv", bytes(range(128, 256)), "neither a CSV"),
    "one output twice": ("list.csv", b"sar,optical,output\na,b,c.tif\nd,e,c.tif\n", "more than once"),
    "broken JSON": ("list.json", b"{", "neither a CSV"),
    "no STAC": ("list.json", b"{}", "STAC item"),
    "no items": ("list.json", b'{"features": []}', "no pairs"),
    "a number": ("list.json", b"7", "STAC item"),
    "an asset missing": ("list.json", json.dumps([{"id": "a", "assets": {"sar": {"href": "a"}}}]).encode(), "STAC"),
}


@pytest.mark.parametrize("name", LISTS)
def test_bad_lists(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, content, words = LISTS[name]
    (tmp_path / file).write_bytes(content)
    assert cli.main(["batch", str(tmp_path / file), "-o", str(tmp_path / "outcomes.csv")]) == 2
    one_line(capsys, words)
    assert [path.name for path in tmp_path.iterdir()] == [file]


def test_no_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["batch", str(tmp_path / "gone.csv"), "-o", str(tmp_path / "outcomes.csv")]) == 2
    one_line(capsys, "no list of pairs")


def test_no_memory_is_taken_for_what_a_header_declares(folder: Path) -> None:
    import tracemalloc

    vrt("sar.tif", 400_000, 400_000)(folder / "in")
    tracemalloc.start()
    assert run(folder) == 3
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6


def test_blocks_too_large_for_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sarmatch.scenes.files.MAX_BLOCK_BYTES", 1000)
    assert run(folder) == 2
    one_line(capsys, "tile it first")
