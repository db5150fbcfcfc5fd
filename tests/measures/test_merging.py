"""What merging an adapter keeps and loses, against peft's own merges in bfloat16."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import torch

from tests.checkpoints.adapters import by_peft
from threegates.checkpoints.adapters.adapted import adapted
from threegates.checkpoints.tensors import Checkpoint
from threegates.checkpoints.views import canonical
from threegates.measures.by_tensor import typed
from threegates.measures.merging import ADAPTER_COLUMNS, ONCE, SAFE, WAYS, adapter_rows

ALL = {"target_modules": "all-linear"}


def table(saved) -> pd.DataFrame:
    """The table of an adapter's matrices."""
    view = adapted(saved.opened, saved.adapter)[1]
    rows = [row for name in view.infos for row in adapter_rows(view, name, "pair")]
    return typed(rows, ADAPTER_COLUMNS).set_index("tensor")


def in_bf16(kind: str, **sizes):
    """A model as people keep it."""
    return by_peft.model(kind, **sizes).bfloat16()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("llama", {"r": 2, **ALL}),
        ("phi3", {"r": 2, "use_rslora": True, **ALL}),
        ("llama", {"r": 2, "init_lora_weights": "pissa", **ALL}),
    ],
)
def test_changed_weights_are_those_of_pefts_merge(tmp_path, kind, settings, way):
    """A few ties of float64 against float32 sums apart."""
    saved = by_peft.saved(
        tmp_path, in_bf16(kind), trained=0.002, safe=way == SAFE, dtype=torch.bfloat16, **settings
    )
    found = table(saved)
    # Factors stay in float32 until peft is asked to merge in bf16: what it casts is cast for ours too.
    merged, base = canonical(Checkpoint.open(saved.merged)), saved.opened
    for name, row in found.iterrows():
        theirs = int((merged.stored(name) != base.stored(name)).count_nonzero())
        assert row[f"merged_{way}_changed"] == pytest.approx(theirs, abs=max(4, 0.04 * row["size"]))


@pytest.mark.parametrize("way", WAYS)
def test_kept_and_lost_are_what_they_say(tmp_path, way):
    saved = by_peft.saved(tmp_path, in_bf16("llama"), trained=0.01, r=2, **ALL)
    view, found = adapted(saved.opened, saved.adapter)[1], table(saved)
    for name, row in found.iterrows():
        weight, made = saved.opened.stored(name), view.made(name)
        delta = made.update.dense()
        added = weight.float() + delta.float() if way == ONCE else weight + delta.bfloat16()
        moved = added.bfloat16().double() - weight.double()
        assert row["norm_delta"] == pytest.approx(float(delta.norm()), rel=1e-12)
        assert row["norm_base"] == pytest.approx(float(weight.double().norm()), rel=1e-12)
        assert row["along_base"] == pytest.approx(
            float((weight.double() * delta).sum() / delta.square().sum()), rel=1e-9, abs=1e-12
        )
        assert row[f"merged_{way}_kept"] == pytest.approx(
            float((moved * delta).sum() / delta.square().sum()), rel=1e-9
        )
        assert row[f"merged_{way}_lost"] == pytest.approx(
            float((moved - delta).norm() / delta.norm()), rel=1e-9
        )
        dense = torch.linalg.svdvals(delta)
        assert row["rank"] == row["rank_at_most"] == 2
        assert torch.allclose(
            torch.tensor(row["singular_values"], dtype=torch.float64), dense[:2], rtol=1e-10, atol=0
        )
        assert row["trained"]


def test_an_update_below_half_a_gap_is_lost_whole(tmp_path):
    saved = by_peft.saved(tmp_path, in_bf16("llama"), trained=1e-6, r=2, target_modules=["q_proj"])
    found = table(saved)
    # A weight next to zero moves by so little too.
    assert (found[[f"merged_{way}_changed" for way in WAYS]].to_numpy() <= 0.03 * 256).all()
    assert found["trained"].all()
    assert (found["merged_once_lost"] > 0.9).all()


def test_an_adapter_that_was_never_trained_says_so_and_its_merge_changes_weights_all_the_same(tmp_path):
    plain = table(by_peft.saved(tmp_path / "lora", in_bf16("llama"), trained=0.0, r=2, **ALL))
    assert not plain["trained"].any() and (plain["norm_delta"] == 0).all()
    assert (plain[[f"merged_{way}_changed" for way in WAYS]].to_numpy() == 0).all()
    assert plain["merged_once_kept"].isna().all()
    pissa = table(
        by_peft.saved(
            tmp_path / "pissa", in_bf16("llama"), trained=0.0, r=2, init_lora_weights="pissa", **ALL
        )
    )
    assert not pissa["trained"].any()
    share = pissa[f"merged_{ONCE}_changed"].sum() / pissa["size"].sum()
    assert 0.1 < share < 0.6


def test_magnitudes_make_it_full_and_their_rank_is_left_open(tmp_path):
    saved = by_peft.saved(tmp_path, in_bf16("llama"), r=2, use_dora=True, **ALL)
    found = table(saved)
    assert found["rank"].isna().all() and (found["rank_at_most"] > 2).all()
    view = adapted(saved.opened, saved.adapter)[1]
    name = found.index[0]
    delta = view.made(name).on(saved.opened.stored(name)) - saved.opened.stored(name).double()
    assert found.loc[name, "norm_delta"] == pytest.approx(float(delta.norm()), rel=1e-12)


def test_experts_of_a_stack_have_a_row_each(tmp_path):
    saved = by_peft.saved(
        tmp_path,
        by_peft.model("gpt_oss", num_local_experts=3, head_dim=4, intermediate_size=16),
        r=2,
        target_modules=["q_proj"],
        target_parameters=["mlp.experts.gate_up_proj"],
    )
    found = table(saved)
    base, tuned = adapted(saved.opened, saved.adapter)
    experts = [name for name in found.index if "layers.0.mlp.experts" in name]
    assert len(experts) == 3 and (found["rank"] == 2).all()
    for name in experts:
        delta = tuned.stored(name).double() - base.stored(name).double()
        assert math.isclose(found.loc[name, "norm_delta"], float(delta.norm()), rel_tol=1e-5)
