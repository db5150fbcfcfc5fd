"""Headers of the Hub's files: what a local one says, from few bytes; damage is told with the Hub's name."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from tests.hub.loopback import LoopbackHub
from threegates.checkpoints.formats.headers import read_header
from threegates.checkpoints.hub import remote_headers
from threegates.checkpoints.hub.remote_headers import remote_header
from threegates.checkpoints.hub.repository import listed
from threegates.errors import CheckpointError

REPO = "org/llama"


@pytest.fixture
def hub(llama, copy_of):
    with LoopbackHub({REPO: copy_of(llama[0])}) as hub:
        yield hub


def shards(hub: LoopbackHub) -> dict:
    """The repository's files of tensors, as the Hub lists them."""
    files = listed(REPO, hub.commit(REPO), hub.url).files
    return {name: file for name, file in files.items() if name.endswith(".safetensors")}


@pytest.mark.parametrize(("first_bytes", "requests"), [(8, 2), (64, 2), (1 << 30, 1)])
def test_a_remote_header_is_that_of_the_file(hub, monkeypatch, first_bytes, requests):
    monkeypatch.setattr(remote_headers, "FIRST_BYTES", first_bytes)
    found = shards(hub)
    assert len(found) > 1
    for name, file in found.items():
        here = hub.repos[REPO] / name
        there = remote_header(file)
        assert {key: replace(info, file=here) for key, info in there.items()} == read_header(here)
        assert list(there) == list(read_header(here)) and hub.asked(name) == requests
        if requests == 2:
            header = 8 + struct.unpack("<Q", here.read_bytes()[:8])[0]
            assert hub.served[name] == header < here.stat().st_size


def test_damage_is_told_with_the_name_of_the_repository(hub):
    path = min(hub.repos[REPO].glob("model-*"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="is truncated: tensor") as caught:
        remote_header(shards(hub)[path.name])
    assert str(caught.value.where).startswith(f"{REPO}@{hub.commit(REPO)}/{path.name}, tensor ")
    assert "/tmp" not in str(caught.value) and caught.value.remedy
