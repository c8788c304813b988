"""The steps of TV-L1 on one pyramid level, as plain torch operations on any device.

    warp ──→ wx, wy, rho, 1/grad ──→ [ median → 30 × ( u from p, then p from u ) ] …

Everything is batched over pairs and pair-wise independent, so the batch never changes a pair's flow. The
loop writes into buffers made once per level: at these sizes the planes of a few pairs fit the processor's
cache, and allocating would throw them out of it. tvl1.c has the same steps, fused, for CPUs.

Source of the definition: OpenCV contrib, modules/optflow/src/tvl1flow.cpp (CPU), after Zach, Pock and
Bischof, "A Duality Based Approach for Realtime TV-L1 Optical Flow", DAGM 2007, and Sánchez et al., IPOL 2013.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from aqa_extract.flow import network

FLT_EPSILON = torch.finfo(torch.float32).eps
NO_GRADIENT = 1e20
"""Stands for 1/grad where grad <= FLT_EPSILON: any residual then takes the full step of the threshold rule,
and a residual of 0 takes none, which is what OpenCV's three-way test does there."""

SUBPIXELS = 32
"""cv::remap rounds where it samples to 1/32 px."""


def _power_of_two(n: int) -> int:
    """The least power of two that is at least `n`."""
    return 1 << (n - 1).bit_length()


