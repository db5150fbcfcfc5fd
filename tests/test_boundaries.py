"""What digests start from and where they stop: names that exist, and that keep what computes inside."""

from __future__ import annotations

import pytest

from threegates.definitions import PACKAGE, Tree, closure
from threegates.jobs.closures import roots

REACHES = [(what, kind, reach) for what, kinds in roots().items() for kind, reach in kinds.items()]
NAMES = sorted({name for *_, reach in REACHES for name in (*reach.roots, *reach.outside, *reach.inside)})


@pytest.mark.parametrize("name", NAMES)
def test_every_name_of_a_boundary_exists(name):
    tree = Tree(PACKAGE)
    assert tree.module(name) or tree.defined(name)


@pytest.mark.parametrize(("what", "kind", "reach"), REACHES, ids=lambda value: str(value)[:12])
def test_no_digest_covers_how_files_are_read(what, kind, reach):
    names = closure(*reach.roots, outside=reach.outside, inside=reach.inside).files()
    unwanted = ("checkpoints.tensors", "checkpoints.formats.headers", "digest", "atomic", "jobs", "records")
    assert not [name for name in names if name.startswith(tuple(f"threegates.{one}." for one in unwanted))]
    geometry = [name for name in names if name.startswith("threegates.geometry.")]
    assert geometry or what == "run"


def test_digests_of_records_cover_the_decomposition_behind_the_cache_and_the_rounding():
    names = {
        kind: closure(*one.roots, outside=one.outside, inside=one.inside).files()
        for kind, one in roots()["record"].items()
    }
    for kind in ("drift", "overlap", "curvature", "steepness"):
        assert "threegates.geometry.decomposition.decompose" in names[kind]
    assert "threegates.geometry.decomposition.decompose_beside_spectrum" in names["table"]
    for kind in ("pair", "group", "run", "drift", "overlap", "lens", "curvature", "rotation", "table"):
        assert "threegates.checkpoints.rounding.round_to_bf16" in names[kind]
