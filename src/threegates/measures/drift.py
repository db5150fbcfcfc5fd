"""How far an update moves a matrix's singular values and leading subspaces, raw and beside its controls.

Two tables. ``drift``: one row a matrix and variant. ``spectrum``: the singular values and angles of one
example matrix, raw and at equal norm. Variants of a tuned weight, each held against the base:

- raw: as it is stored; rounded: both sides in bf16.
- noise: Gaussian noise of the raw ΔW's norm, unrounded; one row for each of `NOISE_DRAWS` draws.
- norm-matched: ΔW scaled, matrix by matrix, to the norm of a partner's, unrounded; and that rounded to bf16.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property

import pandas as pd
import torch
from torch import Tensor

from threegates.checkpoints.formats.roles import layer, role
from threegates.checkpoints.pairs import TensorPair, load_pair
from threegates.checkpoints.tensors import Checkpoint
from threegates.geometry import bounds
from threegates.geometry.angles import SubspaceAngles, subspace_angles, widest_gap_rank
from threegates.geometry.decomposition import LeadingSpectrum, update
from threegates.geometry.directions import expected_energy, frobenius_norm, principal_energy, spectral_norm
from threegates.geometry.norm_matching import gaussian_of_norm, match_norm
from threegates.geometry.nulls.noise import noise_generator
from threegates.geometry.operators import weight_operator
from threegates.geometry.principal import headline_rank
from threegates.geometry.spectra import FullSpectrum, singular_values, spectral_shift
from threegates.measures.bases import REFERENCE_SIDE, Base, base_of
from threegates.measures.by_tensor import Rows, Shared, measure_all
from threegates.measures.changes import difference, sides
from threegates.measures.partners import PairInNorm

RAW, ROUNDED, NOISE = "raw", "rounded", "noise"
MATCHED, MATCHED_ROUNDED = "norm-matched", "norm-matched, rounded"
VARIANTS = (RAW, ROUNDED, NOISE, MATCHED, MATCHED_ROUNDED)
#: Draws of the noise for each matrix.
NOISE_DRAWS = 3
BOUNDS = ("weyl", "mirsky", "ky_fan", "nss", "wedin_printed", "wedin_corrected")

DRIFT_COLUMNS = {
    "pair": "str",
    "tensor": "str",
    "role": "str",
    "layer": "Int64",
    "variant": "str",
    "partner": "str",
    "accuracy": "str",
    "path": "str",
    "proof": "str",
    "k": "int64",
    "gap": "float64",
    "nss": "float64",
    "nss_error": "float64",
    **{f"angle_{side}_{what}": "float64" for side in ("left", "right") for what in ("max", "mean")},
    "gap_aware_k": "int64",
    **{f"angle_{side}_gap_aware_max": "float64" for side in ("left", "right")},
    "angle_bound": "float64",
    "angle_floor": "float64",
    "resolved": "float64",
    "proved": "bool",
    "norm_base": "float64",
    "norm_delta": "float64",
    "spectral_norm_delta": "float64",
    "stable_rank": "float64",
    "energy": "float64",
    "energy_expected": "float64",
    **{
        f"{name}_{what}": kind
        for name in BOUNDS
        for what, kind in (
            ("bound", "float64"),
            ("measured", "float64"),
            ("vacuous", "bool"),
            ("holds", "bool"),
        )
    },
}
SPECTRUM_COLUMNS = {
    "pair": "str",
    "tensor": "str",
    "role": "str",
    "layer": "Int64",
    "variant": "str",
    "k": "int64",
    "values_base": "object",
    "values_tuned": "object",
    "angles_left": "object",
    "angles_right": "object",
    "angle_bound": "float64",
}

#: Ranks of the sweep as shares of a matrix's smaller side; the headline rank of small matrices is an eighth.
SWEEP_SHARES = (1 / 16, 1 / 8, 1 / 4)
SWEEP_COLUMNS = {
    **dict.fromkeys(("pair", "tensor", "role", "variant", "partner"), "str"),
    "layer": "Int64",
    "k": "int64",
    "smaller_side": "int64",
    "nss": "float64",
    "angle_left_mean": "float64",
    "angle_right_mean": "float64",
}

#: Relative rounding of norms and quotients in float64, far above what they have.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Difference:
    """ΔW of a matrix, with ‖ΔW‖_F and ‖ΔW‖₂."""

    delta: Tensor
    norm: float
    spectral: float


@dataclass(frozen=True)
class Moved:
    """One variant, measured: ΔW, all singular values, the leading spectrum and its angles with the base's."""

    side: Base
    tuned: Tensor
    difference: Difference
    spectrum: FullSpectrum
    leading: LeadingSpectrum
    angles: SubspaceAngles

    @property
    def largest(self) -> float:
        """Largest principal angle of both sides."""
        return max(self.angles.left.maximum, self.angles.right.maximum)

    @property
    def bound(self) -> float:
        """Numerical bound on the error of every angle."""
        return max(self.angles.left.bound, self.angles.right.bound)


