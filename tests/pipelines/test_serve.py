"""The extraction service over HTTP: real processes on loopback, real clips."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.extract.clips import Clip
from tests.pipelines.serving import Serving

from aqa_shared.store import FeatureStore


def test_a_path_is_extracted_once_and_readers_see_it(service: Serving, videos: Path, state: Path) -> None:
    first = service.submit("clip0.mp4")
    assert first.status_code == 202
    job = first.json()
    assert first.headers["Location"] == f"/jobs/{job['id']}"
    assert job["video"] == {"id": "clip0.mp4", "path": str(videos / "clip0.mp4")}
    again = service.submit(videos / "clip0.mp4")
    assert (again.status_code, again.json()["id"], again.json()["number"]) == (200, job["id"], job["number"])
    done = service.ended(job["id"])
    assert (done["state"], done["reason"], done["fault"]) == ("done", "", "")
    assert service.submit("clip0.mp4").status_code == 200
    store = FeatureStore.open(state.parent / "s.zarr")
    assert store.video("clip0.mp4", "rgb").shape == (2, 1024)


def test_a_part_has_the_id_that_a_manifest_gives_it(service: Serving) -> None:
    job = service.submit("clip1.mp4", start=2, end=20).json()
    assert job["video"]["id"] == "clip1.mp4#2-20"
    named = service.submit("clip1.mp4", id="entry", start_time=0.1, end_time=0.7).json()
    assert named["video"]["id"] == "entry"
    assert [service.ended(j["id"])["state"] for j in (job, named)] == ["done", "done"]
    other = service.submit("clip2.mp4", id="entry").json()
    failed = service.ended(other["id"])
    assert (failed["state"], failed["reason"], failed["fault"]) == ("failed", "id_conflict", "what was asked")


def test_lists_come_in_pages(service: Serving) -> None:
    for name in ("clip2.mp4", "clip3.mp4", "broken.mp4"):
        service.submit(name)
    service.all_ended()
    everything = [job["number"] for job in service.jobs()]
    assert everything == sorted(everything)
    seen, after = [], 0
    while after is not None:
        page = service.call("GET", f"/jobs?limit=2&after={after}").json()
        assert len(page["jobs"]) <= 2
        seen += [job["number"] for job in page["jobs"]]
        after = page["next"]
    assert seen == everything
    failed = service.call("GET", "/jobs?state=failed").json()["jobs"]
    assert {"broken.mp4"} <= {job["video"]["id"] for job in failed}
    broken = next(job for job in failed if job["video"]["id"] == "broken.mp4")
    assert (broken["reason"], broken["fault"]) == ("not_a_video", "the video")
    assert service.submit("broken.mp4").status_code == 200, "it would fail again"


def test_no_path_leads_out_of_the_roots(service: Serving, videos: Path, tmp_path: Path) -> None:
    secret = Clip(frames=20).write(tmp_path / "secret")
    link, inner = videos / "link.mp4", videos / "inner.mp4"
    folder = videos / "folder"
    os.mkfifo(videos / "pipe.mp4")
    try:
        link.symlink_to(secret)
        inner.symlink_to(videos / "clip3.mp4")
        folder.symlink_to(tmp_path)
        for path, status in (
            (secret, 403),
            (f"../{tmp_path.name}/secret.mp4", 403),
            (f"{videos}/sub/../../{tmp_path.name}/secret.mp4", 403),
            (f"{videos}x/clip0.mp4", 403),
            ("link.mp4", 403),
            ("folder/secret.mp4", 403),
            ("/etc/passwd", 403),
            ("none.mp4", 404),
            ("sub", 422),
            ("pipe.mp4", 422),
            ("nul\0.mp4", 422),
            ("", 422),
        ):
            answer = service.submit(path)
            assert answer.status_code == status, (path, answer.text)
            assert "secret" not in str(service.jobs())
        assert service.submit("inner.mp4").status_code == 202
        assert service.all_ended()["inner.mp4"]["state"] == "done"
    finally:
        for path in (link, inner, folder, videos / "pipe.mp4"):
            path.unlink(missing_ok=True)


def test_a_wrong_question_is_answered(service: Serving) -> None:
    assert service.call("GET", "/jobs/0123").status_code == 404
    assert service.call("DELETE", "/jobs/0123").status_code == 404
    assert service.submit("clip0.mp4", end=-1).status_code == 422
    assert "not both" in service.submit("clip0.mp4", start=1, end_time=2).text
    assert service.submit("clip0.mp4", id="a\x1b[31m").status_code == 422
    assert service.submit("clip0.mp4", segments=3).status_code == 422
    assert service.call("POST", "/jobs", data='{"path": "clip0.mp4"}').status_code == 422, "a form of a web page"
    assert service.call("POST", "/jobs", json={"path": "x" * 70_000}).status_code == 413
    assert service.call("GET", "/readyz", headers={"Host": "evil.example"}).status_code == 400
    done = service.submit("clip0.mp4").json()
    assert service.call("DELETE", f"/jobs/{service.ended(done['id'])['id']}").status_code == 409


def test_metrics_are_those_of_prometheus(service: Serving) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    service.submit("clip0.mp4")
    service.all_ended()
    found = {m.name: m for m in text_string_to_metric_families(service.call("GET", "/metrics").text)}
    ended = {(s.labels["state"], s.labels["fault"]): s.value for s in found["aqa_jobs_ended"].samples}
    assert ended["done", ""] >= 1
    assert found["aqa_device_ready"].samples[0].value == 1
    assert {s.labels["state"]: s.value for s in found["aqa_jobs"].samples} == {
        "queued": 0,
        "running": 0,
        "committed": 0,
    }
    assert found["process_resident_memory_bytes"].samples[0].value > 1e6


@pytest.mark.slow
def test_answers_are_as_the_openapi_document_says(service: Serving) -> None:
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis.core.result import Ok

    schema = schemathesis.openapi.from_url(f"{service.url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)]
    assert len(operations) == 8
    for operation in operations:

        @settings(
            max_examples=40,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
            database=None,
            derandomize=True,
        )
        @given(case=operation.as_strategy())
        def check(case) -> None:
            case.call_and_validate()

        check()
    assert service.call("GET", "/healthz").status_code == 200
