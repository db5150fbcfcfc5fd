"""Cards under figures: folded, whole, and without a word of the machine that made them."""

from __future__ import annotations

import nbformat

from threegates.figures.published import Published
from threegates.pages.figure_cards import card, text, with_cards

FACTS = {
    "notebook": "notebooks/demo.ipynb",
    "parameters": {"seed": 5, "label": "<x>"},
    "seeds": {"of the nulls": 0, "of training": [101, 102]},
    "models": {f"run-{i}": f"{i:064d}" for i in range(12)},
    "versions": {f"package-{i}": f"{i}.0" for i in range(12)},
    "code": "ab" * 32,
    "commit": None,
    "dirty": False,
}


def test_a_card_is_folded_tells_short_lists_and_counts_long_ones():
    html = card("demo/one", FACTS)
    assert html.startswith("<details") and "<summary>" in html and "open" not in html.split(">")[0]
    assert "seed: 5; label: &lt;x&gt;" in html and "101, 102" in html
    assert "12, sha256 of all" in html and "run-7" not in html
    assert "package-11: 11.0" in html and "<dd>abababababab</dd>" in html
    assert "<dd>unknown</dd>" in html and "<dd>false</dd>" in html
    assert 'href="provenance/demo/one.json"' in html


def test_in_full_every_model_is_named():
    assert "run-7: " in text("demo/one", FACTS, full=True) and "run-7" not in text("demo/one", FACTS)


def test_a_card_stands_under_its_own_figure_alone():
    shown = [Published(f"demo/{name}", "alt", "caption")._repr_mimebundle_() for name in ("one", "two")]
    cells = [
        nbformat.v4.new_code_cell("x", outputs=[nbformat.v4.new_output("display_data", data=d)])
        for d in shown
    ]
    cells.insert(0, nbformat.v4.new_markdown_cell("# T"))
    made = with_cards(nbformat.v4.new_notebook(cells=cells), {"demo/one": FACTS})
    outputs = [cell.outputs for cell in made.cells[1:]]
    assert [len(found) for found in outputs] == [2, 1]
    assert outputs[0][1]["data"]["text/html"] == card("demo/one", FACTS)
    nbformat.validate(made)
