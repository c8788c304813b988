"""The papers' tables and figures: what each is (`record`), what it takes (`plan`), what of it is done (`finished`),
what came of it (`measured`), as text (`text`), and all in a row (`run`).

pipelines/s4aqa/table1.toml ──read──▶ PaperTable ──cells──▶ run folders ──measure──▶ published beside measured
"""
