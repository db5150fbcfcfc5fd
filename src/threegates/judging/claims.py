"""claims.yaml, and the verdict on each claim: computed by rules that were written before the numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from threegates.errors import ClaimError
from threegates.estimates.intervals import Estimate, missing
from threegates.estimates.rows import MissingRecordError, Tables
from threegates.estimates.verdict_frame import COLUMNS, EFFECT, RULE
from threegates.figures.numbers import interval, number
from threegates.jobs.subjects import CLAIMED, COMPUTED, LAB, described
from threegates.judging.verdicts import CONTROLS, EMPIRICAL, Controlled, Judgement, MadeBy, Nature
from threegates.measures.by_tensor import typed
from threegates.register import ESTIMATES, estimate


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Place(_Strict):
    """Where the paper makes the claim, and its words in short."""

    place: str
    says: str


class Standing(Enum):
    """Where a whole interval lies beside a rule's tolerance."""

    holds = "where the rule wants it"
    contrary = "as far on the other side"
    none = "between the tolerance and its mirror image"
    excluded = "below the tolerance"
    open = "on both sides of the tolerance"


class Rule(_Strict):
    """A threshold or an equivalence margin for the whole confidence interval of one estimate.

    `neutral` is the value that says that there is no effect: 0 of a difference, 1 of a ratio. A contrary
    effect has to be as large as the one that is asked for: `contrary` mirrors the threshold about it. A
    level, a check of arithmetic or of a theorem has none; `contradicted_below` says there what contradicts.
    """

    estimate: str
    at_least: float | None = None
    at_most: float | None = None
    within: tuple[float, float] | None = None
    contradicted_below: float | None = None
    neutral: float | None = None

    @model_validator(mode="after")
    def _check(self) -> Rule:
        if sum(one is not None for one in (self.at_least, self.at_most, self.within)) != 1:
            raise ValueError("a rule has either at_least, at_most or within")
        if self.at_most is not None and (self.neutral is None or self.at_most < self.neutral):
            raise ValueError("at_most says by how much an effect may lie above neutral")
        if self.contradicted_below is not None and self.neutral is not None:
            raise ValueError("contradicted_below has no place beside neutral: margins are symmetric about it")
        return self

    @property
    def contrary(self) -> float | None:
        """A whole interval at or below this shows the contrary; None where nothing does.

        As far from `neutral` as the threshold, on the other side: 1/t of a ratio, 2 neutral − t otherwise. Of
        a threshold that lies there itself, as that of "no worse by more than", it is the threshold.
        """
        if self.at_least is None or self.neutral is None:
            return self.contradicted_below
        if self.at_least <= self.neutral:
            return self.at_least
        return 1 / self.at_least if self.neutral == 1 else 2 * self.neutral - self.at_least

    def holds(self, found: Estimate) -> bool:
        """Whether the whole interval is where the rule wants it."""
        if self.within is not None:
            return self.within[0] <= found.low and found.high <= self.within[1]
        if self.at_most is not None:
            return found.high <= self.at_most
        return found.low >= (self.at_least or 0.0)

    def standing(self, found: Estimate) -> Standing:
        """Where an interval lies beside the tolerance."""
        if self.holds(found):
            return Standing.holds
        if self.within is not None:
            outside = found.high < self.within[0] or found.low > self.within[1]
            return Standing.contrary if outside else Standing.open
        if self.at_most is not None:
            return Standing.contrary if found.low > self.at_most else Standing.open
        assert self.at_least is not None
        if self.contrary is not None and found.high <= self.contrary:
            return Standing.contrary
        if found.high >= self.at_least:
            return Standing.open
        no_contrary = self.neutral is not None and self.contrary is not None and found.low > self.contrary
        return Standing.none if no_contrary else Standing.excluded

    def text(self) -> str:
        """The rule in a few words."""
        if self.within is not None:
            return f"whole interval within {self.within[0]:g} to {self.within[1]:g}"
        if self.at_most is not None:
            return f"whole interval at or below {self.at_most:g}"
        return f"whole interval at or above {self.at_least:g}"


