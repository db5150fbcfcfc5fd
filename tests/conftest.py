"""Checked shapes for the geometry under test, one torch thread, repeatable property tests, projects."""

import hypothesis
import pytest
import torch
from jaxtyping import install_import_hook

from threegates import environment

torch.set_num_threads(1)
install_import_hook("threegates.geometry", "beartype.beartype")

# No deadline: a busy machine is no error. Derandomised: a failure seen once is seen again.
hypothesis.settings.register_profile("house", deadline=None, derandomize=True, max_examples=60)
hypothesis.settings.load_profile("house")


@pytest.fixture(autouse=True)
def nothing_kept():
    """What a command of one test was given is not there for the next."""
    yield
    environment.forget()


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project folder of its own for every test that needs one: claims, notebooks, build."""
    # Geometry is imported only behind the hook above.
    from tests.planted import planted

    for name, value in planted.make_project(tmp_path / "project").items():
        monkeypatch.setenv(name, value)
    return tmp_path / "project"
