"""Checked shapes for the geometry under test, one torch thread, repeatable property tests, projects."""

from pathlib import Path

import hypothesis
import pytest
import torch
from jaxtyping import config, install_import_hook

from threegates import environment

torch.set_num_threads(1)
install_import_hook("threegates.geometry", "beartype.beartype")

# No deadline: a busy machine is no error. Derandomised: a failure seen once is seen again.
hypothesis.settings.register_profile("house", deadline=None, derandomize=True, max_examples=60)
hypothesis.settings.load_profile("house")

#: What walks whole ways through the product calls the geometry as users do: checked shapes double its time,
#: and the tests of every wing that calls the geometry itself check them.
WHOLE_WAYS = ("evidence", "pages", "releases", "book", "")


def shapes_are_checked(test: Path) -> bool:
    """Whether a test calls the geometry with its shapes checked."""
    folder, *below = test.relative_to(Path(__file__).parent).parts
    return (folder if below else "") not in WHOLE_WAYS


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item):
    """Before the fixtures of a test, whatever their scope."""
    config.update("jaxtyping_disable", not shapes_are_checked(item.path))


@pytest.fixture(autouse=True)
def nothing_kept():
    """What a command of one test was given is not there for the next."""
    yield
    environment.forget()


@pytest.fixture
def without_a_kernel(monkeypatch):
    """Pages whose cells run in this process: what a kernel does is tested in `pages/test_runner.py`."""
    from tests.planted import in_process

    in_process.without_a_kernel(monkeypatch)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project folder of its own for every test that needs one: claims, notebooks, build."""
    # Geometry is imported only behind the hook above.
    from tests.planted import planted

    for name, value in planted.make_project(tmp_path / "project").items():
        monkeypatch.setenv(name, value)
    return tmp_path / "project"
