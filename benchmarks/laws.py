"""Laws of nulls against drawing their masks, and a whole pair with them against what one would write."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import Row
from benchmarks.spectra import Svd, pair, svd
from threegates.checkpoints.tensors import Checkpoint
from threegates.checkpoints.writer import write_checkpoint
from threegates.geometry.laws.law import Law
from threegates.geometry.laws.masks import Seen, see
from threegates.geometry.masks import update_mask
from threegates.geometry.nulls.noise import noise_generator
from threegates.geometry.nulls.null import Null, Observed
from threegates.geometry.stripes import dispersion
from threegates.jobs.nulls import founding_nulls
from threegates.measures.by_tensor import Shared
from threegates.measures.tensor_table import PairTable

SHAPES = {"s": (1536, 1536), "m": (1536, 8960), "l": (4096, 4096)}
#: Draws that are timed, and those that laws stand for: as many give a tail of 1 %.
TIMED, DRAWS = 5, 200
#: Of laws against 200 draws, and of a pair against two float64 SVDs alone, at size m.
LAWS_AIM, LAWS_GATE, PAIR_AIM, PAIR_GATE = 800.0, 300.0, 4.0, 2.5
#: Draws of each null that `measure` made by default before there were laws, at commit 3806e52, and how long a
#: pair of size m then took, over two float64 SVDs on the same machine.
BY_DEFAULT, BEFORE = 49, 177 / 9.2
#: Of a pair against what one would write, and against the build before.
USER_AIM, BEFORE_GATE = 20.0, 45.0
#: Of a shift of singular values that were found in float64.
ROUNDING = 1e-12
_NAME = "model.layers.0.mlp.up_proj.weight"


def rows(sizes: Sequence[str]) -> list[Row]:
    """All rows of this file at these sizes."""
    chosen = {size: shape for size, shape in SHAPES.items() if size in sizes}
    return [row for size, shape in chosen.items() for row in measured(size, shape, TIMED)]


def measured(size: str, shape: tuple[int, int], draws: int) -> list[Row]:
    """All rows of one pair; each way is timed once, or for draws as a mean over them."""
    base, tuned = pair(shape)
    label = f"{size} {shape[0]} × {shape[1]}"
    svds = _by_svds(base, tuned)
    found = [pair_row(label, base, tuned, accuracy, svds) for accuracy in ("certified", "fast", "reference")]
    return [laws_row(label, base, tuned, draws), *found, written_row(label, found[0], base, tuned, draws)]


def laws_row(label: str, base: Tensor, tuned: Tensor, draws: int) -> Row:
    """Overlaps with three targets and both dispersions under every null, by laws and by masks."""
    mask, targets = update_mask(base, tuned), _targets(base)
    norm = float((tuned.double() - base.double()).norm())
    ours, (seen, laws) = timed(partial(_laws, base, mask, targets, norm))
    theirs, accurate = 0.0, True
    for null, found in laws.items():
        taken, values = timed(partial(drawn, null, seen, base, mask, targets, draws))
        theirs += taken * DRAWS / draws
        accurate &= all(_agree(law, one) for law, one in zip(found, values.T, strict=True))
    aims: dict[str, float] = {"aim": LAWS_AIM, "gate": LAWS_GATE} if label[0] == "m" else {}
    other = f"{DRAWS} masks of each, from {draws}"
    return Row("laws of all nulls", label, ours, other, theirs, accurate, "means within 4.5 s.e.", **aims)


def pair_row(
    label: str, base: Tensor, tuned: Tensor, accuracy: str = "certified", svds: Svds | None = None
) -> Row:
    """A row of `threegates measure` with all nulls, end to end, against two float64 SVDs and nothing else.

    At size m and by default also against the build before, by its ratio to the same two SVDs.
    """
    with tempfile.TemporaryDirectory() as folder:
        sides = opened(Path(folder), base, tuned)
        table = PairTable(*sides, "pair", axes=True, nulls=founding_nulls(), accuracy=accuracy)
        ours, found = timed(lambda: table.rows(_NAME, Shared())["tensor"][0])
    theirs, nss = svds or _by_svds(base, tuned)
    gated = label[0] == "m" and accuracy == "certified"
    aims: dict[str, float] = {"aim": PAIR_AIM, "gate": PAIR_GATE} if gated else {}
    accurate = abs(found["nss"] - nss) <= found["nss_error"] + ROUNDING
    before = BEFORE * theirs / ours
    notes = {"changed": found["changed"] / found["size"]} | (
        {"against the build before": before} if gated else {}
    )
    said = f"NSS within its bound, sin Θ within {found['angle_bound']:.0e}"
    told = f"{said}; {before:.0f}× the build before" if gated else said
    return Row(
        f"pair with all nulls, {accuracy}",
        label,
        ours,
        "two float64 SVDs",
        theirs,
        accurate and (not gated or before >= BEFORE_GATE),
        told,
        notes=notes,
        **aims,
    )


def written_row(label: str, pair_of_ours: Row, base: Tensor, tuned: Tensor, draws: int) -> Row:
    """The same against what one would write: two SVDs, torch's masks and sums, and 49 masks of each null.

    A few masks of each are drawn, and their time is scaled.
    """
    counting, mask = timed(lambda: _masked(base, tuned))
    targets, norm = _targets(base), float((tuned.double() - base.double()).norm())
    seen, taken = see(base, mask, norm=norm), 0.0
    for null in founding_nulls():
        taken += timed(partial(drawn, null, seen, base, mask, targets, draws))[0] / draws
    return Row(
        "pair as one would write it",
        label,
        pair_of_ours.ours_ms,
        f"two float64 SVDs, torch masks, {BY_DEFAULT} masks of each null, from {draws}",
        pair_of_ours.other_ms + counting + BY_DEFAULT * taken,
        pair_of_ours.accurate,
        "as the row above",
        notes={"of it draws": BY_DEFAULT * taken},
        **({"aim": USER_AIM} if label[0] == "m" else {}),
    )


def _masked(base: Tensor, tuned: Tensor) -> Tensor:
    """torch's mask, with its sums along rows and columns."""
    mask = base != tuned
    mask.sum(0), mask.sum(1)
    return mask


