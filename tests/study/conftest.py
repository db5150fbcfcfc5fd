"""A project folder of its own for every test that needs one: claims, notebooks, build."""

from __future__ import annotations

import pytest

from tests.study import planted


@pytest.fixture
def project(tmp_path, monkeypatch):
    for name, value in planted.make_project(tmp_path / "project").items():
        monkeypatch.setenv(name, value)
    # Set, not deleted: running a notebook sets it too, and only what was set here is put back afterwards.
    monkeypatch.setenv("THREEGATES_SOURCES", "{}")
    return tmp_path / "project"
