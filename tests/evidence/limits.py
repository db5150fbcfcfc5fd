"""Forty planted studies of each kind: how often the rules are wrong, and how often they are right.

Not part of `make test`: `make test-planted` runs it, in about half an hour, and writes what it
counted to planted.json in the build folder. PLANTED_DRAWS=200 makes more of them.
"""

from __future__ import annotations

import json
import os

import pytest

from tests.evidence import planted_studies, planting
from tests.evidence.deserved import DESERVED, TRUE_OF_NOISE
from threegates.atomic import write_text
from threegates.records.provenance import build_folder

DRAWS = int(os.environ.get("PLANTED_DRAWS", "40"))
WORKERS = int(os.environ.get("PLANTED_WORKERS", "2"))
MOST_FALSE, LEAST_RIGHT = 16 * DRAWS // 200, 160 * DRAWS // 200
#: By how much the planted avoidance lies below each null.
AVOIDANCE = 0.04
SIZES = ("SCALE", "LARGER", "DAMPING", "LOUDER", "COMMON", "TURNING", "TURNING_LARGER")


@pytest.fixture(scope="module")
def record(tmp_path_factory) -> dict:
    """What many draws gave, printed and written: verdicts counted by kind and claim, means of estimates."""
    found = planted_studies.many_verdicts(DRAWS, WORKERS, tmp_path_factory.mktemp("verdicts"))
    table = planted_studies.counts(found)
    counts = [
        {"kind": kind, "claim": claim, **{verdict: int(n) for verdict, n in row.items() if n}}
        for (kind, claim), row in table.iterrows()
    ]
    sizes = {name.lower(): getattr(planting, name) for name in SIZES}
    record = {"draws": DRAWS, "planted": sizes, "counts": counts}
    record["means"] = planted_studies.means(found)
    path = build_folder() / "planted.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(record, indent=1) + "\n")
    print(f"\n{table.to_string()}\n{path}")
    return record


def number(record: dict, kind: str, claim: str, verdict: str) -> int:
    """How often a claim got a verdict."""
    rows = [row for row in record["counts"] if (row["kind"], row["claim"]) == (kind, claim)]
    assert len(rows) == 1
    return rows[0].get(verdict, 0)


@pytest.mark.parametrize(("kind", "claim"), DESERVED)
def test_a_planted_truth_gets_the_verdict_that_it_deserves(record, kind, claim):
    assert number(record, kind, claim, DESERVED[kind, claim]) >= LEAST_RIGHT


@pytest.mark.parametrize("kind", ["nothing", "norm"])
def test_where_nothing_was_planted_nothing_is_reproduced(record, kind):
    judged = [row["claim"] for row in record["counts"] if row["kind"] == kind]
    reproduced = {claim: number(record, kind, claim, "reproduced") for claim in judged}
    false = {claim: n for claim, n in reproduced.items() if claim not in TRUE_OF_NOISE and n > MOST_FALSE}
    assert false == {}


@pytest.mark.parametrize("null", ["storage_density", "storage_norm", "magnitude"])
def test_the_planted_avoidance_has_the_size_that_is_stated(record, null):
    found = record["means"]["avoidance"][f"principal_avoidance_{null}"]
    assert found == pytest.approx(AVOIDANCE, abs=0.005)
