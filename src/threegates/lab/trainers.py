"""Which trainer makes which kind of run.

Trainers are named, not imported: no run's digest covers those of the other kinds, and one alone is loaded.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from threegates.lab.trainer import Producer

#: Module and class of each kind of run.
TRAINERS: Mapping[str, tuple[str, str]] = {
    "pretrain": ("threegates.lab.pretrain", "Pretrainer"),
    "rl": ("threegates.lab.rl", "PolicyTrainer"),
    "masked-rl": ("threegates.lab.masked", "MaskedPolicyTrainer"),
    "adapter-rl": ("threegates.lab.adapters.trainers", "AdapterPolicyTrainer"),
    "sft": ("threegates.lab.sft", "SupervisedTrainer"),
    "adapter-sft": ("threegates.lab.adapters.trainers", "AdapterSupervisedTrainer"),
    "rotated-base": ("threegates.lab.rotated", "RotatedBase"),
    "encoder-base": ("threegates.lab.encoder.base", "EncoderBase"),
    "encoder-rl": ("threegates.lab.encoder.rl", "EncoderPolicyTrainer"),
    "encoder-sft": ("threegates.lab.encoder.sft", "EncoderSupervisedTrainer"),
}


def trainer_of(kind: str) -> type[Producer]:
    """The trainer of a kind of run."""
    module, name = TRAINERS[kind]
    return getattr(importlib.import_module(module), name)
