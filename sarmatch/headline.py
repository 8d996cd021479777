"""The headline table of README and front page, generated from the published results and never typed."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from sarmatch.files import atomic_path

BEGIN = "<!-- headline:begin (generated from book/results/s1s2; do not edit by hand) -->"
END = "<!-- headline:end -->"
COLUMNS = {"mma_1px": "within 1 px", "mma_3px": "within 3 px", "n_matches": "matches a crop"}
METHODS = {
    "consensus": "sarmatch, neighbours vote",
    "per cell": "sarmatch, each cell by itself (most literal reading of the paper)",
    "gradients only": "the same network, its fixed oriented gradients alone",
    "template": "oriented-gradient template, 65 px, no learning",
}


def headline(results: Path) -> str:
    """The table in Markdown, with a line that says where it comes from.

    Args:
        results: folder with `matching.csv` and `matching.json`, as the chapter on matching saves them.
    """
    table = pd.read_csv(results / "matching.csv")
    about = json.loads((results / "matching.json").read_text())
    lines = [f"| Test scenes | Method | {' | '.join(COLUMNS.values())} |", "|---|---|" + "---|" * len(COLUMNS)]
    for _, rows in table.groupby("source"):
        best = {name: rows[name].max() for name in COLUMNS if name != "n_matches"}
        for row in rows.to_dict("records"):
            scenes = f"{row['source']} ({row['n_pairs']} pairs, {row['n_scenes']} scenes)"
            cells = [f"**{_cell(row, name)}**" if row[name] == best.get(name) else _cell(row, name) for name in COLUMNS]
            lines.append(f"| {scenes} | {METHODS[row['method']]} | {' | '.join(cells)} |")
    lines.append("| SEN12MS, 27,100 pairs | the paper's number, protocol and radius not stated | 0.145 | | 1298 |")
    words = (
        "Share of mutual matches within a threshold of the truth, mean over pairs with 95 % intervals over scenes; the "
        "best on each kind of scenes is bold. "
        f"Protocol `{about['protocol']}`, search radius {about['search_radius']:g} px, {about['crop_size']} px crops, "
        f"scenes never seen in training; profile {about['profile']}, seed {about['seed']}, run {about['run']}, "
        f"data {about['data_fingerprint']}, trained at commit {', '.join(about['commits'])}, measured at "
        f"{', '.join(about['measured_at'])} (+: with uncommitted changes). Other data and protocol than the paper's: "
        "the last row is not comparable."
    )
    return "\n".join([*lines, "", words])


def update(path: Path, results: Path) -> None:
    """Put the current headline between the markers of a Markdown file.

    Raises:
        ValueError: the file lacks the markers.
    """
    before, begin, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path}: expected the lines {BEGIN!r} and {END!r} around the headline table")
    with atomic_path(path) as partial:
        partial.write_text(f"{before}{BEGIN}\n\n{headline(results)}\n\n{END}{after}")


def _cell(row: dict[str, float], name: str) -> str:
    if name == "n_matches":
        return f"{row[name]:.0f}"
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f"{row[name]:.2f}" + ("" if pd.isna(low) else f" [{low:.2f}, {high:.2f}]")
