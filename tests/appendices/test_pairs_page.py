"""The page on which pairs work: every entry of both tables is on it, and a broken table is refused by name.

That the tables say what happens is held by `test_situations.py` and `test_family_tables.py` of checkpoints.
"""

from __future__ import annotations

import json
import re
import shutil
from html import unescape

import pytest
import yaml

from threegates.appendices.pairs_page import (
    FAMILIES,
    SITUATIONS,
    pairs_page,
    read_families,
    read_situations,
)
from threegates.errors import RecordError
from threegates.records.provenance import project_root

ROOT = project_root()


@pytest.fixture
def root(tmp_path):
    (tmp_path / "book").mkdir()
    for name in (SITUATIONS, FAMILIES):
        shutil.copy(ROOT / "book" / name, tmp_path / "book" / name)
    return tmp_path


def rows_of(page: str) -> list[list[str]]:
    """Cells of the page's rows as text, heads left out."""
    rows = re.findall(r"<tr>(<td>.*?)</tr>", page)
    return [
        [unescape(re.sub("<[^>]+>", "", cell)) for cell in re.findall("<td>(.*?)</td>", row)] for row in rows
    ]


def test_each_situation_and_each_family_is_a_row():
    situations, families = read_situations(ROOT), read_families(ROOT)
    rows = rows_of(pairs_page(ROOT))
    assert len(rows) == len(situations) + len(families)
    assert [row[0] for row in rows[: len(situations)]] == [one.about.replace("`", "") for one in situations]
    assert [row[0] for row in rows[len(situations) :]] == list(families)


def test_a_row_says_how_many_tensors_have_which_status_or_that_there_is_no_answer():
    told = dict(zip([one.name for one in read_situations(ROOT)], rows_of(pairs_page(ROOT)), strict=False))
    assert told["reward_model"][2] == "14 compared, 1 only-in-base, 1 only-in-tuned"
    assert told["projector_alone"][2] == "64 compared; blocks: 2 decoder, 2 vision"
    assert told["strangers"][2] == "refused"


def test_a_family_s_row_says_as_what_it_is_known_and_since_when_it_is_written_otherwise():
    rows = {row[0]: row[1:] for row in rows_of(pairs_page(ROOT))}
    assert rows["llama"] == ["Llama", "none"]
    assert rows["gpt2"] == ["as stored", "none"]
    assert rows["mixtral"] == ["Mixtral", "5.23.0, in memory: 2 tensors renamed, 18 tensors in 4"]
    newer = "5.23.0; 5.23.0, in memory; 5.23.0, made anew: 4 tensors transposed"
    assert rows["qwen3_vl_moe"][1] == newer
    assert rows["qwen3_5"] == ["Qwen3.5", "not in 4.57.6"]
    assert "'model.language_model.' in place of 'language_model.model.'" in rows["llava"][1]


def test_what_is_written_in_a_table_is_text_and_no_page_of_its_own(root):
    entry = {"name": "x", "about": "<b>`a<b`", "happens": "h", "seen": "s", "rows": {"compared": 1}}
    (root / "book" / SITUATIONS).write_text(yaml.safe_dump([entry]))
    assert "<td>&lt;b&gt;<code>a&lt;b</code></td>" in pairs_page(root)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (SITUATIONS, None),
        (SITUATIONS, "a: ["),
        (SITUATIONS, "7"),
        (SITUATIONS, "[{name: x}]"),
        (SITUATIONS, "[{name: x, about: a, happens: h, seen: s, row: {}}]"),
        (FAMILIES, None),
        (FAMILIES, "{"),
    ],
)
def test_a_table_that_is_missing_or_broken_is_named(root, name, content):
    path = root / "book" / name
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(RecordError, match="the table of pairs cannot be read") as caught:
        pairs_page(root)
    assert str(path) in str(caught.value) and "get the file back" in str(caught.value)


def test_the_families_table_is_what_the_script_writes():
    text = (ROOT / "book" / FAMILIES).read_text(encoding="utf-8")
    assert json.dumps(json.loads(text), indent=1, ensure_ascii=False) + "\n" == text
