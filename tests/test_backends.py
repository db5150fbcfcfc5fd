"""The choice between processes and a cluster: options before the environment, contradictions refused."""

from __future__ import annotations

import pytest

from threegates import workers
from threegates.backends import Backend, choose_backend, named_backend, run_parallel
from threegates.environment import variable
from threegates.errors import ThreeGatesError

ADDRESS, OTHER = "tcp://host:8786", "tcp://other:8786"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Nothing is asked for."""
    for name in ("THREEGATES_BACKEND", "THREEGATES_SCHEDULER"):
        monkeypatch.setenv(name, "")


@pytest.mark.parametrize(
    ("options", "environment", "wanted"),
    [
        ((None, None), {}, Backend("processes")),
        (("dask", None), {}, Backend("dask")),
        ((None, ADDRESS), {}, Backend("dask", ADDRESS)),
        (("dask", ADDRESS), {"THREEGATES_SCHEDULER": OTHER}, Backend("dask", ADDRESS)),
        ((None, None), {"THREEGATES_BACKEND": "dask"}, Backend("dask")),
        ((None, None), {"THREEGATES_SCHEDULER": OTHER}, Backend("dask", OTHER)),
        (("dask", None), {"THREEGATES_SCHEDULER": OTHER}, Backend("dask", OTHER)),
        (("processes", None), {"THREEGATES_SCHEDULER": OTHER}, Backend("processes")),
        ((None, ADDRESS), {"THREEGATES_BACKEND": "processes"}, Backend("dask", ADDRESS)),
        ((None, None), {"THREEGATES_BACKEND": "processes"}, Backend("processes")),
    ],
)
def test_options_come_before_the_environment(monkeypatch, options, environment, wanted):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert named_backend(*options) == wanted


@pytest.mark.parametrize("given", [("ray", None), ("processes", ADDRESS)])
def test_impossible_choices_are_refused_and_not_made(given):
    with pytest.raises(ThreeGatesError) as caught:
        choose_backend(*given)
    assert given[0] in str(caught.value) and "THREEGATES_" in str(caught.value)
    assert not variable("THREEGATES_BACKEND")


def test_a_scheduler_beside_processes_in_the_environment_is_passed_over(monkeypatch):
    monkeypatch.setenv("THREEGATES_BACKEND", "processes")
    monkeypatch.setenv("THREEGATES_SCHEDULER", ADDRESS)
    assert named_backend() == Backend("processes")


def test_a_choice_is_what_others_find():
    choose_backend(None, ADDRESS)
    assert named_backend() == Backend("dask", ADDRESS)
    choose_backend("dask", None)
    # The address of before is still kept.
    assert named_backend() == Backend("dask", ADDRESS)
    choose_backend("processes", None)
    assert named_backend() == Backend("processes") and not variable("THREEGATES_SCHEDULER")


def test_processes_get_what_they_always_got(monkeypatch):
    calls = []
    monkeypatch.setattr(workers, "run_parallel", lambda *given: calls.append(given))
    run_parallel(print, [(1,), (2,)], 3, "label", sizes=[5, 6], shared=[], files=[])
    assert calls == [(print, [(1,), (2,)], 3, "label", [5, 6])]
