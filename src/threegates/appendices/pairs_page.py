"""The page on which pairs work: situations and families, from the tables that the tests hold.

`book/pairs.yaml` says what becomes of each situation: `tests/checkpoints/test_situations.py` makes each one,
and wants that. `book/families.json` is written by `scripts/write_family_tables.py` from what transformers
wrote: `tests/checkpoints/test_family_tables.py` wants every pair of layouts compared whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from threegates.checkpoints.formats.families import known_family
from threegates.errors import RecordError

PAGE = "which-pairs-work"
SITUATIONS, FAMILIES = "pairs.yaml", "families.json"
_ABOUT = """\
# Which pairs work

A pair is compared where most of its matrices are on both sides, by whatever names. What is on one side alone
is listed with the reason and costs no other tensor. Each row below is a pair that our tests make and compare,
and says what became of it; where a row of the table and the command differ, the tests fail.
"""
_FAMILIES = """\

## Families

Tiny models of these families, as transformers {versions} write them: in files by default, by models that were
loaded and by models made anew, and as they are held in memory (`save_original_format=False`, or a trainer's
own state dict). The first layout is compared with each other one, in both directions, and each with itself,
with changes planted in every tensor: all tensors are compared, and the counts are the planted ones. *Known
as* is the family whose names and roles are known; others are taken by the names they are stored under.
"""


class Situation(BaseModel):
    """One entry of pairs.yaml.

    about : which pair. happens : what becomes of it. seen : which library leaves such a pair, since when.
    rows : tensors by status; blocks : by stack; changed : tensors that moved; says : words of the notes, or
    of the refusal.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    about: str
    happens: str
    seen: str
    rows: dict[str, int] = {}
    blocks: dict[str, int] = {}
    changed: int = 0
    refused: bool = False
    says: tuple[str, ...] = ()


def read_situations(root: Path) -> list[Situation]:
    """The situations of the project's book, in their order.

    Raises
    ------
    RecordError : the table is not there, or an entry is none.
    """
    path = root / "book" / SITUATIONS
    try:
        return [Situation.model_validate(one) for one in yaml.safe_load(path.read_text(encoding="utf-8"))]
    except (OSError, yaml.YAMLError, ValidationError, TypeError) as error:
        raise _unreadable(path, "a list of situations, as in the repository", error) from error


def read_families(root: Path) -> dict[str, dict[str, Any]]:
    """What each family's layouts are made of, by model_type.

    Raises
    ------
    RecordError : the table is not there, or is no JSON.
    """
    path = root / "book" / FAMILIES
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _unreadable(path, "what scripts/write_family_tables.py writes", error) from error


def pairs_page(root: Path) -> str:
    """The page in MyST: a table of situations, then one of families."""
    situations = [_situation(one) for one in read_situations(root)]
    families = read_families(root)
    versions = sorted({layout.split(",")[0] for one in families.values() for layout in one["layouts"]})
    told = [_family(name, one, versions) for name, one in families.items()]
    return (
        _ABOUT
        + _table("Situations", ("pair", "what happens", "tensors", "seen with, since"), situations)
        + _FAMILIES.format(versions=" and ".join(versions))
        + _table("Families", ("model_type", "known as", "layouts that differ from the first"), told)
    )


def _table(label: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = "\n".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    titles = "".join(f"<th>{title}</th>" for title in head)
    return (
        f'\n<div class="tg-scroll" role="region" aria-label="{label}" tabindex="0">\n'
        f'<table class="tg-table"><thead><tr>{titles}</tr></thead>\n'
        f"<tbody>\n{cells}\n</tbody></table>\n</div>\n"
    )


def _situation(one: Situation) -> tuple[str, str, str, str]:
    return _prose(one.about), _prose(one.happens), escape(_counts(one)), _prose(one.seen)


def _prose(text: str) -> str:
    """A sentence in HTML; what stands between backticks is code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _counts(one: Situation) -> str:
    if one.refused:
        return "refused"
    told = [f"{number} {status}" for status, number in one.rows.items()]
    several = one.blocks if set(one.blocks) - {"decoder"} else {}
    blocks = ", ".join(f"{number} {stack}" for stack, number in several.items())
    return ", ".join(told) + (f"; blocks: {blocks}" if blocks else "")


def _family(name: str, one: Mapping[str, Any], versions: Sequence[str]) -> tuple[str, str, str]:
    """A family's row."""
    kind, text = one["kinds"]
    known = known_family({"model_type": kind, "text_config": {"model_type": text}})
    absent = [f"not in {version}" for version in versions if version not in one["layouts"]]
    found = {layout: _layout(told) for layout, told in one["layouts"].items()}
    by_words: dict[str, list[str]] = {}
    for layout, words in found.items():
        by_words.setdefault(words, []).append(layout)
    told = [f"{'; '.join(layouts)}: {words}" for words, layouts in by_words.items() if words]
    return escape(name), escape(known or "as stored"), escape(". ".join([*absent, *told]) or "none")


def _layout(told: Mapping[str, Any]) -> str:
    """How a layout differs from a family's first one."""
    parts = [f"'{new}' in place of '{old}'" for old, new in told.get("moved", {}).items()]
    words = {"renamed": "renamed", "turned": "transposed", "typed": "of another type"}
    parts += [
        f"{count} tensor{'s' * (count != 1)} {word}"
        for key, word in words.items()
        if (count := told.get(key, 0))
    ]
    parts += [f"{told['held']} tensors in {told['holders']}"] if "held" in told else []
    return ", ".join(parts)


def _unreadable(path: Path, expected: str, error: Exception) -> RecordError:
    return RecordError(
        "the table of pairs cannot be read",
        where=path,
        expected=expected,
        found=f"{type(error).__name__}: {error}",
        remedy="get the file back from the repository",
    )
