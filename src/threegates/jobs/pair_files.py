"""Measuring one pair into files of the user's choice, all of them or none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from threegates.checkpoints.adapters.notes import adapter_of
from threegates.checkpoints.formats.families import family_of
from threegates.checkpoints.notes import pair_notes
from threegates.checkpoints.pairs import Status
from threegates.checkpoints.views import naming_digest
from threegates.errors import PairError, RecordError, ThreeGatesError
from threegates.geometry.decomposition import check_accuracy
from threegates.jobs.adapters import adapter_sanity, merging_told
from threegates.jobs.batches import measure_parts, opened
from threegates.jobs.jobs import Job
from threegates.jobs.kinds.known import job_provenance
from threegates.jobs.kinds.table import table_job
from threegates.jobs.nulls import FOUNDING, asked_for
from threegates.jobs.partial import parts_folder
from threegates.jobs.sanity import coverage, floors, sanity
from threegates.jobs.sources import Source, StudyPair
from threegates.measures.by_tensor import Parts, as_tables
from threegates.measures.changes import write_masks
from threegates.measures.tensor_table import ADAPTER, MEASURED
from threegates.measures.whole_models import pair_sparsity
from threegates.records.provenance import build_folder, build_state
from threegates.records.store import read_parquet, read_provenance, write_record

#: Tensors that are named where many are left out for one reason.
_LISTED = 10
#: Folder of the build, and of what is released, that holds tables of pairs of the manifest.
PAIRS = "pairs"


@dataclass(frozen=True)
class Written:
    """The files of a measurement, and its table of tensors.

    notes : what was made of names that are not canonical, and what else is to be known of either side.
    uncovered : how much of the stored weights the comparison leaves out.
    """

    files: list[Path]
    tensor: pd.DataFrame
    notes: tuple[str, ...] = ()
    uncovered: tuple[str, ...] = ()
    adapter: pd.DataFrame | None = None

    def summary(self) -> str:
        """The pair's sparsity and its files, in a few lines."""
        compared = self.tensor["status"] == "compared"
        lines = [*self.notes, f"{int(compared.sum())} tensors compared"]
        lines += [
            line
            for status, rows in self.tensor[~compared].groupby("status")
            for line in _left(str(status), rows)
        ]
        for row in pair_sparsity(self.tensor).itertuples():
            lines.append(f"changed in bf16: {row.changed:.0f} of {row.size:.0f} weights")
            lines.append(f"sparsity in bf16 {row.sparsity:.4f}, as stored {row.sparsity_fp32:.4f}")
            lines.append(f"sparsity of Gaussian noise of the same norm {row.sparsity_storage_norm:.4f}")
        odd = [f"look twice: {told}" for told in (*sanity(self.tensor), *adapter_sanity(self.adapter))]
        written = (f"written: {file}" for file in self.files)
        told = (*self._spectra(), *floors(self.tensor), *merging_told(self.adapter))
        return "\n".join([*lines, *told, *self.uncovered, *odd, *written])

    def _spectra(self) -> list[str]:
        of_matrices = self.tensor[self.tensor["spectra"] == MEASURED]
        if of_matrices.empty:
            return []
        angles = of_matrices[["angle_left_max", "angle_right_max"]].max(axis=1)
        return [
            f"spectra of {len(of_matrices)} matrices: median NSS {of_matrices['nss'].median():.2e}, "
            f"median of their largest angles {angles.median():.2e} rad"
        ]


def _left(status: str, rows: pd.DataFrame) -> list[str]:
    """What is not compared for one reason: each tensor, or of many the first ones."""
    listed = [f"not compared: {row.tensor} ({_why(row)})" for row in rows.head(_LISTED).itertuples()]
    rest = len(rows) - _LISTED
    return [*listed, f"not compared: {rest} more ({status})"] if rest > 0 else listed


def _why(row: Any) -> str:
    """A status; with what is not finite, or with both shapes."""
    if row.status == Status.not_finite:
        return f"{row.status}: {row.spectra.removeprefix('not compared: ')}"
    if row.status in (Status.resized, Status.empty):
        return f"{row.status}: {list(row.shape)} in base, {list(row.shape_tuned)} in tuned"
    return row.status


