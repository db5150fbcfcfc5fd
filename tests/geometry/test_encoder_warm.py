"""On a real trained spectrum, moved by reinforcement learning, the warm start and its bounds hold up.

The encoder of the installed package, after a short run of GRPO; every matrix of its blocks.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor

from threegates.checkpoints.writer import write_checkpoint
from threegates.geometry.angles import SubspaceAngles, subspace_angles
from threegates.geometry.decomposition import decompose, update
from threegates.geometry.principal import headline_rank
from threegates.lab.encoder.base import EncoderBase
from threegates.lab.encoder.rl import EncoderPolicyTrainer
from threegates.lab.plan import ENCODER_RATES
from threegates.lab.recipe import EncoderBaseRecipe, EncoderRLRecipe

STEPS = 5
# Below those of the study.
SEED = 11


@pytest.fixture(scope="module")
def matrices(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tensor, Tensor]]:
    """Base and tuned weight of every matrix of the blocks, in float32, by name."""
    folder: Path = tmp_path_factory.mktemp("encoder") / "base"
    base = EncoderBase.start(EncoderBaseRecipe(name="base"), None).contents()
    write_checkpoint(folder, base.tensors, base.config, base.files, base.shard_bytes)
    recipe = EncoderRLRecipe(
        name="warm", base="base", data="words", seed=SEED, steps=STEPS, learning_rate=ENCODER_RATES["mask"]
    )
    trainer = EncoderPolicyTrainer.start(recipe, folder)
    for index in range(1, STEPS + 1):
        trainer.step(index)
    tuned, start = trainer.weights.saved("float32"), trainer.encoder.trained()
    return {name: (start[name], tuned[name]) for name in tuned if tuned[name].dim() == 2}


@pytest.fixture(scope="module", params=["certified", "fast"])
def found(request: pytest.FixtureRequest, matrices) -> list[tuple[str, SubspaceAngles]]:
    """Path and angles of every matrix at its headline rank."""
    results = []
    for before, after in matrices.values():
        base = decompose(before, headline_rank(before.shape), request.param)
        tuned = update(base, after, request.param)
        results.append((tuned.path, subspace_angles(base.leading, tuned)))
    return results


def test_the_run_moved_every_matrix_of_all_six_blocks(matrices):
    assert len(matrices) == 36
    for name, (before, after) in matrices.items():
        moved = float((after - before).norm() / before.norm())
        assert 1e-5 < moved < 1e-2, name


def test_nine_in_ten_matrices_take_the_warm_path(found):
    paths = Counter(path for path, _ in found)
    assert paths["warm"] >= 0.9 * len(found), paths


def test_at_most_one_angle_in_twenty_is_unresolved(found):
    unresolved = torch.cat([side.unresolved for _, angles in found for side in (angles.left, angles.right)])
    # k = 48 directions on either side of every matrix.
    assert len(unresolved) == 2 * 48 * len(found)
    assert float(unresolved.double().mean()) <= 0.05
    assert max(side.maximum for _, angles in found for side in (angles.left, angles.right)) > 1e-4
