"""Cells of a notebook run in this process, as a kernel would run them but without waiting for its start."""

from __future__ import annotations

import ast
import contextlib
from pathlib import Path
from typing import Any

import IPython.display
import pytest
from IPython.core.formatters import DisplayFormatter
from nbformat import NotebookNode
from nbformat.v4 import new_output
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from threegates.figures import published, style
from threegates.pages import runner
from threegates.pages.opened import Opened


def without_a_kernel(patch: pytest.MonkeyPatch) -> None:
    """All that `runner` does to a notebook stays as it is; only its cells run here.

    Figures are drawn once, as SVG: the PNG files are empty.
    """
    drawn = published._render
    patch.setattr(published, "_render", lambda *given: b"" if "png" in given else drawn(*given))
    patch.setattr(runner, "_papermill", _executed)


def _executed(opened: Opened, work: Path, source: Path | None = None) -> NotebookNode:
    """The notebook with its outputs. A failing cell raises its own error, with the trace into our code."""
    assert source is None
    notebook = load_notebook_node(str(opened.path))
    if opened.given:
        notebook = parameterize_notebook(
            notebook, dict(opened.given), kernel_name="python3", language="python"
        )
    names: dict[str, Any] = {}
    show = _Shown()
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(work):
        # What a kernel would find in its environment.
        for name, value in runner._kernel_environment(opened).items():
            if name.startswith("THREEGATES"):
                patch.setenv(name, value)
        # A kernel makes one page, so that colours of pairs are its own.
        patch.setattr(style, "_PAIRS", {})
        patch.setattr(IPython.display, "display", show)
        for number, cell in enumerate(notebook.cells):
            if cell.cell_type == "code":
                cell["outputs"] = show.outputs = []
                _run(cell.source, f"{opened.chapter}, cell {number}", names, show)
    return notebook


class _Shown:
    """Puts what is displayed among the outputs of the cell that runs."""

    def __init__(self) -> None:
        self.outputs: list[NotebookNode] = []
        self.formatter = DisplayFormatter()

    def __call__(self, *objects: object) -> None:
        for one in objects:
            data, metadata = self.formatter.format(one)
            self.outputs.append(new_output("display_data", data=data, metadata=metadata))


def _run(source: str, place: str, names: dict[str, Any], show: _Shown) -> None:
    """Run a cell; the value of an expression at its end is shown."""
    body = ast.parse(source).body
    last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), place, "exec"), names)
    if last is not None:
        value = eval(compile(ast.Expression(last.value), place, "eval"), names)
        if value is not None:
            show(value)
