"""Checked shapes for the geometry under test, one torch thread, and property tests that repeat exactly."""

import hypothesis
import torch
from jaxtyping import install_import_hook

torch.set_num_threads(1)
install_import_hook("threegates.geometry", "beartype.beartype")

# No deadline: a busy machine is no error. Derandomised: a failure seen once is seen again.
hypothesis.settings.register_profile("house", deadline=None, derandomize=True, max_examples=60)
hypothesis.settings.load_profile("house")
