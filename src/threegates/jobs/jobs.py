"""The units of measuring: what each writes, from what, and the digest of all that decides its numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd

from threegates.checkpoints.formats.frame import Frame, read_frame
from threegates.checkpoints.places import Place, place_of
from threegates.checkpoints.tensors import Checkpoint
from threegates.checkpoints.views import naming_digest
from threegates.digest import code_digest, digest_versions, value_digest
from threegates.errors import PairError
from threegates.jobs.closures import RECORDS, record_digest
from threegates.jobs.sources import Source, StudyPair
from threegates.measures import (
    agreement,
    changes,
    curvature,
    drift,
    emergence,
    fisher,
    lens,
    overlap,
    rotation,
    tensor_table,
)
from threegates.measures.by_tensor import ByTensor
from threegates.records.provenance import record_provenance
from threegates.records.store import Records

#: Kinds of job that each chapter needs.
CHAPTERS: dict[str, tuple[str, ...]] = {
    "update-sparsity": ("pair",),
    "stripe-masks": ("pair", "group"),
    "emergence": ("run",),
    "spectral-drift": ("drift",),
    "principal-overlap": ("overlap",),
    "precision-lens": ("lens",),
    "curvature": ("curvature",),
    "rotation-ablation": ("rotation", "frame"),
    "learning-rate": ("pair",),
    "kl-leash": ("fisher",),
}
#: Tables that each kind of job writes, with their columns and types.
TABLES: dict[str, dict[str, dict[str, str]]] = {
    "pair": {"tensor": changes.TENSOR_COLUMNS, "tensor_sweep": changes.TENSOR_SWEEP_COLUMNS},
    "group": {
        "axis": changes.AXIS_COLUMNS,
        "agreement": agreement.AGREEMENT_COLUMNS,
        "rates": agreement.RATES_COLUMNS,
        "map": agreement.MAP_COLUMNS,
        "axis_sweep": agreement.AXIS_SWEEP_COLUMNS,
        "agreement_sweep": agreement.AGREEMENT_SWEEP_COLUMNS,
    },
    "run": {
        "emergence": emergence.EMERGENCE_COLUMNS,
        "emergence_sweep": emergence.EMERGENCE_SWEEP_COLUMNS,
    },
    "drift": {
        "drift": drift.DRIFT_COLUMNS,
        "spectrum": drift.SPECTRUM_COLUMNS,
        "drift_sweep": drift.SWEEP_COLUMNS,
    },
    "overlap": {
        "overlap": overlap.OVERLAP_COLUMNS,
        "sweep": overlap.SWEEP_COLUMNS,
        "direction": overlap.DIRECTION_COLUMNS,
        "direction_sweep": overlap.DIRECTION_SWEEP_COLUMNS,
    },
    "lens": {"lens": lens.LENS_COLUMNS, "lens_bins": lens.BINS_COLUMNS},
    "curvature": {"curvature": curvature.CURVATURE_COLUMNS},
    "rotation": {"rotation": rotation.ROTATION_COLUMNS},
    "frame": {"frame": rotation.FRAME_COLUMNS},
    "fisher": {"fisher": fisher.FISHER_COLUMNS},
    "table": {"tensor": tensor_table.COLUMNS, "axis": changes.AXIS_COLUMNS},
}
#: What measures the kinds of job that are measured tensor by tensor, as `threegates.jobs.batches` does.
BY_TENSOR: dict[str, Callable[..., ByTensor]] = {
    "pair": changes.PairTensors,
    "drift": drift.PairDrift,
    "overlap": overlap.PairOverlap,
    "table": tensor_table.PairTable,
}
#: The RL run whose norms another run takes: of these algorithms, the first that has its seed.
_PARTNERS = ("grpo", "dapo", "reinforce++")
_RUN, _STEP = "run:", "step:"
_CPU = "cpu"
#: What beside the files decides numbers, where it is not as it always was: keys of a job's inputs.
NARROWED = ("layers", "matrices", "device", "names")


@dataclass(frozen=True)
class Job:
    """One unit of measuring.

    `facts` become columns when its tables are read; `inputs` go into the records' provenance. `stale` says
    that its records are released ones, which other code or other versions made.
    """

    kind: str
    name: str
    digest: str
    arguments: dict
    facts: dict = field(default_factory=dict)
    inputs: dict = field(default_factory=dict)
    stale: bool = False

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def tables(self) -> tuple[str, ...]:
        """Names of the tables that it writes."""
        return tuple(TABLES[self.kind])

    def is_done(self, records: Records) -> bool:
        """Whether all of its records are there."""
        return all(records.exists(table, self.name, self.digest) for table in self.tables)


def chapter_jobs(chapter: str, pairs: Sequence[StudyPair], draws: int, seed: int) -> list[Job]:
    """Everything that has to be measured for a chapter on these pairs.

    Raises
    ------
    PairError : the chapter follows runs, and a run has fewer than two steps; or it compares frames, and no
        run starts from a base with a frame beside one from the base that this was made of.
    """
    options = {"draws": draws, "seed": seed}
    kinds = {
        "pair": pair_jobs,
        "group": group_jobs,
        "run": run_jobs,
        "drift": drift_jobs,
        "overlap": overlap_jobs,
        "lens": lens_jobs,
        "curvature": curvature_jobs,
        "rotation": rotation_jobs,
        "frame": frame_jobs,
        "fisher": fisher_jobs,
    }
    return [job for kind in CHAPTERS.get(chapter, ()) for job in kinds[kind](pairs, options)]


def pair_jobs(pairs: Sequence[StudyPair], options: dict) -> Iterator[Job]:
    """One job a pair; its tables need no draws."""
    for pair in pairs:
        sources = {"base": pair.base, "tuned": pair.tuned}
        yield _job("pair", pair.name, sources, {"name": pair.name, "seed": options["seed"], "axes": False})


def group_jobs(pairs: Sequence[StudyPair], options: dict) -> Iterator[Job]:
    """One job for every block of every group of runs that share base and method."""

    def key(pair: StudyPair) -> tuple[str, str]:
        return pair.base.label, pair.facts()["method"]

    for (base, method), members in groupby(sorted(pairs, key=key), key=key):
        runs = list(members)
        sources = {"base": runs[0].base, **{_RUN + pair.name: pair.tuned for pair in runs}}
        numbers = agreement.layers(runs[0].base.checkpoint)
        for number in numbers:
            shown = number == numbers[len(numbers) // 2]
            name = f"{base}-{method}-layer{number:02d}"
            facts = {"base": base, "method": method}
            yield _job("group", name, sources, {**options, "of_layer": number, "maps": shown}, facts)


def run_jobs(pairs: Sequence[StudyPair], options: dict) -> Iterator[Job]:
    """One job for every run, over all of its checkpoints."""

    def key(pair: StudyPair) -> str:
        return pair.facts()["run"]

    for run, members in groupby(sorted(pairs, key=key), key=key):
        snapshots = list(members)
        known = [pair.tuned.entry for pair in snapshots]
        steps = [[entry.step, entry.updates] for entry in known if entry is not None and entry.step]
        if len(steps) < max(2, len(snapshots)):
            raise _no_run(run)
        sources = {f"{_STEP}{number}": pair.tuned for number, pair in enumerate(snapshots)}
        yield _job(
            "run", run, {"base": snapshots[0].base, **sources}, {**options, "run": run, "steps": steps}
        )


def drift_jobs(pairs: Sequence[StudyPair], options: dict) -> Iterator[Job]:
    """One job a pair, together with the RL run of its seed whose update norms its ΔW is scaled to."""
    for pair in pairs:
        partner = norm_partner(pair, pairs)
        sources = {"base": pair.base, "tuned": pair.tuned}
        sources |= {"partner": partner.tuned} if partner else {}
        named = {"name": pair.name, "partner_name": partner.name if partner else "", "seed": options["seed"]}
        yield _job("drift", pair.name, sources, named)


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
    return next((found[name] for name in _PARTNERS if name in found), None)


def overlap_jobs(pairs: Sequence[StudyPair], options: dict) -> Iterator[Job]:
    """One job a pair, for its principal and its small weights, together with its partner in norm."""
    for pair in pairs:
        partner = norm_partner(pair, pairs)
        sources = {"base": pair.base, "tuned": pair.tuned}
        sources |= {"partner": partner.tuned} if partner else {}
        named = {"name": pair.name, "partner_name": partner.name if partner else ""}
        yield _job("overlap", pair.name, sources, {**options, **named})


def table_job(pair: StudyPair, options: dict) -> Job:
    """The job of one table with everything that is measured of a pair."""
    sources = {"base": pair.base, "tuned": pair.tuned}
    return _job("table", pair.name, sources, {**options, "name": pair.name})


def lens_jobs(pairs: Sequence[StudyPair], options: dict) -> Iterator[Job]:
    """One job for every run, over those of its checkpoints that there are; one is enough."""

    def place(pair: StudyPair) -> tuple[str, float]:
        facts = pair.facts()
        return facts["run"], facts.get("step") or math.inf

    for run, members in groupby(sorted(pairs, key=place), key=lambda pair: place(pair)[0]):
        kept = list(members)
        facts = [pair.facts() for pair in kept]
        sources = {f"{_STEP}{number}": pair.tuned for number, pair in enumerate(kept)}
        named = [[pair.name, fact.get("updates")] for pair, fact in zip(kept, facts, strict=True)]
        known = {"run": run, "named": named, "rate": facts[-1].get("learning_rate"), "seed": options["seed"]}
        yield _job("lens", run, {"base": kept[0].base, **sources}, known)


def curvature_jobs(pairs: Sequence[StudyPair], options: dict) -> Iterator[Job]:
    """One job a pair; the draws of its noise are its own."""
    for pair in pairs:
        sources = {"base": pair.base, "tuned": pair.tuned}
        yield _job("curvature", pair.name, sources, {"name": pair.name, "seed": options["seed"]})


def rotation_jobs(pairs: Sequence[StudyPair], options: dict) -> Iterator[Job]:
    """One job for every run from a rotated base, with the untouched runs of its seed and of the next one."""
    for pair, frame in _in_frames(pairs):
        partners = untouched_partners(pair, pairs)
        sources = {"base": _untouched(pair, pairs)[0].base, "rotated": pair.base, "tuned": pair.tuned}
        sources |= {place: one.tuned for place, one in partners.items()}
        names = {"tuned": pair.name, **{place: one.name for place, one in partners.items()}}
        yield _job("rotation", pair.name, sources, {**options, "names": names, "frame": frame})


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


def frame_jobs(pairs: Sequence[StudyPair], options: dict) -> Iterator[Job]:
    """One job for every rotated base; nothing in it is drawn."""
    bases = {pair.base.label: (pair, frame) for pair, frame in _in_frames(pairs)}
    for label, (pair, frame) in bases.items():
        assert pair.base.entry is not None
        kind = pair.base.entry.labels.get("frame", label)
        sources = {"base": _untouched(pair, pairs)[0].base, "rotated": pair.base}
        yield _job("frame", label, sources, {"frame": frame}, {"base": label, "frame": kind})


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


def fisher_jobs(pairs: Sequence[StudyPair], options: dict) -> Iterator[Job]:
    """One job for every base of the lab's RL runs and the data they were trained on."""
    bases = {
        (pair.base.label, pair.facts()["data"]): pair.base
        for pair in pairs
        if pair.facts()["method"] == "rl" and pair.tuned.run_folder is not None
    }
    for (base, data), source in bases.items():
        known = {"base": base, "data": data, "seed": options["seed"], "responses": fisher.RESPONSES}
        yield _job("fisher", f"{base}-{data}", {"base": source}, known)


