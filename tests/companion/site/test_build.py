"""The chapters as stored, and the machinery that executes and publishes them (on tiny notebooks made here)."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output
from stored_chapters import notebook_problems
from tiny_book import LITERALS, write_book, write_chapter

from companion.settings import chapter_settings
from companion.site.build import BookError, build_book, build_site, chapter_names, clean_notebook, publish, toc_files

BOOK = Path(__file__).parents[3] / "book"
CHAPTERS = chapter_names(BOOK)


@pytest.fixture(autouse=True)
def no_forced_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SARMATCH_PROFILE", "SARMATCH_DATA", "SARMATCH_OUT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_book(tmp_path / "source")


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Sources and staged copy of a book that was executed once; tests may change neither."""
    folder = tmp_path_factory.mktemp("executed")
    book = write_book(folder / "source")
    return book, build_book("demo", out=folder / "out", site=False, book=book, runs_dir=folder / "runs")


# The chapters of this repository


def test_every_page_of_the_contents_exists() -> None:
    missing = [f for f in toc_files(BOOK) if not any((BOOK / f"{f}{s}").is_file() for s in (".md", ".ipynb"))]
    assert not missing


def test_every_page_is_in_the_contents() -> None:
    pages = {p.stem for p in BOOK.iterdir() if p.suffix in (".md", ".ipynb")}
    assert pages == set(toc_files(BOOK))


@pytest.mark.parametrize("name", CHAPTERS)
def test_chapter_is_stored_clean(name: str) -> None:
    assert notebook_problems(BOOK / f"{name}.ipynb") == []


@pytest.mark.parametrize("name", CHAPTERS)
def test_parameters_are_literals(name: str) -> None:
    cells = nbformat.read(BOOK / f"{name}.ipynb", as_version=4).cells
    source = next(cell.source for cell in cells if "parameters" in cell.metadata.get("tags", []))
    assigned = {}
    for statement in ast.parse(source).body:
        assert isinstance(statement, ast.Assign), "papermill does not recompute what is derived in this cell"
        assigned[ast.unparse(statement.targets[0])] = ast.literal_eval(statement.value)
    assert {"profile", "data_root", "runs_dir", "results_dir"} <= set(assigned)
    assert assigned["profile"] == "demo"
    assert assigned["data_root"] is assigned["runs_dir"] is assigned["results_dir"] is None


@pytest.mark.parametrize("name", CHAPTERS)
def test_chapter_is_thin(name: str) -> None:
    cells = nbformat.read(BOOK / f"{name}.ipynb", as_version=4).cells
    sources = [cell.source for cell in cells if cell.cell_type == "code"]
    imports = re.compile(r"^(?:from .+ )?import (?:\([^)]*\)|.+)\n?", re.M)
    longest = max(len(imports.sub("", source).splitlines()) for source in sources)
    assert longest <= 20, "move it into the package, with a test"


# Settings


def test_settings_take_the_profile_of_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SARMATCH_PROFILE", "smoke")
    monkeypatch.setenv("SARMATCH_OUT", str(tmp_path))
    settings = chapter_settings("s1s2")
    assert settings.config.profile == "smoke"
    assert settings.runs_dir == tmp_path / "runs"
    assert settings.results_dir == tmp_path / "build" / "smoke" / "results"


def test_settings_keep_what_was_injected(tmp_path: Path) -> None:
    settings = chapter_settings("s1s2", "data", str(tmp_path / "r"), str(tmp_path / "t"))
    assert (settings.config.data.root, settings.runs_dir, settings.results_dir) == (
        "data",
        tmp_path / "r",
        tmp_path / "t",
    )


