"""The rows of an unfinished measurement: those that are there, as what they are."""

from __future__ import annotations

import os

import pandas as pd
import pytest

from tests.planted import planted
from threegates.errors import RecordError
from threegates.jobs import batches
from threegates.jobs.kinds.known import KINDS
from threegates.jobs.pair_files import measure_to_files
from threegates.jobs.partial import parts_folder, read_parts
from threegates.jobs.sources import own_pair
from threegates.measures.by_tensor import Parts
from threegates.measures.tensor_table import PairTable
from threegates.records.store import read_parquet, write_parquet

OPTIONS = {"masks": None, "seed": 0}


class Stopped(BaseException):
    """Stands for a kill: nothing below catches it."""


@pytest.fixture
def pair(tmp_path, monkeypatch):
    """Folders of a pair in a place that is no project."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("THREEGATES_ROOT", str(tmp_path))
    base = planted.base_tensors(layers=2)
    tuned = planted.with_noise(base, 1e-3, 1)
    return [str(planted.write(tmp_path / n, t)) for n, t in (("base", base), ("tuned", tuned))]


@pytest.fixture
def stopped(pair, tmp_path, monkeypatch):
    """A measurement that was stopped before its eighth tensor; gives its output."""
    seen = []
    original = PairTable.rows

    def rows(self, tensor, shared):
        if len(seen) == 7:
            raise Stopped
        seen.append(tensor)
        return original(self, tensor, shared)

    out = tmp_path / "out.parquet"
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(PairTable, "rows", rows)
        measure_to_files(own_pair(*pair), out, axis=tmp_path / "axis.parquet", **OPTIONS)
    return out, seen


@pytest.mark.parametrize("table", ["tensor", "axis"])
def test_what_is_there_is_what_the_finished_table_will_say(stopped, pair, tmp_path, table):
    out, seen = stopped
    found = read_parts(out, table)
    assert found["unfinished"].all() and list(found)[-1] == "unfinished"
    assert set(found["tensor"]) <= set(seen) and (table == "axis" or len(found) == 7)
    axis = tmp_path / "axis.parquet"
    measure_to_files(own_pair(*pair), out, axis=axis, **OPTIONS)
    whole = read_parquet(out if table == "tensor" else axis)
    keys = ["tensor", "axis"] if table == "axis" else ["tensor"]
    rows = whole.set_index(keys).loc[found.set_index(keys).index].reset_index()[list(whole)]
    write_parquet(tmp_path / "found.parquet", found.drop(columns="unfinished"), {})
    stored = read_parquet(tmp_path / "found.parquet")
    # A column has another type there if none of its values is missing.
    pd.testing.assert_frame_equal(plain(rows), plain(stored), check_exact=True, check_dtype=False)
    types = found.drop(columns="unfinished").dtypes
    assert [str(kind) for kind in types] == list(KINDS["table"].tables[table].values())


def plain(frame: pd.DataFrame) -> pd.DataFrame:
    """Lists and arrays as tuples, which can be compared."""
    lists = [name for name in ("shape", "shape_tuned", "ratio") if name in frame]
    return frame.assign(**{name: frame[name].map(tuple) for name in lists})


def test_rows_come_by_layer_and_the_embedding_first(stopped):
    found = read_parts(stopped[0])
    layers = found["layer"].fillna(-1).tolist()
    assert layers == sorted(layers)
    assert found["tensor"].tolist() == sorted(
        found["tensor"], key=lambda n: ("layers.1" in n, "layers" in n, n)
    )


def test_parts_of_other_parameters_are_not_mixed_in(stopped):
    out, _ = stopped
    other = Parts(parts_folder(out), "e" * 64)
    row = {"tensor": "lm_head.weight", "size": 1}
    other.write("lm_head.weight", {"tensor": [row], "axis": []})
    os.utime(other.folder, ns=(1, 1))
    assert len(read_parts(out)) == 7
    for folder in parts_folder(out).iterdir():
        if folder != other.folder:
            os.utime(folder, ns=(0, 0))
    assert read_parts(out)["tensor"].tolist() == ["lm_head.weight"]


def test_where_nothing_is_unfinished_it_says_so(stopped, pair, tmp_path):
    out, _ = stopped
    with pytest.raises(RecordError, match="start it with `threegates measure`"):
        read_parts(str(tmp_path / "other.parquet"))
    with pytest.raises(RecordError, match="no such table") as caught:
        read_parts(out, "spectrum")
    assert caught.value.expected == "tensor or axis"
    measure_to_files(own_pair(*pair), out, axis=None, **OPTIONS)
    with pytest.raises(RecordError, match="it is finished: read"):
        read_parts(out)


def test_a_part_that_is_torn_is_named(stopped):
    out, _ = stopped
    path = next(parts_folder(out).glob("*/*.json"))
    path.write_text("{")
    with pytest.raises(RecordError, match="cannot be read") as caught:
        read_parts(out)
    assert caught.value.where == path


def test_the_file_that_says_that_parts_are_awaited_is_no_part(stopped):
    (folder,) = parts_folder(stopped[0]).iterdir()
    assert (folder / batches._AWAITED).exists() and len(list(folder.glob("*.json"))) == 7
