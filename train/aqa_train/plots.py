"""Pictures of a run, as PNG and SVG: predicted against true scores, losses by epoch, methods side by side.

They are drawn from the files of the run folder, by `python -m aqa_train.plots RUN` too, and a paper's figure from the
record of its table (`python -m aqa_train.plots FIGURE.json`), in a process of its own:
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aqa_shared.console import Say
from aqa_train.summary import LINEAR

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


def draw(out: Path, say: Say) -> None:
    """Write plots/{scatter,curves,methods}.{png,svg} from the run's files; what cannot be drawn is said.

    Of a figure's record, `out` is its file, and the pictures lie beside it.
    """
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
    figures: dict[str, Callable[[], Any]]
    if out.suffix == ".json":
        plots, record = out.parent, json.loads(out.read_text(encoding="utf-8"))
        figures = {out.stem: lambda: (_map if record["kind"] == "embedding" else _series)(record)}
    else:
        plots = out / "plots"
        plots.mkdir(exist_ok=True)
        summary = json.loads((out / "metrics.json").read_text())
        predictions, losses = _read_csv(out / "predictions.csv"), _read_csv(out / "losses.csv")
        figures = {"curves": lambda: _curves(losses)} if losses else {}  # what is fitted in one step has none
        if predictions:  # --all-scores leaves nothing to test on
            figures |= {"scatter": lambda: _scatter(predictions, summary), "methods": lambda: _methods(summary)}
    mpl = _matplotlib(plots)
    failed = False
    for name, figure in figures.items():
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


def _figure(panels: int, columns: int, *, width: float = 4.0, height: float = 3.7) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    rows = -(-panels // columns)
    columns = -(-panels // rows)  # rows of equal length: four are two by two
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[panels:]:
        axis.set_visible(False)
    return figure, axes[:panels]


def _save(figure: Any, stem: Path) -> None:
    # A dot in a name is no suffix.
    figure.savefig(stem.with_name(f"{stem.name}.png"), dpi=150)
    figure.savefig(stem.with_name(f"{stem.name}.svg"), metadata={"Date": None})


def _scatter(predictions: Sequence[dict[str, str]], summary: dict[str, Any]) -> Any:
    """A panel a method, and ridge's: every test video by the mean prediction of all seeds, whose figures are said."""
    from matplotlib.ticker import MaxNLocator

    protocol = summary["protocol"]
    rows = [r for r in summary["rows"] if r["selection"] == "last" or r["method"] == LINEAR]
    panels = [_points(predictions, r["method"], r["selection"]) for r in rows]
    figure, axes = _figure(len(rows), 3, height=4.35)
    true = np.concatenate([p.true for p in panels])
    size = np.ptp(true) or 1.0
    # A method that went astray must not squeeze all others into a corner.
    low = max(min(true.min(), *(p.low.min() for p in panels)), true.min() - size)
    high = min(max(true.max(), *(p.high.max() for p in panels)), true.max() + size)
    pad = 0.04 * (high - low or 1)
    ticks = [t for t in MaxNLocator(5).tick_values(low, high) if low - pad <= t <= high + pad]
    outside = 0
    for axis, row, points, colour in zip(axes, rows, panels, _colours(rows), strict=True):
        axis.plot([low, high], [low, high], color=SOFT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        if len(points.true) <= 150 and (points.high > points.low).any():
            ends = np.clip([points.low, points.high], low, high)
            axis.vlines(points.true, *ends, color=colour, alpha=0.25, linewidth=1.2, zorder=2)
        area = float(np.clip(2500 / max(len(points.true), 1), 6, 30))
        out = (points.mean < low) | (points.mean > high)
        outside += int(out.sum())
        axis.scatter(
            points.true[~out], points.mean[~out], s=area, color=colour, edgecolor="white", linewidth=0.5, zorder=3
        )
        shown = np.clip(points.mean[out], low, high)
        axis.scatter(points.true[out], shown, s=area, facecolor="white", edgecolor=colour, zorder=3, clip_on=False)
        found = row["ensemble"]
        axis.set_title(row["method"], pad=38)
        lines = f"Spearman {_figures(found['spearman'], 3)}\nMAE {_figures(found['mae'], 2)}   n = {len(points.true)}"
        axis.text(0, 1.02, lines, transform=axis.transAxes, va="bottom", fontsize=9, linespacing=1.35)
        axis.set(xlabel="true score", xlim=(low - pad, high + pad), ylim=(low - pad, high + pad), aspect="equal")
        axis.set_xticks(ticks)
        axis.set_yticks(ticks)
        if axis.get_subplotspec().is_first_col():
            axis.set_ylabel("predicted score")
    says = ["test videos"]
    if protocol["seeds"] > 1:
        says[0] += f", each by the mean of {protocol['seeds']} seeds (bars: lowest to highest seed)"
    if protocol["folds"] > 1:
        how = {"pooled": "over all folds together", "mean": "averaged over folds"}[protocol["over_folds"]]
        says.append(f"{protocol['folds']} folds; figures {how}")
    if any(r["ensemble"]["mae"]["interval"] for r in rows):
        says.append(f"[{protocol['interval']['level']:.0%} interval over test {protocol['interval']['of']}]")
    if outside:
        says.append(f"{outside} predicted off the scale (hollow)")
    figure.supxlabel("\n".join(says), fontsize=8.5, color=SOFT)
    return figure


@dataclass(frozen=True)
class _Points:
    """Test videos of one method: true score, mean prediction over seeds, and the lowest and highest."""

    true: NDArray[np.float64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def _points(predictions: Sequence[dict[str, str]], method: str, selection: str) -> _Points:
    by_video: dict[tuple[str, str], tuple[float, list[float]]] = {}
    for r in predictions:
        if (r["method"], r["selection"]) == (method, selection):
            by_video.setdefault((r["fold"], r["id"]), (float(r["true"]), []))[1].append(float(r["predicted"]))
    seeds = [np.array(p) for _, p in by_video.values()]
    true = np.array([t for t, _ in by_video.values()])
    return _Points(true, *(np.array([f(p) for p in seeds]) for f in (np.mean, np.min, np.max)))


def _figures(measure: dict[str, Any], digits: int) -> str:
    """`0.713 [0.52, 0.84]`."""
    if measure["value"] is None:
        return "undefined"
    interval = "" if measure["interval"] is None else " [{:.2f}, {:.2f}]".format(*measure["interval"])
    return f"{measure['value']:.{digits}f}{interval}"


def _colours(rows: Sequence[dict[str, Any]]) -> list[str]:
    """One a method, by its place; baselines are grey."""
    trained = list(dict.fromkeys(r["method"] for r in rows if r["selection"] != "baseline"))
    return [COLOURS[trained.index(r["method"]) % len(COLOURS)] if r["method"] in trained else SOFT for r in rows]


def _curves(losses: Sequence[dict[str, str]]) -> Any:
    """A panel a loss: the median over runs by epoch, with the range."""
    methods = list(dict.fromkeys(r["method"] for r in losses))
    terms = [k for k in losses[0] if k not in ("method", "fold", "seed", "epoch")]
    figure, axes = _figure(len(terms), 3, height=3.0)
    titles = {"total": "total, weighted", "validation_spearman": "Spearman on validation"}
    for axis, term in zip(axes, terms, strict=True):
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
        axes[0].legend()
    figure.supxlabel("median and range over the runs", fontsize=8.5, color=SOFT)
    return figure


def _methods(summary: dict[str, Any]) -> Any:
    """Spearman of every row, its interval over test videos, and a dot a seed: differences beside what they may be."""
    rows = [r for r in summary["rows"] if r["spearman"]["mean"] is not None][::-1]
    figure, (axis,) = _figure(1, 1, width=7.2, height=1.0 + 0.45 * max(len(rows), 2))
    for y, (r, colour) in enumerate(zip(rows, _colours(rows[::-1])[::-1], strict=True)):
        value = r["spearman"]
        seeds = [v for v in value["by_seed"] if v is not None]
        if value["interval"] is not None:
            axis.plot(value["interval"], [y, y], color=colour, linewidth=5, alpha=0.25, solid_capstyle="butt")
        axis.scatter(seeds, np.full(len(seeds), y), s=14, color=colour, alpha=0.7, linewidth=0, zorder=3)
        axis.plot([value["mean"]] * 2, [y - 0.28, y + 0.28], color=colour, linewidth=2.4, zorder=2)
        label = _figures({"value": value["mean"], "interval": value["interval"]}, 3)
        axis.annotate(label, (1.01, y), xycoords=("axes fraction", "data"), va="center", annotation_clip=False)
    names = [r["method"] + (" (best on val.)" if r["selection"] == "best-on-validation" else "") for r in rows]
    axis.set_yticks(range(len(rows)), names)
    axis.set(ylim=(-0.6, max(len(rows), 1) - 0.4))
    n, of = (summary["protocol"]["interval"][k] for k in ("n", "of"))
    known = any(r["spearman"]["interval"] for r in rows)
    level = f"; band: {summary['protocol']['interval']['level']:.0%} interval over {n} test {of}" if known else ""
    axis.set_xlabel(f"Spearman on test: a dot a seed, and their mean{level}")
    axis.grid(axis="y", visible=False)
    return figure


def series_of(record: dict[str, Any]) -> dict[str, dict[str, list[tuple[float, dict[str, Any] | None, float | None]]]]:
    """The curves of a figure's record: panel → name → (x, measured, published), by x.

    Rows with an `x` are points of their `series`, a panel a column; otherwise rows are curves over the columns' `x`.
    """
    panels: dict[str, dict[str, list[tuple[float, dict[str, Any] | None, float | None]]]] = {}
    for row in record["rows"]:
        for column in record["columns"]:
            by_row = row["x"] is not None
            x = row["x"] if by_row else column["x"]
            point = row["measured"].get(column["name"]), row["published"].get(column["name"])
            if x is None or point == (None, None):
                continue
            panel, name = (column["name"], row["series"]) if by_row else (column["measure"], row["name"])
            panels.setdefault(panel, {}).setdefault(name, []).append((x, *point))
    return {p: {n: sorted(points, key=lambda q: q[0]) for n, points in curves.items()} for p, curves in panels.items()}


def _series(record: dict[str, Any]) -> Any:
    """A panel a measure: measured with its interval, and hollow rings where something is published."""
    panels = series_of(record)
    figure, axes = _figure(max(len(panels), 1), 2, width=5.2)
    for axis, (panel, curves) in zip(axes, panels.items(), strict=False):
        for (name, points), colour in zip(curves.items(), COLOURS * len(curves), strict=False):
            known = [(x, m) for x, m, _ in points if m is not None and m["mean"] is not None]
            axis.plot([x for x, _ in known], [m["mean"] for _, m in known], color=colour, marker="o", ms=4, label=name)
            banded = [(x, *m["interval"]) for x, m in known if m["interval"] is not None]
            if banded:
                axis.fill_between(*np.array(banded).T, color=colour, alpha=0.12, linewidth=0)
            published = [(x, p) for x, _, p in points if p is not None]
            if published:
                axis.scatter(*np.array(published).T, s=44, facecolor="none", edgecolor=colour, zorder=3)
        places = [x for points in curves.values() for x, _, _ in points]
        if min(places) > 0 and max(places) >= 100 * min(places):
            axis.set_xscale("log")
            axis.set_xticks(sorted(set(places)), [f"{x:g}" for x in sorted(set(places))])
            axis.minorticks_off()
        axis.set_title(panel)
        axis.legend(fontsize=8)
    rings = "rings: published; " if any(row["published"] for row in record["rows"]) else ""
    figure.supxlabel(f"{rings}bands: 95 % interval over test videos", fontsize=8.5, color=SOFT)
    return figure


def _map(record: dict[str, Any]) -> Any:
    """A panel a method: unlabelled videos where t-SNE puts them, darker the higher their score."""
    found = record["embedding"]
    figure, axes = _figure(max(len(found), 1), 3)
    for axis, (name, points) in zip(axes, found.items(), strict=False):
        x, y, score = (np.array([p[k] for p in points], dtype=np.float64) for k in ("x", "y", "score"))
        axis.scatter(*(v[np.isnan(score)] for v in (x, y)), c="tab:orange", s=14, linewidth=0)
        known = ~np.isnan(score)
        axis.scatter(x[known], y[known], c=score[known], cmap="Blues", s=14, linewidth=0)
        axis.set(title=name, xticks=[], yticks=[])
    scores = [place["score"] for places in found.values() for place in places]
    unknown = "; orange: nobody scored it" if None in scores else ""
    figure.supxlabel(f"unlabelled videos; darker: a higher score{unknown}", fontsize=8.5, color=SOFT)
    return figure


if __name__ == "__main__":
    main()
