"""The methods by name. A method is `cls(inputs, config)`, a module with `forward` (docs/writing-a-method.md)."""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aqa_train.columns import Kind


@dataclass(frozen=True)
class Method:
    """One row of the table: what is known of a method before it is opened."""

    target: str
    """`module:class`, opened when it is used, because torch loads with it."""
    summary: str
    paper: str = ""
    """Who described it, and where."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Settings that make this method what it is; they cannot be changed."""
    streams: tuple[str, ...] = ()
    """Those it reads, as `rgb`, `actor-rgb` or `rgb:map`; none named: all features of the run."""
    taught_by: tuple[str, ...] = ()
    """Those of `streams` that only training reads: videos are scored without them."""
    columns: Mapping[str, Kind] = field(default_factory=dict)
    """Columns of the videos' table that it reads of every video."""
    optional: Mapping[str, Kind] = field(default_factory=dict)
    """Those that it reads where there are any."""
    labels: Mapping[str, Kind] = field(default_factory=dict)
    """Columns that belong to the score, as judges' marks: shown to it of labelled videos alone."""
    optional_labels: Mapping[str, Kind] = field(default_factory=dict)
    """As `labels`, read where there are any."""
    unlabelled: bool = False
    """Whether it learns from videos without scores, and cannot do without."""
    uses_difficulty: bool = False
    """Whether its scores rest on the declared difficulty: such results are a league of their own."""
    declares: tuple[str, ...] = ()
    """Optional columns that declare what difficulty is made of: where it reads one, its scores rest on that too."""
    recipes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """How its authors trained it, where that differs from the defaults of `Training`: by dataset, `""` for others.

    Z-scored features are ours: most authors trained the backbone along, and most networks without a normalisation of
    their own learn more from frozen features if these are z-scored (measured in docs/methods/supervised.md).
    """
    baseline: bool = False
    """Stands beside every result, where the data have what it needs."""
    members: int = 1
    """How many of it, with initial weights of their own, say one score together."""

    def load(self) -> Any:
        """The class; its `Config` is the frozen dataclass of its settings."""
        cls = pkgutil.resolve_name(self.target)
        return cls if self.members == 1 else pkgutil.resolve_name(_ENSEMBLE)(cls, self.members)

    def settings(self) -> set[str]:
        """Names of its own settings, those of training apart."""
        return {f.name for f in fields(self.load().Config)}

    def recipe(self, dataset: str) -> Mapping[str, Any]:
        """Training settings for a dataset, or those for any."""
        return self.recipes.get(dataset, self.recipes.get("", {}))


def _trained(dataset: str, **settings: Any) -> dict[str, dict[str, Any]]:
    """A recipe for the dataset that the authors had, and for lack of others for any."""
    return {dataset: settings, "": settings}


def _supervised(dataset: str, **settings: Any) -> dict[str, dict[str, Any]]:
    """The same of what learns from labelled videos alone: an epoch is a pass over those, however many have no score."""
    return _trained(dataset, **{"epoch_of": "labelled", **settings})


class Methods(dict[str, Method]):
    """Rows by name, and `NAME-x5`, a seed ensemble of five, of every row."""

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or (isinstance(name, str) and self._ensemble(name) is not None)

    def __missing__(self, name: str) -> Method:
        if (found := self._ensemble(name)) is None:
            raise KeyError(name)
        return found

    def _ensemble(self, name: str) -> Method | None:
        parts = re.fullmatch(r"(.+)-x([2-9]|[1-9][0-9]+)", name)
        return ensemble(parts[1], int(parts[2])) if parts and parts[1] in self.keys() else None


def ensemble(name: str, members: int) -> Method:
    """The row of a seed ensemble of a method."""
    row = METHODS[name]
    return replace(row, summary=f"{members} of {name}, on average", members=members, baseline=False)


