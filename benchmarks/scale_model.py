"""A model of an extraction by many workers: events a video, with what the code itself decides taken from the code.

    list ─▶ parts (`all_parts`) or blocks (`_Pass._next`) ─▶ workers: decode | device ─▶ commits ─▶ store ─▶ finalise

Times and requests are arguments (`Costs`), measured by `scale.py --measure`. A worker decodes several videos at a time
while the device computes, so a video takes the longer of the two; the first of a process, or of a Dask block, has
nothing to overlap with and also waits for its own decoder. One thread commits, as in `aqa_extract.pipeline`. Requests
over a limit wait in one line; how often their client would have asked again meanwhile is counted.
"""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from dataclasses import dataclass, replace
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np
from scale_given import Costs, Result, Setting

from aqa_extract.cluster.blocks import _Pass
from aqa_extract.signals import GRACE
from aqa_shared.shards import all_parts, shared_out
from aqa_shared.store.layout import CHUNK_BYTES

RETRIES = tuple(0.1 * 1.7**i for i in range(5))
"""Seconds that s3fs waits before it asks again; after the last it gives up."""
BIN = 10.0
"""Seconds over which a peak of requests is a mean."""


class Line:
    """Requests of one kind, of which only so many a second are answered; the others are, when there is room again."""

    def __init__(self, rate: float) -> None:
        self.rate, self.total = rate, 0.0
        self.bins: dict[int, float] = defaultdict(float)

    def ask(self, now: float, count: float, least: float) -> float:
        """When `count` requests are answered that take `least` seconds where nobody else asks."""
        self.total += count
        most = self.rate * BIN
        own = max(count / max(least, 1e-9) * BIN, 1.0)
        """What one asks for in a bin, if there are many: it waits for answers."""
        at, first = int(now / BIN), True
        while count > 1e-9:
            share = min(count, own, most - self.bins[at])
            if share > 0 and (share == count or share > 1e-6):
                self.bins[at] += share
                count -= share
            if count > 1e-9:
                at, first = at + 1, False
        return now + least if first else max(now + least, at * BIN)

    @property
    def peak(self) -> float:
        return max(self.bins.values(), default=0.0) / BIN


@dataclass
class Videos:
    """Seconds on a worker of usual speed, and what parts are dealt by."""

    load: np.ndarray
    """By all its decoders together."""
    device: np.ndarray
    size: np.ndarray
    clips: np.ndarray
    decoders: int

    @property
    def service(self) -> np.ndarray:
        return np.maximum(self.load, self.device)

    def part(self, at: Any) -> Videos:
        return replace(self, load=self.load[at], device=self.device[at], size=self.size[at], clips=self.clips[at])


@lru_cache(1)
def made(setting: Setting, costs: Costs) -> Videos:
    """The videos of a lab, from the seed."""
    rng = np.random.default_rng(setting.seed)
    seconds = np.minimum(rng.lognormal(0, setting.tail, setting.videos), 4 * 3600)
    seconds *= setting.hours * 3600 / seconds.sum()
    seconds = np.clip(seconds, 2.0, 4 * 3600)
    frames = seconds * setting.fps
    size = 1 + frames * rng.lognormal(0, setting.bitrate_spread, len(frames))  # as `plan` sees them: 10 kB a frame
    return of_frames(frames, size, setting, costs)


def of_frames(frames: np.ndarray, size: np.ndarray, setting: Setting, costs: Costs) -> Videos:
    clips = np.full(len(frames), float(setting.segments)) if setting.segments else np.ceil(frames / 16)
    decoded = frames * (setting.read if setting.segments else 1.0)
    device = setting.networks * clips / (costs.clip_rate * setting.device)
    if setting.flow:
        device = device + 16 * clips / (costs.flow_rate * setting.device)
    return Videos(decoded / costs.decode_rate / setting.decoders, device, size, clips, setting.decoders)