@dataclass(frozen=True)
class PairDrift(PairInNorm):
    """A pair whose matrices in blocks are measured in each variant, tensor by tensor."""

    tables = {"drift": DRIFT_COLUMNS, "spectrum": SPECTRUM_COLUMNS, "drift_sweep": SWEEP_COLUMNS}

    @cached_property
    def example(self) -> str | None:
        """The matrix that is shown in full."""
        shapes = {row.name: sides(row)[0] for row in self.aligned}
        return example_matrix({name: shapes[name] for name in self.names})

    def rows(self, tensor: str, shared: Shared) -> Rows:
        """Rows of one matrix, in each variant."""
        norm = self.in_norm.norm(tensor)
        pair = load_pair(self.base, self.tuned, tensor)
        place = {"role": role(tensor, pair.base.shape), "layer": layer(tensor)}
        facts = {"pair": self.name, "tensor": tensor, **place}
        generator = noise_generator(self.seed, "drift", self.name, tensor)
        found: Rows = {name: [] for name in self.tables}
        if not pair.base.numel():
            return found
        for variant, moved in _measured(pair, norm, generator, shared):
            partner = self.partner_name if variant in _OF_PARTNER else ""
            row = {**facts, "variant": variant, "partner": partner}
            numbers = drift_numbers(moved)
            found["drift"].append(row | numbers)
            found["drift_sweep"] += [row | {"nss": numbers["nss"]} | swept for swept in _sweep(moved, shared)]
            if tensor == self.example and variant in (RAW, MATCHED):
                found["spectrum"].append(row | _spectra(moved))
        return found


def measure_drift(
    base: Checkpoint,
    tuned: Checkpoint,
    *,
    name: str,
    partner: Checkpoint | None = None,
    partner_name: str = "",
    seed: int = 0,
) -> dict[str, pd.DataFrame]:
    """Measure every matrix in a block of a pair, in each variant.

    Parameters
    ----------
    name : the pair's name, in the column `pair`.
    partner : another run on the same base, whose update norms the norm-matched variants take; without it, or
        where it lacks the matrix, there are none.
    seed : of the noise.

    Raises
    ------
    PairError, CheckpointError : the checkpoints cannot be compared.
    """
    return measure_all(PairDrift(base, tuned, name, partner, partner_name, seed))


_OF_PARTNER = (MATCHED, MATCHED_ROUNDED)


