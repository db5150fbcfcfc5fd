"""Views of a checkpoint: under canonical names, some of its tensors only, or on a GPU.

A view is a checkpoint in every respect, with the digest of the one it looks at, and reads nothing before a
tensor is asked for. From the files outwards the order is `canonical`, `chosen`, `on_device`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from threegates.checkpoints.formats.families import naming
from threegates.checkpoints.formats.headers import TensorInfo
from threegates.checkpoints.formats.roles import LINEAR, block, layer, role
from threegates.checkpoints.rows import rows_of
from threegates.checkpoints.tensors import Checkpoint
from threegates.digest import value_digest
from threegates.errors import CheckpointError

#: All that `matrices` can choose.
ROLES = (*LINEAR, "embedding", "head", "norm", "bias", "state", "conv", "other")
#: A block of the text model by its number, or one of a named stack, such as ``vision:3``.
Layer = int | str
STACKS = ("decoder", "encoder", "vision", "audio", "mtp")
_NAMED = re.compile(rf"(?:{'|'.join(STACKS)}):[0-9]+")
# Far beyond any model; a range up to a number with ten digits is a slip of the hand.
MOST_LAYERS = 10_000


V = TypeVar("V", bound="View")


@dataclass(frozen=True)
class View(Checkpoint):
    """A checkpoint that takes tensors, files and digest from another one, `inner`."""

    inner: Checkpoint = field(kw_only=True)

    def stored(self, name: str) -> Tensor:
        """A tensor as stored."""
        self.info(name)
        return self.inner.stored(name)

    def stored_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of a tensor as stored; see `rows_of`."""
        self.info(name)
        return rows_of(self.inner, name, start, stop)

    def files(self) -> list[Path]:
        """Files of the checkpoint that is looked at."""
        return self.inner.files()

    def digest(self) -> str:
        """Digest of the checkpoint that is looked at."""
        return self.inner.digest()


@dataclass(frozen=True)
class CanonicalView(View):
    """A checkpoint under canonical names.

    `sources` has for each name that under which `reader` reads it, then the stored name and rows
    that it stands for. Of a fused tensor, `infos` and `reader` know each part by the place of its bytes.
    """

    reader: Checkpoint = field(kw_only=True)
    sources: dict[str, tuple[str, str, tuple[int, int] | None]] = field(kw_only=True)

    def stored(self, name: str) -> Tensor:
        """A tensor as stored; of a fused one, only the bytes of its part are read."""
        self.info(name)
        return self.reader.stored(self.sources[name][0])

    def stored_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of a tensor as stored; see `rows_of`."""
        self.info(name)
        return rows_of(self.reader, self.sources[name][0], start, stop)


@dataclass(frozen=True)
class ChosenView(View):
    """Some tensors of a checkpoint, those in `infos`, and what they were chosen by."""

    layers: tuple[Layer, ...] | None = field(kw_only=True)
    matrices: tuple[str, ...] | None = field(kw_only=True)


@dataclass(frozen=True)
class DeviceView(View):
    """A checkpoint whose tensors come on a device, such as ``cuda:1``."""

    device: str = field(kw_only=True)

    def stored(self, name: str) -> Tensor:
        """A tensor as stored, on the device."""
        return super().stored(name).to(self.device)

    def stored_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of a tensor as stored, on the device; see `rows_of`."""
        return super().stored_rows(name, start, stop).to(self.device)


def canonical(checkpoint: Checkpoint, family: str | None = None) -> Checkpoint:
    """A checkpoint under canonical names, fused tensors cut; the same object where all names are canonical.

    family : of the table, in place of the one that the config tells.

    Raises
    ------
    CheckpointError : as in `families.naming`; or tensors were chosen before names were made canonical.
    """
    found = naming(checkpoint, family)
    if not found.changes:
        return checkpoint
    if isinstance(checkpoint, View):
        raise CheckpointError(
            "a part of a checkpoint cannot be given canonical names",
            where=checkpoint.folder,
            expected="a checkpoint as it is stored",
            found=type(checkpoint).__name__,
            remedy="take canonical names first, then choose tensors and a device",
        )
    cut = {name for name, part in found.parts.items() if part.rows is not None}
    sources = {
        name: (name if name in cut else part.stored, part.stored, part.rows)
        for name, part in found.parts.items()
    }
    # A checkpoint reads what its infos say, so one with the place of a part in them reads that part.
    reader = replace(checkpoint, infos=checkpoint.infos | {name: found.infos[name] for name in cut})
    return CanonicalView(
        checkpoint.folder,
        checkpoint.config,
        found.infos,
        checkpoint.revision,
        checkpoint.kept_digest,
        inner=checkpoint,
        reader=reader,
        sources=sources,
    )


