"""Adapters of a stand-in Hub: by name, in a sub-folder, as entries of a manifest; and series of folders."""

from __future__ import annotations

import shutil

import pandas as pd
import pytest
import yaml

from tests.checkpoints.adapters import by_peft
from tests.hub.loopback import Fault, LoopbackHub
from threegates.checkpoints.adapters.config import CONFIG, WEIGHTS
from threegates.checkpoints.adapters.notes import adapter_of
from threegates.checkpoints.manifests.locking import lock
from threegates.checkpoints.manifests.manifest import read_manifest
from threegates.errors import CheckpointError
from threegates.jobs.pair_files import measure_to_files
from threegates.jobs.settings import RANGED, READS
from threegates.jobs.sources import named_pairs, own_pair, own_pairs
from threegates.preflight import preflight_of

BASE, ADAPTER = "org/base", "org/adapter"


@pytest.fixture
def saved(tmp_path):
    """A base and an adapter, with the folders that `hub` serves."""
    found = by_peft.saved(
        tmp_path / "made", by_peft.model("llama"), trained=0.01, r=2, target_modules=["q_proj"]
    )
    by_peft.edited(found.adapter, lambda config: config.update({"base_model_name_or_path": BASE}))
    return found


@pytest.fixture
def hub(saved, project, tmp_path, monkeypatch):
    """The adapter is a repository of its own, and lies in a sub-folder of another."""
    for name in ("READS", "DEVICE", "MEMORY", "ACCEPT_LICENCE", "PINNED", "ADAPTER_START"):
        monkeypatch.setenv(f"THREEGATES_{name}", "")
    monkeypatch.setenv("THREEGATES_SOURCES", "{}")
    monkeypatch.setenv("THREEGATES_RANGES", str(tmp_path / "ranges"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    shutil.copytree(saved.adapter, tmp_path / "steps" / "step_5")
    monkeypatch.chdir(project)
    repos = {BASE: saved.base, ADAPTER: saved.adapter, "org/steps": tmp_path / "steps"}
    with LoopbackHub(repos) as hub:
        hub.stand_in(monkeypatch)
        yield hub


def table(pair, folder) -> pd.DataFrame:
    """What is measured of a pair."""
    measure_to_files(pair, folder / "t.parquet", masks=None, axis=None, seed=0)
    return pd.read_parquet(folder / "t.parquet").drop(columns="pair")


@pytest.mark.parametrize("way", ["", RANGED])
@pytest.mark.parametrize("name", [ADAPTER, f"{ADAPTER}@main", "org/steps:step_5"])
def test_an_adapter_of_the_hub_is_that_of_its_folder(hub, saved, tmp_path, monkeypatch, name, way):
    monkeypatch.setenv(READS, way)
    pair = own_pair(BASE, name)
    view = adapter_of(pair.tuned.checkpoint)
    repo = name.partition("@")[0].partition(":")[0]
    assert view is not None and view.revision == hub.commit(repo)
    assert view.changes.folder.is_relative_to(tmp_path / "cache")
    assert (tmp_path / "cache" / "models--org--base").exists() is (way != RANGED)
    local = own_pair(str(saved.base), str(saved.adapter))
    pd.testing.assert_frame_equal(table(pair, tmp_path), table(local, tmp_path))


def test_the_base_is_the_one_that_the_adapter_names(hub):
    pair = own_pair(None, ADAPTER)
    assert pair.base.label == "org--base" and pair.name == "org--adapter"


def test_preflight_fetches_the_adapter_and_of_the_base_headers_alone(hub):
    found = preflight_of((None, BASE, ADAPTER), (None, None), diagnostics=["measure"], workers=1, timed=False)
    size = sum(info.stored_bytes for info in own_pair(BASE, ADAPTER).base.checkpoint.infos.values())
    assert found.possible and found.findings.fetch_ranges == size
    assert "the tuned side is an adapter (LoRA)" in " ".join(found.text().split())


def test_a_file_that_is_not_the_one_that_is_listed_is_refused(hub):
    hub.faults.append(Fault("flip-bit", WEIGHTS, at=100))
    with pytest.raises(CheckpointError):
        own_pair(BASE, ADAPTER)


def test_what_is_neither_a_model_nor_an_adapter_is_refused_as_before(hub, tmp_path):
    (hub.repos[ADAPTER] / CONFIG).unlink()
    with pytest.raises(CheckpointError, match="no safetensors weights of a whole model"):
        own_pair(BASE, ADAPTER)


def manifest(folder):
    """A manifest with a base and an adapter of the Hub."""
    entries = [
        {"name": "base", "source": {"hub": BASE}, "method": "pretrain", "licence": "mit"},
        {"name": "tuned", "source": {"hub": ADAPTER}, "base": "base", "method": "rl", "licence": "mit"},
    ]
    path = folder / "data_manifest.yaml"
    path.write_text(yaml.safe_dump({"version": 1, "profile": "paper", "checkpoints": entries}))
    return path


def test_an_entry_is_locked_to_the_adapters_files_and_measured(hub, saved, project, tmp_path):
    path = manifest(project)
    assert lock(path, None).ok
    found = read_manifest(path)
    assert {CONFIG, WEIGHTS} <= set(found.entry("tuned").files)
    (pair,) = named_pairs(["tuned"], found)
    assert pair.name == "tuned" and pair.tuned.entry == found.entry("tuned")
    local = own_pair(str(saved.base), str(saved.adapter))
    pd.testing.assert_frame_equal(table(pair, tmp_path), table(local, tmp_path))


def test_a_series_of_folders_may_hold_adapters(saved, project, tmp_path, monkeypatch):
    monkeypatch.chdir(project)
    for step in (10, 20, 100):
        shutil.copytree(saved.adapter, tmp_path / "RUN" / f"checkpoint-{step}")
    pairs = own_pairs(str(saved.base), str(tmp_path / "RUN" / "checkpoint-*"))
    assert [pair.tuned.step for pair in pairs] == [10, 20, 100]
    assert [pair.final for pair in pairs] == [False, False, True]
    assert all(adapter_of(pair.tuned.checkpoint) for pair in pairs)
    assert len({pair.name for pair in pairs}) == 3
