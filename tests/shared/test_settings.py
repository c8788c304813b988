"""Options made of records, and the order of the places that settings come from."""

from __future__ import annotations

import tomllib
from typing import Annotated, Any, Literal

import pytest
import typer
import typer.main
from pydantic import BeforeValidator, Field, ValidationError

from aqa_shared.commands import App
from aqa_shared.errors import UsageError
from aqa_shared.options import Option, Several, pairs
from aqa_shared.records import Record
from aqa_shared.settings import as_toml, explain, gathered, given, read_toml, settings_of, valid, with_options


class Oven(Record):
    heat: Annotated[int, Option("Oven", "In {unit}.", key="oven_heat")] = 180
    upper: Annotated[bool, Option("Oven", "From above too.")] = True
    minutes: int = 40
    serial: str = Field(default="", exclude=True)


class Cake(Record):
    layers: Annotated[int, Option("Shape", "How many.")] = Field(default=3, ge=1)
    fruits: Annotated[Several, Option("Taste", "Which.", name="fruit", default="none")] = ()
    sweet: Annotated[bool, Option("Taste", "With sugar.")] = False
    weight: Annotated[float | None, Option("Shape", "In kg.")] = None
    notes: Annotated[
        dict[str, str], BeforeValidator(pairs), Option("Taste", "More.", name="note", metavar="NAME=TEXT")
    ] = Field(default_factory=dict)
    guests: Annotated[tuple[str, ...], Option("Taste", "Who.", argument=True, repeated=True)] = ()
    oven: Oven = Oven()
    rest: Annotated[int, Field(ge=0)] | Literal["overnight"] = 0


def command() -> tuple[App, dict[str, Any]]:
    seen: dict[str, Any] = {}
    app = App()

    @app.command()
    @with_options(Cake, unit="degrees")
    def bake(context: typer.Context, out: Annotated[str, typer.Option(help="Where.")] = "here", **cake: Any) -> None:
        """Bake."""
        seen.update(given(context, Cake), out=out)

    return app, seen


def test_fields_become_options_and_what_was_written_comes_back() -> None:
    app, seen = command()
    more = ["--note", "a=1", "--note", "b=2", "--oven-heat", "200", "--no-upper", "Ada", "Bo"]
    app(["--layers", "2", "--fruit", "plum, fig", "--sweet", *more], standalone_mode=False)
    assert seen.pop("out") == "here"
    cake = valid(Cake, seen, fix="")
    assert cake.model_dump() == {
        "layers": 2,
        "fruits": ("plum", "fig"),
        "sweet": True,
        "weight": None,
        "notes": {"a": "1", "b": "2"},
        "guests": ("Ada", "Bo"),
        "oven": {"heat": 200, "upper": False, "minutes": 40},
        "rest": 0,
    }
    app, seen = command()
    app([], standalone_mode=False)
    assert seen == {"out": "here"}


def test_help_says_defaults_once_and_leaves_out_what_is_not_an_option() -> None:
    shown = {str(p.name): str(p.help) for p in typer.main.get_command(command()[0]).params if hasattr(p, "help")}
    assert not {"oven", "minutes", "rest", "serial"} & shown.keys()
    assert shown["layers"] == "How many. [default: 3]"
    assert shown["fruits"] == "Which. [default: none]"
    assert shown["sweet"] == "With sugar."
    assert shown["weight"] == "In kg."
    assert shown["notes"] == "More."
    assert shown["oven_heat"] == "In degrees. [default: 180]"


def test_flags_win_over_variables_over_the_file(tmp_path: Any) -> None:
    (tmp_path / "c.toml").write_text('layers = 4\noven-heat = 150\nminutes = 30\nfruits = ["plum"]\n')
    said = {"BAKE_FRUITS": "plum,fig", "BAKE_LAYERS": "2", "BAKE_OVEN_HEAT": "hot", "OTHER": "x"}
    found, variables = gathered(Cake, "BAKE_", tmp_path / "c.toml", {"layers": 7}, said)
    assert variables == {"fruits": "BAKE_FRUITS", "oven_heat": "BAKE_OVEN_HEAT"}
    with pytest.raises(UsageError, match=r"^oven_heat \(from BAKE_OVEN_HEAT\): .*integer.*, got 'hot'\nlook$"):
        valid(Cake, found, variables, fix="look")
    cake = valid(Cake, found | {"oven_heat": "160"}, fix="look")
    assert (cake.layers, cake.fruits, cake.oven.heat, cake.oven.minutes) == (7, ("plum", "fig"), 160, 30)


@pytest.mark.parametrize(
    ("file", "said", "cause"),
    [("layer = 2", {}, r"c\.toml: there is no setting 'layer'"), ("", {"BAKE_LAYER": "2"}, "BAKE_LAYER: there is no")],
)
def test_what_sets_nothing_is_refused_with_the_nearest(
    tmp_path: Any, file: str, said: dict[str, str], cause: str
) -> None:
    (tmp_path / "c.toml").write_text(file)
    with pytest.raises(UsageError, match=cause) as e:
        gathered(Cake, "BAKE_", tmp_path / "c.toml", {}, said)
    assert "did you mean layers?" in e.value.fix
    for name in ("serial", "oven", "heat"):
        with pytest.raises(UsageError, match=f"no setting '{name}'"):
            gathered(Cake, "BAKE_", None, {name: 1}, {})
    with pytest.raises(UsageError, match="BAKE_NOTES cannot be set as a whole"):
        gathered(Cake, "BAKE_", None, {}, {"BAKE_NOTES": "x"}, tables=["notes"])
    assert settings_of(Cake)["oven_heat"].of(Cake()) == 180


def test_what_may_be_of_several_types_has_one_error() -> None:
    with pytest.raises(UsageError, match=r"^rest: .*integer.* or .*'overnight', got 'long'$"):
        valid(Cake, {"rest": "long"}, fix="")


def test_what_is_written_is_read_again(tmp_path: Any) -> None:
    record = {"notes": {"a b": "x"}, "layers": 2, "fruits": ["plum"], "more": {}}
    text = as_toml(record)
    assert tomllib.loads(text) == record
    (tmp_path / "c.toml").write_text(text)
    assert read_toml(tmp_path / "c.toml") == record


def test_the_variable_that_gave_a_wrong_value_is_named() -> None:
    with pytest.raises(ValidationError) as e:
        Cake(layers=0)
    assert explain(e.value, {"layers": "BAKE_LAYERS"}, Cake) == (
        "layers (from BAKE_LAYERS): Input should be greater than or equal to 1, got 0"
    )
