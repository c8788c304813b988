"""What this machine is and whether it can be trusted with the work: `aqa doctor`.

Each check stands alone: one that breaks becomes a failed row, and the others still answer.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from aqa_shared import __version__
from aqa_shared.console import counted

if TYPE_CHECKING:
    import torch
    from rich.table import Table

Status = Literal["ok", "note", "fail"]

NEEDED = ("torch", "torchvision", "av", "zarr", "dask", "numpy", "scipy", "scikit-learn", "safetensors", "typer")
FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16")
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.03, "float16": 0.005}
"""Largest error of the self-test's convolution over the largest exact value."""


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    name: str
    value: str
    status: Status = "ok"
    fix: str = ""


def examine() -> list[Check]:
    """Every check, in the order of the report."""
    checks: list[Check] = []
    parts: tuple[Callable[[], Iterator[Check]], ...] = (
        _system, _cpu, _packages, _ffmpeg, _devices, _arithmetic, _places, _weights, _extraction,
    )  # fmt: skip
    for part in parts:
        try:
            checks.extend(part())
        except Exception as e:  # a doctor that falls ill helps nobody
            checks.append(Check(part.__name__.strip("_"), f"{type(e).__name__}: {e}", "fail"))
    return checks


def _system() -> Iterator[Check]:
    yield Check("aqa", __version__)
    yield Check("python", f"{platform.python_version()} ({sys.executable})")
    yield Check("platform", platform.platform())


def _cpu() -> Iterator[Check]:
    from aqa_shared.machine import available_cores

    model, flags = platform.processor() or platform.machine(), set()
    table = Path("/proc/cpuinfo")
    if table.is_file():
        for line in table.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            if key.strip() == "flags":
                flags = set(value.split())
                break
    yield Check("cpu", f"{model}, {counted(available_cores(), 'core')} for this process (of {os.cpu_count()})")
    yield Check("cpu flags", ", ".join(f for f in FLAGS if f in flags) or "none of " + ", ".join(FLAGS))
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return
    low = total < 3 << 30
    yield Check(
        "memory", f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free", "note" if low else "ok",
        "use --workers 1 and a small --batch" if low else "",
    )  # fmt: skip


def _packages() -> Iterator[Check]:
    for name in NEEDED:
        try:
            yield Check(name, version(name))
        except PackageNotFoundError:
            yield Check(name, "not installed", "fail", "install aqa again, in its folder: pip install .")


def _ffmpeg() -> Iterator[Check]:
    import av

    yield Check("ffmpeg in av", str(getattr(av, "ffmpeg_version_info", "unknown")))
    try:
        version("decord")
    except PackageNotFoundError:
        yield Check("decord", "not installed: PyAV decodes everything", "note")
        return
    yield Check("decord", version("decord"))
    yield Check("ffmpeg in decord", _decord_ffmpeg())


def _decord_ffmpeg() -> str:
    """Version of the FFmpeg inside decord's wheel, which decord itself does not tell."""
    import ctypes

    import decord

    # The wheel's own libavutil is loaded with decord; opening the same file again asks that very copy.
    libraries = sorted((Path(decord.__file__).parent.parent / "decord.libs").glob("libavutil*"))
    if not libraries:
        return "unknown (not a wheel's copy)"
    library = ctypes.CDLL(str(libraries[0]))
    library.av_version_info.restype = ctypes.c_char_p
    return str(library.av_version_info().decode())


