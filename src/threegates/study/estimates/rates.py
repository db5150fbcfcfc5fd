"""Estimates of what learning rate and optimiser do to sparsity."""

from __future__ import annotations

from threegates.study.estimates.rows import Estimator

ESTIMATES: dict[str, Estimator] = {}