def measure_to_files(
    pair: StudyPair,
    out: Path,
    *,
    masks: Path | None,
    axis: Path | None,
    adapter: Path | None = None,
    seed: int,
    nulls: Sequence[str] = FOUNDING,
    spectra: bool = True,
    accuracy: str = "certified",
    workers: int | None = 1,
) -> Written:
    """Measure a pair and write its table of tensors, and its masks and axis table where they are asked for.

    Parts of a measurement under way lie in ``OUT.parts`` beside the output. `nulls` are names; `accuracy` is
    that of spectra, see `threegates.measures.tensor_table.PairTable`.

    Raises
    ------
    CheckpointError, PairError : the pair cannot be compared; no file is written.
    GeometryError : there is no null or no accuracy of such a name.
    RecordError : an output is a folder, or cannot be written.
    """
    targets = [path for path in (out, masks, axis, adapter) if path is not None]
    _check_targets(targets, masks)
    _check_adapter(pair, adapter)
    check_accuracy(accuracy)
    asked = {"seed": seed, "nulls": asked_for(nulls), "spectra": spectra, "accuracy": accuracy}
    job = table_job(pair, {**asked, "axes": axis is not None})
    parts = Parts(parts_folder(out), job.digest)
    tables = _measured(job, parts, workers)
    # Masks first: what can still fail comes before the table that says that all went well.
    if masks:
        tensor = tables["tensor"]
        compared = set(tensor.loc[tensor["status"] == "compared", "tensor"])
        write_masks(pair.base.checkpoint, pair.tuned.checkpoint, masks, compared)
    files = {"axis": axis, ADAPTER: adapter, "tensor": out}
    _write(job, {table: path for table, path in files.items() if path}, tables, _asked(pair))
    parts.remove()
    sides = {"base": pair.base.checkpoint, "tuned": pair.tuned.checkpoint}
    uncovered = coverage(tables["tensor"], sides)
    return Written(targets, tables["tensor"], tuple(_notes(pair)), tuple(uncovered), tables.get(ADAPTER))


def _check_adapter(pair: StudyPair, adapter: Path | None) -> None:
    if adapter and adapter_of(pair.tuned.checkpoint) is None:
        raise PairError(
            "the tuned side is no adapter, so that there is no table of one",
            where=f"--adapter {adapter}",
            expected="a folder with adapter_config.json as --tuned",
            found=pair.tuned.checkpoint.folder,
            remedy="leave --adapter out",
        )


def _notes(pair: StudyPair) -> list[str]:
    """What is to be known of a pair's names and folders beside its numbers."""
    sides = (pair.base.checkpoint, pair.tuned.checkpoint)
    families = {family_of(side) for side in sides}
    renamed = any(map(naming_digest, sides))
    told = sorted(family.note for family in families if renamed or not family.known)
    asked = [
        f"{side}: {named(source)}"
        for side, source in (("base", pair.base), ("tuned", pair.tuned))
        if source.asked
    ]
    return [*asked, *told, *pair_notes(*sides, read=True)]


def _asked(pair: StudyPair) -> dict[str, Any]:
    """How repositories were named; no folder of this machine is among what a table states."""
    told = {
        side: source.asked for side, source in (("base", pair.base), ("tuned", pair.tuned)) if source.asked
    }
    return {"asked": told} if told else {}


def measure_series(
    pairs: Sequence[StudyPair],
    folder: Path | None,
    *,
    progress: Callable[[str], None] = print,
    **options: Any,
) -> list[Path]:
    """Measure pairs one after the other, each into a table of its own; one that is measured already stays.

    Parameters
    ----------
    folder : of the tables ``PAIR.parquet``; of pairs of a manifest build/pairs by default.
    progress : called with a line about each pair, when it is done.
    options : as `measure_to_files`, without masks and axis table.

    Raises
    ------
    RecordError : an output is a file, or masks and an axis table are asked for. Otherwise as
        `measure_to_files`; what was measured before stays.
    """
    _check_series(folder, options)
    targets = [folder / f"{pair.name}.parquet" if folder else default_output(_entry(pair)) for pair in pairs]
    for number, (pair, target) in enumerate(zip(pairs, targets, strict=True), 1):
        there = _is_measured(pair, target, options)
        if not there:
            target.parent.mkdir(parents=True, exist_ok=True)
            measure_to_files(pair, target, masks=None, axis=None, **options)
        told = _one_line(read_parquet(target))
        progress(f"{number}/{len(pairs)} {named(pair.tuned)}: {told}{', there already' * there}")
    return targets


