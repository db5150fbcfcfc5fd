"""The appendix of measured speed, from a record."""

from __future__ import annotations

import json
from dataclasses import replace

import pandas as pd
import pytest

from benchmarks.measure import Row
from threegates.appendices.benchmark_page import benchmark_file, benchmark_page
from threegates.errors import RecordError
from threegates.records.provenance import project_root

ROW = Row("warm <fast>", "s", 12.5, "svd", 2500.0, True, "error 1e-6", aim=20.0, gate=10.0)


def written(folder, *rows: Row, **more: object):
    run = {"machine": {"cpu": "some"}, "time": "2026-01-02T03:04:05Z", "rows": [r.record() for r in rows]}
    path = folder / "benchmarks.json"
    path.write_text(json.dumps({"runs": {"first": run | more}}))
    return path


def test_modules_that_were_measured_apart_say_when_and_where_each(tmp_path):
    path = written(tmp_path, ROW)
    runs = json.loads(path.read_text())["runs"]
    other = {"machine": {"cpu": "some", "load": 2.5}, "time": "2026-02-03T03:04:05Z", "commit": "f" * 40}
    second = {"rows": [replace(ROW, name="later").record()], **other}
    path.write_text(json.dumps({"runs": runs | {"second": second, "third": second}}))
    page = benchmark_page(path, tmp_path)
    assert "*first*: Measured on 2026-01-02. Cpu some." in page
    assert "*second, third*: Measured on 2026-02-03 at commit ffffffffffff. Cpu some. Load 2.5." in page
    assert page.count("<td>later</td>") == 2 and page.count("<td>warm &lt;fast&gt;</td>") == 1


def test_a_row_says_what_it_compares_how_far_and_what_was_aimed_for(tmp_path):
    page = benchmark_page(written(tmp_path, ROW, commit="0123456789abcdef", dirty=True), tmp_path)
    assert page.startswith("# Speed and accuracy\n")
    assert "warm &lt;fast&gt;" in page and "<strong>200×</strong>" in page
    assert "12.5 ms" in page and "2.5 s" in page and "10× (20×)" in page
    assert "2026-01-02 at commit 0123456789ab with changes that were not committed" in page


def test_missed_gates_and_results_that_do_not_hold_are_said(tmp_path):
    slow = Row("a", "s", 0.01, "b", 0.02, False, "same counts", gate=10.0)
    page = benchmark_page(written(tmp_path, slow), tmp_path)
    assert "10×, missed" in page and "<strong>not</strong> same counts" in page and "10 µs" in page


def test_this_build_folder_goes_before_the_kept_record(tmp_path):
    build, root = tmp_path / "build", tmp_path / "root"
    (root / "benchmarks").mkdir(parents=True)
    build.mkdir()
    with pytest.raises(RecordError, match="no record of the benchmarks") as caught:
        benchmark_file(build, root)
    assert "make bench" in str(caught.value)
    kept = written(root / "benchmarks", ROW)
    assert benchmark_file(build, root) == kept
    assert benchmark_file(build, root) != written(build, ROW) == benchmark_file(build, root)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"runs": []}', '{"runs": {"a": {"rows": [{}]}}}'])
def test_what_is_no_record_is_refused(tmp_path, text):
    path = tmp_path / "benchmarks.json"
    path.write_text(text)
    with pytest.raises(RecordError, match="no record of benchmarks") as caught:
        benchmark_page(path, tmp_path)
    assert str(path) in str(caught.value)


def test_the_kept_record_has_every_target_and_its_results_hold():
    root = project_root()
    record = json.loads(benchmark_file(root / "nowhere", root).read_text())
    rows = [row for run in record["runs"].values() for row in run["rows"]]
    assert all(row["accurate"] for row in rows)
    stated = {(row["name"].split(" (")[0], row["size"].split()[0]) for row in rows if row["gate"]}
    assert {("warm fast", size) for size in "smlx"} <= stated
    assert {"warm certified", "cold pair fast", "count changes", "pair streamed", "exact threshold"} <= {
        name for name, _ in stated
    }
    assert {"pair within a cap", "layer within a cap", "memory of a tensor"} <= {row["name"] for row in rows}
    assert {run["machine"]["threads"] for run in record["runs"].values()} == {1}


def test_how_time_grows_is_drawn_where_whole_pairs_were_measured(tmp_path):
    whole = [
        replace(
            ROW, name="pair within a cap", ours_ms=1e3 * n, other_ms=4e3 * n, notes={"parameters": n * 1e8}
        )
        for n in (4, 1)
    ]
    page = benchmark_page(written(tmp_path, ROW, *whole), tmp_path / "figures")
    assert "figures/benchmarks/growth.svg" in page
    drawn = pd.read_csv(tmp_path / "figures" / "benchmarks" / "growth.csv")
    assert (
        drawn["parameters"].tolist() == [1e8, 4e8] * 2 and drawn["way"].tolist() == ["ours"] * 2 + ["svd"] * 2
    )
    assert drawn["seconds"].tolist() == [1, 4, 4, 16]
    assert "growth" not in benchmark_page(written(tmp_path, ROW), tmp_path / "none")
    assert not (tmp_path / "none").exists()
