"""Scores of every video, by the models that did not learn from its score; and all models of a run as one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aqa_shared.errors import UsageError
from aqa_shared.store import FeatureStore
from aqa_train import checkpoint
from aqa_train.batch import Batch
from aqa_train.config import RunConfig
from aqa_train.features import FeatureSet
from aqa_train.methods.s4aqa import S4AQA, S4AQAConfig
from aqa_train.predict import load_checkpoint, open_ensemble
from aqa_train.scores import combine, every_video, learned_from
from aqa_train.splits import Split
from aqa_train.storage import packed, rounded, unread

from .conftest import MakeStore, inputs, synthetic
from .runs import FAST, aqa_train, read_csv

ALONE = [*FAST, "--jobs", "1"]


def test_combining_by_hand() -> None:
    values = np.array([[1.0, 4.0, 7.0], [3.0, 6.0, 8.0], [8.0, 5.0, 9.0]])
    left_out = np.array([[False, True, True], [False, False, True], [True, True, True]])
    found = combine(values, left_out)
    np.testing.assert_array_equal(found.score, [2.0, 6.0, np.nan])
    np.testing.assert_array_equal(found.spread, [np.sqrt(2.0), np.nan, np.nan])
    np.testing.assert_array_equal(found.members, [2, 1, 0])


def features(n: int = 6, **columns: Any) -> FeatureSet:
    x, score = synthetic(n, 2, 3)
    return FeatureSet.from_arrays({"rgb": x}, {"score": score, **columns}, [f"v{i}" for i in range(n)])


def split(labelled: str, unlabelled: str = "", test: str = "", seed: int = 0, fold: int = 0) -> Split:
    roles = [tuple(f"v{c}" for c in role) for role in (labelled, unlabelled, test)]
    return Split(fold=fold, seed=seed, labelled=roles[0], unlabelled=roles[1], test=roles[2])


CONFIG = RunConfig(features="f")


def test_learned_from_is_the_score_not_the_video() -> None:
    assert learned_from(features(), split("01", "23", "4"), CONFIG).tolist() == [True, True, *[False] * 4]


def test_the_same_file_under_another_name_was_learned_from_too() -> None:
    fingerprint = np.array(["a", "b", "a", "", "c", ""], dtype=object)
    found = features(fingerprint=fingerprint)
    assert learned_from(found, split("03", "12", "4"), CONFIG).tolist() == [True, False, True, True, False, False]
    other_part = features(fingerprint=fingerprint, start=np.arange(6.0))
    assert learned_from(other_part, split("03"), CONFIG).tolist() == [True, False, False, True, False, False]


def test_a_scored_video_is_not_scored_by_models_that_learned_from_its_group() -> None:
    score = np.array([1.0, 2.0, np.nan, 3.0, 4.0, 5.0])
    found = features(athlete=np.array(["x", "x", "x", "", "", "y"], dtype=object), score=score)
    # The unscored one of the group is what such a model is for.
    config = RunConfig(features="f", group="athlete")
    assert learned_from(found, split("03"), config).tolist() == [True, True, False, True, False, False]
    assert learned_from(found, split("03"), CONFIG).tolist() == [True, False, False, True, False, False]


def test_every_video_by_hand() -> None:
    """Two models; v0 labelled in both, v1 in one, v2 unlabelled in one, v3 tested, v4 taking no part, v5 unscored."""
    score = np.array([10.0, 20.0, 30.0, 40.0, 50.0, np.nan])
    found = features(score=score)
    splits = [split("01", "5", "3"), split("0", "25", "13", seed=1)]
    results = [
        {"method": "m", "fold": 0, "seed": 0, "scores": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]},
        {"method": "m", "fold": 0, "seed": 1, "scores": [3.0, 4.0, 5.0, 6.0, 7.0, 8.0]},
    ]
    rows = list(every_video(found, CONFIG, splits, results))
    deviation = pytest.approx(np.sqrt(2.0))
    assert rows == [
        # id, method, score, spread, members, seen_unlabelled, trained_on, true, residual
        ["v0", "m", None, None, 0, 0, 2, 10.0, None],
        ["v1", "m", 4.0, None, 1, 0, 1, 20.0, -16.0],
        ["v2", "m", 4.0, deviation, 2, 1, 0, 30.0, -26.0],
        ["v3", "m", 5.0, deviation, 2, 0, 0, 40.0, -35.0],
        ["v4", "m", 6.0, deviation, 2, 0, 0, 50.0, -44.0],
        ["v5", "m", 7.0, deviation, 2, 2, 0, None, None],
    ]


# what is stored


def network(**settings: Any) -> S4AQA:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return S4AQA(inputs(6), S4AQAConfig(widths=(8, 8), **settings))


@pytest.mark.parametrize("settings", [{}, {"pooling": "flatten"}, {"pooling": "max"}, {"mask_value": "learned"}])
def test_what_only_the_losses_need_is_not_stored(settings: dict[str, Any]) -> None:
    model = network(**settings)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = unread(model, Batch({"rgb": torch.zeros(2, 4, 6)}, torch.zeros(2)))
    assert {n.split(".")[0] for n in found} == {"decoder", "discriminator"} | (
        {"mask_token"} if "mask_value" in settings else set()
    )
    after = model.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())
    assert model.training


def test_a_network_that_needs_everything_keeps_everything() -> None:
    class Either(torch.nn.Module):
        """One weight stands in for the other where it is NaN: neither would be missed alone."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))

        def forward(self, batch: Batch) -> torch.Tensor:
            weight = torch.where(self.a.isnan(), self.b, self.a)
            return (batch.streams["rgb"].mean(1) * weight).sum(-1)

    assert unread(Either(), Batch({"rgb": torch.zeros(2, 2, 3)}, torch.zeros(2))) == []


