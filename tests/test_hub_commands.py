"""From two names on a Hub to a table: all commands in order, by the installed client, on a loopback Hub."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from huggingface_hub import constants

from tests.hub.loopback import Fault, LoopbackHub
from tests.planted import planted
from threegates import cli
from threegates.checkpoints.writer import write_checkpoint
from threegates.records.store import read_provenance

SOURCE = Path(__file__).resolve().parents[1] / "src"
BASE, TUNED = "org/base-1b", "org/tuned-1b"
TOKEN = "hf_marker0123456789"
MANIFEST = """\
# A manifest that a person wrote.
version: 1
profile: paper
checkpoints: []  # nothing yet
"""
CONFIG = {"model_type": "llama", "vocab_size": 20, "tie_word_embeddings": False}


@pytest.fixture
def sides(tmp_path) -> dict[str, Path]:
    """A sharded base in bf16 and a tuned side in fp32 with a resized vocabulary."""
    base = planted.base_tensors(width=64)
    tuned = planted.with_noise(base, 1e-3, 1)
    tuned["model.embed_tokens.weight"] = torch.zeros(14, 64)
    write_checkpoint(tmp_path / "hub" / "base", base, CONFIG, max_shard_bytes=40_000)
    write_checkpoint(tmp_path / "hub" / "tuned", tuned, CONFIG)
    assert len(list((tmp_path / "hub" / "base").glob("*.safetensors"))) > 2
    return {BASE: tmp_path / "hub" / "base", TUNED: tmp_path / "hub" / "tuned"}


@pytest.fixture
def hub(sides, tmp_path, monkeypatch):
    """A Hub, and a project whose commands speak to it with a token, each with caches of its own."""
    for name, value in planted.make_project(tmp_path / "project").items():
        monkeypatch.setenv(name, value)
    # Nothing that whoever runs the tests has set.
    for name in ("READS", "DEVICE", "MEMORY", "BACKEND", "SCHEDULER", "ACCEPT_LICENCE", "SOURCES"):
        monkeypatch.setenv(f"THREEGATES_{name}", "{}" if name == "SOURCES" else "")
    monkeypatch.setenv("THREEGATES_RANGES", str(tmp_path / "ranges"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "project" / "data_manifest.yaml").write_text(MANIFEST)
    monkeypatch.chdir(tmp_path / "project")
    with LoopbackHub(sides) as hub:
        hub.stand_in(monkeypatch)
        yield hub


@pytest.fixture
def command(monkeypatch, capsys):
    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["threegates", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        shown = capsys.readouterr()
        assert TOKEN not in shown.out + shown.err
        return int(stopped.value.code or 0), shown.out + shown.err

    return call


def added(command) -> None:
    pair = ("--base", BASE, "--tuned", TUNED, "--method", "rl", "--algorithm", "GRPO")
    status, out = command("add-pair", *pair)
    assert status == 0, out


def entries() -> dict[str, dict]:
    return {one["name"]: one for one in yaml.safe_load(Path("data_manifest.yaml").read_text())["checkpoints"]}


def measured(command, out: str, *options: object) -> pd.DataFrame:
    status, told = command("measure", "--pair", "tuned-1b", "--out", out, *options)
    assert status == 0, told
    return pd.read_parquet(out)


def test_a_pair_goes_from_the_hub_into_the_manifest_and_into_a_table(hub, command, tmp_path):
    added(command)
    status, out = command("preflight", "--pair", "tuned-1b", "--no-time")
    assert status == 0 and "can be measured" in out
    assert "the tuned's embedding has 14 rows, its config says 20" in " ".join(out.split())

    status, out = command("measure", "--pair", "tuned-1b")
    assert status == 1 and "threegates lock" in out
    assert not (tmp_path / "project" / "build" / "pairs").exists()

    status, out = command("lock")
    assert status == 0, out
    text = Path("data_manifest.yaml").read_text()
    assert "# A manifest that a person wrote." in text and "# nothing yet" in text
    locked = entries()
    assert locked["base-1b"]["source"]["revision"] == hub.commit(BASE)
    assert all(one["checked"] and len(one["files"]) >= 2 for one in locked.values())

    status, out = command("fetch", "base-1b", "tuned-1b")
    assert status == 0 and out.count("here and whole") == 2
    status, out = command("verify")
    assert status == 0 and out.count("whole") == 2
    table = measured(command, "whole.parquet", "--layers", "0", "--matrices", "q,up")
    assert len(table) == 2 and set(table["role"]) == {"q", "up"}
    assert read_provenance(Path("whole.parquet"))["inputs"]["layers"] == [0]


def test_ranged_and_downloaded_tables_are_equal_and_the_second_run_asks_nothing(
    hub, command, tmp_path, monkeypatch
):
    added(command)
    assert command("lock")[0] == 0
    whole = measured(command, "whole.parquet")
    assert {"resized", "compared"} == set(whole["status"])
    hub.requests.clear()
    monkeypatch.setenv("THREEGATES_READS", "ranged")
    ranged = measured(command, "ranged.parquet")
    assert hub.requests
    pd.testing.assert_frame_equal(whole, ranged, check_exact=True)
    assert Path("whole.parquet").read_bytes() == Path("ranged.parquet").read_bytes()

    hub.requests.clear()
    measured(command, "again.parquet", "--memory", "4GiB")
    assert hub.requests == []
    assert Path("again.parquet").read_bytes() == Path("ranged.parquet").read_bytes()
    for path in (*Path().glob("*.parquet"), Path("data_manifest.yaml")):
        content = path.read_bytes()
        assert TOKEN.encode() not in content and str(tmp_path).encode() not in content
        assert hub.url.encode() not in content


def measured_elsewhere(out: str, *options: str, **environment: str) -> pd.DataFrame:
    """By two workers beside another process, all of which find the Hub by their environment."""
    arguments = ["measure", "--pair", "tuned-1b", "--workers", "2", "--out", out, *options]
    done = subprocess.run(
        [sys.executable, "-m", "threegates.cli", *arguments],
        env=os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return pd.read_parquet(out)


def test_workers_beside_it_read_from_the_hub_and_then_without_network(hub, command, tmp_path):
    added(command)
    assert command("lock")[0] == 0
    narrow, caches = ("--ranged", "--matrices", "q,up"), {"HF_HUB_CACHE": str(tmp_path / "cache")}
    first = measured(command, "first.parquet", *narrow)
    for ranges in (tmp_path / "ranges", tmp_path / "others"):
        hub.requests.clear()
        kept = ranges.exists()
        where = {"HF_HUB_OFFLINE": "1"} if kept else {"HF_ENDPOINT": hub.url}
        found = measured_elsewhere(
            f"{ranges.name}.parquet", *narrow, THREEGATES_RANGES=str(ranges), **caches, **where
        )
        assert kept == (hub.requests == [])
        pd.testing.assert_frame_equal(first, found, check_exact=True)


def test_a_repository_that_changes_after_it_was_locked_is_not_measured(hub, sides, command):
    added(command)
    assert command("lock")[0] == 0
    before = hub.commit(TUNED)
    text = Path("data_manifest.yaml").read_text()
    listed = entries()["tuned-1b"]["files"]["model.safetensors"]
    Path("data_manifest.yaml").write_text(text.replace(listed, "0" * 64))
    for options in (("--ranged",), ()):
        status, out = command("measure", "--pair", "tuned-1b", "--out", "t.parquet", *options)
        assert status == 1 and "model.safetensors" in out, out
    assert not Path("t.parquet").exists() and not Path("t.parquet.parts").exists()
    assert before == hub.commit(TUNED)


def test_conditions_of_use_are_asked_for_by_name(hub, command):
    options = ("--licence", "CC-BY-NC-4.0", "--method", "rl")
    assert command("add-pair", "--base", BASE, "--tuned", TUNED, *options)[0] == 0
    assert command("lock")[0] == 0
    narrow = ("--ranged", "--layers", "0", "--matrices", "q", "--out", "t.parquet")
    status, out = command("measure", "--pair", "tuned-1b", *narrow)
    assert status == 1 and "--accept-licence CC-BY-NC-4.0" in out
    status, out = command("measure", "--pair", "tuned-1b", *narrow, "--accept-licence", "CC-BY-NC-4.0")
    assert status == 0, out


def test_all_that_may_not_be_read_is_told_at_once_and_before_the_hub_is_asked(hub, command):
    options = ("--licence", "CC-BY-NC-4.0", "--method", "rl")
    assert command("add-pair", "--base", BASE, "--tuned", TUNED, *options)[0] == 0
    hub.requests.clear()
    status, out = command("measure", "--pair", "tuned-1b", "--ranged", "--out", "t.parquet")
    assert status == 1 and "2 checkpoints may not be read as they are" in out and not hub.requests
    assert "threegates lock base-1b" in out and "--accept-licence CC-BY-NC-4.0" in out


def test_a_fault_leaves_a_clear_error_and_nothing_half_written(hub, sides, command, monkeypatch):
    monkeypatch.setattr("threegates.checkpoints.hub.transfer.ATTEMPTS", 1)
    added(command)
    assert command("lock")[0] == 0
    size = (sides[TUNED] / "model.safetensors").stat().st_size
    hub.faults.append(Fault("drop", "model.safetensors", at=size // 2))
    status, out = command("measure", "--pair", "tuned-1b", "--ranged", "--out", "t.parquet")
    assert status == 1 and "what to do" in out
    assert not Path("t.parquet").exists()
    hub.faults.clear()
    status, out = command("measure", "--pair", "tuned-1b", "--ranged", "--out", "t.parquet")
    assert status == 0, out
    assert not Path("t.parquet.parts").exists()