def test_settings_find_the_checkout_from_a_folder_below(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(BOOK)
    settings = chapter_settings("demo")
    assert settings.runs_dir == BOOK.parent / "runs"
    assert settings.results_dir == BOOK.parent / "build" / "demo" / "results", "never below book/"


def test_settings_need_data_for_real_profiles() -> None:
    with pytest.raises(ValueError, match=r"s1s2.*real data"):
        chapter_settings("s1s2")


def test_settings_show_where_numbers_come_from() -> None:
    settings = chapter_settings("demo")
    assert "profile demo" in repr(settings) and "generated scenes" in repr(settings)
    assert 'class="provenance"' in settings._repr_html_()


def test_save_table(tmp_path: Path) -> None:
    settings = chapter_settings("demo", results_dir=str(tmp_path / "new"))
    path = settings.save_table(pd.DataFrame({"a": [1, 2], "b": [0.123456789, float("nan")]}), "numbers")
    assert path.read_text() == "a,b\n1,0.123457\n2,\n"
    assert [p.name for p in path.parent.iterdir()] == ["numbers.csv"]


def test_what_is_saved_beside_a_table_names_no_folder_of_this_machine(tmp_path: Path) -> None:
    settings = chapter_settings("smoke", results_dir=str(tmp_path))
    command = "sarmatch train --data /home/someone/data --runs /var/store/runs"
    settings.save_about("x", command=command, radius=32.0, commits=["abc"])
    about = json.loads((tmp_path / "x.json").read_text())
    assert about == {"command": "sarmatch train --data data --runs runs", "radius": 32.0, "commits": ["abc"]}


def test_a_chapter_that_saves_a_note_before_any_table_makes_the_folder(tmp_path: Path) -> None:
    saved = chapter_settings("demo", results_dir=str(tmp_path / "not" / "there")).save_about("x", radius=32.0)
    assert json.loads(saved.read_text()) == {"radius": 32.0}


def test_table_is_saved_and_shown_with_its_profile(tmp_path: Path) -> None:
    settings = chapter_settings("demo", results_dir=str(tmp_path))
    shown = settings.table(pd.DataFrame({"name": ["a<b"], "value": [0.12345]}), "numbers", "Numbers & more")
    assert "<caption>Numbers &amp; more (profile demo, seed 0)</caption>" in shown.data
    assert "a&lt;b" in shown.data and "0.123" in shown.data and "0.12345" not in shown.data
    assert (tmp_path / "numbers.csv").read_text() == "name,value\na<b,0.12345\n"


def test_columns_of_words_are_marked_to_stand_at_the_left(tmp_path: Path) -> None:
    settings = chapter_settings("demo", results_dir=str(tmp_path))
    table = pd.DataFrame({"n": [1, 2], "interval": ["0.1 [0.0, 0.2]", ""], "verdict": ["open", ""], "x": [0.5, 1.0]})
    assert 'class="dataframe text-3"' in settings.table(table, "numbers", "words").data


def test_figures_say_which_profile_made_them() -> None:
    import matplotlib

    matplotlib.use("agg")
    figure, axes = chapter_settings("demo").subplots(1, 2)
    assert len(axes) == 2
    assert figure.get_supxlabel() == "profile demo, seed 0"


# Build


def test_build_executes_a_copy_and_leaves_the_sources(executed: tuple[Path, Path], tiny: Path) -> None:
    book, staged = executed
    as_written = {p.name: p.read_bytes() for p in tiny.rglob("*") if p.suffix not in ("", ".ipynb")}
    assert {p.name: p.read_bytes() for p in book.rglob("*") if p.suffix not in ("", ".ipynb")} == as_written
    assert not any(cell.get("outputs") for p in book.glob("*.ipynb") for cell in nbformat.read(p, as_version=4).cells)
    assert staged == book.parent / "out" / "demo" / "book"
    first = nbformat.read(staged / "first.ipynb", as_version=4)
    assert first.cells[-1].outputs[0].text == "demo None\n"
    assert (staged / "results" / "demo" / "table.csv").is_file()
    assert (staged / "_static" / "custom.css").is_file()


def test_build_passes_the_data_as_an_absolute_path(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    staged = build_book("s1s2", "pairs", out="out", chapters=["first"], site=False, book=tiny)
    text = nbformat.read(staged / "first.ipynb", as_version=4).cells[-1].outputs[0].text
    assert text == f"s1s2 {tmp_path / 'pairs'}\n"


def test_failing_cell_is_named_and_what_ran_is_kept(tiny: Path, tmp_path: Path) -> None:
    write_chapter(tiny / "second.ipynb", "print('so far')", "# comment\n1 / 0", "print('never')")
    with pytest.raises(BookError, match=r"second\.ipynb, cell In \[\d+\].*# comment.*\n?.*ZeroDivisionError") as error:
        build_book("demo", out=tmp_path / "out", site=False, book=tiny)
    staged = tmp_path / "out" / "demo" / "book"
    assert str(staged / "second.ipynb") in str(error.value)
    assert "so far" in (staged / "second.ipynb").read_text()
    assert nbformat.read(staged / "first.ipynb", as_version=4).cells[-1].outputs


def test_chapters_not_asked_for_keep_the_last_build(tiny: Path, tmp_path: Path) -> None:
    staged = tmp_path / "demo" / "book"
    staged.mkdir(parents=True)
    (staged / "second.ipynb").write_text("executed before")
    assert build_book("demo", out=tmp_path, chapters=["first"], site=False, book=tiny) == staged
    assert (staged / "second.ipynb").read_text() == "executed before"
    assert (staged / "index.md").read_text() == "# Tiny\n"


def test_build_rejects_bad_requests(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="'third'"):
        build_book("demo", out=tmp_path / "out", chapters=["third"], book=tiny)
    with pytest.raises(ValueError, match="s1s2"):
        build_book("s1s2", out=tmp_path / "out", book=tiny)
    monkeypatch.setenv("SARMATCH_PROFILE", "smoke")
    with pytest.raises(ValueError, match="SARMATCH_PROFILE=smoke"):
        build_book("demo", out=tmp_path / "out", book=tiny)
    assert not (tmp_path / "out").exists()


def test_site_is_built_and_its_failure_reported(tiny: Path) -> None:
    assert "Tiny" in build_site(tiny).read_text()
    (tiny / "_toc.yml").write_text("format: jb-book\nroot: nowhere\n")
    with pytest.raises(BookError, match=r"jupyter-book ended with [1-9]"):
        build_site(tiny)


# Publish


def test_publish_writes_clean_chapters_and_tables(executed: tuple[Path, Path], tiny: Path) -> None:
    publish(executed[1], "demo", book=tiny)
    assert (tiny / "results" / "demo" / "table.csv").is_file()
    for name in ("first", "second"):
        assert notebook_problems(tiny / f"{name}.ipynb") == []
    second = nbformat.read(tiny / "second.ipynb", as_version=4)
    assert [cell.cell_type for cell in second.cells] == ["markdown", "code", "code", "code"]
    assert second.cells[1].source == LITERALS
    assert [output.text for output in second.cells[3].outputs] == ["at .\n"]
    assert [cell.execution_count for cell in second.cells[1:]] == [1, 2, 3]
    assert {p.name for p in tiny.iterdir()} == {p.name for p in executed[0].iterdir()} | {"results"}


def test_another_execution_publishes_the_same_bytes(executed: tuple[Path, Path], tiny: Path, tmp_path: Path) -> None:
    """Times, counts, warnings and folders differ from one execution to the next; what is stored does not."""
    publish(executed[1], "demo", chapters=["second"], book=tiny)
    once = (tiny / "second.ipynb").read_bytes()
    again = nbformat.read(executed[1] / "second.ipynb", as_version=4)
    again.metadata.papermill.duration = 1e6
    for cell in again.cells:
        cell.metadata.papermill.start_time = "later"
        if cell.cell_type == "code":
            cell.execution_count += 7
    again.cells[-1].outputs[0].text = f"at {tmp_path}\n"
    again.cells[-1].outputs.append(new_output("stream", name="stderr", text="another warning"))
    nbformat.write(again, tmp_path / "second.ipynb")
    publish(tmp_path, "demo", chapters=["second"], book=tiny)
    assert (tiny / "second.ipynb").read_bytes() == once


def test_clean_notebook_leaves_its_argument_alone() -> None:
    cell = new_code_cell("1", metadata={"papermill": {}}, outputs=[new_output("stream", name="stderr", text="x")])
    notebook = new_notebook(cells=[cell])
    assert clean_notebook(notebook, {}).cells[0].outputs == []
    assert "papermill" in notebook.cells[0].metadata and notebook.cells[0].outputs


@pytest.mark.parametrize(
    ("output", "problem"),
    [
        (new_output("error", ename="KeyError", evalue="", traceback=[]), "stored error KeyError"),
        (new_output("stream", name="stdout", text="see\n/home/someone/data/x.tif"), "absolute path"),
        (new_output("display_data", {"text/html": "<b>'/var/data/a'</b>"}), "absolute path"),
        (new_output("stream", name="stdout", text=r"C:\Users\someone"), "absolute path"),
    ],
)
def test_problems_are_found(tmp_path: Path, output: nbformat.NotebookNode, problem: str) -> None:
    write_chapter(tmp_path / "n.ipynb", "1")
    notebook = nbformat.read(tmp_path / "n.ipynb", as_version=4)
    assert notebook_problems(tmp_path / "n.ipynb") == []
    notebook.cells[-1].outputs = [output]
    nbformat.write(notebook, tmp_path / "n.ipynb")
    assert [problem in found for found in notebook_problems(tmp_path / "n.ipynb")] == [True]


def test_harmless_slashes_are_no_problem(tmp_path: Path) -> None:
    write_chapter(tmp_path / "n.ipynb", "'<a/></b/c/d> https://a.b/c/d/e at 1/2/3/5 px, runs/demo/x/y'")
    assert notebook_problems(tmp_path / "n.ipynb") == []


def test_run_metadata_is_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "n.ipynb"
    write_chapter(path, "1")
    content = json.loads(path.read_text())
    content["metadata"]["papermill"] = {}
    content["cells"][1]["metadata"] = {"execution": {}, "tags": ["injected-parameters"]}
    path.write_text(json.dumps(content))
    assert notebook_problems(path) == [
        "papermill metadata of the notebook",
        "0 cells tagged 'parameters', expected one",
        "cell 1: execution metadata",
        "cell 1: injected parameters",
    ]


def test_tables_show_three_digits_and_no_exponent_for_large_numbers(tmp_path: Path) -> None:
    settings = chapter_settings("smoke", results_dir=str(tmp_path))
    shown = settings.table(pd.DataFrame({"x": [1298.34, 0.012345, 27100.0]}), "numbers", "words").data
    assert all(f"<td>{text}</td>" in shown for text in ("1298", "0.0123", "27100"))
