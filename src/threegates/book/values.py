"""Numbers in prose: the role {val}`key` prints a value written from records; an unknown key is an error.

When the book is assembled, `write_values` puts every value beside the pages; Sphinx loads this module as an
extension and looks each key up. A key that does not exist is a warning, and warnings fail the build.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from docutils import nodes

from threegates.atomic import write_json
from threegates.estimates.verdict_frame import is_rule
from threegates.figures.numbers import interval, number
from threegates.jobs.subjects import LAB
from threegates.judging.verdicts import Judgement

if TYPE_CHECKING:
    from docutils.parsers.rst.states import Inliner
    from sphinx.application import Sphinx

FILE = "_values.json"


def verdict_values(verdicts: pd.DataFrame) -> dict[str, str]:
    """Values of each claim: ``<claim>.verdict``, and ``.value``, ``.interval``, ``.n`` of rule and controls.

    ``<claim>.undone`` is what undoes it, behind a colon: the control that names the verdict, with its number;
    of one that is reproduced, that it is not so after Holm's adjustment; else nothing. Controls are named by
    their estimate: ``<claim>.<estimate>.value``. Of a subject that is not the lab every key begins with its
    name: ``encoder.<claim>.verdict``.
    """
    values: dict[str, str] = {}
    for row in verdicts.to_dict("records"):
        claim = row["claim"] if row.get("about", LAB) == LAB else f"{row['about']}.{row['claim']}"
        if is_rule(row):
            values[f"{claim}.verdict"] = row["verdict"]
            values[f"{claim}.undone"] = _after_holm(row)
        elif row["names"]:
            told = f": {row['says']} is {number(row['value'])} {interval(row['low'], row['high'])}"
            values[f"{claim}.undone"] = told
        place = claim if is_rule(row) else f"{claim}.{row['estimate']}"
        values[f"{place}.value"] = number(row["value"])
        values[f"{place}.interval"] = interval(row["low"], row["high"])
        values[f"{place}.n"] = f"{row['n']} {row['unit']}"
    return values


def _after_holm(row: Mapping) -> str:
    """What Holm's adjustment for all rules of a build undoes, where it is known."""
    lost = row["verdict"] == Judgement.reproduced and row.get("holds_holm") is False
    return " (not after Holm's adjustment for all rules)" if lost else ""


def rate_values(passes: pd.DataFrame, gains: pd.DataFrame) -> dict[str, str]:
    """Values of the lab: the base's pass rates and each algorithm's gain, with intervals."""
    values: dict[str, str] = {}
    for row in passes[passes["label"] == "base"].to_dict("records"):
        values[f"base.{row['measure']}"] = f"{number(row['value'])} {interval(row['low'], row['high'])}"
        values["base.prompts"] = str(row["prompts"])
    for row in gains.to_dict("records"):
        values[f"gain.{row['method']}"] = f"{number(row['gain'])} {interval(row['low'], row['high'])}"
    return values


def write_values(path: Path, values: Mapping[str, str]) -> None:
    """Write the values beside the pages that use them."""
    write_json(path, dict(values))


def value_role(
    name: str,
    rawtext: str,
    text: str,
    lineno: int,
    inliner: Inliner,
    options: Mapping | None = None,
    content: list | None = None,
) -> tuple[list[nodes.Node], list[nodes.system_message]]:
    """Print the value of a key; an unknown one is an error that names the file and line."""
    environment = inliner.document.settings.env
    path = Path(environment.app.srcdir) / FILE
    environment.note_dependency(str(path))
    values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if text in values:
        return [nodes.inline(rawtext, values[text], classes=["tg-value"])], []
    message = inliner.reporter.error(f"no record has the value '{text}'", line=lineno)
    return [inliner.problematic(rawtext, rawtext, message)], [message]


def setup(app: Sphinx) -> dict[str, object]:
    """Register the role with Sphinx."""
    app.add_role("val", value_role)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
