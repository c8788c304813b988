"""What a method may ask of the trainer, and that it gets it: trained, saved, resumed, predicted with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from aqa_shared.errors import UsageError
from aqa_shared.store import FeatureStore
from aqa_train import checkpoint
from aqa_train.batch import Batch, Inputs, ScoreScale, join
from aqa_train.columns import ColumnEncoder
from aqa_train.config import Training
from aqa_train.features import FeatureSet
from aqa_train.methods import METHODS
from aqa_train.methods.linear import SVR, Ridge
from aqa_train.methods.mean_teacher import MeanTeacher, MeanTeacherConfig
from aqa_train.methods.trivial import CategoryMean, Constant, Line, Random
from aqa_train.metrics import spearman
from aqa_train.predict import load_checkpoint, open_ensemble
from aqa_train.signals import Stopped
from aqa_train.storage import load_state
from aqa_train.trainer import Task, fit, predict

from .conftest import MakeStore, inputs, synthetic
from .doubles import Pairs, States
from .method_checks import after, alone_as_together, moved, part, prepared, resumes_to_the_bit, same, shape, videos
from .runs import aqa_train, read_csv

CPU = torch.device("cpu")
VIDEOS = 24


def table(n: int = VIDEOS) -> dict[str, Any]:
    rng = np.random.default_rng(5)
    return {
        "difficulty": np.array([2.0 + 0.5 * (i % 4) for i in range(n)]),
        "category": np.array(["ab"[i % 2] for i in range(n)], dtype=object),
        "judges": np.array([json.dumps(rng.integers(0, 11, 7).tolist()) for _ in range(n)], dtype=object),
    }


def task_for(cls: Any, resident: bool = True) -> tuple[Task, Inputs]:
    x, scores = synthetic(VIDEOS, 4, 6)
    found = FeatureSet.from_arrays({"rgb": x, "actor_rgb": x[:, ::-1] * 0.5}, {"score": scores, **table()})
    found = found.place(CPU, "yes") if resident else found
    seen, labelled = np.arange(20), np.arange(0, 20, 2)
    row = cls.row if hasattr(cls, "row") else METHODS["aa"]
    read, shape = found.select(["rgb", "actor_rgb"]).prepared(row.columns, row.labels, seen, labelled, "none")
    return Task(read, labelled, np.setdiff1d(seen, labelled), np.arange(20, 24), scores / 20), shape


def train(cls: Any, resident: bool = True, epochs: int = 4, **options: Any) -> Any:
    task, shape = task_for(cls, resident)
    training = Training(epochs=epochs, batch=4, schedule="cosine")
    return fit(lambda: cls(shape), task, training, seed=[3], device=CPU, **options)


@pytest.mark.parametrize("cls", [Pairs, States, MeanTeacher])
def test_a_method_with_hooks_resumes_to_the_bit_and_streams_the_same(cls: Any, tmp_path: Path) -> None:
    """Steps 1 … 7 of three an epoch: within an epoch, at its end, at the end of a phase."""
    whole = resumes_to_the_bit(lambda **more: train(cls, **more), tmp_path, 1, 3, 6, 7)
    assert same(train(cls, resident=False), whole)


def test_phases_come_in_order_each_with_a_fresh_optimiser(tmp_path: Path) -> None:
    fitted = train(States)
    assert [set(row) - {"total", "validation_spearman"} for row in fitted.history] == [{"states"}] * 2 + [{"score"}] * 2
    assert int(fitted.model.begun) == 4

    def moments(steps: int) -> dict[str, Tensor]:
        with pytest.raises(Stopped):
            train(States, state=tmp_path / f"{steps}", stop=after(steps))
        return checkpoint.part(checkpoint.load(tmp_path / f"{steps}", "state")[0], "optimiser")

    # Parameters 0 to 3 are the scorer's, 4 and 5 the parser's.
    assert {k.split(".")[0] for k in moments(6)} == {"4", "5"}
    assert {k.split(".")[0] for k in moments(7)} == {"0", "1", "2", "3"}


def test_groups_of_parameters_have_their_own_rate() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config, self.a, self.b = (
                MeanTeacherConfig(),
                nn.Parameter(torch.ones(())),
                nn.Parameter(torch.ones(())),
            )

        def parameter_groups(self) -> list[dict[str, Any]]:
            return [{"params": [self.a]}, {"params": [self.b], "lr_scale": 0.5}]

        def forward(self, batch: Batch) -> Tensor:
            return self.a * batch.streams["rgb"].mean(dim=(1, 2))

        def losses(self, labelled: Batch, unlabelled: Batch) -> dict[str, Tensor]:
            return {"sum": self.a + self.b}

    task, _ = task_for(MeanTeacher)
    training = Training(epochs=1, batch=32, optimiser="sgd", momentum=0, lr=0.1, weight_decay=0)
    model = fit(Two, task, training, seed=[0], device=CPU).model
    # One step of gradient 1.
    assert model.a.item() == pytest.approx(0.9)  # type: ignore[union-attr]
    assert model.b.item() == pytest.approx(0.95)  # type: ignore[union-attr]


# ---- Mean Teacher


def test_mean_teachers_losses_by_hand() -> None:
    """Without noise a teacher that is its student agrees; one whose level is 2 higher errs by 4, times the ramp."""
    model = MeanTeacher(inputs(6), MeanTeacherConfig(widths=(8,), noise=0.0)).eval()
    labelled = Batch({"rgb": torch.rand(3, 4, 6)}, torch.zeros(3))
    unlabelled = Batch({"rgb": torch.rand(5, 4, 6)}, torch.full((5,), torch.nan))
    labelled = replace(labelled, scores=model.student(labelled).detach() - torch.tensor([1.0, -2.0, 3.0]))
    model.ramp.fill_(0.25)
    terms = model.losses(labelled, unlabelled)
    assert terms["score"].item() == pytest.approx(14 / 3, rel=1e-5)
    assert terms["consistency"].item() == 0
    model.teacher.regressor[-1].bias += 2
    terms = model.losses(labelled, unlabelled)
    assert terms["consistency"].item() == pytest.approx(0.25 * 4, rel=1e-5)
    terms["consistency"].backward()
    trained = {name.split(".")[0] for name in moved(model)}
    assert trained == {"student"}


def test_the_teacher_is_the_moving_average_of_the_student() -> None:
    model = MeanTeacher(inputs(6), MeanTeacherConfig(widths=(8,), decay=0.75))
    bias, mine = model.student.regressor[-1].bias, model.teacher.regressor[-1].bias
    with torch.no_grad():
        mine.fill_(0.0)
        expected = 0.0
        # α is 1 − 1 / (step + 1) until that is more than 3/4.
        for value, alpha in ((1.0, 1 / 2), (2.0, 2 / 3), (3.0, 3 / 4), (4.0, 3 / 4)):
            bias.fill_(value)
            model.after_step()
            expected = alpha * expected + (1 - alpha) * value
            assert mine.item() == pytest.approx(expected, rel=1e-6)


# ---- methods without gradients


def test_ridge_and_svr_are_scikit_learns() -> None:
    from sklearn.linear_model import RidgeCV
    from sklearn.svm import SVR as LibSVM

    task, shape = task_for(MeanTeacher)
    read, rows = task.features, task.labelled
    x = torch.cat([s.mean(dim=1) for s in read.load(np.arange(24), CPU).streams.values()], dim=-1).double().numpy()
    y = task.scores[rows]
    found = fit(lambda: Ridge(shape), task, Training(), seed=[0], device=CPU)
    expected = RidgeCV(np.logspace(-3, 4, 15)).fit(x[rows], y).predict(x)
    # The strengths are written with four digits.
    np.testing.assert_allclose(predict(found.model, read, np.arange(24), CPU), expected, rtol=1e-4)
    assert found.history == []

    model: Any = fit(lambda: SVR(shape), task, Training(), seed=[0], device=CPU).model
    shift, scale = x[rows].mean(axis=0), x[rows].std(axis=0)
    z, u = (x - shift) / scale, (y - y.mean()) / y.std()
    machines = [LibSVM(kernel="linear", C=c, epsilon=0.1).fit(z[rows], u) for c in model.config.penalties]
    told = predict(model, read, np.arange(24), CPU)
    assert any(np.allclose(told, m.predict(z) * y.std() + y.mean(), rtol=1e-6) for m in machines)


def test_trivial_methods_by_hand() -> None:
    x = np.zeros((6, 1, 1), np.float32) + 1
    columns = {
        "difficulty": np.array([1, 2, 3, 4, np.nan, 2]),
        "category": np.array(["a", "a", "b", "b", "c", ""], dtype=object),
    }
    found = FeatureSet.from_arrays({"rgb": x}, columns).place(CPU, "yes")
    rows, none = np.arange(4), np.arange(0)
    scores = np.array([1.0, 3.0, 5.0, 7.0, np.nan, np.nan])

    def told(cls: Any, **asked: Any) -> list[float]:
        read, shape = found.prepared(asked, {}, rows, rows, "none")
        task = Task(read, rows, none, none, scores)
        return predict(
            fit(lambda: cls(shape), task, Training(), seed=[0], device=CPU).model, read, np.arange(6), CPU
        ).tolist()

    assert told(Constant) == [4] * 6
    # 2 a point of difficulty; the mean where it is unknown.
    assert told(Line, difficulty="number") == pytest.approx([1, 3, 5, 7, 4, 3])
    assert told(CategoryMean, category="category") == pytest.approx([2, 2, 6, 6, 4, 4])


def test_chance_is_the_same_for_the_same_video_and_knows_nothing_of_its_score() -> None:
    torch.manual_seed(0)
    batch = videos(600, segments=3, channels=5)
    first, second = (prepared(Random(shape(3, 5)), part(batch, slice(0, 40))) for _ in range(2))
    drawn = first(batch)
    alone_as_together(first, part(batch, slice(0, 8)))
    # Every labelled score comes about as often (expected 15 times; 40 is beyond six deviations), and others never.
    labelled = set(batch.scores[:40].tolist())
    counts = [int((drawn.float() == level).sum()) for level in labelled]
    assert set(drawn.float().tolist()) == labelled
    assert max(counts) < 40
    # Of 560 videos three standard errors are .13, between draws as well.
    assert abs(spearman(drawn[40:].numpy(), batch.scores[40:].numpy()) or 0) < 0.13
    assert abs(spearman(drawn.numpy(), second(batch).numpy()) or 0) < 0.13
    copied = Random(shape(3, 5))
    load_state(copied, first.state_dict())
    assert torch.equal(copied(batch), drawn)
    # Zeros behind a shorter video are -0 where features are standardised.
    (features,) = batch.streams.values()
    for zero in (0.0, -0.0):
        longer = torch.cat([features, torch.full_like(features, zero)], dim=1)
        assert torch.equal(first(replace(batch, streams=dict.fromkeys(batch.streams, longer))), drawn)


# ---- columns


def test_columns_keep_their_types() -> None:
    assert ColumnEncoder.fit("d", "number", [1, "2.5", None]).encode("d", ["2.5", None])[0] == 2.5
    kind = ColumnEncoder.fit("c", "category", ["b", "a", 3.0, None])
    assert kind.words == ("3", "a", "b")
    assert kind.encode("c", ["b", "3", None, "new"]).tolist() == [2, 0, -1, -1]
    marks = ColumnEncoder.fit("j", "vector", ["[7, 8.5, 8]", None, "6 6 7", [1, 2, 3]])
    np.testing.assert_array_equal(marks.encode("j", ["6;6;7", None]), [[6, 6, 7], [np.nan] * 3])
    words = ColumnEncoder.fit("t", "tokens", ["the dive is good", ["is", "it"]])
    assert words.width == 4
    assert [words.words[i] if i >= 0 else None for i in words.encode("t", ["it is bad"])[0]] == ["it", "is", None, None]
    with pytest.raises(UsageError, match=r"different lengths \(2, 3\)"):
        ColumnEncoder.fit("j", "vector", ["1 2", "1 2 3"])
    with pytest.raises(UsageError, match="'easy' where a number is needed"):
        ColumnEncoder.fit("d", "number", []).encode("d", ["easy"])


def test_batches_are_taken_and_joined_with_all_they_have() -> None:
    task, _ = task_for(Pairs)
    batch = task.features.load(np.array([4, 0, 2]), CPU)
    assert batch.columns["judges"].shape == (3, 7)
    again = join([batch.take(torch.tensor([2, 0])), batch.take(torch.tensor([1]))])
    assert again.ids == ("000002", "000004", "000000")
    for name, x in task.features.load(np.array([2, 4, 0]), CPU).streams.items():
        assert torch.equal(again.streams[name], x)


def test_buffers_take_the_shape_they_were_saved_with() -> None:
    a, b = (Pairs(task_for(Pairs)[1]) for _ in range(2))
    a.x = torch.rand(5, a.x.shape[1])
    load_state(b, a.state_dict())
    assert torch.equal(b.x, a.x)


# ---- from the command line, and back


@pytest.fixture
def store(make_store: MakeStore, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(METHODS, "pairs", Pairs.row)
    monkeypatch.setitem(METHODS, "states", States.row)
    cells = table()
    labels = [
        {
            "difficulty": cells["difficulty"][i],
            "category": cells["category"][i],
            "extra": {"judges": cells["judges"][i]},
        }
        for i in range(VIDEOS)
    ]
    return make_store(videos=VIDEOS, streams=("rgb", "actor-rgb"), labels=labels)


def test_every_kind_of_method_is_trained_saved_and_predicted_with(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    methods = ["pairs", "states", "mean-teacher", "ridge", "svr", "category-mean"]
    aqa_train("--features", store, "--method", ",".join(methods), "--labelled", 0.6, "--seeds", 1, "--folds", 2,
              "--epochs", 2, "--jobs", 1, "--device", "cpu", "--set", "batch=8", "--set", "mean-teacher.widths=8,8",
              "--out", out)  # fmt: skip
    summary = json.loads((out / "metrics.json").read_text())
    assert {r["method"]: r["uses_difficulty"] for r in summary["rows"]} == {
        **dict.fromkeys([*methods, "mean-score", "random"], False), "pairs": True, "difficulty-only": True,
    }  # fmt: skip
    assert {r["method"] for r in summary["rows"] if "beats" in (r["verdict"] or "") or r["against"]} >= {*methods}
    opened = FeatureStore.open(store)
    said = {(r["method"], r["id"]): r for r in read_csv(out / "scores.csv")}
    assert len(said) == len(methods) * VIDEOS
    for method in methods:
        found = open_ensemble(out, method).score(opened).combined
        for name, value, members in zip(opened.ids, found.score, found.members, strict=True):
            if said[method, name]["score"]:
                assert float(said[method, name]["score"]) == pytest.approx(value, rel=1e-5), method
                assert int(said[method, name]["members"]) == members
        model = load_checkpoint(out / "models" / method / "fold0-seed0")
        alone = model.score({n: opened.read(n)[:4][None] for n in ("rgb", "actor_rgb")} | _first(opened))
        assert alone[0] == pytest.approx(model.score(opened)[0], rel=1e-5)
    trained = load_checkpoint(out / "models" / "pairs" / "fold0-seed0")
    assert trained.network.x.shape[0] == len(json.loads((out / "splits" / "fold0-seed0.json").read_text())["labelled"])
    assert trained.inputs.columns["category"].words == ("a", "b")


def _first(store: FeatureStore) -> dict[str, Any]:
    return {"difficulty": store.column("difficulty")[:1], "category": store.column("category")[:1]}


def test_what_a_method_lacks_is_said_with_what_gives_it(store: Path, make_store: MakeStore, tmp_path: Path) -> None:
    plain = make_store(videos=12, name="plain.zarr")
    common = ["--seeds", 1, "--device", "cpu", "--out", tmp_path / "o"]
    with pytest.raises(UsageError, match=r"states needs actor-rgb, and .*plain\.zarr holds rgb") as e:
        aqa_train("--features", plain, "--method", "states", *common)
    assert "aqa-extract" in e.value.fix
    assert "--streams rgb,actor-rgb" in e.value.fix
    with pytest.raises(UsageError, match="pairs reads the column difficulty, and no video has it") as e:
        aqa_train("--features", plain, "--method", "pairs", *common)
    assert "--labels FILE" in e.value.fix
    with pytest.raises(UsageError, match="states learns from unlabelled videos") as e:
        aqa_train("--features", store, "--method", "states", *common)
    assert "--labelled 0.4" in e.value.fix
    with pytest.raises(UsageError, match="no recipe for 'rhythmic'") as e:
        aqa_train("--features", store, "--method", "pairs", "--recipe", "rhythmic", *common)
    assert "aqa-7" in e.value.fix


def test_a_method_knows_the_labelled_mean_and_the_ends_of_the_scale(store: Path, tmp_path: Path) -> None:
    common = ["--features", store, "--method", "aa", "--seeds", 1, "--test-fraction", 0.25, "--labelled", 0.5,
              "--device", "cpu", "--jobs", 1, "--epochs", 1, "--lr", 1e-9, "--set", "widths=8"]  # fmt: skip
    aqa_train(*common, "--score-range", "0,100", "--out", tmp_path / "o")
    model = load_checkpoint(tmp_path / "o" / "models" / "aa" / "fold0-seed0")
    opened = FeatureStore.open(store)
    split = json.loads((tmp_path / "o" / "splits" / "fold0-seed0.json").read_text())
    known = [s for i, s in zip(opened.ids, opened.column("score"), strict=True) if i in split["labelled"]]
    assert model.inputs.scale == ScoreScale(0.0, 100.0, 5.0, pytest.approx(np.mean(known) / 20))  # type: ignore[arg-type]
    assert model.network.regressor[-1].bias.item() == pytest.approx(np.mean(known) / 20, rel=1e-5)


def test_each_method_has_its_own_recipe(store: Path, tmp_path: Path) -> None:
    common = ["--features", store, "--method", "pairs,aa", "--seeds", 1, "--test-fraction", 0.25, "--device", "cpu",
              "--jobs", 1, "--set", "aa.widths=8", "--set", "aa.epochs=3"]  # fmt: skip

    def training(run: str, method: str) -> dict[str, Any]:
        record = tmp_path / run / "models" / method / "fold0-seed0" / "last.json"
        found: dict[str, Any] = json.loads(record.read_text())
        return {k: found["training"][k] for k in ("epochs", "lr")} | {"epoch": found["epoch"]}

    aqa_train(*common, "--out", tmp_path / "a")
    assert training("a", "pairs") == {"epochs": 4, "lr": 1e-3, "epoch": 4}
    assert training("a", "aa") == {"epochs": 3, "lr": 5e-4, "epoch": 3}
    aqa_train(*common, "--out", tmp_path / "b", "--recipe", "aqa-7", "--lr", 0.01)
    assert training("b", "pairs") == {"epochs": 2, "lr": 0.01, "epoch": 2}
    aqa_train("--resume", tmp_path / "b")
    aqa_train("--config", tmp_path / "b" / "config.toml", "--out", tmp_path / "b")


def test_the_catalogue_says_what_each_method_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    from aqa_train.catalogue import as_text, catalogue

    monkeypatch.setitem(METHODS, "pairs", Pairs.row)
    found = {m["method"]: m for m in catalogue()}
    assert set(found) == set(METHODS)
    assert found["ridge"]["recipes"] is None
    assert found["s4aqa"]["needs"]["unlabelled"]
    said = as_text(list(found.values()))
    for recipe in (
        "sgd, lr 0.0001, weight decay 0.0001, constant, 500 epochs of the larger set, batch 32 (--recipe rhythmic-",
        "sgd, lr 0.01, weight decay 0.0001, cosine, 400 epochs of the labelled set, batch 32 (default, --recipe",
        "adam, lr 0.001, weight decay 0, constant, 200 epochs of the labelled set, batch 2, standardise z-score "
        "(default, --recipe mtl-aqa)",
    ):
        assert f"    recipe   {recipe}" in said
    assert "column difficulty (number), column category (category), column judges (vector)" in said
    assert "arXiv:1703.01780" in said
    assert "    reads    column category, where there is one" in said
