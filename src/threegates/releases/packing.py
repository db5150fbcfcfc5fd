"""Released records: what a long study measured and logged, packed into a few files that a repository carries.

A release holds the records of every chapter and the logs of every run, with their provenance, and what is
needed to find them again: the manifest, and of every checkpoint its config, its headers and its digest. Only
bases of the lab's language model keep their weights: a megabyte, from which any run can be trained anew.
Unpacked, a release looks like a build in which everything was measured; verdicts are never packed, they are
computed. A release may have been made in parts, which `threegates.releases.parts` merges.

| file | holds |
|---|---|
| release.json | profile, time and commit of packing, versions, parts, digests of the other files |
| manifest.yaml | the lab's manifest |
| runs.json | run.json and when.json of every run |
| checkpoints.json | config, headers, digest and frame of every checkpoint |
| provenance.json | of every record: its job's digest and inputs, code and versions |
| logs/, records/ | one parquet file a table; `_of` names the run or the job |
| kept.parquet | what jobs about several runs need of checkpoints, see `threegates.jobs.kept` |
| base/ | the checkpoint of the first base, and a folder NAME for each further one |
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from threegates.atomic import atomic_path, write_json, write_text
from threegates.checkpoints.formats.frame import NAME as FRAME
from threegates.checkpoints.manifests.manifest import Manifest, read_manifest, write_manifest
from threegates.checkpoints.tensors import WITHOUT_WEIGHTS, Checkpoint, without_weights
from threegates.digest import file_digest, runtime_versions, value_digest
from threegates.errors import RecordError
from threegates.jobs.kept import NAME as KEPT_BESIDE
from threegates.jobs.released import FILE, place_of, run_folder_of
from threegates.records.provenance import build_state
from threegates.records.store import Records, read_provenance, record_digest, write_table
from threegates.records.versioned import read_versioned
from threegates.releases.contents import Contents, Paths, kept_of, part_facts, records_of
from threegates.study import Study

VERSION = 1
MANIFEST, RUNS = "manifest.yaml", "runs.json"
CHECKPOINTS, PROVENANCE, BASE = "checkpoints.json", "provenance.json", "base"
KEPT = "kept.parquet"
_LOGS = ("log", "evaluation")
_OF = "_of"
#: Bits of the mantissa that are kept of the sweeps' numbers, which would else be most of a release: they say
#: how verdicts depend on free choices, and are never judged themselves.
_MANTISSA = {
    "sweep": 10,
    **dict.fromkeys(
        ("agreement_sweep", "axis_sweep", "direction_sweep", "drift_sweep", "emergence_sweep"), 13
    ),
}
#: A column of no more values than these is a choice, such as k or α, by which rows are found: it stays exact.
_CHOICES = 64
_LEVEL = 19


@dataclass(frozen=True)
class Release:
    """A packed release, checked: its folder and what release.json says."""

    folder: Path
    profile: str
    made: dict[str, Any]
    versions: dict[str, str]
    files: dict[str, str]
    parts: list[dict[str, Any]] = field(default_factory=list)
    rekeyed: list[dict[str, Any]] = field(default_factory=list)


# ---------------------------------------------------------------------------------------------- packing


def pack(studies: Iterable[Study], manifest: Manifest, target: Path) -> Release:
    """Pack the records of these studies, and logs and headers of the manifest's checkpoints, into a folder.

    An older release in that folder is replaced in one step, or left as it was. It is of one part.

    Raises
    ------
    MissingRecordError : a study lacks a record.
    """
    opened = [study.ensure().require() for study in studies]
    records = records_of(opened)
    kept = kept_of(opened)
    facts = part_facts("1-all", manifest.checkpoints, records, kept)
    return write_release(Contents(manifest, records, kept, [facts]), target)


def write_release(contents: Contents, target: Path) -> Release:
    """Write a release in one step in the place of the one in that folder, which stays if anything fails."""
    work = target.with_name(f".{target.name}.partial")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        _pack_records(contents.records, work)
        _pack_lab(contents.manifest, work)
        _pack_kept(contents.kept, work)
        _write_facts(contents, work)
        replace_folder(work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return read_release(target)


def _pack_records(records: Paths, work: Path) -> None:
    for table, paths in records.items():
        _write_table(work / "records" / f"{table}.parquet", sorted(paths.items()), _MANTISSA.get(table))
    provenance = {
        table: {stem: read_provenance(path) for stem, path in paths.items()}
        for table, paths in records.items()
    }
    write_json(work / PROVENANCE, provenance)


def _pack_lab(manifest: Manifest, work: Path) -> None:
    folders = {entry.name: entry.folder(manifest) for entry in manifest.checkpoints}
    runs = {folder.parent.name: folder.parent for folder in folders.values()}
    write_json(work / RUNS, {name: _told(folder) for name, folder in sorted(runs.items())})
    places = {place_of(entry): folders[entry.name] for entry in manifest.checkpoints}
    write_json(work / CHECKPOINTS, _headers(places))
    write_manifest(work / MANIFEST, manifest)
    for log in _LOGS:
        found = [(name, folder / f"{log}.parquet") for name, folder in sorted(runs.items())]
        _write_table(work / "logs" / f"{log}.parquet", [one for one in found if one[1].is_file()])
    for name, place in _bases(manifest).items():
        shutil.copytree(folders[name], work / place, dirs_exist_ok=True)


def _pack_kept(kept: Mapping[str, pa.Table], work: Path) -> None:
    named = [_named(table, place) for place, table in kept.items()]
    if named:
        _write_kept(work / KEPT, pa.concat_tables(named))


def _write_kept(path: Path, whole: pa.Table) -> None:
    pq.write_table(whole, path, compression="zstd", compression_level=_LEVEL, use_dictionary=False)


def rename_kept(path: Path, target: Path, name: Callable[[str], str]) -> None:
    """A table of what was kept, with other names for the places of its checkpoints; rows stay as they are."""
    _write_kept(target, _with_names(pq.read_table(path), name))


def _bases(manifest: Manifest) -> dict[str, str]:
    """Folder in the release, by name, of each checkpoint that keeps its weights: what runs start from.

    A base with a subject of its own is left out: a trained model of others, which is too large.
    """
    found = [entry for entry in manifest.checkpoints if entry.method == "pretrain" and entry.base is None]
    own = [entry.name for entry in found if entry.final and "subject" not in entry.labels]
    return {name: f"{BASE}/{name}" if number else BASE for number, name in enumerate(own)}


def _told(folder: Path) -> dict[str, Any]:
    return {
        name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in ("run", "when")
    }


def _headers(folders: Mapping[str, Path]) -> dict[str, Any]:
    """Of every checkpoint its digest, its frame, and which config and tensors it has: few are different."""
    layouts: dict[str, Any] = {}
    checkpoints: dict[str, dict[str, str]] = {}
    for place, folder in folders.items():
        checkpoint, frame = Checkpoint.open(folder), folder / FRAME
        kept = without_weights(checkpoint)
        layout = {"config": checkpoint.config, "tensors": kept["tensors"]}
        name = value_digest(layout)[:12]
        layouts[name] = layout
        own = {FRAME: frame.read_text(encoding="utf-8")} if frame.is_file() else {}
        checkpoints[place] = {"digest": kept["digest"], "layout": name, **own}
    return {"layouts": layouts, "checkpoints": checkpoints}


def _write_facts(contents: Contents, work: Path) -> None:
    files = {str(path.relative_to(work)): file_digest(path) for path in _files(work)}
    facts = {
        "profile": contents.manifest.profile or "",
        "made": build_state(),
        "versions": runtime_versions(),
        "parts": list(contents.parts),
        "files": files,
    }
    rekeyed = {"rekeyed": list(contents.rekeyed)} if contents.rekeyed else {}
    write_json(work / FILE, {"version": VERSION, **facts, **rekeyed})


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != FILE)


def replace_folder(work: Path, target: Path) -> None:
    """Put a finished folder in the place of another one."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    os.replace(work, target)
    shutil.rmtree(old, ignore_errors=True)


