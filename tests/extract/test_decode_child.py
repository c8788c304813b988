"""The child process: killed, stopped, starved or orphaned, it leaves nothing behind and never blocks the parent."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from tests.extract.clips import request
from tests.processes import children

from aqa_extract.cluster.worker import Decoders
from aqa_extract.decode import child as parent_side
from aqa_extract.decode import process as processes
from aqa_extract.decode.child import Chunk, DecodeFailure, Decoder, Opened
from aqa_extract.decode.process import Clock
from aqa_extract.faults import Fault, fault
from aqa_shared.records import Sampling


def pid(decoder: Decoder) -> int:
    assert decoder._child is not None
    return decoder._child.process.pid


def gone(process: int) -> bool:
    """No such process, not even a zombie."""
    return not Path(f"/proc/{process}").exists()


@pytest.fixture
def clip(clips: ModuleType, tmp_path: Path) -> Path:
    path = clips.Clip(frames=120, size=(160, 120)).write(tmp_path / "clip")
    assert isinstance(path, Path)
    return path


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Any:
    """Every test here gives back its descriptors, its processes and its shared memory."""
    gc.collect()  # what tests of other files left
    descriptors = len(os.listdir("/proc/self/fd"))
    processes = set(children("self"))
    yield
    # A mapping holds a descriptor, and pytest's traceback of an expected failure holds the mapping.
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= descriptors  # what other tests left may end meanwhile
    assert set(children("self")) <= processes
    assert "aqa-frames" not in Path("/proc/self/maps").read_text()


def test_one_child_serves_many_videos(clip: Path, clips: ModuleType) -> None:
    with Decoder() as decoder:
        first = clips.take(decoder.decode(request(clip, decoder="av")))
        process = pid(decoder)
        for backend in ("decord", "av", "auto"):
            again = clips.take(decoder.decode(request(clip, decoder=backend)))
            np.testing.assert_array_equal(again.stack, first.stack)
        assert pid(decoder) == process
    assert gone(process)


def test_a_worker_lends_its_children_to_one_block_after_the_other_but_none_of_a_block_that_failed(
    clip: Path, clips: ModuleType
) -> None:
    decoders, pids, held = Decoders(), [], []
    for fails in (False, True, False):
        with contextlib.suppress(OSError), decoders.of_block() as lend:
            for _ in range(2):  # the second of each block when its first loader has nothing left to do
                with lend() as decoder:
                    assert len(clips.take(decoder.decode(request(clip))).stack)
                held.append(decoder)
            pids.append({pid(decoder) for decoder in held[-2:]})
            if fails:
                for decoder in held[-2:]:
                    decoder.interrupt()
                raise OSError
    assert pids[0] == pids[1]
    assert not pids[1] & pids[2]
    decoders.close()
    assert all(gone(process) for process in pids[0] | pids[2])
    held.clear()


def test_failures_do_not_cost_the_child_nor_change_the_next_video(
    clip: Path, clips: ModuleType, tmp_path: Path
) -> None:
    data = bytearray(clip.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 3000] = bytes(3000)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(data)
    with Decoder() as decoder:
        truth = clips.take(decoder.decode(request(clip)))
        process = pid(decoder)
        for backend in ("av", "auto", "decord"):
            with pytest.raises(DecodeFailure):
                clips.take(decoder.decode(request(broken, decoder=backend)))
            again = clips.take(decoder.decode(request(clip)))
            np.testing.assert_array_equal(again.stack, truth.stack)
            assert again.finished.warnings == []
        assert pid(decoder) == process


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        (signal.SIGSEGV, "decoder_crashed"),
        (signal.SIGABRT, "decoder_crashed"),
        (signal.SIGKILL, "decoder_killed"),
    ],
)
@pytest.mark.parametrize("backend", ["av", "decord"])
def test_a_child_that_dies_is_one_videos_failure(
    how: signal.Signals, reason: str, backend: str, clip: Path, clips: ModuleType
) -> None:
    with Decoder() as decoder:
        events = decoder.decode(request(clip, decoder=backend, chunk_frames=2))
        assert isinstance(next(events), Opened)
        process = pid(decoder)
        os.kill(process, how)
        with pytest.raises(DecodeFailure) as e:
            clips.take(events)
        assert (e.value.reason, e.value.backend) == (reason, backend)
        assert gone(process)
        assert clips.take(decoder.decode(request(clip))).finished.decoded == 120


def test_a_child_that_stands_still_is_killed_at_the_deadline(clip: Path, clips: ModuleType) -> None:
    with Decoder() as decoder:
        events = decoder.decode(request(clip, decoder="av", chunk_frames=2, deadline=5.0))
        assert isinstance(next(events), Opened)
        process = pid(decoder)
        os.kill(process, signal.SIGSTOP)
        with pytest.raises(DecodeFailure) as e:
            clips.take(events)
        assert e.value.reason == "decoder_stalled"
        assert fault(e.value.reason) is Fault.OURS
        assert "of 5 s; for the rest it waited for the disk" in e.value.detail
        assert e.value.limit == 5.0
        assert "raise --timeout" in e.value.detail
        assert gone(process)


def test_a_child_that_computes_for_ever_is_late_and_one_that_waits_is_stalled() -> None:
    """A clock is late by what the child did, in all and since it was last heard of."""
    clock = Clock(100.0)
    assert not clock.stalled
    clock.spent, clock.worked = 100.0, 60.0
    assert not clock.stalled
    assert processes._late(clock, True) == "the decoder gave no answer within 100 s; raise --timeout"
    clock.heard, clock.worked_till_heard = 60.0, 60.0
    assert clock.stalled
    clock.heard, clock.worked_till_heard = 99.9, 60.0  # the last answer has just come
    assert not clock.stalled
    assert processes._late(clock, True).startswith("decoding took more than 100 s in all")
    clock.worked = clock.worked_till_heard = 40.0
    assert clock.stalled


def test_a_child_that_loops_seems_to_work(clip: Path, clips: ModuleType) -> None:
    with Decoder() as decoder:
        decoder.open(request(clip))
        assert decoder._child is not None
        before = decoder._child.processor_seconds()
        clips.take(decoder.decode(request(clip, decoder="av")))
        after = decoder._child.processor_seconds()
        assert before <= after < before + 60
        os.kill(pid(decoder), signal.SIGKILL)


def test_the_deadline_grows_with_the_work(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Decoder() as decoder:
        probe = decoder.open(request(clip)).probe
        assert parent_side.decode_seconds(probe) == pytest.approx(120 * 160 * 120 * 1e-7)
        assert parent_side.decord_seconds(probe) == pytest.approx(10 + 120 * 160 * 120 * 1e-7)
        for work, limit in ((3600.0, 3600.0), (1.0, 60.0)):
            monkeypatch.setattr(parent_side, "decode_seconds", lambda probe, work=work: work)
            clock = Clock(60.0)
            with decoder._killed_unless_answered() as child:
                assert isinstance(next(parent_side._decode_once(child, request(clip), "av", clock, [], set())), Opened)
            assert clock.limit == limit


def test_a_child_that_does_not_start_in_time_is_not_blamed_on_the_video(
    clip: Path, clips: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Decoder() as decoder:
        with monkeypatch.context() as patched:
            patched.setattr(processes, "START_SECONDS", 0.0)
            with pytest.raises(DecodeFailure, match="--workers") as e:
                decoder.open(request(clip))
        assert e.value.reason == "decoder_not_started"
        assert clips.take(decoder.decode(request(clip))).finished.decoded == 120


# What a broken installation looks like from inside: file of a folder on PYTHONPATH, its text.
BROKEN = {
    "PyAV cannot be loaded": ("av/__init__.py", "raise ImportError('libavcodec.so.62: no such file')"),
    "PyAV has another API": ("sitecustomize.py", "import av\nav.open = lambda path: None"),
    "decord cannot be loaded": ("decord/__init__.py", "raise OSError('libdecord.so: no such file')"),
    "decord lacks a name": ("decord/__init__.py", "__version__ = '9'"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_installation_is_no_fault_of_the_video(
    what: str, clip: Path, clips: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, text = BROKEN[what]
    (tmp_path / "path" / name).parent.mkdir(parents=True)
    (tmp_path / "path" / name).write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    with Decoder() as decoder:
        with pytest.raises(DecodeFailure) as e:
            clips.take(decoder.decode(request(clip, decoder="decord")))
        loaded = what != "PyAV cannot be loaded"
        assert e.value.reason == ("decoder_error" if loaded else "decoder_not_started"), e.value.detail
        assert fault(e.value.reason) is Fault.OURS
        assert loaded or "libavcodec.so.62" in e.value.detail
        if what.startswith("decord"):
            taken = clips.take(decoder.decode(request(clip)))
            assert taken.finished.backend == "av"
            assert taken.finished.warnings[0].startswith("decord_failed: decoder_error")


def test_auto_gives_decord_up_and_says_so(clip: Path, clips: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    with Decoder() as decoder:
        truth = clips.take(decoder.decode(request(clip, decoder="av")))
        first = pid(decoder)
        monkeypatch.setattr(parent_side, "decord_seconds", lambda probe: 0.0)
        taken = clips.take(decoder.decode(request(clip)))
        assert taken.finished.backend == "av"
        assert "decord_failed: decode_timeout" in taken.finished.warnings[0]
        assert taken.openings == 2
        np.testing.assert_array_equal(taken.stack, truth.stack)
        assert gone(first)


def test_auto_goes_on_when_decord_crashes(clip: Path, clips: ModuleType) -> None:
    with Decoder() as decoder:
        events = decoder.decode(request(clip, chunk_frames=2))
        assert isinstance(next(events), Opened)
        os.kill(pid(decoder), signal.SIGSEGV)
        taken = clips.take(events)
        assert taken.finished.backend == "av"
        assert "decord_failed: decoder_crashed" in taken.finished.warnings[0]
        np.testing.assert_array_equal(taken.stack, clips.reference(clip)[taken.sources])


def test_memory_is_limited(clips: ModuleType, tmp_path: Path) -> None:
    large = clips.Clip(frames=3, size=(3840, 2160), codec="mpeg4", b_frames=0).write(tmp_path / "large")
    sampling = Sampling(protocol="dense", segment_frames=9)
    with Decoder() as decoder:
        with pytest.raises(DecodeFailure) as e:
            clips.take(decoder.decode(request(large, sampling=sampling, max_bytes=400 << 20)))
        assert e.value.reason == "out_of_memory"
        # The same child is given more for the next one.
        assert clips.take(decoder.decode(request(large, sampling=sampling))).finished.decoded == 3


LIMITED = """
import resource, sys
from aqa_extract.decode.child import *
from aqa_shared.records import *
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
request = DecodeRequest(sys.argv[1], Video(id="v", path=sys.argv[1]), Sampling(protocol="dense"))
assert request.max_bytes > 3 << 30
with Decoder() as decoder:
    print([event.decoded for event in decoder.decode(request) if isinstance(event, Finished)])
