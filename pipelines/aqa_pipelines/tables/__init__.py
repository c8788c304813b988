"""The papers' tables and figures: what each is (`record`), what it takes (`plan`), what came of it (`measured`).

pipelines/s4aqa/table1.toml ──read──▶ Table ──cells──▶ run folders ──measure──▶ published beside measured
"""
