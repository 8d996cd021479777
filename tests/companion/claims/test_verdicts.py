"""The ledger of claims: its rules on hand-made numbers, and its rows against the published result files."""

from __future__ import annotations

import math
import re
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from docutils.nodes import make_id
from matplotlib.figure import Figure

from companion.claims.ledger import COMPUTED, counts, judge, ledger, ledger_html, select, verdict_bars
from companion.claims.verdicts import RULES, VERDICTS, Claim, ClaimError, Number, load_claims
from companion.site.build import toc_files

BOOK = Path(__file__).parents[3] / "book"
RESULTS = BOOK / "results" / "s1s2"
CLAIMS = load_claims(BOOK / "claims.yml")
REPRODUCED, SAME, NOT, UNTESTABLE = VERDICTS
SELECTOR = {"file": "gains", "value": "difference"}


def claim(rule: str = "rises", **about: object) -> Claim:
    about.setdefault("numbers", [SELECTOR])
    return Claim("section", "place", "words", "matching", "test", rule=rule, **about)  # type: ignore[arg-type]


def numbers(*triples: tuple[float, float, float] | float) -> list[Number]:
    return [Number(t, math.nan, math.nan) if isinstance(t, float) else Number(*t) for t in triples]


# Rules


@pytest.mark.parametrize(
    ("rule", "found", "about", "verdict"),
    [
        ("rises", [(0.2, 0.1, 0.3)], {}, SAME),
        ("rises", [(0.2, 0.1, 0.3)], {"printed": 0.15}, SAME),
        ("rises", [(0.2, 0.1, 0.3)], {"printed": 0.15, "same_setting": True}, REPRODUCED),
        ("rises", [(0.2, 0.1, 0.3)], {"printed": 0.9, "same_setting": True}, SAME),
        ("rises", [(0.2, -0.1, 0.3)], {"printed": 0.15, "same_setting": True}, NOT),
        ("rises", [(-0.2, -0.3, -0.1)], {}, NOT),
        ("rises", [0.2], {}, UNTESTABLE),
        ("rises", [(0.2, 0.1, 0.3), (0.2, -0.1, 0.3)], {}, NOT),
        ("rises", [(0.2, 0.1, 0.3), 0.2], {}, UNTESTABLE),
        ("rises", [(0.6, 0.55, 0.7)], {"neutral": 0.5}, SAME),
        ("rises", [(0.6, 0.45, 0.7)], {"neutral": 0.5}, NOT),
        ("falls", [(0.6, 0.4, 0.8)], {"neutral": 1.0, "printed": 0.6}, SAME),
        ("falls", [(0.6, 0.4, 1.8)], {"neutral": 1.0, "printed": 0.6}, NOT),
        ("falls", [(-0.2, -0.3, -0.1)], {}, SAME),
        ("falls", [(0.2, 0.1, 0.3)], {}, NOT),
        ("near", [(0.2, 0.1, 0.3)], {"printed": 0.25}, SAME),
        ("near", [(0.2, 0.1, 0.3)], {"printed": 0.25, "same_setting": True}, REPRODUCED),
        ("near", [(0.2, 0.1, 0.3)], {"printed": 0.35}, NOT),
        ("near", [27100.0], {"printed": 27100, "same_setting": True}, REPRODUCED),
        ("at_most", [(0.05, 0.01, 0.2)], {"printed": 0.09}, SAME),
        ("at_most", [(0.1, 0.01, 0.2)], {"printed": 0.09}, NOT),
        ("at_most", [(0.3, 0.2, 0.4)], {"printed": 0.09}, NOT),
        ("unchanged", [(0.0, -0.04, 0.04)], {}, SAME),
        ("unchanged", [(0.0, -0.2, 0.2)], {}, NOT),
        ("unchanged", [0.1], {}, UNTESTABLE),
        ("ahead", [(0.5, 0.4, 0.6), (0.2, 0.1, 0.3)], {}, SAME),
        ("ahead", [(0.5, 0.4, 0.6), (0.5, 0.1, 0.7)], {}, NOT),
        ("ahead", [0.5, 0.4], {}, SAME),
        ("ahead", [0.4, 0.4], {}, NOT),
        ("behind", [(0.2, 0.1, 0.3), (0.5, 0.4, 0.6)], {}, SAME),
        ("behind", [(0.5, 0.4, 0.6), (0.2, 0.1, 0.3)], {}, NOT),
        ("within", [2.6], {"printed": 2.5}, SAME),
        ("within", [2.6], {"printed": 2.5, "same_setting": True}, REPRODUCED),
        ("within", [5.8], {"printed": 2.5}, NOT),
    ],
)
def test_rules(rule: str, found: list, about: dict, verdict: str) -> None:
    assert RULES[rule](numbers(*found), claim(rule, **about))[0] == verdict


