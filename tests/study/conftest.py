"""A project folder of its own for every test that needs one: claims, notebooks, build."""

from __future__ import annotations

import pytest

from tests.study import planted


@pytest.fixture
def project(tmp_path, monkeypatch):
    for name, value in planted.make_project(tmp_path / "project").items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("THREEGATES_SOURCES", raising=False)
    return tmp_path / "project"