def sampling_planes(planes: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n 3 padded padded_"]:
    """Planes padded with zeros to powers of two, for `warp`.

    With such sizes the coordinates that grid_sample derives from its [-1, 1] grid are exact in float32, so a
    flow of zero samples the pixels themselves. The zeros are OpenCV's constant border.
    """
    height, width = planes.shape[-2:]
    return F.pad(planes, (0, _power_of_two(width) - width, 0, _power_of_two(height) - height))


def warp(
    planes: Float[Tensor, "n 3 padded padded_"], flow: Float[Tensor, "n 2 height width"]
) -> Float[Tensor, "n 3 height width"]:
    """cv::remap INTER_CUBIC (a = -0.75, positions in 1/32 px) with a border of zeros, at (x + u, y + v)."""
    height, width = flow.shape[-2:]
    padded_height, padded_width = planes.shape[-2:]
    x = torch.arange(width, device=flow.device, dtype=flow.dtype)
    y = torch.arange(height, device=flow.device, dtype=flow.dtype)[:, None]
    at_x = ((x + flow[:, 0]) * SUBPIXELS).round_()
    at_y = ((y + flow[:, 1]) * SUBPIXELS).round_()
    # From 1/32 px to [-1, 1] with align_corners=False: powers of two only, hence exact.
    grid = torch.stack(
        (
            (at_x * 2 + SUBPIXELS) / (SUBPIXELS * padded_width) - 1,
            (at_y * 2 + SUBPIXELS) / (SUBPIXELS * padded_height) - 1,
        ),
        dim=-1,
    )
    return F.grid_sample(planes, grid, mode="bicubic", padding_mode="zeros", align_corners=False)


def median_5x5(flow: Float[Tensor, "n 2 height width"]) -> Float[Tensor, "n 2 height width"]:
    """5x5 median of each plane, the edge repeated beyond the edge (cv::medianBlur on float).

    Exchanges of whole planes (network.py) where torch.median would sort 25 values per pixel; the columns are
    put in order once and serve the five pixels beside each other.
    """
    height, width = flow.shape[-2:]
    padded = F.pad(flow, (2, 2, 2, 2), mode="replicate")
    columns = [padded[..., y : y + height, :] for y in range(5)]
    _exchange(columns, network.SORT_5)
    values = [columns[y][..., x : x + width] for y in range(5) for x in range(5)]
    _exchange(values, network.MEDIAN_OF_SORTED_COLUMNS)
    return values[network.MEDIAN].contiguous()


def _exchange(values: list[Tensor], exchanges: tuple[network.Exchange, ...]) -> None:
    for e in exchanges:
        low = torch.minimum(values[e.a], values[e.b]) if e.lower else values[e.a]
        high = torch.maximum(values[e.a], values[e.b]) if e.upper else values[e.b]
        values[e.a], values[e.b] = low, high


class Level:
    """Buffers and the iteration of one level for a batch of pairs.

    `flow` (n, 2, h, w) is u and v in px of this level; `dual` (n, 2, 2, h + 1, w + 1) is p of u and of v
    along x and y, with a row and a column of zeros before it, so that its divergence needs no special case.
    """

    def __init__(self, flow: Float[Tensor, "n 2 height width"]) -> None:
        n, _, height, width = flow.shape
        self.flow = flow.contiguous()
        self.dual = flow.new_zeros(n, 2, 2, height + 1, width + 1)
        self._allocate()

    def _allocate(self) -> None:
        n, _, height, width = self.flow.shape
        new = self.flow.new_zeros
        self._step, self._change = new(n, height, width), new(n, 2, height, width)
        # The last column of the x difference and the last row of the y difference stay 0.
        self._slope, self._length = new(n, 2, 2, height, width), new(n, 2, 1, height, width)

    def linearise(self, image: Float[Tensor, "n height width"], planes: Float[Tensor, "n 3 padded padded_"]) -> None:
        """Warp the second frame by the flow so far and set up the residual rho = rho_c + wx u + wy v."""
        warped, self.wx, self.wy = warp(planes, self.flow).unbind(1)
        self.constant = warped - self.wx * self.flow[:, 0] - self.wy * self.flow[:, 1] - image
        self.set_gradient()

    def set_gradient(self) -> None:
        """1 / |gradient|^2 of the warped frame, from wx and wy."""
        gradient = self.wx.square().addcmul_(self.wy, self.wy)
        self.inverse = torch.where(gradient > FLT_EPSILON, gradient.reciprocal(), NO_GRADIENT)

    def iterate(self, theta: float, threshold: float, taut: float) -> Float[Tensor, " n"]:
        """One iteration: u from p, then p from u. `threshold` is lambda theta, `taut` tau / theta.

        Returns the sum of squared changes of u per pair.
        """
        flow, dual, step, change = self.flow, self.dual, self._step, self._change
        u, v = flow.unbind(1)
        torch.addcmul(self.constant, self.wx, u, out=step)
        step.addcmul_(self.wy, v).mul_(self.inverse).clamp_(-threshold, threshold)
        torch.sub(dual[:, :, 0, 1:, 1:], dual[:, :, 0, 1:, :-1], out=change)
        change.add_(dual[:, :, 1, 1:, 1:]).sub_(dual[:, :, 1, :-1, 1:]).mul_(theta)
        change[:, 0].addcmul_(step, self.wx, value=-1)
        change[:, 1].addcmul_(step, self.wy, value=-1)
        flow.add_(change)
        squared = change.square_().sum((1, 2, 3))

        slope, length = self._slope, self._length[:, :, 0]
        torch.sub(flow[..., 1:], flow[..., :-1], out=slope[:, :, 0, :, :-1])
        torch.sub(flow[..., 1:, :], flow[..., :-1, :], out=slope[:, :, 1, :-1])
        torch.mul(slope[:, :, 0], slope[:, :, 0], out=length)
        length.addcmul_(slope[:, :, 1], slope[:, :, 1]).sqrt_().mul_(taut).add_(1)
        dual[..., 1:, 1:].add_(slope, alpha=taut).div_(self._length)
        return squared

    def smooth(self) -> None:
        """The 5x5 median of u and v, which removes outliers between runs of iterations."""
        self.flow = median_5x5(self.flow)

    def copy_to(self, flow: Tensor, dual: Tensor, rows: Tensor) -> None:
        """Write the pairs of this batch to their `rows` of a larger one."""
        if len(rows) and self.flow is not flow:
            flow[rows] = self.flow
        if len(rows) and self.dual is not dual:
            dual[rows] = self.dual

    def keep(self, rows: Tensor) -> None:
        """Shrink to some pairs of the batch (those still moving)."""
        self.flow, self.dual = self.flow[rows], self.dual[rows]
        self.wx, self.wy = self.wx[rows], self.wy[rows]
        self.inverse, self.constant = self.inverse[rows], self.constant[rows]
        self._allocate()

    def restore(self, flow: Tensor, dual: Tensor) -> None:
        """Go on with the larger batch."""
        resized = len(flow) != len(self.flow)
        self.flow, self.dual = flow, dual
        if resized:
            self._allocate()
