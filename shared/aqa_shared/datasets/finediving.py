"""FineDiving: dives with action type, difficulty, judges' marks, and the steps of each dive.

The folder holds, anywhere below it:

- `fine-grained_annotation_aqa.pkl`: (video, number) → [action type, score, difficulty, …, step of each frame]. This
  is the copy that published code trains on, and the one that is read;
- `FineDiving_fine-grained_annotation.pkl`: the marks are taken from it, and where it says something else than the
  other, that is reported;
- `FineDiving_coarse_annotation.pkl`: the part of the whole video; `train_split.pkl` and `test_split.pkl`;
- pictures `<video>/<number>/00489.jpg` of each dive, or `<video>.mp4` whole.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

from aqa_shared.datasets.published import About, Finding, Performance, Published, SplitFile
from aqa_shared.datasets.tree import Tree, reading

ABOUT = About(
    title="FineDiving",
    videos="3000 dives of 52 action types (2251 train, 749 test)",
    scores="dive score, difficulty, action type, marks, steps",
    paper="Xu et al., CVPR 2022, arXiv:2204.03646",
    where="github.com/xujinglin/FineDiving (after an agreement by mail)",
    licence="by agreement: research only",
)

READ = "fine-grained_annotation_aqa.pkl"
NAMED = "FineDiving_fine-grained_annotation.pkl"
DIFFER = 41
"""So many entries differ between the copies as they are published; more are another fault."""


def read(root: Path) -> Published:
    """Every annotated dive, in the order of the file."""
    tree = Tree(root)
    path = tree.needed(READ, fix=f"take the folder Annotations from {ABOUT.where}")
    entries: dict[Any, Any] = tree.pickle(path, dict)
    data = Published([], [f"{tree.relative(path)}: scores, steps (the copy that published code trains on)"])
    mine = {key: _listed(path, key, entry) for key, entry in entries.items()}
    for copy in tree.files(READ)[1:]:
        listed = {key: _listed(copy, key, entry) for key, entry in tree.pickle(copy, dict).items()}
        data.findings += _differences(tree.relative(copy), listed, mine)
    other_path, coarse_path = tree.first(NAMED), tree.first("FineDiving_coarse_annotation.pkl")
    other: dict[Any, Any] = tree.pickle(other_path, dict) if other_path else {}
    coarse: dict[Any, Any] = tree.pickle(coarse_path, dict) if coarse_path else {}
    if other_path:
        data.sources.append(f"{tree.relative(other_path)}: marks")
        named = {key: _named(other_path, key, entry) for key, entry in other.items()}
        data.findings += _differences(tree.relative(other_path), named, mine)
    if coarse_path:
        data.sources.append(f"{tree.relative(coarse_path)}: parts of the whole videos")
    data.splits = keyed_splits(tree, data)
    roles = data.roles
    for key, entry in entries.items():
        with reading(path, key):
            steps = [int(step) for step in entry[4]]
            name = keyed_id(key)
            columns = {"action_type": str(entry[0]), "steps": steps, "transitions": transitions(steps)}
            if key in other:
                columns["judge_scores"] = [float(m) for m in other[key].get("judge_scores", [])]
            data.performances.append(
                Performance(
                    id=name,
                    **_part(tree, key, coarse.get(key)),
                    frames=len(steps),
                    score=entry[1],
                    difficulty=entry[2],
                    split=roles.get(name),
                    group=str(key[0]),
                    columns=columns,
                )
            )
    return data


def transitions(steps: list[int]) -> list[int]:
    """The last frame of every step but the last one."""
    return [i for i, (before, after) in enumerate(pairwise(steps)) if before != after]


def keyed_id(key: Any) -> str:
    """`video/number`, the folder of the pictures. Raises ValueError for a key that is not such a pair."""
    video, number = key
    return f"{video}/{number}"


def keyed_splits(tree: Tree, data: Published) -> list[SplitFile]:
    """The split of `train_split.pkl` and `test_split.pkl`, or of `train_split3.pkl` and `test_split3.pkl`."""
    splits = []
    for train in tree.files(r"train_split\d*\.pkl"):
        test = train.with_name(train.name.replace("train", "test"))
        if not test.is_file():
            data.findings.append(Finding(tree.relative(train), f"no {test.name} beside it", "the split is left out"))
            continue
        rows = []
        for role, path in (("train", train), ("test", test)):
            data.sources.append(f"{tree.relative(path)}: split")
            for key in tree.pickle(path, list):
                with reading(path, key):
                    rows.append((keyed_id(key), role))
        number = train.stem.removeprefix("train_split")
        splits.append(SplitFile(f"official{number and f'-{number}'}", "split", rows))
    if not splits:
        data.findings.append(Finding(str(tree.root), "no train_split.pkl and test_split.pkl", "no split is known"))
    return splits


def _part(tree: Tree, key: Any, coarse: Any) -> dict[str, Any]:
    """The pictures of one dive, else the whole video with the part that is the dive."""
    own = tree.media(keyed_id(key))
    if own.missing and coarse is not None:
        whole = tree.media(str(key[0]))
        if not whole.missing:
            return {**whole.fields(), "start": int(coarse["start_frame"]), "end": int(coarse["end_frame"]) + 1}
    return own.fields()


def _listed(path: Path, key: Any, entry: Any) -> dict[str, Any]:
    with reading(path, key):
        return {
            "action type": str(entry[0]),
            "score": float(entry[1]),
            "difficulty": float(entry[2]),
            "steps": [int(s) for s in entry[4]],
        }


def _named(path: Path, key: Any, entry: Any) -> dict[str, Any]:
    with reading(path, key):
        return {
            "score": float(entry["dive_score"]),
            "difficulty": float(entry["difficulty"]),
            "steps": [int(s) for s in entry["frames_labels"]],
        }


def _differences(source: str, theirs: dict[Any, Any], mine: dict[Any, Any]) -> list[Finding]:
    """A finding for every entry of which `source` says something else than the copy that is read."""
    found: list[tuple[Any, str]] = []
    for key in {**theirs, **mine}:
        if key not in theirs or key not in mine:
            what = f"is only in {'it' if key in theirs else 'the copy that is read'}"
        else:
            differing = {c: (value, mine[key][c]) for c, value in theirs[key].items() if value != mine[key][c]}
            if not differing:
                continue
            what = "; ".join(
                f"{c} differ" if c == "steps" else f"{c} is {a}, and {b} in the copy that is read"
                for c, (a, b) in differing.items()
            )
        found.append((key, what))
    return [Finding(f"{source}, {key}", what, f"{READ} counts", len(found) <= DIFFER) for key, what in found]
