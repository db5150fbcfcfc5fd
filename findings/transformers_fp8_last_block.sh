#!/usr/bin/env bash
# transformers dequantises block-FP8 with another block size than the config's wherever a weight's last block is
# not full: the weights that it loads are wrong, and nothing says so.
#
# Seen with transformers 5.23.0, torch 2.13.0 and safetensors 0.8.0 on Python 3.11. A matrix of 192 rows with blocks of
# 128 × 128 has two rows of scales, for rows 0 to 127 and 128 to 191, as DeepSeek's own kernels and vLLM have it.
# FineGrainedFP8Config(dequantize=True) takes 192 / 2 = 96 rows a block in place of weight_block_size, so that rows 96 to
# 127 get the scale of the other block. Where the division leaves a rest (576 rows, 5 rows of scales: kv_a_proj_with_mqa
# of DeepSeek-V3) it ends with an error, "Weight shape … not divisible by scale grid …".
# We met it as an oracle for a reader of such checkpoints: with full blocks the two agree to the bit.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0 safetensors==0.8.0 accelerate==1.15.0
FOLDER=$folder "$folder/venv/bin/python" - <<'PYTHON'
import json
import os
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, FineGrainedFP8Config
from transformers.utils import logging

logging.set_verbosity(100)
logging.disable_progress_bar()
BLOCK, NAME = 128, "model.layers.0.mlp.up_proj.weight"


def loaded_and_right(inner):
    """A matrix of a tiny Llama of that many rows: as transformers reads it, and codes times the scales of their blocks."""
    config = AutoConfig.for_model(
        "llama", vocab_size=32, hidden_size=256, intermediate_size=inner, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=4, tie_word_embeddings=False, dtype="bfloat16",
    )
    torch.manual_seed(0)
    tensors, right = {}, None
    for name, weight in AutoModelForCausalLM.from_config(config).state_dict().items():
        if "_proj." not in name:
            tensors[name] = weight.bfloat16()
            continue
        rows, columns = weight.shape
        # Rows differ in size, so that blocks do.
        weight = weight * torch.linspace(1, 4, rows)[:, None]
        scales = torch.empty(-(-rows // BLOCK), -(-columns // BLOCK))
        for i in range(scales.shape[0]):
            for j in range(scales.shape[1]):
                part = weight[i * BLOCK : (i + 1) * BLOCK, j * BLOCK : (j + 1) * BLOCK]
                scales[i, j] = part.abs().max() / 448
        wide = scales.repeat_interleave(BLOCK, 0)[:rows].repeat_interleave(BLOCK, 1)[:, :columns]
        tensors[name] = (weight / wide).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = scales
        right = tensors[name].float() * wide if name == NAME else right
    folder = Path(os.environ["FOLDER"]) / f"model-{inner}"
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    told = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [BLOCK, BLOCK]}
    told = json.loads(config.to_json_string(use_diff=False)) | {"quantization_config": told}
    (folder / "config.json").write_text(json.dumps(told | {"architectures": ["LlamaForCausalLM"]}))
    asked = FineGrainedFP8Config(dequantize=True, weight_block_size=(BLOCK, BLOCK))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=asked)
    return model.state_dict()[NAME].float(), right


def error(loaded, right):
    return float((loaded - right).norm() / right.norm())


full = error(*loaded_and_right(256))
print(f"256 rows, full blocks: relative error {full:.3g}")
assert full < 1e-6, "full blocks are read otherwise than seen"
loaded, right = loaded_and_right(192)
print(f"192 rows, the last block not full: relative error {error(loaded, right):.3g}")
assert error(loaded, right) > 0.01, "as expected by now: the last block has its own scale"
wrong = ((loaded - right).abs().amax(1) > 0).nonzero().flatten()
print(f"wrong rows: {int(wrong[0])} to {int(wrong[-1])}")
assert (int(wrong[0]), int(wrong[-1])) == (96, 127)
try:
    loaded_and_right(576)
except RuntimeError as refused:
    print("576 rows:", str(refused).splitlines()[0])
else:
    raise SystemExit("576 rows are read by now")
PYTHON
