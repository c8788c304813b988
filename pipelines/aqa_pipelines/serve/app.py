"""The HTTP side: submit, status, list, cancel, metrics, health."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import hmac
import json
import os
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel, Field
from starlette.datastructures import Headers
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from aqa_pipelines.serve.asked import Refused, upload_name, upload_suffix, video_at
from aqa_pipelines.serve.jobs import Closed, Conflict, Full, Job, Jobs, State, job_id
from aqa_pipelines.serve.metrics import Metrics
from aqa_pipelines.serve.settings import LOOPBACK
from aqa_shared import __version__
from aqa_shared.records import Record, Video

BODY = 64 << 10
"""Bytes of a request that is not an upload."""
SILENCE = 60.0
"""Seconds without a byte after which an upload is given up."""
OPEN = ("/healthz", "/readyz")
"""What needs no token: the machine's own supervisor asks it."""

_Frame = Annotated[int, Field(ge=0, lt=2**31)]
_Time = Annotated[float, Field(ge=0, lt=1e7, allow_inf_nan=False)]
_Id = Annotated[str, Query(pattern="^[0-9a-f]{32}$")]


class Submission(Record):
    """A video on the server. A part is [start, end) in frames, or [start_time, end_time) in seconds."""

    path: str = Field(min_length=1, max_length=4096)
    """Below a root; relative ones are looked for in each root."""
    id: str | None = Field(default=None, min_length=1, max_length=200)
    """In the store; None is the path below the root, with the part."""
    start: _Frame | None = None
    end: _Frame | None = None
    start_time: _Time | None = None
    end_time: _Time | None = None


class Page(BaseModel):
    """Some jobs, in the order in which they were asked for."""

    jobs: list[Job]
    next: int | None
    """`after` of the next page; None where this is the last one."""


class Problem(BaseModel):
    """Why a request was refused, and the way out."""

    detail: str


def _answers(*statuses: int, **models: Any) -> dict[int | str, dict[str, Any]]:
    known = {
        **{400: "Not a request", 401: "No token", 403: "Outside the roots", 404: "Not there", 408: "Went silent"},
        **{409: "Another version is at work, it is being cancelled, or it has ended", 413: "Too large"},
        **{429: "The queue is full", 503: "Draining, or not ready", 507: "The disk is full"},
    }
    found = {status: {"model": Problem, "description": known[status]} for status in (400, 401, 413, *statuses)}
    return {**found, **models}  # type: ignore[dict-item]


_JOB: dict[int | str, dict[str, Any]] = {
    200: {"model": Job, "description": "The job of this video, as it is known already"},
    202: {"model": Job, "description": "Queued"},
}


