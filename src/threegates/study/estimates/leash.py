"""Estimates of how far policies move in KL, and of the bounds on one step."""

from __future__ import annotations

from threegates.study.estimates.rows import Estimator

ESTIMATES: dict[str, Estimator] = {}
