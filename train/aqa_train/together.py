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

import time
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from aqa_train.batch import Batch
from aqa_train.draws import drawing
from aqa_train.signals import Stopped
from aqa_train.trainer import Fitted, Loop, computed_in, kept_rng

Pair = tuple[Batch, Batch]
"""A labelled and an unlabelled batch."""
Failed = Callable[[int, Exception], Collection[int]]
"""Is told which training failed, and by what; says which others end with it, or raises to end all."""


def fit_together(
    begin: Sequence[Callable[[], Loop]],
    device: torch.device,
    *,
    stop: Callable[[], int],
    on_epoch: Callable[[int, int, dict[str, float]], None],
    failed: Failed,
) -> list[Fitted | None]:
    """Train what each of `begin` begins (`aqa_train.trainer.begun`), all of one method and one shape.

    `on_epoch` is told the place in `begin` first, as `failed` is. A training that failed is None in the result; the
    others go on. Raises `Stopped`, or what `failed` raised, after all others are saved.
    """
    with kept_rng(device):
        together = _Together(device, stop, failed)
        try:
            together.begin(begin, on_epoch)
            together.run()
        except Stopped:
            raise
        except Exception:
            together.save()
            raise
    return [together.loops[i].fitted() if i in together.loops else None for i in range(len(begin))]


class _Together:
    """Who is still there, and what each is to learn from next."""

    def __init__(self, device: torch.device, stop: Callable[[], int], failed: Failed) -> None:
        self.device, self.stop, self.failed = device, stop, failed
        self.asked = 0
        """To stop; once a step, so that all stop after the same one."""
        self.loops: dict[int, Loop] = {}
        """Those that have not failed, by their places."""
        self.steps: dict[int, Generator[Pair, None, None]] = {}
        self.at: dict[int, Pair] = {}
        """The batches of each one's next step, of those that have one."""
        self.stack: _Stack | None = None

    def begin(
        self, begin: Sequence[Callable[[], Loop]], on_epoch: Callable[[int, int, dict[str, float]], None]
    ) -> None:
        for i, one in enumerate(begin):
            if number := self.stop():
                raise Stopped(number, f"stopped by signal {number} before the first step")
            try:
                self.loops[i] = _with_own_generators(one())
            except Exception as e:
                self._lost({i: e})
                continue
            self.steps[i] = self.loops[i].steps(lambda: self.asked, partial(on_epoch, i))
        self._advance(list(self.loops))

    def run(self) -> None:
        last = time.monotonic()
        while self.at:
            places = {i: (self.loops[i].at.epoch, self.loops[i].at.step) for i in self.at}
            # Killed while it saved, one may be behind the others: it catches up alone.
            behind = [i for i in self.at if places[i] < max(places.values())]
            moved = behind or list(self.at)
            wrong = self._step_alone(behind) if behind else self._step_together()
            self.asked = self.stop()
            self._lost(wrong)
            self._advance([i for i in moved if i in self.loops])
            now = time.monotonic()
            for i in moved:
                if i in self.loops:
                    self.loops[i].at.seconds += (now - last) / len(moved)
            last = now

    def save(self) -> None:
        """All that are left, as far as they can be."""
        for loop in self.loops.values():
            with suppress(Exception):
                loop.save_if_asked()

    def _step_together(self) -> dict[int, Exception]:
        working = [self.loops[i] for i in self.at]
        if self.stack is None or self.stack.outdated(working):
            self.stack = _Stack(working)
        try:
            found = dict(zip(self.at, self.stack.gradients(list(self.at.values())), strict=True))
        except Exception as e:
            self.save()  # no weight has changed
            return dict.fromkeys(self.at, e)
        wrong: dict[int, Exception] = {}
        for i, pair in self.at.items():
            try:
                self.loops[i].refuse_infinite(found[i], *pair)
            except Exception as e:
                wrong[i] = e
        self.stack.step()
        for i in self.at.keys() - wrong.keys():
            with _drawing_alone(self.loops[i], hasattr(self.loops[i].model, "after_step")):
                self.loops[i].stepped(found[i])
        return wrong

    def _step_alone(self, which: Sequence[int]) -> dict[int, Exception]:
        wrong: dict[int, Exception] = {}
        for i in which:
            try:
                with _drawing_alone(self.loops[i]):
                    self.loops[i].step(*self.at[i])
            except Exception as e:
                wrong[i] = e
        return wrong

    def _advance(self, which: Sequence[int]) -> None:
        """Go on to the next step; all have saved when `Stopped` is raised."""
        stopped: Stopped | None = None
        wrong: dict[int, Exception] = {}
        for i in which:
            self.at.pop(i, None)
            loop = self.loops[i]
            try:
                with _drawing_alone(loop, loop.at.step in (0, len(loop.sizes[0]))):
                    pair = next(self.steps[i], None)
            except Stopped as e:
                stopped = e
            except Exception as e:
                wrong[i] = e
            else:
                if pair is not None:
                    self.at[i] = pair
        self._lost(wrong)
        if stopped is not None:
            raise stopped

    def _lost(self, wrong: dict[int, Exception]) -> None:
        """Go on without those that failed, and those that end with them."""
        for i in wrong:
            self._forget(i)
        for i, error in wrong.items():
            for other in self.failed(i, error):
                self._forget(other)

    def _forget(self, i: int) -> None:
        self.loops.pop(i, None)
        self.at.pop(i, None)
        if i in self.steps:
            self.steps.pop(i).close()  # of features that are streamed, it reads ahead


def _with_own_generators(loop: Loop) -> Loop:
    """Its numbers come from generators of its own, which start where torch's stand; its time is counted here."""
    own = {}
    for name, generator in loop.generators.items():
        own[name] = torch.Generator(generator.device)
        own[name].set_state(generator.get_state())
    loop.generators, loop.counts_time = own, False
    return loop


@contextmanager
def _drawing_alone(loop: Loop, needed: bool = True) -> Iterator[None]:
    """Torch's generators stand where those of the loop do."""
    torchs = loop.torchs_generators() if needed else {}
    for name, generator in torchs.items():
        generator.set_state(loop.generators[name].get_state())
    yield
    for name, generator in torchs.items():
        loop.generators[name].set_state(generator.get_state())


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
        if len(loops) != len(self.loops) or loops[0].optimiser is not self.made_of:
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
        with _norms_in_float32(self.called):
            terms = vmap(losses)(self.parameters, self.buffers, self.numbers, *sides)
        total = torch.zeros(len(self.loops), device=first.device)
        for name, value in terms.items():
            total = total + value.new_tensor([loop.weights.get(name, 1.0) for loop in self.loops]) * value
        self.optimiser.zero_grad(set_to_none=True)
        total.sum().backward()
        norms = [
            p.grad.reshape(len(self.loops), -1).norm(dim=1) for p in self.parameters.values() if p.grad is not None
        ]
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


@contextmanager
def _norms_in_float32(module: nn.Module) -> Iterator[None]:
    """vmap has no batch norm of bfloat16 with statistics in float32."""
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm1d)]
    hooks = [norm.register_forward_pre_hook(lambda _, given: (given[0].float(),)) for norm in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


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
