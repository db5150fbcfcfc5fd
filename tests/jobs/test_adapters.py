"""An adapter as the tuned side of a pair: what is measured, written and said."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from tests.checkpoints.adapters import by_peft
from threegates.checkpoints.places import Place, place_of
from threegates.checkpoints.tensors import Checkpoint
from threegates.checkpoints.views import on_device
from threegates.errors import PairError, ThreeGatesError
from threegates.jobs.nearest import nearest
from threegates.jobs.pair_files import measure_to_files
from threegates.jobs.settings import export
from threegates.jobs.sources import own_pair
from threegates.preflight import preflight_of

Q = {"target_modules": ["q_proj", "down_proj"]}


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """A folder that no project is around."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def measured(folder, base, tuned, **options):
    """What a measurement of a pair says, and its tables."""
    pair = own_pair(str(base), str(tuned))
    out, adapter = folder / "pair.parquet", folder / "adapter.parquet"
    told = measure_to_files(pair, out, masks=None, axis=None, adapter=adapter, **{"seed": 0} | options)
    return told.summary(), pd.read_parquet(out), pd.read_parquet(adapter)


def test_a_pair_with_an_adapter_is_that_with_the_model_it_makes(outside):
    """Against the same weights merged in float64 and stored in float32."""
    saved = by_peft.saved(outside, by_peft.model("llama").bfloat16(), trained=0.01, r=2, **Q)
    merged = {
        name: tensor.float() if name.endswith(("q_proj.weight", "down_proj.weight")) else tensor.bfloat16()
        for name, tensor in ((n, Checkpoint.open(saved.merged).stored(n)) for n in saved.opened.infos)
    }
    save_file(merged, saved.merged / "model.safetensors")
    said, found, adapter = measured(outside, saved.base, saved.adapter)
    out = outside / "whole.parquet"
    measure_to_files(own_pair(str(saved.base), str(saved.merged)), out, masks=None, axis=None, seed=0)
    whole = pd.read_parquet(out)
    numbers = list(whole.select_dtypes("number"))
    pd.testing.assert_frame_equal(found[numbers], whole[numbers], rtol=1e-5, atol=1e-7)
    assert list(found["spectra"]) == list(whole["spectra"])
    assert list(adapter["tensor"]) == [name for name in found["tensor"] if name in set(adapter["tensor"])]
    assert len(adapter) == 4 and (adapter["rank"] == 2).all()
    assert "the tuned side is an adapter (LoRA) on the base: rank 2 on 4 tensors" in said
    assert "merged into bf16 (added in float32 and rounded once)" in said and "safe_merge" in said
    assert "never trained" not in said


def test_the_same_from_two_processes(outside):
    saved = by_peft.saved(outside, by_peft.model("llama"), trained=0.01, r=2, **Q)
    first = measured(outside, saved.base, saved.adapter)[1:]
    second = measured(outside, saved.base, saved.adapter, workers=2)[1:]
    for one, other in zip(first, second, strict=True):
        pd.testing.assert_frame_equal(one, other)


def test_an_adapter_that_was_never_trained_is_told(outside):
    saved = by_peft.saved(outside, by_peft.model("llama").bfloat16(), trained=0.0, r=2, **Q)
    said, found, _ = measured(outside, saved.base, saved.adapter)
    assert "look twice: the adapter was never trained" in said
    assert found["changed"].sum() == 0


def test_an_adapter_of_a_residual_is_told(outside):
    """PiSSA's recipe of a residual saved apart: on the base itself ΔW is what the residual lacks."""
    saved = by_peft.saved(outside, by_peft.model("llama"), trained=1e-4, r=2, init_lora_weights="pissa", **Q)
    by_peft.edited(saved.adapter, lambda config: config.update({"init_lora_weights": True}))
    said = measured(outside, saved.base, saved.adapter)[0]
    assert "ΔW is a part of W₀ itself in 4 of 4 matrices" in said and "--adapter-start" in said
    export(start=saved.start)
    assert "part of W₀" not in measured(outside, saved.base, saved.adapter)[0]


def test_without_a_base_the_one_that_the_config_names_is_taken(outside):
    saved = by_peft.saved(outside, by_peft.model("llama"), r=2, **Q)
    by_peft.edited(saved.adapter, lambda config: config.update({"base_model_name_or_path": str(saved.base)}))
    pair = own_pair(None, str(saved.adapter))
    assert pair.base.checkpoint.folder == saved.base and pair.name == "adapter"
    by_peft.edited(saved.adapter, lambda config: config.update({"base_model_name_or_path": None}))
    with pytest.raises(PairError, match="does not say what it was trained on"):
        own_pair(None, str(saved.adapter))


def test_preflight_and_measuring_agree(outside):
    saved = by_peft.saved(outside, by_peft.model("llama"), r=2, **Q)
    found = preflight_of(
        (None, str(saved.base), str(saved.adapter)),
        (None, None),
        diagnostics=["measure"],
        workers=1,
        timed=False,
    )
    said, table, _ = measured(outside, saved.base, saved.adapter)
    assert found.possible and len(found.findings.compared) == (table["status"] == "compared").sum()
    told = " ".join(found.text().split())
    assert "the tuned side is an adapter (LoRA)" in told and "21 tensors compared" in said


def test_what_has_no_answer_is_refused(outside):
    saved = by_peft.saved(outside, by_peft.model("llama"), r=2, **Q)
    with pytest.raises(PairError, match="equally near"):
        nearest(str(saved.adapter), [str(saved.base)])
    pair = own_pair(str(saved.base), str(saved.merged))
    with pytest.raises(PairError, match="no adapter"):
        measure_to_files(
            pair, outside / "a.parquet", masks=None, axis=None, adapter=outside / "b.parquet", seed=0
        )
    assert not list(outside.glob("*.parquet"))
    export(start=saved.start)
    with pytest.raises(PairError, match="no adapter, so that it has no start"):
        own_pair(str(saved.base), str(saved.merged))
    export(start=outside / "nowhere")
    with pytest.raises(ThreeGatesError, match="no folder of an adapter's start"):
        own_pair(str(saved.base), str(saved.adapter))


def test_the_device_is_kept(outside, monkeypatch):
    saved = by_peft.saved(outside, by_peft.model("llama"), r=2, **Q)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    tuned = on_device(own_pair(str(saved.base), str(saved.adapter)).tuned.checkpoint, "cuda:0")
    place = place_of(tuned)
    assert place.device == "cuda:0" and place.adapter == str(saved.adapter)
    assert Place.parse(place.text()) == place
