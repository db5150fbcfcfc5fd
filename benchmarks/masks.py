"""Counting changed entries, whole and by row and column; packed agreement; the cost of a null draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks.measure import Row, in_turn
from threegates.geometry.laws.codes import count_codes
from threegates.geometry.laws.noise import scale_of_norm
from threegates.geometry.masks import count_changes, jaccard, pack
from threegates.geometry.nulls.bernoulli import bernoulli_mask
from threegates.geometry.nulls.magnitude import stratified_permutations
from threegates.geometry.nulls.noise import noise_generator
from threegates.geometry.nulls.storage_density import storage_mask_at_density
from threegates.geometry.nulls.storage_norm import storage_mask_at_norm
from threegates.geometry.stripes import dispersion

SIZES = {"s 1536 × 1536": (1536, 1536), "m 1536 × 8960": (1536, 8960), "l 4096 × 4096": (4096, 4096)}
TARGET = "m 1536 × 8960"


def rows(sizes: Sequence[str]) -> list[Row]:
    """All rows of this file, counting at these sizes."""
    shapes = {size: shape for size, shape in SIZES.items() if size[0] in sizes}
    counted = [row for size, shape in shapes.items() for row in counting(size, *pair(shape))]
    zeros = counting(TARGET + ", some −0", *with_negative_zeros(*pair(SIZES[TARGET])))
    return [*counted, *zeros, agreement(), *null_draws()]


def pair(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Synthetic bf16 weights and an update that changes about a third of them."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(shape, generator=generator) * 0.02
    tuned = base + 2.5e-5 * torch.randn(shape, generator=generator)
    return base.bfloat16(), tuned.bfloat16()


def with_negative_zeros(base: Tensor, tuned: Tensor) -> tuple[Tensor, Tensor]:
    """The same with +0 that becomes −0 here and there, so that no tile is without."""
    base.view(-1)[::100_003] = 0.0
    tuned.view(-1)[::100_003] = -0.0
    return base, tuned


def torch_idiom(base: Tensor, tuned: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What one writes first."""
    mask = base != tuned
    return mask.sum(), mask.sum(0), mask.sum(1)


def paper_formula(base: Tensor, tuned: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Definition 2.1 as printed, in float32, then the same sums."""
    before, after = base.float(), tuned.float()
    mask = (after - before).abs() > 1e-3 * torch.maximum(before.abs(), after.abs())
    return mask.sum(), mask.sum(0), mask.sum(1)


def counting(size: str, base: Tensor, tuned: Tensor) -> list[Row]:
    """count_changes against the idiom and against the paper's formula."""
    counts = count_changes(base, tuned)
    table = []
    for name, other in (("torch mask + sums", torch_idiom), ("paper's formula", paper_formula)):
        changed, columns, row_sums = other(base, tuned)
        equal = counts.changed == int(changed)
        assert counts.rows is not None and counts.columns is not None
        equal &= torch.equal(counts.rows, row_sums) and torch.equal(counts.columns, columns)
        ours, theirs = in_turn(partial(count_changes, base, tuned), partial(other, base, tuned), 9)
        target = {"aim": 30.0, "gate": 15.0} if (size, other) == (TARGET, torch_idiom) else {}
        notes = {"density": counts.changed / counts.size, "GB/s": 4e-6 * base.numel() / ours}
        table.append(
            Row("count changes", size, ours, name, theirs, equal, "same counts", notes=notes, **target)
        )
    return table


def agreement() -> Row:
    """Jaccard of packed masks against torch's sums of bools."""
    generator = noise_generator(0, "benchmark")
    a, b = (torch.rand(50_000_000, generator=generator) < 0.4 for _ in range(2))
    packed_a, packed_b = pack(a), pack(b)

    def idiom() -> float:
        return float((a & b).sum() / (a | b).sum())

    ours, theirs = in_turn(lambda: jaccard(packed_a, packed_b), idiom)
    accurate = abs(jaccard(packed_a, packed_b) - idiom()) < 1e-6
    return Row(
        "Jaccard, packed",
        "50 M",
        ours,
        "torch bool sums",
        theirs,
        accurate,
        "within 1e-6 (float32 division)",
        gate=150.0,
    )


def null_draws() -> list[Row]:
    """Milliseconds of one draw with its dispersions, of each null; drawing the noise alone is the floor."""
    return [row for shape in ((128, 128), (320, 128)) for row in _null_draws(shape)]


def _null_draws(shape: tuple[int, int]) -> list[Row]:
    base, tuned = pair(shape)
    counts = count_changes(base, tuned)
    generator = noise_generator(0, "benchmark")
    norm = float((tuned.double() - base.double()).norm())
    scale = scale_of_norm(count_codes(base), norm)
    stream = stratified_permutations(base != tuned, base, generator=generator)
    draws = {
        "Bernoulli": lambda: bernoulli_mask(shape, counts.changed, generator),
        "storage 1a": lambda: storage_mask_at_density(base, counts.changed, generator),
        "storage 1b": lambda: storage_mask_at_norm(base, scale, generator),
        "magnitude": lambda: next(stream),
    }
    table = []
    for name, draw in draws.items():
        exact = name == "storage 1b" or all(int(draw().sum()) == counts.changed for _ in range(20))
        ours, noise = in_turn(partial(_drawn, draw), partial(torch.randn, shape), rounds=41)
        accuracy = "exact count" if name != "storage 1b" else "rounded exactly (tests)"
        table.append(
            Row(
                f"null draw, {name}",
                f"{shape[0]} × {shape[1]}",
                ours,
                "torch.randn alone",
                noise,
                exact,
                accuracy,
            )
        )
    return table


def _drawn(draw: Callable[[], Tensor]) -> tuple[float, float]:
    return dispersion(draw())
