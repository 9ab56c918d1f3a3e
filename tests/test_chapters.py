"""Chapters as `make book` has run them say what they said when they were written, where the words around lean on it.

Cells tagged nbval-check-output are compared, and all tables of recorded figures are; `make chapters` runs all chapters
again, by nbval, and compares the same.
"""

from __future__ import annotations

import re

import nbformat
import pytest
from browsing import ROOT, needed

get_cache = pytest.importorskip("jupyter_cache", reason="the extra book is not installed").get_cache

CHAPTERS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CACHE = ROOT / "book/_build/.jupyter_cache"
TAG = "nbval-check-output"


def checked(notebook: nbformat.NotebookNode) -> dict[str, list[str]]:
    """What the tagged cells printed, by their ids; a stream may come in any number of pieces."""
    said: dict[str, list[str]] = {}
    for cell in notebook.cells:
        if TAG in cell.metadata.get("tags", []):
            streams = "".join(out.text for out in cell.outputs if out.output_type == "stream" and out.name == "stdout")
            results = [out.data["text/plain"] for out in cell.outputs if "text/plain" in out.get("data", {})]
            said[cell.id] = [streams, *(text for text in results if not text.startswith("<Figure"))]
    return said


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_says_what_it_said(chapter):
    needed("the chapters have not been run; run make book first", (CACHE / "global.db").exists())
    written, cache = nbformat.read(chapter, 4), get_cache(CACHE)
    try:
        record = cache.match_cache_notebook(written)
    except KeyError:
        pytest.fail(f"{chapter.name} was changed since it was run; run make book first")
    run = cache.get_cache_bundle(record.pk).nb
    # The cache keeps no ids: cells are told by their place, as it matched them.
    run_code, written_code = ([c for c in nb.cells if c.cell_type == "code"] for nb in (run, written))
    for ran, wrote in zip(run_code, written_code, strict=True):
        ran.id, ran.metadata.tags = wrote.id, wrote.metadata.get("tags", [])
    wanted = checked(written)
    assert wanted
    assert checked(run) == wanted


def test_tables_of_recorded_figures_are_compared():
    """What reads results.csv alone is the same on any machine: a chapter with old rows in it is noticed."""
    untagged, tagged = [], []
    for path in CHAPTERS:
        for cell in nbformat.read(path, 4).cells:
            if cell.cell_type == "code" and re.search(r"\b(summary|claims)\([^)]*\bRESULTS\b", cell.source):
                (tagged if TAG in cell.metadata.get("tags", []) else untagged).append(f"{path.name}, {cell.id}")
    assert not untagged, f"tag them {TAG}"
    assert len(tagged) > 10
