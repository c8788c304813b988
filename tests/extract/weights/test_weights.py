"""Names of weights: defaults, files, the registry as a table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.extract.weights.sources import SHA256, STATE, Server, cached_tiny, quiet

from aqa_extract.weights import better, fetch, listing, resolve, verify
from aqa_extract.weights_fetch import TorchvisionUrl, Url, file_digest
from aqa_extract.weights_outlook import outlook
from aqa_extract.weights_registry import DEFAULTS, INFLATED, REGISTRY
from aqa_shared.errors import EnvironmentFault, UsageError


def test_default_is_the_first_that_can_be_had_and_then_stays(
    server: Server, registered: Any, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    registered(Url(f"{server.url}/missing.pt", SHA256), name="best")
    registered(Url(f"{server.url}/ok.pt", SHA256), name="second")
    monkeypatch.setitem(DEFAULTS, "actor", ("best", "second"))
    assert resolve("default", "actor", said.append).record["name"] == "second"
    assert any("best" in message and "404" in message for message in said)
    # The better one appears, and this machine keeps to what it used.
    registered(Url(f"{server.url}/ok.pt", SHA256), name="best")
    assert resolve("default", "actor", quiet).record["name"] == "second"
    fetch("best", quiet)
    assert resolve("default", "actor", quiet).record["name"] == "best"


def test_inflated_weights_stay_when_the_network_comes_back(
    server: Server, registered: Any, monkeypatch: pytest.MonkeyPatch, own_home: Path, said: list[str]
) -> None:
    registered(Url(f"{server.url}/ok.pt", SHA256), name="rgb", kind="rgb")
    registered(Url(f"{server.url}/missing.pt", SHA256), name="best", kind="flow")
    registered(Url(f"{server.url}/missing.pt", SHA256), name="second", kind="flow")
    monkeypatch.setitem(REGISTRY, INFLATED, replace(REGISTRY[INFLATED], converter="builtins:dict"))
    monkeypatch.setitem(DEFAULTS, "rgb", ("rgb",))
    monkeypatch.setitem(DEFAULTS, "flow", ("best", "second", INFLATED))
    assert resolve("default", "flow", quiet).record["name"] == INFLATED
    for name in ("best", "second"):
        registered(Url(f"{server.url}/ok.pt", SHA256), name=name, kind="flow")
    assert resolve("default", "flow", said.append).record["name"] == INFLATED
    assert outlook("default", "flow").name == INFLATED
    assert "inflated" in said[-1]
    for asked in ({}, {"flow": "default"}):
        assert better({"flow": {"name": INFLATED}}, asked) == ["best"]
    assert better({"flow": {"name": "best"}, "rgb": {"name": "other"}}, {"rgb": "other"}) == []
    # Naming others for one run is no wish for all; fetching is, as long as it is the better one.
    assert resolve("best", "flow", quiet).record["name"] == "best"
    assert resolve("default", "flow", quiet).record["name"] == INFLATED
    fetch("second", said.append)
    assert "`default` now means second for flow weights, not inflated-from-rgb" in said[-1]
    assert [row["name"] for row in listing() if row["settled"]] == ["rgb", "second"]
    fetch(INFLATED, quiet)
    assert resolve("default", "flow", quiet).record["name"] == "second"
    fetch("best", quiet)
    assert resolve("default", "flow", quiet).record["name"] == "best"
    (own_home / "weights" / "default-flow").write_bytes(b"\xffno name")
    assert resolve("default", "flow", quiet).record["name"] == "best"


def test_default_that_cannot_be_had_names_every_attempt(
    server: Server, registered: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered(Url(f"{server.url}/a.pt", SHA256), name="a")
    registered(Url(f"{server.url}/b.pt", SHA256), name="b")
    monkeypatch.setitem(DEFAULTS, "actor", ("a", "b"))
    with pytest.raises(EnvironmentFault, match=r"no actor weights: a cannot.*b cannot"):
        resolve("default", "actor", quiet)


def test_wrong_names_are_usage_errors() -> None:
    with pytest.raises(UsageError) as error:
        resolve("rgb_imagnet", "rgb", quiet)
    assert "did you mean rgb_imagenet?" in error.value.fix
    with pytest.raises(UsageError, match="are rgb weights, and flow weights were asked for"):
        resolve("rgb_imagenet", "flow", quiet)
    with pytest.raises(UsageError, match="no weights are named 'x'"):
        fetch("x", quiet)
    with pytest.raises(UsageError, match="no weights are named 'x'"):
        verify(["x"])
    with pytest.raises(EnvironmentFault, match="does not exist"):
        resolve("some/file.pt", "rgb", quiet)


def test_the_table_is_whole() -> None:
    rows = listing()
    assert [row["name"] for row in rows] == list(REGISTRY)
    assert not any(row["cached"] for row in rows)
    for kind, order in DEFAULTS.items():
        assert [REGISTRY[name].kind for name in order] == [kind] * len(order)
        assert sorted(row["default"] for row in rows if row["kind"] == kind and row["default"]) == [
            *range(1, len(order) + 1)
        ]
    for entry in REGISTRY.values():
        assert entry.licence
        assert entry.sources or entry.name == INFLATED
        for source in entry.sources:
            algorithm, _, digest = source.digest.partition(":")
            lengths = [8] if isinstance(source, TorchvisionUrl) else [{"sha256": 64, "git-blob-sha1": 40}[algorithm]]
            assert len(digest) in lengths
            int(digest, 16)


def test_listing_shows_what_is_cached(server: Server, registered: Any) -> None:
    file = cached_tiny(server, registered)
    row = next(row for row in listing() if row["name"] == "tiny")
    assert row["cached"]
    assert row["bytes"] == file.stat().st_size
    assert verify(["tiny"]) == []
    assert [problem.name for problem in verify(["ssdlite320"])] == ["ssdlite320"]


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_and_a_name_with_equal_tensors_have_equal_digests(
    server: Server, registered: Any, tmp_path: Path, suffix: str
) -> None:
    file = tmp_path / f"mine{suffix}"
    save_file(STATE, file) if suffix == ".safetensors" else torch.save(STATE, file)
    registered(Url(f"{server.url}/ok.pt", SHA256))
    mine, named = resolve(str(file), "actor", quiet), resolve("tiny", "actor", quiet)
    assert mine.record["sha256"] == named.record["sha256"]
    assert mine.record["origin_sha256"] == file_digest(file)
    assert mine.record["source"] == str(file)
