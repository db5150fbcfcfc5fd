"""The model of measuring times: planted costs are found again, and the probes go through the real code."""

from __future__ import annotations

import math

import pytest

from threegates.checkpoints.pairs import AlignedTensor, Status
from threegates.jobs.costs import OUTSIDE, PROBED, Costs, fit, measured_costs
from threegates.jobs.kinds.known import BY_TENSOR
from threegates.measures.by_tensor import Shared

IN_BLOCK, EMBEDDING = "model.layers.3.mlp.up_proj.weight", "model.embed_tokens.weight"
SMALLEST = "model.layers.0.mlp.up_proj.weight"
COSTS = Costs(entry=2e-9, product=3e-12, cube=5e-12, outside=4e-9)


def row(name: str, *shape: int, status: Status = Status.compared) -> AlignedTensor:
    return AlignedTensor(name, status, shape, shape, "BF16", "BF16")


def test_planted_costs_are_found_again():
    seconds = [
        COSTS.entry * m * n + COSTS.product * m * n * min(m, n) + COSTS.cube * min(m, n) ** 3
        for m, n in PROBED
    ]
    assert fit(PROBED, seconds) == pytest.approx((COSTS.entry, COSTS.product, COSTS.cube), rel=1e-6)


def test_costs_are_never_negative_whatever_the_noise():
    # A small matrix that took long and a large one that took no time would ask for a negative cube.
    found = fit(PROBED, [3.0, 1.0, 0.1, 0.1])
    assert min(found) >= 0
    assert max(found) > 0


def test_a_matrix_in_a_block_costs_passes_products_and_a_cube():
    found = COSTS.seconds(row(IN_BLOCK, 300, 200))
    passes = 300 * 200 * COSTS.entry
    assert found == pytest.approx(passes + COSTS.product * 300 * 200 * 200 + COSTS.cube * 200**3)


def test_other_tensors_cost_passes_alone():
    for other in (
        row(EMBEDDING, 300, 200),
        row("model.layers.0.self_attn.q_proj.bias", 60_000),
        row("model.layers.0.conv.weight", 30, 20, 100),
        row(IN_BLOCK, 300, 200, status=Status.resized),
    ):
        entries = math.prod(other.shape_base)
        assert COSTS.seconds(other) == pytest.approx(entries * COSTS.outside)


def test_the_probes_measure_with_the_real_code(monkeypatch):
    measured: list[tuple[str, str]] = []

    def counted(kind: str):
        class Counted(BY_TENSOR[kind]):
            def rows(self, tensor: str, shared: Shared):
                measured.append((kind, tensor))
                # What takes long is no matter here.
                if kind != "pair" and tensor not in (SMALLEST, EMBEDDING):
                    return {}
                return super().rows(tensor, shared)

        return Counted

    kinds = ("pair", "table", "overlap")
    counting = {kind: counted(kind) for kind in kinds}
    monkeypatch.setattr("threegates.jobs.costs.BY_TENSOR", counting)
    found = measured_costs(kinds)
    assert set(found) == set(kinds)
    assert found["pair"].entry + found["pair"].product + found["pair"].cube > 0
    assert found["pair"].outside > 0 and found["table"].outside > 0
    assert {tensor for kind, tensor in measured if kind == "pair"} >= {EMBEDDING, SMALLEST}


def test_every_probe_is_beyond_plain_decompositions():
    # Up to a smaller side of 256 the spectra are float64 SVDs, which say nothing of larger matrices.
    assert min(min(shape) for shape in PROBED) > 256
    assert math.prod(OUTSIDE) >= 1 << 20
