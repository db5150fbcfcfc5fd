"""The verdicts: what each is called, what it says of a claim and how it looks; and what controls can turn.

Every list of verdicts is this table. A colour never stands alone: word, mark or letter repeat it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

#: What a control of claims.yaml controls for.
Controlled = Literal["matched", "storage"]
#: Letter of a verdict that says nothing of the claim.
NO_LETTER = "–"
_HOLDS = {True: "holds", False: "does not hold"}
_NOT_TESTED = "not tested"


class Judgement(StrEnum):
    """What can be said of a claim, from the verdict that says least to the one that says most."""

    not_run = "not run"
    untestable = "cannot be tested here"
    contradicted = "contradicted"
    not_reproduced = "not reproduced"
    gone_when_matched = "reproduced raw, gone when matched"
    storage = "reproduced, not distinguishable from storage"
    reproduced = "reproduced"


@dataclass(frozen=True)
class VerdictKind:
    """A verdict.

    word : its name. meaning : what it says of claims, at the head of a page's summary. short : in the legend
    of a figure whose claims have intervals. look : class of its colour in the book's style sheet. colour,
    marker : in figures, of matplotlib. letter : in cells of a figure.
    negative : whether it says that an effect was not shown. open : whether it says nothing of the claim.
    """

    word: str
    meaning: str
    short: str
    look: str
    colour: str
    marker: str
    letter: str = NO_LETTER
    negative: bool = False
    open: bool = False

    @property
    def cell_marker(self) -> str:
        """Its marker where cells are drawn by their letters: a dash where there is none."""
        return "_" if self.letter == NO_LETTER else self.marker


#: Every verdict by its word, from what says most for a claim to what says nothing.
VERDICTS: dict[str, VerdictKind] = {
    kind.word: kind
    for kind in (
        VerdictKind(
            word=str(Judgement.reproduced),
            meaning="Hold as trained and in every control",
            short="reproduced",
            look="tg-reproduced",
            colour="#009E73",
            marker="o",
            letter="R",
        ),
        VerdictKind(
            word=str(Judgement.storage),
            meaning="Hold as trained, but not beyond what storage gives",
            short="not beyond storage",
            look="tg-storage",
            colour="#E69F00",
            marker="s",
            letter="S",
        ),
        VerdictKind(
            word=str(Judgement.gone_when_matched),
            meaning="Hold as trained, but not at matched norm or learning rate",
            short="gone when matched",
            look="tg-matched",
            colour="#B8860B",
            marker="D",
            letter="M",
        ),
        VerdictKind(
            word=str(Judgement.not_reproduced),
            meaning="Not shown, for the interval does not meet the rule",
            short="not reproduced",
            look="tg-not",
            colour="#56B4E9",
            marker="v",
            letter="N",
            negative=True,
        ),
        VerdictKind(
            word=str(Judgement.contradicted),
            meaning="Contradicted",
            short="contradicted",
            look="tg-not",
            colour="#D55E00",
            marker="X",
            letter="C",
            negative=True,
        ),
        VerdictKind(
            word=str(Judgement.untestable),
            meaning="Cannot be tested here",
            # Its rule may have an interval all the same.
            short="a control is not tested",
            look="tg-open",
            colour="#7A7A7A",
            marker="h",
            open=True,
        ),
        VerdictKind(
            word=str(Judgement.not_run),
            meaning="Not run",
            short="not run",
            look="tg-open",
            colour="#7A7A7A",
            marker="_",
            open=True,
        ),
    )
}
#: Words of the verdicts that say nothing of a claim.
OPEN = tuple(word for word, kind in VERDICTS.items() if kind.open)


@dataclass(frozen=True)
class ControlKind:
    """What a control controls for.

    verdict : of a claim whose rule holds and whose control does not. short : before a control's words.
    legend, marker : in figures.
    """

    verdict: Judgement
    short: str
    legend: str
    marker: str


#: Colour of every control in figures.
CONTROL_COLOUR = "#6F6F6F"
#: Where controls of both kinds fail, the first decides.
CONTROLS: dict[Controlled, ControlKind] = {
    "matched": ControlKind(Judgement.gone_when_matched, "matched", "when matched", "2"),
    "storage": ControlKind(Judgement.storage, "beyond storage", "under a storage null", "|"),
}


def holding(holds: object, why_not: str = "") -> str:
    """Whether a rule or a control holds, in words; where that is not known, why not."""
    if holds is None or holds not in _HOLDS:
        return f"{_NOT_TESTED}: {why_not}" if why_not else _NOT_TESTED
    return _HOLDS[bool(holds)]
