#!/usr/bin/env bash
# transformers 5.23.0 does not find one weight of a Gemma 3n text model that transformers 4.57.6 saved, and draws it.
#
# Seen with transformers 4.57.6 and 5.23.0, torch 2.13.0 on Python 3.11. On saving Gemma3nForCausalLM the older one
# puts `language_model.` in front of what stands behind `model` anywhere in a name, so that
# `per_layer_model_projection` becomes `per_layer_model.language_model_projection`. It reads that back; the newer one
# reports the one name as unexpected and the other as missing, and goes on with random numbers in its place.
# We met it where a table of what both write has one tensor that neither side has in common.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for version in 4.57.6 5.23.0; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers=="$version"
done

cat > "$folder/model.py" <<'PYTHON'
"""The weight in question after loading, as a sum; the older generation makes the model."""
import sys
from pathlib import Path

import torch
import transformers

folder = Path(sys.argv[1])
kind = transformers.Gemma3nForCausalLM
if not folder.exists():
    config = transformers.AutoConfig.for_model(
        "gemma3n_text", vocab_size=48, vocab_size_per_layer_input=40, hidden_size=16, intermediate_size=[24] * 2,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=4,
        hidden_size_per_layer_input=4, laurel_rank=3, num_kv_shared_layers=0, altup_num_inputs=2,
        layer_types=["full_attention"] * 2, activation_sparsity_pattern=[0.0] * 2, pad_token_id=0,
    )
    model = kind(config)
    with torch.no_grad():
        model.model.per_layer_model_projection.weight.fill_(1.0)
    model.save_pretrained(folder)
print(float(kind.from_pretrained(folder).model.per_layer_model_projection.weight.detach().mean()))
PYTHON

older=$("$folder/4.57.6/bin/python" "$folder/model.py" "$folder/saved" 2> /dev/null)
newer=$("$folder/5.23.0/bin/python" "$folder/model.py" "$folder/saved" 2> /dev/null)
echo "mean of a weight that was saved as ones: $older in 4.57.6, $newer in 5.23.0"
python3 -c "import sys; sys.exit($older != 1.0 or abs($newer - 1.0) < 0.1)" \
    || { echo "changed: that is not what was seen"; exit 1; }