def test_matrices_are_rounded_once_and_packed_without_loss() -> None:
    state = network().state_dict()
    state["far"] = torch.full((2, 2), 1e9)
    once = rounded(state)
    stored = packed(once)
    for name, value in state.items():
        assert once[name].dtype == value.dtype
        assert torch.equal(stored[name].to(value.dtype), once[name])
        assert torch.allclose(once[name], value, rtol=2**-11, atol=2**-25)
        half = value.ndim == 2 and name != "far"
        assert stored[name].dtype == (torch.float16 if half else value.dtype)
    # What cannot be halved without loss is not.
    assert packed({"x": torch.full((1, 1), 0.1)})["x"].dtype == torch.float32


def test_rounding_moves_no_score_that_anyone_could_tell() -> None:
    """A weight moves by 2^-12 of itself at most and the errors of a sum average out: on trained networks of 2 × 1024
    channels the largest difference was 1.9e-5 of the score range. 1e-4 of the scale's 5 units is allowed: bfloat16,
    with three bits less, moves this network's scores by 4e-4."""
    model = network().eval()
    x = Batch({"rgb": torch.randn(64, 4, 6, generator=torch.Generator().manual_seed(0))}, torch.zeros(64))
    with torch.no_grad():
        before = model(x)
        model.load_state_dict(rounded(model.state_dict()))
        after = model(x)
    assert 0 < float((after - before).abs().max()) < 1e-4


# runs


