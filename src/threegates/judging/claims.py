"""claims.yaml, and the verdict on each claim: computed by rules that were written before the numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from threegates.errors import ClaimError
from threegates.estimates.intervals import Estimate, missing
from threegates.estimates.rows import MissingRecordError, Tables
from threegates.estimates.verdict_frame import COLUMNS, RULE
from threegates.jobs.subjects import CLAIMED, COMPUTED, LAB, described
from threegates.judging.verdicts import CONTROLS, Controlled, Judgement
from threegates.measures.by_tensor import typed
from threegates.register import ESTIMATES, estimate


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Place(_Strict):
    """Where the paper makes the claim, and its words in short."""

    place: str
    says: str


class Rule(_Strict):
    """A threshold or an equivalence margin for the whole confidence interval of one estimate.

    `neutral` is the value that says that there is no effect: 0 of a difference, 1 of a ratio. A check of
    arithmetic or of a theorem has none.
    """

    estimate: str
    at_least: float | None = None
    within: tuple[float, float] | None = None
    contradicted_below: float | None = None
    neutral: float | None = None

    @model_validator(mode="after")
    def _check(self) -> Rule:
        if (self.at_least is None) == (self.within is None):
            raise ValueError("a rule has either at_least or within")
        return self

    def holds(self, found: Estimate) -> bool:
        """Whether the whole interval is where the rule wants it."""
        if self.within is not None:
            return self.within[0] <= found.low and found.high <= self.within[1]
        return found.low >= (self.at_least or 0.0)

    def contradicted(self, found: Estimate) -> bool:
        """Whether the whole interval lies below the bound that contradicts the claim."""
        return self.contradicted_below is not None and found.high < self.contradicted_below

    def text(self) -> str:
        """The rule in a few words."""
        if self.within is not None:
            return f"whole interval within {self.within[0]:g} to {self.within[1]:g}"
        return f"whole interval at or above {self.at_least:g}"


class Control(Rule):
    """A rule that the claim must also meet against a null or at a matched learning rate."""

    kind: Controlled
    says: str


class Change(_Strict):
    """What a rule was before it was changed, and why it was."""

    was: str
    reason: str


class Claim(_Strict):
    """One claim with its measure, its rule and the controls it must survive.

    `title` is short enough for a figure's axis. `figure` is where it is seen, "chapter/figure". `free` are
    the choices that its measure leaves open. `awaits` says which runs, not made yet, its estimate is for; its
    rule is fixed all the same. `needs` says what no build on this machine has. `subjects` are the models that
    it is judged on, each by the same rule.
    """

    id: str
    title: Annotated[str, Field(max_length=60)]
    chapter: str
    figure: str | None = None
    paper: Place
    made_by: Literal["paper", "us"]
    informed_by_prototype: bool
    measure: str
    rule: Rule
    controls: list[Control] = []
    free: list[Literal["k", "alpha", "eta"]] = []
    needs: str | None = None
    awaits: str | None = None
    subjects: list[str] = [LAB]
    changed: list[Change] = []

    @model_validator(mode="after")
    def _estimates(self) -> Claim:
        named = [rule.estimate for rule in (self.rule, *self.controls)]
        unknown = [name for name in named if name not in ESTIMATES]
        if unknown and not self.awaits:
            raise ValueError(f"there is no estimate '{unknown[0]}'; known: {', '.join(sorted(ESTIMATES))}")
        if self.awaits and not unknown:
            raise ValueError("it awaits runs, but every estimate that it names can be computed")
        return self

    @model_validator(mode="after")
    def _subjects(self) -> Claim:
        if unknown := [name for name in self.subjects if name not in CLAIMED]:
            raise ValueError(f"no claim is judged on a subject '{unknown[0]}'; known: {', '.join(CLAIMED)}")
        return self


class Claims(_Strict):
    """All claims, and the confidence of every interval."""

    version: Literal[1]
    confidence: float
    claims: list[Claim]

    @model_validator(mode="after")
    def _unique(self) -> Claims:
        names = [claim.id for claim in self.claims]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"an id is used twice: {', '.join(repeated)}")
        return self

    def of(self, chapter: str, subject: str = "") -> list[Claim]:
        """The claims that a chapter judges, of any subject or of the one that is named."""
        subject = described(subject).judged_as or subject
        own = [claim for claim in self.claims if claim.chapter == chapter]
        return [claim for claim in own if not subject or subject in claim.subjects]


@dataclass(frozen=True)
class Verdict:
    """A judged claim: the verdict, why, on what, and every number it rests on."""

    claim: Claim
    judgement: Judgement
    reason: str
    subject: str
    estimate: Estimate
    controls: tuple[tuple[Control, Estimate], ...] = ()


def read_claims(path: Path) -> Claims:
    """Read and check claims.yaml.

    Raises
    ------
    ClaimError : it is missing, is not YAML, or breaks the schema; the message names the claim and key.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ClaimError("there is no file of claims", where=path.name) from None
    return _parsed(path, text)


