"""Pictures of a run, as PNG and SVG: predicted against true scores, losses by epoch, methods side by side.

They are drawn from the files of the run folder, by `python -m aqa_train.plots RUN` too, in a process of its own:
Matplotlib reads the user's settings while it is imported (MPLBACKEND, a matplotlibrc in the working folder), and what
it does there can cost no result.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

INK, SOFT = "#1f2430", "#8a93a6"
COLOURS = ("#2f6fde", "#e07a1f", "#2a9d6f", "#b04fc4", "#d03b4b", "#6b7a12", "#0f8fa8", "#7a5a3c")
# By rank in a result, whatever the names are.
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titleweight": "bold",
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "axes.grid": True,
    "grid.color": "#e8ebf0",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.hashsalt": "aqa",
}


TIMEOUT = 600
"""Seconds; the first import on a machine lists its fonts, which takes a while where there are thousands."""


def draw(out: Path, say: Callable[[str], None]) -> None:
    """Write plots/{scatter,curves,methods}.{png,svg} from the run's files; what cannot be drawn is said."""
    # -P: a file of the working folder that is called as a library must not be imported in its place.
    command = [sys.executable, "-P", "-m", "aqa_train.plots", str(out)]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=TIMEOUT
        )
    except (OSError, subprocess.SubprocessError) as e:
        say(f"no plots: {e}")
        return
    if done.returncode:
        wrong = done.stdout.splitlines() or done.stderr.splitlines()[-1:] or [f"exit code {done.returncode}"]
        for line in wrong:
            say(f"no plot: {line}")


def main() -> None:
    """Draw the plots of the run folder that is named; a line on stdout for each that fails."""
    out = Path(sys.argv[1]).resolve()
    summary = json.loads((out / "metrics.json").read_text())
    predictions, losses = _read_csv(out / "predictions.csv"), _read_csv(out / "losses.csv")
    plots = out / "plots"
    plots.mkdir(exist_ok=True)
    mpl = _matplotlib(plots)
    failed = False
    for name, figure in (
        ("scatter", lambda: _scatter(predictions, summary)),
        ("curves", lambda: _curves(losses)),
        ("methods", lambda: _methods(summary)),
    ):
        try:
            with mpl.rc_context(_STYLE):
                _save(figure(), plots / name)
        except Exception as e:
            failed = True
            print(f"{name}: {type(e).__name__}: {e}".splitlines()[0])
    sys.exit(int(failed))


def _matplotlib(empty: Path) -> Any:
    """Matplotlib with its own defaults. Changes this process: its environment, and its working folder to `empty`."""
    os.environ["MPLBACKEND"] = "agg"
    os.environ["MATPLOTLIBRC"] = os.devnull
    os.chdir(empty)
    import matplotlib as mpl

    return mpl


def _read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _figure(columns: int, rows: int = 1, *, width: float = 4.0, height: float = 3.7) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _save(figure: Any, stem: Path) -> None:
    figure.savefig(stem.with_suffix(".png"), dpi=150)
    figure.savefig(stem.with_suffix(".svg"), metadata={"Date": None})


