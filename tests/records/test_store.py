from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from threegates.errors import RecordError
from threegates.records.store import (
    Records,
    read_columns,
    read_provenance,
    record_digest,
    remove_leftovers,
    write_parquet,
)

DIGEST = "a" * 64
FRAME = pd.DataFrame(
    {"name": ["q", "k"], "ratio": [[0.5, 0.25], [1.0]], "changed": pd.array([3, None], "Int64")}
)


def test_a_record_comes_back_with_its_provenance(tmp_path):
    records = Records(tmp_path)
    path = records.write("axis", "run-1", DIGEST, FRAME, {"seed": 3})
    assert path == tmp_path / "axis" / f"run-1-{'a' * 12}.parquet"
    back = records.read("axis", "run-1", DIGEST)
    assert list(back["name"]) == ["q", "k"] and list(back["ratio"][0]) == [0.5, 0.25]
    assert np.isnan(back["changed"][1]) or back["changed"][1] is pd.NA
    assert read_provenance(path) == {"seed": 3, "table": "axis", "job": "run-1", "digest": DIGEST}
    assert read_columns(path) == ["name", "ratio", "changed"]
    with pytest.raises(RecordError, match="a record is missing"):
        read_columns(path.with_name("none.parquet"))


def test_equal_content_gives_equal_bytes_and_no_other_file(tmp_path):
    one, two = (
        Records(tmp_path / name).write("t", "j", DIGEST, FRAME.copy(), {"b": 1, "a": 2}) for name in "xy"
    )
    assert one.read_bytes() == two.read_bytes()
    assert [path.name for path in one.parent.iterdir()] == [one.name]


def test_the_content_digest_sees_values_but_not_provenance(tmp_path):
    for name, frame, seed in (("a", FRAME, 1), ("b", FRAME, 2), ("c", FRAME.assign(name="q"), 1)):
        write_parquet(tmp_path / name, frame, {"seed": seed})
    assert record_digest(tmp_path / "a") == record_digest(tmp_path / "b")
    assert record_digest(tmp_path / "a") != record_digest(tmp_path / "c")


def test_a_failed_write_leaves_the_old_record(tmp_path):
    records = Records(tmp_path)
    path = records.write("t", "j", DIGEST, FRAME, {})
    before = path.read_bytes()
    with pytest.raises(TypeError):
        records.write("t", "j", DIGEST, FRAME, {"bad": object()})
    assert path.read_bytes() == before and len(list(path.parent.iterdir())) == 1


def test_a_missing_a_damaged_and_a_foreign_record_are_named(tmp_path):
    records = Records(tmp_path)
    with pytest.raises(RecordError, match="a record is missing\n  where: j-aaaaaaaaaaaa.parquet"):
        records.read("t", "j", DIGEST)
    path = records.write("t", "j", DIGEST, FRAME, {})
    with pytest.raises(RecordError, match="belongs to another job"):
        records.read("t", "j", "a" * 12 + "b" * 52)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(RecordError, match="cannot be read as parquet"):
        records.read("t", "j", DIGEST)


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".x"])
def test_a_name_that_is_no_file_name_is_refused(tmp_path, name):
    with pytest.raises(RecordError, match="plain file name"):
        Records(tmp_path).path("t", name, DIGEST)


def test_what_a_killed_process_left_is_removed_and_what_is_being_written_is_not(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for process in (ended.pid, os.getpid()):
        (tmp_path / f".x.parquet.{process}.partial").write_text("half")
    (tmp_path / "x.parquet").write_text("whole")
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {f".x.parquet.{os.getpid()}.partial", "x.parquet"}


def test_a_folder_that_vanishes_while_leftovers_are_sought_is_passed_over(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / ".a.parquet.999999999.partial").touch()
    (tmp_path / "gone").mkdir()
    original = os.scandir

    def scandir(path):
        if str(path).endswith("gone"):
            (tmp_path / "gone").rmdir()
        return original(path)

    monkeypatch.setattr(os, "scandir", scandir)
    remove_leftovers(tmp_path)
    assert list(tmp_path.rglob("*")) == [tmp_path / "here"]
