#!/usr/bin/env bash
# transformers 5.23.0 loads a Qwen3-VL mixture of transformers 4.57.6 with experts the wrong way round, and says
# nothing, where their stacks are square.
#
# Seen with transformers 4.57.6 and 5.23.0, torch 2.13.0 on Python 3.11. The older one stores experts as [experts,
# in, out], the newer one holds [experts, out, in] and transposes on loading, but only where the stored shape is not
# the expected one: `Transpose(1, 2, check_dims=True)` in conversion_mapping.py. Where hidden_size is
# moe_intermediate_size (down) or twice that (gate and up), both shapes are equal, and that stack is taken as it
# lies. The first model below has no square stack and gives the same logits in both; the others do not.
# We met it in a table of what both write: two files of one model, of which one stack was turned and one was not.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for version in 4.57.6 5.23.0; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers=="$version"
done

cat > "$folder/model.py" <<'PYTHON'
"""Logits of a tiny model that the older generation makes and both load."""
import sys
from pathlib import Path

import torch
import transformers

inner, folder = int(sys.argv[1]), Path(sys.argv[2])
text = {
    "vocab_size": 48, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "num_experts": 3,
    "num_experts_per_tok": 3, "moe_intermediate_size": inner, "decoder_sparse_step": 1, "mlp_only_layers": [],
    "rope_scaling": {"rope_type": "default", "mrope_section": [1, 1, 0]},
}
vision = {
    "depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 2, "patch_size": 4, "out_hidden_size": 16,
    "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
}
kind = transformers.Qwen3VLMoeForConditionalGeneration
if not folder.exists():
    torch.manual_seed(1)
    config = transformers.AutoConfig.for_model("qwen3_vl_moe", text_config=text, vision_config=vision)
    kind(config).save_pretrained(folder)
model = kind.from_pretrained(folder, attn_implementation="eager").eval().float()
with torch.no_grad():
    logits = model(input_ids=torch.arange(8)[None]).logits
other = folder.with_suffix(".pt")
if other.exists():
    print(float((torch.load(other) - logits).abs().max() / logits.abs().max()))
torch.save(logits, other)
PYTHON

for inner in 12 16 8; do
    "$folder/4.57.6/bin/python" "$folder/model.py" "$inner" "$folder/inner$inner" 2> /dev/null
    apart=$("$folder/5.23.0/bin/python" "$folder/model.py" "$inner" "$folder/inner$inner" 2> /dev/null)
    echo "hidden_size 16, moe_intermediate_size $inner: largest difference of logits, over the largest: $apart"
    python3 -c "import sys; a, square = float('$apart'), $inner != 12; sys.exit((a > 1e-3) != square)" \
        || { echo "changed: that is not what was seen"; exit 1; }
done
