"""What pages show of published results: tables of README and front page, and where the numbers of a page come from."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from companion.settings import write_note
from sarmatch.config import Config
from sarmatch.io import atomic_path, commit

BEGIN = "<!-- {}:begin (generated from book/results/s1s2; do not edit by hand) -->"
END = "<!-- {}:end -->"
COLUMNS = {"mma_1px": "within 1 px", "mma_3px": "within 3 px", "n_matches": "matches a crop"}
METHODS = {
    "consensus": "sarmatch, aggregated over neighbours",
    "per cell": "sarmatch, each cell by itself (most literal reading of the paper)",
    "gradients only": "the same network, its fixed oriented gradients alone",
    "template": "oriented-gradient template, 65 px, no learning",
}


def headline(results: Path) -> str:
    """The table in Markdown from `matching.csv` and `.json`, with a line that says where it comes from."""
    table = pd.read_csv(results / "matching.csv")
    about = json.loads((results / "matching.json").read_text())
    lines = [f"| Test scenes | Method | {' | '.join(COLUMNS.values())} |", "|---|---|" + "---|" * len(COLUMNS)]
    for row in table.sort_values("source", kind="stable").to_dict("records"):
        scenes = f"{row['source']} ({row['n_pairs']} pairs, {row['n_scenes']} scenes)"
        cells = " | ".join(_cell(row, name) for name in COLUMNS)
        lines.append(f"| {scenes} | {METHODS[row['method']]} | {cells} |")
    lines.append("| SEN12MS, 27,100 pairs | the paper's number, protocol and radius not stated | 0.145 | | 1298 |")
    measured_at = ", ".join(about["measured_at"])
    uncommitted = " (+: with uncommitted changes)" if "+" in measured_at else ""
    words = (
        "Share of mutual matches within a threshold of the truth, mean over pairs with 95 % intervals over scenes. "
        f"Protocol `{about['protocol']}`, search radius {about['search_radius']:g} px, {about['crop_size']} px crops, "
        f"scenes never seen in training; profile {about['profile']}, seed {about['seed']}, run {about['run']}, "
        f"data {about['data_fingerprint']}, trained at commit {', '.join(about['commits'])}, measured at "
        f"{measured_at}{uncommitted}. Other data and protocol than the paper's: the last row is not comparable."
    )
    return "\n".join([*lines, "", words])


def summary(results: Path) -> str:
    """The front page's first table in Markdown: the paper's headline numbers beside ours."""
    table = pd.read_csv(results / "matching.csv").set_index(["source", "method"])
    calibration = pd.read_csv(results / "calibration_matcher.csv").set_index(["mode", "score"])
    one, twenty = (calibration.loc[(mode, "ece")] for mode in ("single", "monte_carlo"))
    ece_1, ece_20 = (f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]" for row in (one, twenty))
    claims = pd.read_csv(results / "claims_counts.csv").set_index("verdict")["claims"]
    ours, other = table.loc[("OMBRIA", "consensus")], table.loc[("SEN12", "consensus")]
    alone, template = table.loc[("OMBRIA", "per cell")], table.loc[("OMBRIA", "template")]
    ombria, sen12 = (f"{name}, {row['n_pairs']:.0f} pairs" for name, row in (("OMBRIA", ours), ("SEN12", other)))
    verdicts = ", ".join(f"{n} {verdict}" for verdict, n in claims.items())
    rows = [
        ("Right within 1 px", "0.145", f"**{_cell(ours, 'mma_1px')}**", ombria),
        ("", "", f"**{_cell(other, 'mma_1px')}**", sen12),
        ("each cell by itself, as we read the paper", "0.145", _cell(alone, "mma_1px"), ombria),
        ("template of gradients, no learning", "", _cell(template, "mma_1px"), ombria),
        ("Matches an image", "1298", f"{_cell(ours, 'n_matches')}; cell by cell {_cell(alone, 'n_matches')}", ombria),
        ("Calibration error (ECE), 20 passes", "0.09", ece_20, f"{twenty['n_pairs']:.0f} pairs of both"),
        ("the same, one pass", "", ece_1, f"{one['n_pairs']:.0f} pairs of both"),
        ("Claims", f"{claims.sum()}", verdicts, "{doc}`claims`"),
    ]
    lines = ["| | Paper, SEN12MS | Here | Our data |", "|---|---|---|---|"]
    about = json.loads((results / "matching.json").read_text())
    words = (
        f"Means with 95 % intervals over scenes; protocol `{about['protocol']}`, search radius "
        f"{about['search_radius']:g} px, crops of {about['crop_size']} px, profile {about['profile']}; "
        "ECE within 3 px, of confidence fitted on validation scenes. Other data and protocol than the paper's, so the "
        "two columns do not compare like with like."
    )
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows), "", words])


BLOCKS = {"headline": headline, "summary": summary}  # by the name of their markers


def update(path: Path, results: Path, blocks: Sequence[str] = ("headline",)) -> None:
    """Put current tables of `BLOCKS` between their markers in a Markdown file; ValueError where it lacks those."""
    text = path.read_text()
    for name in blocks:
        first, last = BEGIN.format(name), END.format(name)
        before, begin, rest = text.partition(first)
        _, end, after = rest.partition(last)
        if not begin or not end:
            raise ValueError(f"{path}: expected the lines {first!r} and {last!r} around the {name} table")
        text = f"{before}{first}\n\n{BLOCKS[name](results)}\n\n{last}{after}"
    with atomic_path(path) as partial:
        partial.write_text(text)


def _cell(row: Mapping[str, float] | pd.Series, name: str) -> str:
    if name == "n_matches":
        return f"{row[name]:.0f}"
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f"{row[name]:.2f}" + ("" if pd.isna(low) else f" [{low:.2f}, {high:.2f}]")


PREFIX = "page_"  # of the note of a chapter, `page_<chapter>.json`, in the folder of its results


def save_page(results: Path, chapter: str, config: Config) -> Path:
    """Note when, by which version and by which command a chapter was executed, as `page_<chapter>.json`."""
    data = "" if config.data.source == "synthetic" else " --data DATA"
    command = f"python -m companion book --profile {config.profile}{data} --chapters {chapter}"
    about = {"profile": config.profile, "seed": config.seed, "commit": commit(), "version": version("sarmatch")}
    about |= {"date": datetime.now(UTC).date().isoformat(), "command": command}
    return write_note(results / f"{PREFIX}{chapter}.json", about)


def page_file(results: Path, chapter: str, published: str) -> Path | None:
    """The note on the stored outputs of a chapter, or None; `results` holds a folder for each profile.

    A staged book has notes of its own profile beside those of the `published` one; the former are then newer.
    """
    found = sorted(results.glob(f"*/{PREFIX}{chapter}.json"), key=lambda path: path.parent.name == published)
    return found[0] if found else None


def page_lines(note: Path) -> list[tuple[str, str]]:
    """(heading, words) of the lines at a page's end: its execution, then each result table that has a note."""
    about = json.loads(note.read_text())
    chapter = note.stem.removeprefix(PREFIX)
    of_page = {"profile": "profile {}", "seed": "seed {}", "date": "{}", "version": "sarmatch {}"}
    of_page |= {"commit": "commit {}", "published_in": "published in commit {}"}
    lines = [(about["command"], _words(about, of_page))]
    for path in (note.with_name(f"{chapter}.json"), *sorted(note.parent.glob(f"{chapter}_*.json"))):
        if path.is_file():
            lines.append((f"{path.stem}.csv", _about_table(json.loads(path.read_text()))))
    return lines


def _about_table(about: dict[str, Any]) -> str:
    of_file = str(about.get("weights")).endswith(".safetensors")
    names = {"run": "run {}", "weights": "weights {}" if of_file else "weights of commit {}"}
    names |= {"commits": "trained at commit {}", "measured_at": "measured at commit {}", "data_fingerprint": "data {}"}
    names |= {"seed": "seed {}", "seeds": "seeds {}", "protocol": "protocol {}"}
    names |= {"search_radius": "search radius {} px", "crop_size": "crops of {} px"}
    names |= dict.fromkeys(("test", "hardware", "device", "clock"), "{}") | {"command": "command {}"}
    if "commits" not in about and "measured_at" not in about:  # a benchmark: its commit is that of the measurement
        names["commit"] = names["measured_at"]
    return _words(about, names)


def _words(about: dict[str, Any], names: dict[str, str]) -> str:
    known = {name: about[name] for name in names if about.get(name) not in (None, [])}
    for name, value in known.items():
        if isinstance(value, list):
            known[name] = " and ".join(map(str, value))
        elif isinstance(value, float):
            known[name] = f"{value:g}"
    return ", ".join(names[name].format(value) for name, value in known.items())
