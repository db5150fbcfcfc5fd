"""A pair before it is measured, as the command shows it; from folders, and from the Hub's headers alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.hub.loopback import LoopbackHub
from threegates import cli
from threegates.checkpoints.tensors import SINGLE
from threegates.checkpoints.writer import write_checkpoint
from threegates.errors import CheckpointError, NotebookError, PairError
from threegates.jobs.settings import DOWNLOAD, RANGED
from threegates.jobs.sources import own_pair
from threegates.preflight import Preflight, preflight_of

ALL = (None, None)
CONFIG = {"model_type": "llama", "tie_word_embeddings": True, "vocab_size": 64}


@pytest.fixture
def pair(tmp_path) -> tuple[Path, Path]:
    """Two blocks, a tied embedding; the tuned side is stored in fp32."""
    generator = torch.Generator().manual_seed(3)
    names = [f"model.layers.{block}.mlp.{kind}_proj.weight" for block in (0, 1) for kind in ("up", "down")]
    tensors = {name: torch.randn(480, 320, generator=generator) for name in names}
    tensors["model.embed_tokens.weight"] = torch.randn(64, 320, generator=generator)
    write_checkpoint(tmp_path / "base", {name: x.bfloat16() for name, x in tensors.items()}, CONFIG)
    write_checkpoint(tmp_path / "tuned", {name: x + 1e-4 for name, x in tensors.items()}, CONFIG)
    return tmp_path / "base", tmp_path / "tuned"


def looked(base: object, tuned: object, choice=ALL, **options) -> Preflight:
    options = {"workers": 2, "timed": False} | options
    return preflight_of((None, str(base), str(tuned)), choice, **options)


def test_a_pair_of_folders_can_be_measured_and_costs_nothing_to_fetch(pair):
    found = looked(*pair)
    assert found.possible
    found.check()
    text = found.text()
    assert max(map(len, text.splitlines())) <= 88
    assert text.endswith("verdict    can be measured")
    assert "unseen     values: whether they are finite" in text
    text = " ".join(text.split())
    assert "nothing: both lie on this machine" in text
    assert "0.63 million parameters in 5 tensors, 2 blocks, head tied" in text
    assert "5 of 5 chosen can be compared: 1 embedding, 2 down, 2 up" in text
    assert str(pair[0].parent) not in text
    assert found.minutes == {}


def test_a_choice_narrows_what_is_compared_and_what_it_needs(pair):
    whole, narrow = looked(*pair), looked(*pair, choice=([1], ["up"]))
    assert [row.name for row in narrow.findings.aligned] == ["model.layers.1.mlp.up_proj.weight"]
    assert (len(whole.findings.matrices), len(narrow.findings.matrices)) == (4, 1)
    told = "chosen     tensors, 1 of 5 of base and 1 of 5 of tuned: what follows is of these alone"
    assert narrow.text().startswith(told) and "chosen     " not in whole.text()
    with pytest.raises(CheckpointError, match="7"):
        looked(*pair, choice=([7], None))


def test_what_the_record_says_is_what_the_text_says(pair, tmp_path):
    found = looked(*pair)
    found.write(tmp_path / "out.json")
    told = json.loads((tmp_path / "out.json").read_text())
    assert told["possible"] is True and told["unseen"].startswith("values")
    assert (told["chosen"], told["compared"], told["matrices"]) == (5, 5, 4)
    assert told["memory"]["largest"] == found.memory.largest > 0
    assert told["memory"]["together"] > 2 * told["memory"]["largest"]
    assert str(tmp_path) not in json.dumps(told)


def test_a_pair_that_cannot_work_says_all_of_why_before_anything_is_measured(pair, capsys, monkeypatch):
    base, tuned = pair
    held = {name: x.to(torch.int8) for name, x in load_file(tuned / SINGLE).items()}
    held.pop("model.layers.1.mlp.up_proj.weight")
    save_file(held, tuned / SINGLE)
    (tuned / "config.json").write_text(json.dumps(CONFIG | {"quantization_config": {"quant_method": "gptq"}}))
    found = looked(base, tuned)
    assert not found.possible
    with pytest.raises(PairError) as caught:
        found.check()
    for text in (str(caught.value), " ".join(found.text().split())):
        assert "model.layers.1.mlp.up_proj.weight: missing in tuned" in text
        assert "quantised (quant_method gptq" in text
    offenders = [
        line for line in found.text().splitlines() if "missing in tuned" in line or "stored as" in line
    ]
    assert len([line for line in offenders if line.startswith(" " * 11 + "model.")]) == 5
    monkeypatch.setattr(
        "sys.argv", ["threegates", "preflight", "--base", str(base), "--tuned", str(tuned), "--no-time"]
    )
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert "cannot be measured as it is" in capsys.readouterr().out


def test_moved_names_and_what_lies_beside_are_notes(pair):
    base, tuned = pair
    held = {name.replace("model.", "transformer."): x for name, x in load_file(tuned / SINGLE).items()}
    save_file(held, tuned / SINGLE)
    for side in pair:
        (side / "config.json").write_text(json.dumps(CONFIG | {"model_type": "unheard_of"}))
    (tuned / "adapter_config.json").write_text("{}")
    found = looked(base, tuned)
    text = " ".join(found.text().split())
    assert found.possible and "5 of 5 chosen can be compared" in text
    assert "note names of the tuned: 'model.' in place of 'transformer.'" in text
    assert "note in the tuned's folder: adapter_config.json beside the weights" in text


def test_folder_download_and_ranges_agree_on_what_is_quantised(pair, tmp_path, monkeypatch):
    """Each in front of codes, and of floats whose config says that they are codes."""
    base, tuned = pair
    told = CONFIG | {"quantization_config": {"quant_method": "awq"}}
    codes = {name: x.to(torch.int32) for name, x in load_file(tuned / SINGLE).items()}
    write_checkpoint(tmp_path / "codes", load_file(tuned / SINGLE), told)
    save_file(codes, tmp_path / "codes" / SINGLE)
    (tuned / "config.json").write_text(json.dumps(told))
    monkeypatch.setenv("THREEGATES_RANGES", str(tmp_path / "ranges"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with LoopbackHub({"org/floats": tuned, "org/codes": tmp_path / "codes"}) as hub:
        hub.stand_in(monkeypatch)
        for way in (DOWNLOAD, RANGED):
            assert own_pair(str(base), "org/floats", way)
            with pytest.raises(CheckpointError, match="the checkpoint is quantised"):
                own_pair(str(base), "org/codes", way)
        assert looked(base, "org/floats").possible
    assert looked(base, tuned).possible
    assert not looked(base, tmp_path / "codes").possible


def test_minutes_are_given_for_each_diagnostic_that_is_measured_by_tensor(pair, monkeypatch):
    from threegates.jobs.costs import Costs

    def costs(kinds, device):
        return dict.fromkeys(kinds, Costs(entry=60.0 / 1e5, product=0.0, cube=0.0, outside=0.0))

    monkeypatch.setattr("threegates.preflight.measured_costs", costs)
    found = looked(*pair, timed=True, diagnostics=["measure", "spectral-drift", "precision-lens"], workers=1)
    # Four matrices of 480 × 320 entries, a minute for each hundred thousand.
    assert found.minutes["measure"] == pytest.approx(4 * 480 * 320 / 1e5)
    assert found.minutes["spectral-drift"] == found.minutes["measure"]
    assert found.minutes["precision-lens"] is None
    assert "precision-lens: not estimated" in found.text()
    assert looked(*pair, timed=True, workers=4).minutes["measure"] == pytest.approx(480 * 320 / 1e5)
    # More workers than matrices do not make the longest one shorter.
    assert looked(*pair, timed=True, workers=99).minutes["measure"] == pytest.approx(480 * 320 / 1e5)


def test_memory_has_no_room_for_masks_of_nulls_where_a_matrix_is_too_large_to_draw_for(pair, monkeypatch):
    drawn = looked(*pair, diagnostics=["measure"]).memory.largest
    monkeypatch.setattr("threegates.jobs.memory.DRAWABLE", 0)
    law = looked(*pair, diagnostics=["measure"]).memory.largest
    assert law < drawn
    assert looked(*pair, diagnostics=["measure", "principal-overlap"]).memory.largest == law


def test_an_unknown_diagnostic_is_refused_by_name(pair):
    with pytest.raises(NotebookError, match="no such diagnostic"):
        looked(*pair, diagnostics=["spectral-draft"])


def test_of_the_hub_only_headers_are_read(pair, tmp_path, monkeypatch):
    monkeypatch.setenv("THREEGATES_RANGES", str(tmp_path / "ranges"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with LoopbackHub({"org/base": pair[0], "org/tuned": pair[1]}) as hub:
        hub.stand_in(monkeypatch)
        found = looked("org/base", "org/tuned", choice=([0], ["up"]))
    sizes = [sum(path.stat().st_size for path in side.glob("*.safetensors")) for side in pair]
    assert found.findings.fetch_whole == sum(sizes)
    assert found.findings.fetch_ranges == 480 * 320 * (2 + 4)
    assert found.findings.base.revision == hub.commit("org/base")
    text = " ".join(found.text().split())
    assert f"org/base at commit {hub.commit('org/base')} (llama), on the Hub" in text
    assert "read by ranges" in text
    assert 0 < hub.served[SINGLE] < sum(sizes) / 2