def run_job(job: Job, records: Records) -> None:
    """Measure a job that is not measured by tensor, and write its records."""
    work: dict[str, Callable[..., dict[str, pd.DataFrame]]] = {
        "group": _measure_group,
        "run": _measure_run,
        "lens": _measure_lens,
        "curvature": _measure_curvature,
        "rotation": _measure_rotation,
        "frame": _measure_frame,
        "fisher": _measure_fisher,
    }
    write_records(job, records, work[job.kind](**job.arguments))


def write_records(job: Job, records: Records, tables: Mapping[str, pd.DataFrame]) -> None:
    """Write what a job has measured."""
    provenance = record_provenance(RECORDS[job.kind], inputs=job.inputs)
    for table in job.tables:
        records.write(table, job.name, job.digest, tables[table], provenance)


def _job(
    kind: str, name: str, sources: Mapping[str, Source], options: dict, facts: dict | None = None
) -> Job:
    checkpoints = {place: source.checkpoint for place, source in sources.items()}
    inputs: dict[str, object] = {
        "checkpoints": {place: one.digest() for place, one in checkpoints.items()},
        "revisions": {place: one.revision for place, one in checkpoints.items() if one.revision},
        "parameters": options,
    }
    places = {place: place_of(one) for place, one in checkpoints.items()}
    inputs |= _narrowed(places) | _renamed(checkpoints)
    digest = record_digest(kind, inputs, **_decides(kind, code_digest))
    texts = {place: where.text() for place, where in places.items()}
    return Job(kind, name, digest, {"places": texts, **options}, facts or {}, inputs)


