"""Plots of a run folder: whatever the user's Matplotlib is set to, and never at the cost of the run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from aqa_train.plots import _read_csv, _scatter, _series, draw

from .conftest import MakeStore
from .runs import HELD, aqa_train

PLOTS = [f"{name}.{kind}" for name in ("curves", "methods", "scatter") for kind in ("png", "svg")]


@pytest.fixture(scope="module")
def run(make_store_once: MakeStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("plots") / "run"
    aqa_train("--features", make_store_once(videos=16), "--method", "aa", "--labelled", 1, "--seeds", 2,
              "--epochs", 2, "--out", out, "--jobs", 1, *HELD)  # fmt: skip
    return out


@pytest.fixture(scope="module")
def usual(run: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted((run / "plots").iterdir())}


def drawn(run: Path, tmp_path: Path) -> tuple[dict[str, bytes], list[str]]:
    """The pictures of a copy of `run`, and what was said."""
    out = tmp_path / "copy"
    shutil.copytree(run, out)
    shutil.rmtree(out / "plots", ignore_errors=True)
    said: list[str] = []
    draw(out, said.append)
    return {p.name: p.read_bytes() for p in sorted((out / "plots").iterdir())}, said


@pytest.mark.parametrize(
    "rc", [b"text.usetex: True\n", b"backend: nonsense\n", b"no.such.setting: 1\nfont.size: 40\n", b"\xff\xfe\xff"]
)
def test_a_matplotlibrc_in_the_working_folder_changes_nothing(
    run: Path, tmp_path: Path, usual: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, rc: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "matplotlibrc").write_bytes(rc)
    found, said = drawn(run, tmp_path / "here")
    assert not said
    assert list(found) == PLOTS
    assert found == usual


def test_what_learns_all_at_once_has_no_curves(
    make_store: MakeStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    aqa_train("--features", make_store(videos=16), "--method", "ridge", "--seeds", 1, "--out", out, "--jobs", 1,
              "--test-fraction", 0.25, "--device", "cpu")  # fmt: skip
    assert "no plot" not in capsys.readouterr().err
    assert [p.name for p in sorted((out / "plots").iterdir())] == [n for n in PLOTS if "curves" not in n]


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "nonsense"])
def test_the_users_environment_changes_nothing(
    run: Path, tmp_path: Path, usual: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    config = tmp_path / "config"
    config.mkdir()
    (config / "matplotlibrc").write_text("text.usetex: True\naxes.facecolor: red\n")
    monkeypatch.setenv("MPLBACKEND", backend)
    monkeypatch.setenv("MATPLOTLIBRC", str(config))
    monkeypatch.setenv("MPLCONFIGDIR", str(config))
    found, said = drawn(run, tmp_path / "here")
    assert not said
    assert found == usual


def test_the_scatter_shows_what_it_says(run: Path) -> None:
    """Each panel: the mean of the seeds, whose figures stand above it; one scale and the same ticks for all."""
    summary = json.loads((run / "metrics.json").read_text())
    predictions = _read_csv(run / "predictions.csv")
    panels = _scatter(predictions, summary).axes
    assert [a.get_title() for a in panels] == ["aa", "ridge"]
    limits = {(a.get_xlim(), a.get_ylim(), tuple(a.get_xticks()), tuple(a.get_yticks())) for a in panels}
    assert len(limits) == 1
    x, y, across, up = limits.pop()
    assert (x, across) == (y, up)
    for axis, name, selection in zip(panels, ("aa", "ridge"), ("last", "baseline"), strict=True):
        mine = [r for r in predictions if (r["method"], r["selection"]) == (name, selection)]
        by_video = {r["id"]: [float(q["predicted"]) for q in mine if q["id"] == r["id"]] for r in mine}
        true = {r["id"]: float(r["true"]) for r in mine}
        expected = sorted((true[i], np.mean(p)) for i, p in by_video.items())
        shown = np.concatenate([c.get_offsets() for c in axis.collections if type(c).__name__ == "PathCollection"])
        np.testing.assert_allclose(sorted(map(tuple, shown)), expected)
        figures = next(r["ensemble"] for r in summary["rows"] if r["method"] == name)
        text = axis.texts[0].get_text()
        assert f"n = {len(expected)}" in text
        assert f"MAE {np.mean([abs(p - t) for t, p in expected]):.2f}" in text
        assert f"Spearman {figures['spearman']['value']:.3f}" in text


def test_predictions_that_went_astray_do_not_squeeze_the_others(run: Path) -> None:
    summary = json.loads((run / "metrics.json").read_text())
    predictions = _read_csv(run / "predictions.csv")
    for r in predictions:
        r["predicted"] = "1e9" if r["method"] == "aa" and r["id"] == predictions[0]["id"] else r["predicted"]
    figure = _scatter(predictions, summary)
    true = [float(r["true"]) for r in predictions]
    assert figure.axes[0].get_ylim()[1] < max(true) + 1.2 * np.ptp(true)
    assert "1 predicted off the scale (hollow)" in figure.get_supxlabel()


def test_no_place_for_matplotlibs_settings_is_no_trouble(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path / "file" / "config"))
    found, said = drawn(run, tmp_path / "here")
    assert not said
    assert list(found) == PLOTS


def test_a_library_of_the_working_folder_is_not_taken_for_ours(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "numpy.py").write_text("raise SystemExit('not this one')")
    found, said = drawn(run, tmp_path / "here")
    assert not said
    assert list(found) == PLOTS


def test_a_plot_that_fails_is_a_warning_and_the_others_are_drawn(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    shutil.copytree(run, out)
    shutil.rmtree(out / "plots")
    (out / "plots" / "scatter.png").mkdir(parents=True)
    said: list[str] = []
    draw(out, said.append)
    assert len(said) == 1
    assert said[0].startswith("no plot: scatter: IsADirectoryError")
    assert (out / "plots" / "methods.svg").exists()


def test_a_run_without_matplotlib_ends_well(make_store: MakeStore, tmp_path: Path) -> None:
    """A stub of that name that cannot be imported, before the real one on the path."""
    (tmp_path / "path" / "matplotlib").mkdir(parents=True)
    (tmp_path / "path" / "matplotlib" / "__init__.py").write_text("raise ImportError('broken here')")
    options = ["--features", make_store(videos=12), "--method", "aa", "--seeds", 1, "--epochs", 1,
               "--out", tmp_path / "o", *HELD]  # fmt: skip
    code = f"import sys; sys.argv[1:] = {list(map(str, options))!r}; from aqa_train.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": str(tmp_path / "path")}
    )
    assert done.returncode == 0, done.stderr
    assert "Spearman" in done.stdout
    assert "warning: no plot: ImportError: broken here" in done.stderr
    assert (tmp_path / "o" / "metrics.json").exists()


@pytest.mark.parametrize(("last", "scale"), [(400.0, "log"), (300.0, "linear")])
@pytest.mark.parametrize("published", [{}, {"b": 0.6}])
def test_places_two_decades_apart_have_a_logarithmic_axis(last: float, scale: str, published: dict[str, float]) -> None:
    columns = [{"name": "a", "measure": "spearman", "x": 4.0}, {"name": "b", "measure": "spearman", "x": last}]
    measured = {c["name"]: {"mean": 0.5, "interval": None} for c in columns}
    row = {"name": "AA", "x": None, "series": "", "measured": measured, "published": published}
    figure = _series({"rows": [row], "columns": columns})
    (axis,) = figure.axes
    assert axis.get_xscale() == scale
    if scale == "log":
        assert [t.get_text() for t in axis.get_xticklabels()] == ["4", "400"]
    assert ("published" in figure.get_supxlabel()) == bool(published)