class Simulation:
    """One batch on a number of workers: all that happens until its last video is committed."""

    def __init__(self, engine: str, videos: Videos, workers: int, setting: Setting, costs: Costs, held: int) -> None:
        self.engine, self.videos, self.setting, self.costs, self.held = engine, videos, setting, costs, held
        self.service, self.load, self.device = (a.tolist() for a in (videos.service, videos.load, videos.device))
        self.count = len(self.service)
        self.rng = np.random.default_rng([setting.seed, workers, held])
        speed = self.rng.lognormal(0, setting.spread, workers) if setting.spread else np.ones(workers)
        self.speed = (speed * np.where(self.rng.random(workers) < setting.stragglers, setting.slower, 1.0)).tolist()
        self.put = Line(setting.puts if setting.remote else float("inf"))
        self.get = Line(setting.gets if setting.remote else float("inf"))
        self.look = Line(setting.stats)
        self.latency = setting.latency if setting.remote else 0.0
        self.result = Result(engine, workers, 1, waited=defaultdict(float))
        self.done = bytearray(self.count)
        self.made = 0
        self.client = 0.0
        self.committing = [0.0] * workers
        """When the thread of each worker that commits is free."""
        self.cold = [True] * workers
        """Workers of which nothing is decoded ahead."""
        self.looked = 0.0
        """Files that a part looks at: those that it deals with others, and its own."""
        self.waiting: list[int] = []
        """Dask's workers for whom nothing was left."""

    def run(self) -> Result:
        r, workers = self.result, self.result.workers
        r.ideal = sum(self.service) / workers
        self.planned = self.count * self.costs.plan
        names = [f"{k:07}" for k in range(self.count)]
        if self.engine == "array":
            count = workers * self.setting.parts
            looked = self.count + sum(len(p) * len(of) for p, of in shared_out(names, count) if len(p) > 1)
            self.looked = looked / count
            asked = self.looked * self.costs.stats * workers / self.setting.stats
            self.planned = max(self.planned, asked)  # all begin at once, and share what the file system answers
            r.waited["planning"] += self.planned * workers
            parts = all_parts(self.videos.size.tolist().__getitem__, names, count)
            self.queued = deque(deque(part) for part in parts)
            self.todo = [self.queued.popleft() if self.queued else deque() for _ in range(workers)]
            begin = 0.0
        else:
            asked = self.count * self.costs.stats / self.setting.stats
            begin = self.planned = max(self.planned, asked)
            slots = SimpleNamespace(slots=dict.fromkeys(range(workers), 1))
            self.pass_ = SimpleNamespace(workers=slots, fresh=deque(range(self.count)), finished=0, seconds=0.0)
            self.again: deque[tuple[int, ...]] = deque()
            self.todo = [deque() for _ in range(workers)]
        r.plan = self.planned
        self.events = [(self._started(w, begin), w) for w in range(workers)]
        heapq.heapify(self.events)
        self.ends_at = [at + self._lifetime() for at in self.committing]
        busy = 0.0
        while self.events:
            now, worker = heapq.heappop(self.events)
            busy += self._turn(now, worker)
        r.wall = max(self.committing)
        r.waited["the last to end"] += sum(r.wall - at for at in self.committing)
        r.committed = self.made
        r.idle = r.wall * workers - busy
        r.puts, r.gets, r.peak_puts, r.peak_gets = self.put.total, self.get.total, self.put.peak, self.get.peak
        return r

    def _lifetime(self) -> float:
        return self.rng.exponential(self.setting.lifetime * 3600) if self.setting.lifetime else float("inf")

    def _started(self, worker: int, now: float) -> float:
        """When a process that begins now has planned, loaded its networks, and read what the store holds."""
        c, r = self.costs, self.result
        ready = now + c.start
        if self.engine == "array" and not now:
            ready += self.planned
        elif self.engine == "array":
            planned = self.look.ask(now, self.looked * c.stats, self.count * c.plan)
            r.waited["planning"] += planned - now
            ready += planned - now
        staged = self.made
        gets = staged * 1.001  # and a page of the list for every thousand
        compute = staged * c.marker + self.held * c.index
        end = self.get.ask(ready, gets, gets * self.latency / 32 + compute) if gets else ready + compute
        r.waited["markers"] += end - ready
        r.start_memory = max(r.start_memory, staged * c.marker_memory)
        self.committing[worker] = max(self.committing[worker], end)
        self.cold[worker] = True
        return end

    def _block(self, now: float) -> float:
        """When the client, which serves one worker after the other, has sent a block."""
        self.client = max(self.client, now) + self.setting.per_block
        self.result.waited["client"] += max(0.0, self.client - now - self.setting.per_block)
        return self.client

    def _turn(self, now: float, worker: int) -> float:
        """The part or the block of a worker, until its end or the worker's; returns the seconds it was at work."""
        todo = self.todo[worker]
        block: tuple[int, ...] = ()
        if self.engine == "dask" and not todo:
            if self.again:
                block = self.again.popleft()
            elif self.pass_.fresh:
                block = _Pass._next(self.pass_).jobs  # type: ignore[arg-type]
            else:
                self.waiting.append(worker)
                return 0.0
            now = self._block(now)
            todo.extend(block)
            self.cold[worker] = True
        start, busy, speed = now, 0.0, self.speed[worker]
        while todo:
            k = todo[0]
            takes = self.service[k] * speed
            if self.cold[worker]:  # one decoder, and then the device
                takes = (self.load[k] * self.videos.decoders + self.device[k]) * speed
            end = now + takes
            if end > self.ends_at[worker]:
                warned = self.rng.random() < self.setting.warned
                if warned and end <= self.ends_at[worker] + GRACE:
                    todo.popleft()
                    self._commit(k, worker, end)
                    busy += takes
                else:
                    self.result.lost += max(0.0, self.ends_at[worker] - now)
                self._end(worker, block, max(now, self.ends_at[worker]), warned)
                return busy
            todo.popleft()
            self._commit(k, worker, end)
            now, busy = end, busy + takes
            self.cold[worker] = False
            if self.engine == "array" and todo and self.events and self.events[0][0] < now:
                heapq.heappush(self.events, (now, worker))  # what is earlier elsewhere comes first
                return busy
        if self.engine == "array" and self.queued:
            self.todo[worker] = self.queued.popleft()
            heapq.heappush(self.events, (self._started(worker, max(now, self.committing[worker])), worker))
        if self.engine == "dask":
            now = max(now, self.committing[worker])
            self.pass_.seconds += now - start
            self.pass_.finished += len(block)
            heapq.heappush(self.events, (now, worker))
        return busy

    def _commit(self, k: int, worker: int, now: float) -> None:
        c, r = self.costs, self.result
        begin = max(now, self.committing[worker])
        least = c.commit + c.commit_puts * self.latency
        end = self.put.ask(begin, c.commit_puts, least)
        if (wait := end - begin - least) > 0:
            r.waited["puts"] += wait
            steps, patience = 0, wait
            while patience > 0 and steps < len(RETRIES):
                patience -= RETRIES[steps]
                steps += 1
            r.retried += steps
            r.refused += patience > 0
        self.committing[worker] = end
        r.again += self.done[k]
        self.made += not self.done[k]
        self.done[k] = 1

    def _end(self, worker: int, block: tuple[int, ...], at: float, warned: bool) -> None:
        """A worker is gone, and with it what it had begun; another one comes for it."""
        r = self.result
        r.ends += 1
        if self.engine == "dask":
            left = self.todo[worker]
            made = [] if warned else [k for k in block if k not in left]  # the client does not know that they are there
            r.lost += sum(self.service[k] for k in made) * self.speed[worker]
            self.again.extend((k,) for k in (*made, *left))
            left.clear()
            for other in self.waiting:
                heapq.heappush(self.events, (at, other))
            self.waiting.clear()
        ready = self._started(worker, at + self.rng.exponential(self.setting.requeue))
        self.ends_at[worker] = ready + self._lifetime()
        heapq.heappush(self.events, (ready, worker))


