"""A base with an adapter on it, as one checkpoint: W₀ + ΔW, tensor by tensor, without a merged copy."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from threegates.checkpoints.adapters.deltas import DeltaCheckpoint, Piece, located, open_deltas
from threegates.checkpoints.adapters.factors import Factors
from threegates.checkpoints.adapters.starts import computed, needs_start
from threegates.checkpoints.adapters.targets import Target
from threegates.checkpoints.formats.headers import TensorInfo
from threegates.checkpoints.formats.roles import block, role
from threegates.checkpoints.matched import CUT, ROWS, TURN, Rule, matched, rules_of
from threegates.checkpoints.matching import brought_together
from threegates.checkpoints.pairs import row_ranges
from threegates.checkpoints.rows import rows_of
from threegates.checkpoints.tensors import DTYPES, Checkpoint
from threegates.checkpoints.views import DeviceView, View, as_stored, canonical, naming_digest, on_device
from threegates.errors import CheckpointError

#: Tensors that a message names.
LISTED = 10


@dataclass(frozen=True)
class Made:
    """What an adapter makes of some rows of a matrix (rows, columns).

    start : residual's missing part s·B₀A₀, None of a plain start. scale : DoRA's m/‖W₀ + ΔW‖, of the rows, or
    of the columns of a weight that is stored the other way round; None without magnitudes.
    """

    trained: Factors
    start: Factors | None = None
    scale: Tensor | None = None

    @property
    def update(self) -> Factors:
        """The low-rank part of what changes, before any scale."""
        return self.trained if self.start is None else self.trained.minus(self.start)

    def on(self, weight: Tensor) -> Tensor:
        """W₀ with the adapter on it, float64."""
        found = weight.double() + self.update.dense()
        return found if self.scale is None else found * self.scale

    def rows(self, start: int, stop: int) -> Made:
        """That of some rows."""
        of_rows = self.scale is not None and self.scale.shape[1] == 1
        return Made(
            self.trained.rows(start, stop),
            None if self.start is None else self.start.rows(start, stop),
            self.scale[start:stop] if of_rows and self.scale is not None else self.scale,
        )


@dataclass(frozen=True)
class AdaptedView(View):
    """A checkpoint with an adapter on it; `inner` is the base, and `deltas` a view of what is added.

    What the adapter changes is formed in float64 and given as float32, or as float64 of a float64 base: what
    a forward pass through base and adapter computes with, whatever merging into bf16 would make of it.
    """

    deltas: Checkpoint = field(kw_only=True)
    begin: DeltaCheckpoint | None = field(kw_only=True, default=None)

    @property
    def changes(self) -> DeltaCheckpoint:
        """The adapter itself."""
        return located(self.deltas, next(iter(self.deltas.infos)))[0]

    def piece(self, name: str) -> Piece | None:
        """What a tensor is of an adapter's target; None of one that the adapter leaves alone."""
        return located(self.deltas, name)[1] if name in self.deltas.infos else None

    def stored(self, name: str) -> Tensor:
        """A tensor with the adapter on it."""
        info = self.info(name)
        if info.alias_of is not None:
            # A tied head is the embedding, with the adapter that this has.
            return self.stored(info.alias_of)
        if name not in self.deltas.infos:
            return self.inner.stored(name)
        if not info.shape:
            return self._whole(name)
        return self.stored_rows(name, 0, info.shape[0])

    def stored_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of a tensor with the adapter on it; see `rows_of`."""
        info, piece = self.info(name), self.piece(name)
        if info.alias_of is not None:
            return self.stored_rows(info.alias_of, start, stop)
        if piece is None:
            return rows_of(self.inner, name, start, stop)
        if not piece.target.adapted:
            return self._whole(name)[start:stop]
        found = torch.empty((stop - start, *info.shape[1:]), dtype=DTYPES[info.dtype])
        for first, last in row_ranges(tuple(found.shape)):
            here = found[first:last]
            for weight, mine, made in self.parts(name, start + first, start + last):
                here[mine] = made.on(weight)
        return found

    def digest(self) -> str:
        """sha256 over the base's digest, the adapter's files and what its names stand for."""
        told = [self.inner.digest(), self.changes.digest(), naming_digest(self.deltas)]
        told += [self.begin.digest()] if self.begin is not None else []
        return hashlib.sha256("\n".join(told).encode()).hexdigest()

    def made(self, name: str) -> Made | None:
        """What the adapter makes of a matrix, None of one that has no factors of its own or is a stack."""
        piece = self.piece(name)
        if piece is None or not piece.target.adapted or len(self.info(name).shape) != 2:
            return None
        return self._made(piece)

    def before(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of what the adapter is put on: the base's, or those that the adapter brings in their place.

        Under a start that is not zero the adapter brings what its factors were taken off. Of the base's size
        that is no news, and the base itself is taken; of another size the start is off already.
        """
        piece = self.piece(name)
        if piece is None or not self._brings(piece.target):
            return rows_of(self.inner, name, start, stop)
        return self.changes.read(piece.target.plain)[start:stop]

    def _brings(self, target: Target) -> bool:
        if not (target.adapted and target.plain):
            return False
        size = self.changes.file.info(target.plain).shape
        known = self.inner.infos.get(target.name)
        return not self._started(target) or known is None or known.shape[:1] != size[:1]

    def _started(self, target: Target) -> bool:
        return target.starts and needs_start(self.changes.settings, self.begin is not None)

    def parts(self, name: str, start: int, stop: int) -> Iterator[tuple[Tensor, int | slice, Made]]:
        """What the adapter is put on, where among the rows that is, and what it makes of it.

        One part of a matrix, and one for each matrix of a stack.
        """
        piece = self.piece(name)
        assert piece is not None
        weight = self.before(name, start, stop)
        if weight.dim() < 3:
            yield weight, slice(None), self._made(piece).rows(start, stop)
            return
        for place, expert in enumerate(range(start, stop)):
            whole = replace(piece, expert=expert, rows=(0, piece.target.shape[1]))
            yield weight[place], place, self._made(whole)

    def _made(self, piece: Piece) -> Made:
        """What is made of the rows of a piece, in the order in which the model has them."""
        made = self._of_matrix(piece.target, piece.expert or 0).rows(*piece.rows)
        if piece.columns is None:
            return made
        sides = [one.columns(*piece.columns).turned() if one else None for one in (made.trained, made.start)]
        assert sides[0] is not None
        return Made(sides[0], sides[1])

    def _of_matrix(self, target: Target, expert: int) -> Made:
        """What is made of a target's whole matrix; the last is kept, for its rows are asked for in blocks."""
        key = (target.name, expert)
        if key not in self._latest:
            trained, start = self.changes.factors(target, expert), self._start(target, expert)
            scale = self._scale(target, trained, start) if target.magnitudes else None
            self._latest.clear()
            self._latest[key] = Made(trained, start, scale)
        return self._latest[key]

    @cached_property
    def _latest(self) -> dict[tuple[str, int], Made]:
        return {}

    def _start(self, target: Target, expert: int) -> Factors | None:
        if not self._started(target) or self._brings(target):
            return None
        if self.begin is not None:
            return self.begin.factors(self.begin.targets[target.name], expert)
        weight = self.weight_of(target, expert)
        rank = self.changes.factors(target, expert).left.shape[1]
        kind = str(self.changes.settings.start)
        # peft turns a weight for PiSSA's start, and takes it as it is stored for OLoRA's.
        turned = target.turned and kind == "pissa"
        found = computed(kind, weight.T if turned else weight, rank, target.scaling)
        return found.turned() if turned else found

    def weight_of(self, target: Target, expert: int) -> Tensor:
        """A target's whole matrix as the base has it, put together from the parts that it is cut into."""
        parts = []
        for name, piece in self._parts_of[target.name]:
            if piece.expert in (None, expert) or not target.experts:
                height = target.shape[0] if self._brings(target) else self.inner.info(name).shape[0]
                rows = self.before(name, 0, height)
                rows = rows[expert] if rows.dim() == 3 else rows
                parts.append((piece.rows[0], piece.columns or (0, 0), rows.T if piece.columns else rows))
        parts.sort(key=lambda part: part[:2])
        together = [part[2] for part in parts]
        return torch.cat(together, dim=1 if parts[0][1] != (0, 0) else 0)

    @cached_property
    def _parts_of(self) -> dict[str, list[tuple[str, Piece]]]:
        """Names of the tensors that each target is cut into, and where in it they lie."""
        found: dict[str, list[tuple[str, Piece]]] = {}
        for name in self.deltas.infos:
            piece = located(self.deltas, name)[1]
            found.setdefault(piece.target.name, []).append((name, piece))
        return found

    def _scale(self, target: Target, trained: Factors, start: Factors | None) -> Tensor:
        """DoRA's m/‖W₀ + ΔW‖, norms of the rows of the weight as (out, in).

        **Source** Liu et al. (2024), arXiv 2402.09353, eq. 5.
        """
        whole = Made(trained, start).on(self.weight_of(target, 0))
        axis = 0 if target.turned else 1
        norms = torch.linalg.vector_norm(whole, dim=axis, keepdim=True)
        return self.changes.read(target.magnitudes).double().reshape(norms.shape) / norms

    def _whole(self, name: str) -> Tensor:
        """A tensor without factors: one in the base's place, a bias that is added to, or some rows."""
        piece = self.piece(name)
        assert piece is not None
        target = piece.target
        if target.plain and not target.tokens:
            return self._plain(piece, self.info(name).shape)
        weight = self.changes.read(target.plain) if target.plain else self.inner.stored(name)
        if target.bias:
            added = target.scaling * self.changes.read(target.bias).double()
            return (weight.double() + added[piece.rows[0] : piece.rows[1]]).to(DTYPES[self.info(name).dtype])
        found = weight.clone()
        found[list(target.rows)] = self.changes.read(target.tokens).to(found.dtype)
        return found

    def _plain(self, piece: Piece, shape: tuple[int, ...]) -> Tensor:
        """What stands in a tensor's place, or the part of it that the tensor is."""
        whole = self.changes.read(piece.target.plain)
        if whole.dim() < 2 or len(shape) > 2:
            return whole[slice(*piece.rows)] if whole.dim() == 1 else whole
        part = whole.reshape(-1, whole.shape[-1])[slice(*piece.rows)]
        return part if piece.columns is None else part[:, slice(*piece.columns)].T


