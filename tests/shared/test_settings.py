"""Options made of records, and the order of the places that settings come from."""

from __future__ import annotations

import tomllib
from typing import Annotated, Any

import pytest
import typer
import typer.main
from pydantic import Field, ValidationError

from aqa_shared.commands import App
from aqa_shared.errors import UsageError
from aqa_shared.records import Record
from aqa_shared.settings import Option, as_toml, explain, from_environment, given, is_list, read_toml, with_options


class Cake(Record):
    layers: Annotated[int, Option("Shape", "How many.")] = Field(default=3, ge=1)
    fruits: Annotated[tuple[str, ...], Option("Taste", "Which.", name="fruit", default="none")] = ()
    sweet: Annotated[bool, Option("Taste", "With sugar.")] = False
    weight: Annotated[float | None, Option("Shape", "In kg.")] = None
    notes: Annotated[dict[str, str], Option("Taste", "More.", name="note", metavar="NAME=TEXT")] = Field(
        default_factory=dict
    )
    oven: int = 180


def command() -> tuple[App, dict[str, Any]]:
    seen: dict[str, Any] = {}
    app = App()

    @app.command()
    @with_options(Cake)
    def bake(context: typer.Context, out: Annotated[str, typer.Option(help="Where.")] = "here", **cake: Any) -> None:
        """Bake."""
        seen.update(given(context, Cake), out=out)

    return app, seen


def test_fields_become_options_and_what_was_written_comes_back() -> None:
    app, seen = command()
    app(["--layers", "2", "--fruit", "plum, fig", "--sweet", "--note", "a=1", "--note", "b=2"], standalone_mode=False)
    assert seen == {"layers": 2, "fruits": ["plum", "fig"], "sweet": True, "notes": ["a=1", "b=2"], "out": "here"}


def test_help_says_defaults_once_and_leaves_out_what_is_no_option() -> None:
    shown = {str(p.name): str(p.help) for p in typer.main.get_command(command()[0]).params if hasattr(p, "help")}
    assert "oven" not in shown
    assert shown["layers"] == "How many. [default: 3]"
    assert shown["fruits"] == "Which. [default: none]"
    assert shown["sweet"] == "With sugar."
    assert shown["weight"] == "In kg."
    assert shown["notes"] == "More."


def test_variables_are_parted_as_options_are() -> None:
    found = from_environment(
        "BAKE_", {"BAKE_FRUITS": "plum,fig", "BAKE_LAYERS": "2", "OTHER": "x"}, Cake, tables=["notes"]
    )
    assert found == {"fruits": ["plum", "fig"], "layers": "2"}
    with pytest.raises(UsageError, match="BAKE_NOTES cannot be set as a whole"):
        from_environment("BAKE_", {"BAKE_NOTES": "x"}, Cake, tables=["notes"])
    assert [n for n, f in Cake.model_fields.items() if is_list(f)] == ["fruits"]


def test_what_is_written_is_read_again(tmp_path: Any) -> None:
    record = {"notes": {"a b": "x"}, "layers": 2, "fruits": ["plum"], "more": {}}
    text = as_toml(record)
    assert tomllib.loads(text) == record
    (tmp_path / "c.toml").write_text(text)
    assert read_toml(tmp_path / "c.toml") == record


def test_the_variable_that_gave_a_wrong_value_is_named() -> None:
    with pytest.raises(ValidationError) as e:
        Cake(layers=0)
    assert explain(e.value, {"layers": "BAKE_LAYERS"}) == (
        "layers (from BAKE_LAYERS): Input should be greater than or equal to 1, got 0"
    )
