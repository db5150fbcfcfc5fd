"""A project folder of its own for every test that needs one: claims, notebooks, build."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def project(tmp_path, monkeypatch):
    root = tmp_path / "project"
    (root / "notebooks").mkdir(parents=True)
    shutil.copy(ROOT / "claims.yaml", root / "claims.yaml")
    monkeypatch.setenv("THREEGATES_ROOT", str(root))
    monkeypatch.setenv("THREEGATES_BUILD", str(root / "build"))
    monkeypatch.delenv("THREEGATES_SOURCES", raising=False)
    return root
