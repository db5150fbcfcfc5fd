"""What is measured of tensors on a GPU, a pretended one, is what is measured on the processor."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.pretend_gpu import OnGpu, PretendGpu, on_gpu
from threegates.checkpoints.tensors import SINGLE, Checkpoint
from threegates.checkpoints.views import View
from threegates.geometry import masks
from threegates.jobs.nulls import founding_nulls
from threegates.measures.agreement import measure_agreement
from threegates.measures.by_tensor import Shared
from threegates.measures.changes import PairTensors, write_masks
from threegates.measures.drift import PairDrift
from threegates.measures.emergence import Snapshot, measure_emergence
from threegates.measures.lens import Kept, measure_lens
from threegates.measures.overlap import PairOverlap
from threegates.measures.tensor_table import PairTable

SHAPES = {
    "model.embed_tokens.weight": (40, 32),
    "model.layers.0.self_attn.q_proj.weight": (32, 32),
    "model.layers.0.self_attn.o_proj.weight": (48, 40),
    # Large enough for the certified engine.
    "model.layers.1.mlp.down_proj.weight": (300, 260),
    "model.norm.weight": (32,),
}


@dataclass(frozen=True)
class Pretended(View):
    """A checkpoint on the pretended GPU."""

    def stored(self, name: str) -> Tensor:
        return on_gpu(super().stored(name))


def there(checkpoint: Checkpoint | None) -> Checkpoint | None:
    if checkpoint is None:
        return None
    return Pretended(checkpoint.folder, checkpoint.config, checkpoint.infos, inner=checkpoint)


@pytest.fixture(scope="module")
def trio(tmp_path_factory) -> list[Checkpoint]:
    """A base, a run, and the partner whose norm the run is scaled to."""
    generator = torch.Generator().manual_seed(3)

    def drawn(scale: float) -> dict[str, Tensor]:
        return {name: scale * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}

    base, opened = drawn(0.02), []
    for name, scale in (("base", 0.0), ("tuned", 1e-4), ("partner", 2e-4)):
        folder, moved = tmp_path_factory.mktemp(name), drawn(scale)
        save_file({key: (base[key] + moved[key]).bfloat16() for key in SHAPES}, folder / SINGLE)
        (folder / "config.json").write_text(json.dumps({"tie_word_embeddings": False}))
        opened.append(Checkpoint.open(folder))
    return opened


NULLS = founding_nulls()
KINDS = {
    "measure": lambda base, tuned, partner: PairTensors(base, tuned, "run"),
    "drift": lambda base, tuned, partner: PairDrift(base, tuned, "run", partner, "partner"),
    "overlap": lambda base, tuned, partner: PairOverlap(base, tuned, "run", partner, "partner", nulls=NULLS),
    "table": lambda base, tuned, partner: PairTable(base, tuned, "run", axes=True, nulls=NULLS),
}


def equal(a: object, b: object) -> bool:
    """Equal, numbers up to what another order of operations does to them."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-6) or (math.isnan(a) and math.isnan(b))
    return (pd.isna(a) and pd.isna(b)) if a is pd.NA or b is pd.NA else bool(np.all(a == b))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_on_a_pretended_gpu_are_those_of_the_processor(trio, kind):
    here, far = KINDS[kind](*trio), KINDS[kind](*map(there, trio))
    assert far.names
    for name in far.names:
        expected = here.rows(name, Shared())
        with PretendGpu():
            found = far.rows(name, Shared())
        json.dumps(found)  # as the parts are written: no tensor is left in a row
        assert found.keys() == expected.keys()
        for table, rows in expected.items():
            assert len(rows) == len(found[table])
            for one, other in zip(rows, found[table], strict=True):
                wrong = {
                    key: (one[key], other.get(key)) for key in one if not equal(one[key], other.get(key))
                }
                assert not wrong, (name, table)


RUNS = {
    "agreement": lambda base, a, b: measure_agreement(base, {"a": a, "b": b}, of_layer=0, nulls=NULLS),
    "emergence": lambda base, a, b: measure_emergence(
        base, [Snapshot(1, 1, a), Snapshot(2, 2, b)], run="run"
    ),
    "lens": lambda base, a, b: measure_lens(base, [Kept("a", 1, a), Kept("b", 2, b)], run="run", rate=1e-6),
}


@pytest.mark.parametrize("kind", RUNS)
def test_tables_of_runs_on_a_pretended_gpu_are_those_of_the_processor(trio, kind):
    here = RUNS[kind](*trio)
    with PretendGpu():
        far = RUNS[kind](*map(there, trio))
    assert far.keys() == here.keys()
    for table in here:
        rows, others = (found[table].to_dict("records") for found in (here, far))
        assert len(rows) == len(others)
        assert all(
            equal(one[key], other[key]) for one, other in zip(rows, others, strict=True) for key in one
        )


def test_masks_written_from_a_pretended_gpu_are_those_of_the_processor(trio, tmp_path):
    write_masks(trio[0], trio[1], tmp_path / "here.safetensors")
    with PretendGpu():
        write_masks(there(trio[0]), there(trio[1]), tmp_path / "far.safetensors")
    one, other = (load_file(tmp_path / f"{name}.safetensors") for name in ("here", "far"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


# That the pretended GPU refuses what a real one does


def test_tensors_of_two_devices_are_refused():
    with PretendGpu():
        far = on_gpu(torch.ones(3))
        for mixed in (
            lambda: far + torch.ones(3),
            lambda: torch.ones(3) * far,
            lambda: torch.where(torch.ones(3) > 0, far, far),
            lambda: torch.cat([far, torch.ones(3)]),
            lambda: torch.ones(3)[far.long()],
            lambda: torch.ones(3).add_(far),
            lambda: torch.arange(3) @ far.long(),
        ):
            with pytest.raises(RuntimeError, match="same device"):
                mixed()
        for plain in (far + torch.tensor(1.0), far * 2, far[torch.tensor([0])], far + torch.ones(3).to(far)):
            assert isinstance(plain, OnGpu)


def test_numpy_of_a_tensor_on_the_gpu_is_refused():
    with PretendGpu():
        far = on_gpu(torch.ones(3))
        with pytest.raises(TypeError, match="numpy"):
            far.numpy()
        assert far.cpu().numpy().tolist() == far.tolist() == [1.0, 1.0, 1.0]
        assert not isinstance(far.cpu(), OnGpu)


def test_tensors_made_for_the_device_are_there():
    with PretendGpu():
        far = on_gpu(torch.ones(3))
        assert far.device.type == torch.zeros(2, device=far.device).device.type == "cuda"
        assert far.is_cuda
        assert isinstance(torch.zeros(2, device=far.device), OnGpu)
        assert isinstance(torch.ones(2).to("cuda"), OnGpu)
        assert torch.zeros(2).device.type == far.to("cpu").device.type == "cpu"
        assert isinstance(far.sort().values, OnGpu)
        assert isinstance(torch.linalg.qr(far[:, None]).Q, OnGpu)


def test_the_pretended_gpu_takes_the_way_of_a_gpu_through_the_counts(monkeypatch):
    monkeypatch.setattr(masks, "_count_in_numpy", None)
    a, b = torch.ones(4, 4).bfloat16(), torch.eye(4).bfloat16()
    with PretendGpu():
        assert masks.count_changes(on_gpu(a), on_gpu(b)).changed == 12