def as_stored(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint that lies in files: views are looked through."""
    while isinstance(checkpoint, View):
        checkpoint = checkpoint.inner
    return checkpoint


def outermost(checkpoint: Checkpoint, kind: type[V]) -> V | None:
    """The first view of a kind on the way from a checkpoint to its files; None where there is none."""
    while isinstance(checkpoint, View):
        if isinstance(checkpoint, kind):
            return checkpoint
        checkpoint = checkpoint.inner
    return None


def naming_digest(checkpoint: Checkpoint) -> str:
    """sha256 of what canonical names stand for, "" where nothing is renamed.

    The table of families is data that no digest of code covers: where it changes names, this belongs beside
    the checkpoint's digest among a job's inputs. Where it does not, a new family makes no record stale.
    """
    named = outermost(checkpoint, CanonicalView)
    return value_digest({name: source[1:] for name, source in named.sources.items()}) if named else ""


def chosen(
    checkpoint: Checkpoint, layers: Sequence[Layer] | None = None, matrices: Sequence[str] | None = None
) -> Checkpoint:
    """Only the tensors of some layers and roles; the same object where all are.

    layers : numbers of the text model's blocks, or ``STACK:NUMBER`` of those of any stack; None for all.
        Tensors outside blocks (embedding, head, last norm) stay where `layers` is None or `matrices` names
        their role.
    matrices : roles, see ROLES; None for all.

    Raises
    ------
    CheckpointError : a layer or role that the checkpoint lacks, or layers and roles without a common tensor.
        A tied head is its embedding, and has to be asked for as such.
    """
    if layers is None and matrices is None:
        return checkpoint
    own = {name: info for name, info in checkpoint.infos.items() if info.alias_of is None}
    known = {one for name in own for one in _layers_of(name)}
    _check_known(checkpoint, "layer", layers, sorted(known, key=_order))
    present = {role(name, info.shape) for name, info in own.items()}
    _check_known(checkpoint, "role", matrices, [one for one in ROLES if one in present])
    kept = {name: info for name, info in own.items() if _is_chosen(info, layers, matrices)}
    if not kept:
        raise CheckpointError(
            "no tensor of the checkpoint is chosen",
            where=checkpoint.folder,
            expected="a tensor with one of these roles in one of these layers",
            found=f"layers {_listed(layers)}, roles {_listed(matrices)}",
            remedy="choose layers that hold these matrices, or leave one of the two out",
        )
    kept |= {name: info for name, info in checkpoint.infos.items() if info.alias_of in kept}
    return ChosenView(
        checkpoint.folder,
        checkpoint.config,
        dict(sorted(kept.items())),
        checkpoint.revision,
        checkpoint.kept_digest,
        inner=checkpoint,
        layers=None if layers is None else tuple(layers),
        matrices=None if matrices is None else tuple(matrices),
    )


def leaving(checkpoint: Checkpoint, names: Collection[str]) -> Checkpoint:
    """A checkpoint without some of its tensors; the same object where it has none of them."""
    left = set(names) & checkpoint.infos.keys()
    if not left:
        return checkpoint
    kept = {name: one for name, one in checkpoint.infos.items() if not {name, one.alias_of} & left}
    return View(
        checkpoint.folder,
        checkpoint.config,
        kept,
        checkpoint.revision,
        checkpoint.kept_digest,
        inner=checkpoint,
    )


def _is_chosen(info: TensorInfo, layers: Sequence[Layer] | None, matrices: Sequence[str] | None) -> bool:
    named = matrices is not None and role(info.name, info.shape) in matrices
    if block(info.name) is None:
        return named or (layers is None and matrices is None)
    # Blocks of another stack, such as a vision tower's, are no layers of the text model.
    inside = layers is None or any(one in layers for one in _layers_of(info.name))
    return inside and (matrices is None or named)


def _layers_of(name: str) -> list[Layer]:
    """What the block of a tensor may be called."""
    found, number = block(name), layer(name)
    names: list[Layer] = [] if found is None else [f"{found[0]}:{found[1]}"]
    return names if number is None else [number, *names]


def is_layer(value: object) -> bool:
    """Whether a value is the number of a block, or names one of a stack."""
    return type(value) is int or (type(value) is str and bool(_NAMED.fullmatch(value)))


def _order(one: Layer) -> tuple[str, int]:
    """Numbers alone first, then stack by stack."""
    stack, _, number = str(one).rpartition(":")
    return stack, int(number)


def _check_known(checkpoint: Checkpoint, what: str, asked: Iterable | None, known: Sequence) -> None:
    unknown = [one for one in asked or () if one not in known]
    if unknown:
        tied = any(
            info.alias_of and role(info.name, info.shape) in unknown for info in checkpoint.infos.values()
        )
        raise CheckpointError(
            f"the checkpoint has no {what} {_listed(unknown)}",
            where=checkpoint.folder,
            expected=f"of {_ranges(known) if what == 'layer' else _listed(known)}",
            found=_listed(unknown),
            remedy="the head is tied to the embedding and is no tensor of its own: choose 'embedding'"
            if tied
            else f"choose a {what} that it has",
        )


def _listed(values: Iterable | None) -> str:
    return "all" if values is None else ", ".join(str(value) for value in values) or "none"


def _ranges(layers: Sequence[Layer]) -> str:
    """Sorted layers as '0-3, 27, vision:0-1'."""
    runs: list[tuple[str, list[int]]] = []
    for stack, number in map(_order, layers):
        if runs and runs[-1][0] == stack and number == runs[-1][1][1] + 1:
            runs[-1][1][1] = number
        else:
            runs.append((stack, [number, number]))
    return _listed(
        f"{f'{stack}:' * bool(stack)}{low}{f'-{high}' * (low != high)}" for stack, (low, high) in runs
    )


def parse_layers(text: str) -> tuple[Layer, ...]:
    """Layers from text such as '0,13,27', '0-3,27' or 'vision:0,3', sorted, each once.

    A stack's name is that of all numbers after it.

    Raises
    ------
    CheckpointError : the text is not of that form; a range runs backwards, or over more than any model has.
    """
    layers: set[Layer] = set()
    name: str | None = None
    for piece in text.split(","):
        stack = rf"(?:({'|'.join(STACKS)})\s*:)?"
        found = re.fullmatch(rf"\s*{stack}\s*([0-9]{{1,10}})\s*(?:-\s*([0-9]{{1,10}})\s*)?", piece)
        low, high = (int(found[2]), int(found[3] or found[2])) if found else (1, 0)
        if not 0 <= high - low < MOST_LAYERS:
            raise CheckpointError(
                f"'{text}' does not name layers",
                expected="numbers and ranges, such as 0,13,27 or 0-3,27; of another stack vision:0-3",
                found=f"'{piece.strip()}'",
                remedy="write the numbers of the layers, the first being 0, without spaces",
            )
        # A stack's name holds until the next one.
        name = (found[1] if found else None) or name
        layers |= {f"{name}:{number}" if name else number for number in range(low, high + 1)}
    return tuple(sorted(layers, key=_order))


def parse_matrices(text: str) -> tuple[str, ...]:
    """Roles from text such as 'q,o,down', in the order of ROLES, each once.

    Raises
    ------
    CheckpointError : a word is no role.
    """
    words = {word.strip() for word in text.split(",")}
    unknown = sorted(words - set(ROLES))
    if unknown:
        raise CheckpointError(
            f"'{text}' does not name matrices",
            expected="some of " + ", ".join(ROLES),
            found=", ".join(f"'{word}'" for word in unknown),
            remedy="write roles with commas between them, such as q,o,down",
        )
    return tuple(one for one in ROLES if one in words)


def on_device(checkpoint: Checkpoint, device: str) -> Checkpoint:
    """A checkpoint whose tensors come on a device; the same object for the processor, 'cpu'.

    device : 'cpu', 'cuda', or 'cuda:1' for the second GPU.

    Raises
    ------
    CheckpointError : another word, no GPU that torch can use, or fewer of them.
    """
    found = re.fullmatch(r"(cpu|cuda)(?::([0-9]{1,3}))?", device)
    if found is None:
        raise _no_device(
            device, "cpu, cuda, or cuda:1 for the second GPU", "write one of these after --device"
        )
    if found[1] == "cpu":
        return checkpoint
    if not torch.cuda.is_available():
        raise _no_device(
            device,
            "a GPU that torch can use",
            "leave --device out, or install the driver and a CUDA build of torch: "
            "`python -c 'import torch; print(torch.cuda.is_available())'` has to print True",
        )
    count = torch.cuda.device_count()
    if int(found[2] or 0) >= count:
        raise _no_device(device, f"a GPU below cuda:{count}", "`nvidia-smi` lists the GPUs that there are")
    return DeviceView(
        checkpoint.folder,
        checkpoint.config,
        checkpoint.infos,
        checkpoint.revision,
        checkpoint.kept_digest,
        inner=checkpoint,
        device=device,
    )


def _no_device(device: str, expected: str, remedy: str) -> CheckpointError:
    return CheckpointError(
        f"tensors cannot be brought to device '{device}'", expected=expected, found=device, remedy=remedy
    )