@lru_cache(maxsize=4)
def _parsed(path: Path, text: str) -> Claims:
    # Every page asks for the claims several times, and reading YAML takes a third of a second.
    try:
        content = yaml.safe_load(text)
        return Claims.model_validate(content)
    except yaml.YAMLError as error:
        raise ClaimError("the file of claims is not YAML", where=path.name, found=str(error)) from None
    except ValidationError as error:
        raise _schema_error(path, content, error) from None


def _schema_error(path: Path, content: object, error: ValidationError) -> ClaimError:
    first = error.errors()[0]
    place = list(first["loc"])
    names = content.get("claims", []) if isinstance(content, dict) else []
    if len(place) > 1 and place[0] == "claims" and isinstance(place[1], int):
        claim = names[place[1]]
        place[1] = f"'{claim.get('id', place[1])}'" if isinstance(claim, dict) else place[1]
    return ClaimError(
        "the file of claims breaks its schema",
        where=f"{path.name}, {' → '.join(map(str, place)) or 'top level'}",
        expected=first["msg"],
        found=repr(first["input"])[:200],
    )


def judge(claim: Claim, tables: Tables, subject: str, confidence: float = 0.95) -> Verdict:
    """Judge one claim by its own rule; see claims.yaml for the precedence of verdicts.

    Where a record that it rests on is missing and not to be measured, it is not run.
    """
    if claim.awaits:
        return _awaiting(claim, subject)
    try:
        return _judged(claim, tables, subject, confidence)
    except MissingRecordError as error:
        return not_run(claim, f"{error.what}: {error.where}", subject)


def _judged(claim: Claim, tables: Tables, subject: str, confidence: float) -> Verdict:
    found = estimate(claim.rule.estimate, tables, confidence)
    controls = tuple((rule, estimate(rule.estimate, tables, confidence)) for rule in claim.controls)
    judgement, reason = _decide(claim, found, controls)
    return Verdict(claim, judgement, reason, subject, found, controls)


def _awaiting(claim: Claim, subject: str) -> Verdict:
    """Not run; of what no build on this machine could run: cannot be tested here."""
    verdict = not_run(claim, f"it awaits {claim.awaits}", subject)
    return replace(verdict, judgement=Judgement.untestable) if claim.needs else verdict


class NoTables:
    """Tables of a page that looks at no checkpoint: there are none."""

    def table(self, name: str) -> pd.DataFrame:
        """Refuse: a claim that is computed reads no record."""
        raise ClaimError("a claim that needs no checkpoint reads no table", found=name)


def judge_computed(claims: Claims, chapter: str) -> pd.DataFrame:
    """Verdicts of a chapter that looks at no checkpoint of the study, with `about` beside them.

    Those are of its claims that need none, and, as not run, of those that await runs or checkpoints.
    """
    own = [claim for claim in claims.claims if claim.chapter == chapter]
    about = {claim.id: name for claim in own for name in claim.subjects if name == COMPUTED or claim.awaits}
    subjects = {COMPUTED: "computed, no checkpoint"}
    judged = [
        judge(claim, NoTables(), subjects.get(about[claim.id], "no checkpoint here"), claims.confidence)
        for claim in own
        if claim.id in about
    ]
    table = verdict_table(judged)
    return table.assign(about=[about[name] for name in table["claim"]])


