"""Estimates of what adapters of different starts learn, and when they collapse."""

from __future__ import annotations

from threegates.study.estimates.rows import Estimator

ESTIMATES: dict[str, Estimator] = {}
