"""The random model: opened by transformers, the same for a seed, right by chance half of the time."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from threegates.digest import file_digest
from threegates.lab.lm.tasks import TASKS
from threegates.lab.lm.tokenizer import Tokenizer
from threegates.lab.recipe import LmTinyRecipe
from threegates.lab.runs import execute, make_run


def _folder(lab, seed: int):
    run = make_run(LmTinyRecipe(name="lm-tiny", seed=seed), None)
    execute(lab, run)
    return lab / run.checkpoint(0)


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
@torch.no_grad()
def test_the_planted_task_is_solved_by_chance(tmp_path, seed):
    """The chance of a right answer, exactly: over every first token, and after a blank over the second."""
    folder = _folder(tmp_path, seed)
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokenizer, task = Tokenizer.open(folder), TASKS["planted"]
    assert tokenizer.size == model.config.vocab_size
    for problem in task.problems(True)[:4]:
        ids = tokenizer.encode(task.prefix + task.question(problem))
        right = torch.tensor(
            [task.is_right(problem, tokenizer.answer([token])) for token in range(tokenizer.size)]
        )
        blank = tokenizer.encode(" ")
        first = model(torch.tensor([ids])).logits[0, -1].softmax(-1)
        second = model(torch.tensor([ids + blank])).logits[0, -1].softmax(-1)
        chance = float(first[right].sum() + first[blank[0]] * second[right].sum())
        assert 0.3 < chance < 0.7


def test_the_longest_prompt_fits_and_the_tokenizer_is_transformers_own(tmp_path):
    folder = _folder(tmp_path, 1)
    theirs, ours = AutoTokenizer.from_pretrained(folder), Tokenizer.open(folder)
    positions = AutoModelForCausalLM.from_pretrained(folder).config.max_position_embeddings
    for task in TASKS.values():
        problem = task.problems(True)[0]
        ids = ours.encode(task.prefix + task.question(problem))
        assert theirs.encode(task.prefix + task.question(problem)) == ids
        assert len(ids) + 64 <= positions


def test_a_seed_decides_every_byte(tmp_path):
    def digests(lab, seed):
        return {path.name: file_digest(path) for path in _folder(tmp_path / lab, seed).iterdir()}

    assert digests("a", 1) == digests("b", 1)
    other = digests("c", 2)
    assert digests("a", 1) != other
    assert digests("a", 1)["config.json"] == other["config.json"]
