"""The service under load: many clients at once, hostile uploads, and what is left of it all.

    python benchmarks/serve_load.py --minutes 10

Starts `aqa serve extract` on loopback with a short queue and small input (I3D on 32 pixels, two segments), so that the
service is tried and not the networks. Every client submits parts by path, uploads, asks for status, lists and
cancels, and waits as Retry-After says. Meanwhile 200 uploads come that are no videos, are cut, lie, or break off.

Prints memory of the service (HTTP and queue) and of its extraction process over time, without the files that both map,
and the ratio of the last third to the second, requests by status, latencies, and what was left: files of uploads, open
files, processes. What the service has to keep of a video (in the index of the store) and of a job that has ended is
measured afterwards, and the ratio without it is printed as well. Exit code 1 where anything was left, a server error
was answered, or memory, with all that is kept, grew by more than a tenth.
"""

from __future__ import annotations

import argparse
import gc
import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from collections import Counter, defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import requests

SMALL = ["--segments", "2", "--short-side", "32", "--crop", "32", "--finalise-every", "5", "--max-upload", "1"]
MOST = 1.1
"""What memory may grow by, from the middle of the run to its end."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--hostile", type=int, default=200)
    parser.add_argument("--queue", type=int, default=40)
    parser.add_argument("--weights", default="rgb=i3d-kinetics-400")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="aqa-serve-load-") as name:
        folder = Path(name)
        clips = [write_clip(folder / "videos" / f"clip{i}.mp4", frames=30 + 3 * i) for i in range(8)]
        command = [Path(sys.executable).with_name("aqa"), "serve", "extract", "--port", "0"]
        options = ["--store", folder / "s.zarr"]
        options += ["--root", folder / "videos", "--queue", str(asked.queue), "--weights", asked.weights]
        with subprocess.Popen([*command, *options, *SMALL], stderr=subprocess.PIPE, text=True) as server:
            try:
                return load(server, folder, clips, asked)
            finally:
                server.kill()


def write_clip(path: Path, frames: int) -> Path:
    """A moving gradient, 96x64."""
    import av

    path.parent.mkdir(exist_ok=True)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        y, x = np.mgrid[:64, :96]
        for i in range(frames):
            picture = np.stack([(x * 3 + i * 5) % 256, (y * 4 + i * 3) % 256, (x + y + i * 7) % 256], -1)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture.astype(np.uint8), format="rgb24")))
        out.mux(stream.encode())
    return path


class Clients:
    """What all of them have seen."""

    def __init__(self, url: str, clips: list[Path], until: float) -> None:
        self.url, self.clips, self.until = url, clips, until
        self.lock = threading.Lock()
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.statuses: Counter[tuple[str, int]] = Counter()
        self.faults: list[str] = []

    def call(self, session: requests.Session, what: str, method: str, path: str, **more: Any) -> requests.Response:
        begun = time.monotonic()
        answer = session.request(method, self.url + path, timeout=60, **more)
        with self.lock:
            self.seconds[what].append(time.monotonic() - begun)
            self.statuses[what, answer.status_code] += 1
            if answer.status_code >= 500:
                self.faults.append(f"{what}: {answer.status_code} {answer.text[:200]}")
        return answer

    def behave(self, number: int) -> None:
        """One client that does what it is told."""
        draw, session, count = random.Random(number), requests.Session(), 0
        mine: list[str] = []
        while time.monotonic() < self.until:
            count += 1
            clip = draw.choice(self.clips)
            if draw.random() < 0.7:
                asked = {"path": clip.name, "id": f"{number}-{count}", "start": draw.randrange(4)}
                answer = self.call(session, "submit", "POST", "/jobs", json=asked)
            else:
                answer = self.call(session, "upload", "PUT", f"/uploads/{number}-{count}.mp4", data=clip.read_bytes())
            if answer.status_code == 429:
                time.sleep(int(answer.headers["Retry-After"]) * draw.uniform(0.5, 1.5))
                continue
            mine = [*mine[-20:], answer.json()["id"]]
            self.call(session, "status", "GET", f"/jobs/{draw.choice(mine)}")
            if draw.random() < 0.1:
                self.call(session, "cancel", "DELETE", f"/jobs/{mine[-1]}")
            if draw.random() < 0.1:
                self.call(session, "list", "GET", "/jobs?limit=50&state=done")
            time.sleep(draw.uniform(0.1, 1.0))

    def attack(self, uploads: int) -> None:
        """Uploads that are no videos, spread over the first three quarters of the time."""
        draw, session, begun = random.Random(0), requests.Session(), time.monotonic()
        for i in range(uploads):
            whole = draw.choice(self.clips).read_bytes()
            wrong = [
                b"",
                draw.randbytes(50_000),
                b"PK\x03\x04" + bytes(200_000),
                whole[: draw.randrange(1, len(whole) * 3 // 4)],
                bytes(1_100_000),
                b"#EXTM3U\n#EXTINF:9,\nfile:///etc/passwd\n",
                b"RIFF\xff\xff\xff\xffAVI LIST" + draw.randbytes(3000),
                None,
            ][i % 8]
            if wrong is None:
                self._break_off(whole)
            else:
                while True:
                    answer = self.call(session, "hostile", "PUT", f"/uploads/hostile-{i}.mp4", data=wrong)
                    if answer.status_code != 429:
                        break
                    time.sleep(draw.uniform(0.05, 0.5))  # it does not wait as it is told
            rest = begun + (self.until - begun) * 0.75 * (i + 1) / uploads - time.monotonic()
            time.sleep(max(0.0, rest))

    def _break_off(self, whole: bytes) -> None:
        host, port = self.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as half:
            head = f"PUT /uploads/half.mp4 HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(whole)}\r\n\r\n"
            half.sendall(head.encode() + whole[: len(whole) // 2])
        with self.lock:
            self.statuses["hostile", 0] += 1


def load(server: subprocess.Popen[str], folder: Path, clips: list[Path], asked: argparse.Namespace) -> int:
    assert server.stderr is not None
    said: list[str] = []
    url = ""
    for line in server.stderr:
        said.append(line)
        if found := re.search(r"http://127\.0\.0\.1:\d+", line):
            url = found[0]
            break
    if not url:
        raise SystemExit("".join(said))
    threading.Thread(target=lambda: said.extend(server.stderr or ()), daemon=True).start()
    extractor = next(p for p in children(server.pid) if b"spawn_main" in Path(f"/proc/{p}/cmdline").read_bytes())
    until = time.monotonic() + 60 * asked.minutes
    clients = Clients(url, clips, until)
    threads = [threading.Thread(target=clients.behave, args=(i,)) for i in range(asked.clients)]
    threads.append(threading.Thread(target=clients.attack, args=(asked.hostile,)))
    for thread in threads:
        thread.start()
    memory: list[tuple[float, float]] = []
    ended: list[tuple[int, int]] = []
    print(f"{asked.clients} clients, {asked.minutes:g} minutes, a queue of {asked.queue}; {machine()}\n")
    print("seconds   service MB   extraction MB   open files   ended jobs")
    begun, every = time.monotonic(), max(2.0, 3 * asked.minutes)
    while any(thread.is_alive() for thread in threads):
        time.sleep(every)
        memory.append((own(server.pid), own(extractor)))
        ended.append(jobs_ended(url))
        of_service, of_extraction = memory[-1]
        files, seconds = len(os.listdir(f"/proc/{server.pid}/fd")), time.monotonic() - begun
        print(
            f"{seconds:7.0f} {of_service:12.1f} {of_extraction:15.1f} {files:12d} {ended[-1][0]:12d}",
            flush=True,
        )
    while re.search(r'aqa_jobs\{state="(queued|running|committed)"\} [1-9]', metrics(url)):
        time.sleep(1)
    print("\nrequest    status   number")
    for (what, status), number in sorted(clients.statuses.items()):
        print(f"{what:10} {status or 'left':>6} {number:8d}")
    print("\nrequest    median ms   99 % ms   most ms")
    for what, waited in sorted(clients.seconds.items()):
        middle, late, most = np.percentile(waited, [50, 99, 100]) * 1000
        print(f"{what:10} {middle:9.1f} {late:9.1f} {most:9.1f}")
    told = [x for x in metrics(url).splitlines() if x.startswith(("aqa_jobs_ended", "aqa_extraction_deaths"))]
    print("", *told, sep="\n")
    left = sorted(p.name for p in (folder / "s.zarr.jobs" / "uploads").iterdir())
    quarantined = len(list((folder / "s.zarr").glob("failures/*")))
    same = extractor in children(server.pid)
    server.send_signal(signal.SIGTERM)
    code = server.wait(40)
    third = max(1, len(memory) // 3)  # the first one loads, compiles and fills what is remembered
    (service, extraction), (jobs, videos) = middle_and_end(memory, third), middle_and_end(ended, third)
    job_bytes, video_bytes = kept(folder)
    must = ((jobs[1] - jobs[0]) * job_bytes + (videos[1] - videos[0]) * video_bytes) / 1e6
    growth = [end / middle for middle, end in (service, extraction)]
    print(f"\nmemory, end of the run to its middle: service {growth[0]:.3f}, extraction {growth[1]:.3f}")
    print(
        f"service: {service[0]:.1f} to {service[1]:.1f} MB. It keeps {job_bytes:.0f} bytes of a job that has ended and "
        f"{video_bytes:.0f} of a video in the index:\nof the {jobs[1] - jobs[0]:.0f} and {videos[1] - videos[0]:.0f} "
        f"more at the end {must:.2f} MB. Without these {(service[1] - must) / service[0]:.3f}"
    )
    print(f"left behind: {len(left)} uploads, {quarantined} records of hostile uploads in the store")
    print(f"the extraction process is {'the same' if same else 'another'}; exit code {code}")
    print("\n".join(clients.faults[:5]))
    return int(bool(left or quarantined or clients.faults or code or not same or max(growth) > MOST))


def middle_and_end(samples: list[tuple[Any, Any]], third: int) -> list[tuple[float, float]]:
    """Of each of two series: the medians of its second third and of its last."""
    return [(float(np.median(x[third:-third] or x)), float(np.median(x[-third:]))) for x in zip(*samples, strict=True)]


def kept(folder: Path) -> tuple[float, float]:
    """Bytes of Python objects for a job that has ended, and for a video in the index, as the service keeps them."""
    from aqa_pipelines.serve.jobs import Jobs
    from aqa_shared.store import Objects, contents

    def held() -> int:
        gc.collect()
        # Python's own table of names is enlarged now and then.
        found = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(False, pathlib.__file__)])
        return sum(x.size for x in found.statistics("filename"))

    contents(folder / "s.zarr")  # so that everything is imported
    tracemalloc.start()
    before = held()
    jobs = Jobs(folder / "s.zarr.jobs", 1)
    between = held()
    index = contents(Objects.at(folder / "s.zarr"))
    assert index is not None
    return (between - before) / len(jobs.known), (held() - between) / len(index.index.ids)


def machine() -> str:
    """What computes, and what it has to do already."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    load = " ".join(f"{x:.1f}" for x in os.getloadavg())
    return f"{len(os.sched_getaffinity(0))} threads of {model[1] if model else 'a processor'}, load before {load}"


def jobs_ended(url: str) -> tuple[int, int]:
    """All that have ended, and those of them that are in the store."""
    found = re.findall(r'aqa_jobs_ended_total\{.*state="(\w+)".*\} (\S+)', metrics(url))
    return sum(int(float(n)) for _, n in found), sum(int(float(n)) for state, n in found if state == "done")


def metrics(url: str) -> str:
    return requests.get(f"{url}/metrics", timeout=60).text


def children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):  # a thread that has ended meanwhile
            found += map(int, (task / "children").read_text().split())
    return found


def own(pid: int) -> float:
    """MB in memory or swapped out, without what is read from files: of that the system drops what it likes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return sum(int(n) for n in re.findall(r"(?:RssAnon|VmSwap):\s+(\d+) kB", status)) * 1024 / 1e6


if __name__ == "__main__":
    sys.exit(main())
