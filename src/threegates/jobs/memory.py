"""What measuring a tensor needs of memory, and how many tensors at a time keep within a stated cap.

What counts is anonymous memory: arrays of our own, interpreter and libraries. Pages of a local checkpoint's
files are mapped, shared with the page cache, and given back by the system when it needs them, so they are
left out; tensors that come over the net or lie on a device are arrays like others.

The estimates are upper bounds, fitted to what was measured: `benchmarks/scale.py` wants each to be no less
than that and no more than two and a half times as much.
"""

from __future__ import annotations

import ctypes
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from threegates.backends import run_parallel
from threegates.checkpoints.formats.headers import BITS
from threegates.checkpoints.pairs import BLOCK, Status
from threegates.checkpoints.tensors import Checkpoint
from threegates.geometry.laws.strata import FEWEST
from threegates.measures.bases import REFERENCE_SIDE
from threegates.measures.changes import is_block_matrix
from threegates.measures.null_laws import DRAWABLE
from threegates.measures.tensor_table import PairTable, has_small_side
from threegates.records.sizes import MIB, MemoryCapError, size_text

#: A process that has done some work: interpreter, libraries, memory that was freed but not given back.
PROCESS = 256 * MIB
#: Least that a tensor is taken to need, however small.
LEAST = 16 * MIB

# Bytes an entry, of what is held at once. Counting: one block in float64, three times over. Laws: a mask, its
# targets and their labels, a byte each, and targets as they are unpacked. Null masks: sorted keys of the
# magnitude null.
_COUNTING, _LAWS, _MASKS = 48, 16, 76
# Strata of |w| along lines: counts in float32, those of some lines in float64, squares of the strata; and an
# entry's mask, targets and labels, with what the allocator was seen to hold beside them.
_COUNTS, _SOME_LINES, _SQUARES, _ENTRY = 4, 64 << 10, 16, 29
# Binades whose values of bf16 are strata by themselves, besides one for each doubling of the weights: 2 to 5
# where these are normal, Laplace's or Student's with 3 degrees of freedom.
_BINADES, _VALUES = 5, 128
# The update in float64, beside which both sides are held in the type they are measured in.
_DELTA = 8
# Squares of the smaller side: Gram matrices, their eigenvectors, workspace; and thin matrices of the longer.
_SQUARE, _THIN = 44, 96 * 8 * 8
# Squares of the smaller side of a matrix whose rows are streamed: both Gram matrices and their eigenvectors.
_STREAMED = 56
# Float64 SVDs of small matrices, whole.
_REFERENCE = 56


