"""The claims ledger: numbers of the published result files, and the verdict that each claim's rule gives for them."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from companion.claims.verdicts import RULES, UNTESTABLE, VERDICTS, Claim, ClaimError, Number
from companion.figures.plots import with_legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Judged:
    """A claim with our numbers, the verdict and why it came out so."""

    claim: Claim
    verdict: str
    why: str
    numbers: Sequence[Number] = field(default=())
    beside: Sequence[Number] = field(default=())


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
        selector: `file` (without `.csv`), `where` (column: value, of exactly one row), `value` (column); optionally
            `low` and `high` (columns; by default `<value>_low`, else `low` and `high`),
            `over` (another `where`; the number is the quotient of the two, without interval), `label`, `kind`.
            Or `computed`, a name in `COMPUTED`.
        results: folder of the published tables.
    """
    label, kind = str(selector.get("label", "")), str(selector.get("kind", "share"))
    if "computed" in selector:
        return Number(float(COMPUTED[selector["computed"]]()), label=label, kind=kind, file="computed")
    name, value = str(selector["file"]), str(selector["value"])
    path = results / f"{name}.csv"
    table = _read(path, path.stat().st_mtime_ns)
    row = _row(table, selector.get("where", {}), name)
    if value not in table:
        raise ClaimError(f"{name}.csv has no column {value!r}, there are {list(table)}")
    if "over" in selector:
        return Number(row[value] / _row(table, selector["over"], name)[value], label=label, kind=kind, file=name)
    if not isinstance(row[value], (int, float)):
        return Number(math.nan, label=label, kind=kind, text=str(row[value]), file=name)
    ends = ((end, f"{value}_{end}") for end in ("low", "high"))
    low, high = (str(selector.get(end) or (own if own in table else end)) for end, own in ends)
    at_low, at_high = (float(row[end]) if end in table else math.nan for end in (low, high))
    return Number(float(row[value]), at_low, at_high, label, kind, text=str(row.get("verdict", "")), file=name)


@cache
def _read(path: Path, changed: int) -> pd.DataFrame:
    return pd.read_csv(path)


def _row(table: pd.DataFrame, where: Mapping[str, Any], name: str) -> dict[str, Any]:
    chosen = table
    for column, wanted in where.items():
        if column not in table:
            raise ClaimError(f"{name}.csv has no column {column!r}, there are {list(table)}")
        chosen = chosen[chosen[column] == wanted]
    if len(chosen) != 1:
        raise ClaimError(f"{name}.csv has {len(chosen)} rows with {dict(where)}, expected one")
    return chosen.iloc[0].to_dict()


def judge(claim: Claim, results: str | Path) -> Judged:
    """Numbers and verdict of one claim.

    Raises:
        ClaimError, FileNotFoundError: a number is missing and the claim does not say what that means (`if_absent`).
    """
    folder = Path(results)
    if not claim.rule:
        beside = [select(selector, folder) for selector in claim.beside]
        return Judged(claim, UNTESTABLE, claim.reason, beside=beside)
    try:
        numbers = [select(selector, folder) for selector in claim.numbers]
        beside = [select(selector, folder) for selector in claim.beside]
    except (ClaimError, FileNotFoundError) as error:
        if claim.if_absent:
            return Judged(claim, UNTESTABLE, claim.if_absent)
        raise ClaimError(f"{claim.claim!r}: {error}") from None
    verdict, why = RULES[claim.rule](numbers, claim)
    return Judged(claim, verdict, why, numbers, beside)


def ledger(claims: Sequence[Claim], results: str | Path) -> pd.DataFrame:
    """The ledger as text, one row a claim."""
    rows: list[dict[str, Any]] = []
    for number, judged in enumerate((judge(claim, results) for claim in claims), start=1):
        claim, shown = judged.claim, [*judged.numbers, *judged.beside]
        row: dict[str, Any] = {"number": number, "section": claim.section, "place": claim.place}
        row |= {"claim": claim.claim, "test": claim.test}
        row["here"] = "; ".join(str(n) for n in shown if not math.isnan(n.value) or n.text)
        row |= {"verdict": judged.verdict, "why": judged.why, "note": claim.note, "rule": claim.rule}
        row["files"] = ", ".join(dict.fromkeys(n.file for n in shown))
        rows.append(row | {"chapter": claim.chapter, "figure": claim.figure})
    return pd.DataFrame(rows)


def counts(table: pd.DataFrame) -> pd.DataFrame:
    """Claims by section (rows, in the ledger's order) and verdict (columns, those of `VERDICTS`)."""
    found = pd.crosstab(table["section"], table["verdict"])
    return found.reindex(index=table["section"].unique(), columns=list(VERDICTS), fill_value=0)


def ledger_html(table: pd.DataFrame) -> str:
    """The rows of one section as a table for the page; links lead to chapter and figure."""
    rows = []
    for row in table.fillna("").to_dict("records"):
        text = {name: html.escape(str(value)) for name, value in row.items()}
        page, _, anchor = str(row["chapter"]).partition("#")
        links = [f'<a href="{page}.html#{anchor}">{page}</a>' if anchor else f'<a href="{page}.html">{page}</a>']
        if row["figure"]:
            links.append(f'<a href="{page}.html#{row["figure"]}">figure</a>')
        files = ", ".join(name if name == "computed" else f"{name}.csv" for name in text["files"].split(", ") if name)
        kind = VERDICTS.index(row["verdict"])
        rows.append(
            f'<tr id="claim-{row["number"]}"><td>{row["number"]}</td>'
            f"<td>{text['claim']}<br><small>{text['place']}</small></td>"
            f"<td>{text['test']}<br><small>{', '.join(links)}</small></td>"
            f"<td>{text['here'].replace('; ', '<br>') or 'no number'}<br><small>{files}</small></td>"
            f'<td><span class="verdict verdict-{kind}">{text["verdict"]}</span><br>'
            f"<small>{text['why']}{'. ' + text['note'] if row['note'] else ''}</small></td></tr>"
        )
    head = "".join(f"<th>{name}</th>" for name in ("", "The paper claims", "Our test", "Measured here", "Verdict"))
    return f'<table class="ledger"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def verdict_bars(ax: Axes, table: pd.DataFrame) -> Axes:
    """Numbers of claims by section and verdict, of `counts`, stacked; the total of the ledger in the legend."""
    left = pd.Series(0, index=table.index)
    for verdict, colour in zip(VERDICTS, ("#029e73", "#56b4e9", "#d55e00", "#949494"), strict=True):
        width = table[verdict]
        bars = ax.barh(table.index, width, left=left, color=colour, label=f"{verdict} ({width.sum()})")
        ax.bar_label(bars, [str(n) if n else "" for n in width], label_type="center", color="black", size="small")
        left = left + width
    ax.invert_yaxis()
    ax.set(xlabel="claims")
    return with_legend(ax, loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=2, fontsize="small")
