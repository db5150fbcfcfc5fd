"""What a pair's headers tell before a tensor is read: what is compared, what hinders it, bytes to fetch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from threegates.checkpoints.dequantised import Dequantised
from threegates.checkpoints.formats.headers import TensorInfo
from threegates.checkpoints.formats.roles import TEXT, block, is_matrix, role
from threegates.checkpoints.notes import pair_notes
from threegates.checkpoints.pairs import AlignedTensor, Status, align
from threegates.checkpoints.quantised import or_dequantised, quantised
from threegates.checkpoints.tensors import EMBEDDING, HEAD, Checkpoint
from threegates.checkpoints.views import as_stored
from threegates.errors import PairError

#: Keys of config.json under which families keep the number of experts.
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


@dataclass(frozen=True)
class Side:
    """One checkpoint as config and headers tell of it.

    kind : `model_type` of its config. dtypes : bytes of the tensors stored in each type. head : tied, stored
    or none. vocabulary : rows of the embedding, and what config.json says. here : it lies on this machine.
    blocks : of the text model. others : blocks of other stacks, such as a vision tower's.
    """

    kind: str
    revision: str | None
    tensors: int
    parameters: int
    dtypes: dict[str, int]
    files: int
    blocks: int
    experts: int
    head: str
    vocabulary: tuple[int | None, int | None]
    here: bool
    others: dict[str, int] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(self.dtypes.values())


@dataclass(frozen=True)
class Problem:
    """Why a pair cannot be measured, and what to do about it."""

    what: str
    remedy: str


@dataclass(frozen=True)
class Findings:
    """A pair before it is measured.

    aligned : every tensor of the choice. fetch_whole, fetch_ranges : bytes to fetch when both checkpoints are
    downloaded, and when only the choice is read by ranges; what lies on this machine costs nothing.
    """

    base: Side
    tuned: Side
    aligned: list[AlignedTensor]
    fetch_whole: int
    fetch_ranges: int
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def compared(self) -> list[AlignedTensor]:
        """Tensors that both sides have in one shape."""
        return [row for row in self.aligned if row.status is Status.compared]

    @property
    def matrices(self) -> list[AlignedTensor]:
        """Those of them that have spectra: matrices with entries in blocks, of whatever stack."""
        return [
            row
            for row in self.compared
            if block(row.name) and is_matrix(row.name, shape_of(row)) and math.prod(shape_of(row))
        ]


def shape_of(row: AlignedTensor) -> tuple[int, ...]:
    """Shape of an aligned tensor, the base's where both sides have it."""
    shape = row.shape_base if row.shape_base is not None else row.shape_tuned
    assert shape is not None
    return shape


def side(checkpoint: Checkpoint, here: bool) -> Side:
    """What config and headers tell of a checkpoint; no tensor is read."""
    own = stored_tensors(checkpoint)
    dtypes: Counter[str] = Counter()
    for info in own:
        dtypes[info.stored_as] += info.stored_bytes
    config = _text_config(checkpoint)
    stacks = Counter(found[0] for found in {block(info.name) for info in own} if found is not None)
    return Side(
        kind=str(checkpoint.config.get("model_type", "unknown")),
        revision=checkpoint.revision,
        tensors=len(own),
        parameters=sum(info.size for info in own),
        dtypes=dict(sorted(dtypes.items())),
        files=len({info.file for info in own}),
        blocks=sum(count for stack, count in stacks.items() if stack in TEXT),
        experts=next((int(config[key]) for key in _EXPERTS if config.get(key)), 0),
        head=_head(checkpoint),
        vocabulary=(_embedding_rows(own), config.get("vocab_size")),
        here=here,
        others={stack: count for stack, count in sorted(stacks.items()) if stack not in TEXT},
    )


def look_at(base: Checkpoint, tuned: Checkpoint, here: tuple[bool, bool], whole: tuple[int, int]) -> Findings:
    """What the headers of a pair tell; where tensors are chosen, the checkpoints are views of those alone.

    here : which side lies on this machine already. whole : bytes of the weight files of either side.
    """
    sides = (side(base, here[0]), side(tuned, here[1]))
    aligned, problems = _aligned(base, tuned)
    problems += [problem for one in (base, tuned) for problem in _quantised(one)]
    chosen = [sum(info.stored_bytes for info in stored_tensors(one)) for one in (base, tuned)]
    found = Findings(
        *sides,
        aligned,
        fetch_whole=sum(size for size, local in zip(whole, here, strict=True) if not local),
        fetch_ranges=sum(size for size, local in zip(chosen, here, strict=True) if not local),
        problems=problems,
    )
    if aligned and not found.compared:
        problems.append(Problem("no tensor of the choice is in both checkpoints", "choose other tensors"))
    found.notes.extend([*pair_notes(base, tuned), *_notes(*sides, aligned)])
    return found


