"""What a run's settings say of each of its methods, and all of them written out."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from pydantic import TypeAdapter, ValidationError

from aqa_shared.errors import UsageError
from aqa_shared.settings import as_toml as written
from aqa_shared.settings import explain
from aqa_train.config import HELP, PLACES, RunConfig, Training, instead
from aqa_train.methods import ALL, METHODS


def training_of(config: RunConfig, method: str) -> Training:
    """How one method is trained: defaults, its own recipe, what was asked for, what was asked for it alone."""
    own = {n: v for n in Training.model_fields if (v := config.settings.get(f"{method}.{n}")) is not None}
    asked = config.training.model_dump(exclude_unset=True)
    try:
        return Training(**{**METHODS[method].recipe(config.recipe), **asked, **own})
    except ValidationError as e:
        raise UsageError(f"method {method}: {explain(e)}", fix=HELP) from None


def epochs_of(config: RunConfig, method: str) -> int:
    """Epochs that one method takes; one that is fitted in one step counts as one."""
    return training_of(config, method).epochs if hasattr(METHODS[method].load(), "losses") else 1


def method_config(config: RunConfig, method: str) -> Any:
    """The frozen settings of one method: its defaults, `settings`, and what makes the method what it is."""
    row = METHODS[method]
    cls = row.load().Config
    values: dict[str, Any] = {}
    # What is said of this method alone wins, whatever the order.
    for key, value in sorted(config.settings.items(), key=lambda item: "." in item[0]):
        owner, dot, name = key.rpartition(".")
        if dot and owner not in config.methods:
            raise UsageError(f"setting {key!r}: no method {owner!r} here{instead(owner, config.methods)}")
        if dot and (owner != method or name in Training.model_fields):
            continue
        if name not in row.settings():
            shared = {s for m in config.methods for s in METHODS[m].settings()}
            if not dot and name in shared:
                continue
            if name in Training.model_fields:
                raise UsageError(
                    f"{name} is a setting of training, not of a method", fix=f"write it as [training] {name} = {value}"
                )
            known = sorted(shared | set(Training.model_fields))
            raise UsageError(f"method {method} has no setting {name!r}{instead(name, known)}", fix=_who_has(name))
        if dot and name in row.fixed:
            raise UsageError(
                f"{name} = {row.fixed[name]} is what makes {method}", fix=f"set it for another method than {method}"
            )
        values[name] = value.split(",") if isinstance(value, str) and "," in value else value
    for f in dataclasses.fields(cls):
        if isinstance(values.get(f.name), (str, int)) and isinstance(f.default, tuple):
            values[f.name] = [values[f.name]]
    try:
        return TypeAdapter(cls).validate_python({**values, **row.fixed})
    except ValidationError as e:
        raise UsageError(f"method {method}: {explain(e)}", fix=HELP) from None


def _who_has(setting: str) -> str:
    """Which methods would read it."""
    having = [m for m, row in METHODS.items() if setting in row.settings()]
    more = ", …" if len(having) > 3 else ""
    return f"--method names one that has it: {', '.join(having[:3])}{more}" if having else ""


def spelt_out(config: RunConfig) -> RunConfig:
    """The same with every setting of its methods and their training, those left at their defaults too.

    A plain name where the methods agree, `method.name` where they do not; what makes a method is not a setting of it,
    and what `variants` vary has no one value.
    """
    settings: dict[str, dict[str, Any]] = {}
    training: dict[str, dict[str, Any]] = {}
    if config.methods == (ALL,):
        return config  # which they are, the data say
    for method in config.methods:
        for name, value in training_of(config, method).model_dump(mode="json").items():
            training.setdefault(name, {})[method] = value
        own = dataclasses.asdict(method_config(config, method))
        for name in own.keys() - METHODS[method].fixed.keys():
            settings.setdefault(name, {})[method] = list(own[name]) if isinstance(own[name], tuple) else own[name]
    common, apart = _agreed(training)
    shared, others = _agreed(dict(sorted(settings.items())))
    common, shared = ({k: v for k, v in part.items() if k not in config.variants} for part in (common, shared))
    own = {k: v for k, v in (others | apart).items() if not config.variants.keys() & {k, k.rpartition(".")[2]}}
    return config.model_copy(update={"training": Training(**common), "settings": shared | own})


def _agreed(values: dict[str, dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of name → method → value: by name what all have alike, and `method.name` for the rest; None is left out."""
    alike: dict[str, Any] = {}
    apart: dict[str, Any] = {}
    for name, by_method in values.items():
        first, *others = by_method.values()
        if all(other == first for other in others):
            alike[name] = first
        else:
            apart |= {f"{method}.{name}": value for method, value in by_method.items()}
    return tuple({k: v for k, v in part.items() if v is not None} for part in (alike, apart))  # type: ignore[return-value]


def as_toml(config: RunConfig) -> str:
    """The configuration as a file that gives it again; what is unset is left out."""
    record = config.model_dump(mode="json", exclude_none=True)
    return written({k: v for k, v in record.items() if k != "variants" or v})


def differences(old: RunConfig, new: RunConfig) -> list[str]:
    """`name: old → new` of every setting that differs, however it was given; another place is not another setting."""
    a, b = (_flat(spelt_out(c).model_dump(mode="json")) for c in (old, new))
    moved = {k for k in PLACES if a.get(k) is not None and b.get(k) is not None}
    apart = [{k.rpartition(".")[2] for k in flat if _of_one(k)} for flat in (a, b)]
    found = []
    for key in sorted((a.keys() | b.keys()) - moved):
        # What holds for all methods here and for each alone there is compared by method.
        split = (key not in flat and key.rpartition(".")[2] in own for flat, own in zip((a, b), apart, strict=True))
        if not _of_one(key) and any(split):
            continue
        was, now = _said(a, key), _said(b, key)
        if was != now:
            found.append(f"{key}: {was} → {now}")
    return found


def _of_one(key: str) -> bool:
    """Whether it is a setting of one method alone."""
    return key.startswith("settings.") and key.count(".") == 2


def _said(flat: dict[str, Any], key: str) -> Any:
    """The value, for a method alone or for all."""
    name = key.rpartition(".")[2]
    general = flat.get(f"training.{name}", flat.get(f"settings.{name}")) if _of_one(key) else None
    return flat.get(key, general)


def settings_digest(config: RunConfig) -> str:
    """The same for two configurations exactly where `differences` finds none."""
    flat = _flat(spelt_out(config).model_dump(mode="json"))
    known = {k: k in PLACES or v for k, v in flat.items() if v is not None}
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def _flat(record: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for k, v in record.items():
        flat |= _flat(v, f"{prefix}{k}.") if isinstance(v, dict) else {prefix + k: v}
    return flat
