"""Checked shapes for the geometry under test, and one torch thread for every test process."""

import torch
from jaxtyping import install_import_hook

torch.set_num_threads(1)
install_import_hook("threegates.geometry", "beartype.beartype")
