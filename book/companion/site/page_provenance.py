"""Where the numbers of a page come from: kept beside the result tables and shown at the end of the page."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sarmatch.config import Config
from sarmatch.io import atomic_path

PREFIX = "page_"  # of the note of a chapter, `page_<chapter>.json`, in the folder of its results


def save_page(results: Path, chapter: str, config: Config) -> Path:
    """Note when, by which version and by which command a chapter was executed, as `page_<chapter>.json`."""
    from sarmatch.io import commit

    data = "" if config.data.source == "synthetic" else " --data DATA"
    about = {
        "profile": config.profile,
        "seed": config.seed,
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "version": version("sarmatch"),
        "command": f"python -m companion book --profile {config.profile}{data} --chapters {chapter}",
    }
    results.mkdir(parents=True, exist_ok=True)
    path = results / f"{PREFIX}{chapter}.json"
    with atomic_path(path) as partial:
        partial.write_text(json.dumps(about, indent=1, sort_keys=True) + "\n")
    return path


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
    words = [f"profile {about['profile']}", f"seed {about['seed']}", about["date"], f"sarmatch {about['version']}"]
    words += [f"commit {about['commit']}"] if "commit" in about else []
    words += [f"published in commit {about['published_in']}"] if "published_in" in about else []
    lines = [(about["command"], ", ".join(words))]
    for path in sorted(note.parent.glob(f"{chapter}*.json")):
        if path.stem == chapter or path.stem.startswith(f"{chapter}_"):
            lines.append((f"{path.stem}.csv", ", ".join(_about_table(json.loads(path.read_text())))))
    return lines


def _about_table(about: dict[str, Any]) -> list[str]:
    names = {
        "run": "run {}",
        "weights": "weights of commit {}",
        "commits": "trained at commit {}",
        "measured_at": "measured at commit {}",
        "data_fingerprint": "data {}",
        "seed": "seed {}",
        "seeds": "seeds {}",
        "protocol": "protocol {}",
        "search_radius": "search radius {} px",
        "crop_size": "crops of {} px",
        "test": "{}",
        "hardware": "{}",
        "device": "{}",
        "clock": "{}",
        "command": "command {}",
    }
    if str(about.get("weights")).endswith(".safetensors"):
        names["weights"] = "weights {}"
    if "commits" not in about and "measured_at" not in about:  # a benchmark: its commit is that of the measurement
        names["commit"] = names["measured_at"]
    return [text.format(_text(about[name])) for name, text in names.items() if about.get(name) not in (None, [])]


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " and ".join(map(str, value))
    return f"{value:g}" if type(value) in (int, float) else str(value)
