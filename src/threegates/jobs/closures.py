"""Which code decides the numbers of each kind of record and of run: where its digests start and stop.

The names are the present ones; `scripts/rekey_release.py` asks every tree of this package for its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from threegates.definitions import Reach
from threegates.digest import code_digest, digest_versions
from threegates.jobs.kinds.known import KINDS
from threegates.jobs.reach import record_digest
from threegates.lab import runs
from threegates.lab.trainers import sorts


def roots() -> dict[str, dict[str, Reach]]:
    """The same of every kind of record and of every kind of run."""
    return {
        "record": {name: kind.reach for name, kind in KINDS.items()},
        "run": {kind: runs.reach(kind) for kind in sorts()},
    }


def told(provenance: Mapping[str, Mapping[str, Any]], profile: str) -> dict[str, Any]:
    """What this tree makes of a release: where digests start and stop, and those of its records and runs.

    provenance : of every record, by table and name, as a release has it; perhaps with its kind.
    """
    from threegates.lab.plans.plan import plan

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
    return [name for name, kind in KINDS.items() if table in kind.tables]


def _of_kind(kind: str, provenance: Mapping[str, Any]) -> dict[str, Any]:
    known = KINDS[kind].reach_of(provenance["inputs"].get("parameters", {}))
    code = code_digest(*known.roots, outside=known.outside, inside=known.inside)
    versions = {name: provenance["versions"][name] for name in digest_versions()}
    return {
        "kind": kind,
        "code": code,
        "digest": record_digest(kind, provenance["inputs"], code, versions),
    }


def _told_run(run: runs.Run) -> dict[str, Any]:
    recipe = run.recipe.model_dump(mode="json")
    return {"digest": run.digest, "code": run.code, "base": run.base_folder, "recipe": recipe}