@pytest.mark.parametrize(("text", "verdict"), [("follows", SAME), ("falls", NOT), ("hardly moves", NOT), ("no", NOT)])
def test_a_response_is_judged_by_the_verdict_of_its_table(text: str, verdict: str) -> None:
    assert RULES["follows"]([Number(0.9, text=text)], claim("follows"))[0] == verdict


def test_a_rule_that_compares_needs_the_printed_number() -> None:
    with pytest.raises(ClaimError, match="give `printed`"):
        RULES["near"](numbers(0.1), claim("near"))


# Claims and selectors


def test_a_claim_has_a_rule_or_a_reason() -> None:
    for about in ({"rule": "rises", "numbers": []}, {"rule": ""}, {"rule": "rises", "reason": "none"}):
        with pytest.raises(ClaimError, match="needs a rule"):
            claim(**about)  # type: ignore[arg-type]
    with pytest.raises(ClaimError, match="no rule 'guess'"):
        claim("guess")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    (tmp_path / "gains.csv").write_text(
        "row,difference,low,high,mma,mma_low,mma_high,verdict\na,0.2,0.1,0.3,0.5,0.4,0.6,follows\nb,0.1,,,0.25,,,no\n"
    )
    return tmp_path


def test_select_reads_value_and_interval(results: Path) -> None:
    a = select({"file": "gains", "where": {"row": "a"}, "value": "difference", "kind": "difference"}, results)
    assert (a.value, a.low, a.high, a.text, a.file) == (0.2, 0.1, 0.3, "follows", "gains")
    assert str(a) == "+0.200 [+0.100, +0.300]"
    mma = select({"file": "gains", "where": {"row": "a"}, "value": "mma", "label": "ours"}, results)
    assert str(mma) == "ours: 0.500 [0.400, 0.600]"
    assert not select({"file": "gains", "where": {"row": "b"}, "value": "mma"}, results).has_interval
    ratio = select(
        {"file": "gains", "where": {"row": "a"}, "over": {"row": "b"}, "value": "mma", "kind": "ratio"}, results
    )
    assert str(ratio) == "2.00"
    assert str(Number(0.021, -0.1, 0.2, kind="percent")) == "+2.1 % [-10.0, +20.0]"


@pytest.mark.parametrize(
    ("selector", "message"),
    [
        ({"file": "gains", "value": "mma"}, "2 rows"),
        ({"file": "gains", "where": {"row": "c"}, "value": "mma"}, "0 rows"),
        ({"file": "gains", "where": {"colour": "c"}, "value": "mma"}, "no column 'colour'"),
        ({"file": "gains", "where": {"row": "a"}, "value": "ece"}, "no column 'ece'"),
        ({"file": "losses", "where": {"row": "a"}, "value": "mma"}, "losses.csv"),
    ],
)
def test_a_number_that_is_not_there_is_an_error(results: Path, selector: dict, message: str) -> None:
    with pytest.raises(ClaimError, match=message):
        judge(claim(numbers=[selector]), results)


def test_a_changed_result_file_changes_the_verdict(results: Path) -> None:
    of_a = claim(numbers=[{**SELECTOR, "where": {"row": "a"}}])
    assert judge(of_a, results)[0] == SAME
    (results / "gains.csv").write_text("row,difference,low,high\na,0.2,-0.1,0.3\n")
    assert judge(of_a, results)[0] == NOT


def test_unknown_fields_are_named(tmp_path: Path) -> None:
    (tmp_path / "c.yml").write_text("Part:\n- {place: p, claim: c, chapter: x, test: t, verdict: reproduced here}\n")
    with pytest.raises(ClaimError, match="verdict"):
        load_claims(tmp_path / "c.yml")


