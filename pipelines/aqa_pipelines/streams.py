"""`aqa streams`: what can be extracted, by which networks, with which weights."""

from __future__ import annotations

from typing import Any

from aqa_extract.backbones import BACKBONES
from aqa_extract.presets import PRESETS
from aqa_extract.streams import GRAMMAR, VIEWS
from aqa_extract.weights import listing


def record() -> dict[str, Any]:
    """The tables as JSON holds them; downloads nothing."""
    weights = {row["name"]: row for row in listing()}
    return {
        "stream": GRAMMAR,
        "views": {name: view.about for name, view in VIEWS.items() if name},
        "backbones": {
            name: {
                "about": backbone.about,
                "frames": backbone.input.frames,
                "crop": backbone.input.crop,
                "resize": backbone.input.canvas.resize,
                "outputs": {
                    output or "(feature)": list(made.shape(backbone.input.frames, backbone.input.crop))
                    for output, made in backbone.outputs.items()
                },
                "weights": {
                    backbone.network(modality): [
                        {
                            "name": entry.name,
                            "licence": entry.licence,
                            "here": weights[entry.name]["cached"],
                            "default": weights[entry.name]["default"] is not None,
                        }
                        for entry in entries
                    ]
                    for modality, entries in backbone.weights.items()
                },
            }
            for name, backbone in BACKBONES.items()
        },
        "presets": {name: preset.about for name, preset in PRESETS.items()},
    }


def text(found: dict[str, Any]) -> str:
    """As people read it."""
    lines = [f"A stream is written {found['stream']}.", "", "views"]
    lines += [f"  {name:8}{about}" for name, about in found["views"].items()]
    for name, backbone in found["backbones"].items():
        size = backbone["resize"] if isinstance(backbone["resize"], int) else "x".join(map(str, backbone["resize"]))
        lines += ["", f"{name}: {backbone['about']}"]
        lines.append(f"  input    {backbone['frames']} frames, resized to {size}, crop {backbone['crop']}")
        outputs = (f"{output} {'x'.join(map(str, shape))}" for output, shape in backbone["outputs"].items())
        lines.append(f"  outputs  {', '.join(outputs)}")
        for network, entries in backbone["weights"].items():
            for entry in entries:
                state = "here" if entry["here"] else "not here"
                only = "" if entry["default"] else ", only by name"
                lines.append(f"  weights  {network}={entry['name']} ({state}{only}; {entry['licence']})")
    lines += ["", "presets"]
    return "\n".join([*lines, *(f"  {name:8}{about}" for name, about in found["presets"].items())])