def adapted(
    base: Checkpoint, folder: Path, begin: Path | None = None, revision: str | None = None
) -> tuple[Checkpoint, Checkpoint]:
    """The base, and the base with the adapter of a folder on it, both under names that they have in common.

    base : under canonical names, whole. begin : folder of the factors that the adapter started from, where
    these are not zero and do not follow from the base. revision : the commit that the adapter is of.

    Raises
    ------
    CheckpointError : as `open_deltas`; the base lacks a tensor that the adapter changes, or has it in another
        shape; or the start does not fit the adapter.
    """
    if isinstance(base, DeviceView):
        sides = adapted(base.inner, folder, begin, revision)
        return on_device(sides[0], base.device), on_device(sides[1], base.device)
    raw = as_stored(base)
    deltas = open_deltas(folder, base, raw)
    start = None if begin is None else open_deltas(begin, base, raw)
    needs_start(deltas.settings, start is not None)
    _check_start(deltas, start)
    named, changes = _named(base, deltas)
    _check_fit(named, changes, folder)
    named = matched(named, _shorter(named, changes))
    return named, replace(_view(named, changes, start), revision=revision)


def _named(base: Checkpoint, deltas: DeltaCheckpoint) -> tuple[Checkpoint, Checkpoint]:
    """Both under common names, experts one by one: an adapter has the names of the model in memory.

    Where the base stacks its experts, the adapter's stacks lie as these do, and are cut by the same rules.
    """
    base = brought_together(base, base)[0]
    found = matched(canonical(deltas), [rule for rule in rules_of(base) if rule[0] in (CUT, TURN)])
    if found.infos.keys() <= base.infos.keys():
        return base, found
    return brought_together(base, found)


