"""The RL run whose update norms another run is scaled to, so that both are compared at equal norm."""

from __future__ import annotations

from collections.abc import Sequence

from threegates.jobs.sources import Source, StudyPair

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


def beside_partner(pair: StudyPair, pairs: Sequence[StudyPair]) -> tuple[dict[str, Source], dict[str, str]]:
    """Checkpoints of a pair and of its partner in norm, and the parameters that name both."""
    partner = norm_partner(pair, pairs)
    sources = {"base": pair.base, "tuned": pair.tuned}
    sources |= {"partner": partner.tuned} if partner else {}
    return sources, {"name": pair.name, "partner_name": partner.name if partner else ""}
