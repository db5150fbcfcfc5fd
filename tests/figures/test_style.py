"""Colours of methods and nulls."""

from __future__ import annotations

import pytest

from threegates.figures.style import METHOD_COLOURS
from threegates.geometry.nulls.table import NULLS


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_methods_have_colours_of_their_own_and_nulls_are_grey():
    # The encoder's SFT takes the colour of the lab's: they have one part, on pages of their own.
    apart = {name: c for name, c in METHOD_COLOURS.items() if name != "SFT (cross-entropy)"}
    assert len(set(apart.values())) == len(apart)
    assert METHOD_COLOURS["SFT (cross-entropy)"] == METHOD_COLOURS["SFT (teacher)"]
    for null in NULLS.values():
        assert null.colour[1:3] == null.colour[3:5] == null.colour[5:7]
    assert len({null.marker for null in NULLS.values()}) == len(NULLS)


@pytest.mark.parametrize("colour", [*METHOD_COLOURS.values(), *(null.colour for null in NULLS.values())])
def test_every_mark_stands_out_from_white(colour):
    assert 1.05 / (luminance(colour) + 0.05) >= 2.0
