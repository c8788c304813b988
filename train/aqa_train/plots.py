"""Pictures of a run, as PNG and SVG: predicted against true scores, losses by epoch, methods side by side."""

from __future__ import annotations

from collections.abc import Sequence
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


def draw(out: Path, results: Sequence[dict[str, Any]], summary: dict[str, Any]) -> list[Path]:
    """Write plots/{scatter,curves,methods}.{png,svg}; returns the files."""
    import matplotlib as mpl

    # The object interface only: no window system, and nothing global is changed.
    with mpl.rc_context(_STYLE):
        (out / "plots").mkdir(exist_ok=True)
        files = _save(_scatter(results, summary), out / "plots" / "scatter")
        files += _save(_curves(results), out / "plots" / "curves")
        return files + _save(_methods(summary), out / "plots" / "methods")


def _figure(columns: int, rows: int = 1, *, width: float = 4.0, height: float = 3.7) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _save(figure: Any, stem: Path) -> list[Path]:
    files = [stem.with_suffix(".png"), stem.with_suffix(".svg")]
    figure.savefig(files[0], dpi=150)
    figure.savefig(files[1], metadata={"Date": None})
    return files


def _scatter(results: Sequence[dict[str, Any]], summary: dict[str, Any]) -> Any:
    """Every video once a method: the mean prediction over seeds, with the range over seeds behind it."""
    methods = list(dict.fromkeys(r["method"] for r in results))
    figure, axes = _figure(len(methods))
    every = [v for r in results for v in (*r["true"], *r["predicted"]["last"])]
    low, high = min(every), max(every)
    pad = 0.04 * (high - low or 1)
    for axis, method, colour in zip(axes[0], methods, COLOURS * len(methods), strict=False):
        by_video: dict[str, tuple[float, list[float]]] = {}
        for r in results:
            if r["method"] == method:
                for i, t, p in zip(r["ids"], r["true"], r["predicted"]["last"], strict=True):
                    by_video.setdefault(i, (t, []))[1].append(p)
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


def _curves(results: Sequence[dict[str, Any]]) -> Any:
    """A panel a loss: the median over runs by epoch, with the range."""
    methods = list(dict.fromkeys(r["method"] for r in results))
    terms = list(dict.fromkeys(k for r in results for row in r["history"] for k in row))
    columns = 2 if len(terms) == 4 else min(len(terms), 3)
    figure, axes = _figure(columns, -(-len(terms) // columns), height=3.0)
    for axis in axes.flat[len(terms) :]:
        axis.set_visible(False)
    titles = {"total": "total, weighted", "validation_spearman": "Spearman on validation"}
    for axis, term in zip(axes.flat, terms, strict=False):
        for method, colour in zip(methods, COLOURS * len(methods), strict=False):
            runs = [[row.get(term, np.nan) for row in r["history"]] for r in results if r["method"] == method]
            values = np.array(runs, dtype=float)
            if np.isnan(values).all():
                continue
            epochs = np.arange(1, values.shape[1] + 1)
            known = ~np.isnan(values).all(axis=0)
            values, epochs = values[:, known], epochs[known]
            marker = "o" if len(epochs) == 1 else None
            axis.fill_between(epochs, np.nanmin(values, 0), np.nanmax(values, 0), color=colour, alpha=0.15, linewidth=0)
            axis.plot(epochs, np.nanmedian(values, 0), color=colour, linewidth=1.4, marker=marker, label=method)
        values = np.concatenate([np.asarray(line.get_ydata()) for line in axis.lines])
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
