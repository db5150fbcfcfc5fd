"""Where a figure comes from: the facts beside it, as a folded card on its page and as text on a terminal."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from nbformat import NotebookNode
from nbformat.v4 import new_output

from threegates.digest import value_digest

#: More digests than this are told by their number and one digest over all.
LONGEST = 4
_DIGEST = re.compile(r"[0-9a-f]{40,64}")
#: Folder of the whole facts in the book.
PROVENANCE = "provenance"


def card(name: str, facts: Mapping[str, Any]) -> str:
    """The folded card of a figure, in HTML; the whole facts lie beside the figure as JSON."""
    lines = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in told(facts))
    link = f'<a href="{PROVENANCE}/{escape(name)}.json">all facts as JSON</a>'
    return (
        f'<details class="tg-card"><summary>Where this figure comes from</summary>\n<dl>{lines}</dl>\n'
        f"<p><small><code>threegates show {escape(name)}</code> prints this, "
        f"<code>threegates reproduce {escape(name)}</code> makes the figure anew; {link}.</small></p>\n"
        "</details>"
    )


def told(facts: Mapping[str, Any], full: bool = False) -> Iterator[tuple[str, str]]:
    """The facts line by line; long lists in short, unless all is asked for."""
    for key, value in facts.items():
        yield key, _in_words(value, full)


def text(name: str, facts: Mapping[str, Any], full: bool = False) -> str:
    """The facts as plain text."""
    lines = [name]
    for key, value in told(facts, full):
        lines.append(f"  {key:<12} {value}")
    return "\n".join(lines)


def with_cards(notebook: NotebookNode, facts: Mapping[str, Mapping[str, Any]]) -> NotebookNode:
    """The executed notebook with a card under every figure that it shows."""
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        outputs = []
        for output in cell.outputs:
            outputs.append(output)
            name = _shown_figure(output)
            if name in facts:
                outputs.append(new_output("display_data", data={"text/html": card(name, facts[name])}))
        cell.outputs = outputs
    return notebook


def _shown_figure(output: NotebookNode) -> str:
    """Name of the figure that an output shows; empty for any other."""
    shown = "".join(output.get("data", {}).get("text/markdown", ""))
    first = shown.partition("\n")[0]
    return first.removeprefix("````{figure} figures/").removesuffix(".svg") if "{figure}" in first else ""


def _in_words(value: Any, full: bool) -> str:
    if isinstance(value, Mapping):
        if _is_long(list(value.values())) and not full:
            return f"{len(value)}, sha256 of all {value_digest(dict(value))[:12]}"
        return "; ".join(f"{key}: {_in_words(item, full)}" for key, item in value.items()) or "none"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_in_words(item, full) for item in value) or "none"
    if value is None:
        return "unknown"
    if isinstance(value, str) and _DIGEST.fullmatch(value) and not full:
        return value[:12]
    return json.dumps(value) if isinstance(value, bool) else str(value)


def _is_long(values: Sequence[Any]) -> bool:
    """Whether these are many digests; versions and parameters are told one by one."""
    return len(values) > LONGEST and any(_DIGEST.search(str(value)) for value in values)
