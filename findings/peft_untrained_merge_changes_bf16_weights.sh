#!/usr/bin/env bash
# Merging an adapter that was never trained changes a quarter to a third of a bfloat16 model's weights, if it
# started as PiSSA, and an eighth or more as OLoRA; of a LoRA that started from zero it changes none.
#
# Seen with peft 0.21.2 and torch 2.13.0 on a 256 × 256 matrix at rank 16: the start is taken out of the stored
# weight, which is rounded to bfloat16, and merging adds it back and rounds again. With safe_merge, or factors in
# bfloat16, more weights change. Sparsity against the base is then that of rounding, not of training.
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

import copy


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(256, 256, bias=False)


base = Model().bfloat16()
before = base.linear.weight.detach().clone()
changed = {}
for start in (True, "pissa", "olora"):
    settings = LoraConfig(r=16, target_modules=["linear"], init_lora_weights=start)
    adapted = get_peft_model(copy.deepcopy(base), settings)
    for safe in (False, True):
        merged = copy.deepcopy(adapted).merge_and_unload(safe_merge=safe)
        share = float((merged.linear.weight != before).float().mean())
        changed[start, safe] = share
        print(f"start {start}, safe_merge {safe}: {share:.3f} of the weights changed")
if any(changed[True, safe] for safe in (False, True)):
    raise SystemExit("changed: a start from zero changes weights")
if not 0.2 < changed["pissa", False] < changed["pissa", True] < 0.5:
    raise SystemExit("changed: PiSSA's start changes another share")
if not 0.08 < changed["olora", False] < changed["olora", True] < 0.3:
    raise SystemExit("changed: OLoRA's start changes another share")
PYTHON
