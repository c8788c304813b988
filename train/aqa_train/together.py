"""Several trainings of one shape, as seeds, folds or weights of losses, computed as one batched model.

    trainings' weights ─▶ stacked ─▶ vmap of `losses` ─▶ one gradient, one step of the optimiser
            ▲                │
            └──── views ─────┘      each is tested, saved and resumed as if it were alone

A small network leaves a GPU idle between one kernel and the next; every kernel does the work of R trainings here. Each
has its own order of videos, labels and random numbers (`aqa_train.draws`), so it learns what it learns alone, up to the
order of floating-point sums. A method says by `together = True` that its `losses` can be computed so
(docs/writing-a-method.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from aqa_train.batch import Batch
from aqa_train.draws import drawing
from aqa_train.signals import Stopped
from aqa_train.trainer import Diverged, Fitted, Loop, computed_in, kept_rng

Pair = tuple[Batch, Batch]
"""A labelled and an unlabelled batch."""


def fit_together(
    begin: Sequence[Callable[[], Loop]],
    device: torch.device,
    *,
    stop: Callable[[], int],
    on_epoch: Callable[[int, int, dict[str, float]], None],
    failed: Callable[[int, Diverged], None],
) -> list[Fitted | None]:
    """Train what each of `begin` begins (`aqa_train.trainer.begun`), all of one method and one shape.

    `on_epoch` is told the place in `begin` first. `failed` is told of a training that diverges, which is None in the
    result: the others go on, or where it raises, are saved. Raises `Stopped` after all are saved.
    """
    with kept_rng(device):
        loops = [_with_own_generators(one()) for one in begin]
        for loop in loops:
            loop.beside = len(loops)
        asked = 0  # once a step, so that all stop after the same one
        steps = [loop.steps(lambda: asked, partial(on_epoch, i)) for i, loop in enumerate(loops)]
        at = _next(steps, range(len(loops)))
        _catch_up(loops, steps, at)
        lost: set[int] = set()
        stack: _Stack | None = None
        while at:
            working = [loops[i] for i in at]
            if stack is None or stack.outdated(working):
                stack = _Stack(working)
            found = dict(zip(at, stack.gradients(list(at.values())), strict=True))
            diverged: dict[int, Diverged] = {}
            for i, pair in at.items():
                try:
                    loops[i].refuse_infinite(found[i], *pair)
                except Diverged as e:
                    diverged[i] = e
            stack.step()
            going_on = [i for i in at if i not in diverged]
            for i in going_on:
                loops[i].stepped(found[i])
            try:
                for i, error in diverged.items():
                    failed(i, error)
            except BaseException:
                for i in going_on:
                    loops[i].save_if_asked()
                raise
            lost |= diverged.keys()
            asked = stop()
            at = _next(steps, going_on)
    return [None if i in lost else loop.fitted() for i, loop in enumerate(loops)]


def _next(steps: Sequence[Iterator[Pair]], which: Sequence[int]) -> dict[int, Pair]:
    """The batches of each one's next step, of those that have one; all have saved when `Stopped` is raised."""
    found: dict[int, Pair] = {}
    stopped: Stopped | None = None
    for i in which:
        try:
            if (pair := next(steps[i], None)) is not None:
                found[i] = pair
        except Stopped as e:
            stopped = e
    if stopped is not None:
        raise stopped
    return found


def _catch_up(loops: Sequence[Loop], steps: Sequence[Iterator[Pair]], at: dict[int, Pair]) -> None:
    """Train those alone that were killed before they were saved as often as the others."""
    places = {i: (loops[i].at.epoch, loops[i].at.step) for i in at}
    for i in list(at):
        while i in at and (loops[i].at.epoch, loops[i].at.step) < max(places.values()):
            with _drawing_alone(loops[i]):
                loops[i].step(*at.pop(i))
            at |= _next(steps, [i])


def _with_own_generators(loop: Loop) -> Loop:
    """Its numbers come from generators of its own, which start where torch's stand."""
    own = {}
    for name, generator in loop.generators.items():
        own[name] = torch.Generator(generator.device)
        own[name].set_state(generator.get_state())
    loop.generators = own
    return loop


@contextmanager
def _drawing_alone(loop: Loop) -> Iterator[None]:
    """Torch's generators stand where those of the loop do."""
    torchs = loop.torchs_generators()
    for name, own in loop.generators.items():
        torchs[name].set_state(own.get_state())
    yield
    for name, own in loop.generators.items():
        own.set_state(torchs[name].get_state())


