#!/usr/bin/env bash
# peft says that it ignored a rank_pattern of a stack of experts, and gives the stack that very rank.
#
# Seen with peft 0.21.2 and torch 2.13.0: with target_parameters, rank_pattern={"experts.down_proj": 5} is warned
# of as "did not match any targeted module and were ignored", while A and B of down_proj get rank 5, and save so.
# The check knows modules alone, the look-up of ranks knows parameters too. Who trusts the warning reads the file
# with r, and finds 15 rows for three experts where he expects 6.
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

class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(3, 24, 16))
        self.down_proj = nn.Parameter(torch.randn(3, 16, 12))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.experts = Experts()


stacks = ["experts.gate_up_proj", "experts.down_proj"]
settings = LoraConfig(r=2, target_modules=[], target_parameters=stacks, rank_pattern={"experts.down_proj": 5})
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    model = get_peft_model(Model(), settings)
ignored = [str(one.message) for one in told if "rank_pattern" in str(one.message)]
print(ignored)
rows = {name: len(value) for name, value in model.named_parameters() if "lora_A" in name}
print(rows)
if not any("ignored" in one and "experts.down_proj" in one for one in ignored):
    raise SystemExit("changed: nothing is called ignored")
if sorted(rows.values()) != [6, 15]:
    raise SystemExit("changed: the pattern gives no rank of its own")
PYTHON
