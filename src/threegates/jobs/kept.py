"""What a release keeps of checkpoints without their weights, so that jobs about several runs can be measured.

Such a job reads of the other runs only where storage changed (masks of a `group`, untouched runs beside a
rotated one), or only how far each matrix went (partners in norm). Kept is, of every tensor:

| column | holds |
|---|---|
| mask | the update mask, packed: one bit a weight |
| moves | by how many bf16 codes each changed weight moved: zigzag numbers, cut into planes of bytes |
| norm | ‖ΔW‖ of the weights as stored, as partners in norm take it |

Base, mask and moves give the tuned tensor in bf16 back to the bit. Masks at every tolerance, counts of rows
and columns and the scale of the storage noise follow from it, so that the measuring code needs no second
way. A tensor as stored, in float32, does not follow: only jobs that look at nothing but bf16 are served.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from threegates.checkpoints.pairs import Status, align, load_pair
from threegates.checkpoints.places import Place
from threegates.checkpoints.tensors import Checkpoint
from threegates.checkpoints.views import View
from threegates.errors import CheckpointError
from threegates.geometry.masks import pack, unpack
from threegates.geometry.precision import bf16_codes, bf16_from_codes
from threegates.measures.partners import Partner

if TYPE_CHECKING:
    from threegates.jobs.jobs import Job

#: Beside what is left of a checkpoint without weights.
NAME = "kept.parquet"
COLUMNS = pa.schema(
    [
        ("tensor", pa.string()),
        ("base", pa.string()),
        ("changed", pa.int64()),
        ("mask", pa.binary()),
        ("moves", pa.binary()),
        ("norm", pa.float64()),
    ]
)
UPDATE, NORM = "mask", "norm"
#: By kind of job: the column that stands for weights, and the places that it is enough for.
_ENOUGH = {
    "group": (UPDATE, ("run:",)),
    "rotation": (UPDATE, ("same", "other")),
    "drift": (NORM, ("partner",)),
    "overlap": (NORM, ("partner",)),
}
_BYTES = 4


# ------------------------------------------------------------------------------------------------ keeping


def kept_table(base: Checkpoint, tuned: Checkpoint, columns: Iterable[str]) -> pa.Table:
    """What is kept of a pair with weights, one row a tensor that both sides have in one shape.

    columns : `UPDATE`, `NORM` or both; the others are null.
    """
    wanted, names = set(columns), [row.name for row in align(base, tuned) if row.status is Status.compared]
    partner, digest = Partner(base, tuned), base.digest()
    rows = [
        {"tensor": name, "base": digest}
        | (_update(base, tuned, name) if UPDATE in wanted else {})
        | ({"norm": partner.norm(name)} if NORM in wanted else {})
        for name in names
    ]
    return pa.Table.from_pylist(rows, COLUMNS)


def _update(base: Checkpoint, tuned: Checkpoint, name: str) -> dict[str, Any]:
    pair = load_pair(base, tuned, name)
    moved = bf16_codes(pair.tuned.cpu()) - bf16_codes(pair.base.cpu())
    mask = moved != 0
    packed = pack(mask).numpy().tobytes()
    return {"changed": int(mask.count_nonzero()), "mask": packed, "moves": _planes(moved[mask].numpy())}


def _planes(moves: np.ndarray) -> bytes:
    """Signed numbers as bytes: all lowest ones, then the next, which are 0 for small moves."""
    zigzag = ((moves << 1) ^ (moves >> 31)).astype("<u4")
    return zigzag.view(np.uint8).reshape(-1, _BYTES).T.tobytes()


def _moves(planes: bytes) -> Tensor:
    """Undo `_planes`."""
    zigzag = np.frombuffer(planes, np.uint8).reshape(_BYTES, -1).T.copy().view("<u4").ravel().astype(np.int64)
    return torch.from_numpy(((zigzag >> 1) ^ -(zigzag & 1)).astype(np.int32))


def read_kept(folder: Path) -> pa.Table | None:
    """What was kept of the checkpoint in a folder, if anything was."""
    return pq.read_table(folder / NAME, schema=COLUMNS) if (folder / NAME).is_file() else None


def kept_columns(table: pa.Table | None) -> set[str]:
    """Which of `UPDATE` and `NORM` a table has."""
    if table is None:
        return set()
    return {name for name in (UPDATE, NORM) if table.num_rows and not table.column(name).null_count}


# ---------------------------------------------------------------------------------------------- measuring


@dataclass(frozen=True)
class _Kept(View):
    """A checkpoint of which its base and what was kept stand for the weights."""

    base: Checkpoint = field(kw_only=True)
    rows: Mapping[str, Mapping[str, Any]] = field(kw_only=True)

    def stored_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of a tensor; see `rows_of`."""
        return self.stored(name)[start:stop]


