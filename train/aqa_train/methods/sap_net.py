"""SAP-Net: a student that sees the full frame agrees with a teacher that sees the actor; both parse sub-actions.

Gedamu, Ji, Yang, Shao, Shen: Self-supervised subaction Parsing Network for Semi-supervised Action Quality Assessment.
IEEE TIP 2024. There is no public code, and the paper leaves much open: this is a reconstruction, and choices of ours
are marked (ours). The authors train I3D; here the features of both streams are frozen.

    full frame  → attention → parser → sub-actions → mean → regressor → score ─┬── labels (labelled videos)
                     │           └ BCE ─ k-means states, chosen greedily       │ ↘ agree if the teacher is confident
    actor alone → attention → parser → sub-actions → mean → regressor → score ─┘ ↗
                  (same weights)           └→ projection → mean by state: the same attract, others repel

`sub_actions.py` has states, parser and transitions. The paper's ablations are settings: a weight of 0 omits a part.

    I3D + SSP    contrast_weight = 0, consistency_weight = 0
    I3D + GCL    parsing_weight = 0, consistency_weight = 0: no parser, the states themselves are the sub-actions
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from aqa_shared.console import counted
from aqa_shared.errors import UsageError
from aqa_train.batch import Batch, Inputs
from aqa_train.layers import Quality, mlp, running_statistics_kept
from aqa_train.methods.s4aqa import NotNegative, Positive, Probability
from aqa_train.methods.sub_actions import STEPS, Parser, between, pseudo_labels, resample, transitions
from aqa_train.methods.usdl import divergence, soft_label
from aqa_train.pool import Pool


@dataclass(frozen=True)
class SAPNetConfig:
    """Settings of SAP-Net; all weights are 1 in the paper (section IV-A), K = 3 and τ = 0.7 its best."""

    parsing_weight: NotNegative = 1.0
    """λ1, of the sub-actions' cross-entropy (equation 6)."""
    consistency_weight: NotNegative = 1.0
    """λ2, of agreeing with the teacher (equation 2)."""
    contrast_weight: NotNegative = 1.0
    """λ3, of group contrastive learning (equation 8)."""
    distribution_weight: NotNegative = 1.0
    """Of the distribution over scores that `confidence = distribution` learns (ours)."""
    selected_weight: Annotated[float, Field(ge=0, le=0)] = 0.0
    """`selected` is not a loss but the share of unlabelled videos of which the teacher is sure, logged like one."""
    states: Positive = 8
    """M, states that k-means finds in each video (ours); at most as many as it has segments."""
    sub_actions: Positive = 3
    """K, states that are chosen (figure 9)."""
    rounds: Positive = 10
    """Of k-means (ours)."""
    parts: Literal["transitions", "soft"] = "transitions"
    """What a sub-action's feature is the mean of (ours): the steps from its transition (equation 5) to the next, or all
    steps by how probable the sub-action is there."""
    contrast: Literal["infonce", "literal"] = "infonce"
    """exp(cosine / temperature) as is usual (ours), or the cosine itself as equation 8 is printed, where the
    temperature cancels; those that are not positive count as .000001 (ours)."""
    temperature: Annotated[float, Field(gt=0)] = 0.5
    """ι of equation 8 (ours)."""
    confidence: Literal["distribution", "agreement", "score"] = "distribution"
    """What has to reach τ, of which the paper says the maximum class probability of a regressor (ours). `distribution`:
    probability within two bins of the peak of a distribution over scores, as a part of what it is taught to be, 1 at
    most. `agreement`: 1 − the difference of two passes with dropout, as a part of the score range. `score`: the
    teacher's score itself, as a part of the range."""
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.7
    """τ."""
    dropout: Probability = 0.3
    """Before the regressor in the two passes of `confidence = agreement`, and nowhere else (ours)."""
    ema: Probability = 0.0
    """What the teacher keeps of itself at every step; 0: student and teacher are one network, as in the paper."""
    regress: Literal["student", "both"] = "both"
    """Whether labelled scores teach the student alone (equation 10), or where there is an agreement, the teacher too
    (ours): equation 10 once more, on the actor's view. Otherwise long training draws all scores of unseen videos to
    one (docs/methods/sap-net.md). Without an agreement it changes nothing."""
    learn_from: Literal["unlabelled", "all"] = "unlabelled"
    """Whose sub-actions are parsed and contrasted: X_u and X_a, or labelled videos' too (ours)."""
    refine: Literal["all", "parsing", "pseudo-labels", "nothing"] = "all"
    """What sees features that attention refined (Table III): parsing and the score, the search for states, or both."""
    widths: Annotated[tuple[Positive, ...], Field(min_length=1)] = (256, 128)
    """Hidden widths of the regressor, of three layers (ours)."""
    projection: Annotated[tuple[Positive, ...], Field(min_length=3, max_length=3)] = (512, 256, 128)
    """Widths of the three layers before the contrast (ours)."""
    start_at_mean: bool = True
    """The regressor's last bias starts at the labelled mean (ours)."""
    difficulty: bool = False
    """What is learned is the score divided by difficulty, as in the paper on MTL-AQA."""
    quality_max: NotNegative = 0.0
    """The best score divided by difficulty, 30 in diving; 0: the best labelled one (ours)."""


