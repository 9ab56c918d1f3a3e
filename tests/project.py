"""What the project's own files say: their texts, and what pyproject.toml lists."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]


def texts() -> Iterator[tuple[Path, str]]:
    """Every file of the project with its text, without what is installed, built or trained."""
    hidden = {".git", ".venv", "attnad.egg-info", "_build", "node_modules", "runs", "carry", "shared"}
    tops = [top for top in ROOT.iterdir() if top.name not in hidden]
    for path in tops + [path for top in tops for path in top.rglob("*")]:
        small = path.is_file() and path.stat().st_size < 5_000_000  # others are weights and data
        if small and not hidden & set(path.relative_to(ROOT).parts):
            yield path, path.read_text(encoding="utf-8", errors="ignore")


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def name(requirement: str) -> str:
    return re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")
