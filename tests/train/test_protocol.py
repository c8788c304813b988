"""Who is what in a run, from the configuration and the table of the videos."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aqa_shared.errors import UsageError
from aqa_shared.store import FeatureStore
from aqa_train.config import RunConfig
from aqa_train.experiment import prepare
from aqa_train.features import FeatureSet
from aqa_train.folds import over_folds
from aqa_train.protocol import make_splits
from aqa_train.splits import Split

from .conftest import MakeStore, synthetic


def features(split: list[str] | None = None, *, scores: Any = None, n: int = 12, **columns: Any) -> FeatureSet:
    x, truth = synthetic(n, 2, 3)
    table = {"score": np.asarray(truth if scores is None else scores, dtype=np.float64), **columns}
    if split is not None:
        table["split"] = np.array(split, dtype=object)
    return FeatureSet.from_arrays({"rgb": x}, table, [f"v{i:02d}" for i in range(n)])


def splits(found: FeatureSet, **settings: Any) -> tuple[list[Split], list[str]]:
    said: list[str] = []
    return make_splits(RunConfig(features="f", **{"seeds": 1, **settings}), found, said.append), said


def ids(*rows: int) -> tuple[str, ...]:
    return tuple(f"v{i:02d}" for i in rows)


def test_roles_are_read_whatever_their_case() -> None:
    (split,), _ = splits(features(["Train"] * 7 + [" validation", "VAL"] + ["Test", "TEST", "test "]))
    assert split.test == ids(9, 10, 11)
    assert split.validation == ids(7, 8)


def test_roles_that_mean_nothing_are_refused() -> None:
    found = features(["train"] * 6 + ["testing"] * 5 + ["dev"])
    with pytest.raises(UsageError, match=r"split is 'dev', 'testing' for 6 videos: v06"):
        splits(found)
    # Where something else says who is tested, the column may hold anything.
    assert len(splits(found, folds=3)[0]) == 3


def test_validation_marks_count_where_no_test_is_named() -> None:
    found = features(["val"] * 3 + ["train"] * 9)
    drawn, said = splits(found)
    assert len(drawn) == 4
    assert "each of 9 scored videos is tested once, in 4 folds" in said[0]
    (split,), said = splits(found, test_fraction=0.25)
    assert "2 of 9 scored ones are held out" in said[0]
    for one in (split, *drawn):
        assert one.validation == ids(0, 1, 2)
        assert not set(one.test) & set(one.validation)


@pytest.mark.parametrize(("scored", "folds"), [(4, 2), (5, 2), (8, 4), (11, 5), (499, 5), (500, 1), (501, 1)])
def test_without_a_split_the_number_of_scored_videos_decides(scored: int, folds: int) -> None:
    n = scored + 3
    found = features(scores=[*range(scored), np.nan, np.nan, np.nan], n=n)
    drawn, _ = splits(found, labelled=1.0)
    assert len(drawn) == folds
    tested = [i for s in drawn for i in s.test]
    assert len(tested) == len(set(tested)) == (scored if folds > 1 else 125)
    assert all(len(s.test) > 1 and {*ids(scored, scored + 1, scored + 2)} <= set(s.unlabelled) for s in drawn)
    assert over_folds(RunConfig(features="f"), found) == "pooled"


@pytest.mark.parametrize("name", ["score", "difficulty"])
@pytest.mark.parametrize("value", [1e300, -2e12, np.inf])
def test_scores_of_no_usual_size_are_named(name: str, value: float) -> None:
    values = np.arange(12.0)
    values[7] = value
    found = features(scores=values) if name == "score" else features(difficulty=values)
    with pytest.raises(UsageError, match=rf"a {name} beyond ±1e\+12 in 1 video: v07 \("):
        splits(found)


def test_three_scored_videos_are_too_few_to_cross_validate() -> None:
    with pytest.raises(UsageError, match="3 scored videos are too few to train and test"):
        splits(features(scores=[1, 2, 3, *[np.nan] * 9]))


def test_folds_that_were_asked_for_are_averaged(tmp_path: Path) -> None:
    file = tmp_path / "folds.json"
    file.write_text(json.dumps([{"train": ids(*range(6)), "test": ids(*range(6, 12))}]))
    for given in ({"folds": 3}, {"split": str(file)}, {"test_fraction": 0.5}):
        assert over_folds(RunConfig(features="f", **given), features()) == "mean"
    assert over_folds(RunConfig(features="f", folds=3, over_folds="pooled"), features()) == "pooled"
    assert over_folds(RunConfig(features="f"), features(["test"] * 6 + ["train"] * 6)) == "mean"


def test_a_part_beside_the_stores_test_videos_is_refused() -> None:
    with pytest.raises(UsageError, match="both say what is test"):
        splits(features(["test"] * 2 + ["train"] * 10), test_fraction=0.2)


@pytest.mark.parametrize("given", [{}, {"test_fraction": 0.3}])
def test_groups_are_whole_wherever_the_test_videos_come_from(given: dict[str, Any]) -> None:
    athlete = np.array([f"a{i // 3}" for i in range(36)], dtype=object)
    roles = ["val" if i < 2 else "" for i in range(36)]
    drawn, said = splits(features(roles, n=36, athlete=athlete), group="athlete", labelled=1.0, **given)
    assert len(drawn) == (1 if given else 5)
    assert "not learned from: 1 other view of validation videos" in said
    for split in drawn:
        learned, tested = ({athlete[int(i[1:])] for i in part} for part in (split.labelled, split.test))
        assert not learned & tested
        assert "a0" not in learned | tested
        assert len(learned | tested) == 11


def test_a_store_whose_splits_part_a_group_is_refused() -> None:
    athlete = np.array([f"a{i // 2}" for i in range(12)], dtype=object)
    with pytest.raises(UsageError, match=r"the column split divides 1 group: a1"):
        splits(features(["test"] * 3 + ["train"] * 9, athlete=athlete), group="athlete")
    assert splits(features(["test"] * 4 + ["train"] * 8, athlete=athlete), group="athlete")[0]


def test_unscored_views_of_what_is_tested_are_not_learned_from() -> None:
    athlete = np.array([f"a{i // 3}" for i in range(12)], dtype=object)
    scores = [np.nan if i % 3 == 2 else float(i) for i in range(12)]
    for split in splits(features(scores=scores, athlete=athlete), group="athlete", folds=2)[0]:
        tested = {athlete[int(i[1:])] for i in split.test}
        assert len(split.test) == 4
        assert not tested & {athlete[int(i[1:])] for i in (*split.labelled, *split.unlabelled)}
        assert len(split.labelled) + len(split.unlabelled) == 6


def test_one_video_under_two_names_is_found(make_store: MakeStore) -> None:
    roles = [{"split": "test" if i < 4 else "train"} for i in range(12)]
    metas = [{"identity": {"fingerprint": f"f{i % 10}", "size": 9, "mtime_ns": i}} for i in range(12)]

    def made(name: str, metas: list[dict[str, Any]]) -> FeatureSet:
        return FeatureSet.from_store(FeatureStore.open(make_store(videos=12, labels=roles, metas=metas, name=name)))

    found = made("twins.zarr", metas)
    with pytest.raises(UsageError, match=r"2 test video.*: 010\.mp4 = 000\.mp4, 011\.mp4 = 001\.mp4"):
        splits(found)
    assert splits(found, transductive=True)[0]
    # Who is tested by our own choice is tested under both names.
    free = FeatureSet.from_store(FeatureStore.open(make_store(videos=12, metas=metas, name="free.zarr")))
    for given in ({}, {"folds": 4}, {"test_fraction": 0.3}):
        for split in splits(free, **given)[0]:
            assert ("000.mp4" in split.test) == ("010.mp4" in split.test)
            assert ("001.mp4" in split.test) == ("011.mp4" in split.test)
    # Other parts of one file are other videos.
    parts = [{**m, "start": 10 * i, "end": 10 * i + 10} for i, m in enumerate(metas)]
    assert splits(made("parts.zarr", parts))[0]


def test_one_video_in_two_folds_of_a_column_is_named() -> None:
    content = np.array([f"f{i % 11}" for i in range(12)], dtype=object)
    fold = np.array([f"P{i // 3}" for i in range(12)], dtype=object)
    with pytest.raises(UsageError, match="v00 of the fold P0 and v11 of the fold P3 are one video") as e:
        splits(features(fingerprint=content, fold=fold), folds_by="fold")
    assert "--group" not in e.value.fix
    # Of groups alone nothing is said about the same video.
    athlete = np.array([f"a{i % 6}" for i in range(12)], dtype=object)
    with pytest.raises(UsageError, match="the fold P0 divides a group: 3 videos of it in other folds"):
        splits(features(fold=fold, athlete=athlete), folds_by="fold", group="athlete")


def test_one_video_under_two_names_is_not_learned_from_while_it_validates(tmp_path: Path) -> None:
    content = np.array([f"f{i % 20}" for i in range(24)], dtype=object)
    roles = ["val"] * 2 + ["train"] * 10 + ["test"] * 4 + ["train"] * 8
    drawn = splits(features(n=24, fingerprint=content), folds=2, validation=0.3, seeds=5)[0]
    marked, said = splits(features(roles, n=24, fingerprint=content))
    assert "not learned from: 2 other views of validation videos" in said
    for split in (*drawn, *marked):
        shown, held = ({content[int(i[1:])] for i in part} for part in (split.labelled, split.validation))
        assert held
        assert not shown & held
    # Nor is an unscored one that no file names, where it is the one that is tested.
    file = tmp_path / "split.json"
    file.write_text(json.dumps({"train": ids(*range(4, 12)), "test": ids(0, 1)}))
    found = features(n=24, fingerprint=content, scores=[*range(20), *[np.nan] * 4])
    assert splits(found, split=str(file))[0][0].unlabelled == ids(22, 23)


def test_nested_draws_contain_each_other_and_take_no_validation() -> None:
    category = np.array(["a", "b", "c"] * 8, dtype=object)
    found = features(n=24, category=category)
    drawn = [set(splits(found, labelled=f, draw="nested")[0][0].labelled) for f in (0.15, 0.3, 0.5, 0.8, 1.0)]
    assert all(a < b for a, b in pairwise(drawn))
    with pytest.raises(UsageError, match="nested and --validation"):
        splits(found, draw="nested", validation=0.2)


@pytest.mark.parametrize("unscored", [0, 3])
def test_every_score_is_used_unless_hiding_some_is_asked_for(unscored: int) -> None:
    found = features(["test"] * 3 + ["train"] * 9, scores=[*range(12 - unscored), *[np.nan] * unscored])
    (split,), _ = splits(found)
    assert split.labelled == ids(*range(3, 12 - unscored))
    assert split.unlabelled == ids(*range(12 - unscored, 12))
    (split,), _ = splits(found, labelled=0.5)
    assert len(split.labelled) == round((9 - unscored) / 2)


@pytest.mark.parametrize("settings", [{"methods": ("s4aqa",)}, {"methods": ("auto", "aa+rda")}])
def test_a_method_without_what_it_needs_is_refused(make_store: MakeStore, settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="learns from unlabelled videos, and there are none") as e:
        prepare(RunConfig(features=str(make_store(videos=12)), **settings), lambda message: None)
    assert "--labelled 0.4" in e.value.fix
    assert "--method auto" in e.value.fix


def test_a_split_file_keeps_the_unscored_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    file = tmp_path / "split.json"
    file.write_text(json.dumps({"train": ids(*range(6)), "test": ids(6, 7)}))
    found = features(scores=[*range(10), np.nan, np.nan])
    (split,), said = splits(found, split=str(file))
    assert set(split.labelled) | set(split.unlabelled) == set(ids(*range(6), 10, 11))
    assert f"{file} does not name 2 scored videos of the store: left out" in said


def test_validation_that_does_nothing_is_said() -> None:
    said = splits(features(["val", "val", "test", "test", *["train"] * 8]), validation=0.3)[1]
    assert any("--validation is not needed: 2" in s for s in said)
    said = splits(features(["test", "test", *["train"] * 10]), validation=0.05, labelled=0.4)[1]
    assert any("--validation 0.05 of 4 labelled is none" in s for s in said)


def test_a_file_of_folds_tests_every_fold_once(make_store: MakeStore, tmp_path: Path) -> None:
    file = tmp_path / "folds.csv"
    file.write_text("id,fold\n" + "".join(f"{i:03d}.mp4,{i % 3}\n" for i in range(12)))
    config = RunConfig(features=str(make_store(videos=12)), split=str(file), methods=("aa",), seeds=1)
    found = prepare(config, lambda message: None).splits
    assert [s.test for s in found] == [tuple(f"{i:03d}.mp4" for i in range(k, 12, 3)) for k in range(3)]
    assert not any(s.validation for s in found)


def test_videos_without_a_group_are_on_their_own(make_store: MakeStore) -> None:
    """Empty cells of a group column: None in the store."""
    labels = [{"extra": {"trial": f"t{i // 2}" if i < 12 else None}} for i in range(24)]
    scores = [None if i in (3, 13) else float(i) for i in range(24)]
    found = FeatureSet.from_store(FeatureStore.open(make_store(labels=labels, scores=scores)))
    drawn = splits(found, folds=4, group="trial")[0]
    # 5 whole pairs, one half and 11 videos are dealt out 4 at a time.
    assert sorted(len({i if i >= "012" else int(i[:3]) // 2 for i in s.test}) for s in drawn) == [4, 4, 4, 5]
    for split in drawn:
        learned = {*split.labelled, *split.unlabelled}
        assert "013.mp4" in learned
        assert ("003.mp4" in learned) == ("002.mp4" not in split.test)
    none = make_store(labels=[{"extra": {"trial": None}} for _ in range(24)], name="none.zarr")
    with pytest.raises(UsageError, match="the videos have no column 'trial'"):
        splits(FeatureSet.from_store(FeatureStore.open(none)), folds=4, group="trial")


def test_a_saved_split_given_back_is_the_same_split(tmp_path: Path) -> None:
    athlete = np.array([f"a{i // 3}" for i in range(24)], dtype=object)
    scores = [np.nan if i % 3 == 2 else float(i) for i in range(24)]
    found = features(["train", "test"] * 12, scores=scores, n=24, athlete=athlete)
    for split in splits(found, group="athlete", folds=4, labelled=1.0, validation=0.2)[0]:
        file = tmp_path / f"fold{split.fold}.json"
        split.save(file)
        for group in (None, "athlete"):
            (back,), said = splits(found, split=str(file), group=group, labelled=1.0)
            assert back.digest == split.digest
        assert len(split.validation) == 2
        # One view each of the two athletes tested and of the one who validates.
        assert f"{file} does not name 3 unscored videos of the store: left out" in said


def test_unlisted_videos_that_may_be_tested_are_not_learned_from(tmp_path: Path) -> None:
    file = tmp_path / "split.json"
    file.write_text(json.dumps({"train": ids(*range(5)), "val": ids(5), "test": ids(6, 7)}))
    trial = np.array([f"t{i}" for i in (0, 1, 2, 3, 4, 5, 6, 7, 6, 5, 0, 9)], dtype=object)
    scores = [*range(8), *[np.nan] * 4]

    def unlisted(roles: list[str], **settings: Any) -> set[str]:
        (split,), said = splits(features([""] * 8 + roles, scores=scores, trial=trial), split=str(file), **settings)
        learned = set(split.unlabelled) & set(ids(8, 9, 10, 11))
        left = 4 - len(learned)
        plural = "" if left == 1 else "s"
        assert (f"{file} does not name {left} unscored video{plural} of the store: left out" in said) == (left > 0)
        return learned

    assert unlisted(["train", "", "", ""]) == set(ids(8, 9, 10, 11))
    assert unlisted(["Test", "val", "validation", "train"]) == set(ids(11))
    assert unlisted([""] * 4, group="trial") == set(ids(10, 11))


def test_a_split_file_that_parts_a_group_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "split.json"
    file.write_text(json.dumps({"train": ids(*range(6)), "test": ids(*range(6, 12))}))
    trial = np.array([f"t{i % 6}" if i in (2, 8) else "" for i in range(12)], dtype=object)
    with pytest.raises(UsageError, match=r"divides 1 group: t2"):
        splits(features(trial=trial), split=str(file), group="trial")


@pytest.mark.parametrize("labelled", [0.5, 1.0])
def test_validation_holds_out_whole_groups(labelled: float) -> None:
    athlete = np.array([f"a{i // 4}" for i in range(48)], dtype=object)
    scores = [np.nan if i % 4 == 3 else float(i) for i in range(48)]
    found = features(scores=scores, n=48, athlete=athlete)
    drawn, said = splits(found, group="athlete", folds=3, labelled=labelled, validation=0.25, seeds=2)
    assert any(re.fullmatch(r"not learned from: \d+ other views? of validation videos", s) for s in said)
    for split in drawn:
        shown = [{athlete[int(i[1:])] for i in getattr(split, r)} for r in ("labelled", "validation", "test")]
        assert all(shown)
        assert sum(map(len, shown)) == len(set().union(*shown))
        assert not {athlete[int(i[1:])] for i in split.unlabelled} & (shown[1] | shown[2])
        # Who neither validates nor is tested is learned from, with every view.
        assert len(split.labelled) + len(split.unlabelled) == 4 * (12 - len(shown[1]) - len(shown[2]))


def test_validation_is_drawn_within_categories() -> None:
    category = np.array(["a"] * 30 + ["b"] * 10, dtype=object)
    for split in splits(features(n=40, category=category), folds=2, labelled=1.0, validation=0.2, seeds=5)[0]:
        kinds = [category[int(i[1:])] for i in split.validation]
        assert (kinds.count("a"), kinds.count("b")) == (3, 1)


def test_what_validation_took_is_not_said_to_lack_labels() -> None:
    with pytest.raises(
        UsageError, match=r"--labelled 0\.5 of .* and --validation 0\.99 leaves [01] labelled"
    ) as refused:
        splits(features(n=40), folds=2, labelled=0.5, validation=0.99)
    assert refused.value.fix == "raise --labelled, lower --validation 0.99, or score more videos"
    # Where others are marked for it, nothing was taken.
    marked = ["val"] * 5 + ["train"] * 30 + ["test"] * 5
    with pytest.raises(UsageError, match=r"--labelled 0\.03 of 30 scored training videos leaves 1") as refused:
        splits(features(marked, n=40), labelled=0.03, validation=0.2)
    assert refused.value.fix == "label at least 0.067 of them, or score more videos"
    # Nor is there more than all to label, nor any blame where the draw took none.
    with pytest.raises(UsageError, match=r"--labelled 1 of .* and --validation 0\.9 leaves [01]") as refused:
        splits(features(n=8), folds=2, labelled=1.0, validation=0.9)
    assert refused.value.fix == "lower --validation 0.9, or score more videos"
    with pytest.raises(UsageError, match=r"--labelled 0\.05 of 20 scored training videos leaves 1 labelled"):
        splits(features(n=40), folds=2, labelled=0.05, validation=0.2)


def test_training_videos_without_a_score_are_said_to_be_too_few() -> None:
    category = np.array(["a", "b"] * 6, dtype=object)
    found = features(["train"] * 8 + ["test"] * 4, scores=[np.nan] * 8 + [1, 2, 3, 4], category=category)
    with pytest.raises(UsageError, match="leaves 0 labelled"):
        splits(found, validation=0.5)


def test_empty_cells_of_a_labels_file_are_no_group(make_store: MakeStore, tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text("id,score,trial\n" + "".join(f"{i:03d}.mp4,{i},{'t' if i < 2 else ''}\n" for i in range(12)))
    config = RunConfig(features=str(make_store(videos=12)), labels=str(file), folds=3, group="trial", methods=("aa",))
    found = prepare(config, lambda message: None)
    assert found.features.column("trial").tolist() == ["t"] * 2 + [""] * 10
    assert sorted(len(s.test) for s in found.splits if s.seed == 0) == [3, 4, 5]
