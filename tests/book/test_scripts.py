"""Scripts of a page: each once, in their order, and none that waits for a server."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from sphinx.builders.html._assets import _JavaScript

from threegates.book.scripts import clean_scripts, setup


def _cleaned(*scripts: Any) -> list[Any]:
    context = {"script_files": list(scripts)}
    clean_scripts(None, "page", "page.html", context, None)
    return context["script_files"]


def _inline(body: str) -> _JavaScript:
    return _JavaScript(None, body=body)


def test_each_file_stays_once_at_its_first_place():
    first, second = _JavaScript("_static/togglebutton.js"), _JavaScript("mathjax/tex-svg.js", defer="defer")
    again = _JavaScript("_static/togglebutton.js", priority=900)
    assert _cleaned(first, second, again, second) == [first, second]


def test_inline_scripts_are_told_apart_by_what_they_do():
    toggle, other = _inline("let toggleHintShow = 'Click';"), _inline("DOCUMENTATION_OPTIONS = {};")
    assert _cleaned(toggle, other, _inline("let toggleHintShow = 'Click';")) == [toggle, other]


def test_thebe_is_dropped_as_file_and_as_inline_script():
    kept = _JavaScript("_static/doctools.js")
    thebe = [
        _JavaScript("https://unpkg.com/thebe@0.8.2/lib/index.js"),
        _JavaScript("_static/sphinx-thebe.js"),
    ]
    assert _cleaned(*thebe, kept, _inline("const THEBE_JS_URL = 'there'"), _inline("initThebe()")) == [kept]


def test_plain_names_are_understood_and_a_page_without_scripts_stays_one():
    assert _cleaned("a.js", "b.js", "a.js", "thebe.js") == ["a.js", "b.js"]
    assert _cleaned() == []
    context: dict[str, Any] = {}
    clean_scripts(None, "page", "page.html", context, None)
    assert context == {"script_files": []}


def test_it_works_after_every_extension_that_adds_scripts():
    calls: list[tuple] = []
    app = SimpleNamespace(connect=lambda event, listener, priority: calls.append((event, listener, priority)))
    assert setup(app) == {"parallel_read_safe": True, "parallel_write_safe": True}
    assert calls == [("html-page-context", clean_scripts, 999)]
