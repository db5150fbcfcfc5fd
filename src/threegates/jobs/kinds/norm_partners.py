"""The RL run whose update norms another run is scaled to, so that both are compared at equal norm."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from threegates.jobs.jobs import Cut
from threegates.jobs.sources import StudyPair

#: The RL run whose norms another run takes: of these algorithms, the first that has its seed.
PARTNERS = ("grpo", "dapo", "reinforce++")


def norm_partner(pair: StudyPair, pairs: Sequence[StudyPair]) -> StudyPair | None:
    """The RL run with the base, data and seed of a run that is not RL's own; None where there is none."""
    own = pair.facts()
    if own["method"] == "rl" or own.get("seed") is None:
        return None
    same = ("base", "data", "seed")
    found = {
        facts["algorithm"]: other
        for other in pairs
        if (facts := other.facts())["method"] == "rl" and all(facts.get(key) == own[key] for key in same)
    }
    return next((found[name] for name in PARTNERS if name in found), None)


def cut_beside_partners(pairs: Sequence[StudyPair], options: dict) -> Iterator[Cut]:
    """One job a pair with these options, together with its partner in norm where it has one."""
    for pair in pairs:
        partner = norm_partner(pair, pairs)
        sources = {"base": pair.base, "tuned": pair.tuned} | ({"partner": partner.tuned} if partner else {})
        named = {"name": pair.name, "partner_name": partner.name if partner else ""}
        yield Cut(pair.name, sources, {**options, **named})