def _write_table(path: Path, parts: Sequence[tuple[str, Path]], bits: int | None = None) -> None:
    """All parts below each other, each row with its part's name; which columns a part has is metadata."""
    if not parts:
        return
    tables = {name: pq.read_table(part).replace_schema_metadata(None) for name, part in parts}
    named = [_named(table, name) for name, table in tables.items()]
    whole = pa.concat_tables(named, promote_options="permissive")
    whole = whole.combine_chunks() if bits is None else _rounded(whole.combine_chunks(), bits)
    layouts: list[list[str]] = []
    for table in tables.values():
        if table.column_names not in layouts:
            layouts.append(table.column_names)
    told = {"layouts": layouts, "parts": {name: layouts.index(t.column_names) for name, t in tables.items()}}
    _write_packed(path, whole, told)


def rename_parts(path: Path, target: Path, names: Mapping[str, str]) -> None:
    """A packed table with other names for its parts, all of which are given; rows stay as they are."""
    whole = pq.read_table(path)
    told = json.loads(whole.schema.metadata[_OF.encode()])
    told["parts"] = {names[name]: layout for name, layout in told["parts"].items()}
    _write_packed(target, _with_names(whole, names.__getitem__), told)


def _with_names(whole: pa.Table, name: Callable[[str], str]) -> pa.Table:
    place = whole.column_names.index(_OF)
    parts = pa.array(map(name, whole.column(_OF).to_pylist()), whole.schema.field(place).type)
    return whole.set_column(place, _OF, parts)


