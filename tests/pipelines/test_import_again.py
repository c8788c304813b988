"""`aqa import-features` run again, killed, repaired, beside other streams, on any store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.pipelines.import_cases import IDS, bring, expect, save, signal

from aqa_pipelines.import_features import import_features
from aqa_shared.errors import ExitCode, StoreError
from aqa_shared.records import ExtractSettings
from aqa_shared.store import ArraySpec, FeatureStore, StoreWriter, describe, verify


def test_again_adds_what_is_new_and_says_what_has_changed(tmp_path: Path, labels: Path) -> None:
    folder, out = tmp_path / "f", tmp_path / "s.zarr"
    for id in IDS[:6]:
        save(folder / f"{id}.npy", signal(id))
    bring(folder, out, labels=labels)
    for id in IDS[6:]:
        save(folder / f"{id}.npy", signal(id))
    report = bring(folder, out, labels=labels)
    assert (report.already, report.made) == (6, {"features": IDS[6:]})
    number = describe(out)["number"]
    report = bring(folder, out, labels=labels)
    assert report.already == 12
    assert "12 already there\n  features: " in report.text()
    assert report.text().endswith("; 0 new")
    assert describe(out)["number"] == number, "nothing is written where nothing is new"
    save(folder / f"{IDS[0]}.npy", signal("other"))
    report = bring(folder, out, labels=labels)
    assert report.exit_code == ExitCode.QUARANTINED
    assert "Ball_001 has other values than in the store, which keeps its own" in report.text()
    assert "fix: --replace takes the new ones" in report.text()
    expect(out, "features", {id: signal(id) for id in IDS})
    report = bring(folder, out, labels=labels, replace_changed=True)
    assert (report.exit_code, report.made) == (ExitCode.OK, {"features": [IDS[0]]})
    expect(out, "features", {id: signal("other" if id == IDS[0] else id) for id in IDS})


def test_what_was_killed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, out = tmp_path / "f", tmp_path / "s.zarr"
    for id in IDS:
        save(folder / f"{id}.npy", signal(id))
    commit, count = StoreWriter.commit, iter(range(5))

    def killed(*arguments: Any) -> None:
        if next(count, None) is None:
            raise KeyboardInterrupt
        commit(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "commit", killed)
        with pytest.raises(KeyboardInterrupt):
            bring(folder, out)
    report = bring(folder, out)
    assert (report.already, len(report.made["features"])) == (5, 7)
    expect(out, "features", {id: signal(id) for id in IDS})


def test_damage_is_repaired(tmp_path: Path) -> None:
    folder, out = tmp_path / "f", tmp_path / "s.zarr"
    for id in IDS:
        save(folder / f"{id}.npy", signal(id))
    bring(folder, out)
    (chunk,) = out.glob("blocks/*/features/c.0.0")
    data = bytearray(chunk.read_bytes())
    data[5] ^= 1
    chunk.write_bytes(data)
    assert verify(out)
    assert bring(folder, out).made == {}
    assert len(bring(folder, out, repair=True).made["features"]) == 12
    expect(out, "features", {id: signal(id) for id in IDS})


def test_a_stream_beside_extracted_ones(tmp_path: Path) -> None:
    """`a` is the store's a.mp4; another making of a stream that is there is refused."""
    out = tmp_path / "s.zarr"
    spec = ArraySpec("rgb", ("channel",), (6,), "float32", role="feature")
    with StoreWriter.open(out, specs=[spec], settings=ExtractSettings(), provenance={}) as writer:
        for id in IDS:
            writer.commit(f"{id}.mp4", {"rgb": signal(id)}, {})
        writer.finalise()
    for id in IDS:
        save(tmp_path / "f" / f"{id}.npy", signal(id, "x"))
    report = bring(tmp_path / "f", out, streams=["skeleton"])
    assert report.made["skeleton"][0] == "Ball_001.mp4"
    assert bring(tmp_path / "f", out, streams=["skeleton"]).already == 12
    with pytest.raises(StoreError, match=r"made_by: default in the store, not stated now \(rgb\)"):
        bring(tmp_path / "f", out, streams=["rgb"])
    with pytest.raises(StoreError, match=r"transforms: default in the store, \['resample:rows=2'\] now"):
        bring(tmp_path / "f", out, streams=["skeleton"], transforms=["resample:rows=2"])


def test_a_dry_run_reads_and_writes_nothing(tmp_path: Path) -> None:
    save(tmp_path / "f" / "a.npy", signal("a"))
    report = bring(tmp_path / "f", tmp_path / "s.zarr", dry_run=True)
    assert "1 array would be imported" in report.text()
    assert not (tmp_path / "s.zarr").exists()


def test_any_store(tmp_path: Path) -> None:
    save(tmp_path / "f" / "a.npy", signal("a"))
    where = f"memory://{tmp_path.name}-import.zarr"
    import_features(tmp_path / "f", where)
    np.testing.assert_array_equal(FeatureStore.open(where).video("a", "features"), signal("a"))
