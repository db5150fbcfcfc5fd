"""What an adapter adds, as a checkpoint: tensors of ΔW, under names that can be matched with a base's."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import itemgetter
from pathlib import Path

from torch import Tensor

from threegates.checkpoints.adapters.config import CONFIG, PICKLE, WEIGHTS, AdapterConfig, read_config
from threegates.checkpoints.adapters.factors import Factors, linear, of_expert
from threegates.checkpoints.adapters.targets import Target, targets
from threegates.checkpoints.formats.headers import TensorInfo, read_header
from threegates.checkpoints.matched import MatchedView
from threegates.checkpoints.tensors import Checkpoint, sha256_of
from threegates.checkpoints.views import CanonicalView
from threegates.errors import CheckpointError

_BYTES = 8


@dataclass(frozen=True)
class Piece:
    """Where a tensor of the model lies in an adapter's target: some rows of one matrix, or all of a stack.

    expert : which matrix of a stack, None of no stack or of all of it. rows : of that matrix as it is stored.
    columns : of the rows, where the tensor is these columns the other way round.
    """

    target: Target
    rows: tuple[int, int]
    expert: int | None = None
    columns: tuple[int, int] | None = None


@dataclass(frozen=True)
class DeltaCheckpoint(Checkpoint):
    """ΔW of every adapted weight, as if all lay one after the other in a file, as float64.

    So the rules that rename a model's tensors and cut its fused ones apply to an adapter's as they stand:
    whatever part they ask for is a place in that file, which `piece` turns into rows of factors.
    """

    settings: AdapterConfig = field(kw_only=True)
    targets: Mapping[str, Target] = field(kw_only=True)
    places: tuple[tuple[int, str], ...] = field(kw_only=True)

    @cached_property
    def file(self) -> Checkpoint:
        """The adapter's own tensors, by the names that peft gives them."""
        return Checkpoint(self.folder, {}, read_header(self.folder / WEIGHTS))

    def read(self, key: str) -> Tensor:
        """A tensor of the adapter's file, as stored."""
        return self.file.stored(key)

    def stored(self, name: str) -> Tensor:
        """ΔW is asked for by its factors; this is what a base has no need of."""
        raise NotImplementedError(f"{name}: take factors")

    def piece(self, info: TensorInfo) -> Piece:
        """The place that a name stands for."""
        start, stop = info.offsets
        first, name = self.places[bisect_right(self.places, start, key=itemgetter(0)) - 1]
        target = self.targets[name]
        width = target.shape[-1] if len(target.shape) > 1 else 1
        rows = (start - first) // _BYTES // width, (stop - first) // _BYTES // width
        if not target.experts or (rows == (0, target.experts * target.shape[1]) and len(info.shape) == 3):
            return Piece(target, rows)
        expert, offset = divmod(rows[0], target.shape[1])
        return Piece(target, (offset, offset + rows[1] - rows[0]), expert)

    def factors(self, target: Target, expert: int = 0) -> Factors:
        """Those of a whole matrix as it is stored in the model."""
        down, up = self.read(target.down), self.read(target.up)
        if target.experts:
            found = of_expert(down, up, target.scaling, expert, target.experts)
        else:
            found = linear(down, up, target.scaling)
        return found.turned() if target.turned else found

    def files(self) -> list[Path]:
        """The adapter's two files."""
        return [self.folder / CONFIG, self.folder / WEIGHTS]

    def digest(self) -> str:
        """sha256 over the names and sha256 of the adapter's files."""
        return adapter_digest(self.folder)


def adapter_digest(folder: Path) -> str:
    """sha256 over the names and sha256 of the files of the adapter in a folder."""
    total = hashlib.sha256()
    for name in (CONFIG, WEIGHTS):
        total.update(f"{name} {sha256_of(folder / name)}\n".encode())
    return total.hexdigest()


def open_deltas(folder: Path, base: Checkpoint, raw: Checkpoint) -> DeltaCheckpoint:
    """The adapter in a folder, for a model like `base`, whose tensors as they are stored are `raw`'s.

    Raises
    ------
    CheckpointError : as `read_config` and `targets`; its weights are missing, or pickled; it changes nothing.
    """
    settings = read_config(folder)
    path = folder / WEIGHTS
    if not path.is_file():
        pickled = (folder / PICKLE).is_file()
        raise CheckpointError(
            "the adapter has no safetensors weights",
            where=folder,
            expected=WEIGHTS,
            found=PICKLE if pickled else "no weights beside its config",
            remedy="pickle can run code when read: load the adapter where you trust it, and save it with "
            "save_pretrained"
            if pickled
            else "give the folder that save_pretrained made, with all its files",
        )
    shapes = {name: info.shape for side in (raw, base) for name, info in side.infos.items()}
    found = targets(settings, read_header(path), shapes, str(base.config.get("model_type", "")))
    if not found:
        raise CheckpointError(
            "the adapter holds no weights", where=path, expected="factors of a LoRA", found="no tensor"
        )
    infos, places = _laid_out(path, found)
    return DeltaCheckpoint(
        folder,
        base.config,
        infos,
        # Its tensors are no weights that contents could be compared with.
        kept_digest=adapter_digest(folder),
        settings=settings,
        targets=found,
        places=tuple(places),
    )


def _laid_out(path: Path, found: Mapping[str, Target]) -> tuple[dict[str, TensorInfo], list[tuple[int, str]]]:
    """Every target's place in the file that there would be."""
    infos, places, at = {}, [], 0
    for name, target in sorted(found.items()):
        info = TensorInfo(name, "F64", target.shape, path, (at, at))
        info = replace(info, offsets=(at, at + info.size * _BYTES))
        infos[name] = info
        places.append((at, name))
        at = info.offsets[1]
    return infos, places


def located(view: Checkpoint, name: str) -> tuple[DeltaCheckpoint, Piece]:
    """The piece of an adapter that a name of a view of it stands for."""
    info, columns, inner = view.info(name), None, view
    if isinstance(view, CanonicalView):
        if isinstance(view, MatchedView) and name in view.turned:
            columns = view.turned[name]
        inner = view.reader
        info = inner.info(view.sources[name][0])
    assert isinstance(inner, DeltaCheckpoint)
    return inner, replace(inner.piece(info), columns=columns)