_ENSEMBLE = "aqa_train.methods.seed_ensemble:ensemble_of"
_S4AQA = "aqa_train.methods.s4aqa:S4AQA"
_S4AQA_PAPER = "Zhang et al., TCSVT 2022, doi:10.1109/tcsvt.2022.3143549"
_S4AQA_RECIPES: dict[str, dict[str, Any]] = {
    "mtl-aqa": {}, "jigsaws": {},  # the defaults; of JIGSAWS the paper says nothing (ours)
    "rhythmic-gymnastics": {"optimiser": "sgd", "lr": 1e-4, "epochs": 500},
}  # fmt: skip
_USDL_PAPER = "Tang et al., CVPR 2020, arXiv:2006.07665"
_Z_SCORED: dict[str, Any] = {"standardise": "z-score"}
_USDL_RECIPE: dict[str, Any] = {"batch": 4, "lr": 1e-4, "weight_decay": 0.0, "epoch_of": "labelled"}
_NO_RECOVERY: dict[str, Any] = {
    "recovery_weight": 0.0, "masked": 1, "mask_value": "zeros", "recover": "unlabelled", "decoder_width": 512,
}  # fmt: skip
_NO_ALIGNMENT: dict[str, Any] = {
    "alignment_weight": 0.0, "alignment": "gradient-reversal", "discriminator_width": 128, "reversal": 1.0,
}  # fmt: skip
"""What a part that is left out would read is fixed too: it changes nothing."""
_LABELLED_ONLY = {**_NO_RECOVERY, **_NO_ALIGNMENT, "norm": "clean"}
_C3D_PAPER = "Parmar and Morris, CVPR 2019, arXiv:1904.04346"
_C3D_RECIPE = _supervised("mtl-aqa", epochs=100, batch=3, lr=1e-4, weight_decay=0.0, **_Z_SCORED)
_GYMNASTICS: dict[str, Any] = {"epochs": 400, "optimiser": "sgd", "lr": 0.01}
_ACTION_NET: dict[str, Any] = {**_GYMNASTICS, "epoch_of": "labelled", "schedule": "steps"}
_LINE = "aqa_train.methods.trivial:Line"
_CORE_PAPER = "Yu et al., ICCV 2021, arXiv:2108.07797"
_CORE_RECIPE = _supervised("mtl-aqa", epochs=200, batch=2, lr=1e-3, weight_decay=0.0, **_Z_SCORED)


def _core(summary: str, *, compare: bool, head: str, difficulty: bool) -> Method:
    """A row of CoRe's tables; those with difficulty are a league of their own."""
    return Method(
        "aqa_train.methods.core:CoRe", summary + (", of score / difficulty" if difficulty else ""), _CORE_PAPER,
        {"compare": compare, "head": head, "difficulty": difficulty},
        columns={"difficulty": "number"} if difficulty else {},
        optional={"category": "category"} if compare else {},
        uses_difficulty=difficulty,
        recipes=_CORE_RECIPE,
    )  # fmt: skip


_CORE_ROWS = {
    name + ("-dd" if difficulty else ""): _core(summary, compare=compare, head=head, difficulty=difficulty)
    for difficulty in (False, True)
    for name, summary, compare, head in (
        ("i3d+mlp", "three layers on mean features", False, "mlp"),
        ("i3d+gart", "CoRe's regression tree on the mean feature", False, "gart"),
        ("core+mlp", "differences to exemplars, regressed", True, "mlp"),
        ("core", "CoRe: differences to exemplars by a regression tree", True, "gart"),
    )
    if difficulty or name != "i3d+mlp"  # which has a file of its own
}


def _tpt(*, difficulty: bool) -> Method:
    """A row of TPT; its authors divide the scores of MTL-AQA by difficulty."""
    return Method(
        "aqa_train.methods.tpt:TPT",
        "TPT: parts that queries find in order, compared with exemplars'"
        + (", of score / difficulty" if difficulty else ""),
        "Bai et al., ECCV 2022, arXiv:2207.09270",
        {"difficulty": difficulty},
        columns={"difficulty": "number"} if difficulty else {},
        optional={"category": "category"},
        uses_difficulty=difficulty,
        recipes=_supervised("mtl-aqa", epochs=250, batch=24, lr=1e-4, weight_decay=0.0, **_Z_SCORED),
    )


