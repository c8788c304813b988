"""Uploads to the service, good and hostile: nothing of them is left."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from tests.pipelines.serving import Serving, state_files, until


def test_an_upload_is_extracted_and_its_file_is_gone(service: Serving, videos: Path, state: Path) -> None:
    data = (videos / "clip5.mp4").read_bytes()
    job = service.upload("..%5Cmy dive!.mp4", data)
    assert job.status_code == 202, job.text
    assert job.json()["video"]["id"] == "my_dive_.mp4"
    assert service.upload("my dive!.mp4", data).json()["id"] == job.json()["id"]
    assert service.ended(job.json()["id"])["state"] == "done"
    assert service.upload("my_dive_.mp4", data).status_code == 200, "the same bytes"
    assert state_files(state) == []
    other = service.upload("my_dive_.mp4", (videos / "clip6.mp4").read_bytes())
    assert service.ended(other.json()["id"])["reason"] == "id_conflict"
    assert state_files(state) == []


def test_hostile_uploads_fail_alone_and_leave_nothing(
    service: Serving, videos: Path, state: Path, tmp_path: Path
) -> None:
    good = (videos / "clip6.mp4").read_bytes()
    bomb = tmp_path / "bomb.mp4"
    with av.open(str(bomb), "w") as out:  # 18 megapixels in a few kilobytes
        stream = out.add_stream("mpeg4", rate=1)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 4200, 4200, "yuv420p"
        black = av.VideoFrame.from_ndarray(np.zeros((6300, 4200), np.uint8), format="yuv420p")
        out.mux(stream.encode(black))
        out.mux(stream.encode())
    store = state.parent / "s.zarr"
    before = sorted((store / "failures").rglob("*"))
    wrong = {
        "empty.mp4": (b"", "empty_file"),
        "text.mp4": (b"not a video" * 1000, "not_a_video"),
        "zip.mkv": (b"PK\x03\x04" + bytes(100_000), None),
        "playlist.ts": (b"#EXTM3U\n#EXTINF:9,\nfile:///etc/passwd\n", None),
        "cut.mp4": (good[: len(good) // 2], None),
        "bomb.mp4": (bomb.read_bytes(), "too_large"),
        "no-suffix": (b"\0" * 5000, None),
    }
    answers = {name: service.upload(name, data) for name, (data, _) in wrong.items()}
    assert {name: answer.status_code for name, answer in answers.items()} == dict.fromkeys(wrong, 202), [
        answer.text for answer in answers.values()
    ]
    ids = {name: answer.json()["id"] for name, answer in answers.items()}
    for name, (_, reason) in wrong.items():
        job = service.ended(ids[name])
        assert (job["state"], job["fault"]) == ("failed", "the video"), job
        assert reason in (None, job["reason"]), job
        assert job["detail"]
    assert service.upload("too-large.mp4", bytes(1_000_001)).status_code == 413

    def chunks() -> Iterator[bytes]:
        for _ in range(40):
            yield bytes(50_000)

    answer = service.upload("chunked.mp4", chunks())
    assert (answer.status_code, "--max-upload" in answer.text) == (413, True)
    assert service.upload("...", b"x").status_code == 422
    with socket.create_connection(("127.0.0.1", int(service.url.rsplit(":", 1)[1]))) as half:
        half.sendall(b"PUT /uploads/half.mp4 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000\r\n\r\n" + bytes(500))
        until(lambda: state_files(state))
    until(lambda: not state_files(state))
    assert sorted((store / "failures").rglob("*")) == before
    assert not list((state / "jobs").glob(".*"))
    assert service.call("GET", "/readyz").status_code == 200
    assert service.ended(service.upload("fine.mp4", good).json()["id"])["state"] == "done"


def test_a_full_disk_is_not_the_uploads_fault(videos: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "none", small], capture_output=True).returncode:
        pytest.skip("may not mount a small file system")
    try:
        with Serving(tmp_path / "s.zarr", "--root", videos, "--state", small) as service:
            answer = service.upload("large.mp4", bytes(900_000))
            assert (answer.status_code, "--state" in answer.text) == (507, True)
            assert state_files(small) == []
            job = service.upload("fine.mp4", (videos / "clip0.mp4").read_bytes())
            assert service.ended(job.json()["id"])["state"] == "done"
    finally:
        subprocess.run(["umount", "-l", small])
