"""What a chapter runs with: the profile, the sizes of its studies, where runs and results go.

Environment variables reach notebooks that papermill injects no parameters into: `SARMATCH_PROFILE` overrides the
profile, `SARMATCH_DATA` names the data, and `SARMATCH_OUT` the folder below which runs and results go.
"""

from __future__ import annotations

import dataclasses
import html
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from sarmatch.config import Config
from sarmatch.io import atomic_path
from sarmatch.profiles import ON_REAL_DATA, profile

if TYPE_CHECKING:
    from IPython.display import HTML
    from matplotlib.figure import Figure

PUBLISHED_PROFILE = "s1s2"  # its outputs are stored in the chapters
# Three segments from a slash that follows no word, URL or closing tag; or a drive letter.
_ABSOLUTE_PATH = re.compile(r"(?<![\w.:/<])/(?:[\w.-]+/){2,}[\w.-]+|\b[A-Z]:\\\w")


@dataclass(frozen=True)
class StudyConfig:
    """How large the studies of the chapters are."""

    seeds: tuple[int, ...] = (0, 1, 2)  #: Of the trainings with and without pretraining.
    crop_size: int = 96  #: Side of their training crops, px.
    pretraining_steps: int = 100  #: Of the trainings with and without pretraining that are compared.
    sweep_steps: int = 60  #: Of each contrastive training that is compared with others.
    steps: int = 200  #: Of each training that is compared with others at equal budget.
    validate_every: int = 40  #: Steps between validations of these.
    label_steps: int = 120  #: Of each training of the studies of labels, sources and settings, which have many rows.
    label_warmup_steps: int = 30  #: Warm-up of these.
    temperatures: tuple[float, ...] = (0.03, 0.07, 0.3)  #: Of the contrastive loss.
    passes: tuple[int, ...] = (1, 2, 5, 10, 20, 50)  #: Monte Carlo passes; the paper takes 20.
    scenes: int = 16  #: Generated scenes for the response of uncertainty to one nuisance at a time.
    scene_px: int = 128  #: Side of those scenes.
    ablation_passes: int = 5  #: Monte Carlo passes of the rows of the ablation that have them.
    test_pairs: int = 48  #: Test pairs that each training of a study is measured on.
    fit_pairs: int = 24  #: Validation pairs that the confidence of each training of a study is fitted on.
    distillation_crops: int = 200  #: Training crops from which the one-pass estimate of epistemic uncertainty learns.
    registers_with_shipped: bool = False  #: Scenes are registered by the shipped weights: small networks register none.
    scene_shifts: int = 2  #: Known shifts that each large scene is registered from.
    unrelated_crops: int = 200  #: Pairings of test crops of different scenes, each of which registration has to refuse.
    unrelated_scenes: int = 6  #: Pairings of whole large scenes, each of which registration has to refuse.


@dataclass(frozen=True)
class BookConfig(Config):
    """A run's configuration with the sizes of the studies, which `to_dict()` and `hash()` leave out."""

    studies: StudyConfig = field(default_factory=StudyConfig)

    def to_dict(self) -> dict[str, Any]:
        content = super().to_dict()
        del content["studies"]
        return content


_SMOKE = StudyConfig(
    seeds=(0, 1), crop_size=64, pretraining_steps=2, sweep_steps=2, steps=4, validate_every=2, label_steps=4,
    label_warmup_steps=1, temperatures=(0.07, 0.5), passes=(1, 2), scenes=2, scene_px=64, distillation_crops=4,
    ablation_passes=2, test_pairs=2, fit_pairs=2, registers_with_shipped=True, scene_shifts=1, unrelated_crops=1,
    unrelated_scenes=0,
)  # fmt: skip
_DEMO = StudyConfig(
    seeds=(0, 1), crop_size=64, pretraining_steps=8, sweep_steps=12, steps=16, validate_every=8, label_steps=8,
    label_warmup_steps=2, temperatures=(0.07, 0.5), passes=(1, 5, 20), scenes=4, distillation_crops=48, test_pairs=6,
    fit_pairs=6, registers_with_shipped=True, scene_shifts=2, unrelated_crops=12, unrelated_scenes=4,
)  # fmt: skip
SIZES = {"smoke": _SMOKE, "demo": _DEMO, "s1s2-smoke": _SMOKE}  # other profiles have the defaults