def not_run(claim: Claim, reason: str, subject: str = "nothing") -> Verdict:
    """The verdict on a claim whose chapter has no pairs to look at, or whose runs have not been made."""
    nothing = missing(reason)
    controls = tuple((control, nothing) for control in claim.controls)
    return Verdict(claim, Judgement.not_run, reason, subject, nothing, controls)


def _decide(
    claim: Claim, found: Estimate, controls: Sequence[tuple[Control, Estimate]]
) -> tuple[Judgement, str]:
    if not found.has_interval:
        needs = f"; it needs {claim.needs.replace('-', ' ')}" if claim.needs else ""
        return Judgement.untestable, found.reason + needs
    if claim.rule.contradicted(found):
        return Judgement.contradicted, f"{_interval(found)} lies below {claim.rule.contradicted_below:g}"
    if not claim.rule.holds(found):
        return Judgement.not_reproduced, f"{_interval(found)}, but the rule is: {claim.rule.text()}"
    untested = [(rule, value) for rule, value in controls if not value.has_interval]
    if untested:
        rule, value = untested[0]
        return Judgement.untestable, f"the rule holds, but not tested is {rule.says}: {value.reason}"
    return _decide_controls(found, controls)


def _decide_controls(found: Estimate, controls: Sequence[tuple[Control, Estimate]]) -> tuple[Judgement, str]:
    failed = [(rule, value) for rule, value in controls if not rule.holds(value)]
    for name, control in CONTROLS.items():
        for rule, value in failed:
            if rule.kind == name:
                told = f"{_interval(found)}, but {rule.says} is {_interval(value)}; {rule.text()}"
                return control.verdict, told
    told = "and every control holds" if controls else "and the rule names no control"
    return Judgement.reproduced, f"{_interval(found)}, {told}"


def _interval(found: Estimate) -> str:
    if found.error == 0:
        return f"{found.value:.3g}, computed over {found.n} {found.unit}"
    return f"{found.value:.3g} [{found.low:.3g}, {found.high:.3g}] over {found.n} {found.unit}"


def verdict_table(verdicts: Iterable[Verdict]) -> pd.DataFrame:
    """One row for each claim's own estimate and one for each control: `estimates.verdict_frame.COLUMNS`."""
    rows = []
    for verdict in verdicts:
        claim = verdict.claim
        common = {
            "claim": claim.id,
            "title": claim.title,
            "chapter": claim.chapter,
            "figure": claim.figure or "",
            "made_by": claim.made_by,
            "informed_by_prototype": claim.informed_by_prototype,
            "measure": " ".join(claim.measure.split()),
            "free": ", ".join(claim.free),
            "needs": claim.needs or "",
            "awaits": claim.awaits or "",
            "changed": " ".join(" ".join(change.reason.split()) for change in claim.changed),
            "place": claim.paper.place,
            "verdict": str(verdict.judgement),
            "reason": verdict.reason,
            "subject": verdict.subject,
        }
        rows.append(common | _line(RULE, claim.paper.says, claim.rule, verdict.estimate))
        rows += [common | _line(rule.kind, rule.says, rule, value) for rule, value in verdict.controls]
    return typed(rows, {name: column.dtype for name, column in COLUMNS.items()})


def _line(kind: str, says: str, rule: Rule, found: Estimate) -> dict:
    numbers = asdict(found)
    numbers["missing"] = numbers.pop("reason")
    holds = rule.holds(found) if found.has_interval else None
    return {
        "kind": kind,
        "says": says,
        "estimate": rule.estimate,
        **numbers,
        "rule": rule.text(),
        "at_least": rule.at_least,
        "lower": rule.within[0] if rule.within else None,
        "upper": rule.within[1] if rule.within else None,
        "contradicted_below": rule.contradicted_below,
        "neutral": rule.neutral,
        "holds": holds,
    }
