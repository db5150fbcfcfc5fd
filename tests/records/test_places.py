"""Places: those that the environment names, and those of a build beside it."""

from __future__ import annotations

from pathlib import Path

from threegates.records.places import Places, labelled_folders


def test_here_are_the_project_s_own_places(project, monkeypatch):
    monkeypatch.delenv("THREEGATES_BUILD")
    here = Places.here()
    assert here == Places(project / "build")
    assert here.lab == project / "build" / "lab" / "manifest.yaml"
    assert (here.records, here.notebooks) == (project / "build" / "records", project / "build" / "notebooks")


def test_variables_name_the_same_places_in_another_process(project, monkeypatch, tmp_path):
    places = Places(tmp_path / "other", tmp_path / "some.yaml", {"base": str(tmp_path / "base")})
    for name, value in places.variables().items():
        monkeypatch.setenv(name, value)
    assert Places.here() == places and labelled_folders() == {"base": str(tmp_path / "base")}


def test_a_manifest_s_path_does_not_depend_on_where_a_notebook_runs(project, monkeypatch, tmp_path):
    monkeypatch.setenv("THREEGATES_MANIFEST", "mine.yaml")
    monkeypatch.chdir(tmp_path)
    assert Places.here().manifest == tmp_path / "mine.yaml"


def test_folders_have_labels_outside_the_project_too(monkeypatch, tmp_path):
    monkeypatch.setenv("THREEGATES_ROOT", str(tmp_path))
    monkeypatch.delenv("THREEGATES_SOURCES", raising=False)
    assert labelled_folders() == {}
    monkeypatch.setenv("THREEGATES_SOURCES", '{"base": "/there"}')
    assert Path(labelled_folders()["base"]) == Path("/there")