def _write_packed(path: Path, whole: pa.Table, told: dict[str, Any]) -> None:
    reals = [field.name for field in whole.schema if pa.types.is_floating(field.type)]
    with atomic_path(path) as temporary:
        pq.write_table(
            whole.replace_schema_metadata({_OF: json.dumps(told)}),
            temporary,
            compression="zstd",
            compression_level=_LEVEL,
            use_dictionary=[name for name in whole.column_names if name not in reals],
            use_byte_stream_split=reals,
        )


def _named(table: pa.Table, name: str) -> pa.Table:
    return table.append_column(_OF, pa.repeat(pa.scalar(name), table.num_rows))


def _rounded(table: pa.Table, bits: int) -> pa.Table:
    for number, column in enumerate(table.schema):
        if pa.types.is_float64(column.type) and len(table.column(number).unique()) > _CHOICES:
            values = _short(table.column(number).to_numpy(), bits)
            missing = table.column(number).is_null().to_numpy()
            table = table.set_column(number, column.name, pa.array(values, pa.float32(), mask=missing))
    return table


def is_same_record(kept: Path, other: Path) -> bool:
    """Whether an unpacked record has the content of another one, as far as it was not shortened."""
    bits = _MANTISSA.get(kept.parent.name)
    if bits is None:
        return record_digest(kept) == record_digest(other)
    tables = [pq.read_table(path).replace_schema_metadata(None) for path in (kept, other)]
    if tables[0].schema != tables[1].schema or tables[0].num_rows != tables[1].num_rows:
        return False
    columns = zip(*(table.itercolumns() for table in tables), strict=True)
    return all(_is_near(one, two, 2.0 ** -(bits + 1)) for one, two in columns)


def _is_near(one: pa.ChunkedArray, two: pa.ChunkedArray, tolerance: float) -> bool:
    if not pa.types.is_floating(one.type):
        return one.equals(two)
    left, right = one.to_numpy(), two.to_numpy()
    return bool(np.allclose(left, right, rtol=1.01 * tolerance, atol=0, equal_nan=True))


