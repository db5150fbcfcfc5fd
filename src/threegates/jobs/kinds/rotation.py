"""Masks across a change of coordinates: of runs from a base and from its rotated twin, and of those bases."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

from threegates.checkpoints.formats.frame import Frame, read_frame
from threegates.digest import value_digest
from threegates.errors import PairError
from threegates.jobs.jobs import Cut, Kind, folder_at, opened_at
from threegates.jobs.kept import in_bf16
from threegates.jobs.sources import StudyPair
from threegates.measures import rotation


def _cut_runs(pairs: Sequence[StudyPair], options: dict) -> Iterator[Cut]:
    """One job for every run from a rotated base, with the untouched runs of its seed and of the next one."""
    for pair, frame in _in_frames(pairs):
        partners = untouched_partners(pair, pairs)
        sources = {"base": _untouched(pair, pairs)[0].base, "rotated": pair.base, "tuned": pair.tuned}
        sources |= {place: one.tuned for place, one in partners.items()}
        names = {"tuned": pair.name, **{place: one.name for place, one in partners.items()}}
        yield Cut(pair.name, sources, {**options, "names": names, "frame": frame})


def untouched_partners(pair: StudyPair, pairs: Sequence[StudyPair]) -> dict[str, StudyPair]:
    """Untouched runs beside a rotated one: `same` has its seed, `other` the next, cyclically, where there is
    one."""
    by_seed = {one.facts()["seed"]: one for one in _untouched(pair, pairs)}
    seed = pair.facts()["seed"]
    others = sorted((one for one in by_seed if one != seed), key=lambda one: (one < seed, one))
    found = {"same": by_seed.get(seed), "other": by_seed[others[0]] if others else None}
    return {place: one for place, one in found.items() if one is not None}


def _untouched(pair: StudyPair, pairs: Sequence[StudyPair]) -> list[StudyPair]:
    """Runs that differ from one of a rotated base in that base and in the seed alone."""
    entry, own = pair.base.entry, pair.facts()
    same = ("method", "algorithm", "data", "rate")
    return [
        other
        for other in pairs
        if entry is not None
        and other.base.label == entry.base
        and (facts := other.facts()).get("seed") is not None
        and all(facts.get(key) == own.get(key) for key in same)
    ]


def _cut_bases(pairs: Sequence[StudyPair], options: dict) -> Iterator[Cut]:
    """One job for every rotated base; nothing in it is drawn."""
    bases = {pair.base.label: (pair, frame) for pair, frame in _in_frames(pairs)}
    for label, (pair, frame) in bases.items():
        assert pair.base.entry is not None
        kind = pair.base.entry.labels.get("frame", label)
        sources = {"base": _untouched(pair, pairs)[0].base, "rotated": pair.base}
        yield Cut(label, sources, {"frame": frame}, {"base": label, "frame": kind})


def _in_frames(pairs: Sequence[StudyPair]) -> list[tuple[StudyPair, str]]:
    """Runs from rotated bases that have untouched ones beside them, each with the digest of its frame."""
    known = [(pair, read_frame(pair.base.checkpoint.folder)) for pair in pairs]
    found = [
        (pair, value_digest(frame.json()))
        for pair, frame in known
        if frame != Frame() and _untouched(pair, pairs)
    ]
    if pairs and not found:
        raise _no_frame()
    return found


def _measure_run(
    places: dict[str, str], names: dict[str, str], frame: str, seed: int
) -> dict[str, pd.DataFrame]:
    opened = {place: opened_at(text) for place, text in places.items()}
    found = rotation.Coordinates.of(opened["rotated"], _frame(places["rotated"], frame))
    run = rotation.Run(names["tuned"], opened["rotated"], opened["tuned"])
    same, other = (
        rotation.Run(names[place], opened["base"], in_bf16(opened[place], opened["base"]))
        if place in names
        else None
        for place in ("same", "other")
    )
    rows = rotation.measure_rotation(run, found, same=same, other=other, seed=seed)
    return {"rotation": rows}


def _measure_frame(places: dict[str, str], frame: str) -> dict[str, pd.DataFrame]:
    base, rotated = (opened_at(places[place]) for place in ("base", "rotated"))
    return {"frame": rotation.measure_frame(base, rotated, _frame(places["rotated"], frame))}


def _frame(place: str, digest: str) -> Frame:
    """The frame of a folder, which no digest of its tensors covers.

    Raises
    ------
    PairError : it is not the one that the job was made for.
    """
    folder = folder_at(place)
    found = read_frame(folder)
    if value_digest(found.json()) != digest:
        raise PairError(
            "the frame of a rotated base has changed since its job was made",
            where=folder,
            remedy="run the chapter again",
        )
    return found


def _no_frame() -> PairError:
    return PairError(
        "this chapter compares runs from a base and from the same base in other coordinates",
        expected="a run from a base with a frame.json, and one from the base that this was made of",
        remedy="choose entries of both by --pair, or a chapter that looks at one pair",
    )


ROTATION = Kind(
    name="rotation",
    tables={"rotation": rotation.ROTATION_COLUMNS},
    root="threegates.measures.rotation.measure_rotation",
    cut=_cut_runs,
    measure=_measure_run,
)
FRAME = Kind(
    name="frame",
    tables={"frame": rotation.FRAME_COLUMNS},
    root="threegates.measures.rotation.measure_frame",
    cut=_cut_bases,
    measure=_measure_frame,
)
