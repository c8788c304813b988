"""S4AQA: score videos while learning to recover a hidden segment.

Zhang, Pan, Gao, Zheng: Semi-Supervised Action Quality Assessment With Self-Supervised Segment Feature
Recovery. IEEE TCSVT 2022, doi:10.1109/tcsvt.2022.3143549. No public code; choices of ours are marked (ours).

    features → encoder → pool → f → regressor → score                              equations 1-3
                  │             └→ reversed gradient → discriminator → labelled?   equations 6, 7
                  └→ (a segment hidden) → pool → f~ → decoder → that segment       equations 4, 5

With several streams (RGB and flow) each has its own encoder and decoder; the regressor and the discriminator read the
concatenated f of all streams. The paper's ablations are settings: a weight of 0 omits that part.

    AA          recovery_weight = 0, alignment_weight = 0
    AA + RDA    recovery_weight = 0
    AA + MSFR   alignment_weight = 0

Keeping the first frame of each segment and recovery before scores (Tables VI and IX) are in s4aqa_variants.py.
"""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from aqa_shared.console import counted
from aqa_shared.errors import UsageError
from aqa_train.batch import Batch, Inputs
from aqa_train.draws import rand, randn_like
from aqa_train.layers import Pooling, TemporalConv, mlp, pool_time, reverse_gradient, running_statistics_kept

NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(ge=1)]
Streams = dict[str, Float[Tensor, "batch _ ..."]]
Videos = tuple[Streams, Bool[Tensor, "batch _"] | None]
"""Products of the first convolution by stream, and which segments there are."""
MaskValue = Literal["zeros", "mean", "noise", "learned"]
Alignment = Literal["gradient-reversal", "mmd-laplacian", "mmd-rbf"]


@dataclass(frozen=True)
class AAConfig:
    """Settings of E and R; that there are three convolutions is the paper's, most widths are not in it."""

    widths: Annotated[tuple[Positive, ...], Field(min_length=1)] = (512, 256, 256)
    """Channels after each temporal convolution; three of them is the paper's, the widths are ours."""
    kernel: Positive = 3
    """Length of the temporal convolutions (ours)."""
    dropout: Probability = 0.3
    """In every convolution block (ours)."""
    norm_first: bool = True
    """Conv, batch norm, ReLU, dropout (ours); False puts ReLU before batch norm, the order of the paper's list."""
    pooling: Pooling = "mean"
    """How the encoded sequence becomes the vector f (ours); `flatten` keeps where the hidden segment was."""
    regressor_width: Positive = 128
    """Hidden width of R (ours)."""
    start_at_mean: bool = True
    """R's last bias starts at the labelled mean, so that no epochs are spent on the offset (ours); False leaves it to
    chance, as the paper, which says nothing of it, supposedly did."""


@dataclass(frozen=True)
class S4AQAConfig(AAConfig):
    """Settings of S4AQA; the weights are the paper's."""

    recovery_weight: NotNegative = 40.0
    """λ1 of equation 8 (section IV-A)."""
    alignment_weight: NotNegative = 0.1
    """λ2 of equation 8 (section IV-A); the paper names no other for MMD (ours)."""
    alignment: Alignment = "gradient-reversal"
    """How labelled and unlabelled videos are brought together (Table VIII); a weight of 0 is its `w/o alignment`."""
    norm: Literal["clean", "joint", "separate"] = "clean"
    """What batch norm normalises over in training (ours). `clean`: labelled and unlabelled videos together, and their
    statistics alone are kept for prediction; masked ones, which prediction never sees, by their own. `joint`: all
    together. `separate`: each set for itself, all of them kept."""
    masked: Positive = 1
    """Segments hidden in each video; with more, the mean of the hidden ones is recovered (Table VI)."""
    mask_value: MaskValue = "zeros"
    """What a hidden segment is replaced by (ours): zeros, the mean of the visible segments, noise with the
    video's own mean and deviation, or a learned vector."""
    recover: Literal["unlabelled", "all"] = "unlabelled"
    """Whose segments are recovered: the paper's, or labelled videos' too (Table IX, `w/ labeled data`)."""
    decoder_width: Positive = 512
    """Hidden width of Φ (ours)."""
    discriminator_width: Positive = 128
    """Hidden width of D (ours)."""
    reversal: NotNegative = 1.0
    """Coefficient of the gradient reversal; λ2 already scales the loss (ours)."""