@pytest.fixture(scope="module")
def run(make_store_once: MakeStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods, three folds and two seeds; videos without a score, some learned from."""
    scores = [None if i % 5 == 0 else float(i) for i in range(25)]
    out = tmp_path_factory.mktemp("runs") / "run"
    aqa_train("--features", make_store_once(videos=25, scores=scores), "--method", "aa,s4aqa", "--labelled", 0.6,
              "--folds", 3, "--seeds", 2, "--epochs", 3, "--validation", 0.3, "--out", out, *ALONE)  # fmt: skip
    return out


def opened(run: Path) -> FeatureStore:
    return FeatureStore.open(json.loads((run / "config.json").read_text())["features"])


def test_every_video_has_a_score_by_models_that_did_not_learn_from_it(run: Path) -> None:
    store = opened(run)
    rows = read_csv(run / "scores.csv")
    assert [(r["method"], r["id"]) for r in rows] == [(m, i) for m in ("aa", "s4aqa") for i in store.ids]
    splits = {p.stem: Split.load(p) for p in (run / "splits").glob("*.json")}
    assert len(splits) == 6
    for r in rows:
        fair = [n for n, s in splits.items() if r["id"] not in s.labelled]
        values = {n: load_checkpoint(run / "models" / r["method"] / n) for n in fair}
        if r["id"] in store.ids[:7]:
            single = [m.score({"rgb": store.video(r["id"], "rgb")[None]})[0] for m in values.values()]
            assert float(r["score"]) == pytest.approx(np.mean(single), rel=1e-4)
            assert float(r["spread"]) == pytest.approx(np.std(single, ddof=1), rel=1e-2, abs=1e-5)
        assert int(r["members"]) == len(fair) >= 2
        assert int(r["trained_on"]) == 6 - len(fair)
        assert int(r["seen_unlabelled"]) == sum(r["id"] in splits[n].unlabelled for n in fair)
        if r["true"]:
            assert float(r["residual"]) == pytest.approx(float(r["score"]) - float(r["true"]))
        else:
            assert r["residual"] == ""
            assert r["members"] == "6"


def test_scores_of_a_run_are_those_of_its_ensemble(run: Path) -> None:
    """What `aqa predict RUN STORE` says of the run's own store is what scores.csv says."""
    found = open_ensemble(run, "s4aqa").score(opened(run)).combined
    rows = [r for r in read_csv(run / "scores.csv") if r["method"] == "s4aqa"]
    np.testing.assert_allclose(found.score, [float(r["score"]) for r in rows], rtol=1e-6)
    assert found.members.tolist() == [int(r["members"]) for r in rows]


def test_an_ensemble_leaves_out_who_learned_from_the_group_as_scores_csv_does(
    make_store: MakeStore, tmp_path: Path
) -> None:
    labels = [{"extra": {"athlete": f"a{i // 3}"}} for i in range(12)]
    store, out = make_store(videos=12, labels=labels), tmp_path / "o"
    aqa_train("--features", store, "--group", "athlete", "--folds", 2, "--labelled", 0.5, "--method", "aa",
              "--seeds", 2, "--epochs", 1, "--out", out, *ALONE)  # fmt: skip
    found = open_ensemble(out).score(FeatureStore.open(store))
    rows = read_csv(out / "scores.csv")
    assert found.learned.sum(axis=0).tolist() == [int(r["trained_on"]) for r in rows]
    assert max(int(r["trained_on"]) for r in rows) > 0
    own = [Split.load(p).labelled for p in (out / "splits").glob("*.json")]
    assert any(int(r["trained_on"]) > sum(r["id"] in labelled for labelled in own) for r in rows)


def test_tested_and_stored_models_are_the_same_to_the_last_bit(run: Path) -> None:
    store = opened(run)
    for folder in sorted(run.glob("models/*/*")):
        result = json.loads((folder / "result.json").read_text())
        assert load_checkpoint(folder).score(store).tolist() == result["scores"]
        tested = [result["scores"][store.ids.index(i)] for i in result["ids"]]
        assert result["predicted"]["last"] == tested
        assert (folder / "best.safetensors").exists() == (result["best_epoch"] not in (None, 3))


def test_checkpoints_hold_what_prediction_needs_at_half_the_size(run: Path) -> None:
    for file in run.glob("models/s4aqa/*/*.safetensors"):
        tensors, _ = checkpoint.load(file, "model")
        assert {n.split(".")[1] for n in tensors} == {"encoder", "regressor"}
        assert all((v.dtype == torch.float16) == (v.ndim == 2) for v in tensors.values())


def test_videos_outside_the_split_need_no_columns(make_store: MakeStore, tmp_path: Path) -> None:
    """Twelve of a category with a difficulty; four of another one without, which the split does not name."""
    labels = [{"category": "a", "difficulty": 2.0 + i % 2} if i < 12 else {"category": "b"} for i in range(16)]
    store, out = make_store(videos=16, labels=labels), tmp_path / "o"
    (tmp_path / "split.csv").write_text(
        "id,split\n" + "".join(f"{i:03d}.mp4,{'test' if i > 8 else 'train'}\n" for i in range(12))
    )
    aqa_train("--features", store, "--split", tmp_path / "split.csv", "--method", "core,core-dd,i3d+mlp", "--seeds", 1,
              "--epochs", 1, "--out", out, "--set", "width=8", "--set", "mlp_widths=8", *ALONE[2:])  # fmt: skip
    rows = read_csv(out / "scores.csv")
    for method in ("core", "core-dd", "i3d+mlp"):
        mine = [r for r in rows if r["method"] == method]
        assert [r["trained_on"] for r in mine] == ["1"] * 9 + ["0"] * 7
        scored = 16 if method == "i3d+mlp" else 12
        assert [bool(r["score"]) for r in mine] == [9 <= i < scored for i in range(16)]
    # Nine of them were learned from; that the other four have no score is another matter.
    assert json.loads((out / "metrics.json").read_text())["scores"] == {"videos": 16, "learned_by_all": 9}


def test_the_method_of_a_run_of_several_is_never_guessed(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds the methods aa \(Spearman on test -?[\d.]+\), s4aqa") as e:
        open_ensemble(run)
    assert e.value.fix == "name one: --method aa or --method s4aqa"
    with pytest.raises(UsageError, match="no method 's4aq'") as e:
        open_ensemble(run, "s4aq")
    assert "did you mean s4aqa" in e.value.fix
    assert len(open_ensemble(run, "aa").files) == 6
    assert len(open_ensemble(run / "models" / "s4aqa").files) == 6
    one = open_ensemble(run / "models" / "s4aqa" / "fold1-seed0")
    assert [f.parent.name for f in one.files] == ["fold1-seed0"]
    with pytest.raises(UsageError, match="is of s4aqa, not aa"):
        open_ensemble(run / "models" / "s4aqa", "aa")
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "models" / "aa" / "fold2-seed1" / "last.safetensors").unlink()
    with pytest.raises(UsageError, match="lacks 1 of its 6 models of aa: models/aa/fold2-seed1"):
        open_ensemble(copy, "aa")
    (copy / "metrics.json").write_text("{}")
    with pytest.raises(UsageError, match=r"metrics\.json is damaged") as e:
        open_ensemble(copy, "s4aqa")
    assert "aqa-train --resume" in e.value.fix
    (copy / "metrics.json").unlink()
    with pytest.raises(UsageError, match="no finished run") as e:
        open_ensemble(copy, "s4aqa")
    assert "aqa-train --resume" in e.value.fix


def test_models_of_different_runs_are_not_averaged(run: Path, make_store: MakeStore, tmp_path: Path) -> None:
    aqa_train(
        "--features", make_store(videos=12, channels=8), "--method", "aa", "--seeds", 1, "--epochs", 1,
        "--out", tmp_path / "o", *ALONE,
    )  # fmt: skip
    mixed = tmp_path / "mixed"
    shutil.copytree(run / "models" / "aa" / "fold0-seed0", mixed / "fold0-seed0")
    shutil.copytree(next((tmp_path / "o" / "models" / "aa").iterdir()), mixed / "fold0-seed1")
    with pytest.raises(UsageError, match=r"differ in|does not fit"):
        open_ensemble(mixed).score(opened(run))


def test_a_final_model_learns_from_every_score(
    make_store: MakeStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = [None if i < 4 else float(i) for i in range(16)]
    store = make_store(videos=16, scores=scores, labels=[{"split": "test" if i % 3 else "train"} for i in range(16)])
    out = tmp_path / "final"
    aqa_train(
        "--features", store, "--method", "s4aqa", "--all-scores", "--seeds", 2, "--epochs", 2, "--out", out, *ALONE
    )
    shown = capsys.readouterr()
    assert "learns from 12 scored videos and leaves none to test on" in shown.err
    assert "12 of 16 have none there: every model learned from them" in " ".join(shown.err.split())
    assert "no plot" not in shown.err
    learned = Split.load(out / "splits" / "fold0-seed0.json")
    assert (len(learned.labelled), len(learned.unlabelled), len(learned.test)) == (12, 4, 0)
    assert json.loads((out / "metrics.json").read_text())["rows"] == []
    rows = read_csv(out / "scores.csv")
    assert [r["score"] != "" for r in rows] == [i < 4 for i in range(16)]
    assert {r["trained_on"] for r in rows[4:]} == {"2"}
    found = open_ensemble(out).score(FeatureStore.open(store))
    assert found.learned.all(axis=0).tolist() == [i >= 4 for i in range(16)]
    assert found.combined.members.tolist() == [2] * 16
    assert np.isfinite(found.combined.score).all()


@pytest.mark.parametrize("also", [["--folds", 3], ["--labelled", 0.4], ["--validation", 0.2], ["--test-fraction", 0.5]])
def test_a_final_model_has_no_tests(make_store: MakeStore, also: list[object]) -> None:
    with pytest.raises(UsageError, match="--all-scores learns from every score"):
        aqa_train("--features", make_store(videos=12), "--all-scores", *also)
