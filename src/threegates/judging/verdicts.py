"""The verdicts: what each is called, what it says of a claim and how it looks; and what controls can turn.

Every list of verdicts is this table. A colour never stands alone: word, mark or letter repeat it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

#: What a control of claims.yaml controls for, which is what explains a claim whose control fails.
Controlled = Literal["size", "data", "rate", "storage", "coordinates"]
#: What a claim is: an effect of training that could be otherwise; an identity of arithmetic or a statement on
#: what is printed; a theorem or proposition; what follows from a rate or grid that was chosen here; what
#: rounded noise does where nothing is trained; or a premise, which is of the base and of no run.
Nature = Literal["effect", "identity", "theorem", "choice", "noise", "premise"]
#: What is judged with an effect's words: it could be otherwise, and can be contradicted.
EMPIRICAL: tuple[Nature, ...] = ("effect", "premise")
#: Who makes a claim.
MadeBy = Literal["paper", "reading of the paper", "us"]
#: Letter of a verdict that says nothing of the claim.
NO_LETTER = "–"
_HOLDS = {True: "holds", False: "does not hold"}
_NOT_TESTED = "not tested"


class Judgement(StrEnum):
    """What can be said of a claim, from the verdict that says least to the one that says most."""

    not_run = "not run"
    untestable = "cannot be tested here"
    unmet = "assumption unmet"
    fails = "does not hold"
    contradicted = "contradicted"
    not_reproduced = "not reproduced"
    no_effect = "no effect of the size asked for"
    cannot_tell = "cannot be told"
    by_size = "explained by size"
    by_data = "explained by data"
    by_rate = "explained by rate"
    by_storage = "explained by storage"
    by_coordinates = "explained by coordinates"
    holds = "holds"
    reproduced = "reproduced"


@dataclass(frozen=True)
class Maker:
    """Who makes claims, in words.

    name : where tables are filtered. claims : its claims, in a sentence that counts them. row, card : before
    the place of a claim, in a table's row and on a card; the paper is not named.
    """

    name: str
    claims: str
    row: str = ""
    card: str = ""


#: Every maker of claims, by its word in claims.yaml.
MAKERS: dict[MadeBy, Maker] = {
    "paper": Maker("the paper", "claims of the paper"),
    "reading of the paper": Maker(
        "reading of the paper",
        "our reading of the paper, which names no such number",
        "our reading of the paper · ",
        "Our reading of the paper. ",
    ),
    "us": Maker("this study", "our own controls and corrections", "claim of this study · ", "Our control. "),
}


@dataclass(frozen=True)
class VerdictKind:
    """A verdict.

    word : its name. meaning : what it says of claims, at the head of a page's summary. short : in the legend
    of a figure whose claims have intervals. look : class of its colour in the book's style sheet. colour,
    marker : in figures, of matplotlib. letter : in cells of a figure.
    negative : whether it says that an effect was not shown. open : whether it says nothing of the claim.
    supports : whether it says that the claim is right, raw and beside its controls.
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
    supports: bool = False

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
            supports=True,
        ),
        VerdictKind(
            word=str(Judgement.holds),
            meaning="Hold, as arithmetic or theorem, by choice or of noise alone",
            short="holds",
            look="tg-reproduced",
            colour="#117733",
            marker="^",
            letter="H",
            supports=True,
        ),
        VerdictKind(
            word=str(Judgement.by_coordinates),
            meaning="Hold in the coordinates that they are seen in, but not in the original ones",
            short="explained by coordinates",
            look="tg-explained",
            colour="#17BECF",
            marker="H",
            letter="X",
        ),
        VerdictKind(
            word=str(Judgement.by_storage),
            meaning="Hold as trained, but storage alone gives as much",
            short="explained by storage",
            look="tg-explained",
            colour="#E69F00",
            marker="s",
            letter="S",
        ),
        VerdictKind(
            word=str(Judgement.by_rate),
            meaning="Hold as trained, but not at equal learning rate or steps",
            short="explained by rate",
            look="tg-explained",
            colour="#8C564B",
            marker="p",
            letter="L",
        ),
        VerdictKind(
            word=str(Judgement.by_data),
            meaning="Hold as trained, but not on data of the base's own kind at RL's rate",
            short="explained by data",
            look="tg-explained",
            colour="#CC79A7",
            marker="P",
            letter="D",
        ),
        VerdictKind(
            word=str(Judgement.by_size),
            meaning="Hold as trained, but not at equal size",
            short="explained by size",
            look="tg-explained",
            colour="#B8860B",
            marker="D",
            letter="Z",
        ),
        VerdictKind(
            word=str(Judgement.cannot_tell),
            meaning="Cannot be told: the interval holds values on both sides of the tolerance",
            short="cannot be told",
            look="tg-open",
            colour="#A6A6A6",
            marker="*",
            letter="?",
            negative=True,
        ),
        VerdictKind(
            word=str(Judgement.no_effect),
            meaning="No effect of the size asked for, either way",
            short="no effect of that size",
            look="tg-not",
            colour="#6A5ACD",
            marker="d",
            letter="E",
            negative=True,
        ),
        VerdictKind(
            word=str(Judgement.not_reproduced),
            meaning="Not shown: the whole interval lies below what the rule asks for",
            short="not reproduced",
            look="tg-not",
            colour="#56B4E9",
            marker="v",
            letter="N",
            negative=True,
        ),
        VerdictKind(
            word=str(Judgement.contradicted),
            meaning="Contradicted: the contrary effect is as large as the rule asks for",
            short="contradicted",
            look="tg-not",
            colour="#D55E00",
            marker="X",
            letter="C",
            negative=True,
        ),
        VerdictKind(
            word=str(Judgement.fails),
            meaning="Do not hold, as arithmetic or theorem, by choice or of noise alone",
            short="does not hold",
            look="tg-not",
            colour="#882255",
            marker=">",
            letter="F",
            negative=True,
        ),
        VerdictKind(
            word=str(Judgement.unmet),
            meaning="Say nothing here, for their assumption is not met",
            short="assumption unmet",
            look="tg-open",
            colour="#999933",
            marker="<",
            letter="A",
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
#: Where controls of several kinds fail, the first names the verdict and its reason names the others.
CONTROLS: dict[Controlled, ControlKind] = {
    "size": ControlKind(Judgement.by_size, "at equal size", "at equal size", "2"),
    "data": ControlKind(Judgement.by_data, "on like data", "on like data", "1"),
    "rate": ControlKind(Judgement.by_rate, "at equal rate", "at equal rate or steps", "+"),
    "storage": ControlKind(Judgement.by_storage, "beyond storage", "under a storage null", "|"),
    "coordinates": ControlKind(Judgement.by_coordinates, "in one frame", "in the original frame", "x"),
}


def holding(holds: object, why_not: str = "") -> str:
    """Whether a rule or a control holds, in words; where that is not known, why not."""
    if holds is None or holds not in _HOLDS:
        return f"{_NOT_TESTED}: {why_not}" if why_not else _NOT_TESTED
    return _HOLDS[bool(holds)]