class Gate:
    """Lets in who has the token; where there is none, anybody who may reach the address."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app, self.expected = app, f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN:
            said = Headers(scope=scope).get("authorization", "").encode("latin-1")
            if not hmac.compare_digest(said, self.expected):
                refusal = JSONResponse(
                    {"detail": "send the token of this service: Authorization: Bearer TOKEN"},
                    401,
                    {"WWW-Authenticate": "Bearer"},
                )
                await refusal(scope, receive, send)
                return
        await self.app(scope, receive, send)


def make_app(
    jobs: Jobs,
    metrics: Metrics,
    *,
    roots: Sequence[Path],
    max_upload: int,
    token: str,
    problems: Callable[[], list[str]],
    call_off: Callable[[Job], None],
) -> FastAPI:
    """`max_upload` is in bytes; `problems()` says why the service is not ready; `call_off` stops a running job."""
    app = FastAPI(title="aqa serve extract", version=__version__, docs_url=None, redoc_url=None, max_body_size=BODY)
    if token:
        app.add_middleware(Gate, token=token)
    else:  # a page in a browser of this machine must not reach it under a name of its own
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK, "[::1]"], www_redirect=False)

    def refuse(status: int, detail: str, **headers: str) -> Response:
        metrics.refused.labels(status).inc()
        return JSONResponse({"detail": detail}, status, headers or None)

    @app.exception_handler(Refused)
    def refused(_: Request, e: Refused) -> Response:
        return refuse(e.status, e.detail)

    @app.exception_handler(Conflict)
    def conflict(_: Request, e: Conflict) -> Response:
        return refuse(409, str(e))

    @app.exception_handler(Full)
    def full(_: Request, e: Full) -> Response:
        wait = jobs.retry_after()
        return refuse(
            429, f"{jobs.limit} jobs wait already (--queue): ask again in {wait} s", **{"Retry-After": str(wait)}
        )

    @app.exception_handler(Closed)
    def closed(_: Request, e: Closed) -> Response:
        return refuse(503, "the service is ending; ask again when it has been started again", **{"Retry-After": "30"})

    @app.exception_handler(OSError)
    def disk(_: Request, e: OSError) -> Response:
        status = 507 if e.errno in (errno.ENOSPC, errno.EDQUOT) else 503
        return refuse(
            status,
            f"the service cannot write its jobs: {e.strerror}; make room there (--state)",
            **{"Retry-After": "60"},
        )

    def answer(job: Job, status: int = 200) -> Response:
        return Response(job.text(), status, {"Location": f"/jobs/{job.id}"}, "application/json")

    def known(found: Callable[[str], Job], id: str) -> Job:
        try:
            return found(id)
        except KeyError:
            raise Refused(404, f"{id[:64]}: no such job; ended ones are forgotten in time (GET /jobs)") from None

    @app.post("/jobs", responses={**_JOB, **_answers(403, 404, 409, 429, 503, 507)}, response_model=None)
    def submit(asked: Submission) -> Response:
        """Extract a video on the server. The same video again is the same job."""
        part = asked.model_dump(include={"start", "end", "start_time", "end_time"}, exclude_none=True)
        job, new = jobs.submit(*video_at(asked.path, roots, asked.id, **part))
        return answer(job, 202 if new else 200)

    @app.put(
        "/uploads/{name}",
        responses={**_JOB, **_answers(408, 409, 429, 503, 507)},
        response_model=None,
        max_body_size=1 << 62,  # counted here, for an answer that says more
        openapi_extra={
            "requestBody": {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
        },
    )
    async def upload(name: str, request: Request) -> Response:
        """Extract the file in the body, which is gone afterwards. The name becomes the id in the store."""
        name = upload_name(name)
        too_large = Refused(
            413, f"an upload has at most {max_upload / 1e6:g} MB (--max-upload); cut it, or submit a path"
        )
        if int(request.headers.get("content-length", 0)) > max_upload:
            raise too_large
        coming = jobs.uploads / f".{uuid.uuid4().hex}.part"
        digest, size, stream = hashlib.blake2b(digest_size=16), 0, request.stream()
        with jobs.place():
            try:
                with coming.open("xb") as file:
                    while True:
                        async with asyncio.timeout(SILENCE):
                            chunk = await anext(stream, None)
                        if chunk is None:
                            break
                        size += len(chunk)
                        if size > max_upload:
                            raise too_large
                        digest.update(chunk)
                        metrics.uploaded.inc(len(chunk))
                        await asyncio.to_thread(file.write, chunk)
                    await asyncio.to_thread(_flush, file)
                video = Video(id=name, path=str(jobs.uploads / f"{job_id(name)}{upload_suffix(name)}"))
                job, new = await asyncio.to_thread(jobs.submit, video, digest.hexdigest(), coming)
            except TimeoutError:
                raise Refused(408, f"no byte came for {SILENCE:.0f} s: send it again") from None
            except ClientDisconnect:
                raise Refused(400, "the upload ended early: send it again") from None
            finally:
                coming.unlink(missing_ok=True)
        return answer(job, 202 if new else 200)

    @app.get("/jobs", responses=_answers(), response_model=Page)
    def page(
        after: Annotated[int, Query(ge=0, description="`next` of the page before")] = 0,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        state: Annotated[State | None, Query()] = None,
    ) -> Response:
        """Jobs in the order in which they were asked for."""
        found = jobs.page(after, limit + 1, state)
        more = found[limit - 1].number if len(found) > limit else None
        return Response(
            f'{{"jobs": [{", ".join(job.text() for job in found[:limit])}], "next": {json.dumps(more)}}}',
            media_type="application/json",
        )

    @app.get("/jobs/{id}", responses=_answers(404), response_model=Job)
    def status(id: str) -> Response:
        """One job."""
        return answer(known(jobs.__getitem__, id))

    @app.delete(
        "/jobs/{id}",
        responses={
            **_answers(404, 409),
            202: {"model": Job, "description": "It is at work, and will not be committed"},
        },
        response_model=Job,
    )
    def cancel(id: str) -> Response:
        """Cancel a job: at once where it waits, at its next step where it is at work."""
        job = known(jobs.cancel, id)
        if job.state == "running":
            call_off(job)
            return answer(job, 202)
        if job.state != "cancelled":
            raise Refused(409, f"the job is {job.state} already; its features stay in the store")
        return answer(job)

    @app.get("/metrics", responses=_answers(), response_class=PlainTextResponse)
    def show_metrics() -> Response:
        """In Prometheus' text format."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/healthz")
    def health() -> dict[Literal["status"], str]:
        """200 while the service answers at all."""
        return {"status": "ok"}

    @app.get("/readyz", responses={503: {"model": Problem, "description": "Starting, draining, or a fault"}})
    def ready() -> dict[Literal["status"], str]:
        """200 while jobs are taken and extracted; else 503 and why."""
        if found := problems():
            raise HTTPException(503, "; ".join(found), {"Retry-After": "10"})
        return {"status": "ready"}

    return app


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
