"""Adapters on disk: peft loads them onto the original base, under whatever generator state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load
from transformers import LlamaForCausalLM

from tests.lab.tiny import TINY, random_weights
from threegates.checkpoints.writer import write_checkpoint
from threegates.lab.adapters.factors import starts
from threegates.lab.adapters.files import FOLDER, adapter_files
from threegates.lab.adapters.weights import AdapterWeights
from threegates.lab.recipe import Init
from threegates.lab.task import BOS_ID, EOS_ID, PAD_ID

INITS = get_args(Init)
RANK, ALPHA = 3, 6.0


def trained(init: Init, size: float = 0.05) -> AdapterWeights:
    """Adapters that have moved away from their start by noise."""
    base = {name: tensor.bfloat16().float() for name, tensor in random_weights(TINY, seed=4).items()}
    found = AdapterWeights(base, starts(base, init, RANK, ALPHA, torch.Generator().manual_seed(5)))
    with torch.no_grad():
        found.master += size * torch.randn(found.master.shape, generator=torch.Generator().manual_seed(6))
    found.refresh()
    return found


def checkpoint(folder: Path, weights: AdapterWeights, merged: bool) -> Path:
    """A float32 checkpoint of the base, or of the base with its adapters merged, and their files."""
    config = TINY.config(pad=PAD_ID, bos=BOS_ID, eos=EOS_ID, stored_dtype="float32")
    tensors = weights.saved("float32") if merged else weights.base
    files = adapter_files(weights.factors(), weights.starts) if merged else {}
    write_checkpoint(folder, tensors, config, files, 10**9)
    return folder


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    tokens = torch.arange(1, 25).view(2, 12)
    return model.eval()(tokens).logits


@pytest.mark.parametrize("init", INITS)
def test_peft_on_the_base_gives_the_logits_of_the_merged_checkpoint(tmp_path, init):
    weights = trained(init)
    base = checkpoint(tmp_path / "base", weights, merged=False)
    merged = checkpoint(tmp_path / "merged", weights, merged=True)
    expected = logits(LlamaForCausalLM.from_pretrained(merged, dtype=torch.float32))
    before = logits(LlamaForCausalLM.from_pretrained(base, dtype=torch.float32))
    assert (expected - before).abs().max() > 0.01
    for state in (0, 12345):
        torch.manual_seed(state)
        model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
        found = logits(PeftModel.from_pretrained(model, merged / FOLDER))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("init", INITS)
def test_an_untrained_adapter_changes_nothing_when_it_is_loaded(tmp_path, init):
    weights = trained(init, size=0.0)
    base = checkpoint(tmp_path / "base", weights, merged=False)
    merged = checkpoint(tmp_path / "merged", weights, merged=True)
    expected = logits(LlamaForCausalLM.from_pretrained(base, dtype=torch.float32))
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    found = logits(PeftModel.from_pretrained(model, merged / FOLDER))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("init", INITS)
def test_files_hold_a_plain_lora_of_delta_alone(init):
    weights = trained(init)
    files = adapter_files(weights.factors(), weights.starts)
    assert set(files) == {f"{FOLDER}/adapter_config.json", f"{FOLDER}/adapter_model.safetensors"}
    config = json.loads(files[f"{FOLDER}/adapter_config.json"])
    zero = init in ("lora", "orthonormal")
    assert config["r"] == (RANK if zero else 2 * RANK)
    assert config["lora_alpha"] / config["r"] == pytest.approx(ALPHA / RANK)
    assert config["init_lora_weights"] is True and config["inference_mode"] is True
    tensors = load(files[f"{FOLDER}/adapter_model.safetensors"])
    assert len(tensors) == 2 * len(weights.starts)
    for name, change in weights.deltas().items():
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        down, up = (tensors[f"{stem}.{side}.weight"].double() for side in ("lora_A", "lora_B"))
        torch.testing.assert_close(ALPHA / RANK * up @ down, change, atol=1e-7, rtol=0)


def test_the_same_adapter_gives_the_same_bytes():
    first, second = (
        adapter_files(weights.factors(), weights.starts) for weights in (trained("pissa"), trained("pissa"))
    )
    assert first == second
