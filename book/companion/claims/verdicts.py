"""Claims of the paper (`book/claims.yml`), and the rules that give each a verdict from our numbers and nothing else."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, TypeAlias

from companion.claims.branches import STRONG

VERDICTS = ("reproduced here", "same direction", "not reproduced", "not testable here")
REPRODUCED, SAME, NOT, UNTESTABLE = VERDICTS
CLOSE = 0.1  # relative deviation up to which two numbers without an interval agree (rule `within`)
MARGIN = 0.05  # loss of accuracy (a share) that still counts as none (rule `unchanged`)
FORMATS = {
    "share": ".3f", "difference": "+.3f", "rho": "+.2f", "ratio": ".2f", "count": ".0f", "more": "+.0f", "p": ".0e",
}  # fmt: skip


class ClaimError(ValueError):
    """A claim names a file, row or column that is not there, or contradicts itself."""


@dataclass(frozen=True)
class Number:
    """One measured value with its 95 % interval; both limits are NaN where there is none."""

    value: float
    low: float = math.nan
    high: float = math.nan
    label: str = ""
    kind: str = "share"  #: Of `FORMATS`, or `percent`.
    text: str = ""  #: A verdict of the table itself, for the rule `follows`.
    file: str = ""  #: Name of the result file, or `computed`.

    @property
    def has_interval(self) -> bool:
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def ends(self) -> tuple[float, float]:
        return (self.low, self.high) if self.has_interval else (self.value, self.value)

    def holds(self, printed: float) -> bool:
        slack = 1e-9 * max(abs(printed), 1)
        return self.ends[0] - slack <= printed <= self.ends[1] + slack

    def __str__(self) -> str:
        scale, form, unit = (100, "+.1f", " %") if self.kind == "percent" else (1, FORMATS[self.kind], "")
        shown = f"{scale * self.value:{form}}{unit}"
        if self.has_interval:
            shown += f" [{scale * self.low:{form}}, {scale * self.high:{form}}]"
        return f"{self.label}: {shown}" if self.label else shown


@dataclass(frozen=True)
class Claim:
    """One claim of the paper as `book/claims.yml` states it."""

    section: str
    place: str  #: Section, table or figure of the paper.
    claim: str
    chapter: str  #: Page and anchor of the book that has more.
    test: str
    rule: str = ""  #: Name in `RULES`; empty where nothing can be measured, with `reason` saying why.
    numbers: Sequence[Mapping[str, Any]] = ()  #: Selectors of the numbers that the rule judges, see `ledger.select`.
    beside: Sequence[Mapping[str, Any]] = ()  #: Selectors of numbers that are shown and not judged.
    printed: float | None = None  #: The paper's number on the scale of ours, where it has one.
    neutral: float = 0.0  #: What no effect would measure; 0 for a difference, 1 for a ratio, 0.5 for an AUROC.
    same_setting: bool = False  #: The paper's own, so that its number can be reproduced and not only its direction.
    figure: str = ""
    reason: str = ""
    note: str = ""  #: Why the two differ, or what to keep in mind.

    def __post_init__(self) -> None:
        if bool(self.rule) == bool(self.reason) or bool(self.rule) != bool(self.numbers):
            raise ClaimError(f"{self.claim!r}: needs a rule with numbers, or a reason why there is none")
        if self.rule and self.rule not in RULES:
            raise ClaimError(f"{self.claim!r}: no rule {self.rule!r}, there are {sorted(RULES)}")

    @property
    def agreed(self) -> str:
        """The verdict where the paper's number is met."""
        return REPRODUCED if self.same_setting else SAME


Verdict: TypeAlias = tuple[str, str]  # one of `VERDICTS`, and why
Rule: TypeAlias = Callable[[Sequence[Number], Claim], Verdict]


def _every(judge: Callable[[Number, Claim], Verdict]) -> Rule:
    """A rule that judges each number alone; the worst verdict is the claim's."""

    @wraps(judge)
    def rule(numbers: Sequence[Number], claim: Claim) -> Verdict:
        order = (NOT, UNTESTABLE, SAME, REPRODUCED)
        return min((judge(number, claim) for number in numbers), key=lambda verdict: order.index(verdict[0]))

    return rule


@_every
def rises(number: Number, claim: Claim) -> Verdict:
    """Every interval lies above `neutral`; the paper's number inside it, in its own setting, makes it reproduced."""
    return _signed(number, claim, +1)


@_every
def falls(number: Number, claim: Claim) -> Verdict:
    """As `rises`, downwards."""
    return _signed(number, claim, -1)


