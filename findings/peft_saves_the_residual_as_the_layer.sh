#!/usr/bin/env bash
# The base_layer.weight in the file of a PiSSA adapter is not the base's weight.
#
# Seen with peft 0.21.2, transformers 5.23.0 and torch 2.13.0: where an embedding or head is adapted, peft saves its
# whole layer beside the factors. Under a start that is not zero that copy is already the residual W - s B A of the
# start. Who puts factors less their start on it, as is right on the base itself, takes the start off twice.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0
"$folder/venv/bin/pip" install --quiet peft==0.21.2 transformers==5.23.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import peft, torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn

print("peft", peft.__version__, "torch", torch.__version__)
torch.manual_seed(0)



class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed_tokens, self.lm_head = nn.Embedding(32, 16), nn.Linear(16, 32, bias=False)

    def get_input_embeddings(self):
        return self.embed_tokens

    def get_output_embeddings(self):
        return self.lm_head


def saved(start):
    """How far the saved layer is from the base's weight, and from it less the start's product, by its norm."""
    model = Model()
    before = model.lm_head.weight.detach().clone()
    settings = LoraConfig(r=4, lora_alpha=4, target_modules=["lm_head"], init_lora_weights=start)
    get_peft_model(model, settings).save_pretrained("adapter", save_embedding_layers=True)
    found = load_file("adapter/adapter_model.safetensors")
    front = "base_model.model.lm_head."
    product = found[front + "lora_B.weight"] @ found[front + "lora_A.weight"]
    layer = found[front + "base_layer.weight"]
    return [float((layer - one).norm() / before.norm()) for one in (before, before - product)]


for start in (True, "pissa", "olora"):
    of_base, of_residual = saved(start)
    print(f"start {start}: {of_base:.3f} from the base's weight, {of_residual:.1e} from the residual")
    if of_residual > 1e-5 or (of_base > 1e-6) is (start is True):
        raise SystemExit("changed: the saved layer is another one")
PYTHON
