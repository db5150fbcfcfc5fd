"""A Sphinx extension that leaves each page one copy of each script, and none that waits for a server.

Jupyter Book and its theme both register MathJax, the toggle buttons and Thebe; loading a script twice
throws errors in the reader's browser. Thebe would fetch a kernel from the network: these pages ask for
nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx


def clean_scripts(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object) -> None:
    """Drop repeated scripts of a page, and Thebe's."""
    kept: dict[tuple[str, str], object] = {}
    for script in context.get("script_files", []):
        name = str(getattr(script, "filename", script) or "")
        body = str(getattr(script, "attributes", {}).get("body") or "")
        if "thebe" not in (name + body).lower():
            kept.setdefault((name, body), script)
    context["script_files"] = list(kept.values())


def setup(app: Sphinx) -> dict[str, object]:
    """Register with Sphinx, after everything that adds scripts."""
    app.connect("html-page-context", clean_scripts, priority=999)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