def _narrowed(places: Mapping[str, Place]) -> dict[str, object]:
    """Which tensors are looked at, and the device they are on; both sides of a pair have the same choice."""
    ((layers, matrices, device),) = {(one.layers, one.matrices, one.device) for one in places.values()}
    named = {"layers": layers, "matrices": matrices, "device": device}
    return {key: value for key, value in named.items() if value not in (None, _CPU)}


def _renamed(checkpoints: Mapping[str, Checkpoint]) -> dict[str, object]:
    """What decides the names of tensors that are not looked at under those they are stored under."""
    found = {place: digest for place, one in checkpoints.items() if (digest := naming_digest(one))}
    return {"names": found} if found else {}


@cache
def _decides(kind: str, digest: Callable[..., str]) -> dict[str, Any]:
    """What decides a kind of job beside its inputs; a process does not change its code and versions."""
    reach = RECORDS[kind]
    return {
        "code": digest(*reach.roots, outside=reach.outside, inside=reach.inside),
        "versions": digest_versions(),
    }


def _measure_group(
    places: dict[str, str], of_layer: int, draws: int, seed: int, maps: bool
) -> dict[str, pd.DataFrame]:
    runs = {place.removeprefix(_RUN): _opened(text) for place, text in places.items() if place != "base"}
    base = _opened(places["base"])
    return agreement.measure_agreement(base, runs, of_layer=of_layer, draws=draws, seed=seed, maps=maps)