"""


def test_a_lower_limit_of_the_system_is_kept(clip: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED, str(clip)], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[120]\n", "")


def test_time_that_the_caller_takes_does_not_count(clip: Path) -> None:
    with Decoder() as decoder:
        for event in decoder.decode(request(clip, deadline=5.0, chunk_frames=32)):
            if isinstance(event, Chunk):
                time.sleep(1.5)  # four times


def test_the_child_waits_for_its_reader(clip: Path) -> None:
    """Back-pressure: with both slots full the child sleeps, so what was handed over is never overwritten."""
    with Decoder() as decoder:
        events = decoder.decode(request(clip, chunk_frames=2))
        next(events)
        chunk = next(events)
        assert isinstance(chunk, Chunk)
        before = chunk.frames.copy()
        status = Path(f"/proc/{pid(decoder)}/stat")
        for _ in range(100):
            time.sleep(0.05)
            if status.read_text().rsplit(")", 1)[1].split()[0] == "S":
                break
        np.testing.assert_array_equal(chunk.frames, before)
        events.close()


def test_an_abandoned_video_costs_only_the_child(clip: Path, clips: ModuleType) -> None:
    with Decoder() as decoder:
        for event in decoder.decode(request(clip, chunk_frames=2)):
            if isinstance(event, Chunk):
                break
        assert clips.take(decoder.decode(request(clip))).finished.decoded == 120


def test_frames_outlive_the_decoder(clip: Path) -> None:
    """A view that the caller kept must not become a segmentation fault."""
    with Decoder() as decoder:
        events = decoder.decode(request(clip))
        next(events)
        chunk = next(events)
        assert isinstance(chunk, Chunk)
        events.close()
    assert chunk.frames.sum() > 0


def test_a_new_size_gets_a_new_buffer(clips: ModuleType, tmp_path: Path) -> None:
    paths = [clips.Clip(size=s, frames=12).write(tmp_path / f"{s[0]}") for s in ((64, 48), (640, 360), (64, 48))]
    with Decoder() as decoder:
        for path in paths:
            taken = clips.take(decoder.decode(request(path)))
            np.testing.assert_array_equal(taken.stack, clips.reference(path)[taken.sources])


def test_two_threads_each_with_a_decoder(clip: Path, clips: ModuleType) -> None:
    truth = clips.reference(clip)
    results: list[bool] = []

    def work() -> None:
        with Decoder() as decoder:
            for _ in range(3):
                taken = clips.take(decoder.decode(request(clip)))
                results.append(np.array_equal(taken.stack, truth[taken.sources]))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert results == [True] * 6


PARENT = """
import os, sys, time
from aqa_extract.decode.child import *
from aqa_shared.records import *
decoder = Decoder()
request = DecodeRequest(sys.argv[1], Video(id="v", path=sys.argv[1]), Sampling(protocol="dense"), chunk_frames=2)
events = decoder.decode(request)
next(events), next(events)
print(decoder._child.process.pid, flush=True)
time.sleep(600)
"""

# A native loop that never lets Python run: what decord does on some files.
LOOPING = """
import os, re, subprocess, sys, time
if len(sys.argv) > 1:
    from aqa_extract.decode.worker import _live_with_parent
    _live_with_parent(int(sys.argv[1]))
    print(os.getpid(), flush=True)
    re.match(r"(a+)+$", "a" * 64 + "b")
