"""Adapters on the files as they are published: what these hold, and which of their errors are known."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from aqa_shared.datasets import about, read
from aqa_shared.datasets.check import findings
from aqa_shared.datasets.prepare import prepare
from aqa_shared.datasets.published import Published
from aqa_shared.manifest import find_videos


@pytest.fixture
def annotations(shared_dir: Path) -> Path:
    return shared_dir / "annotations"


def only_videos_are_missing(data: Published) -> bool:
    return [f.where for f in findings(data) if not f.known] == ["videos"]


def extremes_are_the_row_s(name: str, data: Published) -> bool:
    """The range in the table is that of the files."""
    for r in about(name).ranges:
        chosen = [p for p in data.performances if r.category in (None, p.category)]
        values = [p.score if r.column == "score" else p.columns[r.column] for p in chosen]
        assert (min(values), max(values)) == (r.low, r.high), r
    return True


def test_mtl_aqa(annotations: Path) -> None:
    data = read("mtl-aqa", annotations / "mtl-aqa")
    assert Counter(p.split for p in data.performances) == {"train": 1059, "test": 353}
    assert len({p.id for p in data.performances}) == 1412
    assert sum(bool(p.columns["breaks_rule"]) for p in data.performances) == 27
    assert len({p.group for p in data.performances}) == 15
    assert len({p.columns["dive_number"] for p in data.performances}) == 58
    assert len({p.difficulty for p in data.performances}) == 23
    lengths = [p.frames for p in data.performances if p.frames is not None]
    assert (min(lengths), max(lengths)) == (54, 273)
    tokens = [len(p.columns["caption"]) for p in data.performances]
    assert all(p.columns["caption"][0] == "<sos>" for p in data.performances)
    assert max(tokens) == 485
    assert all(0 <= m <= 10 for p in data.performances for m in p.columns["judge_scores"])
    assert extremes_are_the_row_s("mtl-aqa", data)
    assert only_videos_are_missing(data)
    # 27 broken rules, the mark of 45 in MUSDL's copy, four captions without a dive.
    assert sum(f.known for f in findings(data)) == 29


def test_mtl_aqa_of_musdl_has_a_mark_of_45(annotations: Path, tmp_path: Path) -> None:
    for name in ("augmented_final_annotations_dict.pkl", "train_split_0.pkl", "test_split_0.pkl"):
        (tmp_path / name).symlink_to(annotations / "mtl-aqa" / name)
    data = read("mtl-aqa", tmp_path)
    marked = next(p for p in data.performances if p.id == "04_49")
    assert marked.columns["judge_scores"] == [2.5, 4.0, 4.0, 4.5, 3.5, 5.0, 4.0]
    assert not marked.columns["breaks_rule"]
    assert only_videos_are_missing(data)


def test_jigsaws(annotations: Path) -> None:
    data = read("jigsaws", annotations / "jigsaws")
    assert Counter(p.category for p in data.performances) == {"Suturing": 39, "Needle_Passing": 28, "Knot_Tying": 36}
    folds = {split.name: Counter(fold for _, fold in split.rows) for split in data.splits}
    assert folds["folds-suturing"] == {"0": 9, "1": 10, "2": 10, "3": 10}
    assert folds["folds-needle_passing"] == {str(k): 7 for k in range(4)}
    assert folds["folds-knot_tying"] == {str(k): 9 for k in range(4)}
    assert folds["folds"].total() == 103
    assert len({p.group for p in data.performances}) == 8
    assert len(folds["by-surgeon-suturing"]) == 8
    assert extremes_are_the_row_s("jigsaws", data)
    assert only_videos_are_missing(data)


def test_jigsaws_says_what_the_features_made_of_it_say(shared_dir: Path) -> None:
    known = np.load(shared_dir / "features" / "jigsaws_suturing_i3d_rgb.npz")
    by_id = {p.id: p for p in read("jigsaws", shared_dir / "annotations" / "jigsaws").performances}
    found = [by_id[name] for name in known["id"].tolist()]
    assert [p.score for p in found] == known["score"].tolist()
    assert [p.columns["ratings"] for p in found] == known["elements"].tolist()
    assert [p.columns["fold"] for p in found] == [str(k) for k in known["fold"]]


def test_ui_prmd_of_the_names_of_the_release(shared_dir: Path, tmp_path: Path) -> None:
    """2000 sequences by their names; the numbers of some are those of the published files."""
    known = np.load(shared_dir / "features" / "ui_prmd_kinect.npz")
    columns = zip(*(known[c].tolist() for c in ("movement", "subject", "repetition", "correct")), strict=True)
    data, offset = known["data"], known["offset"]
    for i, (movement, subject, repetition, correct) in enumerate(columns):
        kind, ending = ("Segmented", "") if correct else ("Incorrect Segmented", "_inc")
        folder = tmp_path / f"{kind} Movements" / "Kinect" / "Positions"
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"m{movement:02d}_s{subject:02d}_e{repetition:02d}_positions{ending}.txt"
        np.savetxt(file, data[offset[i] : offset[i + 1]] if i % 100 == 0 else data[:1], fmt="%.4f", delimiter=",")
    published = read("ui-prmd", tmp_path)
    assert findings(published) == []
    assert Counter(p.score for p in published.performances) == {1.0: 1000, 0.0: 1000}
    assert set(Counter(p.category for p in published.performances).values()) == {200}
    assert set(Counter(fold for _, fold in published.splits[0].rows).values()) == {200}
    assert published.sequences is not None
    assert sum(len(values) > 1 for _, values in published.sequences()) == 20


def test_rhythmic_gymnastics(annotations: Path) -> None:
    data = read("rhythmic-gymnastics", annotations / "rhythmic-gymnastics")
    ids = {p.id for p in data.performances}
    assert len(ids) == 1000
    assert "Ball_134" not in ids
    assert "Ball_251" in ids
    assert set(Counter((p.category, p.split) for p in data.performances).items()) == {
        ((apparatus, role), n)
        for apparatus in ("Ball", "Clubs", "Hoop", "Ribbon")
        for role, n in (("train", 200), ("test", 50))
    }
    assert sum(p.columns["penalty"] > 0 for p in data.performances) == 143
    assert extremes_are_the_row_s("rhythmic-gymnastics", data)
    assert only_videos_are_missing(data)


def test_fis_v_and_mit_skate(annotations: Path) -> None:
    data = read("fis-v", annotations / "fis-v")
    assert [p.id for p in data.performances] == [str(i) for i in range(1, 501)]
    assert extremes_are_the_row_s("fis-v", data)
    # The two lists of the split are not among the files here.
    assert sum(f.known for f in findings(data)) == 14
    assert [f.where for f in findings(data) if not f.known] == ["videos", str(annotations / "fis-v")]
    data = read("mit-skate", annotations / "fis-v")
    assert len(data.performances) == 150
    assert len({p.group for p in data.performances}) == 13
    assert extremes_are_the_row_s("mit-skate", data)
    assert only_videos_are_missing(data)


def test_ui_prmd(annotations: Path) -> None:
    data = read("ui-prmd", annotations / "ui-prmd")
    assert Counter(p.columns["correct"] for p in data.performances) == {True: 90, False: 90}
    assert findings(data) == []
    assert data.sequences is not None
    shapes = Counter(values.shape for _, values in data.sequences())
    assert shapes == {(240, 4): 180}


@pytest.mark.parametrize("name", ["mtl-aqa", "jigsaws", "rhythmic-gymnastics", "fis-v"])
def test_the_manifest_is_read_back_as_it_was_meant(name: str, annotations: Path, tmp_path: Path) -> None:
    """Every published row, through the reader of `aqa-extract`; it wants one video at least to be there."""
    root = tmp_path / "in"
    root.mkdir()
    for file in (annotations / name).iterdir():
        (root / file.name).symlink_to(file)
    first = read(name, root).performances[0]
    (root / str(first.path)).touch()
    data = prepare(name, root, tmp_path / "out")
    manifest = find_videos(tmp_path / "out" / "manifest.csv")
    assert manifest.warnings == []
    assert [(v.id, v.start, v.end, v.score, v.difficulty, v.split, v.category) for v in manifest.videos] == [
        (p.id, p.start, p.end, p.score, p.difficulty, p.split, p.category) for p in data.performances
    ]
    assert manifest.videos[0].path == str(root / str(first.path))
