"""MTL-AQA: dives with seven judges' marks, difficulty, classes and commentary.

The folder holds, anywhere below it:

- `final_annotations_dict_with_dive_number.pkl` (CoRe's copy: marks and dive numbers), else
  `augmented_final_annotations_dict.pkl` (MUSDL's: marks), else `final_annotations_dict.pkl` (neither);
- `train_split_0.pkl`, `test_split_0.pkl`, and smaller training sets in `size_140`, `size_280`, `size_450`;
- `final_captions_dict.pkl`: the commentary as tokens, and `vocab.json`;
- a video a dive (`01_23.mp4`, or pictures `01_23/*.jpg`), or a competition (`01.mp4`, `01/*.jpg`), of which
  `start_frame` and `end_frame` cut the dive. Picture i of the sorted names is frame i.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from aqa_shared.datasets.published import About, Finding, Performance, Published, Range, SplitFile
from aqa_shared.datasets.tree import Tree, reading

ABOUT = About(
    title="MTL-AQA",
    videos="1412 dives of 15 competitions (1059 train, 353 test)",
    scores="final score, difficulty, seven marks, five classes, dive number, commentary",
    paper="Parmar and Morris, CVPR 2019, arXiv:1904.04346",
    where="github.com/ParitoshParmar/MTL-AQA (Ready_2_Use); videos from YouTube, Video_List.xlsx",
    licence="none stated",
    ranges=(Range(low=0.0, high=104.5),),
)

COPIES = (
    "final_annotations_dict_with_dive_number.pkl",
    "augmented_final_annotations_dict.pkl",
    "final_annotations_dict.pkl",
)
CLASSES = ("position", "armstand", "rotation_type", "ss_no", "tw_no")
OTHERS = ("smaller_training_sets", "UNLV_Dive_split_4")
"""Folders beside the main split whose files bear the same names; the second is another dataset."""

# Dives whose score is not difficulty × the sum of the three middle marks, in all copies (final, by the rule):
# in (1, 70) 18.15 stands for 37.95; the others are off by half a mark or two, up to 4.3 points.
BREAK_THE_RULE = frozenset(
    {(1, 70), (2, 1), (4, 8), (4, 116), (5, 20), (5, 23), (5, 25), (5, 29), (5, 33), (5, 42), (5, 59), (5, 63)}
    | {(5, 85), (7, 53), (7, 57), (9, 45), (9, 58), (9, 60), (10, 23), (13, 4), (14, 34), (17, 98), (18, 17)}
    | {(18, 43), (18, 69), (22, 11), (26, 39)}
)
ROUNDED = 0.06
"""Some scores are rounded to one decimal: (13, 17), (13, 25) and (14, 48) are .05 off."""
MARK_45 = (4, 49)
"""MUSDL's copy has a mark of 45.0 here; CoRe's 4.5, which agrees with the score."""


def read(root: Path) -> Published:
    """Every annotated dive, in the order of the file."""
    tree = Tree(root)
    main = [p for name in COPIES for p in tree.files(name) if not set(OTHERS) & set(p.parts)]
    path = main[0] if main else tree.needed(COPIES[-1], fix=f"take it from {ABOUT.where}")
    entries: dict[Any, Any] = tree.pickle(path, dict)
    data = Published([], [f"{tree.relative(path)}: scores, parts, classes"])
    data.findings += _other_copies(tree, path, main[1:], entries)
    captions = _captions(tree, data, {_id(path, key) for key in entries})
    data.splits = _splits(tree, data)
    roles = data.roles
    for key, entry in entries.items():
        name = _id(path, key)
        with reading(path, key):
            marks = _marks(entry, key, name, data)
            event, start, end = name.split("_")[0], entry["start_frame"], entry["end_frame"]
            data.performances.append(
                Performance(
                    id=name,
                    **tree.part(name, event, start, end),
                    frames=end - start,
                    score=entry["final_score"],
                    difficulty=entry["difficulty"],
                    split=roles.get(name),
                    group=event,
                    columns={
                        **{c: entry[c] for c in CLASSES},
                        **({"dive_number": entry["dive_number"]} if "dive_number" in entry else {}),
                        **_by_the_rule(tree.relative(path), entry, key, marks, data),
                        **({"caption": captions[name]} if name in captions else {}),
                    },
                )
            )
    return data


def _id(path: Path, key: Any) -> str:
    with reading(path, key):
        event, dive = key
        return f"{int(event):02d}_{int(dive):02d}"


def _marks(entry: dict[str, Any], key: Any, name: str, data: Published) -> list[float]:
    """The seven marks, in 0 … 10."""
    marks = [float(mark) for mark in entry.get("judge_scores", [])]
    for i, mark in enumerate(marks):
        if not 0 <= mark <= 10:
            known = tuple(key) == MARK_45 and mark == 45.0
            marks[i] = 4.5 if known else min(max(mark, 0.0), 10.0)
            done = f"read as {marks[i]:g}" + (", as CoRe's copy has it" if known else "")
            data.findings.append(Finding(name, f"mark {i + 1} is {mark:g}, not in 0 … 10", done, known))
    if marks and len(marks) != 7:
        data.findings.append(Finding(name, f"{len(marks)} marks, expected 7", "check the file"))
    return marks


def _by_the_rule(source: str, entry: dict[str, Any], key: Any, marks: list[float], data: Published) -> dict[str, Any]:
    """Difficulty × the sum of the three middle marks, and whether the published score is something else."""
    if len(marks) != 7:
        return {}
    rule = round(sum(sorted(marks)[2:5]) * entry["difficulty"], 2)
    broken = abs(rule - entry["final_score"]) > ROUNDED
    if broken:
        data.findings.append(
            Finding(
                f"{source}, {tuple(key)}",
                f"the score is {entry['final_score']:g}, the marks and difficulty {entry['difficulty']:g} "
                f"make {rule:g}",
                "kept as published; breaks_rule is true",
                tuple(key) in BREAK_THE_RULE,
            )
        )
    return {"judge_scores": marks, "score_by_rule": rule, "breaks_rule": broken}


def _other_copies(tree: Tree, path: Path, others: list[Path], entries: dict[Any, Any]) -> list[Finding]:
    """Where another copy of the annotations says something else than the one that is read."""
    found = []
    for other in others:
        for key, entry in tree.pickle(other, dict).items():
            mine = entries.get(key)
            if mine is None:
                what = "is not in the copy that is read"
            else:
                differing = [c for c in entry if c in mine and entry[c] != mine[c]]
                if not differing:
                    continue
                what = ", ".join(f"{c} is {entry[c]}, and {mine[c]} in the copy that is read" for c in differing)
            known = mine is not None and tuple(key) == MARK_45 and differing == ["judge_scores"]
            found.append(Finding(f"{tree.relative(other)}, {tuple(key)}", what, f"{path.name} counts", known))
    return found


def _captions(tree: Tree, data: Published, ids: set[str]) -> dict[str, list[str]]:
    """Tokens by id, from `<sos>` to `<eos>`."""
    files = [p for p in tree.files("final_captions_dict.pkl") if not set(OTHERS) & set(p.parts)]
    if not files:
        return {}
    path = files[0]
    captions = {_id(path, key): tokens for key, tokens in tree.pickle(path, dict).items()}
    data.sources.append(f"{tree.relative(path)}: captions")
    spare = sorted(set(captions) - ids)
    if spare:
        known = spare == ["01_64", "17_149", "17_72", "26_92"]
        data.findings.append(
            Finding(tree.relative(path), f"captions of dives without a score: {', '.join(spare)}", "left out", known)
        )
    vocabulary = [p for p in tree.files("vocab.json") if not set(OTHERS) & set(p.parts)]
    if vocabulary:
        with reading(vocabulary[0], "word_to_ix"):
            words = set(json.loads(vocabulary[0].read_text(encoding="utf-8"))["word_to_ix"])
        for name, tokens in captions.items():
            if unknown := [t for t in tokens if t not in words]:
                data.findings.append(Finding(f"{tree.relative(path)}, {name}", f"not in vocab.json: {unknown}", "kept"))
    return captions


def _splits(tree: Tree, data: Published) -> list[SplitFile]:
    """The official split first, then the smaller training sets, tested on the same dives."""
    test = [p for p in tree.files("test_split_0.pkl") if not set(OTHERS) & set(p.parts)]
    train = {p.parent.name if "smaller_training_sets" in p.parts else "official": p
             for p in tree.files("train_split_0.pkl") if OTHERS[1] not in p.parts}  # fmt: skip
    if not test or not train:
        data.findings.append(Finding(str(tree.root), "no train_split_0.pkl and test_split_0.pkl", "no split is known"))
        return []
    tested = [(_id(test[0], key), "test") for key in tree.pickle(test[0], list)]
    splits = []
    for name in sorted(train, key=lambda name: (name != "official", name)):
        trained = [(_id(train[name], key), "train") for key in tree.pickle(train[name], list)]
        splits.append(SplitFile(name, "split", trained + tested))
        data.sources.append(f"{tree.relative(train[name])}: split {name}")
    return splits
