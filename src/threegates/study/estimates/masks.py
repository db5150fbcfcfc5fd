"""Estimates of what training under fixed masks learns."""

from __future__ import annotations

from threegates.study.estimates.rows import Estimator

ESTIMATES: dict[str, Estimator] = {}
