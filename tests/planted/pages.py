"""A whole book without training: our prose and notebooks, synthetic figures, verdicts not yet run."""

from __future__ import annotations

import ast
import json
import re
import shutil
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd

from tests.planted import frames
from threegates.appendices.benchmark_page import benchmark_file, benchmark_page
from threegates.appendices.larger_page import PAGE as LARGER
from threegates.appendices.larger_page import larger_page
from threegates.appendices.pairs_page import PAGE as PAIRS
from threegates.appendices.pairs_page import pairs_page
from threegates.appendices.verdicts import verdict_page
from threegates.book import assemble as build
from threegates.book.values import FILE, write_values
from threegates.chapters.miniature_lab import plots as miniature_lab_plots
from threegates.figures.published import publish
from threegates.figures.tables import table
from threegates.jobs.subjects import LAB
from threegates.judging.cards import VerdictCards
from threegates.judging.claims import not_run, read_claims, verdict_table
from threegates.pages.contents import Page, book_pages
from threegates.records.provenance import project_root

ROOT = project_root()
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def calls(source: str, function: str) -> list[ast.Call]:
    """Calls of a function in a cell."""
    tree = ast.walk(ast.parse(source))
    return [n for n in tree if isinstance(n, ast.Call) and getattr(n.func, "id", None) == function]


def keyword(call: ast.Call, name: str) -> str:
    """Text of a keyword argument; what an f-string computes is left out."""
    value = next(k.value for k in call.keywords if k.arg == name)
    return "".join(str(n.value) for n in ast.walk(value) if isinstance(n, ast.Constant))


def assemble(source: Path) -> Path:
    """Write the sources of such a book into a folder."""
    shutil.copytree(ROOT / "book", source)
    verdicts = planted_verdicts()
    for page in book_pages(ROOT):
        executed = _executed(page, source, verdicts[verdicts["page"] == page.name])
        nbformat.write(executed, source / f"{page.name}.ipynb")
    (source / "verdicts.md").write_text(verdict_page(verdicts), encoding="utf-8")
    speed = benchmark_page(benchmark_file(source, ROOT), source / "figures")
    (source / "benchmarks.md").write_text(speed, encoding="utf-8")
    larger = larger_page(source, source, verdicts)
    (source / f"{LARGER}.md").write_text(larger, encoding="utf-8")
    (source / f"{PAIRS}.md").write_text(pairs_page(ROOT), encoding="utf-8")
    write_values(source / FILE, dict.fromkeys(quoted_keys(), "0.123 [0.1, 0.2]"))
    mathjax = source / "_static" / "mathjax"
    mathjax.mkdir(parents=True)
    shutil.copyfile(build._mathjax_file(), mathjax / "tex-svg.js")
    return source


def quoted_keys() -> set[str]:
    """Keys of all values that pages quote."""
    texts = [page.read_text(encoding="utf-8") for page in [*(ROOT / "book").glob("*.md"), *NOTEBOOKS]]
    return {key for text in texts for key in re.findall(r"\{val\}`([^`]+)`", text)}


def planted_verdicts() -> pd.DataFrame:
    """A verdict on every claim and page: that it was not run."""
    claims = read_claims(ROOT / "claims.yaml")
    tables = []
    for page in book_pages(ROOT):
        subject = str(page.parameters.get("subject", LAB))
        own = verdict_table(
            not_run(claim, "nothing was trained") for claim in claims.of(page.notebook, subject)
        )
        tables.append(own.assign(about=subject, page=page.name))
    return pd.concat([table for table in tables if len(table)], ignore_index=True)


def _executed(page: Page, source: Path, verdicts: pd.DataFrame) -> Any:
    notebook = nbformat.read(ROOT / "notebooks" / f"{page.notebook}.ipynb", as_version=4)
    for number, cell in enumerate((c for c in notebook.cells if c.cell_type == "code"), 1):
        cell.execution_count = number
        shown = [_figure(call, source, page) for call in calls(cell.source, "publish")]
        shown += [table(frames.nulls(), "A wide table") for _ in calls(cell.source, "table")]
        shown += [VerdictCards(verdicts) for _ in calls(cell.source, "VerdictCards")]
        bundles = [json.loads(json.dumps(s._repr_mimebundle_())) for s in shown]
        bundles += [
            {"text/markdown": "**What is seen.** 1.23", "text/plain": ""}
            for _ in calls(cell.source, "Markdown")
        ]
        cell.outputs = [nbformat.v4.new_output("display_data", data=bundle) for bundle in bundles]
    return notebook


def _figure(call: ast.Call, source: Path, page: Page) -> Any:
    name = call.args[1]
    assert isinstance(name, ast.Constant)
    data = frames.pass_rates()
    texts = {k: keyword(call, k) for k in ("alt", "caption")}
    named = f"{page.name}/{str(name.value).partition('/')[2]}"
    return publish(miniature_lab_plots.pass_rates(data), named, data=data, folder=source / "figures", **texts)
