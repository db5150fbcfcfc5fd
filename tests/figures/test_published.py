"""A published figure: a picture twice, its data, and what a page gets of it."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from tests.planted import frames
from threegates import atomic
from threegates.chapters.miniature_lab import plots as miniature_lab_plots
from threegates.errors import NotebookError
from threegates.figures import published, style
from threegates.figures.published import publish

WORDS = {"alt": "Two dots.", "caption": "Dots, and *what* they mean."}


DATA = pd.DataFrame({"x": [1.0, 1 / 3], "label": ["a", "b"]})


def drawing():
    return miniature_lab_plots.pass_rates(frames.pass_rates())


def files(folder):
    return {path.name: path.read_bytes() for path in (folder / "chapter").iterdir()}


def test_a_figure_is_a_picture_twice_and_its_data(tmp_path):
    publish(drawing(), "chapter/dots", data=DATA, folder=tmp_path, **WORDS)
    written = files(tmp_path)
    assert sorted(written) == ["dots.csv", "dots.png", "dots.svg"]
    assert written["dots.csv"] == b"x,label\n1,a\n0.333333333,b\n"
    assert written["dots.png"].startswith(b"\x89PNG")
    assert b"<svg" in written["dots.svg"]


@pytest.mark.parametrize(
    ("low", "high", "named"),
    [
        (1, 12, [1, 2, 5, 10]),
        # Ratios of lines of thousands of weights spread hundreds of times as much as independent ones.
        (1, 280, [1, 2, 5, 10, 20, 50, 100, 200]),
        (1, 4000, [1, 10, 100, 1000]),
        (0.52, 1.9, [0.8, 1.2, 1.6]),
        (0.984, 1.009, [0.984, 0.992, 1.0, 1.008]),
    ],
)
def test_a_logarithmic_axis_has_three_numbers_or_more_and_they_stand_apart(low, high, named):
    assert style.log_ticks(low, high) == pytest.approx(named)


def test_figures_are_closed(tmp_path):
    fig = drawing()
    publish(fig, "chapter/dots", data=DATA, folder=tmp_path, **WORDS)
    assert not plt.fignum_exists(fig.number)


@pytest.mark.parametrize("kind", ["svg", "png", "csv"])
def test_two_drawings_have_the_same_bytes(tmp_path, kind):
    for folder in ("one", "two"):
        publish(drawing(), "chapter/dots", data=DATA, folder=tmp_path / folder, **WORDS)
    assert files(tmp_path / "one")[f"dots.{kind}"] == files(tmp_path / "two")[f"dots.{kind}"]


def test_a_picture_holds_no_date_no_program_and_needs_no_font(tmp_path):
    publish(drawing(), "chapter/dots", data=DATA, folder=tmp_path, **WORDS)
    written = files(tmp_path)
    svg = written["dots.svg"].decode()
    assert "<dc:date>" not in svg
    assert "<text" not in svg
    assert b"Matplotlib" not in written["dots.png"]


def test_alt_text_is_a_required_argument(tmp_path):
    with pytest.raises(TypeError, match="alt"):
        publish(drawing(), "chapter/dots", caption="c", data=DATA, folder=tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alt": " "}, "a figure has no alt text"),
        ({"caption": ""}, "a figure has no caption"),
        ({"data": DATA.iloc[:0]}, "a figure has no data"),
        ({"name": "dots"}, "a figure's name is malformed"),
        ({"name": "chapter/../dots"}, "a figure's name is malformed"),
        ({"name": "Chapter/dots"}, "a figure's name is malformed"),
    ],
)
def test_a_figure_that_says_too_little_is_refused(tmp_path, change, message):
    with pytest.raises(NotebookError, match=message):
        publish(drawing(), **{"name": "chapter/dots", "data": DATA, "folder": tmp_path, **WORDS} | change)
    assert not list(tmp_path.iterdir())


def test_a_failed_drawing_leaves_the_old_picture(tmp_path, monkeypatch):
    publish(drawing(), "chapter/dots", data=DATA, folder=tmp_path, **WORDS)
    before = files(tmp_path)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(atomic.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        publish(drawing(), "chapter/dots", data=DATA.assign(x=2.0), folder=tmp_path, **WORDS)
    assert files(tmp_path) == before


def test_what_the_page_gets(tmp_path):
    shown = publish(
        drawing(), "chapter/dots", alt="Two\n  dots.", caption="Dots.", data=DATA, folder=tmp_path
    )
    bundle = shown._repr_mimebundle_()
    page = bundle["text/markdown"]
    assert page.startswith(
        "````{figure} figures/chapter/dots.svg\n:name: fig-chapter-dots\n:alt: Two dots.\n"
    )
    assert re.findall(r"<(figures/[^>]+)>", page) == [
        f"figures/chapter/dots.{e}" for e in ("csv", "svg", "png")
    ]
    assert bundle["text/plain"] == "Two dots."


class _Attributes(HTMLParser):
    def __init__(self):
        super().__init__()
        self.alt = None

    def handle_starttag(self, tag, attributes):
        if tag == "img":
            self.alt = dict(attributes)["alt"]


def test_alt_text_survives_quotes_and_brackets():
    alt = 'A "quoted" <b>text</b> & more'
    reader = _Attributes()
    reader.feed(published.Published("chapter/dots", alt, "c").html())
    assert reader.alt == alt


def test_two_pages_of_one_notebook_keep_their_figures_apart(tmp_path, monkeypatch):
    data = pd.DataFrame({"x": [1]})
    found = []
    for page in ("", "drift-encoder"):
        monkeypatch.setenv("THREEGATES_PAGE", page)
        fig, _ = plt.subplots()
        found.append(publish(fig, "drift/dots", alt="A dot.", caption="A dot.", data=data, folder=tmp_path))
    assert [one.name for one in found] == ["drift/dots", "drift-encoder/dots"]
    assert found[1].label == "fig-drift-encoder-dots"
    assert {path.parent.name for path in tmp_path.rglob("dots.svg")} == {"drift", "drift-encoder"}
