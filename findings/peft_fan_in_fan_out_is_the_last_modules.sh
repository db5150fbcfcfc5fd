#!/usr/bin/env bash
# The fan_in_fan_out of an adapter's config is that of one of its modules, and says nothing of the others.
#
# Seen with peft 0.21.2, transformers 5.23.0 and torch 2.13.0: where a Conv1D, stored (in, out), and a Linear are
# adapted together, as in GPT-2 with its head, each gets its own way round while it is trained, and the file keeps
# the way of the module that came last. A square Conv1D read by the config is put on transposed: right norm, wrong
# entries, no error. The shapes of the base tell the two apart, of a square one its class alone.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0
"$folder/venv/bin/pip" install --quiet peft==0.21.2 transformers==5.23.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import json
import warnings
import peft, torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

print("peft", peft.__version__, "torch", torch.__version__)
torch.manual_seed(0)
warnings.simplefilter("ignore")



class Model(nn.Module):
    def __init__(self, first, second):
        super().__init__()
        self.first, self.second = first, second


def kept(*layers):
    """fan_in_fan_out as it is saved, and as each layer has it."""
    settings = LoraConfig(r=2, target_modules=["first", "second"], fan_in_fan_out=True)
    model = get_peft_model(Model(*layers), settings)
    model.save_pretrained("adapter")
    inside = model.base_model.model
    return json.load(open("adapter/adapter_config.json"))["fan_in_fan_out"], [
        bool(layer.fan_in_fan_out) for layer in (inside.first, inside.second)
    ]


turned, plain = Conv1D(16, 16), nn.Linear(16, 16)
for layers in ((turned, plain), (plain, turned)):
    saved, own = kept(*layers)
    print([type(layer).__name__ for layer in layers], "saved:", saved, "of each layer:", own)
    if own != [isinstance(layer, Conv1D) for layer in layers] or saved != own[-1]:
        raise SystemExit("changed: the config does not keep the last module's word")
PYTHON
