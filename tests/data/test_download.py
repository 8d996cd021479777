"""Fetching data sets, from a server on this machine."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

import pooch
import pytest
from data.serve import Server, serving, write_registry

from sarmatch import cli
from sarmatch.data import DownloadError
from sarmatch.data.download import download

module = importlib.import_module("sarmatch.data.download")  # the package's attribute of this name is the function
FILES = {f"{part}/BEFORE/im_{i}.png": f"{part} {i}".encode() for part in ("a", "b") for i in range(3)}


def write_files(folder: Path) -> Path:
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with serving(write_files(tmp_path / "served")) as server:
        monkeypatch.setattr(module, "_pinned_url", lambda registry: server.url)
        yield server


@pytest.fixture(autouse=True)
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small set takes the place of those of the package."""
    folder = tmp_path / "registries"
    folder.mkdir()
    monkeypatch.setattr(module, "REGISTRIES", folder)
    monkeypatch.setattr(module.pooch.core.time, "sleep", lambda seconds: None)  # between attempts
    return write_registry(folder / "ombria.txt", write_files(tmp_path / "served"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_file_arrives_under_its_own_path(server: Server, tmp_path: Path) -> None:
    assert download("ombria", tmp_path / "got") == tmp_path / "got"
    assert contents(tmp_path / "got") == FILES
    assert sorted(server.requests) == sorted(FILES)


def test_only_what_is_missing_or_differs_is_fetched_again(server: Server, tmp_path: Path) -> None:
    folder = download("ombria", tmp_path / "got")
    server.requests.clear()
    download("ombria", folder)
    assert server.requests == []
    (folder / "a/BEFORE/im_1.png").unlink()
    (folder / "b/BEFORE/im_2.png").write_bytes(b"half a fi")
    download("ombria", folder)
    assert sorted(server.requests) == ["a/BEFORE/im_1.png", "b/BEFORE/im_2.png"]
    assert contents(folder) == FILES


def test_wrong_checksum_names_the_file_and_leaves_nothing_of_it(server: Server, tmp_path: Path) -> None:
    (server.folder / "a/BEFORE/im_1.png").write_bytes(b"another image")
    with pytest.raises(DownloadError, match=r"1 of 6 files.*same call(?s:.*)a/BEFORE/im_1\.png: SHA256 hash"):
        download("ombria", tmp_path / "got")
    assert contents(tmp_path / "got") == {name: FILES[name] for name in FILES if name != "a/BEFORE/im_1.png"}


def test_file_that_the_server_lacks_is_named_and_the_others_arrive(server: Server, tmp_path: Path) -> None:
    (server.folder / "b/BEFORE/im_0.png").unlink()
    with pytest.raises(DownloadError, match=r"b/BEFORE/im_0\.png: 404"):
        download("ombria", tmp_path / "got")
    assert contents(tmp_path / "got") == {name: FILES[name] for name in FILES if name != "b/BEFORE/im_0.png"}
    (server.folder / "b/BEFORE/im_0.png").write_bytes(FILES["b/BEFORE/im_0.png"])
    server.requests.clear()
    download("ombria", tmp_path / "got")
    assert server.requests == ["b/BEFORE/im_0.png"]


def test_each_file_is_tried_again(server: Server, tmp_path: Path) -> None:
    (server.folder / "b/BEFORE/im_0.png").unlink()
    with pytest.raises(DownloadError, match="1 of 6"):
        download("ombria", tmp_path / "got")
    assert server.requests.count("b/BEFORE/im_0.png") == 3 and server.requests.count("a/BEFORE/im_0.png") == 1


def test_without_connection_it_ends_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_pinned_url", lambda registry: "http://127.0.0.1:1")
    with pytest.raises(DownloadError, match=r"no connection to http://127\.0\.0\.1:1/ .*check the network"):
        download("ombria", tmp_path / "got")
    assert contents(tmp_path / "got") == {}


def test_pooch_is_silent_only_meanwhile(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    level = pooch.get_logger().level
    download("ombria", tmp_path / "got")
    assert "Downloading" not in capsys.readouterr().err
    assert pooch.get_logger().level == level


def test_unknown_name_lists_the_sets(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no data set 'ombra'; \['ombria'\] can be fetched.*'sen12ms'"):
        download("ombra", tmp_path)


@pytest.mark.parametrize(
    ("name", "doi", "layout"),
    [
        ("sen12ms", "10.14459/2019mp1474000", "ROIs1158_spring/s1_1/ROIs1158_spring_s1_1_p30.tif"),
        ("sen1-2", "10.14459/2018mp1436631", "ROIs1158_spring/s1_1/ROIs1158_spring_s1_1_p30.png"),
        ("sen12ms-cr", "10.14459/2020mp1554803", "ROIs1158_spring_s1/s1_1/ROIs1158_spring_s1_1_p30.tif"),
    ],
)
def test_archives_are_explained(name: str, doi: str, layout: str) -> None:
    with pytest.raises(ValueError, match="archives") as raised:
        download(name)
    assert doi in str(raised.value) and layout in str(raised.value)


def test_command(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["data", "get", "ombria", "--to", str(tmp_path / "got")]) == 0
    assert contents(tmp_path / "got") == FILES
    monkeypatch.chdir(tmp_path)
    assert cli.main(["data", "get", "ombria"]) == 0
    assert contents(tmp_path / "data" / "ombria") == FILES
    capsys.readouterr()
    (server.folder / "a/BEFORE/im_0.png").unlink()
    (tmp_path / "got/a/BEFORE/im_0.png").unlink()
    assert cli.main(["data", "get", "ombria", "--to", str(tmp_path / "got")]) == 1
    assert "a/BEFORE/im_0.png: 404" in capsys.readouterr().err


def test_registry_without_its_first_line(registry: Path, tmp_path: Path) -> None:
    registry.write_text("a.png sha256:00\n")
    with pytest.raises(ValueError, match=r"ombria\.txt: expected a first line '# GitHub"):
        download("ombria", tmp_path)


def test_registries_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    counts, urls = {}, {}
    for path in sorted(module.REGISTRIES.glob("*.txt")):
        store = pooch.create("unused", "")
        store.load_registry(path)
        counts[path.stem], urls[path.stem] = len(store.registry), module._pinned_url(path)
        assert all(len(checksum.removeprefix("sha256:")) == 64 for checksum in store.registry.values())
    assert counts == {"ombria": 5064, "optical-sar": 201}
    assert urls["ombria"].endswith("/geodrak/OMBRIA/38a490355f76da8ce27ed051138f03f3492a6e46")
    assert urls["optical-sar"].endswith("/VolkovVl/Optical-SAR-dataset/34d7e20e68fe59363d383ae9a165bee63c5a7320")
