"""Published pairs beside what was measured: a number stands only where a table of that very pair was read."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest

from tests.planted import planted
from tests.planted.planted_pairs import FLIPS, measured_table, place
from threegates.chapters.agents_rlhf import tables
from threegates.checkpoints.manifests.manifest import Entry, Hub, Manifest, read_manifest
from threegates.errors import ManifestError
from threegates.jobs import measured_pairs
from threegates.records.store import read_parquet, write_parquet

LOCK = "0123456789abcdef0123456789abcdef01234567"
OTHER = "f" * 40
BOTH = {"revision": LOCK, "base_revision": LOCK}
TRACKED = planted.ROOT / "data_manifest.yaml"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return measured_table(tmp_path_factory.mktemp("measured"))


@pytest.fixture(scope="module")
def table(written):
    return next(path for path in written.files if path.suffix == ".parquet")


def manifest(revision=None, base_revision=None):
    """One pair, locked or not, with the row of a table of the paper."""
    labels = {"paper_name": "Polaris-4B-Preview", "paper_place": "Table 1"}
    labels |= {"paper_sparsity": "79.3", "followup_sparsity": "79.9"}
    base = Entry(name="base", source=Hub(repo="org/base", revision=base_revision), method="pretrain")
    tuned = Entry(
        name="one",
        source=Hub(repo="org/one", revision=revision),
        base="base",
        method="rl",
        algorithm="DAPO",
        chapters=["agents-rlhf"],
        labels=labels,
    )
    return Manifest(version=1, checkpoints=[base, tuned])


def row(folders, **locks):
    return measured_pairs.measured_pairs(manifest(**locks), folders=folders).iloc[0]


def test_what_was_never_measured_has_no_number_and_says_so(tmp_path):
    known = measured_pairs.measured_pairs(read_manifest(TRACKED), folders=[tmp_path])
    assert set(known["status"]) == {"not measured"} and len(known) > 20
    assert known[list(measured_pairs.NUMBERS)].isna().all(axis=None)
    shown = tables.pairs_text(known)
    numbers = ["ours", "as stored", "noise of equal norm", "NSS", "on principal weights", "their density"]
    assert (shown[numbers] == "not measured").all(axis=None)
    beside = tables.beside_table_1(read_manifest(TRACKED), folders=[tmp_path])
    assert not any(re.search(r"\d", text) for text in beside[["ours", "as stored", "status"]].to_numpy().flat)


def test_a_measured_pair_has_the_numbers_of_its_table(written, table, tmp_path):
    place(table, tmp_path / "one.parquet")
    own, rows = row([tmp_path]), written.tensor
    changed = sum(FLIPS.values())
    assert own["status"] == "measured" and own["remark"] == ""
    assert own["weights"] == rows["size"].sum()
    assert own["sparsity"] == pytest.approx(1 - changed / rows["size"].sum(), abs=1e-15)
    # Flips of bf16 codes are all that there is, so both precisions agree.
    assert own["sparsity_fp32"] == own["sparsity"]
    noise = np.average(rows["sparsity_storage_norm"], weights=rows["size"])
    assert own["sparsity_storage_norm"] == pytest.approx(noise, abs=1e-12)
    blocks = rows[rows["layer"].notna() & (rows["role"] != "norm")]
    assert own["matrices"] == len(blocks) == 14
    assert own["nss"] == np.median(blocks["nss"])
    both = np.maximum(blocks["angle_left_max"], blocks["angle_right_max"])
    assert own["angle"] == np.median(both)
    assert own["overlap_low"] == pytest.approx(blocks["overlap_low"].mean(), nan_ok=True)
    assert own["density_principal"] == pytest.approx(0.5, abs=0.01)
    assert own["paper_sparsity"] == pytest.approx(0.793) and own["followup_sparsity"] == pytest.approx(0.799)


@pytest.mark.parametrize(
    ("seen", "locks", "status", "told"),
    [
        ({"tuned": LOCK}, {"revision": LOCK}, "measured", ""),
        ({"tuned": LOCK}, {}, "measured", ""),
        (
            {"tuned": OTHER},
            {"revision": LOCK},
            measured_pairs.OTHER_REVISION,
            "tuned at ffffffffffff, locked to",
        ),
        ({}, {"revision": LOCK}, measured_pairs.OTHER_REVISION, "tuned at an unknown commit"),
        ({"tuned": LOCK, "base": OTHER}, BOTH, measured_pairs.OTHER_REVISION, "base at ffffffffffff"),
    ],
)
def test_a_lock_tells_which_commits_count(table, tmp_path, seen, locks, status, told):
    place(table, tmp_path / "one.parquet", seen)
    own = row([tmp_path], **locks)
    assert own["status"] == status and told in own["remark"]
    assert own["revision"] == seen.get("tuned", "")
    named = measured_pairs.measured_tensors(measured_pairs.found_pairs(manifest(**locks), folders=[tmp_path]))
    assert set(named["pair"]) == {"one" + " (another revision)" * (status != "measured")}


def test_a_part_of_a_model_is_told_as_a_part(table, tmp_path):
    place(table, tmp_path / "one.parquet", layers=[0, 13], matrices=["q", "o"])
    own = row([tmp_path])
    assert own["status"] == "measured" and own["remark"] == "only layers 0, 13 and matrices q, o"
    assert "only layers 0, 13" in tables.beside_table_1(manifest(), [tmp_path])["status"].to_list()[12]


def broken(kind, table, path):
    if kind == "bytes":
        path.write_bytes(b"PAR1 no parquet")
    elif kind == "foreign":
        read_parquet(table).to_parquet(path)
    elif kind == "columns":
        write_parquet(path, read_parquet(table).drop(columns="nss"), {"inputs": {}})
    elif kind == "version":
        side = {"label": "one", "digest": "0" * 64, "revision": LOCK}
        write_parquet(path, read_parquet(table), {"inputs": {"base": side, "tuned": side}})
    else:
        write_parquet(path, read_parquet(table), {"inputs": ["no mapping"]})


@pytest.mark.parametrize("kind", ["bytes", "foreign", "columns", "version", "provenance"])
def test_what_cannot_be_read_says_why_has_no_number_and_names_no_folder(table, tmp_path, kind):
    broken(kind, table, tmp_path / "one.parquet")
    own = row([tmp_path], revision=LOCK)
    assert own["status"] == "cannot be read" and own["remark"]
    assert own[list(measured_pairs.NUMBERS)].isna().all()
    shown = tables.pairs_text(measured_pairs.measured_pairs(manifest(), folders=[tmp_path])).iloc[0]
    assert shown["ours"] == "not measured" and shown["status"].startswith("cannot be read (")
    assert str(tmp_path) not in shown["status"]
    told = {"bytes": "parquet", "columns": "nss", "version": "measured again"}
    assert told.get(kind, "") in shown["status"]


def test_of_two_tables_the_one_at_the_locked_commit_is_taken(table, tmp_path):
    place(table, tmp_path / "here" / "one.parquet", {"tuned": OTHER})
    folders = [tmp_path / "here", tmp_path / "kept"]
    assert row(folders, revision=LOCK)["status"] == "measured at another revision"
    place(table, tmp_path / "kept" / "one.parquet", {"tuned": LOCK})
    assert row(folders, revision=LOCK)["status"] == "measured"
    (tmp_path / "kept" / "one.parquet").write_bytes(b"")
    assert row(folders, revision=LOCK)["status"] == "measured at another revision"


def test_table_1_keeps_the_paper_s_order_and_fills_in_as_pairs_are_measured(table, tmp_path):
    place(table, tmp_path / "Polaris-4B-Preview.parquet")
    beside = tables.beside_table_1(read_manifest(TRACKED), [tmp_path])
    assert beside["tuned"].to_list()[1] == "DeepScaleR-1.5B-Preview" and len(beside) == 15
    own = beside.set_index("tuned").loc["Polaris-4B-Preview"]
    whole = measured_pairs.summary(read_parquet(table))["sparsity"]
    assert (own["paper"], own["follow-up"], own["ours"]) == ("0.793", "0.799", f"{whole:.3f}")
    assert (beside["ours"] != "not measured").sum() == 1
    lost = beside[beside["status"] == "no repository is known"]
    assert lost["tuned"].to_list() == ["the authors' own, unpublished", "UloRL-A3B"]


def test_the_day_stands_beside_the_table_or_is_that_of_a_file_made_here(table, tmp_path, monkeypatch):
    monkeypatch.setenv("THREEGATES_BUILD", str(tmp_path / "build"))
    kept = place(table, tmp_path / "kept" / "one.parquet")
    assert row([kept.parent])["date"] == ""
    kept.with_suffix(".json").write_text(json.dumps({"time": "2026-03-01T12:00:00Z"}))
    assert row([kept.parent])["date"] == "2026-03-01"
    made = place(table, tmp_path / "build" / "pairs" / "one.parquet")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", row([made.parent])["date"])


def test_a_page_s_digest_moves_with_a_table_and_with_the_manifest(table, project):
    before = measured_pairs.measured_digest()
    made = place(table, project / "build" / "pairs" / "one.parquet")
    first = measured_pairs.measured_digest()
    place(table, made, {"tuned": OTHER})
    second = measured_pairs.measured_digest()
    (project / "data_manifest.yaml").write_text("version: 1\ncheckpoints: []\n")
    assert len({before, first, second, measured_pairs.measured_digest()}) == 4


def test_a_project_without_a_manifest_has_no_pairs(project):
    empty = measured_pairs.measured_pairs(measured_pairs.paper_manifest())
    assert len(empty) == 0 and list(empty) == list(measured_pairs.COLUMNS)
    assert len(measured_pairs.measured_tensors([])) == 0
    assert len(tables.beside_table_1(measured_pairs.paper_manifest())) == 15


def test_a_name_that_is_no_entry_is_refused_with_those_that_are():
    with pytest.raises(ManifestError, match="one of: one"):
        measured_pairs.found_pairs(manifest(), names=["oxn"])
    assert [found.pair.name for found in measured_pairs.found_pairs(manifest(), names=["one"])] == ["one"]


def test_a_table_without_spectra_has_sparsity_alone(table):
    frame = read_parquet(table)
    bare = measured_pairs.summary(frame.assign(spectra="not asked for"))
    assert set(bare) == {"weights", "matrices", "sparsity", "sparsity_fp32", "sparsity_storage_norm"}
    none = measured_pairs.summary(frame.assign(status="only-in-base", spectra="not compared: only-in-base"))
    assert none == {"weights": 0, "matrices": 0}
    assert pd.Series(bare)["matrices"] == 0
