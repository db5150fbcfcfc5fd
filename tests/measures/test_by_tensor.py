"""What is kept of a base at hand, and parts of a measurement that stops."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from threegates.errors import RecordError
from threegates.measures.by_tensor import Parts, Shared, typed


def test_what_equal_weights_gave_is_given_again_and_nothing_else():
    shared, calls = Shared(), []

    def sum_of(weight, what="sum"):
        return shared.of(what, weight, lambda: calls.append(what) or float(weight.sum()))

    weight = torch.arange(6.0).reshape(2, 3)
    assert sum_of(weight) == sum_of(weight.clone()) == 15 and calls == ["sum"]
    assert sum_of(weight + 1) == 21 and sum_of(weight) == 15 and len(calls) == 2
    # Another type, another shape and another question are other weights.
    sum_of(weight.double()), sum_of(weight.reshape(3, 2)), sum_of(weight, "other")
    assert len(calls) == 5


def test_rows_come_back_to_the_last_bit(tmp_path):
    parts = Parts(tmp_path / "parts", "d" * 64)
    numbers = [0.1 + 0.2, np.nextafter(1.0, 2.0), 5e-324, -0.0, float("inf"), float("nan")]
    rows = {"t": [{"a": number, "b": [1, 2], "c": None, "d": True} for number in numbers]}
    parts.write("model/odd name.weight", rows)
    back = parts.read("model/odd name.weight")
    assert [row["a"].hex() for row in back["t"]] == [float(number).hex() for number in numbers]
    assert back["t"][0]["c"] is None and back["t"][0]["d"] is True
    assert parts.has("model/odd name.weight") and not parts.has("another")


def test_only_parts_of_the_same_digest_are_taken(tmp_path):
    old, new = (Parts(tmp_path / "parts", letter * 64) for letter in "ab")
    old.write("q", {"t": []})
    assert not new.has("q")
    new.write("q", {"t": [{"a": 1}]})
    new.drop_others()
    assert not old.has("q") and new.read("q") == {"t": [{"a": 1}]}
    new.remove()
    assert not (tmp_path / "parts").exists()


def test_a_part_that_is_gone_or_torn_is_an_error_that_says_so(tmp_path):
    parts = Parts(tmp_path / "parts", "d" * 64)
    with pytest.raises(RecordError, match="'q' is not there any more"):
        parts.read("q")
    parts.write("q", {"t": []})
    parts.path("q").write_text(json.dumps({"t": []})[:-1])
    with pytest.raises(RecordError, match="see that no other process"):
        parts.read("q")


def test_missing_keys_become_missing_values():
    frame = typed([{"a": 1}, {"b": 2.0}], {"a": "Int64", "b": "float64", "c": "object"})
    assert list(frame) == ["a", "b", "c"] and frame["a"].isna().tolist() == [False, True]
