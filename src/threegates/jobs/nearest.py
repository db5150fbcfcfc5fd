"""Which of several bases a tuned checkpoint was trained from: how far it lies from each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from threegates.checkpoints.adapters.config import is_adapter, read_config
from threegates.checkpoints.pairs import Status, align, load_rows
from threegates.checkpoints.preflight import stored_tensors
from threegates.errors import NotFiniteError, PairError
from threegates.jobs.sources import StudyPair, own_pair
from threegates.measures.changes import count
from threegates.measures.floors import floor_of

_COLUMNS = ("base", "distance", "floor", "unchanged", "compared", "tensors", "why_not")


def nearest(tuned: str, bases: Sequence[str]) -> pd.DataFrame:
    """How far a tuned checkpoint lies from each base, the nearest first.

    Parameters
    ----------
    tuned, bases : folders, entries of a manifest or ORG/REPO[@REVISION], as `own_pair` of jobs.sources has
        them.

    Returns
    -------
    One row a base. distance : ‖ΔW‖ / ‖W‖ over all compared weights, as stored. floor : what rounding alone
    gives of it, where weights are stored as codes, else 0. unchanged : share of these that are equal in bf16.
    compared : share of the tuned side's weights that could be compared. tensors : how many were. why_not :
    why a base cannot be compared, else empty; such bases stand last.

    Raises
    ------
    PairError : no base is given, or none can be compared. CheckpointError, ManifestError : a name stands for
        nothing that can be opened.
    """
    if not bases:
        raise PairError("there is no base to choose from", remedy="give --base, once for each")
    if is_adapter(Path(tuned)):
        raise PairError(
            "an adapter lies equally near to all bases that it fits",
            where=tuned,
            found=f"a config that names {read_config(Path(tuned)).base or 'no base'}",
            remedy="give a whole checkpoint",
        )
    found = pd.DataFrame(
        [_row(base, own_pair(base, tuned)) for base in dict.fromkeys(bases)], columns=list(_COLUMNS)
    )
    if found["distance"].isna().all():
        raise PairError(
            "the tuned checkpoint can be compared with none of these bases",
            where=tuned,
            found="; ".join(f"{row.base}: {row.why_not}" for row in found.itertuples()),
            remedy="`threegates preflight` says of one pair what stands in the way",
        )
    return found.sort_values("distance", kind="stable", na_position="last").reset_index(drop=True)


def _row(name: str, pair: StudyPair) -> dict:
    base, tuned = pair.base.checkpoint, pair.tuned.checkpoint
    try:
        compared = [row for row in align(base, tuned) if row.status is Status.compared]
    except PairError as error:
        return {"base": name, "distance": math.nan, "why_not": error.what}
    counted, floors = [], []
    for row in compared:
        try:
            counted.append(count(load_rows(base, tuned, row.name)))
            floors.append(floor_of(base, tuned, row.name))
        except NotFiniteError:
            # One such tensor says nothing of the others.
            continue
    size = sum(one.counts.size for one in counted)
    stored = sum(info.size for info in stored_tensors(tuned))
    norm = _length(one.norm_base for one in counted) or 1
    return {
        "base": name,
        "distance": _length(one.norm_delta for one in counted) / norm,
        "floor": _length(one.norm for one in floors if one is not None) / norm,
        "unchanged": 1 - sum(one.counts.changed for one in counted) / max(size, 1),
        "compared": size / max(stored, 1),
        "tensors": len(counted),
        "why_not": "" if counted else "no tensor is finite",
    }


def _length(norms: Iterable[float]) -> float:
    return math.hypot(*norms)


def told(found: pd.DataFrame) -> str:
    """The rows in words, the nearest first, and which base is the likely one."""
    lines = []
    for row in found.to_dict("records"):
        if row["why_not"]:
            lines.append(f"{row['base']}: not compared: {row['why_not']}")
            continue
        far, same = f"‖ΔW‖ / ‖W‖ {row['distance']:.3g}", f"unchanged in bf16 {row['unchanged']:.4f}"
        far += f" (rounding to codes alone gives {row['floor']:.3g})" if row["floor"] else ""
        over = f"over {row['tensors']:.0f} tensors with {row['compared']:.2%} of the weights"
        lines.append(f"{row['base']}: {far}, {same}, {over}")
    known = found[found["why_not"] == ""]
    first = known.iloc[0]
    if first["distance"] > 1:
        lines.append("none of them: even from the nearest it lies further than that one's own norm")
    elif len(known) > 1 and known["distance"].iloc[1] == first["distance"]:
        lines.append("the first ones are equally near")
    else:
        lines.append(f"nearest: {first['base']}")
    return "\n".join(lines)
