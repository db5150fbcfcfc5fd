"""Which nulls jobs draw: by name, the founding ones unless others are asked for, and what digests cover."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

from tests.planted import planted
from tests.planted.planted_null import FIFTH
from threegates.definitions import reached
from threegates.errors import GeometryError
from threegates.geometry.nulls import table
from threegates.jobs import measured_pairs
from threegates.jobs.kinds.known import KINDS, jobs_of
from threegates.jobs.kinds.table import table_job
from threegates.jobs.nulls import FOUNDING, asked_for, samplers, with_nulls
from threegates.jobs.pair_files import measure_to_files
from threegates.jobs.partial import read_parts
from threegates.jobs.sources import own_pair
from threegates.records.store import read_parquet, read_provenance
from threegates.register import CHAPTERS
from threegates.study import Study

PACKAGE = "threegates.geometry.nulls"


@pytest.fixture
def sides(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = planted.base_tensors()
    tensors = {"base": base, "tuned": planted.with_noise(base, 1e-3, 1)}
    return [str(planted.write(tmp_path / name, one)) for name, one in tensors.items()]


def code_of(kind: str, *names: str) -> set[str]:
    one = KINDS[kind].reach_of({"nulls": names})
    return set(reached(*one.roots, outside=one.outside, inside=one.inside))


def test_the_founding_nulls_are_drawn_unless_others_are_asked_for():
    assert asked_for() == asked_for(()) == list(FOUNDING)
    assert asked_for(("magnitude", "bernoulli", "magnitude")) == ["bernoulli", "magnitude"]
    with pytest.raises(GeometryError, match=r"(?s)no such null.*bernoulli, .*uniform"):
        asked_for(("uniform",))


def test_names_become_nulls_where_a_job_is_measured():
    nulls = with_nulls({"seed": 2, "nulls": ["magnitude"]})["nulls"]
    assert nulls == (table.NULLS["magnitude"],) and with_nulls({"seed": 2}) == {"seed": 2}


def test_a_fifth_null_in_the_table_changes_no_job(sides, monkeypatch):
    pair = own_pair(*sides)

    def digests() -> dict[str, str]:
        jobs = [
            job
            for chapter in ("update-sparsity", "stripe-masks", "principal-overlap", "spectral-drift")
            for job in jobs_of(CHAPTERS[chapter].jobs, [pair], seed=0)
        ]
        whole = table_job(pair, {"seed": 0, "nulls": asked_for(), "axes": True, "spectra": True})
        return {f"{job.kind}/{job.name}": job.digest for job in [*jobs, whole]}

    before = digests()
    monkeypatch.setitem(table.NULLS, FIFTH.name, FIFTH)
    assert digests() == before and {name.split("/")[0] for name in before} >= {"group", "overlap", "table"}


def test_nulls_are_parameters_of_the_kinds_that_draw_them_and_of_no_other(sides):
    found = {}
    for names in (FOUNDING, ("bernoulli",)):
        for chapter in ("stripe-masks", "principal-overlap", "spectral-drift"):
            for job in jobs_of(CHAPTERS[chapter].jobs, [own_pair(*sides)], 0, names):
                found.setdefault(job.kind, {})[names] = (job.inputs["parameters"].get("nulls"), job.digest)
    assert found["pair"][FOUNDING] == found["pair"]["bernoulli",] and found["pair"][FOUNDING][0] is None
    assert found["drift"][FOUNDING] == found["drift"]["bernoulli",]
    for kind in ("group", "overlap"):
        assert [found[kind][names][0] for names in (FOUNDING, ("bernoulli",))] == [
            list(FOUNDING),
            ["bernoulli"],
        ]
        assert found[kind][FOUNDING][1] != found[kind]["bernoulli",][1]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_code_of_a_record_holds_the_samplers_of_its_nulls_and_nothing_that_lists_or_shows_them(kind):
    bare, beside = code_of(kind), code_of(kind, *FOUNDING)
    assert not {f"{PACKAGE}.{name}.{what}" for name in FOUNDING for what in ("masks", "NULL")} & bare
    assert set(samplers(FOUNDING)) <= beside
    for name in beside:
        assert not name.startswith(f"{PACKAGE}.table") and not name.endswith(".NULL")
        assert name != f"{PACKAGE}.null.Null"


def test_the_code_of_the_table_holds_the_laws_of_its_nulls_and_of_no_other():
    of_laws = "threegates.geometry.laws"
    assert f"{of_laws}.hypergeometric.sum_of_hypergeometrics" in code_of("table", "bernoulli")
    assert f"{of_laws}.stopped.stopped_sum" in code_of("table", "storage_density")
    for name in ("masks.BERNOULLI", "masks.MAGNITUDE", "masks.AT_COUNT", "masks.AT_NORM"):
        assert f"{of_laws}.{name}" in code_of("table", *FOUNDING)
        assert f"{of_laws}.{name}" not in code_of("table") | code_of("overlap")
    assert f"{of_laws}.masks.AT_NORM" not in code_of("table", "bernoulli", "magnitude")


def test_no_measuring_module_imports_the_table():
    modules = sorted({kind.root.rpartition(".")[0] for kind in KINDS.values()})
    script = f"import sys, {', '.join(modules)}; print('{PACKAGE}.table' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_pair_is_measured_beside_the_nulls_that_were_asked_for_and_read_as_such(sides, tmp_path):
    options = {"masks": None, "axis": tmp_path / "a.parquet", "seed": 0}
    measure_to_files(own_pair(*sides), tmp_path / "t.parquet", nulls=("magnitude",), **options)
    frame, axis = (read_parquet(tmp_path / f"{name}.parquet") for name in ("t", "a"))
    for columns in (frame, axis):
        assert {name for name in FOUNDING if any(f"{name}_mean" in one for one in columns)} == {"magnitude"}
    assert read_provenance(tmp_path / "t.parquet")["inputs"]["parameters"]["nulls"] == ["magnitude"]
    summary = measured_pairs.summary(frame)
    assert math.isnan(summary["storage_norm_principal"]) and summary["overlap_principal"] > 0


def test_parts_that_hold_a_fifth_null_have_its_columns(sides, tmp_path, monkeypatch):
    monkeypatch.setitem(table.NULLS, FIFTH.name, FIFTH)
    row = {"tensor": "lm_head.weight", "size": 1, f"overlap_low_{FIFTH.name}_mean": 0.25}
    part = tmp_path / "o.parquet.parts" / ("e" * 16) / "x.json"
    part.parent.mkdir(parents=True)
    part.write_text(f'{{"tensor": [{str(row).replace(chr(39), chr(34))}], "axis": []}}')
    (found,) = read_parts(tmp_path / "o.parquet").to_dict("records")
    assert found[f"overlap_low_{FIFTH.name}_mean"] == 0.25
    assert f"overlap_low_{FIFTH.name}_log10_p" not in found
    assert set(KINDS["table"].tables["tensor"]) <= set(found)


def test_a_study_beside_one_null_has_the_others_columns_empty(sides, tmp_path, project):
    study = Study.open(
        "principal-overlap",
        base=sides[0],
        tuned=sides[1],
        records=tmp_path / "records",
        nulls=["magnitude"],
    )
    overlap = study.table("overlap")
    assert overlap["magnitude_mean"].notna().any()
    assert overlap[["bernoulli_mean", "storage_norm_mean"]].isna().all(axis=None)
    assert len(study.verdicts())


def test_every_chapter_is_cut_without_its_caller_naming_nulls(sides):
    assert {name for name, chapter in CHAPTERS.items() if "group" in chapter.jobs} == {"stripe-masks"}
    jobs = jobs_of(CHAPTERS["stripe-masks"].jobs, [own_pair(*sides)], 0)
    assert {tuple(job.arguments["nulls"]) for job in jobs if job.kind == "group"} == {FOUNDING}
