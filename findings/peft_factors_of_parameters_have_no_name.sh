#!/usr/bin/env bash
# The file of an adapter does not say which parameter of a module its factors belong to.
#
# Seen with peft 0.21.2 and torch 2.13.0: with two target_parameters in one module (a stack of gate and up, and one
# of down) the keys are experts.lora_A and experts.base_layer.lora_A. The inner one belongs to the parameter that
# the module defines first, in whichever order the config names them; with equal shapes nothing tells them apart.
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

from safetensors.torch import load_file


class Experts(nn.Module):
    def __init__(self, first, second):
        super().__init__()
        for name in (first, second):
            rows = 24 if name == "up" else 16
            setattr(self, name, nn.Parameter(torch.randn(3, rows, 40 - rows)))


class Model(nn.Module):
    def __init__(self, *order):
        super().__init__()
        self.experts = Experts(*order)


def inner(defined, named):
    """Rows of the inner B: 24 of up, 16 of down."""
    stacks = [f"experts.{name}" for name in named]
    model = get_peft_model(Model(*defined), LoraConfig(r=2, target_modules=[], target_parameters=stacks))
    model.save_pretrained("adapter")
    found = load_file("adapter/adapter_model.safetensors")
    assert all("up" not in key and "down" not in key for key in found), "changed: keys name the parameter"
    return len(found["base_model.model.experts.base_layer.lora_B.weight"])


for defined in (("up", "down"), ("down", "up")):
    rows = {named: inner(defined, named) for named in (("up", "down"), ("down", "up"))}
    print(f"defined as {defined}: rows of the inner B by the order in the config: {rows}")
    if set(rows.values()) != {24 if defined[0] == "up" else 16}:
        raise SystemExit("changed: the inner factors are not those of the parameter that is defined first")
PYTHON
