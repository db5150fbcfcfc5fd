"""Tables of pages."""

from __future__ import annotations

import pandas as pd

from threegates.figures.tables import table


def test_a_table_formats_numbers_and_escapes_text():
    frame = pd.DataFrame({"a_b": [0.12345, None], "text": ["<b>", None]})
    html = table(frame, 'Of "x" & y', {"a_b": "{:.2f}"})._repr_mimebundle_()["text/html"]
    assert "<th>a b</th>" in html
    assert "<td>0.12</td>" in html
    assert html.count("<td>–</td>") == 2
    assert "&lt;b&gt;" in html and "<b>" not in html
    assert "<caption>Of &quot;x&quot; &amp; y</caption>" in html
    assert 'class="tg-scroll" role="region"' in html


def test_every_kind_of_missing_value_is_a_dash():
    frame = pd.DataFrame(
        {"seed": pd.array([1, None], dtype="Int64"), "lr": [0.1, float("nan")], "data": ["x", None]}
    )
    assert table(frame, "Missing", {"lr": "{:.0e}"}).text().iloc[1].tolist() == ["–", "–", "–"]
    assert table(frame, "Given", {"lr": "{:.0e}"}).text().iloc[0].tolist() == ["1", "1e-01", "x"]
