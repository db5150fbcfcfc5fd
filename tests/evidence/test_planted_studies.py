"""Three draws of the planted studies, so that what `make test-planted` runs cannot rot."""

from __future__ import annotations

import pandas as pd
import pytest

from tests.evidence.deserved import DESERVED, TRUE_OF_NOISE
from tests.evidence.planted_studies import KINDS, Draw, Kind, counts, means, runs_of, verdicts
from tests.evidence.planting import LARGER, base_matrices, tuned
from tests.planted import planted
from threegates.checkpoints.tensors import Checkpoint
from threegates.jobs.nulls import founding_nulls
from threegates.measures.overlap import measure_overlap

#: Each kind once, over three draws.
QUICK = {
    0: ("nothing",),
    1: ("norm", "turning", "data", "rate", "size", "reversed"),
    2: ("avoidance", "stripes"),
}


def test_every_kind_is_drawn_and_deserves_something():
    assert sorted(kind for kinds in QUICK.values() for kind in kinds) == sorted(KINDS)
    assert {kind for kind, _ in DESERVED} == set(KINDS)


@pytest.mark.slow
@pytest.mark.parametrize("number", QUICK)
def test_a_draw_gets_the_verdicts_that_it_deserves(number):
    found = verdicts(number, QUICK[number])
    by_claim = {(row["kind"], row["claim"]): row["verdict"] for row in found}
    assert len(by_claim) == len(found)
    wanted = {key: verdict for key, verdict in DESERVED.items() if key[0] in QUICK[number]}
    assert {key: by_claim[key] for key in wanted} == wanted
    false = [
        claim
        for (kind, claim), verdict in by_claim.items()
        if kind in ("nothing", "norm") and claim not in TRUE_OF_NOISE and verdict == "reproduced"
    ]
    assert false == []


def test_a_draw_in_memory_is_measured_like_checkpoints_on_disk(tmp_path):
    draw, kind = Draw(3), Kind({("grpo", "mask"): "avoiding", ("sft-teacher", "own"): "noise"}, ())
    shown = draw.tables(kind, "principal-overlap").table("overlap")
    run = next(run for run in runs_of(kind, "principal-overlap") if run.partner)
    held = {"base": draw.base, "tuned": draw.tuned(run.plant, run.name)}
    held["partner"] = draw.tuned(run.partner, run.partner_name)
    on_disk = {
        name: Checkpoint.open(planted.write(tmp_path / name, one.tensors)) for name, one in held.items()
    }
    options = {"name": run.name, "partner_name": run.partner_name, "seed": 3}
    alone = measure_overlap(**on_disk, **options, nulls=founding_nulls())["overlap"]
    own = shown[shown["pair"] == run.name].reset_index(drop=True)
    pd.testing.assert_frame_equal(own[list(alone)], alone)


def test_plants_differ_in_where_they_lie_and_not_in_their_norm():
    matrices = base_matrices(0)
    norms = {
        plant: [
            float((one.tensors[matrix.name].double() - matrix.weight.double()).norm() / matrix.scale)
            for matrix in matrices
        ]
        for plant in ("noise", "avoiding", "striped", "turning", "large")
        for one in [tuned(matrices, plant, "run", 0)]
    }
    for plant, found in norms.items():
        larger = LARGER if plant == "large" else 1.0
        sizes = [larger * matrix.weight.numel() ** 0.5 for matrix in matrices]
        assert found == pytest.approx(sizes, rel=0.05), plant


def test_verdicts_are_counted_and_estimates_averaged():
    rows = [
        {"kind": "norm", "claim": "a", "verdict": "reproduced", "values": {"x": 1.0, "y": float("nan")}},
        {"kind": "norm", "claim": "a", "verdict": "contradicted", "values": {"x": 2.0, "y": float("nan")}},
        {"kind": "nothing", "claim": "b", "verdict": "reproduced", "values": {"z": 3.0}},
    ]
    table = counts(rows)
    assert list(table.columns) == ["contradicted", "reproduced"]
    assert table.loc[("norm", "a")].tolist() == [1, 1] and table.loc[("nothing", "b")].tolist() == [0, 1]
    assert list(table.index) == [("nothing", "b"), ("norm", "a")]
    assert means(rows) == {"nothing": {"z": 3.0}, "norm": {"x": 1.5}}