def _scatter(predictions: Sequence[dict[str, str]], summary: dict[str, Any]) -> Any:
    """Every video once a method: the mean prediction over seeds, with the range over seeds behind it."""
    last = [r for r in predictions if r["selection"] == "last"]
    methods = list(dict.fromkeys(r["method"] for r in last))
    figure, axes = _figure(len(methods))
    every = [float(r[side]) for r in last for side in ("true", "predicted")]
    low, high = min(every), max(every)
    pad = 0.04 * (high - low or 1)
    for axis, method, colour in zip(axes[0], methods, COLOURS * len(methods), strict=False):
        by_video: dict[str, tuple[float, list[float]]] = {}
        for r in last:
            if r["method"] == method:
                by_video.setdefault(r["id"], (float(r["true"]), []))[1].append(float(r["predicted"]))
        true = np.array([t for t, _ in by_video.values()])
        mean = np.array([np.mean(p) for _, p in by_video.values()])
        spread = np.array([[np.min(p), np.max(p)] for _, p in by_video.values()])
        axis.plot([low, high], [low, high], color=SOFT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        if len(true) <= 150 and (spread[:, 1] > spread[:, 0]).any():
            axis.vlines(true, spread[:, 0], spread[:, 1], color=colour, alpha=0.25, linewidth=1.2, zorder=2)
        size = float(np.clip(2500 / max(len(true), 1), 6, 30))
        axis.scatter(true, mean, s=size, color=colour, edgecolor="white", linewidth=0.5, zorder=3)
        row = next(r for r in summary["rows"] if r["method"] == method and r["selection"] == "last")
        value = row["spearman"]
        rho = "undefined" if value["mean"] is None else f"{value['mean']:.3f}"
        rho += "" if value["std"] is None else f" ± {value['std']:.3f}"
        axis.set_title(f"{method}   Spearman {rho}")
        axis.set(xlabel="true score", xlim=(low - pad, high + pad), ylim=(low - pad, high + pad), aspect="equal")
    axes[0][0].set_ylabel("predicted score")
    if (seeds := summary["protocol"]["seeds"]) > 1:
        figure.supxlabel(f"test videos: mean of {seeds} seeds, bars from lowest to highest", fontsize=8.5, color=SOFT)
    return figure


def _curves(losses: Sequence[dict[str, str]]) -> Any:
    """A panel a loss: the median over runs by epoch, with the range."""
    methods = list(dict.fromkeys(r["method"] for r in losses))
    terms = [k for k in losses[0] if k not in ("method", "fold", "seed", "epoch")]
    columns = 2 if len(terms) == 4 else min(len(terms), 3)
    figure, axes = _figure(columns, -(-len(terms) // columns), height=3.0)
    for axis in axes.flat[len(terms) :]:
        axis.set_visible(False)
    titles = {"total": "total, weighted", "validation_spearman": "Spearman on validation"}
    for axis, term in zip(axes.flat, terms, strict=False):
        for method, colour in zip(methods, COLOURS * len(methods), strict=False):
            runs: dict[tuple[str, str], list[float]] = {}
            for r in losses:
                if r["method"] == method:
                    runs.setdefault((r["fold"], r["seed"]), []).append(float(r[term] or "nan"))
            values = np.array(list(runs.values()))
            if np.isnan(values).all():
                continue
            epochs = np.arange(1, values.shape[1] + 1)
            known = ~np.isnan(values).all(axis=0)
            values, epochs = values[:, known], epochs[known]
            marker = "o" if len(epochs) == 1 else None
            axis.fill_between(epochs, np.nanmin(values, 0), np.nanmax(values, 0), color=colour, alpha=0.15, linewidth=0)
            axis.plot(epochs, np.nanmedian(values, 0), color=colour, linewidth=1.4, marker=marker, label=method)
        values = np.concatenate([np.asarray(line.get_ydata()) for line in axis.lines] or [np.zeros(1)])
        # Decades of decrease want a logarithmic axis; less than one reads better on a linear one.
        if term != "validation_spearman" and values.min() > 0 and values.max() > 10 * values.min():
            axis.set_yscale("log")
        axis.set_title(titles.get(term, term))
        axis.set_xlabel("epoch")
    if len(methods) > 1:
        axes[0][0].legend()
    figure.supxlabel("median and range over the runs", fontsize=8.5, color=SOFT)
    return figure


def _methods(summary: dict[str, Any]) -> Any:
    """Spearman of every row, a dot a seed: differences are to be seen against their spread."""
    rows = [r for r in summary["rows"] if r["spearman"]["mean"] is not None]
    figure, axes = _figure(1, width=6.4, height=0.9 + 0.45 * max(len(rows), 2))
    axis = axes[0][0]
    for y, r in enumerate(reversed(rows)):
        colour = SOFT if r["selection"] == "baseline" else COLOURS[0]
        seeds = [v for v in r["spearman"]["by_seed"] if v is not None]
        axis.scatter(seeds, np.full(len(seeds), y), s=16, color=colour, alpha=0.4, linewidth=0)
        axis.plot([r["spearman"]["mean"]] * 2, [y - 0.28, y + 0.28], color=colour, linewidth=2.4)
        label = f"{r['spearman']['mean']:.3f}"
        axis.annotate(label, (1.01, y), xycoords=("axes fraction", "data"), va="center", annotation_clip=False)
    names = [r["method"] + (" (best on val.)" if r["selection"] == "best-on-validation" else "") for r in rows]
    axis.set_yticks(range(len(rows)), list(reversed(names)))
    axis.set(ylim=(-0.6, max(len(rows), 1) - 0.4), xlabel="Spearman on test: each seed, and their mean")
    axis.grid(axis="y", visible=False)
    return figure


if __name__ == "__main__":
    main()
