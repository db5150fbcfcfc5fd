"""Notebooks by name."""

from __future__ import annotations

import pytest

from tests.pages.test_runner import write_notebook
from threegates.errors import NotebookError
from threegates.pages.notebooks import notebook_path


def test_an_unknown_notebook_is_refused_with_those_there_are(project):
    write_notebook(project, "demo")
    assert notebook_path("demo").name == "demo.ipynb"
    with pytest.raises(NotebookError, match=r"found: demos|expected: demo"):
        notebook_path("demos")
