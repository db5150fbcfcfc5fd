"""Estimates of what a rotation of heads does to the overlap of masks."""

from __future__ import annotations

from threegates.study.estimates.rows import Estimator

ESTIMATES: dict[str, Estimator] = {}
