#!/usr/bin/env bash
# peft warns that an adapter's shards were not gathered (DeepSpeed, FSDP) whenever lora_bias is on.
#
# Seen with peft 0.21.2 and torch 2.13.0, on one process without either: the check that every tensor with lora_A
# or lora_B in its name has two axes meets lora_B.bias, which has one by nature. The file is whole.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0
"$folder/venv/bin/pip" install --quiet peft==0.21.2 transformers==5.23.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import warnings
import peft, torch
from peft import LoraConfig, get_peft_model
from torch import nn

print("peft", peft.__version__, "torch", torch.__version__)
torch.manual_seed(0)

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)


def warned(**settings):
    model = get_peft_model(Model(), LoraConfig(r=2, target_modules=["linear"], **settings))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model.save_pretrained("adapter")
    return [str(one.message) for one in told if "invalid shape" in str(one.message)]


print("without biases:", warned())
found = warned(lora_bias=True)
print("with lora_bias:", found)
if warned() or not any("lora_B.bias" in one and "gathered" in one for one in found):
    raise SystemExit("changed: a bias is not called ungathered")
PYTHON
