"""Pairs with a side of codes, as commands meet them: refused until asked for, and then with their floor."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from safetensors.torch import load_file

from tests.checkpoints.coded import BLOCKS, block_fp8, write_gguf
from tests.hub.loopback import LoopbackHub
from tests.planted import planted
from threegates import environment
from threegates.checkpoints.dequantised import dequantised
from threegates.checkpoints.places import Place, place_of
from threegates.checkpoints.tensors import SINGLE, Checkpoint
from threegates.errors import CheckpointError, PairError, ThreeGatesError
from threegates.jobs.kinds.table import table_job
from threegates.jobs.nearest import nearest, told
from threegates.jobs.pair_files import Written, measure_to_files
from threegates.jobs.settings import DOWNLOAD, RANGED, export
from threegates.jobs.sources import folder_labels, own_pair
from threegates.preflight import preflight_of

ASK = "--dequantise"
SIZES = {"hidden": 32, "inner": 64, "blocks": 1, "heads": 4, "key_heads": 4, "vocabulary": 12}
Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def folders(tmp_path) -> dict[str, str]:
    """A base in bf16, in FP8 and as GGUF; what was tuned from it; and another base."""
    base = planted.base_tensors()
    tuned = planted.with_noise(base, 1e-4, 5)
    made = {
        "base": (base, planted.CONFIG),
        "fp8": (block_fp8(base), planted.CONFIG | BLOCKS),
        "tuned": (tuned, planted.CONFIG),
        "other": (planted.base_tensors(seed=9), planted.CONFIG),
    }
    found = {name: str(planted.write(tmp_path / name, *one)) for name, one in made.items()}
    return found | {"gguf": str(write_gguf(tmp_path / "base.gguf", base, SIZES, kind="Q8_0"))}


def measured(base: str, tuned: str, out: Path, way: str | None = None) -> Written:
    settings = {"masks": None, "axis": None, "seed": 0, "spectra": False}
    return measure_to_files(own_pair(base, tuned, way), out, **settings)


def looked(base: str, tuned: str):
    return preflight_of((None, base, tuned), (None, None), workers=1, timed=False)


def test_codes_are_refused_with_the_option_that_reads_them(folders, tmp_path):
    pair = folders["fp8"], folders["tuned"]
    with pytest.raises(PairError, match="most matrices of the pair are codes") as caught:
        measured(*pair, tmp_path / "out.parquet")
    assert ASK in caught.value.remedy and not (tmp_path / "out.parquet").exists()
    assert not list(tmp_path.glob("*.parts"))
    found = looked(*pair)
    assert not found.possible and any(ASK in problem.remedy for problem in found.findings.problems)
    with pytest.raises(PairError, match="codes of few bits"):
        nearest(folders["tuned"], [folders["fp8"]])
    # Codes that nothing here can read are refused without a promise.
    packed = {name: x.view(-1, 4).int() for name, x in load_file(Path(folders["base"]) / SINGLE).items()}
    packed = str(planted.write(tmp_path / "packed", packed))
    export(dequantise=True)
    with pytest.raises(PairError, match="codes") as caught:
        measured(packed, folders["tuned"], tmp_path / "out.parquet")
    assert ASK not in caught.value.remedy


def test_the_hub_refuses_them_before_a_weight_is_fetched_and_gives_the_folder_s_numbers_when_asked(
    folders, tmp_path, monkeypatch
):
    monkeypatch.setenv("THREEGATES_RANGES", str(tmp_path / "ranges"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with LoopbackHub({"org/fp8": Path(folders["fp8"])}) as hub:
        hub.stand_in(monkeypatch)
        for way in (DOWNLOAD, RANGED):
            with pytest.raises(CheckpointError, match=ASK):
                own_pair("org/fp8", folders["tuned"], way)
        assert not list((tmp_path / "cache").rglob("*.safetensors"))
        export(dequantise=True)
        assert looked("org/fp8", folders["tuned"]).possible
        tables = [
            measured(base, folders["tuned"], tmp_path / f"{way}.parquet", way).tensor
            for base, way in ((folders["fp8"], None), ("org/fp8", DOWNLOAD), ("org/fp8", RANGED))
        ]
        place = place_of(own_pair("org/fp8", folders["tuned"], RANGED).base.checkpoint)
        # A worker on another machine was not given the option.
        environment.forget()
        assert place.dequantised and Place.parse(place.text()).open().stored(Q).isfinite().all()
    for other in tables[1:]:
        pd.testing.assert_frame_equal(tables[0], other)


def test_a_measurement_of_codes_says_what_rounding_explains(folders, tmp_path):
    export(dequantise=True)
    # The base itself against its codes: rounding is all there is.
    summary = measured(folders["fp8"], folders["base"], tmp_path / "none.parquet").summary()
    assert "weights of the base are codes that are read as floats: 7 in F8_E4M3" in summary
    assert "rounding moves most of them" in summary and "left over" not in summary
    assert "0 of their 10240 weights moved further than rounding explains" in summary
    assert "which is no more: sparsity, masks, angles and overlaps of these say nothing" in summary
    found = measured(folders["fp8"], folders["other"], tmp_path / "far.parquet")
    assert "which is more: sparsity" in found.summary()
    table = pd.read_parquet(tmp_path / "far.parquet").set_index("tensor")
    assert (table["norm_floor"].dropna() > 0).all() and table["norm_floor"].notna().sum() == 7
    assert table.loc[Q, "changed_beyond"] > 900 and table.loc[Q, "stored_dtype_base"] == "F8_E4M3"
    plain = measured(folders["base"], folders["tuned"], tmp_path / "plain.parquet")
    assert "floor" not in plain.summary() and plain.tensor["norm_floor"].isna().all()


def test_what_was_trained_from_the_codes_themselves_has_lost_nothing(folders, tmp_path):
    """As of DeepSeek-V3, whose weights were published in FP8 alone: the start is the codes read as floats."""
    start = dequantised(Checkpoint.open(folders["fp8"]))
    tensors = {name: start.stored(name).bfloat16() for name in start.infos}
    tuned, masks = planted.with_flips(tensors, {Q: 100})
    export(dequantise=True)
    found = measured(folders["fp8"], str(planted.write(tmp_path / "t", tuned)), tmp_path / "o.parquet")
    assert "which is less: the other side stems from these very codes" in found.summary()
    assert found.tensor["changed"].sum() == masks[Q].sum() == 100


def test_preflight_says_what_is_read_from_codes_and_what_lies_there(folders):
    export(dequantise=True)
    found = looked(folders["fp8"], folders["tuned"])
    text = " ".join(found.text().split())
    assert found.possible and "F8_E4M3" in text
    assert "weights of the base are codes that are read as floats: 7 in F8_E4M3" in text
    assert found.findings.base.parameters == found.findings.tuned.parameters
    # What is made of codes is no page of a file.
    plain = looked(folders["base"], folders["tuned"])
    assert found.memory.largest > plain.memory.largest


def test_whether_codes_are_read_is_part_of_what_a_job_is(folders):
    export(dequantise=True)
    job = table_job(own_pair(folders["fp8"], folders["tuned"]), {"seed": 0, "nulls": []})
    plain = table_job(own_pair(folders["base"], folders["tuned"]), {"seed": 0, "nulls": []})
    assert job.inputs["dequantised"] == ["base"] and "dequantised" not in plain.inputs


def test_the_nearest_base_is_told_beside_the_floor_of_its_codes(folders):
    export(dequantise=True)
    found = nearest(folders["tuned"], [folders["other"], folders["fp8"]])
    assert list(found["base"]) == [folders["fp8"], folders["other"]]
    assert found["distance"][0] == pytest.approx(found["floor"][0], rel=0.1) and found["floor"][1] == 0
    assert "(rounding to codes alone gives 0.02" in told(found)


def test_a_gguf_file_is_a_base_or_a_tuned_side_by_its_path(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pair = own_pair("base.gguf", folders["tuned"])
    assert pair.base.label == "base.gguf"
    found = measured("base.gguf", folders["tuned"], tmp_path / "g.parquet")
    assert (found.tensor["status"] == "compared").all() and "9 in Q8_0" in found.summary()
    assert looked("base.gguf", folders["tuned"]).possible
    back = measured(folders["tuned"], "base.gguf", tmp_path / "t.parquet")
    pd.testing.assert_series_equal(back.tensor["norm_floor"], found.tensor["norm_floor"])
    assert folder_labels(["base.gguf"]) == {"base.gguf": folders["gguf"]}
    (tmp_path / "model").mkdir()
    Path(folders["gguf"]).rename(tmp_path / "model" / "base.gguf")
    with pytest.raises(ThreeGatesError, match="give that file's path"):
        Checkpoint.open(tmp_path / "model")
