"""Windows with DCT, resampling, filled values, prepared sequences."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.fft
from tests.pipelines.import_cases import bring, expect, save, signal

from aqa_pipelines.import_transforms import Resample, WindowsDct, transforms_of
from aqa_shared.datasets.prepare import prepare
from aqa_shared.errors import ExitCode, UsageError
from aqa_shared.store import FeatureStore


def test_windows_dct_is_scipys() -> None:
    x = signal("k", width=76, rows=100).astype(np.float64)
    # JIGSAWS: positions of the four manipulators, in four windows.
    chosen = x[:, [*range(3), *range(19, 22), *range(38, 41), *range(57, 60)]]
    windows = WindowsDct(windows=4, coefficients=3)(chosen)
    assert windows.shape == (4, 36)
    # Window 1, slave left (the third manipulator), y.
    expected = scipy.fft.dct(x[25:50, 2 * 19 + 1], norm="ortho")[:3]
    np.testing.assert_allclose(windows[1].reshape(12, 3)[2 * 3 + 1], expected, rtol=1e-12)
    short = WindowsDct(windows=2, coefficients=4)(chosen[:5]).reshape(2, 12, 4)
    assert np.count_nonzero(short[0, :, 2:]) == 0
    strided = WindowsDct(window=30, stride=20, coefficients=2)(chosen)
    assert strided.shape == (4, 24)
    np.testing.assert_allclose(strided[3].reshape(12, 2)[0], scipy.fft.dct(x[60:90, 0], norm="ortho")[:2])
    assert WindowsDct(window=300, stride=20)(chosen).shape == (1, 12 * 15)
    assert WindowsDct()(chosen).shape == (10, 180)


def test_resampling_keeps_ends_and_lines() -> None:
    line = np.stack([np.arange(7.0), np.arange(7.0) * -2], axis=1)
    np.testing.assert_allclose(Resample(rows=4)(line), [[0, 0], [2, -4], [4, -8], [6, -12]])
    np.testing.assert_allclose(Resample(rows=13)(line)[:, 0], np.arange(13) / 2)
    np.testing.assert_array_equal(Resample(rows=3)(line[:1]), line[[0, 0, 0]])


def test_transforms_are_written_in_full() -> None:
    texts = ["fill", "flatten", "mean", "windows-dct:windows=4", "windows-dct:window=9,stride=3,coefficients=2"]
    assert [written for written, _ in transforms_of(texts)] == [
        "fill:value=0.0",
        "flatten",
        "mean",
        "windows-dct:coefficients=15,windows=4",
        "windows-dct:coefficients=2,stride=3,window=9",
    ]
    with pytest.raises(UsageError, match=r"give windows, or window and stride, not both"):
        transforms_of(["windows-dct:windows=4,window=3,stride=1"])


def test_missing_values_can_be_filled_and_views_averaged(tmp_path: Path) -> None:
    views = np.arange(24.0).reshape(3, 2, 4)
    views[1, 0, 0] = np.nan
    save(tmp_path / "f" / "a.npy", views)
    bring(tmp_path / "f", tmp_path / "s.zarr", transforms=["fill:value=4", "mean"])
    expect(tmp_path / "s.zarr", "features", {"a": np.nan_to_num(views, nan=4).mean(axis=1)})


def test_prepared_sequences_come_in(tmp_path: Path) -> None:
    """What `aqa datasets prepare` writes, with its labels, by the commands of docs/importing.md."""
    root, out = tmp_path / "prmd", tmp_path / "out"
    root.mkdir()
    for person in ("s01", "s02"):
        for wrong in ("", "_inc"):
            rows = signal(f"{person}{wrong}", width=66, rows=40)
            np.savetxt(root / f"m01_{person}_e01_positions{wrong}.txt", rows, delimiter=",")
    prepare("ui-prmd", root, out)
    chosen = {"streams": ["skeleton"], "transforms": ["resample:rows=8"], "labels": out / "labels.csv"}
    report = bring(out / "sequences", tmp_path / "s.zarr", **chosen)
    assert (report.shapes, report.labelled, report.exit_code) == ({"skeleton": (8, 8, 66)}, 4, ExitCode.OK)
    store = FeatureStore.open(tmp_path / "s.zarr")
    assert store.table["score"].tolist() == [1, 0, 1, 0]
    np.testing.assert_allclose(store.video("m01_s02_e01", "skeleton")[-1], signal("s02", width=66, rows=40)[-1])
