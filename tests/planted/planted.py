"""Checkpoints with a planted truth: tiny models in Hub format, and runs whose update is known."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from threegates.atomic import write_json
from threegates.checkpoints.manifests.manifest import Entry, Folder, Manifest, read_manifest, write_manifest

#: Of runs that are laid out as the lab does it.
DIGEST, STEP = "0123456789ab", 2
ROOT = Path(__file__).resolve().parents[2]
CONFIG = {"model_type": "llama", "tie_word_embeddings": False, "num_hidden_layers": 1}


def base_tensors(seed: int = 1, width: int = 32, layers: int = 1) -> dict[str, Tensor]:
    """bf16 weights of a small Llama: per block q, k, v, o, gate, up, down and two norms."""
    generator = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int) -> Tensor:
        return (torch.randn(rows, columns, generator=generator) / columns**0.5).to(torch.bfloat16)

    tensors = {"model.embed_tokens.weight": matrix(12, width), "lm_head.weight": matrix(12, width)}
    for number in range(layers):
        block = f"model.layers.{number}"
        for name in ("q", "k", "v", "o"):
            tensors[f"{block}.self_attn.{name}_proj.weight"] = matrix(width, width)
        tensors[f"{block}.mlp.gate_proj.weight"] = matrix(2 * width, width)
        tensors[f"{block}.mlp.up_proj.weight"] = matrix(2 * width, width)
        tensors[f"{block}.mlp.down_proj.weight"] = matrix(width, 2 * width)
        tensors[f"{block}.input_layernorm.weight"] = torch.ones(width, dtype=torch.bfloat16)
    return tensors


def write(folder: Path, tensors: dict[str, Tensor], config: dict | None = None) -> Path:
    """One folder in Hub format."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or CONFIG))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


def with_noise(
    base: dict[str, Tensor], scale: float, seed: int, store: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """A run without any geometry: Gaussian noise of one scale on every weight."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return {
        n: (w.float() + scale * torch.randn(w.shape, generator=generator)).to(store) for n, w in base.items()
    }


def with_stripes(
    base: dict[str, Tensor], scale: float, seed: int, factor: float = 6.0, store: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """A run whose updates are larger in the same third of the rows (columns for o), whatever its seed."""
    tuned = {}
    for name, weight in base.items():
        noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed * 7919 + len(name)))
        if weight.dim() == 2:
            along = 1 if "o_proj" in name else 0
            noise.index_fill_(along, torch.arange(0), 0.0)
            lines = noise.movedim(along, 0)
            lines[::3] *= factor
        tuned[name] = (weight.float() + scale * noise).to(store)
    return tuned


def with_flips(
    base: dict[str, Tensor], flips: dict[str, int], seed: int = 5
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Exactly `flips[name]` entries moved to the next bf16 code away from zero; the masks are the truth."""
    generator = torch.Generator().manual_seed(seed)
    tuned, masks = {}, {}
    for name, weight in base.items():
        chosen = torch.randperm(weight.numel(), generator=generator)[: flips.get(name, 0)]
        mask = torch.zeros(weight.numel(), dtype=torch.bool)
        mask[chosen] = True
        masks[name] = mask.reshape(weight.shape)
        codes = weight.clone().view(torch.int16) + masks[name].to(torch.int16)
        tuned[name] = codes.view(torch.bfloat16)
    return tuned, masks


def entry(name: str, method: str, chapters: list[str], **facts: object) -> Entry:
    """A manifest entry of a run in the folder of that name, from the entry `base`."""
    defaults = {
        "base": "base",
        "seed": 1,
        "labels": {"rate": "mask"},
        "learning_rate": 1e-5,
        "data": "planted",
    }
    return Entry(
        name=name, source=Folder(path=name), method=method, chapters=chapters, **{**defaults, **facts}
    )


def write_study(
    folder: Path, base: dict[str, Tensor], runs: dict[str, tuple[dict[str, Tensor], Entry]]
) -> Path:
    """Checkpoints and their manifest; gives the manifest's path."""
    write(folder / "base", base)
    for name, (tensors, _) in runs.items():
        write(folder / name, tensors)
    entries = [
        Entry(name="base", source=Folder(path="base"), method="pretrain"),
        *(e for _, e in runs.values()),
    ]
    path = folder / "manifest.yaml"
    write_manifest(path, Manifest(version=1, profile="planted", checkpoints=entries))
    return path


def lay_out_runs(lab: Path, runs: dict[str, tuple[dict[str, Tensor], Entry]], **labels: str) -> list[Path]:
    """Runs and their base as the lab lays them out, of profile `full`; gives their folders, the base's first.

    labels : that every entry gets beside its own.
    """
    written = read_manifest(write_study(lab, base_tensors(), runs))
    entries, folders = [], []
    for order, one in enumerate(written.checkpoints):
        folder, step = lab / "runs" / f"{one.name}-{DIGEST}", f"step-{STEP:06d}"
        folder.mkdir(parents=True)
        shutil.move(lab / one.name, folder / step)
        write_json(folder / "run.json", {"name": one.name})
        write_json(folder / "when.json", {"seconds": order})
        place = Folder(path=f"runs/{folder.name}/{step}")
        entries.append(one.model_copy(update={"source": place, "labels": {**one.labels, **labels}}))
        folders.append(folder)
    changed = written.model_copy(update={"profile": "full", "checkpoints": entries})
    write_manifest(lab / "manifest.yaml", changed)
    return folders


def make_project(root: Path) -> dict[str, str]:
    """A project folder with the claims and no notebooks yet; gives the environment that points to it."""
    (root / "notebooks").mkdir(parents=True)
    shutil.copy(ROOT / "claims.yaml", root / "claims.yaml")
    return {"THREEGATES_ROOT": str(root), "THREEGATES_BUILD": str(root / "build")}