def _measure_run(
    places: dict[str, str], run: str, draws: int, seed: int, steps: list[list]
) -> dict[str, pd.DataFrame]:
    snapshots = [
        emergence.Snapshot(step, updates, _opened(places[f"{_STEP}{number}"]))
        for number, (step, updates) in enumerate(steps)
    ]
    base = _opened(places["base"])
    return emergence.measure_emergence(base, snapshots, run=run, draws=draws, seed=seed)


def _measure_lens(
    places: dict[str, str], run: str, named: list[list], rate: float | None, seed: int
) -> dict[str, pd.DataFrame]:
    kept = [
        lens.Kept(name, updates, _opened(places[f"{_STEP}{number}"]))
        for number, (name, updates) in enumerate(named)
    ]
    return lens.measure_lens(_opened(places["base"]), kept, run=run, rate=rate, seed=seed)


def _measure_curvature(places: dict[str, str], name: str, seed: int) -> dict[str, pd.DataFrame]:
    base, tuned = _opened(places["base"]), _opened(places["tuned"])
    return curvature.measure_curvature(base, tuned, name=name, seed=seed)


def _measure_rotation(
    places: dict[str, str], names: dict[str, str], frame: str, draws: int, seed: int
) -> dict[str, pd.DataFrame]:
    opened = {place: _opened(text) for place, text in places.items()}
    found = rotation.Coordinates.of(opened["rotated"], _frame(places["rotated"], frame))
    run = rotation.Run(names["tuned"], opened["rotated"], opened["tuned"])
    same, other = (
        rotation.Run(names[place], opened["base"], opened[place]) if place in names else None
        for place in ("same", "other")
    )
    rows = rotation.measure_rotation(run, found, same=same, other=other, draws=draws, seed=seed)
    return {"rotation": rows}


def _measure_frame(places: dict[str, str], frame: str) -> dict[str, pd.DataFrame]:
    base, rotated = (_opened(places[place]) for place in ("base", "rotated"))
    return {"frame": rotation.measure_frame(base, rotated, _frame(places["rotated"], frame))}


def _opened(text: str) -> Checkpoint:
    return Place.parse(text).open()


def _folder(text: str) -> Path:
    """Folder of a checkpoint of the lab, whose log, frame or tokenizer lies beside the tensors."""
    return Path(Place.parse(text).folder)


def _frame(place: str, digest: str) -> Frame:
    """The frame of a folder, which no digest of its tensors covers.

    Raises
    ------
    PairError : it is not the one that the job was made for.
    """
    folder = _folder(place)
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


def _measure_fisher(
    places: dict[str, str], base: str, data: str, seed: int, responses: int
) -> dict[str, pd.DataFrame]:
    return fisher.measure_fisher(
        _folder(places["base"]), base=base, data=data, seed=seed, responses=responses
    )


def _no_run(run: str) -> PairError:
    return PairError(
        "this chapter follows runs, and one has no checkpoints along its training",
        where=run,
        expected="two checkpoints or more, with their steps, in the manifest",
        remedy="choose entries of one run by --pair, or a chapter that looks at one pair",
    )