read, write = os.pipe()
subprocess.Popen([sys.executable, "-c", os.environ["SOURCE"], str(read)], pass_fds=[read])
time.sleep(600)
"""


@pytest.mark.parametrize("source", [PARENT, LOOPING], ids=["waiting", "in a native loop"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_the_child_dies_with_its_parent(source: str, how: signal.Signals, clip: Path) -> None:
    arguments = [str(clip)] if source is PARENT else []
    running = subprocess.Popen(
        [sys.executable, "-c", source, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "SOURCE": source},
        text=True,
    )
    assert running.stdout is not None
    process = int(running.stdout.readline())
    assert not gone(process)
    running.send_signal(how)
    running.wait()
    running.stdout.close()
    for _ in range(1200):
        try:
            status = Path(f"/proc/{process}/stat").read_text()
        except OSError:  # the orphan is reaped
            return
        if status.rsplit(")", 1)[1].split()[0] == "Z":
            return
        time.sleep(0.05)
    raise AssertionError("the child outlived its parent")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"])
def test_signals_to_the_group_are_for_the_parent(name: str, clip: Path, clips: ModuleType) -> None:
    with Decoder() as decoder:
        events = decoder.decode(request(clip, chunk_frames=2))
        next(events)
        os.kill(pid(decoder), getattr(signal, name))
        assert clips.take(events).positions[-1] == 119


def test_the_child_is_light() -> None:
    """It starts for every killed video, and must not carry what it does not need."""
    code = (
        "import sys, aqa_extract.decode.worker\n"
        "print([m for m in ('torch', 'pydantic', 'decord', 'zarr', 'dask') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""


def test_a_stray_module_in_the_working_directory_is_not_imported(
    clip: Path, clips: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "numpy.py").write_text("raise SystemExit('imported from the working directory')")
    monkeypatch.chdir(tmp_path)
    with Decoder() as decoder:
        assert clips.take(decoder.decode(request(clip))).finished.decoded == 120