def example_matrix(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """The O of the middle block, as in the paper's single-layer figures; else that block's first matrix."""
    layers = sorted({number for name in shapes if (number := layer(name)) is not None})
    if not layers:
        return None
    block = [name for name in shapes if layer(name) == layers[len(layers) // 2]]
    return next((name for name in block if role(name, shapes[name]) == "o"), block[0])


def _measured(
    pair: TensorPair, norm: float | None, generator: torch.Generator, shared: Shared
) -> Iterator[tuple[str, Moved]]:
    """Every variant that the matrix has, measured against its base as stored or as rounded."""
    for variant, tensor in _variants(pair, norm, generator):
        rounded = variant in (ROUNDED, MATCHED_ROUNDED)
        yield variant, moved_from(pair.base if rounded else pair.base_stored, tensor, shared)


def _variants(
    pair: TensorPair, norm: float | None, generator: torch.Generator
) -> Iterator[tuple[str, Tensor]]:
    own = frobenius_norm(difference(pair.tuned_stored, pair.base_stored))
    yield RAW, pair.tuned_stored
    yield ROUNDED, pair.tuned
    for _ in range(NOISE_DRAWS):
        yield NOISE, gaussian_of_norm(pair.base_stored, own, generator).unrounded
    if norm is not None and (own > 0 or norm == 0):
        scaled = match_norm(pair.base_stored, pair.tuned_stored, norm)
        yield MATCHED, scaled.unrounded
        yield MATCHED_ROUNDED, scaled.rounded


def moved_from(base: Tensor, tuned: Tensor, shared: Shared) -> Moved:
    """A tuned matrix, measured against its base at the headline rank."""
    side = base_of(base, headline_rank(base.shape), shared, spectrum=True)
    return moved_against(side, tuned, _exact_difference)


def moved_against(side: Base, tensor: Tensor, difference_of: Callable[[Tensor, Tensor], Difference]) -> Moved:
    """A tuned matrix, measured against its base; difference_of : of the tuned and the base weight."""
    tuned = tensor.to(side.weight.dtype)
    operator = weight_operator(tuned)
    leading = update(side.leading, operator, side.accuracy)
    spectrum = side.spectrum if leading.path == "unchanged" else singular_values(operator, side.accuracy)
    operator.release()
    angles = subspace_angles(side.leading.leading, leading)
    return Moved(side, tuned, difference_of(tuned, side.weight), spectrum, leading, angles)


def _exact_difference(tuned: Tensor, base: Tensor) -> Difference:
    delta = difference(tuned, base)
    return Difference(delta, frobenius_norm(delta), spectral_norm(delta))


def drift_numbers(moved: Moved) -> dict:
    """A row of the drift table but for its names."""
    side, angles, change = moved.side, moved.angles, moved.difference
    k, leading = angles.k, side.leading.leading
    nss, nss_error = spectral_shift(side.spectrum, moved.spectrum)
    unresolved = torch.cat([angles.left.unresolved, angles.right.unresolved])
    aware = subspace_angles(leading, moved.leading, widest_gap_rank(leading))
    # A bound of a right angle bounds nothing: equal singular values have no leading subspaces.
    known = moved.bound < math.pi / 2
    of_sides = {
        f"angle_{name}_{what}": value if known else math.nan
        for name, one in (("left", angles.left), ("right", angles.right))
        for what, value in (("max", one.maximum), ("mean", one.mean))
    }
    return {
        "accuracy": side.accuracy,
        "path": moved.leading.path,
        "proof": moved.leading.certificate.proof,
        "k": k,
        "gap": angles.gap,
        # Of a base that is zero nothing is a share.
        "nss": nss if math.isfinite(nss) else math.nan,
        "nss_error": nss_error,
        **of_sides,
        "gap_aware_k": aware.k,
        "angle_left_gap_aware_max": aware.left.maximum,
        "angle_right_gap_aware_max": aware.right.maximum,
        "angle_bound": moved.bound,
        "angle_floor": max(angles.left.floor, angles.right.floor),
        "resolved": 1 - float(unresolved.double().mean()) if known else 0.0,
        "proved": angles.proved,
        "norm_base": side.leading.operator.norm() * side.leading.operator.unit,
        "norm_delta": change.norm,
        "spectral_norm_delta": change.spectral,
        "stable_rank": (change.norm / change.spectral) ** 2 if change.spectral else math.nan,
        "energy": principal_energy(change.delta, leading.left, leading.right, change.norm),
        "energy_expected": expected_energy(tuple(side.weight.shape), k),
        **_bounds(moved, nss_error),
    }


def sweep_ranks(shape: tuple[int, ...]) -> list[int]:
    """Ranks of the sweep, ascending, the headline rank among them.

    Of matrices that are too large for all their singular vectors only those up to the headline rank.
    """
    n, headline = min(shape), headline_rank(shape)
    ranks = sorted({headline, *(max(1, round(share * n)) for share in SWEEP_SHARES)})
    return ranks if n <= REFERENCE_SIDE else [rank for rank in ranks if rank <= headline]


def _sweep(moved: Moved, shared: Shared) -> Iterator[dict]:
    """Mean angles at every rank of the sweep; what lies above the headline rank is decomposed once more."""
    weight, headline = moved.side.weight, moved.angles.k
    shape = tuple(weight.shape)
    base, tuned = moved.side.leading.leading, moved.leading
    for k in sweep_ranks(shape):
        if k > base.k:
            side = base_of(weight, max(sweep_ranks(shape)), shared)
            base = side.leading.leading
            tuned = update(side.leading, moved.tuned, side.accuracy)
        angles = moved.angles if k == headline else subspace_angles(base, tuned, k)
        means = {"angle_left_mean": angles.left.mean, "angle_right_mean": angles.right.mean}
        yield {"k": k, "smaller_side": min(shape), **means}


def _bounds(moved: Moved, nss_error: float) -> dict:
    """Each bound with what it bounds, and whether it holds up to the numerical error of both."""
    before, after, k = moved.side.spectrum.values, moved.spectrum.values, moved.angles.k
    sine, change = math.sin(moved.largest), moved.difference
    errors = moved.side.spectrum.errors + moved.spectrum.errors
    blur, shift = float(errors.norm()), float((after - before).norm())
    found = {
        "weyl": (bounds.weyl(before, after, change.spectral), float(errors.max())),
        "mirsky": (bounds.mirsky(before, after, change.norm), blur * (2 * shift + blur)),
        "ky_fan": (bounds.ky_fan(before, after, change.spectral, k), float(errors[:k].sum())),
        "nss": (bounds.nss_bound(before, after, change.norm), nss_error),
        "wedin_printed": (bounds.wedin_as_printed(before, change.spectral, k, sine), moved.bound),
        "wedin_corrected": (bounds.wedin_corrected(before, after, change.spectral, k, sine), moved.bound),
    }
    row: dict = {}
    for name, (bound, floor) in found.items():
        gap_error = _gap_error(bound.bound, change.spectral, float(errors.max())) if "wedin" in name else 0.0
        holds = bound.holds(floor + gap_error + ROUNDING * bound.bound)
        row |= {f"{name}_{what}": asdict(bound)[what] for what in ("bound", "measured", "vacuous")}
        row[f"{name}_holds"] = holds
    return row


def _gap_error(bound: float, spectral: float, error: float) -> float:
    """What an error of the gap does to ‖ΔW‖₂/gap, to first order."""
    return 2 * error * bound**2 / spectral if spectral and math.isfinite(bound) else 0.0


def _spectra(moved: Moved) -> dict:
    """A row of the spectrum table but for its names."""
    return {
        "k": moved.angles.k,
        "values_base": moved.side.spectrum.values.tolist(),
        "values_tuned": moved.spectrum.values.tolist(),
        "angles_left": moved.angles.left.values.tolist(),
        "angles_right": moved.angles.right.values.tolist(),
        "angle_bound": moved.bound,
    }