class KeptUpdate(_Kept):
    """A tuned checkpoint in bf16, whatever it was stored in."""

    def stored(self, name: str) -> Tensor:
        """The tensor rounded to bf16, exactly; a zero that did not change keeps the base's sign."""
        self.info(name)
        before, row = self.base.bf16(name), self.rows[name]
        packed = torch.from_numpy(np.frombuffer(row["mask"], np.uint8).copy())
        mask, after = unpack(packed, before.shape).to(before.device), before.clone()
        after[mask] = bf16_from_codes(bf16_codes(before[mask]) + _moves(row["moves"]).to(before.device))
        return after


class KeptNorm(_Kept):
    """A stand-in that is as far from the base as the tuned checkpoint was, and is right in nothing else.

    For partners, who are asked for ‖ΔW‖ alone.
    """

    def stored(self, name: str) -> Tensor:
        """The base in float64, with one entry moved by ‖ΔW‖ where the difference is exact.

        Raises
        ------
        CheckpointError : there is no such entry, which a matrix with both signs always has.
        """
        self.info(name)
        norm, after = float(self.rows[name]["norm"]), self.base.stored(name).double().clone()
        flat = after.view(-1)
        exact = ((flat + norm) - flat == norm).nonzero()
        if not len(exact):
            raise CheckpointError(
                "a kept norm cannot be laid out as an update of its base",
                where=f"{self.folder}, tensor '{name}'",
                expected="an entry that can be moved by it without rounding",
                found=norm,
                remedy=_train_again([run_name(self.folder)]),
            )
        flat[exact[0]] += norm
        return after


def in_bf16(tuned: Checkpoint, base: Checkpoint) -> Checkpoint:
    """A checkpoint of which nothing but bf16 values will be read: itself, or what was kept of its update.

    Raises
    ------
    CheckpointError : it has no weights, and its update was not kept or is one of another base.
    """
    return tuned if tuned.kept_digest is None else _kept(KeptUpdate, tuned, base, UPDATE)


def in_norm(tuned: Checkpoint, base: Checkpoint) -> Checkpoint:
    """A checkpoint that will be asked for norms of its update alone: itself, or what was kept of them.

    Raises
    ------
    CheckpointError : it has no weights, and its norms were not kept or are those of another base.
    """
    return tuned if tuned.kept_digest is None else _kept(KeptNorm, tuned, base, NORM)


def _kept(kind: type[_Kept], tuned: Checkpoint, base: Checkpoint, column: str) -> Checkpoint:
    table, run = read_kept(tuned.folder), run_name(tuned.folder)
    if table is None or column not in kept_columns(table):
        raise CheckpointError(
            f"the run {run} was released without its weights, and what is compared of it was not kept",
            where=tuned.folder,
            expected=f"{NAME} with the column {column}",
            remedy=_train_again([run]),
        )
    rows = {row["tensor"]: row for row in table.to_pylist()}
    bases = {row["base"] for row in rows.values()}
    if bases != {base.digest()}:
        raise CheckpointError(
            f"what was kept of the run {run} is an update of another base",
            where=tuned.folder / NAME,
            expected=", ".join(sorted(bases)),
            found=base.digest(),
            remedy=_train_again([run]),
        )
    told = (tuned.folder, tuned.config, tuned.infos, tuned.revision, tuned.kept_digest)
    return kind(*told, inner=tuned, base=base, rows=rows)


def sides_in_norm(sides: Mapping[str, Checkpoint]) -> dict[str, Checkpoint]:
    """The sides of a job, its partner by what was kept of it if it has no weights."""
    partner = {"partner": in_norm(sides["partner"], sides["base"])} if "partner" in sides else {}
    return {**sides, **partner}


# ------------------------------------------------------------------------------------------------ lacking


def runs_lacking(jobs: Sequence[Job]) -> list[str]:
    """Names of the lab's runs without which these jobs cannot be measured, because their weights are gone."""
    return sorted({run for job in jobs for run in _lacking(job)})


def _lacking(job: Job) -> Iterator[str]:
    column, places = _ENOUGH.get(job.kind, ("", ()))
    for place, text in job.arguments["places"].items():
        folder = Path(Place.parse(text).folder)
        if Place.parse(text).repo or Checkpoint.open(folder).kept_digest is None:
            continue
        if not place.startswith(places) or column not in kept_columns(read_kept(folder)):
            yield run_name(folder)


def run_name(folder: Path) -> str:
    """Name of the lab's run that a checkpoint's folder belongs to: the run's folder without its digest."""
    return folder.parent.name.rpartition("-")[0] or folder.name


def _train_again(runs: Sequence[str]) -> str:
    return "train it: `threegates train --profile full " + " ".join(f"--only {run}" for run in runs) + "`"