def _pcln(*, difficulty: bool) -> Method:
    """A row of PCLN."""
    recipe: dict[str, Any] = {"lr": 1e-4, "weight_decay": 0.0, "schedule": "steps", "fall": 0.5, **_Z_SCORED}
    mtl_aqa = _supervised("mtl-aqa", **recipe, epochs=100, batch=16, falls=(0.9,))
    aqa_7 = _supervised("aqa-7", **recipe, epochs=200, batch=32, falls=(0.45, 0.9))
    return Method(
        "aqa_train.methods.pcln:PCLN",
        "PCLN: scores that agree with the differences of pairs" + (", of score / difficulty" if difficulty else ""),
        "Li et al., ECCV 2022, doi:10.1007/978-3-031-19772-7_27",
        {"difficulty": difficulty},
        columns={"difficulty": "number"} if difficulty else {},
        uses_difficulty=difficulty,
        recipes=aqa_7 | mtl_aqa,
    )


def _rica2(*, difficulty: bool) -> Method:
    """A row of RICA2. The declared dive decides its difficulty: of MTL-AQA's it explains 98 % of the variance."""
    dive = ("armstand", "rotation_type", "position", "ss_no", "tw_no")
    return Method(
        "aqa_train.methods.rica2:RICA2",
        "RICA2: a rubric's steps ask the video" + (", of score / difficulty" if difficulty else ""),
        "Majeedi et al., ECCV 2024, arXiv:2408.02138",
        {"difficulty": difficulty},
        columns={"difficulty": "number"} if difficulty else {},
        optional=dict.fromkeys(dive, "category"),
        uses_difficulty=difficulty,
        declares=dive,
        recipes=_supervised("mtl-aqa", epochs=350, batch=8, lr=5e-4, optimiser="adamw", weight_decay=0.0, **_Z_SCORED),
    )


def _sap_net(summary: str, *, difficulty: bool = False, **fixed: float) -> Method:
    """A row of SAP-Net's ablation. 200 epochs are of FineDiving's code, on which it is built; the others are told, of
    two of four apparatus and of the short program."""
    recipe: dict[str, Any] = {"lr": 1e-3, "weight_decay": 0.0, "batch": 8, "epochs": 200}
    return Method(
        "aqa_train.methods.sap_net:SAPNet", summary, "Gedamu et al., IEEE TIP 2024",
        {"difficulty": difficulty, **fixed},
        streams=("rgb", "actor-rgb"), taught_by=("actor-rgb",),
        columns={"difficulty": "number"} if difficulty else {}, unlabelled=True, uses_difficulty=difficulty,
        recipes=_trained("mtl-aqa", **recipe)
        | {"rhythmic-gymnastics": {**recipe, "epochs": 300}, "finefs": {**recipe, "epochs": 400}},
    )  # fmt: skip


DEFAULT, ALL = "auto", "all"
"""What is trained where no method is named, and the name of every row that fits the data."""
VIEWS = ("still", "rot90", "rot180", "rot270", "mirror")
"""A video seen in another way, as `still-rgb`: for methods that ask for it, and for others if `--streams` does."""
CONSTANT, LINEAR = "mean-score", "ridge"
"""What every verdict compares with."""