def test_computed_numbers() -> None:
    assert [COMPUTED[f"{part} pairs"]() for part in ("training", "validation", "test")] == [126463, 27099, 27100]
    assert COMPUTED["relative gain of 0.145 over 0.120"]() == pytest.approx(0.2083, abs=1e-4)
    assert 0 < COMPUTED["largest p with these intervals"]() < 1e-9


# The published ledger


@pytest.fixture(scope="module")
def published() -> pd.DataFrame:
    return ledger(CLAIMS, RESULTS)


def test_the_ledger_holds_at_least_forty_claims_of_all_parts(published: pd.DataFrame) -> None:
    assert len(published) >= 40
    assert published["claim"].is_unique
    assert set(published["verdict"]) <= set(VERDICTS)
    assert counts(published).to_numpy().sum() == len(published)
    for place in ("abstract", "table 1", "table 3", "table 4", "figure 7", "figure 10", "section 4.4", "section 5.4"):
        assert published["place"].str.contains(place).any(), place


def test_every_verdict_with_a_number_follows_from_a_rule(published: pd.DataFrame) -> None:
    for row, stated in zip(published.to_dict("records"), CLAIMS, strict=True):
        if stated.rule and row["files"]:
            assert row["here"], row["claim"]
        else:
            assert row["verdict"] == UNTESTABLE and row["why"]


def test_numbers_of_the_ledger_are_those_of_the_files(published: pd.DataFrame) -> None:
    """Read again without the module's own reader: three rows of different kinds."""
    gains = pd.read_csv(RESULTS / "ablation_gains.csv").set_index(["metric", "row", "against"])
    row = gains.loc[("n_matches", "rotation", "baseline")]
    shown = published.set_index("claim")["here"]
    text = next(t for c, t in shown.items() if c.startswith("The whole method finds more matches"))
    assert text == f"matches: {row['difference']:+.0f} [{row['low']:+.0f}, {row['high']:+.0f}]"
    modes = pd.read_csv(RESULTS / "cost_modes.csv").set_index("mode")
    text = next(t for c, t in shown.items() if c.startswith("Twenty passes take 2.53"))
    assert f"{modes.loc['Monte Carlo 20', 'ratio']:.2f}" in text


def test_the_stored_ledger_is_that_of_the_current_result_files(published: pd.DataFrame) -> None:
    stored = pd.read_csv(RESULTS / "claims.csv", keep_default_na=False)
    expected = published.fillna("").astype(str)
    assert stored.astype(str).to_dict("records") == expected.to_dict("records"), (
        "result files or claims changed: run python -m companion book --profile s1s2 --data DATA --chapters claims "
        "--publish"
    )


def anchors(page: str) -> set[str]:
    """Names that links into a page may use: figures, targets and headings."""
    notebook = BOOK / f"{page}.ipynb"
    if notebook.is_file():
        cells = nbformat.read(notebook, as_version=4).cells
        figures = {c.metadata.get("mystnb", {}).get("figure", {}).get("name", "") for c in cells}
        text = "\n".join(c.source for c in cells if c.cell_type == "markdown")
    else:
        figures, text = set(), (BOOK / f"{page}.md").read_text()
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return figures | {make_id(heading) for heading in headings} | set(re.findall(r"^\((.+)\)=$", text, re.M))


def test_every_link_of_the_ledger_exists(published: pd.DataFrame) -> None:
    pages = toc_files(BOOK)
    for row in published.to_dict("records"):
        page, _, anchor = row["chapter"].partition("#")
        assert page in pages, row["claim"]
        assert {anchor, row["figure"]} - {""} <= anchors(page), (row["claim"], row["chapter"], row["figure"])


def test_html_escapes_and_links() -> None:
    table = ledger([claim(numbers=[], rule="", reason="a < b")], RESULTS)
    shown = ledger_html(table)
    assert 'id="claim-1"' in shown and 'href="matching.html"' in shown and "a &lt; b" in shown


def test_bars_add_up_to_the_ledger(published: pd.DataFrame) -> None:
    table = counts(published)
    ax = verdict_bars(Figure().subplots(), table)
    assert sum(bar.get_width() for bar in ax.patches) == len(published)
    assert len(ax.get_yticklabels()) == published["section"].nunique()
