"""The tokenizer: ids that lead back to their text, one id that ends an answer, refusals in words."""

from __future__ import annotations

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers
from transformers import AutoTokenizer

from threegates.errors import CheckpointError
from threegates.lab.lm.tasks import TASKS
from threegates.lab.lm.tiny import CHARACTERS, END_OF_TEXT, character_tokenizer, tokenizer_files
from threegates.lab.lm.tokenizer import Tokenizer

TINY = Tokenizer.of(character_tokenizer())


@given(st.text(st.sampled_from(CHARACTERS)))
def test_ids_lead_back_to_their_text_a_character_each(text):
    ids = TINY.encode(text)
    assert len(ids) == len(text)
    assert TINY.decode(ids) == text


@given(st.text(st.sampled_from(CHARACTERS)))
def test_an_answer_ends_before_its_first_newline(text):
    assert TINY.answer(TINY.encode(text)) == text.split("\n")[0]


def test_the_newline_is_one_id_and_the_size_counts_every_id():
    assert TINY.encode("a\nb")[1] == TINY.newline
    assert TINY.size == len(CHARACTERS) + 2 == max(TINY.backend.get_vocab().values()) + 1


def test_a_special_token_stays_visible_in_an_answer():
    (end,) = TINY.encode(END_OF_TEXT)
    assert TINY.answer([*TINY.encode("one"), end, TINY.newline]) == f"one{END_OF_TEXT}"


def test_transformers_reads_the_written_files_alike(tmp_path):
    for name, content in tokenizer_files().items():
        (tmp_path / name).write_text(content)
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path), Tokenizer.open(tmp_path)
    for task in TASKS.values():
        assert theirs.encode(task.prefix) == ours.encode(task.prefix)
        assert theirs.decode(ours.encode(task.prefix)) == task.prefix == ours.decode(ours.encode(task.prefix))


def test_every_character_of_every_task_has_a_token():
    for task in TASKS.values():
        for problem in (*task.problems(False), *task.problems(True)):
            written = task.question(problem) + task.gold(problem) + task.other_style(problem)
            assert set(written) <= set(CHARACTERS)


def test_what_files_ask_of_padding_and_cutting_is_not_done():
    backend = character_tokenizer()
    backend.enable_padding(length=16)
    backend.enable_truncation(4)
    assert len(Tokenizer.of(backend).encode("abcdefgh")) == 8


def test_a_tokenizer_that_drops_line_ends_is_refused(tmp_path):
    backend = tokenizers.Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="not one token") as caught:
        Tokenizer.open(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "found: []" in str(caught.value)


@pytest.mark.parametrize("content", [None, "{}", "no json"])
def test_a_missing_or_damaged_file_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match="cannot be read") as caught:
        Tokenizer.open(tmp_path)
    assert str(tmp_path / "tokenizer.json") in str(caught.value)
    assert "save_pretrained" in str(caught.value)
