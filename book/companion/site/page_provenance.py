"""Where the numbers of a page come from: kept beside the result tables and shown at the end of the page."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from companion.settings import write_note
from sarmatch.config import Config
from sarmatch.io import commit

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
