"""The generator as a tool: the same seed, the same files; more videos, the same first ones; resumable, careful."""

from __future__ import annotations

import csv
import hashlib
from dataclasses import fields, replace
from pathlib import Path

import av
import numpy as np
import pytest

from aqa_dives.dataset import LABELS, MARKER, Look, frames_of, labels_text, name_of, perform, render
from aqa_dives.judging import Measured, execution
from aqa_shared.errors import StoreError, UsageError
from aqa_shared.manifest import find_videos

LOOK = Look(seed=11, frames=20, width=96, height=64)


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rendered") / "videos"
    assert render(LOOK, 4, folder, workers=1) == 4
    return folder


def decoded(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def test_videos_have_the_stated_size_length_and_rate(rendered: Path) -> None:
    for index in range(4):
        path = rendered / name_of(index)
        frames = decoded(path)
        assert frames.shape == (20, 64, 96, 3)
        with av.open(str(path)) as container:
            assert container.streams.video[0].average_rate == 20
        # What was rendered is what was encoded, up to compression.
        error = np.abs(frames.astype(float) - np.stack(list(frames_of(LOOK, index))))
        assert error.mean() < 8


def test_the_same_seed_renders_the_same_files(rendered: Path, tmp_path: Path) -> None:
    """With another number of processes and fewer videos."""
    render(LOOK, 3, tmp_path / "again", workers=2)
    again, before = digests(tmp_path / "again"), digests(rendered)
    for index in range(3):
        assert again[name_of(index)] == before[name_of(index)]
    assert again[MARKER] == before[MARKER]


def test_a_video_does_not_depend_on_how_many_there_are() -> None:
    few, many = labels_text(LOOK, 5), labels_text(LOOK, 30)
    assert many.startswith(few)
    assert labels_text(replace(LOOK, seed=12), 5) != few


def test_another_seed_renders_other_frames() -> None:
    a = next(iter(frames_of(LOOK, 0))).astype(int)
    assert np.abs(a - next(iter(frames_of(replace(LOOK, seed=12), 0)))).mean() > 5
    assert np.abs(a - next(iter(frames_of(LOOK, 1)))).mean() > 5


def test_rendering_goes_on_where_it_stopped(rendered: Path, tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    render(LOOK, 2, folder, workers=1)
    kept = (folder / name_of(0)).stat().st_mtime_ns
    (folder / name_of(1)).unlink()
    (folder / f".{name_of(2)}.1.partial").write_bytes(b"killed while writing")
    assert render(LOOK, 4, folder, workers=1) == 3
    assert (folder / name_of(0)).stat().st_mtime_ns == kept
    for index in range(4):
        assert (folder / name_of(index)).read_bytes() == (rendered / name_of(index)).read_bytes()
    assert (folder / LABELS).read_bytes() == (rendered / LABELS).read_bytes()
    assert render(LOOK, 4, folder, workers=1) == 0


def test_other_settings_are_refused_and_named(rendered: Path) -> None:
    before = digests(rendered)
    with pytest.raises(UsageError, match=r"seed 11 \(wanted 12\)"):
        render(replace(LOOK, seed=12), 2, rendered)
    assert digests(rendered) == before


def test_overwrite_replaces_our_videos_only(tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    render(LOOK, 3, folder, workers=1)
    (folder / "mine.mp4").write_bytes(b"not yours")
    old = digests(folder)
    render(replace(LOOK, seed=12), 1, folder, workers=1, overwrite=True)
    found = digests(folder)
    assert sorted(found) == sorted([name_of(0), "mine.mp4", MARKER, LABELS])
    assert found["mine.mp4"] == old["mine.mp4"]
    assert found[name_of(0)] != old[name_of(0)]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_foreign_folder_is_left_alone(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "thesis.tex").write_text("all my work")
    with pytest.raises(UsageError, match="not made by this command"):
        render(LOOK, 1, tmp_path, overwrite=overwrite)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file"):
        render(LOOK, 1, tmp_path / "file" / "videos")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"width": 97}, "97x64"), ({"height": 16}, "96x16"), ({"frames": 8}, "8 frames"), ({"fps": 0.0}, "out of range")],
)
def test_impossible_pictures_are_refused(wrong: dict[str, float], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        replace(LOOK, **wrong)  # type: ignore[arg-type]


def test_labels_say_what_the_simulation_did(rendered: Path) -> None:
    with (rendered / LABELS).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [name_of(i) for i in range(4)]
    for index, row in enumerate(rows):
        _, label = perform(LOOK, index)
        for part in fields(Measured):
            assert float(row[part.name]) == pytest.approx(getattr(label.measured, part.name), abs=1e-4)
        measured = Measured(**{part.name: float(row[part.name]) for part in fields(Measured)})
        assert float(row["execution"]) == pytest.approx(execution(measured), abs=0.01)
        assert abs(float(row["score"]) - float(row["execution"])) < 1.0
    assert [row["split"] for row in rows] == ["train", "train", "test", "train"]


def test_the_manifest_reads_videos_and_labels(rendered: Path) -> None:
    """The folder is what aqa-extract takes: every video found, its score beside it."""
    videos = find_videos(str(rendered)).videos
    assert [v.id for v in videos] == [name_of(i) for i in range(4)]
    for index, video in enumerate(videos):
        _, label = perform(LOOK, index)
        assert video.score == label.score
        assert video.difficulty == label.difficulty
        assert (video.split, video.category) == (label.split, label.category)
        assert float(str(video.extra["entry_angle"])) == pytest.approx(label.measured.entry_angle, abs=1e-4)


def test_scores_are_spread_and_difficulty_does_not_give_them_away() -> None:
    from scipy.stats import spearmanr

    labels = [perform(LOOK, i)[1] for i in range(120)]
    scores = np.array([label.score for label in labels])
    assert 4 < scores.mean() < 8
    assert 1.2 < scores.std() < 3
    assert scores.min() < 4
    assert scores.max() > 9
    assert abs(spearmanr(scores, [label.difficulty for label in labels]).statistic) < 0.4
    # Half points of a panel: ties, as in real data.
    assert len(set(scores)) < len(scores)
