"""Names of the subjects whose models are trained here, as entries of a manifest are labelled with them."""

from __future__ import annotations

#: The lab's own language model; its entries have no such label.
LAB = "lab"
#: A sentence encoder that others trained, tuned here on a one-step bandit.
ENCODER = "encoder"
#: A model of the lab's kind that is forty times as large.
LARGER = "larger"
