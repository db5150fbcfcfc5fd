"""Which code decides the numbers of each kind of record and of run: where its digests start and stop.

The names are the present ones; `scripts/rekey_release.py` asks every tree of this package for its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from threegates.boundaries import FILES
from threegates.definitions import Reach
from threegates.digest import code_digest, digest_versions, value_digest
from threegates.lab import runs
from threegates.lab.trainers import sorts

_MEASURES: dict[str, str] = {
    "pair": "threegates.measures.changes.PairTensors",
    "group": "threegates.measures.agreement.measure_agreement",
    "run": "threegates.measures.emergence.measure_emergence",
    "drift": "threegates.measures.drift.PairDrift",
    "overlap": "threegates.measures.overlap.PairOverlap",
    "lens": "threegates.measures.lens.measure_lens",
    "curvature": "threegates.measures.curvature.measure_curvature",
    "rotation": "threegates.measures.rotation.measure_rotation",
    "frame": "threegates.measures.rotation.measure_frame",
    "fisher": "threegates.measures.fisher.measure_fisher",
    "table": "threegates.measures.tensor_table.PairTable",
}
# What is kept of a base on disk is what would be computed again; what computes it is inside.
_OUTSIDE = ("threegates.measures.base_cache", "threegates.records.store")
_INSIDE = ("threegates.measures.base_cache.decompose_base",)
#: The code that decides the numbers of each kind of record.
RECORDS: dict[str, Reach] = {
    kind: Reach((root,), (*FILES.outside, *_OUTSIDE), (*FILES.inside, *_INSIDE))
    for kind, root in _MEASURES.items()
}


def roots() -> dict[str, dict[str, Reach]]:
    """The same of every kind of record and of every kind of run."""
    return {"record": dict(RECORDS), "run": {kind: runs.reach(kind) for kind in sorts()}}


def record_digest(kind: str, inputs: object, code: str, versions: dict[str, str]) -> str:
    """The digest of a record: what it is of, what it was made from, by which code and with which packages."""
    return value_digest({"kind": kind, "inputs": inputs, "code": code, "versions": versions})


def told(provenance: Mapping[str, Mapping[str, Any]], profile: str) -> dict[str, Any]:
    """What this tree makes of a release: where digests start and stop, and those of its records and runs.

    provenance : of every record, by table and name, as a release has it; perhaps with its kind.
    """
    from threegates.lab.plan import plan

    return {
        "roots": {
            what: {kind: asdict(one) for kind, one in known.items()} for what, known in roots().items()
        },
        "records": {
            table: {name: _told_record(table, one) for name, one in known.items()}
            for table, known in provenance.items()
        },
        "runs": {item.run.name: _told_run(item.run) for item in plan(profile)},
    }


def _told_record(table: str, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Kind, code and digest of a record, of the kind that is given or that its digest says."""
    kinds = [provenance["kind"]] if "kind" in provenance else _kinds(table)
    found = [_of_kind(kind, provenance) for kind in kinds]
    return next((one for one in found if one["digest"] == provenance["digest"]), found[0])


def _kinds(table: str) -> list[str]:
    from threegates.jobs.jobs import TABLES

    return [kind for kind, tables in TABLES.items() if table in tables]


def _of_kind(kind: str, provenance: Mapping[str, Any]) -> dict[str, Any]:
    reach = RECORDS[kind]
    code = code_digest(*reach.roots, outside=reach.outside, inside=reach.inside)
    versions = {name: provenance["versions"][name] for name in digest_versions()}
    return {
        "kind": kind,
        "code": code,
        "digest": record_digest(kind, provenance["inputs"], code, versions),
    }


def _told_run(run: runs.Run) -> dict[str, Any]:
    recipe = run.recipe.model_dump(mode="json")
    return {"digest": run.digest, "code": run.code, "base": run.base_folder, "recipe": recipe}