def stored_tensors(checkpoint: Checkpoint) -> list[TensorInfo]:
    """Tensors that a checkpoint stores; a tied head is its embedding."""
    return [info for info in checkpoint.infos.values() if info.alias_of is None]


def file_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of the weight files, headers included, from where their last tensors end."""
    if isinstance(raw := as_stored(checkpoint), Dequantised):
        return file_bytes(raw.source)
    ends: dict[Path, int] = {}
    for info in stored_tensors(checkpoint):
        ends[info.file] = max(ends.get(info.file, 0), info.offsets[1])
    return sum(ends.values())


def _aligned(base: Checkpoint, tuned: Checkpoint) -> tuple[list[AlignedTensor], list[Problem]]:
    try:
        return align(base, tuned), []
    except PairError as error:
        return [], [Problem(f"{error.what}: {error.found}", error.remedy or "")]


def _quantised(checkpoint: Checkpoint) -> list[Problem]:
    told = quantised(checkpoint.config, checkpoint.infos.values())
    what = f"{checkpoint.folder.name} is quantised ({told}), so that its weights are not those of training"
    remedy = or_dequantised("take the unquantised checkpoint", checkpoint.infos.values())
    return [Problem(what, remedy)] if told else []


def _text_config(checkpoint: Checkpoint) -> dict:
    """The language model's part of a config; models of text and images keep it in a part of its own."""
    inner = checkpoint.config.get("text_config")
    return inner if isinstance(inner, dict) else checkpoint.config


def _head(checkpoint: Checkpoint) -> str:
    info = checkpoint.infos.get(HEAD)
    if info is None:
        return "none"
    return "stored" if info.alias_of is None else "tied"


def _embedding_rows(own: Sequence[TensorInfo]) -> int | None:
    found = [info for info in own if info.name == EMBEDDING or info.name.endswith("." + EMBEDDING)]
    return found[0].shape[0] if len(found) == 1 else None


def _notes(base: Side, tuned: Side, aligned: Sequence[AlignedTensor]) -> list[str]:
    notes = []
    if base.kind != tuned.kind:
        notes.append(f"the configs name two kinds of model: {base.kind} and {tuned.kind}")
    if base.head != tuned.head:
        notes.append(f"the head is {base.head} in the base and {tuned.head} in the tuned checkpoint")
    for name, one in (("base", base), ("tuned", tuned)):
        rows, told = one.vocabulary
        if rows is not None and told is not None and rows != told:
            notes.append(f"the {name}'s embedding has {rows} rows, its config says {told}")
        if one.experts:
            notes.append(f"the {name} is a mixture of {one.experts} experts a block")
    if set(base.dtypes) != set(tuned.dtypes):
        notes.append(
            f"the base is stored in {', '.join(base.dtypes)}, the tuned one in {', '.join(tuned.dtypes)}: "
            "bf16 sparsity rounds both once, the column sparsity_fp32 compares them as stored"
        )
    rest = Counter(str(row.status) for row in aligned if row.status is not Status.compared)
    for status, number in sorted(rest.items()):
        names = [row.name for row in aligned if str(row.status) == status][:3]
        notes.append(f"{number} {status}, reported and not compared: {', '.join(names)}")
    odd = [row.name for row in aligned if len(shape_of(row)) > 2]
    if odd:
        notes.append(f"{len(odd)} tensors of more than two dimensions have no spectra: {', '.join(odd[:3])}")
    return notes


def by_role(rows: Sequence[AlignedTensor]) -> dict[str, tuple[int, int]]:
    """Number of tensors, and of entries, of each role."""
    found: dict[str, tuple[int, int]] = {}
    for row in rows:
        shape = shape_of(row)
        number, entries = found.get(name := role(row.name, shape), (0, 0))
        found[name] = (number + 1, entries + math.prod(shape))
    return found