def _devices() -> Iterator[Check]:
    import torch

    yield Check("torch built for", f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only")
    if not torch.cuda.is_available():
        card = Path("/proc/driver/nvidia/version").exists()
        yield Check(
            "device", "cpu", "note" if card else "ok",
            "an NVIDIA driver is here but torch cannot use it: install a CUDA build of torch" if card else "",
        )  # fmt: skip
        return
    driver = Path("/proc/driver/nvidia/version")
    if driver.exists():
        yield Check("driver", driver.read_text().splitlines()[0].strip())
    for i in range(torch.cuda.device_count()):
        has = torch.cuda.get_device_properties(i)
        yield Check(f"cuda:{i}", f"{has.name}, {has.total_memory / 2**30:.0f} GiB, sm_{has.major}{has.minor}")
    yield Check("cudnn", str(torch.backends.cudnn.version()))


def _arithmetic() -> Iterator[Check]:
    """A 3D convolution, I3D's main work, against float64."""
    import torch

    devices = [torch.device("cpu"), *(torch.device("cuda", i) for i in range(torch.cuda.device_count()))]
    for device in devices:
        for name in ("float32", "bfloat16") if device.type == "cpu" else TOLERANCE:
            error = convolution_error(device, getattr(torch, name))
            good = error <= TOLERANCE[name]
            yield Check(
                f"conv3d {name} on {device}", f"largest error {error:.1e} of the largest value",
                "ok" if good else "fail",
                "" if good else f"do not use --precision {name} here; check driver and torch build",
            )  # fmt: skip


def convolution_error(device: torch.device, dtype: torch.dtype) -> float:
    """Largest error of a conv3d in `dtype` over the largest value in float64; the inputs are rounded first."""
    import torch
    import torch.nn.functional as F

    source = torch.Generator().manual_seed(0)
    x = torch.randn((1, 16, 8, 28, 28), generator=source).to(dtype)
    w = (torch.randn((24, 16, 3, 3, 3), generator=source) / 20).to(dtype)
    exact = F.conv3d(x.double(), w.double(), padding=1)
    # TF32 would be measured as float32 otherwise; the extraction switches it off too.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        found = F.conv3d(x.to(device), w.to(device), padding=1).double().cpu()
    return float((found - exact).abs().max() / exact.abs().max())


def _places() -> Iterator[Check]:
    """Can we write where we have to, and is there room?"""
    from aqa_extract.weights_cache import weights_folder

    for name, folder in (("temporary folder", Path(tempfile.gettempdir())), ("weights cache", weights_folder())):
        there = folder
        while not there.exists():
            there = there.parent
        free = shutil.disk_usage(there).free / 2**30
        try:
            with tempfile.NamedTemporaryFile(dir=there):
                pass
        except OSError as e:
            fix = (
                "set TMPDIR to a writable folder" if name == "temporary folder" else "set AQA_HOME to a writable folder"
            )
            # Without a cache weights are fetched again each time; without a temporary folder nothing works.
            yield Check(name, f"{folder}: {e.strerror}", "fail" if name == "temporary folder" else "note", fix)
            continue
        low = free < 1
        yield Check(
            name, f"{folder}, writable, {free:.1f} GiB free", "note" if low else "ok", "free space" if low else ""
        )


def _weights() -> Iterator[Check]:
    from aqa_extract.weights import listing
    from aqa_extract.weights_cache import record_file

    offline = os.environ.get("AQA_OFFLINE", "").lower() not in ("", "0", "false", "no")
    yield Check("network", "forbidden by AQA_OFFLINE" if offline else "used only for missing weights")
    for row in listing():
        if row["cached"]:
            yield Check(
                f"weights {row['name']}", f"sha256:{json.loads(record_file(row['name']).read_text())['sha256']}"
            )
    for kind in ("rgb", "flow", "actor"):
        rows = [r for r in listing() if r["kind"] == kind and r["default"]]
        if offline and rows and not any(r["cached"] for r in rows if r["sources"]):
            name = next(r["name"] for r in rows if r["sources"])
            fix = f"unset AQA_OFFLINE where there is a network, and aqa weights fetch {name}"
            yield Check(f"{kind} weights", "none cached, and the network is forbidden", "note", fix)


def _extraction() -> Iterator[Check]:
    """A real clip, decoded, extracted and read back: what no version number proves."""
    from aqa_pipelines.trial import extractions

    for where, wrong in extractions():
        fix = (
            "install aqa again, in its folder, for versions that work together: pip install --force-reinstall ."
            if wrong
            else ""
        )
        said = wrong or "a clip was decoded, its features stored and read back"
        yield Check(f"extract with {where}", said, "fail" if wrong else "ok", fix)


def as_table(checks: list[Check]) -> Table:
    """The report for a terminal."""
    from rich.markup import escape
    from rich.table import Table

    colour = {"ok": "green", "note": "yellow", "fail": "red"}
    table = Table(box=None, show_header=False, pad_edge=False)
    for column in range(3):
        table.add_column(overflow="fold", no_wrap=column < 1)
    for check in checks:
        text = escape(check.value) + (f"\n[bold]fix:[/] {escape(check.fix)}" if check.fix else "")
        table.add_row(f"[{colour[check.status]}]{check.status}[/]", escape(check.name), text)
    return table
