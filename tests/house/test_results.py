"""docs/results.md is what `aqa results` makes of the records: nothing in it is typed by hand."""

from __future__ import annotations

import json
from pathlib import Path

from aqa_pipelines.tables.record import read_table
from aqa_pipelines.tables.text import as_csv, as_markdown, report

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / "benchmarks" / "results" / "tables"


def test_it_is_what_the_command_makes() -> None:
    assert (ROOT / "docs" / "results.md").read_text(encoding="utf-8") == report(RECORDS, ROOT / "docs")


def test_every_record_is_of_a_file_and_has_its_published_figures() -> None:
    records = sorted(RECORDS.rglob("*.json"))
    assert records
    for file in records:
        record = json.loads(file.read_text(encoding="utf-8"))
        table = read_table(ROOT / "pipelines" / f"{record['pipeline']}.toml")
        assert {r["name"]: r["published"] for r in record["rows"]} == {r.name: r.published for r in table.rows}
        assert file.with_suffix(".md").read_text(encoding="utf-8") == as_markdown(record)
        assert file.with_suffix(".csv").read_text(encoding="utf-8") == as_csv(record)