def _signed(number: Number, claim: Claim, sign: int) -> Verdict:
    if not number.has_interval:
        return UNTESTABLE, "no interval: too few scenes"
    low, high = sorted(sign * (end - claim.neutral) for end in number.ends)
    if high < 0:
        return NOT, f"the opposite: interval on the other side of {claim.neutral:g}"
    if low <= 0:
        return NOT, f"undecided: interval holds {claim.neutral:g}"
    words = f"interval on the claimed side of {claim.neutral:g}"
    if claim.printed is None:
        return SAME, words
    if not number.holds(claim.printed):
        return SAME, f"{words}; the printed number is outside"
    return claim.agreed, f"{words}; holds the printed number"


@_every
def near(number: Number, claim: Claim) -> Verdict:
    """Every interval holds the paper's number."""
    if number.holds(_printed(claim)):
        words = "interval holds the printed number" if number.has_interval else "is the printed number"
        return claim.agreed, words
    return NOT, f"printed number lies {'below' if _printed(claim) < number.value else 'above'} ours"


@_every
def at_most(number: Number, claim: Claim) -> Verdict:
    """Not above the paper's number, as far as the interval tells."""
    if number.low > _printed(claim) or (not number.has_interval and number.value > _printed(claim)):
        return NOT, "ours is higher"
    if number.value > _printed(claim):
        return NOT, "interval holds the printed number, our mean is higher"
    return claim.agreed, "not higher than the printed number"


@_every
def unchanged(number: Number, claim: Claim) -> Verdict:
    """No interval holds a loss of more than 0.05 (`MARGIN`): what is claimed to be robust must be shown to be."""
    if not number.has_interval:
        return UNTESTABLE, "no interval: too few scenes"
    if number.low >= -MARGIN:
        return SAME, f"loses less than {MARGIN:g}"
    if number.high < 0:
        return NOT, "the opposite: interval below zero"
    return NOT, f"undecided: interval has room for a loss of more than {MARGIN:g}"


def ahead(numbers: Sequence[Number], claim: Claim) -> Verdict:
    """The first number's interval lies above those of all others."""
    return _apart(numbers, +1, "ahead", "lower")


def behind(numbers: Sequence[Number], claim: Claim) -> Verdict:
    """The first number's interval lies below those of all others."""
    return _apart(numbers, -1, "behind", "higher")


def _apart(numbers: Sequence[Number], sign: int, side: str, opposite: str) -> Verdict:
    (near, far), *others = (sorted(sign * end for end in n.ends) for n in numbers)
    known = [number.has_interval for number in numbers]
    if all(near > other[1] for other in others):
        return SAME, "intervals do not overlap" if known[0] else f"the first is {side}"
    if any(far < other[0] for other, has in zip(others, known[1:], strict=True) if known[0] or has):
        return NOT, f"the opposite: the first is {opposite}"
    return NOT, "undecided: intervals overlap" if known[0] else f"the first is not {side}"


@_every
def follows(number: Number, claim: Claim) -> Verdict:
    """Rank correlation of 0.8 or more, interval above zero, visible change: the chapter's `follows`."""
    if number.text == "no":
        if number.low > 0:
            return NOT, f"rises, with a correlation below {STRONG:g}"
        if number.high < 0:
            return NOT, "the opposite: falls, loosely"
        return NOT, f"undecided: correlation below {STRONG:g} and interval holds 0"
    words = {"follows": "rises with it, visibly", "falls": "the opposite: falls with it"}
    words |= {"hardly moves": "moves by next to nothing"}
    return SAME if number.text == "follows" else NOT, words.get(number.text, f"the table says {number.text!r}")


def within(numbers: Sequence[Number], claim: Claim) -> Verdict:
    """Numbers without an interval, such as times, deviate from the paper's by at most a tenth (`CLOSE`)."""
    printed = _printed(claim)
    off = max(abs(number.value / printed - 1) for number in numbers)
    if off <= CLOSE:
        return claim.agreed, f"within {CLOSE:.0%} of the printed number"
    return NOT, f"{off:.0%} from the printed number"


RULES: Mapping[str, Rule] = {
    rule.__name__: rule for rule in (rises, falls, near, at_most, unchanged, ahead, behind, follows, within)
}


def _printed(claim: Claim) -> float:
    if claim.printed is None:
        raise ClaimError(f"{claim.claim!r}: rule {claim.rule!r} compares with a printed number; give `printed`")
    return claim.printed


def load_claims(path: str | Path) -> list[Claim]:
    """Claims of a YAML file: sections, each with a list; `ClaimError` where a field is missing, unknown or absurd."""
    import yaml

    claims = []
    for section, entries in yaml.safe_load(Path(path).read_text()).items():
        for entry in entries:
            try:
                claims.append(Claim(section=section, **entry))
            except TypeError as error:
                raise ClaimError(f"{path}, {section}, {entry.get('claim')!r}: {error}") from None
    return claims
