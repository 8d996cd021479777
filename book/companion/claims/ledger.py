"""The claims ledger: numbers of the published result files, and the verdict that each claim's rule gives for them."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from companion.claims.verdicts import RULES, UNTESTABLE, VERDICTS, Claim, ClaimError, Number
from companion.figures.plots import with_legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@cache
def paper_split() -> tuple[int, int, int]:
    """Sizes of training, validation and test that the split over patches makes of 180,662 pairs."""
    from sarmatch.data import Pairs, split_by_patch

    index = pd.DataFrame({"id": [str(number) for number in range(180_662)]})
    index = index.assign(dataset="sen12ms", scene="", season="", land_cover="")
    split = split_by_patch(Pairs(index, lambda row: None))  # type: ignore[arg-type,return-value]
    return len(split.train), len(split.validation), len(split.test)


def _p_of_printed_intervals() -> float:
    """Largest two-sided p of .145 [.1432, .1468] against .120 whose interval is as wide, whatever pairs the two."""
    from scipy.stats import norm

    deviation = (0.1468 - 0.1432) / 2 / norm.ppf(0.975)
    return float(2 * norm.sf((0.145 - 0.120) / (2 * deviation)))


COMPUTED: Mapping[str, Callable[[], float]] = {
    "training pairs": lambda: paper_split()[0],
    "validation pairs": lambda: paper_split()[1],
    "test pairs": lambda: paper_split()[2],
    "relative gain of 0.145 over 0.120": lambda: 0.145 / 0.120 - 1,
    "half width of [0.1432, 0.1468] in points": lambda: (14.68 - 14.32) / 2,
    "largest p with these intervals": _p_of_printed_intervals,
}
"""Numbers that follow from the paper's own by code, without data."""


def select(selector: Mapping[str, Any], results: Path) -> Number:
    """The number that a selector names; `ClaimError` or `FileNotFoundError` where there is no such one.

    Args:
        selector: `file` (without `.csv`), `where` (column: value, of exactly one row), `value` (column, with interval
            from `<value>_low` and `<value>_high`, else `low` and `high`); optionally `over` (another `where`; the
            number is the quotient of the two, without interval), `label`, `kind`. Or `computed`, a name in `COMPUTED`.
        results: folder of the published tables.
    """
    about: dict[str, Any] = {"label": str(selector.get("label", "")), "kind": str(selector.get("kind", "share"))}
    if "computed" in selector:
        return Number(float(COMPUTED[selector["computed"]]()), file="computed", **about)
    about["file"], value = str(selector["file"]), str(selector["value"])
    path = results / f"{about['file']}.csv"
    row = _row(path, selector.get("where", {}), value)
    if "over" in selector:
        return Number(row[value] / _row(path, selector["over"], value)[value], **about)
    if not isinstance(row[value], (int, float)):
        return Number(math.nan, text=str(row[value]), **about)
    low, high = (float(row.get(f"{value}_{end}", row.get(end, math.nan))) for end in ("low", "high"))
    return Number(float(row[value]), low, high, text=str(row.get("verdict", "")), **about)


def _row(path: Path, where: Mapping[str, Any], value: str) -> dict[str, Any]:
    chosen = table = pd.read_csv(path)
    for column in (*where, value):
        if column not in table:
            raise ClaimError(f"{path.name} has no column {column!r}, there are {list(table)}")
    for column, wanted in where.items():
        chosen = chosen[chosen[column] == wanted]
    if len(chosen) != 1:
        raise ClaimError(f"{path.name} has {len(chosen)} rows with {dict(where)}, expected one")
    return chosen.iloc[0].to_dict()


def judge(claim: Claim, results: Path) -> tuple[str, str, list[Number]]:
    """Verdict of one claim, why it came out so, and the numbers shown with it; ClaimError where one is missing."""
    try:
        numbers, beside = ([select(s, results) for s in part] for part in (claim.numbers, claim.beside))
    except (ClaimError, FileNotFoundError) as error:
        raise ClaimError(f"{claim.claim!r}: {error}") from None
    verdict, why = RULES[claim.rule](numbers, claim) if claim.rule else (UNTESTABLE, claim.reason)
    return verdict, why, [*numbers, *beside]


def ledger(claims: Sequence[Claim], results: Path) -> pd.DataFrame:
    """The ledger as text, one row a claim."""
    rows = []
    for number, claim in enumerate(claims, start=1):
        verdict, why, shown = judge(claim, results)
        here = "; ".join(str(n) for n in shown if not math.isnan(n.value) or n.text)
        files = ", ".join(dict.fromkeys(n.file for n in shown))
        rows.append(vars(claim) | dict(number=number, here=here, verdict=verdict, why=why, files=files))
    columns = ["number", "section", "place", "claim", "test", "here", "verdict", "why", "note", "rule", "files"]
    return pd.DataFrame(rows)[[*columns, "chapter", "figure"]]


def counts(table: pd.DataFrame) -> pd.DataFrame:
    """Claims by section (rows, in the ledger's order) and verdict (columns, those of `VERDICTS`)."""
    found = pd.crosstab(table["section"], table["verdict"])
    return found.reindex(index=table["section"].unique(), columns=list(VERDICTS), fill_value=0)


def ledger_html(table: pd.DataFrame) -> str:
    """The rows of one section as a table for the page; links lead to chapter and figure."""
    head = "".join(f"<th>{name}</th>" for name in ("", "The paper claims", "Our test", "Measured here", "Verdict"))
    body = "".join(_row_html(row) for row in table.to_dict("records"))
    return f'<table class="ledger"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _row_html(row: Mapping[str, Any]) -> str:
    text = {name: html.escape(str(value)) for name, value in row.items()}
    page, hash_sign, anchor = row["chapter"].partition("#")
    links = f'<a href="{page}.html{hash_sign}{anchor}">{page}</a>'
    if row["figure"]:
        links += f', <a href="{page}.html#{row["figure"]}">figure</a>'
    files = ", ".join(name if name == "computed" else f"{name}.csv" for name in text["files"].split(", ") if name)
    note = f". {text['note']}" if row["note"] else ""
    cells = (
        text["number"],
        f"{text['claim']}<br><small>{text['place']}</small>",
        f"{text['test']}<br><small>{links}</small>",
        f"{text['here'].replace('; ', '<br>') or 'no number'}<br><small>{files}</small>",
        f'<span class="verdict verdict-{VERDICTS.index(row["verdict"])}">{text["verdict"]}</span><br>'
        f"<small>{text['why']}{note}</small>",
    )
    return f'<tr id="claim-{row["number"]}">{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def verdict_bars(ax: Axes, table: pd.DataFrame) -> Axes:
    """Numbers of claims by section and verdict, of `counts`, stacked; the total of the ledger in the legend."""
    totals = [f"{verdict} ({n})" for verdict, n in table.sum().items()]
    colours = ("#029e73", "#56b4e9", "#d55e00", "#949494")
    table.set_axis(totals, axis=1).plot.barh(ax=ax, stacked=True, color=colours, width=0.8)
    for bars in ax.containers:
        ax.bar_label(bars, fmt=lambda n: f"{n:.0f}" if n else "", label_type="center", color="black", size="small")  # type: ignore[arg-type]
    ax.invert_yaxis()
    ax.set(xlabel="claims", ylabel="")
    return with_legend(ax, loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=2, fontsize="small")