def finalised(setting: Setting, costs: Costs, videos: int, clips: float) -> float:
    """Seconds of one process that makes blocks of so many committed videos, with so many clips together."""
    features = clips * setting.networks * 1024 * 4
    seconds = videos * costs.finalise
    if setting.remote:
        rounds = videos * costs.finalise_rounds + features / CHUNK_BYTES / 10  # Zarr has ten requests under way
        limits = videos * (costs.finalise_gets / setting.gets + costs.finalise_deletes / setting.puts)
        seconds += max(rounds * setting.latency, limits)
    return seconds + 2 * features / setting.bandwidth


def simulated(
    engine: str, setting: Setting, costs: Costs, workers: int, batches: int = 1, videos: Videos | None = None
) -> Result:
    """The whole list, in batches of which each is finalised before the next begins; all of it in the end."""
    every = made(setting, costs) if videos is None else videos
    total = Result(engine, workers, batches, waited=defaultdict(float))
    held = 0
    for at in np.array_split(np.arange(len(every.load)), batches):
        r = Simulation(engine, every.part(at), workers, setting, costs, held).run()
        held += len(at)
        finalise = finalised(setting, costs, len(at), float(every.clips[at].sum()))
        for name in ("ideal", "plan", "idle", "lost", "committed", "again", "ends", "puts", "gets"):
            setattr(total, name, getattr(total, name) + getattr(r, name))
        total.wall += r.wall + finalise
        total.finalise += finalise
        total.gets += len(at) * costs.finalise_gets
        total.deletes += len(at) * costs.finalise_deletes
        total.peak_puts = max(total.peak_puts, r.peak_puts)
        total.peak_gets = max(total.peak_gets, r.peak_gets)
        total.finalise_memory = max(total.finalise_memory, len(at) * costs.finalise_memory)
        total.start_memory = max(total.start_memory, r.start_memory)
        total.retried, total.refused = total.retried + r.retried, total.refused + r.refused
        for name, seconds in (r.waited or {}).items():
            total.waited[name] += seconds  # type: ignore[index]
    return total
