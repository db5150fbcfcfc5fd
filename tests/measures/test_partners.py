"""Norms of a partner's update."""

from __future__ import annotations

import pytest
import torch

from tests.planted import planted
from threegates.checkpoints.tensors import Checkpoint
from threegates.measures.partners import Partner

Q = "model.layers.0.self_attn.q_proj.weight"


def test_a_partner_gives_the_norm_of_its_stored_update_where_it_has_the_tensor(tmp_path):
    base = planted.base_tensors()
    tuned = planted.with_noise(base, 1e-4, 1)
    tuned["lm_head.weight"] = torch.zeros(14, 32)
    sides = [Checkpoint.open(planted.write(tmp_path / n, t)) for n, t in (("base", base), ("tuned", tuned))]
    partner = Partner(*sides)
    wanted = float((tuned[Q].double() - base[Q].double()).norm())
    assert partner.norm(Q) == pytest.approx(wanted, rel=1e-12) and wanted > 0
    assert partner.norm("lm_head.weight") is None and partner.norm("elsewhere.weight") is None
    assert Partner(sides[0], None).norm(Q) is None
