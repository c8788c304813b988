"""How the shapes and types in annotations are checked while testing: `install_import_hook(modules, CHECKER)`."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

CHECKER = "tests.typecheck.checked"

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
"""As mypy reads them: a float may be an int."""