def _short(values: np.ndarray, bits: int) -> np.ndarray:
    """Float32 with that many bits of mantissa, rounded to nearest; relative error at most 2^−(bits + 1)."""
    mantissa, exponent = np.frexp(values.astype(np.float64))
    return np.ldexp(np.round(np.ldexp(mantissa, bits + 1)), exponent - bits - 1).astype(np.float32)


# -------------------------------------------------------------------------------------------- unpacking


def read_release(folder: Path) -> Release:
    """A release, with its files checked.

    Raises
    ------
    RecordError : there is none, it is of another version, or a file is missing or not as it was packed.
    """
    path = folder / FILE
    remedy = "take the folder from the repository again, or pack one: `threegates release --profile full`"
    if not path.is_file():
        raise RecordError("there are no released records", where=folder, expected=FILE, remedy=remedy)
    renew = "pack it again with this code"
    release = read_versioned(
        path, VERSION, partial(_told_of, folder), what="a release", remedy=remedy, renew=renew
    )
    for name, digest in release.files.items():
        if not (folder / name).is_file() or file_digest(folder / name) != digest:
            raise RecordError(
                "a file of a release is missing or not as it was packed",
                where=folder / name,
                expected=digest,
                remedy=remedy,
            )
    return release


def _told_of(folder: Path, told: Mapping[str, Any]) -> Release:
    facts = (told["profile"], told["made"], told["versions"], dict(told["files"]))
    # A release of before there were parts lists none, and most have their first keys.
    return Release(folder, *facts, list(told.get("parts", ())), list(told.get("rekeyed", ())))


def weighted_bases(release: Release) -> set[str]:
    """Names of the folders of the runs whose checkpoints a release keeps with their weights."""
    manifest = read_manifest(release.folder / MANIFEST)
    return {run_folder_of(manifest.entry(name)) for name in _bases(manifest)}


def unpack_runs(release: Release, build: Path, runs: Collection[str]) -> None:
    """Lay out the runs in folders of these names alone, and a manifest of them."""
    manifest = read_manifest(release.folder / MANIFEST)
    kept = [entry for entry in manifest.checkpoints if run_folder_of(entry) in runs]
    _unpack_lab(release, build / "lab", manifest.model_copy(update={"checkpoints": kept}))


def unpack_records(release: Release, build: Path, digests: Collection[str]) -> None:
    """Lay out the records of jobs of these digests, those that the release has."""
    _unpack_records(release, Records(build / "records"), digests)


def record_index(release: Release, digests: Collection[str] | None = None) -> dict[str, list[dict[str, Any]]]:
    """Digests and inputs of a release's records by "table/job", those of jobs of these digests or all."""
    index: dict[str, list[dict[str, Any]]] = {}
    for table, known in _json(release, PROVENANCE).items():
        for told in known.values():
            if digests is None or told["digest"] in digests:
                one = {"digest": told["digest"], "inputs": told["inputs"]}
                index.setdefault(f"{table}/{told['job']}", []).append(one)
    return index


def unpack(release: Release, build: Path) -> None:
    """Lay a release out as a build with everything trained and measured; once, as long as it is the same."""
    mark, digest = build / FILE, value_digest(release.files)
    if mark.is_file() and json.loads(mark.read_text(encoding="utf-8")).get("digest") == digest:
        return
    for name in ("lab", "records"):
        shutil.rmtree(build / name, ignore_errors=True)
    mark.unlink(missing_ok=True)
    _unpack_lab(release, build / "lab", read_manifest(release.folder / MANIFEST))
    _unpack_records(release, Records(build / "records"))
    write_json(mark, {"digest": digest, "records": record_index(release)})