class AA(nn.Module):
    """Encoder E and regressor R, which all methods that S4AQA compares itself with have in common."""

    together = True

    def __init__(self, inputs: Inputs, config: AAConfig) -> None:
        super().__init__()
        self.config = config
        self.segments = inputs.segments
        self.width = config.widths[-1] * (inputs.segments if config.pooling == "flatten" else 1)
        self.encoder = nn.ModuleList(_Encoder(c, config) for c in inputs.widths.values())
        start = inputs.scale.mean if config.start_at_mean else None
        self.regressor = mlp(self.width * len(inputs.widths), config.regressor_width, 1, start=start)

    def forward(self, batch: Batch) -> Float[Tensor, "batch"]:
        """Scores in training units."""
        return self.regress(self.summaries(batch.streams, batch.present))

    def summaries(
        self, streams: Streams, present: Bool[Tensor, "batch time"] | None = None
    ) -> list[Float[Tensor, "batch width"]]:
        """f of every stream (equation 1)."""
        return self.pooled(self.products(streams, present), present)

    def read(self, batch: Batch) -> Videos:
        """Whole videos, as `pooled` wants them."""
        return self.products(batch.streams, batch.present), batch.present

    def products(self, streams: Streams, present: Bool[Tensor, "batch time"] | None) -> Streams:
        """Of every stream's first convolution: most of the encoder's work, and the same wherever a segment is seen."""
        encoders: Any = self.encoder
        pairs = zip(encoders, streams.items(), strict=True)
        return {name: encoder.products(x.flatten(2), present) for encoder, (name, x) in pairs}

    def pooled(self, products: Streams, present: Bool[Tensor, "batch time"] | None) -> list[Tensor]:
        """f of every stream, from the products of its first convolution."""
        if self.config.pooling == "flatten":
            products, present = self._fill(products, present)
        encoded = (encoder(z, present) for encoder, z in zip(self.encoder, products.values(), strict=True))
        return [pool_time(e, present, self.config.pooling) for e in encoded]

    def _fill(self, products: Streams, present: Bool[Tensor, "batch time"] | None) -> Videos:
        """Flattened sequences must have one length: shorter batches are padded."""
        x = next(iter(products.values()))
        missing = self.segments - x.shape[1]
        if missing < 0:
            raise UsageError(
                f"a video of {x.shape[1]} segments does not fit pooling = flatten, trained with {self.segments}",
                fix="extract as many segments as for training, or train with pooling = mean",
            )
        if missing == 0:
            return products, present
        there = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if present is None else present
        return {n: F.pad(z, (0, 0, 0, missing)) for n, z in products.items()}, F.pad(there, (0, missing))

    def regress(self, f: list[Float[Tensor, "batch width"]]) -> Float[Tensor, "batch"]:
        """Scores (equation 2)."""
        return self.regressor(torch.cat(f, dim=-1)).squeeze(-1)


