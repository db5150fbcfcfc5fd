"""Which base a tuned checkpoint comes from."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from tests.planted import planted
from threegates.errors import PairError
from threegates.jobs.nearest import nearest, told


@pytest.fixture
def folders(tmp_path):
    """Two bases, a model tuned from the first, and what can be compared with neither."""
    bases = {name: planted.base_tensors(seed=seed) for name, seed in (("a", 1), ("b", 2))}
    made = {
        **bases,
        "tuned": planted.with_noise(bases["a"], 1e-3, 5),
        "other": {"x.weight": torch.ones(3, 3)},
    }
    return {name: str(planted.write(tmp_path / name, one)) for name, one in made.items()}, made


def test_the_base_it_was_trained_from_stands_first_with_its_distance(folders):
    places, made = folders
    found = nearest(places["tuned"], [places["b"], places["a"], places["other"]])
    assert list(found["base"]) == [places["a"], places["b"], places["other"]]
    delta = math.sqrt(sum(float((made["tuned"][n] - w).double().norm()) ** 2 for n, w in made["a"].items()))
    norm = math.sqrt(sum(float(weight.double().norm()) ** 2 for weight in made["a"].values()))
    assert found["distance"][0] == pytest.approx(delta / norm, rel=1e-6)
    assert found["distance"][1] > 0.5 and found["unchanged"][0] > found["unchanged"][1]
    assert list(found["compared"][:2]) == [1.0, 1.0] and "matrices" in found["why_not"][2]
    assert told(found).splitlines()[-1] == f"nearest: {places['a']}"
    assert "not compared" in told(found).splitlines()[2]


def test_a_tie_a_stranger_and_nothing_to_choose_from_are_said(folders):
    places, _ = folders
    assert "equally near" in told(nearest(places["a"], [places["a"], places["a"] + "/"]))
    far = {name: 3 * weight for name, weight in planted.base_tensors(seed=9).items()}
    stranger = str(planted.write(Path(places["a"]).parent / "far", far))
    assert "none of them" in told(nearest(stranger, [places["a"]]))
    with pytest.raises(PairError, match="no base"):
        nearest(places["tuned"], [])
    with pytest.raises(PairError, match="none of these bases"):
        nearest(places["tuned"], [places["other"]])
