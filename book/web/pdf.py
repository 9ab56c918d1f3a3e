"""The built pages as one PDF: `make pdf` prints each in a headless browser and binds them in reading order.

Pages are printed as the browser prints them, so formulas, figures and tables are those of the site; book.css says what
paper leaves out. Widgets stand as their pictures. A link between two pages leads to the page inside of the PDF.
"""

from __future__ import annotations

import io
import shutil
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urldefrag

import yaml
from playwright.sync_api import Browser, BrowserType, Error, sync_playwright
from pypdf import PdfReader, PdfWriter
from pypdf.generic import ArrayObject, NameObject

ROOT = Path(__file__).resolve().parents[2]
HTML, OUT = ROOT / "book/_build/html", ROOT / "book/_build/attnad.pdf"
BROWSERS = ("chromium", "google-chrome", "chromium-browser", "chrome")
LARGE = 100_000  # bytes of a picture that is written as JPEG, lest the file grow too large to be sent
READY = """async () => {
  document.querySelectorAll("img").forEach((image) => image.loading = "eager");
  if (window.MathJax?.startup) await MathJax.startup.promise;
  await Promise.all([...document.images].map((image) => image.decode().catch(() => {})));
}"""


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and says nothing."""

    def log_message(self, *_: object) -> None:
        pass


def pages() -> list[str]:
    """The book's pages in reading order, as addresses below its root."""
    toc = yaml.safe_load((ROOT / "book/_toc.yml").read_text(encoding="utf-8"))
    chapters = [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]
    return [f"{name}.html" for name in (toc["root"], *chapters)]


def launched(chromium: BrowserType, program: str) -> Browser:
    """A browser in its sandbox; without it only where there can be none, as for root and in many containers."""
    options = {"executable_path": program, "args": ["--disable-gpu"]}
    try:
        return chromium.launch(chromium_sandbox=True, **options)
    except Error:
        return chromium.launch(chromium_sandbox=False, **options)


def printed(names: list[str], address: str) -> list[tuple[str, bytes]]:
    """Title and PDF of each page."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        sys.exit(f"No browser to print with: install one of {', '.join(BROWSERS)}, then run make pdf again.")
    found = []
    with sync_playwright() as playwright:
        browser = launched(playwright.chromium, program)
        page = browser.new_page(color_scheme="light")
        page.set_default_timeout(600_000)  # a busy machine may take its time
        page.route("**/embed-amd.js", lambda route: route.abort())  # their pictures stand instead
        for name in names:
            page.goto(f"{address}/{name}", wait_until="load")
            page.evaluate(READY)
            title = page.locator("article h1").first.inner_text().rstrip("#").strip()
            margin = {"top": "18mm", "bottom": "18mm", "left": "16mm", "right": "16mm"}
            found.append((title, page.pdf(format="A4", scale=0.8, margin=margin, print_background=True)))
            print(f"{name}: {len(found[-1][1]) / 1e6:.1f} MB")
        browser.close()
    return found


def bind(names: list[str], parts: list[tuple[str, bytes]], address: str) -> PdfWriter:
    """One document with an outline, whose links between pages stay inside of it."""
    writer, first = PdfWriter(), {}
    for name, (title, content) in zip(names, parts, strict=True):
        first[f"{address}/{name}"] = len(writer.pages)
        writer.append(PdfReader(io.BytesIO(content)), outline_item=title, import_outline=False)
    for page in writer.pages:
        # By name: for page.images alone pypdf reads each page's whole text, where a browser puts no large ones.
        for name, drawn in page["/Resources"].get("/XObject", {}).items():
            if drawn["/Subtype"] == "/Image" and len((picture := page.images[name]).data) > LARGE:
                picture.replace(picture.image.convert("RGB"), quality=85)
        for link in (reference.get_object() for reference in page.get("/Annots", [])):
            target = urldefrag(link.get("/A", {}).get("/URI", ""))[0]
            if target.startswith(address):
                del link["/A"]  # what is no page, such as a notebook's file, is not in the PDF
            if target in first:
                link[NameObject("/Dest")] = ArrayObject(
                    [writer.pages[first[target]].indirect_reference, NameObject("/Fit")]
                )
    writer.add_metadata({"/Title": "Attention-guided anomaly detection, step by step", "/Author": "The attnad authors"})
    return writer


def main() -> None:
    """Print, bind and write book/_build/attnad.pdf."""
    names = pages()
    if missing := [name for name in names if not (HTML / name).exists()]:
        sys.exit(f"{HTML / missing[0]}: there is no such page; run make book first.")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=HTML))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    writer = bind(names, printed(names, address), address)
    writer.write(OUT)
    print(f"{len(writer.pages)} pages, {OUT.stat().st_size / 1e6:.1f} MB: {OUT}")


if __name__ == "__main__":
    main()