class S4AQA(AA):
    """AA with decoder Φ and discriminator D, trained jointly."""

    Config = S4AQAConfig
    config: S4AQAConfig

    def __init__(self, inputs: Inputs, config: S4AQAConfig = S4AQAConfig()) -> None:
        super().__init__(inputs, config)
        if config.masked < 1 or (config.recovery_weight > 0 and config.masked >= self.segments):
            raise UsageError(
                f"masked = {config.masked} segments cannot be hidden in videos of {counted(self.segments, 'segment')}",
                fix=f"set masked between 1 and {max(self.segments - 1, 1)}, extract more segments, or use method aa",
            )
        self.decoder = nn.ModuleList(mlp(self.width, config.decoder_width, c) for c in inputs.widths.values())
        if config.alignment == "gradient-reversal":
            self.discriminator = mlp(self.width * len(inputs.widths), config.discriminator_width, 1)
        if config.mask_value == "learned":
            self.mask_token = nn.ParameterDict({n: nn.Parameter(torch.zeros(w)) for n, w in inputs.widths.items()})

    def losses(self, labelled: Batch, unlabelled: Batch) -> dict[str, Tensor]:
        """Unweighted terms; the trainer weights them by the settings `<term>_weight`, sums and logs them."""
        config = self.config
        if config.recovery_weight > 0 or config.alignment_weight > 0:
            refuse_none(unlabelled)
        inputs = {"labelled": self.read(labelled)}
        if config.alignment_weight > 0:
            inputs["unlabelled"] = self.read(unlabelled)
        targets = {}
        if config.recovery_weight > 0:
            both = (("unlabelled", unlabelled), ("labelled", labelled))
            for name, batch in both if config.recover == "all" else both[:1]:
                inputs[f"masked {name}"], targets[f"masked {name}"] = self.mask(batch, inputs.get(name))

        f = self._summaries_of(inputs)
        terms = {"score": F.mse_loss(self.regress(f["labelled"]), labelled.scores)}
        if config.recovery_weight > 0:
            streams = [torch.cat(parts) for parts in zip(*(f[name] for name in targets), strict=True)]
            terms["recovery"] = self.recovery_error(streams, torch.cat(list(targets.values())))
        if config.alignment_weight > 0:
            others = [f[name] for name in ("unlabelled", "masked unlabelled") if name in f]
            terms["alignment"] = self.misalignment(f["labelled"], others)
        return terms

    def mask(self, batch: Batch, whole: Videos | None = None) -> tuple[Videos, Float[Tensor, "batch channels"]]:
        """The videos with segments hidden (equation 4), the same of every stream, and the mean of what was hidden.

        `whole`: the same videos as `read` gives them, if they have been read.
        """
        hidden = choose_segments(next(iter(batch.streams.values())), batch.present, self.config.masked)
        where = hidden.unsqueeze(-1)
        target = [pool_time(x * where, hidden) for x in batch.streams.values()]
        if self.config.mask_value == "zeros":
            # Products of zeros are zeros: nothing is multiplied again.
            products, _ = whole or self.read(batch)
            visible = {name: z.masked_fill(where, 0.0) for name, z in products.items()}
        else:
            tokens: Any = self.mask_token if self.config.mask_value == "learned" else {}
            shown = {
                name: hide(x, hidden, batch.present, self.config.mask_value, tokens.get(name))
                for name, x in batch.streams.items()
            }
            visible = self.products(shown, batch.present)
        return (visible, batch.present), torch.cat(target, dim=-1)

    def recovery_error(
        self, f: list[Float[Tensor, "batch width"]], target: Float[Tensor, "batch channels"]
    ) -> Float[Tensor, ""]:
        """Absolute error of the recovered segment (equation 5), averaged over videos and channels.

        Summed over 1024 channels, λ1 = 40 would outweigh the scores (ours).
        """
        recovered = [decode(stream) for decode, stream in zip(self.decoder, f, strict=True)]
        return F.l1_loss(torch.cat(recovered, dim=-1), target)

    def misalignment(
        self, labelled: list[Float[Tensor, "labelled width"]], unlabelled: Sequence[list[Tensor]]
    ) -> Float[Tensor, ""]:
        """How well labelled f can be told from unlabelled ones, clean and masked: by D, or by their means."""
        if self.config.alignment == "gradient-reversal":
            return domain_loss(self.discriminate(labelled), [self.discriminate(f) for f in unlabelled])
        others = torch.cat([torch.cat(f, dim=-1) for f in unlabelled])
        return mean_discrepancy(torch.cat(labelled, dim=-1), others, self.config.alignment)

    def _summaries_of(self, inputs: dict[str, Videos]) -> dict[str, list[Float[Tensor, "batch width"]]]:
        """f of every input: through the encoder together, or one after the other (`norm`)."""
        if self.config.norm == "separate":
            return {name: self.pooled(*x) for name, x in inputs.items()}
        if self.config.norm == "joint":
            return self._together(inputs)
        f = self._together({name: x for name, x in inputs.items() if not name.startswith("masked")})
        if masked := {name: x for name, x in inputs.items() if name.startswith("masked")}:
            with running_statistics_kept(self):
                f |= self._together(masked)
        return f

    def _together(self, inputs: dict[str, Videos]) -> dict[str, list[Float[Tensor, "batch width"]]]:
        """f of every input, normalised over all of them."""
        masks = [present for _, present in inputs.values() if present is not None]
        names = next(iter(inputs.values()))[0]
        products = {n: torch.cat([z[n] for z, _ in inputs.values()]) for n in names}
        together = self.pooled(products, torch.cat(masks) if masks else None)
        sizes = [len(next(iter(z.values()))) for z, _ in inputs.values()]
        parts = zip(*(stream.split(sizes) for stream in together), strict=True)
        return {name: list(part) for name, part in zip(inputs, parts, strict=True)}

    def discriminate(self, f: list[Float[Tensor, "batch width"]]) -> Float[Tensor, "batch"]:
        """Logit of "labelled" (D of equation 7), through the reversed gradient."""
        reversed_ = reverse_gradient(torch.cat(f, dim=-1), self.config.reversal)
        return self.discriminator(reversed_).squeeze(-1)


def refuse_none(unlabelled: Sized) -> None:
    """Nothing can be learned from unlabelled videos where there are none."""
    if len(unlabelled) == 0:
        raise UsageError(
            "the method learns from unlabelled videos, and there are none",
            fix="use --method aa, add videos without scores, or hide scores to try it (--labelled 0.4)",
        )


