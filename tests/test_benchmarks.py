"""The benchmarks' table, file and exit status; the measurements themselves run with `make bench`."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from benchmarks import __main__ as program
from benchmarks import adapters, cuda, laws, lm, masks, scale, spectra, streaming, thresholds
from benchmarks.measure import Row, in_turn, interleaved
from threegates.errors import RecipeError

FAST = Row("count", "2 × 2", 1.0, "torch", 40.0, True, "same counts", aim=30.0, gate=15.0)


@pytest.fixture
def rows(monkeypatch):
    given: list[Row] = []
    monkeypatch.setattr(masks, "rows", lambda sizes: given)
    return given


def test_rows_that_hold_end_well_and_land_in_the_file(rows, tmp_path, capsys):
    rows += [FAST, replace(FAST, other_ms=2.0, gate=None, aim=None)]
    assert program.main(["--only", "masks", "--json", str(tmp_path / "out.json")]) == 0
    out = capsys.readouterr().out
    assert "40.0×" in out and "15× met" in out and "threads 1" in out
    written = json.loads((tmp_path / "out.json").read_text())["runs"]["masks"]
    assert [row["ratio"] for row in written["rows"]] == [40, 2]
    assert written["machine"]["threads"] == 1 and "torch" in written["machine"]
    assert len(written["time"]) == 20 and "commit" in written
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_a_module_that_is_measured_alone_replaces_its_own_run(rows, tmp_path):
    path = tmp_path / "out.json"
    other = {"machine": {}, "time": "then", "rows": ["kept"]}
    path.write_text(json.dumps({"runs": {"scale": other, "masks": other}}))
    rows += [FAST]
    assert program.main(["--only", "masks", "--json", str(path)]) == 0
    runs = json.loads(path.read_text())["runs"]
    assert set(runs) == {"scale", "masks"} and runs["scale"] == other
    assert [row["ratio"] for row in runs["masks"]["rows"]] == [40]


@pytest.mark.parametrize(
    ("row", "said"),
    [(replace(FAST, accurate=False), "NOT same counts"), (replace(FAST, other_ms=14.9), "15× MISSED")],
)
def test_unequal_results_and_missed_gates_fail(rows, row, said, capsys):
    rows += [FAST, row]
    assert program.main(["--only", "masks"]) == 1
    assert said in capsys.readouterr().out


def test_only_what_exists_can_be_chosen(capsys):
    with pytest.raises(SystemExit):
        program.main(["--only", "nothing"])
    assert "masks" in capsys.readouterr().err


def test_both_sides_are_measured_in_turn_after_a_warm_up():
    calls: list[str] = []
    in_turn(lambda: calls.append("ours"), lambda: calls.append("other"), rounds=2)
    assert calls == ["ours", "other"] * 3


def test_the_gate_on_results_sees_a_wrong_count(monkeypatch):
    base, tuned = masks.pair((8, 16))
    assert all(row.accurate for row in masks.counting("tiny", base, tuned))
    monkeypatch.setattr(masks, "torch_idiom", lambda base, tuned: masks.paper_formula(base, base))
    assert [row.accurate for row in masks.counting("tiny", base, tuned)] == [False, True]


def test_sizes_are_handed_on_and_unknown_ones_refused(monkeypatch, capsys):
    asked: list[list[str]] = []
    monkeypatch.setattr(masks, "rows", lambda sizes: asked.append(sizes) or [])
    program.main(["--only", "masks", "--sizes", "s,l"])
    program.main(["--only", "masks"])
    assert asked == [["s", "l"], ["s", "m", "l", "x"]]
    with pytest.raises(SystemExit):
        program.main(["--sizes", "s,huge"])
    assert "no such size: huge" in capsys.readouterr().err


def test_many_ways_run_in_turn_and_leave_their_results():
    calls: list[str] = []
    ways = {name: lambda name=name: calls.append(name) or len(calls) for name in ("a", "b")}
    least, found = interleaved(ways, rounds=2)
    assert calls == (["a"] * 4 + ["b"] * 4) * 2
    assert found == {"a": 12, "b": 16} and all(0 <= ms < math.inf for ms in least.values())
    calls.clear()
    interleaved(ways, rounds=2, again_below_ms=-1.0)
    assert calls == ["a", "b"] * 2


def tiny_spectra() -> list[Row]:
    return spectra.measured("tiny", (120, 160), (8, 16), rounds=1)


def test_rows_of_spectra_hold_on_a_tiny_pair():
    found = tiny_spectra()
    assert len(found) == 6
    assert all(row.accurate for row in found), program.table(found)


def test_the_gate_on_results_sees_a_subspace_that_is_not_the_tuned_one(monkeypatch):
    monkeypatch.setattr(spectra, "update", lambda base, tuned, accuracy="fast": base.leading)
    assert [row.name for row in tiny_spectra() if row.accurate] == ["full spectrum"]


def test_the_gate_on_results_sees_values_of_another_matrix(monkeypatch):
    monkeypatch.setattr(spectra, "singular_values", lambda x, whole=spectra.singular_values: whole(x * 1.01))
    assert [row.name for row in tiny_spectra() if not row.accurate] == ["full spectrum"]


def test_rows_of_adapters_hold_and_a_wrong_spectrum_is_seen(monkeypatch):
    found = adapters.measured("tiny", (120, 160))
    assert [row.name for row in found] == ["spectrum of a LoRA's update", "pair with an adapter"]
    assert all(row.accurate for row in found)
    real = adapters.singular_values_of_product
    monkeypatch.setattr(adapters, "singular_values_of_product", lambda up, down: 1.001 * real(up, down))
    assert not adapters.measured("tiny", (120, 160))[0].accurate


def test_rows_of_laws_hold_and_a_wrong_law_is_seen(monkeypatch):
    found = laws.measured("tiny", (120, 160), draws=20)
    ways = [f"pair with all nulls, {accuracy}" for accuracy in ("certified", "fast", "reference")]
    assert [row.name for row in found] == ["laws of all nulls", *ways, "pair as one would write it"]
    assert all(row.accurate and row.gate is None for row in found), program.table(found)
    assert found[-1].other_ms > found[1].other_ms + found[-1].notes["of it draws"] > found[1].other_ms
    monkeypatch.setattr(
        laws, "_agree", lambda law, drawn, real=laws._agree: real(replace(law, mean=2), drawn)
    )
    monkeypatch.setattr(laws, "_nss", lambda before, after: 1.0)
    assert not any(row.accurate for row in laws.measured("tiny", (120, 160), draws=20))


def test_targets_are_those_of_the_sizes_that_have_them():
    assert spectra.GATES.keys() == spectra.AIMS.keys() == spectra.SIZES.keys() == spectra.ROUNDS.keys()
    assert all(spectra.GATES[size] < spectra.AIMS[size] for size in spectra.SIZES)


def test_thresholds_and_overlaps_hold_and_a_wrong_one_is_seen(monkeypatch):
    found = [*thresholds.thresholds(4_001, rounds=1), thresholds.overlapping(4_001, rounds=1)]
    assert len(found) == 5 and all(row.accurate for row in found)
    monkeypatch.setattr(thresholds, "threshold", lambda weight, count: float(weight.abs().median()) * 1.1)
    assert not any(row.accurate for row in thresholds.thresholds(4_001, rounds=1))


@pytest.fixture
def small_pair(monkeypatch, tmp_path):
    monkeypatch.setattr(streaming, "MODEL", streaming.Model(16, 2, 24, 8, 50))
    streaming.write_pair(tmp_path)
    return tmp_path


def test_the_streamed_pair_is_that_of_the_model_in_size():
    total = sum(torch.Size(shape).numel() for _, shape in streaming.MODEL.shapes())
    assert total == 1_543_714_304  # Qwen2.5-Math-1.5B's own count, head tied


def test_streaming_and_loading_find_the_same_counts(small_pair, monkeypatch):
    row = streaming.compared(small_pair, rounds=1)
    assert row.accurate and row.notes["anonymous GiB"] <= 0.25, row
    ours = streaming.streamed(small_pair)
    assert ours == streaming.loaded(small_pair)
    assert sum(counts[0] for counts in ours.values()) > 0
    monkeypatch.setattr(streaming, "ANONYMOUS_GIB", -1.0)
    assert not streaming.compared(small_pair, rounds=1).accurate


def test_memory_of_its_own_is_seen_and_mapped_files_are_not(tmp_path):
    with streaming._Anonymous() as memory:
        held = torch.ones(1 << 27)
    # Half a GiB, less what the allocator had kept of memory freed before.
    assert 0.4 < memory.gib < 0.7 and len(held)
    held[: 1 << 25].numpy().tofile(tmp_path / "file")
    mapped = torch.from_file(str(tmp_path / "file"), size=1 << 25)
    with streaming._Anonymous() as memory:
        assert float(mapped.sum()) == 1 << 25
    assert memory.gib < 0.05


def test_rows_of_the_gpu_hold_on_a_tiny_block_and_a_wrong_spectrum_is_seen(monkeypatch):
    shapes, device = {"q": (160, 120), "down": (120, 200)}, torch.device("cpu")
    found = cuda.block_rows(shapes, 16, device)
    assert [row.accurate for row in found] == [True, True], program.table(found)
    assert all(row.notes["warm"] == 2 for row in found)
    monkeypatch.setattr(cuda, "update", lambda base, tuned, accuracy: base.leading)
    assert [row.accurate for row in cuda.block_rows(shapes, 16, device)] == [False, False]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_there_are_no_rows_of_the_gpu_without_one():
    assert cuda.rows(["s"]) == []


@pytest.fixture
def small_scale(monkeypatch, tmp_path):
    """A tiny pair in several shards, as the benchmark of memory makes it, and what was planted in it."""
    monkeypatch.setattr(scale, "SHARD_BYTES", 40_000)
    block = "model.layers.0"
    shapes = {
        "model.embed_tokens.weight": (90, 64),
        f"{block}.self_attn.q_proj.weight": (64, 64),
        f"{block}.mlp.down_proj.weight": (64, 96),
        f"{block}.input_layernorm.weight": (64,),
    }
    scale.opened.cache_clear()
    return tmp_path, scale.write_pair(tmp_path, shapes)


def test_what_is_planted_in_the_pair_at_scale_is_found_and_a_wrong_count_is_seen(small_scale):
    folder, truth = small_scale
    assert len(list((folder / "tuned").glob("*.safetensors"))) > 1
    scale.measured(folder, cap=1 << 40, workers=1)
    assert scale.differences(folder, truth) == []
    name = "model.layers.0.mlp.down_proj.weight"
    for wrong in ({"changed": 1}, {"stored": 1}, {"mask": "0"}, {"sums": ("0", "1")}):
        assert scale.differences(folder, truth | {name: replace(truth[name], **wrong)}) == [name]
    alone = scale.loaded(folder, blocks=1)
    assert alone["changed"] == {key: one.changed for key, one in truth.items()}
    with_nulls = scale.loaded(folder, blocks=2, workers=2, draws=1)
    assert with_nulls["changed"] == alone["changed"] and with_nulls["seconds"] > 0


def test_models_at_scale_are_those_of_their_names_in_size():
    sizes = {
        name: sum(torch.Size(shape).numel() for _, shape in model.shapes())
        for name, model in scale.MODELS.items()
    }
    assert (
        sizes["x"] == 1_543_714_304
        and sizes["l"] == 494_032_768
        and scale.MODELS.keys() == set(program.SIZES)
    )
    # Llama's queries have no biases: 30 layers of 576 + 2 · 192, and 32 of 960 + 2 · 320.
    assert sizes["s"] == 134_515_008 + 30 * 960 and sizes["m"] == 361_821_120 + 32 * 1600


def test_the_planted_share_of_entries_moves_in_bf16_and_all_of_them_in_float32(small_scale):
    _, truth = small_scale
    embedding = truth["model.embed_tokens.weight"]
    assert embedding.stored == 90 * 64 and abs(embedding.changed / embedding.stored - scale.SHARE) < 0.05


def test_overlaps_that_favour_a_target_are_seen():
    row = {"spectra": "measured", "changed": 10_000}
    for target in ("principal", "low", "principal_not_low"):
        row |= {f"overlap_{target}": 0.5, f"density_{target}": 0.5, f"overlap_{target}_bernoulli_mean": 0.5}
    assert scale._independent(row)
    assert not scale._independent(row | {"overlap_low": 0.54})
    assert not scale._independent(row | {"overlap_low_bernoulli_mean": 0.501})
    assert not scale._independent({"spectra": "not asked for", "layer": 0, "shape": [2, 2]})


def test_memory_of_a_process_and_of_those_below_it_is_seen_together():
    held = "import sys, torch; x = torch.ones(1 << 25); print(1, flush=True); sys.stdin.read()"
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {held!r}])"
    command = [sys.executable, "-c", nested]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline()
    found = scale.tree_memory(process.pid)
    process.communicate(b"")
    assert 128 << 20 < found["anonymous"] < 1 << 30 and found["anonymous"] < found["resident"]
    assert scale.tree_memory(process.pid) == {"anonymous": 0, "resident": 0}


def test_a_tensor_takes_no_more_than_was_foretold_and_not_far_less():
    # Of smaller ones, memory that was freed before holds an uncertain share.
    row = scale.foretold("small", (1536, 1536))
    assert row.accurate, row


def test_the_layer_at_scale_is_that_of_the_model_in_size():
    assert (
        sum(torch.Size(shape).numel() for _, shape in scale.layer_shapes()) == 218_112_000
    )  # Llama-3.1-8B's
    assert scale.TENSORS.keys() == set(program.SIZES)


@pytest.mark.rl
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_rows_of_the_language_model_hold_on_a_tiny_one_and_a_wrong_gradient_is_seen(monkeypatch):
    pytest.importorskip("trl", reason="the extra `rl` is not installed")
    monkeypatch.setattr(lm, "STEPS", 1)
    found = lm.rows(["s"])
    assert len(found) == 2 and all(row.accurate and row.gate is None for row in found), program.table(found)
    assert found[0].notes["informative"] == 1 and found[0].notes["tokens"] > 128
    real = lm.EveryGroup.loss
    monkeypatch.setattr(lm.EveryGroup, "loss", lambda self, *given: (real(self, *given)[0] * 1.001, 0.0))
    monkeypatch.setattr(lm, "seconds_of_trl", lambda *given: 1.0)
    assert not any(row.accurate for row in lm.rows(["s"]))


def test_there_are_no_rows_of_the_language_model_without_its_package_or_of_other_sizes(monkeypatch):
    def missing() -> None:
        raise RecipeError("The language model's package is not installed.")

    monkeypatch.setattr(lm, "verified_file", missing)
    assert lm.base_of("l") is None and lm.base_of("m") is None
    monkeypatch.setattr(lm.importlib.util, "find_spec", lambda name: None)
    assert lm.rows(["s", "l"]) == []
