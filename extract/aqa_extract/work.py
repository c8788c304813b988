"""What a run does with one video: load it with a retry, commit it with its twins, name its failure."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aqa_extract.budget import ByteBudget, Cancelled, TooLarge
from aqa_extract.compute import Done, device_faults
from aqa_extract.decode.child import DecodeFailure, Decoder, DecodeRequest
from aqa_extract.faults import second_try
from aqa_extract.job import JobFailed, VideoJob
from aqa_extract.loading import Decoded, Prepared, load
from aqa_extract.streams import needs_actor, needs_flow
from aqa_shared.console import warn
from aqa_shared.errors import AqaError
from aqa_shared.records import ExtractSettings, Video
from aqa_shared.store import StoreWriter

if TYPE_CHECKING:
    from aqa_extract.config import Options
    from aqa_extract.networks import Networks


@dataclass
class Work:
    """The hands of one run: everything that is per video and knows both codec and store."""

    networks: Networks
    writer: StoreWriter
    options: Options
    budget: ByteBudget
    decoders: list[Decoder] = field(default_factory=list)
    """Every decode child alive, so that a signal can end them."""
    committed: set[str] = field(default_factory=set)
    """Ids written by this run."""
    looked_at: list[tuple[int, int]] = field(default_factory=list)
    """`FramePlan.looked_at` of every video written."""
    without_actor: list[str] = field(default_factory=list)
    """Ids written by this run of which the full frame was used."""
    decoder: Callable[[], AbstractContextManager[Decoder]] = Decoder
    """What each loader decodes with; by default it ends with the loader."""

    @property
    def stop(self) -> threading.Event:
        """Set when the run is to end early."""
        return self.budget.stop

    @contextmanager
    def loader(self) -> Iterator[Callable[[VideoJob], Prepared]]:
        """A decode child, and the function that loads a job with it."""
        with self.decoder() as decoder:
            self.decoders.append(decoder)
            yield lambda job: self._load(decoder, job)

    def _load(self, decoder: Decoder, job: VideoJob) -> Prepared:
        networks, budget = self.networks, self.budget
        request = request_for(job.video, networks.settings, self.options)
        for last_try in (False, True):
            started = time.monotonic()
            reserved = 0

            def reserve(amount: int) -> None:
                # Gives back first: what was received before a second plan is void, and waiting for bytes that one
                # holds oneself would never end.
                nonlocal reserved
                budget.give(reserved)
                reserved = 0
                budget.take(amount)
                reserved = amount

            try:
                with device_faults():
                    prepared = load(
                        decoder, job, request, networks.settings, networks.device, networks.detector_size, reserve
                    )
                _refuse_changed(prepared.video)
                reserved = 0  # whoever has the pixels gives it back
                return prepared
            except DecodeFailure as e:
                if not last_try and second_try(e.reason) and not self.stop.is_set():
                    decoder.close()
                    continue
                seconds = time.monotonic() - started
                raise JobFailed(job.failed(e.reason, e.stage, e.detail, e.backend, seconds, e.limit)) from e
            except TooLarge as e:
                raise JobFailed(job.failed("too_long", "sampling", too_long(e))) from e
            except (AqaError, Cancelled, JobFailed):
                raise
            except Exception as e:
                raise JobFailed(job.failed("internal_error", "decode", f"{type(e).__name__}: {e}")) from e
            finally:
                budget.give(reserved)
        raise AssertionError("the last try returns or raises")

    def commit(self, done: Done) -> None:
        """Write the video, and every twin with the same arrays.

        Raises JobFailed for features that the store refuses, StoreError where the disk does.
        """
        job = done.video.job
        for video, identity in ((job.video, job.identity), *job.twins):
            part = video.model_dump(include={"path", "start", "end", "start_time", "end_time", "frame_rate"})
            meta = meta_of(done) | part | {"identity": identity.record() if identity else None}
            try:
                self.writer.commit(video.id, done.arrays, meta)
            except ValueError as e:  # features that are not finite
                raise JobFailed(job.failed("bad_features", "commit", str(e), done.video.finished.backend)) from e
            self.committed.add(video.id)
            if done.without_actor:
                self.without_actor.append(video.id)
            if accepted := done.video.finished.accepted:
                warn(f"{video.id}: {accepted}")
            self.looked_at.append(done.video.plan.looked_at)

    def kill_decoders(self) -> None:
        """End every decode child, so that loaders stop waiting for them."""
        for decoder in self.decoders:
            decoder.interrupt()


def request_for(video: Video, settings: ExtractSettings, options: Options) -> DecodeRequest:
    """What a run asks of its decoders."""
    return DecodeRequest(
        path=video.path,
        video=video,
        sampling=settings.sampling,
        decoder=options.decoder,
        need_next=needs_flow(settings),
        actor=settings.actor if needs_actor(settings) else None,
        deadline=options.timeout,
        untagged_matrix=settings.pixels.untagged_matrix,
        accept_damaged=options.accept_damaged,
    )


def too_long(error: TooLarge) -> str:
    """What is said of a video that needs more memory than it may take."""
    return (
        f"the frames that its segments use and their features would take {error.wanted / 1e9:.3g} GB, one video may "
        f"take {error.ceiling / 1e9:.3g} GB, half of the memory there is; cut it into parts with start and end in a "
        "manifest, or use fewer --segments, a lower --fps or a smaller --short-side"
    )


def _refuse_changed(video: Decoded) -> None:
    """The file must be the one that was looked at when the run was planned, and still be it.

    Its fingerprint is taken here, when it has just been read, and not for all files before the first video.
    """
    known, probe = video.job.identity, video.probe
    if known is None:
        return
    if (probe.size, probe.mtime_ns) != (known.size, known.mtime_ns) or known.fingerprint is None:
        detail = "the file changed since the run began; rerun once it is whole"
        raise JobFailed(video.job.failed("changed_during_read", "decode", detail))


def meta_of(done: Done) -> dict[str, Any]:
    """What the store keeps about a video beside its arrays; nothing that differs from run to run."""
    probe, finished = done.video.probe, done.video.finished
    return {
        "fps": probe.fps,
        "n_frames": probe.n_expected,
        "width": probe.width,
        "height": probe.height,
        "rotation": probe.rotation,
        "sample_aspect_ratio": probe.sample_aspect_ratio,
        "color_primaries": probe.colour.primaries,
        "color_transfer": probe.colour.transfer,
        "color_matrix": probe.colour.matrix,
        "color_range": probe.colour.range,
        "assumed_matrix": probe.colour.assumed_matrix,
        "tone_mapped": probe.colour.tone_mapped,
        "codec": probe.codec,
        "container": probe.container,
        "decoder": finished.backend,
        "decoder_version": finished.version,
        "corrupt_frames": finished.corrupt,
        "accepted_damage": finished.accepted_damage,
        "warnings": [*finished.warnings, *done.warnings],
        "padded": bool(done.video.plan.padded),
        **done.meta,
    }
