"""LOGO: artistic swimming by groups, with the action of every frame.

The folder holds `anno_dict.pkl` ((event, number) → [kind of event, score, –, last frames of the actions, action of
each frame]), `train_split3.pkl` and `test_split3.pkl` (any number), and pictures `<event>/<number>/00000.jpg` at 25
frames a second. Other datasets in this layout are read as well.
"""

from __future__ import annotations

from pathlib import Path

from aqa_shared.datasets.finediving import keyed_id, keyed_splits
from aqa_shared.datasets.published import About, Performance, Published
from aqa_shared.datasets.tree import Tree, reading

ABOUT = About(
    title="LOGO",
    videos="200 routines of 26 events (150 train, 50 test)",
    scores="total score, kind of event, actions",
    paper="Zhang et al., CVPR 2023, arXiv:2404.05029",
    where="github.com/shiyi-zh0408/LOGO (Baidu)",
    licence="none stated",
)


def read(root: Path) -> Published:
    """Every annotated routine, in the order of the file."""
    tree = Tree(root)
    path = tree.needed(r"anno_dict\.pkl", fix=f"take it from {ABOUT.where}")
    data = Published([], [f"{tree.relative(path)}: scores, actions"])
    data.splits = keyed_splits(tree, data)
    roles = data.roles
    for key, entry in tree.pickle(path, dict).items():
        with reading(path, key):
            name = keyed_id(key)
            data.performances.append(
                Performance(
                    id=name,
                    **tree.media(name).fields(),
                    frames=len(entry[4]),
                    score=entry[1],
                    split=roles.get(name),
                    category=str(entry[0]),
                    group=str(key[0]),
                    columns={"action_ends": [int(i) for i in entry[3]], "actions": [int(i) for i in entry[4]]},
                )
            )
    return data