def _check_fit(base: Checkpoint, changes: Checkpoint, folder: Path) -> None:
    def shape(name: str) -> tuple[int, ...]:
        return changes.infos[name].shape

    wrong = [name for name in changes.infos if not _fits(base, changes, name)]
    if not wrong:
        return
    lines = [
        f"{name}: {list(shape(name))} in the adapter, "
        + (f"{list(base.infos[name].shape)} in the base" if name in base.infos else "missing in the base")
        for name in wrong[:LISTED]
    ]
    more = [f"and {len(wrong) - LISTED} more"] if len(wrong) > LISTED else []
    told = located(changes, wrong[0])[0].settings.base
    raise CheckpointError(
        f"the adapter does not fit its base: {len(wrong)} of the {len(changes.infos)} tensors it changes",
        where=f"base {base.folder}, adapter {folder}",
        expected="a tensor of the base for each, in one shape",
        found="".join(f"\n    {line}" for line in [*lines, *more]),
        remedy=f"give the base that it was trained on{f', {told}' if told else ''}",
    )


def _per_token(base: Checkpoint, info: TensorInfo) -> bool:
    """Whether a tensor is an embedding or head of the base's width, whose rows are tokens."""
    known = base.infos.get(info.name)
    rows = role(info.name, info.shape) in ("embedding", "head") and block(info.name) is None
    return rows and known is not None and known.shape[1:] == info.shape[1:]


