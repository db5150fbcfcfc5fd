"""Every situation of the page on pairs by every way: folders, downloads, ranges and preflight agree on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.checkpoints.situations import SITUATIONS
from tests.checkpoints.test_situations import TOLD
from tests.hub.loopback import LoopbackHub
from threegates.checkpoints.pairs import Status, align
from threegates.errors import CheckpointError, PairError
from threegates.jobs.settings import DOWNLOAD, HEADERS, RANGED
from threegates.jobs.sources import own_pair
from threegates.preflight import preflight_of

SIDES = ("org/base", "org/tuned")
#: What headers cannot tell, so that only measuring does.
BY_VALUES = Status.not_finite


@pytest.fixture
def served(request, tmp_path, project, monkeypatch):
    """A situation in folders, and the same on a stand-in Hub."""
    for name in ("READS", "DEVICE", "MEMORY", "ACCEPT_LICENCE", "PINNED", "ADAPTER_START"):
        monkeypatch.setenv(f"THREEGATES_{name}", "")
    monkeypatch.setenv("THREEGATES_SOURCES", "{}")
    monkeypatch.setenv("THREEGATES_RANGES", str(tmp_path / "ranges"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(project)
    pair = tmp_path / "pair"
    SITUATIONS[request.param](pair)
    with LoopbackHub({name: pair / name.partition("/")[2] for name in SIDES}) as hub:
        hub.stand_in(monkeypatch)
        yield request.param, pair


def statuses(base: str, tuned: str, way: str | None) -> dict[str, str] | None:
    """Every tensor's status by headers; None of a pair that is refused."""
    try:
        pair = own_pair(base, tuned, way)
        return {row.name: row.status for row in align(pair.base.checkpoint, pair.tuned.checkpoint)}
    except (CheckpointError, PairError):
        return None


def looked_at(base: str, tuned: str) -> dict[str, str] | None:
    """The same as preflight tells it."""
    try:
        found = preflight_of(
            (None, base, tuned), (None, None), diagnostics=["measure"], workers=1, timed=False
        )
    except (CheckpointError, PairError):
        return None
    return {row.name: row.status for row in found.findings.aligned} if found.possible else None


@pytest.mark.parametrize("served", SITUATIONS, indirect=True)
def test_folders_downloads_ranges_and_preflight_agree(served):
    name, pair = served
    folders = str(pair / "base"), str(pair / "tuned")
    found = statuses(*folders, None)
    assert (found is None) is TOLD[name].refused
    by_way = {way: statuses(*SIDES, way) for way in (DOWNLOAD, RANGED, HEADERS)}
    assert by_way == dict.fromkeys(by_way, found)
    assert looked_at(*folders) == looked_at(*SIDES) == found
    assert BY_VALUES not in (found or {}).values()


def test_every_situation_lies_in_two_folders(tmp_path):
    for name, make in SITUATIONS.items():
        make(tmp_path / name)
        assert {path.name for path in Path(tmp_path / name).iterdir()} == {"base", "tuned"}