BINS, SIGMA, AROUND = 101, 5.0, 2
"""Of `confidence = distribution`: USDL's bins and deviation, and how far from the peak probability counts."""


class SAPNet(nn.Module):
    """One branch, or with `ema` two; the second stream is what the teacher sees."""

    Config = SAPNetConfig

    def __init__(self, inputs: Inputs, config: SAPNetConfig = SAPNetConfig()) -> None:
        super().__init__()
        widths = list(inputs.widths.values())
        if len(widths) != 2 or widths[0] != widths[1]:
            raise UsageError(
                f"SAP-Net reads two streams of one width, the full frame and the actor, got {inputs.widths}",
                fix="extract both with one backbone: --streams rgb,actor-rgb",
            )
        if config.sub_actions > min(config.states, inputs.segments):
            raise UsageError(
                f"{config.sub_actions} sub-actions cannot be chosen from {config.states} states of videos of "
                f"{counted(inputs.segments, 'segment')}",
                fix=f"set sub_actions to at most {min(config.states, inputs.segments)}, set more states, or extract "
                "more segments",
            )
        self.config, self.top, self.segments = config, inputs.scale.top, inputs.segments
        self.quality = Quality(inputs.scale, config.difficulty, config.quality_max)
        self.student = Branch(inputs, config)
        if config.ema > 0:
            self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    def prepare(self, pool: Pool) -> None:
        """The scale of scores divided by difficulty, and where the regressor starts on it."""
        if not self.config.difficulty:
            return
        labelled = pool.labelled.without_features()
        self.quality.fit(labelled)
        if self.config.start_at_mean:
            mean = self.quality.to_value(labelled.scores, labelled).mean()
            for branch in self.student, *([self.teacher] if self.config.ema > 0 else []):
                branch.regressor[-1].bias.fill_(mean)  # type: ignore[operator]

    def forward(self, batch: Batch) -> Float[Tensor, "batch"]:
        """The student's scores, in training units; of the first stream alone."""
        return self.quality.to_score(self.student.score(self.student(self.seen(batch)[0]).summary), batch)

    def seen(self, batch: Batch) -> list[Float[Tensor, "batch segments channels"]]:
        """What the student and, in training, the teacher see; every video has as many segments as the longest."""
        return [resample(x.flatten(2), batch.present, self.segments) for x in batch.streams.values()]

    def losses(self, labelled: Batch, unlabelled: Batch) -> dict[str, Tensor]:
        """Unweighted terms, and the share of unlabelled videos on which the teacher was sure."""
        config, known = self.config, len(labelled)
        wants = config.parsing_weight + config.contrast_weight + config.consistency_weight > 0
        if wants and len(unlabelled) == 0 and config.learn_from == "unlabelled":
            raise UsageError(
                "SAP-Net learns from unlabelled videos, and there are none",
                fix="hide scores to try it (--labelled 0.4), or add videos without scores",
            )
        full, actor = (torch.cat(x) for x in zip(self.seen(labelled), self.seen(unlabelled), strict=True))
        student, teacher = self.student(full), self.teach(actor)
        value = self.quality.to_value(labelled.scores, labelled)
        terms = {"score": F.mse_loss(self.student.score(student.summary[:known]), value)}
        if config.regress == "both" and config.consistency_weight > 0:
            # A teacher that follows learns nothing of its own: what it follows has to know the actor's view.
            view = teacher if config.ema == 0 else self.aside(actor)
            terms["score"] = terms["score"] + F.mse_loss(self.student.score(view.summary[:known]), value)
        first = 0 if config.learn_from == "all" else known
        branches = [branch.after(first) for branch in (student, teacher)]
        if config.parsing_weight > 0:
            parsed = branches[: 1 if config.ema > 0 else 2]
            terms["parsing"] = torch.stack([parsing_loss(b.logits, b.labels) for b in parsed]).mean()
        if config.contrast_weight > 0:
            projected = [self.student.project(b.parts) for b in branches]
            terms["contrast"] = contrast_loss(
                group_means(projected[1], branches[1].names, config.sub_actions),
                group_means(projected[0], branches[0].names, config.sub_actions),
                config.temperature,
                literal=config.contrast == "literal",
            )
        if config.consistency_weight > 0:
            if config.confidence == "distribution" and config.distribution_weight > 0:
                target = soft_label(value * ((BINS - 1) / self.top), BINS, SIGMA)
                terms["distribution"] = divergence(self.student.distribution(student.summary[:known].detach()), target)
            said = self.student.score(student.summary[known:])
            terms["consistency"], terms["selected"] = self.agree(said, teacher.summary[known:].detach())
        return terms

    def teach(self, actor: Float[Tensor, "batch segments channels"]) -> Parsed:
        """The teacher's branch."""
        if self.config.ema > 0:
            with torch.no_grad():
                branch: Parsed = self.teacher(actor)
                return branch
        return self.aside(actor)

    def aside(self, actor: Float[Tensor, "batch segments channels"]) -> Parsed:
        """The student's network on the actor's view; what prediction normalises by is left to the full frame's."""
        with running_statistics_kept(self.student):
            shared: Parsed = self.student(actor)
            return shared

    def agree(
        self, student: Float[Tensor, "batch"], teacher: Float[Tensor, "batch width"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Squared distance from the teacher's score over all videos, 0 where it is not sure (equation 2, without its
        sign); and the share on which it is."""
        branch = self.teacher if self.config.ema > 0 else self.student
        with torch.no_grad():
            target = branch.score(teacher)
            sure = self.sure(branch, teacher, target) >= self.config.threshold
        error = (student - target).square() * sure
        count = max(len(student), 1)
        return error.sum() / count, sure.float().sum() / count

    def sure(
        self, branch: Branch, summary: Float[Tensor, "batch width"], score: Float[Tensor, "batch"]
    ) -> Float[Tensor, "batch"]:
        """The teacher's confidence, 0 … 1 (`confidence`)."""
        if self.config.confidence == "score":
            return score / self.top
        if self.config.confidence == "agreement":
            a, b = (branch.score(F.dropout(summary, self.config.dropout)) for _ in range(2))
            return (1 - (a - b).abs() / self.top).clamp(min=0)
        return peakedness(branch.distribution(summary).softmax(dim=-1))

    def after_step(self) -> None:
        """With `ema` the teacher follows, in its batch statistics too."""
        if self.config.ema == 0:
            return
        for mine, theirs in zip(self.teacher.state_dict().values(), self.student.state_dict().values(), strict=True):
            if mine.is_floating_point():
                mine.lerp_(theirs, 1 - self.config.ema)
            else:
                mine.copy_(theirs)


@dataclass(frozen=True)
class Parsed:
    """What a branch makes of some videos."""

    logits: Float[Tensor, "batch steps outputs"]
    """Of the parser, one for each state; none where there is no parser."""
    labels: Int[Tensor, "batch steps"]
    """Pseudo-labels."""
    parts: Float[Tensor, "batch states channels"]
    """Feature of each sub-action."""
    names: Int[Tensor, "batch states"]
    """Which state each is held to be, −1 where it has no step."""
    summary: Float[Tensor, "batch channels"]
    """The mean of the sub-actions."""

    def after(self, first: int) -> Parsed:
        """Without the first so many videos."""
        return Parsed(*(x[first:] for x in (self.logits, self.labels, self.parts, self.names, self.summary)))


class Branch(nn.Module):
    """Attention, parser, regressor and projection."""

    def __init__(self, inputs: Inputs, config: SAPNetConfig) -> None:
        super().__init__()
        self.config = config
        width = next(iter(inputs.widths.values()))
        self.states = min(config.states, inputs.segments)
        self.attention = nn.Linear(width, width)
        if config.parsing_weight > 0:
            self.parser = Parser(inputs.segments, width, config.sub_actions)
        start = inputs.scale.mean if config.start_at_mean else None
        self.regressor = mlp(width, *config.widths, 1, start=start)
        if config.consistency_weight > 0 and config.confidence == "distribution":
            self.distribution = mlp(width, *config.widths, BINS)
        if config.contrast_weight > 0:
            self.project = mlp(width, *config.projection)

    def forward(self, x: Float[Tensor, "batch segments channels"]) -> Parsed:
        config = self.config
        # 1×1 convolution and sigmoid of what is pooled over the picture already: weighting channels commutes with it.
        attended = x * self.attention(x).sigmoid()
        refined = attended if config.refine in ("all", "parsing") else x
        searched = attended if config.refine in ("all", "pseudo-labels") else x
        with torch.no_grad():
            own = pseudo_labels(x, searched, self.states, config.sub_actions, config.rounds)
        place = torch.arange(STEPS, device=x.device) * x.shape[1] // STEPS
        labels, steps = own[:, place], refined[:, place]
        logits = self.parser(refined) if config.parsing_weight > 0 else refined.new_zeros(len(x), STEPS, 0)
        weights, names = self.divide(logits.sigmoid(), labels)
        parts = weights @ steps
        there = (names >= 0).unsqueeze(-1)
        summary = (parts * there).sum(dim=1) / there.sum(dim=1)
        return Parsed(logits, labels, parts, names, summary)

    def divide(
        self, probability: Float[Tensor, "batch steps outputs"], labels: Int[Tensor, "batch steps"]
    ) -> tuple[Float[Tensor, "batch states steps"], Int[Tensor, "batch states"]]:
        """Weights of the steps in each sub-action, and its state: that which is likeliest there."""
        count = self.config.sub_actions
        if self.config.parsing_weight == 0:
            member = F.one_hot(labels, count).transpose(1, 2).to(probability)
            size = member.sum(dim=2)
            names = torch.where(size > 0, torch.arange(count, device=labels.device), -1)
            return member / size.clamp(min=1).unsqueeze(-1), names
        if self.config.parts == "soft":
            weights = probability.transpose(1, 2) + 1e-6
            weights = weights / weights.sum(dim=2, keepdim=True)
            return weights, torch.arange(count, device=labels.device).expand(len(labels), -1)
        weights = between(transitions(probability), STEPS).to(probability)
        # A broken parser must be seen in the score, and argmax alone would hide it.
        return weights + 0.0 * probability.detach().sum(), (weights @ probability).argmax(dim=2)

    def score(self, summary: Float[Tensor, "batch channels"]) -> Float[Tensor, "batch"]:
        """In training units (equation 9)."""
        scores: Tensor = self.regressor(summary).squeeze(-1)
        return scores


def parsing_loss(logits: Float[Tensor, "batch steps states"], labels: Int[Tensor, "batch steps"]) -> Float[Tensor, ""]:
    """Binary cross-entropy of every state at every step (equation 6), averaged (ours; the paper prints a sum)."""
    if not len(logits):
        return logits.sum()
    return F.binary_cross_entropy_with_logits(logits, F.one_hot(labels, logits.shape[2]).to(logits))


def group_means(
    h: Float[Tensor, "batch parts width"], names: Int[Tensor, "batch parts"], groups: int
) -> tuple[Float[Tensor, "groups width"], Bool[Tensor, "groups"]]:
    """G of every group, and which have a member (equation 7): the mean of its sub-actions in the batch.

    The paper divides by the number of videos; the cosine does not see the difference.
    """
    member = F.one_hot(names.flatten() + 1, groups + 1)[:, 1:].to(h)
    count = member.sum(dim=0)
    return member.T @ h.flatten(0, 1) / count.clamp(min=1).unsqueeze(-1), count > 0


def contrast_loss(
    teacher: tuple[Float[Tensor, "groups width"], Bool[Tensor, "groups"]],
    student: tuple[Float[Tensor, "groups width"], Bool[Tensor, "groups"]],
    temperature: float,
    *,
    literal: bool,
) -> Float[Tensor, ""]:
    """A group of the teacher's is near the student's of the same state, and far from both branches' of others
    (equation 8); the mean over the states that both have."""
    (a, in_a), (u, in_u) = teacher, student
    a, u = F.normalize(a, dim=1), F.normalize(u, dim=1)
    to_student, to_teacher = a @ u.T, a @ a.T
    if literal:
        near, also = (x.clamp(min=1e-6) / temperature for x in (to_student, to_teacher))
    else:
        near, also = ((x / temperature).exp() for x in (to_student, to_teacher))
    other = ~torch.eye(len(a), dtype=torch.bool, device=a.device)
    far = (near * (other & in_u)).sum(dim=1) + (also * (other & in_a)).sum(dim=1)
    positive = near.diagonal()
    both = in_a & in_u
    return (-(positive / (positive + far)).log() * both).sum() / both.sum().clamp(min=1)


def peakedness(probability: Float[Tensor, "batch bins"]) -> Float[Tensor, "batch"]:
    """Probability within two bins of the likeliest, as a part of what a distribution as taught has there, 1 at most."""
    windows = F.pad(probability, (AROUND, AROUND)).unfold(1, 2 * AROUND + 1, 1).sum(dim=2)
    mass = windows.gather(1, probability.argmax(dim=1, keepdim=True)).squeeze(1)
    taught = math.fsum(math.exp(-((i / SIGMA) ** 2) / 2) for i in range(-AROUND, AROUND + 1))
    whole = math.fsum(math.exp(-((i / SIGMA) ** 2) / 2) for i in range(-BINS, BINS + 1))
    return (mass * (whole / taught)).clamp(max=1)