class Control(Rule):
    """A rule that the claim must also meet with something held fixed, or against a null.

    `kind` is what explains the claim if it does not, and `holds_fixed` what is equal on both sides, in words.
    `panel` is its name in the panel of controls, if it is of it. `awaits` says which runs or measurements its
    estimate is for, where these have not been made.
    """

    kind: Controlled
    says: str
    panel: str | None = None
    holds_fixed: str | None = None
    awaits: str | None = None


class Panel(_Strict):
    """A control that every claim on RL against SFT has, whatever comes of it."""

    name: str
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
    it is judged on, each by the same rule. `nature` says whether it is an effect, or holds or fails as
    arithmetic, as a theorem, by what was chosen here, of noise alone or of the base alone. A claim that is
    `against_sft` has every control of the panel.
    """

    id: str
    title: Annotated[str, Field(max_length=60)]
    chapter: str
    figure: str | None = None
    paper: Place
    made_by: MadeBy
    nature: Nature = EFFECT
    against_sft: bool = False
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
        named = [rule.estimate for rule in (self.rule, *self.controls) if not getattr(rule, "awaits", None)]
        unknown = [name for name in named if name not in ESTIMATES]
        if early := [one.estimate for one in self.controls if one.awaits and one.estimate in ESTIMATES]:
            raise ValueError(f"the control '{early[0]}' awaits what can be computed")
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
    panel: list[Panel]
    claims: list[Claim]

    @model_validator(mode="after")
    def _unique(self) -> Claims:
        names = [claim.id for claim in self.claims]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"an id is used twice: {', '.join(repeated)}")
        return self

    @model_validator(mode="after")
    def _whole_panels(self) -> Claims:
        wanted = {one.name: one.kind for one in self.panel}
        for claim in self.claims:
            found = {one.panel: one.kind for one in claim.controls if one.panel}
            if unknown := sorted(set(found) - set(wanted)):
                raise ValueError(f"claim '{claim.id}': the panel has no control '{unknown[0]}'")
            if claim.against_sft and (lost := sorted(set(wanted) - set(found))):
                raise ValueError(f"claim '{claim.id}' leaves out of the panel: {', '.join(lost)}")
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
    controls = tuple((rule, _of_control(rule, tables, confidence)) for rule in claim.controls)
    judgement, reason = _decide(claim, found, controls)
    return Verdict(claim, judgement, reason, subject, found, controls)


def _of_control(rule: Control, tables: Tables, confidence: float) -> Estimate:
    if rule.awaits:
        return missing(f"it awaits {rule.awaits}")
    return estimate(rule.estimate, tables, confidence)


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


_OF_EFFECT = {
    Standing.contrary: Judgement.contradicted,
    Standing.none: Judgement.no_effect,
    Standing.excluded: Judgement.not_reproduced,
    Standing.open: Judgement.cannot_tell,
}


def _decide(
    claim: Claim, found: Estimate, controls: Sequence[tuple[Control, Estimate]]
) -> tuple[Judgement, str]:
    if found.unmet:
        return Judgement.unmet, found.unmet
    if found.undecided:
        return Judgement.cannot_tell, found.undecided
    if not found.has_interval:
        needs = f"; it needs {claim.needs.replace('-', ' ')}" if claim.needs else ""
        return Judgement.untestable, found.reason + needs
    standing = claim.rule.standing(found)
    if standing is Standing.holds:
        return _decide_controls(claim, found, controls)
    empirical = claim.nature in EMPIRICAL
    judgement = _OF_EFFECT[standing] if empirical else _of_statement(claim, found, standing)
    told = f"{_interval(found)}, {_beside(claim, standing)}, but the rule is: {claim.rule.text()}"
    return judgement, told + (_less_contrary(controls) if judgement is Judgement.contradicted else "")


def _beside(claim: Claim, standing: Standing) -> str:
    """Where an interval lies, in words. A band has no other side, and a statement no contrary effect."""
    mirrored = claim.rule.within is None and claim.nature in EMPIRICAL
    return standing.value if mirrored or standing is not Standing.contrary else "outside of the tolerance"


def _less_contrary(controls: Sequence[tuple[Control, Estimate]]) -> str:
    """Beside what contradicts a claim: the controls in which the contrary effect is not so large."""
    tested = [(rule, value) for rule, value in controls if value.has_interval]
    less = [one for one in tested if one[0].standing(one[1]) is not Standing.contrary]
    return "".join(f"; not so {rule.says}: {_interval(value)}" for rule, value in less)


def _of_statement(claim: Claim, found: Estimate, standing: Standing) -> Judgement:
    """Of what does not hold with its whole interval: a theorem or an identity fails if it fails anywhere."""
    broken = claim.nature in ("theorem", "identity") and found.value < (claim.rule.at_least or -math.inf)
    return Judgement.cannot_tell if standing is Standing.open and not broken else Judgement.fails


def _decide_controls(
    claim: Claim, found: Estimate, controls: Sequence[tuple[Control, Estimate]]
) -> tuple[Judgement, str]:
    if failed := _failed(controls):
        return _explained(found, failed)
    tested = [(rule, value) for rule, value in controls if value.has_interval]
    undecided = [one for one in tested if one[0].standing(one[1]) is Standing.open]
    if undecided:
        rule, value = undecided[0]
        told = f"{_interval(found)}, but it cannot be told of {rule.says}: {_interval(value)}; {rule.text()}"
        return Judgement.cannot_tell, told
    untested = [(rule, value) for rule, value in controls if not value.has_interval]
    if untested:
        rule, value = untested[0]
        return Judgement.untestable, f"the rule holds, but not tested is {rule.says}: {value.reason}"
    told = "and every control holds" if controls else "and the rule names no control"
    judgement = Judgement.reproduced if claim.nature in EMPIRICAL else Judgement.holds
    return judgement, f"{_interval(found)}, {told}"


def _failed(controls: Iterable[tuple[Control, Estimate]]) -> list[tuple[Control, Estimate]]:
    """The controls that fail with their whole interval, those of the kind that names the verdict first."""
    tested = [(rule, value) for rule, value in controls if value.has_interval]
    failed = [one for one in tested if one[0].standing(one[1]) not in (Standing.holds, Standing.open)]
    return sorted(failed, key=lambda one: list(CONTROLS).index(one[0].kind))


def _explained(found: Estimate, failed: Sequence[tuple[Control, Estimate]]) -> tuple[Judgement, str]:
    """The verdict of the first control that fails with its whole interval.

    The reason names what else explains the claim, and says where the effect is turned round.
    """
    rule, value = failed[0]
    kinds = list(dict.fromkeys(rule.kind for rule, _ in failed))
    told = f"{_interval(found)}, but {rule.says} is {_interval(value)}; {rule.text()}"
    mirrored = rule.within is None and rule.standing(value) is Standing.contrary
    turned = ", the contrary effect" if mirrored else ""
    also = f"; as well by {' and by '.join(kinds[1:])}" if kinds[1:] else ""
    return CONTROLS[kinds[0]].verdict, told + turned + also


def _interval(found: Estimate) -> str:
    if found.error == 0:
        return f"{number(found.value)}, computed over {found.n} {found.unit}"
    return f"{number(found.value)} {interval(found.low, found.high)} over {found.n} {found.unit}"


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
            "nature": claim.nature,
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
        failed = _failed(verdict.controls)
        named = [rule for rule, _ in failed[:1] if CONTROLS[rule.kind].verdict is verdict.judgement]
        rows.append(common | _line(RULE, claim.paper.says, claim.rule, verdict.estimate))
        rows += [
            common | _line(rule.kind, rule.says, rule, value) | {"names": rule in named}
            for rule, value in verdict.controls
        ]
    return typed(rows, {name: column.dtype for name, column in COLUMNS.items()})


def _line(kind: str, says: str, rule: Rule, found: Estimate) -> dict:
    numbers = asdict(found)
    numbers["missing"] = numbers.pop("reason") or numbers["unmet"]
    del numbers["unmet"], numbers["undecided"]
    holds = rule.holds(found) if found.has_interval else None
    return {
        "kind": kind,
        "says": says,
        "estimate": rule.estimate,
        **numbers,
        "rule": rule.text(),
        "at_least": rule.at_least,
        "lower": rule.within[0] if rule.within else None,
        "upper": rule.within[1] if rule.within else rule.at_most,
        "contrary": rule.contrary,
        "neutral": rule.neutral,
        "holds": holds,
        "names": False,
    }
