"""DAPO: a clip wider above one, uninformative groups drawn again, all tokens averaged, long answers charged.

Source: Yu et al. (2025), arXiv 2503.14476, eqs 8–13.
"""

from __future__ import annotations

from threegates.lab.objectives import Algorithm

ALGORITHM = Algorithm("dapo", "group", 0.2, 0.28, "token", "none", 0.0, True, 4)
