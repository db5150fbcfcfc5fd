"""Which pages the book has, and what each is made from."""

from __future__ import annotations

import pytest
import yaml

from tests.planted import pages
from threegates.book.assemble import LAB_CHAPTER
from threegates.errors import NotebookError
from threegates.pages import contents
from threegates.pages.contents import Page, book_pages, find_page, page_of
from threegates.pages.notebooks import read_notebook
from threegates.pages.parameters import checked, declared

CONTENTS = {"parts": [{"chapters": [{"file": "intro"}, {"file": "one"}]}, {"chapters": [{"file": "one-b"}]}]}


@pytest.fixture
def root(tmp_path):
    (tmp_path / "book").mkdir()
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "one.ipynb").write_text("{}")
    (tmp_path / "book" / "_toc.yml").write_text(yaml.safe_dump(CONTENTS))
    return tmp_path


def listed(root, text):
    (root / "book" / contents.FILE).write_text(text)
    return root


def test_the_books_pages_are_all_notebooks_in_the_order_of_the_contents():
    found = book_pages(pages.ROOT)
    own = [page for page in found if page.name == page.notebook]
    assert sorted(page.name for page in own) == [path.stem for path in pages.NOTEBOOKS]
    assert found[0].name == LAB_CHAPTER and len({page.name for page in found}) == len(found)


def test_a_notebook_that_is_shown_twice_stands_right_below_itself():
    found = book_pages(pages.ROOT)
    more = [number for number, page in enumerate(found) if page.name != page.notebook]
    assert more
    for number in more:
        assert found[number - 1].notebook == found[number].notebook
        known = declared(read_notebook(pages.ROOT / "notebooks" / f"{found[number].notebook}.ipynb"), "n")
        assert checked(known, found[number].parameters, "n")


def test_a_listed_page_has_the_notebook_and_parameters_that_it_names(root):
    listed(root, "one-b: {notebook: one, parameters: {subject: b}}")
    assert book_pages(root) == [Page("one", "one"), Page("one-b", "one", {"subject": "b"})]
    assert find_page(root, "one-b") == Page("one-b", "one", {"subject": "b"})
    assert find_page(root, "one") is None
    assert page_of(root, "one", {"subject": "b"}) == find_page(root, "one-b")
    assert page_of(root, "one", {}) == Page("one", "one")
    assert page_of(root, "one", {"subject": "c"}) is None


def test_without_a_list_every_notebook_is_its_own_page(root):
    assert book_pages(root) == [Page("one", "one")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("two: {notebook: one, parameters: {}}", "not in the table of contents"),
        ("one-b: {notebook: none, parameters: {}}", "has no notebook"),
        ("one-b: one", "cannot be read"),
        ("one-b: {notebook: one, parameter: {}}", "cannot be read"),
    ],
)
def test_a_page_that_cannot_be_made_is_refused_by_name(root, text, message):
    with pytest.raises(NotebookError, match=message) as failure:
        book_pages(listed(root, text))
    assert text.split(":")[0] in str(failure.value)