Svds = tuple[float, float]


def _by_svds(base: Tensor, tuned: Tensor) -> Svds:
    """Milliseconds of two float64 SVDs, and the NSS that they give."""
    taken, (before, after) = timed(lambda: [svd(side, torch.float64) for side in (base, tuned)])
    return taken, _nss(before, after)


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Milliseconds of processor time of a call, and its result."""
    start = time.process_time()
    found = call()
    return 1e3 * (time.process_time() - start), found


def _targets(base: Tensor) -> list[Tensor]:
    """Half of the weights by size, half at random, and what is in the second alone."""
    low = base.abs() < base.abs().reshape(-1)[:: 1 + base.numel() // 100_000].median()
    blind = torch.rand(base.shape, generator=noise_generator(0, "benchmark")) < 0.5
    return [blind, low, blind & ~low]


def _laws(
    base: Tensor, mask: Tensor, targets: list[Tensor], norm: float
) -> tuple[Seen, dict[Null, list[Law]]]:
    seen = see(base, mask, targets, norm=norm)
    laws: dict[Null, list[Law]] = {}
    for null in founding_nulls():
        assert null.law is not None
        found = [null.law.overlap(seen, seen.inside(bit)) for bit in range(1, len(targets) + 1)]
        laws[null] = [*found, *null.law.dispersions(seen, base)]
        # What a reader is told: a p-value of each.
        for law in laws[null]:
            law.against(law.mean + 3 * law.sd, "two-sided")
    return seen, laws


def drawn(
    null: Null, seen: Seen, base: Tensor, mask: Tensor, targets: list[Tensor], draws: int
) -> np.ndarray:
    """Overlaps with each target and both dispersions of so many masks of a null, a row a mask."""
    scale = seen.scale if "scale" in null.matched_to else math.nan
    observed = Observed("run", _NAME, base, mask, seen.changed, scale)
    found = []
    for one in islice(null.sampler(observed, noise_generator(0, null.name)), draws):
        count = int(one.count_nonzero())
        found.append([*(int((one & target).count_nonzero()) / count for target in targets), *dispersion(one)])
    return np.array(found)


def _agree(law: Law, drawn: np.ndarray) -> bool:
    return abs(law.mean - float(drawn.mean())) <= 4.5 * law.sd / math.sqrt(len(drawn)) + 1e-12


def opened(folder: Path, base: Tensor, tuned: Tensor) -> list[Checkpoint]:
    """A pair of one matrix, written and opened."""
    for side, tensor in (("base", base), ("tuned", tuned)):
        write_checkpoint(folder / side, {_NAME: tensor}, {"model_type": "llama"})
    return [Checkpoint.open(folder / side) for side in ("base", "tuned")]


def _nss(before: Svd, after: Svd) -> float:
    return float((after.values - before.values).norm() / before.values.norm())
