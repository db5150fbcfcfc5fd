"""A chapter as one asks for it on the command line: its notebook, its pairs, where its page goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from threegates.digest import value_digest
from threegates.errors import NotebookError
from threegates.study.parameters import declared, parsed
from threegates.study.provenance import build_folder
from threegates.study.runner import NotebookRun, notebook_path, read_notebook, run_notebook
from threegates.study.sources import folder_labels


def run_chapter(
    notebook: str,
    texts: Mapping[str, str],
    pairs: Sequence[str] = (),
    base: str | None = None,
    tuned: str | None = None,
    workers: int = 1,
) -> NotebookRun:
    """Run a notebook with parameters as they were typed.

    The study's own page lands in build/notebooks; with any parameter it lands in a folder of its own below
    build/runs, so that the book keeps its page.

    Raises
    ------
    NotebookError : there is no such notebook, or it has no such parameters.
    """
    path = notebook_path(notebook)
    known = declared(read_notebook(path), path.stem)
    if pairs and (base or tuned):
        raise NotebookError("give either --pair, or --base and --tuned", found="both")
    if bool(base) != bool(tuned):
        raise NotebookError("a pair of your own needs both sides", found=f"--base {base}, --tuned {tuned}")
    sources = folder_labels([name for name in (base, tuned) if name])
    labels = {place: label for label, place in sources.items()}
    values = parsed(known, texts, path.stem)
    values |= {"pairs": list(pairs)} if pairs else {}
    own = {side: _labelled(name, labels) for side, name in (("base", base), ("tuned", tuned)) if name}
    output = _output(path.stem, {**values, **own})
    return run_notebook(path, {**values, **own}, output=output, sources=sources, workers=workers)


def _labelled(name: str, labels: Mapping[str, str]) -> str:
    return labels.get(str(Path(name).resolve()), name) if Path(name).is_dir() else name


def _output(chapter: str, values: Mapping[str, object]) -> Path | None:
    return build_folder() / "runs" / f"{chapter}-{value_digest(dict(values))[:8]}" if values else None