def book_profile(name: str, data_root: str | None = None) -> BookConfig:
    """The named profile with the sizes of its studies; arguments and errors of `sarmatch.profile`."""
    config = profile(name, data_root)
    sections = {section.name: getattr(config, section.name) for section in dataclasses.fields(config)}
    return BookConfig(**sections, studies=SIZES.get(name, StudyConfig()))


@dataclass(frozen=True)
class ChapterSettings:
    """Configuration, store of runs and folder of the tables of a chapter; shown as its line of provenance."""

    config: BookConfig
    runs_dir: Path
    results_dir: Path

    @property
    def made_by(self) -> str:
        """What stands under a figure and in the caption of a table."""
        return f"profile {self.config.profile}, seed {self.config.seed}"

    def subplots(self, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
        """`matplotlib.pyplot.subplots` with a constrained layout; the figure names profile and seed."""
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(rows, columns, layout="constrained", **options)
        figure.supxlabel(self.made_by, x=0.995, ha="right", size="x-small", color="gray")
        return figure, axes

    def table(self, table: pd.DataFrame, name: str, caption: str, shown: pd.DataFrame | None = None) -> HTML:
        """Save a table under `name` and show it, or `shown` for it, with a caption that names profile and seed."""
        from IPython.display import HTML

        self.save_table(table, name)
        content = table if shown is None else shown
        words = [f"text-{i}" for i, name in enumerate(content, start=1) if _has_words(content[name])]
        shown_html = content.to_html(index=False, float_format=_three_digits, na_rep="", border=0, classes=words)
        full = html.escape(f"{caption} ({self.made_by})")
        return HTML(shown_html.replace("<thead>", f"<caption>{full}</caption>\n  <thead>", 1))

    def save_table(self, table: pd.DataFrame, name: str) -> Path:
        """Write a table as `<results_dir>/<name>.csv` (a float keeps six digits) and return the path."""
        text = table.to_csv(index=False, float_format="%.6g", lineterminator="\n")
        return _write(self.results_dir / f"{name}.csv", text)

    def save_about(self, name: str, **about: Any) -> Path:
        """Write what the numbers of table `name` need beside them as `<results_dir>/<name>.json`."""
        return write_note(self.results_dir / f"{name}.json", about)

    def __repr__(self) -> str:
        source = self.config.data.source
        data = "generated scenes" if source == "synthetic" else f"{source} data"
        return f"profile {self.config.profile} | {data} | seed {self.config.seed} | sarmatch {version('sarmatch')}"

    def _repr_html_(self) -> str:
        return f'<p class="provenance">{html.escape(repr(self))}</p>'


def write_note(path: Path, about: Mapping[str, Any]) -> Path:
    """Write what numbers need beside them as JSON, of absolute paths only the last name."""
    return _write(path, without_folders(json.dumps(about, indent=1, sort_keys=True)) + "\n")


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return path


def _has_words(column: pd.Series) -> bool:
    """Whether a column is to be read rather than compared: it then stands at the left, numbers at the right."""
    return any(isinstance(value, str) and any(map(str.isalpha, value)) for value in column)


def _three_digits(value: float) -> str:
    """Three significant digits, but never an exponent for large numbers."""
    return f"{value:.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.3g}"


def chapter_settings(
    profile: str, data_root: str | None = None, runs_dir: str | None = None, results_dir: str | None = None
) -> ChapterSettings:
    """Settings of a chapter from the values of its parameters cell and the environment; errors of `book_profile`."""
    profile = os.environ.get("SARMATCH_PROFILE", profile)
    # A folder that the environment names is for the chapters on real data; others do without.
    of_environment = os.environ.get("SARMATCH_DATA") if profile in ON_REAL_DATA else None
    config = book_profile(profile, data_root or of_environment)
    runs, results = Path(runs_dir or home() / "runs"), Path(results_dir or home() / "build" / profile / "results")
    return ChapterSettings(config, runs, results)


def home() -> Path:
    """Folder below which runs and results go: `SARMATCH_OUT`, else the checkout around the working folder, else it."""
    return Path(os.environ.get("SARMATCH_OUT") or find_checkout(Path.cwd()))


def find_checkout(otherwise: Path) -> Path:
    """The nearest folder at or above the working folder that holds the project."""
    folders = (Path.cwd(), *Path.cwd().parents)
    return next((f for f in folders if (f / "pyproject.toml").is_file() and (f / "book").is_dir()), otherwise)


def without_folders(text: str) -> str:
    """A text with absolute paths cut to their last name: they belong to the machine that wrote it."""
    return _ABSOLUTE_PATH.sub(lambda path: path.group().rpartition("/")[2], text)