def _shorter(base: Checkpoint, changes: Checkpoint) -> list[Rule]:
    """Embeddings and heads of which the adapter has fewer rows than the base: the common ones count."""
    told = [_info(base, changes, name, one) for name, one in changes.infos.items()]
    return [
        (ROWS, one.name, one.shape[0])
        for one in told
        if _per_token(base, one)
        and base.infos[one.name].alias_of is None
        and one.shape[0] < base.infos[one.name].shape[0]
    ]


def _common(base: Checkpoint, info: TensorInfo) -> TensorInfo:
    """The rows of an embedding or head that both sides have, where the adapter has more."""
    if not _per_token(base, info) or info.shape[0] <= base.infos[info.name].shape[0]:
        return info
    return replace(info, shape=base.infos[info.name].shape)


def _fits(base: Checkpoint, changes: Checkpoint, name: str) -> bool:
    """Whether a base has what the adapter changes; what takes another tensor's place may have any size."""
    target, shape = located(changes, name)[1].target, changes.infos[name].shape
    if target.plain:
        return True
    known = base.infos[name].shape if name in base.infos else None
    if target.tokens:
        return known is not None and known[1:] == shape[1:] and max(target.rows) < known[0]
    return known == shape


def _check_start(deltas: DeltaCheckpoint, start: DeltaCheckpoint | None) -> None:
    if start is None:
        return
    own, begun = (
        {name: one.shape for name, one in side.targets.items() if one.adapted} for side in (deltas, start)
    )
    if own != begun or deltas.settings.magnitudes != start.settings.magnitudes:
        raise CheckpointError(
            "that start is another adapter's",
            where=f"adapter {deltas.folder}, start {start.folder}",
            expected=f"factors of the same {len(own)} tensors",
            found=", ".join(name for name, _ in sorted(set(own.items()) ^ set(begun.items()), key=str)[:3])
            + " in one alone"
            if own != begun
            else "one with magnitudes, one without",
            remedy="give the folder that this adapter was saved to before its training",
        )


def _view(base: Checkpoint, changes: Checkpoint, begin: DeltaCheckpoint | None) -> AdaptedView:
    infos = dict(base.infos)
    for name, told in changes.infos.items():
        infos[name] = _common(base, _info(base, changes, name, told))
    return AdaptedView(
        base.folder,
        base.config,
        dict(sorted(infos.items())),
        base.revision,
        base.kept_digest,
        inner=base,
        deltas=changes,
        begin=begin,
    )


def _info(base: Checkpoint, changes: Checkpoint, name: str, told: TensorInfo) -> TensorInfo:
    """What a header would say of a tensor with the adapter on it."""
    deltas, piece = located(changes, name)
    if piece.target.plain:
        own = deltas.file.info(piece.target.plain)
        shape = own.shape if piece.target.tokens else told.shape
        return replace(told, dtype="F32" if piece.target.adapted else own.dtype, shape=shape)
    known = base.infos[name]
    if piece.target.tokens:
        return replace(known, alias_of=None)
    dtype = "F64" if known.dtype == "F64" else "F32"
    # Whoever finds a value that is not finite looks into the adapter first.
    return replace(known, dtype=dtype, file=told.file, alias_of=None)
