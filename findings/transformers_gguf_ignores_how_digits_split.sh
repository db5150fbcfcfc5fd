#!/usr/bin/env bash
# transformers 5.23.0 reads a tokenizer from a GGUF file without its pre-tokenizer: `tokenizer.ggml.pre` may say
# what it likes, digits are merged all the same.
#
# Seen with transformers 5.23.0, gguf 0.19.0, torch 2.13.0, accelerate 1.15.0 on Python 3.11. Files of one
# vocabulary, of which one says "smollm" (every digit a token), one "gpt-2" (digits in a row stay together) and one
# says nothing, all give the same tokens. So a model that never saw "12" as one token is given it, and nothing is
# said. Of GGUF files take the tokenizer from the model's own repository, or add the pre-tokenizer by hand.
# We met it when prompts with numbers had other tokens than the model was trained on.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 transformers==5.23.0 gguf==0.19.0 accelerate==1.15.0

cat > "$folder/digits.py" <<'PYTHON'
"""Tokens of "a 12" by a file's pre-tokenizer, the vocabulary and merges being the same."""
import sys
from pathlib import Path

import gguf
import numpy as np
from transformers import AutoTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

folder = Path(sys.argv[1])
tokens = [*bytes_to_unicode().values(), "12", "<end>"]
found = {}
for pre in ("smollm", "gpt-2", None):
    (folder / str(pre)).mkdir()
    writer = gguf.GGUFWriter(folder / str(pre) / "model.gguf", "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(8)
    writer.add_block_count(1)
    writer.add_feed_forward_length(8)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    if pre:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([1] * (len(tokens) - 1) + [3])
    writer.add_token_merges(["1 2"])
    writer.add_bos_token_id(len(tokens) - 1)
    writer.add_eos_token_id(len(tokens) - 1)
    writer.add_tensor("token_embd.weight", np.zeros((len(tokens), 8), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tokenizer = AutoTokenizer.from_pretrained(folder / str(pre), gguf_file="model.gguf")
    found[pre] = tokenizer.tokenize("a 12")
    print(f"tokenizer.ggml.pre {pre}: {found[pre]}")
sys.exit(not all("12" in one for one in found.values()))
PYTHON

"$folder/env/bin/python" "$folder/digits.py" "$folder" 2> /dev/null \
    || { echo "changed: that is not what was seen"; exit 1; }