def _unpack_lab(release: Release, lab: Path, manifest: Manifest) -> None:
    """Write the manifest, and lay out what it lists."""
    runs = {run_folder_of(entry) for entry in manifest.checkpoints}
    told = _json(release, CHECKPOINTS)
    for place in map(place_of, manifest.checkpoints):
        kept = told["checkpoints"][place]
        folder, layout = lab / place, told["layouts"][kept["layout"]]
        folder.mkdir(parents=True)
        write_json(folder / "config.json", layout["config"])
        write_json(folder / WITHOUT_WEIGHTS, {"digest": kept["digest"], "tensors": layout["tensors"]})
        if FRAME in kept:
            write_text(folder / FRAME, kept[FRAME])
    _unpack_bases(release, lab, manifest)
    _unpack_kept(release, lab, manifest)
    for name, known in _json(release, RUNS).items():
        for part, value in known.items() if name in runs else ():
            write_json(lab / "runs" / name / f"{part}.json", value)
    for log in _LOGS:
        for name, rows in _parts(release.folder / "logs" / f"{log}.parquet"):
            if name in runs:
                write_table(lab / "runs" / name / f"{log}.parquet", rows, {})
    write_manifest(lab / MANIFEST, manifest)


def _unpack_bases(release: Release, lab: Path, manifest: Manifest) -> None:
    folders = _bases(read_manifest(release.folder / MANIFEST))
    for entry in manifest.checkpoints:
        if entry.name in folders:
            shutil.rmtree(lab / place_of(entry))
            # Of the folders in the first base's own, each is another base.
            others = shutil.ignore_patterns(*(name for name in folders if name != entry.name))
            shutil.copytree(release.folder / folders[entry.name], lab / place_of(entry), ignore=others)


def _unpack_kept(release: Release, lab: Path, manifest: Manifest) -> None:
    for place, table in read_kept_tables(release).items():
        if place in set(map(place_of, manifest.checkpoints)):
            write_table(lab / place / KEPT_BESIDE, table, {})


def read_kept_tables(release: Release) -> dict[str, pa.Table]:
    """What a release keeps of checkpoints without their weights, by their places."""
    if not (release.folder / KEPT).is_file():
        return {}
    whole = pq.read_table(release.folder / KEPT)
    names = whole.column(_OF).to_pylist()
    return {
        place: whole.filter(pa.compute.equal(whole.column(_OF), place)).drop_columns([_OF])
        for place in dict.fromkeys(names)
    }


def _unpack_records(release: Release, records: Records, digests: Collection[str] | None = None) -> None:
    """Write records, those of jobs of these digests or all, under the digests of their jobs."""
    provenance = _json(release, PROVENANCE)
    for table, known in provenance.items():
        if digests is not None and not any(told["digest"] in digests for told in known.values()):
            continue
        for name, rows in _parts(release.folder / "records" / f"{table}.parquet"):
            told = known[name]
            if digests is not None and told["digest"] not in digests:
                continue
            write_table(records.path(table, told["job"], told["digest"]), rows, told)


def _json(release: Release, name: str) -> Mapping[str, Any]:
    return json.loads((release.folder / name).read_text(encoding="utf-8"))


def _parts(path: Path) -> Iterator[tuple[str, pa.Table]]:
    """The parts of a packed table, each with its own columns in the types that they had."""
    if not path.is_file():
        return
    whole = pq.read_table(path)
    told = json.loads(whole.schema.metadata[_OF.encode()])
    whole = whole.replace_schema_metadata(None).cast(pa.schema([_wide(field) for field in whole.schema]))
    names = whole.column(_OF).to_pylist()
    ends = {name: number + 1 for number, name in enumerate(names)}
    starts = {name: number for number, name in reversed(list(enumerate(names)))}
    for name, layout in told["parts"].items():
        rows = whole.slice(starts.get(name, 0), ends.get(name, 0) - starts.get(name, 0))
        yield name, rows.select(told["layouts"][layout])


def _wide(field: pa.Field) -> pa.Field:
    return field.with_type(pa.float64()) if pa.types.is_float32(field.type) else field