def _check_series(folder: Path | None, options: dict[str, Any]) -> None:
    extra = [name for name in ("masks", "axis", "adapter") if options.pop(name, None)]
    if extra or (folder is not None and (folder.suffix == ".parquet" or folder.is_file())):
        raise RecordError(
            "several pairs have several tables",
            where=folder,
            expected="--out FOLDER, without --masks, --axis and --adapter",
            found=", ".join(f"--{name}" for name in extra) or "a file's name",
            remedy="give a folder; masks and the other tables are written of one pair at a time",
        )


def _entry(pair: StudyPair) -> str | None:
    return pair.name if pair.tuned.entry else None


def _is_measured(pair: StudyPair, target: Path, options: Mapping[str, Any]) -> bool:
    """Whether a table of exactly this measurement is there."""
    asked = {"seed": options["seed"], "nulls": asked_for(options.get("nulls", FOUNDING))}
    how = {"spectra": options.get("spectra", True), "accuracy": options.get("accuracy", "certified")}
    job = table_job(pair, {**asked, **how, "axes": False})
    try:
        return read_provenance(target).get("digest") == job.digest
    except RecordError:
        return False


def _one_line(tensor: pd.DataFrame) -> str:
    (row,) = pair_sparsity(tensor).itertuples()
    drift = tensor.loc[tensor["spectra"] == MEASURED, "nss"].median()
    told = f", median NSS {drift:.2e}" if drift == drift else ""
    return f"sparsity in bf16 {row.sparsity:.4f}, {(tensor['status'] == 'compared').sum()} tensors{told}"


def named(source: Source) -> str:
    """A checkpoint as it was asked for, with the commit that this was."""
    at = f", commit {source.checkpoint.revision}" if source.checkpoint.revision else ""
    return f"{source.asked or source.label}{at}"


def default_output(pair: str | None) -> Path:
    """Where the table of a manifest's pair lands if nothing else is said.

    Raises
    ------
    RecordError : the pair has no name in a manifest.
    """
    if pair is None:
        raise RecordError(
            "it is not said which file to write", expected="--out FILE.parquet", remedy="add --out"
        )
    return build_folder() / PAIRS / f"{pair}.parquet"


def _measured(job: Job, parts: Parts, workers: int | None) -> dict[str, pd.DataFrame]:
    """The job's tables. A refused pair leaves no parts; a lost network or worker leaves them."""
    try:
        measure_parts({job: parts}, workers, "measure")
        pair = opened(job)
        return as_tables(pair, [parts.read(tensor) for tensor in pair.names])
    except ThreeGatesError as error:
        if isinstance(error, PairError) or not any(parts.root.glob("*/*.json")):
            parts.remove()
        raise


def _write(
    job: Job, paths: Mapping[str, Path], tables: Mapping[str, pd.DataFrame], told: Mapping[str, Any]
) -> None:
    """Write tables as records are written. They have no sidecar, so they state the code's commit too."""
    state = {key: value for key, value in build_state().items() if key != "time"}
    provenance = job_provenance(job, **state, **told)
    for table, path in paths.items():
        write_record(path, tables[table], provenance, table=table, job=job.name, digest=job.digest)


def _check_targets(targets: list[Path], masks: Path | None) -> None:
    for path in targets:
        wanted = ".safetensors" if path == masks else ".parquet"
        if path.suffix != wanted:
            raise RecordError(
                "an output's name has to say of which kind it is",
                where=path,
                expected=f"a name that ends in {wanted}",
                found=path.suffix or "no ending",
                remedy=f"give {path.with_suffix(wanted).name}; pandas turns a parquet file into others",
            )
        if path.is_dir():
            raise RecordError(
                "an output must be a file", where=path, found="a folder", remedy="add a file name"
            )
    if len({path.resolve() for path in targets}) < len(targets):
        raise RecordError("two outputs have one name", where=targets[0], remedy="give each its own file")
