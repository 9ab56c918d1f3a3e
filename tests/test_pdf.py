"""`make pdf`: all pages in one file, in reading order, whose links between pages stay inside of it."""

from __future__ import annotations

import runpy
import subprocess
import sys
from unittest.mock import Mock

import pytest
from browsing import HTML, PAGES, ROOT
from PIL import Image
from playwright.sync_api import Browser, Error
from pypdf import PdfReader

PDF = ROOT / "book/_build/attnad.pdf"


@pytest.fixture(scope="module")
def book(browser: Browser, address: str) -> PdfReader:
    """Printed anew where its pages are newer; the fixtures say where there is no browser or no built book."""
    sources = [*HTML.rglob("*.html"), *(ROOT / "book/web").iterdir()]
    if not PDF.exists() or PDF.stat().st_mtime < max(path.stat().st_mtime for path in sources):
        printed = subprocess.run([sys.executable, ROOT / "book/web/pdf.py"], capture_output=True, text=True)
        assert printed.returncode == 0, printed.stderr
    return PdfReader(PDF)


def test_every_page_is_there_in_order(book: PdfReader):
    starts = [book.get_destination_page_number(entry) for entry in book.outline]
    assert len(starts) == len(PAGES)
    assert starts == sorted(set(starts))
    for entry, start in zip(book.outline, starts, strict=True):
        assert entry.title
        seen = "".join(book.pages[start].extract_text().split())
        name = entry.title.lstrip("0123456789. ")  # a chapter's number is the site's
        assert seen.startswith("".join(name.split())), f"{entry.title} does not begin on its page"


def test_it_is_small_and_its_figures_are_sharp(book: PdfReader):
    """It can be sent: 25 MB is what servers of mail take; 15 are usual, and the fonts in it are each machine's own."""
    assert PDF.stat().st_size < 25e6
    widths = []
    for drawn in (x.get_object() for page in book.pages for x in page["/Resources"].get("/XObject", {}).values()):
        if drawn["/Subtype"] == "/Image":
            widths.append(drawn["/Width"])
            assert drawn["/Filter"] == "/DCTDecode" or len(drawn._data) < 110_000, "a large picture that is no JPEG"
    figures = [Image.open(path).width for path in (ROOT / "book/figures").rglob("*.png")]
    assert max(widths) == max(figures), "figures were shrunk"


def test_links_stay_inside_or_lead_out(book: PdfReader):
    inside, outside = 0, set()
    for page in book.pages:
        for link in (reference.get_object() for reference in page.get("/Annots", [])):
            inside += "/Dest" in link
            outside.add(str(link.get("/A", {}).get("/URI", "")))
    assert inside > 100
    assert not [address for address in outside if "127.0.0.1" in address], "links to the server that printed it"
    assert any(address.startswith("https://") for address in outside)


@pytest.mark.parametrize("there", [True, False])
def test_the_browser_leaves_its_sandbox_only_where_there_is_none(there: bool):
    chromium = Mock()
    chromium.launch.side_effect = ["browser"] if there else [Error("no usable sandbox"), "browser"]
    launched = runpy.run_path(str(ROOT / "book/web/pdf.py"))["launched"]
    assert launched(chromium, "chromium") == "browser"
    tried = [each.kwargs["chromium_sandbox"] for each in chromium.launch.call_args_list]
    assert tried == ([True] if there else [True, False])
    assert "--no-sandbox" not in str(chromium.launch.call_args_list)
