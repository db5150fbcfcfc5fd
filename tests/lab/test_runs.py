"""Runs as folders: resumed after a kill to the same bytes, never repeated, readable by transformers."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.lab.tiny import TINY
from threegates.checkpoints.tensors import Checkpoint
from threegates.digest import file_digest
from threegates.lab import language, training
from threegates.lab import runs as module
from threegates.lab.algorithms.table import algorithm
from threegates.lab.columns import LOG_COLUMNS
from threegates.lab.language import load_weights
from threegates.lab.model import forward
from threegates.lab.recipe import AnyRecipe, PretrainRecipe, RLRecipe, SFTRecipe
from threegates.lab.runs import Run, execute, is_finished, make_run
from threegates.lab.task import Problem, encode
from threegates.lab.trainer import Trainer

COMMON: dict[str, Any] = {"seed": 3, "evaluate_prompts": 8, "evaluate_every": 2, "warmup": 2}
TUNED: dict[str, Any] = COMMON | {
    "base": "base", "data": "arith-4", "steps": 4, "learning_rate": 1e-3, "minibatches": 2, "samples": 2,
}  # fmt: skip
BASE = PretrainRecipe(name="base", steps=4, batch=8, shape=TINY, final_prompts=8, final_samples=2, **COMMON)
RL = RLRecipe(
    name="rl", algorithm="dapo", prompts=4, checkpoint_steps=(1, 3), final_prompts=8, leash=True, **TUNED
)
SFT = SFTRecipe(name="sft", source="same-style", batch=8, **TUNED)


class Killed(BaseException):
    """Stands for a signal: no code of ours catches it."""


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several shards even of a tiny model, and a snapshot after every step."""
    monkeypatch.setattr(language, "SHARD_BYTES", 8000)
    monkeypatch.setattr(training, "SNAPSHOT_SECONDS", 0.0)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lab folder in which one run of every kind was trained without a break."""
    folder = tmp_path_factory.mktemp("lab")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(language, "SHARD_BYTES", 8000)
        for run in _runs():
            execute(folder, run)
    return folder


def _runs() -> list[Run]:
    base = make_run(BASE, None)
    return [base, make_run(RL, base), make_run(SFT, base)]


def _digests(folder: Path, *, without: tuple[str, ...] = ("when.json",)) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): file_digest(path) for path in files if path.name not in without}


def _other_lab(lab: Path, folder: Path) -> Path:
    """A lab in which only the base is finished."""
    base = _runs()[0]
    (folder / "runs").mkdir(parents=True)
    (folder / "runs" / base.folder).symlink_to(lab / "runs" / base.folder)
    return folder


def _interrupt(
    monkeypatch: pytest.MonkeyPatch, lab: Path, run: Run, at: Callable[[pytest.MonkeyPatch], None]
) -> None:
    with pytest.raises(Killed), monkeypatch.context() as patch:
        at(patch)
        execute(lab, run)
    assert not is_finished(lab, run)


def _after_steps(count: int) -> Callable[[pytest.MonkeyPatch], None]:
    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        step = Trainer.logged_step

        def limited(self: Trainer, index: int) -> dict[str, float]:
            if index > count:
                raise Killed
            return step(self, index)

        monkeypatch.setattr(Trainer, "logged_step", limited)

    return patch


def _inside(name: str) -> Callable[[pytest.MonkeyPatch], None]:
    def killed(*_: object, **__: object) -> None:
        raise Killed

    places = {"final_evaluation": language, "write_checkpoint": training, "_write_parquet": training}
    place = places.get(name, module)
    return lambda monkeypatch: monkeypatch.setattr(place, name, killed)


def _count_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    done: list[int] = []
    step = Trainer.logged_step

    def counted(self: Trainer, index: int) -> dict[str, float]:
        done.append(index)
        return step(self, index)

    monkeypatch.setattr(Trainer, "logged_step", counted)
    return done


# ----------------------------------------------------------------------------------- what a run leaves


def test_a_finished_run_has_exactly_these_files(lab):
    base, rl, sft = _runs()
    for run, steps, evaluated in ((base, [4], True), (rl, [1, 3, 4], True), (sft, [4], False)):
        folder = lab / "runs" / run.folder
        names = ["run.json", "when.json", "log.parquet", *(f"step-{step:06d}" for step in steps)]
        names += ["evaluation.parquet"] if evaluated else []
        assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    assert list((lab / "partial").iterdir()) == []


def test_the_log_has_one_row_a_step_and_every_column(lab):
    for run in _runs():
        log = pd.read_parquet(lab / "runs" / run.folder / "log.parquet")
        assert tuple(log.columns) == LOG_COLUMNS
        assert log["step"].tolist() == [1, 2, 3, 4]
        assert log["pass_at_1"].notna().tolist() == [False, True, False, True]
        for column in ("updates", "grad_norm", "delta_norm", "loss"):
            assert log[column].notna().all(), column
        for column in ("reward", "entropy", "length"):
            assert log[column].notna()[[1, 3]].all(), column
    rl = pd.read_parquet(lab / "runs" / _runs()[1].folder / "log.parquet")
    assert rl.notna().drop(columns="pass_at_1").all().all()
    assert rl["updates"].tolist() == [2, 4, 6, 8]


def test_run_json_says_what_was_computed_and_holds_no_time(lab):
    base, rl, _ = _runs()
    facts = json.loads((lab / "runs" / rl.folder / "run.json").read_text())
    assert RLRecipe(**facts["recipe"]) == RL
    assert facts["base"] == base.checkpoint(4)
    assert facts["digest"] == rl.digest
    assert facts["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert str(lab) not in json.dumps(facts)
    when = json.loads((lab / "runs" / rl.folder / "when.json").read_text())
    assert set(when) == {"seconds", "finished"}


def test_checkpoints_load_in_transformers_with_the_same_logits_and_ids(lab):
    run = _runs()[1]
    folder = lab / run.checkpoint(3)
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 2
    shape, weights = load_weights(folder)
    assert shape == TINY
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    words = Problem((4, 7, 3), ("+", "*")).prompt()
    tokens = tokenizer(" ".join(words), return_tensors="pt")["input_ids"]
    assert tokens[0].tolist() == encode(words)
    with torch.no_grad():
        expected = model(tokens).logits
    logits = forward(weights, shape, tokens, torch.ones_like(tokens, dtype=torch.bool))
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 2


def test_formats_of_the_files_are_those_of_the_recipe(lab):
    base, rl, _ = _runs()
    for run, stored, name in ((base, "BF16", "bfloat16"), (rl, "F32", "float32")):
        checkpoint = Checkpoint.open(lab / run.checkpoint(4))
        assert {info.dtype for info in checkpoint.infos.values()} == {stored}
        assert checkpoint.config["dtype"] == name
        assert json.loads((lab / run.checkpoint(4) / "config.json").read_text())["model_type"] == "llama"


def test_tuned_runs_start_from_the_bases_last_checkpoint(lab):
    base, rl, _ = _runs()
    _, start = load_weights(lab / base.checkpoint(4))
    _, after = load_weights(lab / rl.checkpoint(1))
    moved = torch.cat([(after[name] - start[name]).flatten() for name in start]).norm()
    log = pd.read_parquet(lab / "runs" / rl.folder / "log.parquet")
    assert float(moved) == pytest.approx(log["delta_norm"][0], rel=1e-4)


def test_the_final_evaluation_is_that_of_the_saved_weights(lab):
    """The counts on record come out again from the checkpoint, rounded to bf16."""
    rl = _runs()[1]
    shape, weights = load_weights(lab / rl.checkpoint(4))
    rounded = {name: tensor.bfloat16().float() for name, tensor in weights.items()}
    frame = language.final_evaluation(rounded, shape, "arith-4", 8, 8, RL.seed)
    pd.testing.assert_frame_equal(frame, pd.read_parquet(lab / "runs" / rl.folder / "evaluation.parquet"))


# ------------------------------------------------------------------------------- resumed, not repeated


@pytest.mark.parametrize("index", [0, 1, 2], ids=["pretrain", "rl", "sft"])
@pytest.mark.parametrize("steps", [0, 2, 3])
def test_a_killed_run_resumes_to_the_same_bytes(monkeypatch, tmp_path, lab, index, steps):
    run = _runs()[index]
    other = _other_lab(lab, tmp_path) if index else tmp_path
    _interrupt(monkeypatch, other, run, _after_steps(steps))
    done = _count_steps(monkeypatch)
    execute(other, run)
    assert done == list(range(steps + 1, 5))
    assert _digests(other / "runs" / run.folder) == _digests(lab / "runs" / run.folder)


PLACES = ("final_evaluation", "write_checkpoint", "_write_parquet", "write_json", "_tidy")


@pytest.mark.parametrize("place", PLACES)
def test_a_kill_before_the_folder_is_finished_leaves_nothing_behind(monkeypatch, tmp_path, lab, place):
    run, other = _runs()[1], _other_lab(lab, tmp_path)
    _interrupt(monkeypatch, other, run, _inside(place))
    execute(other, run)
    assert _digests(other / "runs" / run.folder) == _digests(lab / "runs" / run.folder)
    assert list((other / "partial").iterdir()) == []


@pytest.mark.parametrize("place", ["tidy", "move"])
def test_a_kill_between_the_last_file_and_the_move_trains_nothing_again(monkeypatch, tmp_path, lab, place):
    run, other = _runs()[1], _other_lab(lab, tmp_path)
    _interrupt(monkeypatch, other, run, _inside("_tidy") if place == "tidy" else _before_the_move)
    partial = other / "partial" / run.folder
    when = (partial / "when.json").read_bytes()

    def refuse(*_: object) -> None:
        raise AssertionError("a run that lacked only its move was trained again")

    monkeypatch.setattr(module, "make_trainer", refuse)
    assert execute(other, run) == other / "runs" / run.folder
    assert _digests(other / "runs" / run.folder) == _digests(lab / "runs" / run.folder)
    assert (other / "runs" / run.folder / "when.json").read_bytes() == when
    assert list((other / "partial").iterdir()) == []


def _before_the_move(monkeypatch: pytest.MonkeyPatch) -> None:
    move = os.replace

    def killed(source: Path, target: Path) -> None:
        if Path(target).parent.name == "runs":
            raise Killed
        move(source, target)

    monkeypatch.setattr(module.os, "replace", killed)


@pytest.mark.parametrize("steps", [0, 2])
def test_progress_tells_the_speed_of_this_process_alone(monkeypatch, tmp_path, lab, steps):
    """By a clock that a step moves by ten seconds: steps of an earlier process took none of its time."""
    run, other = _runs()[1], _other_lab(lab, tmp_path)
    if steps:
        _interrupt(monkeypatch, other, run, _after_steps(steps))
    done, reports, write = _count_steps(monkeypatch), [], training.write_json
    clock = SimpleNamespace(
        monotonic=lambda: 1000.0 + 10 * len(done), strftime=time.strftime, gmtime=time.gmtime
    )

    def noted(path: Path, value: Any) -> None:
        if path.name == "progress.json":
            reports.append(value)
        write(path, value)

    monkeypatch.setattr(training, "time", clock)
    monkeypatch.setattr(training, "write_json", noted)
    execute(other, run)
    assert [report["step"] for report in reports] == list(range(steps + 1, 5))
    assert {report["steps"] for report in reports} == {4}
    assert [report["rate"] for report in reports] == pytest.approx([0.1] * (4 - steps))
    log = pd.read_parquet(other / "runs" / run.folder / "log.parquet")
    for name in ("reward", "kl", "loss"):
        assert [report[name] for report in reports] == log[name].tolist()[steps:]
    when = json.loads((other / "runs" / run.folder / "when.json").read_text())
    # The clock of the earlier process was a real one.
    assert when["seconds"] == pytest.approx(10 * (4 - steps), abs=5)


def test_a_run_resumes_after_several_kills_and_counts_all_of_its_time(monkeypatch, tmp_path, lab):
    run, other = _runs()[2], _other_lab(lab, tmp_path)
    for steps in (1, 1, 3):
        _interrupt(monkeypatch, other, run, _after_steps(steps))
        before = json.loads((other / "partial" / run.folder / "progress.json").read_text())
        assert before["step"] <= steps
    execute(other, run)
    assert _digests(other / "runs" / run.folder) == _digests(lab / "runs" / run.folder)


def test_half_written_files_of_a_kill_do_not_survive(tmp_path, lab):
    run, other = _runs()[2], _other_lab(lab, tmp_path)
    partial = other / "partial" / run.folder
    (partial / ".step-000004.part").mkdir(parents=True)
    (partial / ".step-000004.part" / "config.json").write_text("{")
    (partial / ".snapshot.safetensors.99.partial").write_bytes(b"half")
    execute(other, run)
    assert _digests(other / "runs" / run.folder) == _digests(lab / "runs" / run.folder)


def test_a_finished_run_is_not_repeated(monkeypatch, lab):
    def refuse(*_: object) -> None:
        raise AssertionError("a finished run was trained again")

    monkeypatch.setattr(module, "make_trainer", refuse)
    before = {run.name: (lab / "runs" / run.folder).stat().st_mtime_ns for run in _runs()}
    for run in _runs():
        assert execute(lab, run) == lab / "runs" / run.folder
    assert before == {run.name: (lab / "runs" / run.folder).stat().st_mtime_ns for run in _runs()}


def _train_in_child(lab: Path, run: Run, steps: Path) -> None:
    """In a forked process: train, and append a line for every step done."""
    torch.set_num_threads(1)
    step = Trainer.logged_step

    def noted(self: Trainer, index: int) -> dict[str, float]:
        row = step(self, index)
        with open(steps, "a") as file:
            file.write(f"{os.getpid()} {index}\n")
        return row

    Trainer.logged_step = noted  # type: ignore[method-assign]
    execute(lab, run)


def _child(*arguments: object) -> multiprocessing.process.BaseProcess:
    process = multiprocessing.get_context("fork").Process(target=_train_in_child, args=arguments)
    process.start()
    return process


def _steps(path: Path) -> list[list[int]]:
    return [[int(n) for n in line.split()] for line in path.read_text().splitlines()] if path.exists() else []


def test_a_run_killed_by_sigkill_resumes_to_the_same_bytes(tmp_path):
    """A longer run, so that the signal comes in the middle of it, wherever that is."""
    recipe = BASE.model_copy(update={"steps": 150, "checkpoint_steps": (10, 60, 120), "evaluate_every": 5})
    run, steps = make_run(recipe, None), tmp_path / "steps"
    execute(tmp_path / "whole", run)
    process = _child(tmp_path / "killed", run, steps)
    deadline = time.monotonic() + 30
    while len(_steps(steps)) < 40 and time.monotonic() < deadline:
        time.sleep(0.005)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    done = len(_steps(steps))
    assert 40 <= done < 150
    assert not is_finished(tmp_path / "killed", run)
    _child(tmp_path / "killed", run, steps).join()
    indices = [index for _, index in _steps(steps)]
    # At most the step under way when the signal came is done twice.
    assert indices[:done] == list(range(1, done + 1))
    assert indices[done] in (done, done + 1)
    assert indices[-1] == 150
    whole, killed = (_digests(tmp_path / lab / "runs" / run.folder) for lab in ("whole", "killed"))
    assert whole == killed


def test_two_processes_train_a_run_once(tmp_path):
    run, steps = _runs()[0], tmp_path / "steps"
    for process in [_child(tmp_path / "lab", run, steps) for _ in range(3)]:
        process.join()
        assert process.exitcode == 0
    rows = _steps(steps)
    assert [index for _, index in rows] == [1, 2, 3, 4]
    assert len({process for process, _ in rows}) == 1
    assert list((tmp_path / "lab" / "partial").iterdir()) == []


# --------------------------------------------------------------------------------------------- digests


def test_a_digest_changes_with_every_field_of_the_recipe():
    changes: dict[str, object] = {
        "name": "other", "seed": 4, "data": "addsub-4", "steps": 5, "learning_rate": 2e-3, "warmup": 3,
        "betas": (0.8, 0.999), "weight_decay": 0.0, "clip_norm": 2.0, "minibatches": 1,
        "master_dtype": "bfloat16", "storage_dtype": "float32", "save_dtype": "bfloat16",
        "checkpoint_steps": (1,), "evaluate_every": 3, "evaluate_prompts": 9, "evaluation_data": "addsub-4",
        "final_prompts": 9, "final_samples": 9, "base": "other", "algorithm": "grpo", "prompts": 5,
        "samples": 3, "resample_rounds": 4, "optimiser": "sgd", "kl_weight": 0.1, "kl_estimator": "k2",
        "leash": False, "device": "cuda", "objective": algorithm("grpo"),
    }  # fmt: skip
    assert set(changes) == set(RLRecipe.model_fields) - {"kind"}
    base = make_run(BASE, None)
    digests = {make_run(RL.model_copy(update={key: value}), base).digest for key, value in changes.items()}
    assert len(digests | {make_run(RL, base).digest}) == len(changes) + 1


def test_a_digest_changes_with_the_bases_digest_the_code_and_the_versions(monkeypatch):
    base = make_run(BASE, None)
    before = make_run(RL, base)
    other = make_run(BASE.model_copy(update={"seed": 4}), None)
    assert make_run(RL, other).digest != before.digest
    with monkeypatch.context() as patch:
        patch.setattr(module, "digest_versions", lambda: {"torch": "0.0.1"})
        assert make_run(RL, base).digest != before.digest
    with monkeypatch.context() as patch:
        patch.setattr(module, "code_digest", lambda *_, **__: "other code")
        assert make_run(RL, base).digest != before.digest
    assert make_run(RL, base) == before


def _codes(recipes: list[AnyRecipe]) -> list[str]:
    return [make_run(recipe, None).code for recipe in recipes]


def test_kinds_of_runs_do_not_share_the_code_of_their_trainers():
    assert len(set(_codes([BASE, RL, SFT]))) == 3
    assert len(set(_codes([SFT, SFT.model_copy(update={"source": "rft"})]))) == 1


IN_ANOTHER_PROCESS = """
import sys
from pydantic import TypeAdapter
from threegates.lab.recipe import AnyRecipe
from threegates.lab.runs import make_run
base, *tuned = [TypeAdapter(AnyRecipe).validate_json(text) for text in sys.argv[1:]]
base = make_run(base, None)
print(base.digest, *[make_run(recipe, base).digest for recipe in tuned])
"""


def test_digests_are_the_same_in_another_process():
    recipes = [recipe.model_dump_json() for recipe in (BASE, RL, SFT)]
    command = [sys.executable, "-c", IN_ANOTHER_PROCESS, *recipes]
    source = Path(module.__file__).parents[2]
    environment = os.environ | {"PYTHONHASHSEED": "12345", "PYTHONPATH": str(source)}
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert output.split() == [run.digest for run in _runs()]