class _Stack:
    """The tensors of several loops as one each; what the loops have are views of them from then on."""

    def __init__(self, loops: Sequence[Loop]) -> None:
        self.loops, first = loops, loops[0]
        self.made_of = first.optimiser
        self.called = _Losses(first.model)
        self.owned = [dict(_Losses(loop.model).named_parameters()) for loop in loops]
        self.parameters = {
            name: _stacked([own[name] for own in self.owned]).requires_grad_(p.requires_grad)
            for name, p in self.owned[0].items()
        }
        self._stack_buffers()
        self.numbers = torch.arange(len(loops), device=first.device)
        self.generators = [loop.generators[first.device.type] for loop in loops]
        names = {p: name for name, p in self.owned[0].items()}
        groups = [{**g, "params": [self.parameters[names[p]] for p in g["params"]]} for g in self.made_of.param_groups]
        made: Any = type(self.made_of)
        self.optimiser: torch.optim.Optimizer = made(groups)
        for name, whole in self.parameters.items():
            states = [loop.optimiser.state.get(own[name], {}) for loop, own in zip(loops, self.owned, strict=True)]
            if states[0]:
                self.optimiser.state[whole] = {
                    k: v.clone() if k == "step" else torch.stack([s[k] for s in states]) for k, v in states[0].items()
                }
        self.shared: set[str] = set()
        self._share_state()

    def outdated(self, loops: Sequence[Loop]) -> bool:
        """Whether these are other loops, or ones that have begun another phase."""
        if len(loops) < len(self.loops) or loops[0].optimiser is not self.made_of:
            return True
        if loops[0].at.step == 0:
            # A method may have put other buffers in the place of those, when its epoch began.
            self._stack_buffers()
        return False

    def gradients(self, pairs: Sequence[Pair]) -> list[dict[str, float]]:
        """Losses of every loop, and the norm of their gradient, which is left for `step`."""
        first = self.loops[0]

        def losses(
            parameters: dict[str, Tensor], buffers: dict[str, Tensor], number: Tensor, *pair: dict[str, Any]
        ) -> dict[str, Tensor]:
            with drawing(number, self.generators), computed_in(first.training.precision, first.device):
                terms = functional_call(self.called, {**parameters, **buffers}, tuple(Batch(**b) for b in pair))
            return {name: value.float() for name, value in terms.items()}

        sides = [_beside_each_other(side) for side in zip(*pairs, strict=True)]
        terms = vmap(losses)(self.parameters, self.buffers, self.numbers, *sides)
        total = torch.zeros(len(self.loops), device=first.device)
        for name, value in terms.items():
            total = total + value.new_tensor([loop.weights.get(name, 1.0) for loop in self.loops]) * value
        self.optimiser.zero_grad(set_to_none=True)
        total.sum().backward()
        norms = [p.grad.flatten(1).norm(dim=1) for p in self.parameters.values() if p.grad is not None]
        columns = [torch.stack(norms).norm(dim=0), total, *terms.values()]
        # One transfer from the device a step.
        values = torch.stack(columns, dim=1).tolist()
        return [dict(zip(("gradient", "total", *terms), row, strict=True)) for row in values]

    def step(self) -> None:
        """Change the weights of all."""
        for group, asked in zip(self.optimiser.param_groups, self.made_of.param_groups, strict=True):
            group["lr"] = asked["lr"]
        self.optimiser.step()
        self._share_state()

    def _stack_buffers(self) -> None:
        owned = [dict(_Losses(loop.model).named_buffers()) for loop in self.loops]
        self.buffers = {name: _stacked([own[name] for own in owned]) for name in owned[0]}

    def _share_state(self) -> None:
        """The loops' optimisers have views of what this one remembers, so that each can be saved."""
        for name, whole in self.parameters.items():
            state = self.optimiser.state.get(whole)
            if not state or name in self.shared:
                continue
            self.shared.add(name)
            for i, (loop, own) in enumerate(zip(self.loops, self.owned, strict=True)):
                loop.optimiser.state[own[name]] = {k: v if k == "step" else v[i] for k, v in state.items()}


class _Losses(nn.Module):
    """A method whose losses are its forward, as functional_call wants it."""

    def __init__(self, method: nn.Module) -> None:
        super().__init__()
        self.method = method

    def forward(self, *pair: Batch) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = self.method.losses(*pair)  # type: ignore[operator]
        return terms


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    """One tensor of all, of which each becomes a view."""
    whole = torch.stack([t.detach() for t in tensors])
    for t, own in zip(tensors, whole, strict=True):
        t.data = own
    return whole


def _beside_each_other(batches: Sequence[Batch]) -> dict[str, Any]:
    """Fields of a batch of batches, by name; no video lacks a segment."""
    first = batches[0]
    return {
        "streams": {name: torch.stack([b.streams[name] for b in batches]) for name in first.streams},
        "scores": torch.stack([b.scores for b in batches]),
        "columns": {name: torch.stack([b.columns[name] for b in batches]) for name in first.columns},
        "rows": torch.stack([b.rows for b in batches if b.rows is not None]),
    }