class _Encoder(nn.Module):
    """Temporal convolutions of one stream."""

    def __init__(self, channels: int, config: AAConfig) -> None:
        super().__init__()
        inputs = (channels, *config.widths[:-1])
        self.blocks = nn.ModuleList(
            TemporalConv(i, o, kernel=config.kernel, dropout=config.dropout, norm_first=config.norm_first)
            for i, o in zip(inputs, config.widths, strict=True)
        )

    def products(
        self, x: Float[Tensor, "batch time channels"], present: Bool[Tensor, "batch time"] | None
    ) -> Float[Tensor, "batch time taps"]:
        """Of the first convolution."""
        first: Any = self.blocks[0]
        found: Tensor = first.products(x, present)
        return found

    def forward(
        self, products: Float[Tensor, "batch time taps"], present: Bool[Tensor, "batch time"] | None
    ) -> Float[Tensor, "batch time width"]:
        blocks: Any = self.blocks
        x: Tensor = blocks[0].gather(products, present)
        for block in blocks[1:]:
            x = block(x, present)
        return x


def domain_loss(labelled: Float[Tensor, "labelled"], unlabelled: Sequence[Tensor]) -> Float[Tensor, ""]:
    """Cross-entropy of telling labelled (1) from unlabelled (0) videos, each class averaged for itself.

    Equation 6 averages the classes (1/L, and 1/2U over clean and masked), equation 7 prints a plain sum; with
    the average the weight does not depend on the batch (ours).
    """
    of_unlabelled = torch.stack([F.softplus(logits).mean() for logits in unlabelled]).mean()
    return F.softplus(-labelled).mean() + of_unlabelled


def mean_discrepancy(x: Float[Tensor, "m width"], y: Float[Tensor, "n width"], kernel: Alignment) -> Float[Tensor, ""]:
    """Squared maximum mean discrepancy of two sets, with pairs of a video and itself (Gretton et al. 2012, equation 5).

    k is exp(−|a − b|₁ / s), or exp(−|a − b|² / 2s²), summed over five widths around the median distance in this batch:
    1/4, 1/2, 1, 2 and 4 times s, or s² (ours; the paper names the two kernels only).
    """
    both = torch.cat([x, y]).float()
    apart = both[:, None] - both
    distance = apart.abs().sum(dim=-1) if kernel == "mmd-laplacian" else apart.square().sum(dim=-1)
    others = ~torch.eye(len(both), dtype=torch.bool, device=both.device)
    width = (1 if kernel == "mmd-laplacian" else 2) * distance.detach()[others].median().clamp(min=1e-12)
    k = torch.stack([torch.exp(-distance / (scale * width)) for scale in (0.25, 0.5, 1.0, 2.0, 4.0)]).sum(dim=0)
    m = len(x)
    return k[:m, :m].mean() + k[m:, m:].mean() - 2 * k[:m, m:].mean()


def choose_segments(
    x: Float[Tensor, "batch time channels"], present: Bool[Tensor, "batch time"] | None, count: int
) -> Bool[Tensor, "batch time"]:
    """`count` different present segments of every video, uniformly; fewer where none would stay visible.

    A video of a single segment has it hidden: there is nothing else to learn from it.
    """
    keys = rand(x.shape[:2], x.device)
    if present is None:
        chosen = keys.topk(count, dim=1).indices
        return torch.zeros_like(keys, dtype=torch.bool).scatter(1, chosen, True)
    keys = keys.masked_fill(~present, -1.0)
    rank = keys.argsort(dim=1, descending=True).argsort(dim=1)
    most = (present.sum(dim=1, keepdim=True) - 1).clamp(min=1, max=count)
    return (rank < most) & present


def hide(
    x: Float[Tensor, "batch time channels"],
    hidden: Bool[Tensor, "batch time"],
    present: Bool[Tensor, "batch time"] | None,
    value: MaskValue,
    token: Float[Tensor, "channels"] | None = None,
) -> Float[Tensor, "batch time channels"]:
    """`x` with the hidden segments replaced, by anything but zeros."""
    where = hidden.unsqueeze(-1)
    if value == "learned":
        assert token is not None
        return torch.where(where, token, x)
    visible = ~hidden if present is None else present & ~hidden
    count = visible.sum(dim=1).clamp(min=1)[:, None, None]
    shown = x * visible.unsqueeze(-1)
    mean = shown.sum(dim=1, keepdim=True) / count
    if value == "mean":
        return torch.where(where, mean, x)
    variance = ((x - mean).square() * visible.unsqueeze(-1)).sum(dim=1, keepdim=True) / count
    return torch.where(where, mean + variance.sqrt() * randn_like(x), x)