def estimate(
    shape: Sequence[int],
    dtype_base: str,
    dtype_tuned: str,
    *,
    spectra: bool,
    nulls: bool,
    drawn: bool = False,
    axes: bool = False,
    mapped: bool = True,
    exact: bool = False,
    streamed: bool = False,
) -> int:
    """Upper bound of the anonymous memory that measuring one tensor takes at its peak, in bytes.

    Parameters
    ----------
    shape, dtype_base, dtype_tuned : as the headers say; types by their names in safetensors, such as "BF16".
    spectra : whether the tensor is a matrix whose spectra, angles and overlaps are measured.
    nulls : whether laws of nulls are computed, for overlaps and with `axes` for row and column ratios.
    drawn : whether masks of nulls are held too, of however many entries; laws hold masks of small ones alone.
    axes : whether row and column ratios are measured (of a matrix in a block).
    mapped : whether both sides lie in local files; else what is read counts too.
    exact : whether spectra are those of float64 SVDs, however large the tensor.
    streamed : whether those of the smaller side alone are measured, of a matrix that is not held.
    """
    size = math.prod(shape)
    stored = sum(BITS[dtype] // 8 for dtype in (dtype_base, dtype_tuned))
    whole = spectra or axes
    # A block has at least one row.
    block = min(size, max(BLOCK, size // shape[0] if shape and shape[0] else 0))
    held = 0 if mapped else stored * (size if whole else block)
    if not whole:
        streaming = _STREAMED * min(shape) ** 2 + 8 * block if streamed else 0
        return LEAST + held + _COUNTING * block + streaming
    held += 2 * size * sum(dtype != "BF16" for dtype in (dtype_base, dtype_tuned))
    needs = [_COUNTING * block]
    kept = 0
    if spectra:
        kept, peak = _of_spectra(tuple(shape), dtype_base, dtype_tuned, exact)
        needs.append(peak)
    if axes and (nulls or drawn):
        needs.append(kept + _of_strata(tuple(shape)))
    if nulls or drawn:
        needs.append(kept + _LAWS * size + _MASKS * (size if drawn else min(size, DRAWABLE)))
    return LEAST + held + max(needs)


def _of_strata(shape: tuple[int, ...]) -> int:
    """What row and column ratios take beside the magnitude null."""
    size = math.prod(shape)
    strata = _most_strata(size)
    lines = _COUNTS * sum(shape) + _SOME_LINES
    return _ENTRY * size + lines * strata + _SQUARES * strata**2


def _most_strata(size: int) -> int:
    """Strata of so many weights, hardly more: single values of bf16 are strata where `FEWEST` share one."""
    binades = math.log2(max(size / (FEWEST * _VALUES), 1.0)) + _BINADES
    return min(size // FEWEST + 1, round(_VALUES * binades))


def _of_spectra(shape: tuple[int, ...], dtype_base: str, dtype_tuned: str, exact: bool) -> tuple[int, int]:
    """What stays of the spectra while overlaps are measured, and what they take at their peak."""
    size, (short, long) = math.prod(shape), sorted(shape)
    # A base that is not stored in bf16 is decomposed twice: as stored, for angles, and in bf16, for overlaps.
    rounded = dtype_base != "BF16"
    if exact or short <= REFERENCE_SIDE:
        return 8 * size * (1 + rounded), _REFERENCE * size + _SQUARE * short**2
    wide = "F64" if "F64" in (dtype_base, dtype_tuned) else "F32"
    width = BITS[wide] // 8
    copies = [width * size * (dtype != wide) for dtype in (dtype_base, dtype_tuned)]
    kept = copies[0] + width * short**2 + rounded * 4 * (size + short**2)
    angles = sum(copies) + _DELTA * size
    return kept, max(angles, kept) + _SQUARE * short**2 + _THIN * long


@dataclass(frozen=True)
class Need:
    """A task: the tensor that it is about, what it takes at its peak and what it reads, in bytes."""

    tensor: str
    size: int
    read: int = 0


def need_of(pair: PairTable, tensor: str, *, drawn: bool = False) -> Need:
    """What a row of that tensor takes, from the headers alone; `drawn` as of `estimate`."""
    row, facts = pair.tensors.aligned[tensor], pair.facts(tensor)
    matrix = row.status is Status.compared and is_block_matrix(facts)
    size = estimate(
        facts["shape"],
        row.dtype_base or row.dtype_tuned or "F64",
        row.dtype_tuned or row.dtype_base or "F64",
        spectra=matrix and pair.spectra,
        nulls=bool(pair.nulls),
        drawn=drawn,
        axes=matrix and pair.axes,
        mapped=is_mapped(pair.base) and is_mapped(pair.tuned),
        exact=pair.accuracy == "reference",
        streamed=row.status is Status.compared and pair.spectra and has_small_side(facts),
    )
    return Need(tensor, size)


@dataclass(frozen=True)
class Group:
    """Tasks, by their numbers, of which so many may run at once."""

    workers: int
    tasks: tuple[int, ...]


def plan(needs: Sequence[Need], cap: int | None, workers: int) -> list[Group]:
    """How many of these tasks run at once, at most `workers`, so that all processes stay below a cap.

    One worker is this process itself; more are processes beside it, and each takes `PROCESS` before it does
    anything. Every task is in one group, with as many workers as tasks of its size allow; groups with fewer
    workers come first, so that no worker waits with memory of its own while a large task runs alone.

    Raises
    ------
    MemoryCapError : one tensor alone needs more than the cap.
    """
    found: dict[int, list[int]] = defaultdict(list)
    for number, need in enumerate(needs):
        allowed = workers if cap is None else _allowed(need, cap, workers)
        found[allowed].append(number)
    return [Group(count, tuple(tasks)) for count, tasks in sorted(found.items())]


def _allowed(need: Need, cap: int, workers: int) -> int:
    for count in range(max(1, workers), 0, -1):
        if taken(need.size, count) <= cap:
            return count
    raise MemoryCapError(
        f"tensor '{need.tensor}' needs more memory than the cap",
        where=f"--memory, tensor '{need.tensor}'",
        expected=f"at least {size_text(taken(need.size, 1))}: {size_text(need.size)} for the tensor, "
        f"{size_text(PROCESS)} for the process",
        found=size_text(cap),
        remedy="give a larger --memory; or leave the tensor out with --layers and --matrices, or take "
        "--no-spectra",
    )


def taken(size: int, workers: int) -> int:
    """What so many tasks of a size take at once, with the processes they run in."""
    processes = workers + 1 if workers > 1 else 1
    return processes * PROCESS + workers * size


def run_within(
    work: Callable[..., None],
    tasks: Sequence[tuple],
    needs: Sequence[Need],
    cap: int | None,
    workers: int,
    label: str | None = None,
    **where: Any,
) -> None:
    """`threegates.backends.run_parallel` with no more tasks at once than a cap on memory allows.

    Parameters
    ----------
    needs : of each task, in their order. cap : bytes; None for no cap. where : backend, scheduler and what
    workers share. Workers of a scheduler that runs already are as many as they are, on machines of their own:
    of a cap only that is kept there that no task is larger.

    Raises
    ------
    MemoryCapError : before anything runs, one task alone needs more than the cap.
    """
    for group in plan(needs, cap, workers):
        sizes = [needs[number].read for number in group.tasks]
        run_parallel(
            work, [tasks[number] for number in group.tasks], group.workers, label, sizes=sizes, **where
        )


def give_back_freed_memory() -> None:
    """Give the memory of freed arrays back to the system, where the C library is glibc.

    By itself it keeps what was freed in its heap, several hundred MiB after a large tensor, and the next
    tensor finds only some of it.

    **Source** malloc_trim(3).
    """
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def is_mapped(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint's tensors are pages of local files, seen through views of it or not."""
    inner = getattr(checkpoint, "inner", None)
    return is_mapped(inner) if isinstance(inner, Checkpoint) else type(checkpoint) is Checkpoint
