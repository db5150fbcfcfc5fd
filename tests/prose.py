"""Finds numbers that were typed into prose where one would expect a measured quantity.

A result that is typed stays when its record changes. So pages, notebooks' text, displayed strings and
captions print results through values; what may stay is taken out first: code, mathematics, roles, links, and
the names of things that happen to hold digits.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat

#: Taken out of a text before it is searched, in this order.
_ALLOWED = [
    re.compile(pattern, re.DOTALL | re.MULTILINE | re.IGNORECASE)
    for pattern in (
        r"^(`{3,}|~{3,})(?!\{(figure|admonition|note|tip)).*?^\1\s*$",
        r"\$\$.*?\$\$",
        # A formula or a code span that holds a percentage excuses nothing.
        r"\$(?:(?!%)[^$\n])+\$",
        r"\{[\w:]+\}`[^`]*`",
        r"`(?:(?!%)[^`\n])*`",
        r"\]\([^)\s]*\)",
        r"https?://\S+",
        r"(figures?|figs?\.?|tables?|theorems?|corollary|corollaries|cor\.|lemmas?|definitions?|defs?\.|"
        r"appendix|sections?|versions?|python|§)\s*[A-Z]?\.?\d+(\.\d+)*[a-z]?"
        r"((\s*(,|and|to|or|–|, and)\s*)[A-Z]?\.?\d+(\.\d+)*[a-z]?)*",
        r"Apache-\d\.\d",
        r"\[0, 1\]",
        r"\b\d+(\.\d+)? (GB|GiB|MB|s|min)\b",
        r"\barxiv:?\s*\d{4}\.\d+(v\d)?",
        r"\b(19|20)\d\d\b",
        # Names: bf16, float32, pass@1, k3, math500, null 1a, W2, MiniLM-L6-v2.
        r"[A-Za-z@_][\w@+-]*\d[\w@+-]*",
        r"\b1[ab]\b",
        # The confidence of every interval is claims.yaml's, which a test holds.
        r"\b95 % (?=(t |confidence )?(intervals?|range))|\bintervals? at 95 %",
    )
]
_NUMBER = r"[−+-]?(?:\d[\d,]*\.\d+|\.\d+|\d[\d,]*)"
_DECIMAL = re.compile(
    rf"(?<![\w.])(?:[−+-]?(?:\d[\d,]*)?\.\d+|{_NUMBER}(?:\s|\\,|\\\\)*(?:%|percent\b|per cent\b))"
)
_WHOLE = re.compile(rf"(?<![\w.,]){_NUMBER}(?![\w.]*\w)")
_MEASURED = re.compile(
    r"\b(sparsit\w+|unchanged|correlat\w+|jaccard|overlaps?|lifts?|angles?|dispersion|drift\w*|energy|accuracy|"
    r"rewards?|gains?|excess|effects?|p-values?|times as|times more|times less|-?fold|standard errors?|"
    r"reproduced|contradicted|pass rates?|densit\w+)\b",
    re.IGNORECASE,
)


def typed_numbers(text: str) -> list[str]:
    """Sentences with a typed decimal or percentage, or with a whole number beside a measured quantity."""
    for allowed in _ALLOWED:
        text = allowed.sub(" · ", text)
    return [sentence for sentence in _sentences(text) if _is_typed(sentence)]


def _is_typed(sentence: str) -> bool:
    return bool(_DECIMAL.search(sentence) or (_MEASURED.search(sentence) and _WHOLE.search(sentence)))


def _sentences(text: str) -> list[str]:
    # A line of a list or of a table is a sentence of its own; a line break inside a paragraph is not.
    parts = re.split(r"\n\s*\n|\n(?=\s*(?:[-*|#:>]|\d+\.\s))|(?<=[.!?;:])\s+(?=\S)", text)
    return [re.sub(r"^\s*\d+\.\s", "", " ".join(part.split())) for part in parts if part.strip()]


def page_texts(path: Path) -> Iterator[str]:
    """Prose of a page, or of a notebook: its Markdown and every string that a cell shows."""
    if path.suffix != ".ipynb":
        yield path.read_text(encoding="utf-8")
        return
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            yield cell.source
        elif cell.cell_type == "code":
            yield from shown_strings(cell.source)


def shown_strings(source: str) -> Iterator[str]:
    """Strings that code shows: Markdown, alt texts and captions of figures, captions of tables."""
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        if name == "Markdown":
            yield from (_text(value) for value in call.args)
        elif name == "table":
            yield from (_text(value) for value in call.args[1:2])
        elif name == "publish":
            yield from (_text(key.value) for key in call.keywords if key.arg in ("alt", "caption"))
        elif name == "append":
            yield from (_text(value) for value in call.args)


def _text(node: ast.AST) -> str:
    """Text of a string as it is shown; what it computes is left out, whatever that is."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.FormattedValue):
        # Strings inside an expression are shown too, as in {'above' if gap > 0 else 'below'}.
        return " · "
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(value) for value in node.values)
    if isinstance(node, ast.BinOp):
        return _text(node.left) + _text(node.right)
    return " · "
