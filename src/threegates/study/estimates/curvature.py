"""Estimates of how steep the loss is along updates."""

from __future__ import annotations

from threegates.study.estimates.rows import Estimator

ESTIMATES: dict[str, Estimator] = {}