METHODS: Methods = Methods({
    "auto": Method("aqa_train.methods.auto:Auto", "kernel ridge regressions, averaged: for dozens of labelled videos"),
    "s4aqa": Method(
        _S4AQA, "S4AQA: scores, segment recovery, adversarial alignment", _S4AQA_PAPER,
        unlabelled=True, recipes=_S4AQA_RECIPES,
    ),
    "aa": Method(
        _S4AQA, "S4AQA's encoder on labelled videos only", _S4AQA_PAPER, _LABELLED_ONLY, recipes=_S4AQA_RECIPES
    ),
    "aa+rda": Method(
        _S4AQA, "S4AQA without recovery", _S4AQA_PAPER, _NO_RECOVERY,
        unlabelled=True, recipes=_S4AQA_RECIPES,
    ),
    "aa+msfr": Method(
        _S4AQA, "S4AQA without alignment", _S4AQA_PAPER, _NO_ALIGNMENT,
        unlabelled=True, recipes=_S4AQA_RECIPES,
    ),
    "keep-first-frame": Method(
        "aqa_train.methods.s4aqa_variants:KeepFirstFrame", "S4AQA that recovers segments from their first frames",
        _S4AQA_PAPER, {"masked": 1, "mask_value": "zeros"}, streams=("rgb", "still-rgb"), taught_by=("still-rgb",),
        unlabelled=True, recipes=_S4AQA_RECIPES,
    ),
    "vanilla-ssl": Method(
        "aqa_train.methods.s4aqa_variants:VanillaSSL", "segment recovery first, scores afterwards", _S4AQA_PAPER,
        {**_NO_ALIGNMENT, "norm": "clean"}, unlabelled=True, recipes=_S4AQA_RECIPES,
    ),
    "mean-teacher": Method(
        "aqa_train.methods.mean_teacher:MeanTeacher", "AA that agrees with its moving average",
        "Tarvainen and Valpola, NeurIPS 2017, arXiv:1703.01780",
        unlabelled=True, recipes=_S4AQA_RECIPES,
    ),
    **_CORE_ROWS,
    "pseudo-labels": Method(
        "aqa_train.methods.pseudo_labels:PseudoLabels", "AA taught the scores of the nearest labelled videos",
        "Hou et al., AAAI 2017, as compared with in S4AQA", unlabelled=True, recipes=_S4AQA_RECIPES,
    ),
    "vat": Method(
        "aqa_train.methods.vat:VAT", "AA that is smooth around unlabelled videos",
        "Miyato et al., TPAMI 2018, arXiv:1704.03976", unlabelled=True, recipes=_S4AQA_RECIPES,
    ),
    "s4l": Method(
        "aqa_train.methods.s4l:S4L", "AA that tells how a video is turned", "Zhai et al., ICCV 2019, arXiv:1905.03670",
        streams=("rgb", "rot90-rgb", "rot180-rgb", "rot270-rgb"),
        taught_by=("rot90-rgb", "rot180-rgb", "rot270-rgb"), unlabelled=True, recipes=_S4AQA_RECIPES,
    ),
    "coreg": Method(
        "aqa_train.methods.coreg:COREG", "two nearest-neighbour regressors that label for each other",
        "Zhou and Li, IJCAI 2005", unlabelled=True,
    ),
    "trs": Method(
        "aqa_train.methods.trs:TRS", "AA taught what a teacher and a relative reference were surest of",
        "after Yun et al., ECCV 2024, arXiv:2407.19675", unlabelled=True, recipes=_S4AQA_RECIPES,
    ),
    "sap-net": _sap_net("SAP-Net: sub-actions that a student and a teacher who sees the actor agree on"),
    "sap-net-dd": _sap_net("SAP-Net, of score / difficulty", difficulty=True),
    "i3d+ssp": _sap_net("SAP-Net's sub-action parsing alone", contrast_weight=0.0, consistency_weight=0.0),
    "i3d+gcl": _sap_net("SAP-Net's group contrast alone", parsing_weight=0.0, consistency_weight=0.0),
    "ridge": Method("aqa_train.methods.linear:Ridge", "ridge regression on mean features", baseline=True),
    "svr": Method(
        "aqa_train.methods.linear:SVR", "linear support vector regression on mean features",
        "as compared with in S4AQA; libsvm",
    ),
    "i3d+mlp": Method(
        "aqa_train.methods.mean_mlp:MeanMLP", "three layers on mean features",
        "as compared with in CoRe, Yu et al., ICCV 2021, arXiv:2108.07797",
        recipes=_CORE_RECIPE,
    ),
    "usdl": Method(
        "aqa_train.methods.usdl:USDL", "a distribution over scores on mean features", _USDL_PAPER,
        recipes=_trained("mtl-aqa", epochs=100, **_USDL_RECIPE, **_Z_SCORED)
        | {"jigsaws": {"epochs": 80, **_USDL_RECIPE, **_Z_SCORED}},
    ),
    "musdl": Method(
        "aqa_train.methods.usdl:MUSDL", "a distribution over each judge's mark; drop, sum, times difficulty",
        _USDL_PAPER, columns={"difficulty": "number"}, labels={"judge_scores": "vector"}, uses_difficulty=True,
        recipes=_trained("mtl-aqa", epochs=100, **{**_USDL_RECIPE, **_Z_SCORED, "weight_decay": 1e-5}),
    ),
    "musdl-jigsaws": Method(
        "aqa_train.methods.usdl:MUSDL", "MUSDL for the six ratings of JIGSAWS, which add up to the score", _USDL_PAPER,
        {"bins": 5, "sigma": 1.0, "lowest": 1.0, "highest": 5.0, "drop": 0}, labels={"ratings": "vector"},
        recipes=_trained("jigsaws", epochs=80, **_USDL_RECIPE, **_Z_SCORED),
    ),
    "gdlt": Method(
        "aqa_train.methods.gdlt:GDLT", "a transformer whose queries are grades, kept apart by triplets",
        "Xu et al., CVPR 2022, github.com/xuangch/CVPR22_GDLT",
        recipes=_supervised("rhythmic-gymnastics", **_GYMNASTICS, schedule="cosine"),
    ),
    "action-net": Method(
        "aqa_train.methods.action_net:ActionNet", "ACTION-NET's dynamic branch: graph context and attention",
        "Zeng et al., ACM MM 2020, arXiv:2008.05977",
        # Its authors read frozen features too, but raw.
        recipes={"rhythmic-gymnastics": _ACTION_NET, "": {**_ACTION_NET, **_Z_SCORED}},
    ),
    "c3d-avg-stl": Method(
        "aqa_train.methods.c3d_avg:C3DAVGSTL", "one layer on mean features, squared and absolute error", _C3D_PAPER,
        recipes=_C3D_RECIPE,
    ),
    "c3d-avg-mtl": Method(
        "aqa_train.methods.c3d_avg:C3DAVG", "the same with a dive's five classes and its commentary", _C3D_PAPER,
        labels={
            "position": "category", "armstand": "category", "rotation_type": "category", "ss_no": "category",
            "tw_no": "category", "caption": "tokens",
        },
        recipes=_C3D_RECIPE,
    ),
    "dae": Method(
        "aqa_train.methods.dae:DAE", "a mean and a variance on mean features, by likelihood",
        "Zhang et al., Neural Computing and Applications 2023, arXiv:2111.11029",
        recipes=_supervised("mtl-aqa", epochs=100, batch=8, lr=1e-4, weight_decay=1e-5, **_Z_SCORED),
    ),
    "hgcn": Method(
        "aqa_train.methods.hgcn:HGCN", "graphs of clips and scenes; every scene adds a part of the score",
        "Zhou et al., TCSVT 2023, doi:10.1109/TCSVT.2023.3281413",
        recipes=_supervised("mtl-aqa", epochs=200, batch=4, lr=1e-4, weight_decay=1e-5),
    ),
    "tsa": Method(
        "aqa_train.methods.tsa:TSA", "TSA: three steps of a procedure, each compared with an exemplar's",
        "Xu et al., CVPR 2022, arXiv:2204.03646", {"difficulty": False},
        optional={"category": "category"}, optional_labels={"steps": "tokens"},
        recipes=_supervised("finediving", epochs=200, batch=8, lr=1e-3, weight_decay=0.0),
    ),
    "tsa-net": Method(
        "aqa_train.methods.tsa_net:TSANet", "TSA-Net: attention inside the actor's tube of the map, and USDL's head",
        "Wang et al., ACM MM 2021, arXiv:2201.03746", streams=("rgb:map", "actor_box"),
        # Without z-scores, which would move the boxes.
        recipes=_trained("mtl-aqa", epochs=100, **_USDL_RECIPE),
    ),
    "tpt": _tpt(difficulty=False),
    "tpt-dd": _tpt(difficulty=True),
    "pcln": _pcln(difficulty=False),
    "pcln-dd": _pcln(difficulty=True),
    "rica2": _rica2(difficulty=False),
    "rica2-dd": _rica2(difficulty=True),
    "mean-score": Method("aqa_train.methods.trivial:Constant", "the mean labelled score", baseline=True),
    "random": Method("aqa_train.methods.trivial:Random", "a labelled score, drawn by chance", baseline=True),
    "difficulty-only": Method(
        _LINE, "a line through difficulty", columns={"difficulty": "number"}, uses_difficulty=True, baseline=True
    ),
    "duration-only": Method(_LINE, "a line through duration", columns={"duration": "number"}, baseline=True),
    "category-mean": Method(
        "aqa_train.methods.trivial:CategoryMean", "the labelled mean of each category",
        columns={"category": "category"}, baseline=True,
    ),
})  # fmt: skip
