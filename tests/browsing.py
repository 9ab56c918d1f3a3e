"""Pages in a real browser, and a widget in one without Jupyter: its module, its state, and a model as Jupyter's."""

from __future__ import annotations

import base64
import functools
import http.server
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anywidget
import pytest
import yaml
from playwright.sync_api import Browser, BrowserContext, Page, Request, expect
from waiting import PATIENCE

expect.set_options(timeout=1000 * PATIENCE)  # Playwright's own is five seconds

ROOT = Path(__file__).parents[1]
HTML = ROOT / "book/_build/html"
TOC = yaml.safe_load((ROOT / "book/_toc.yml").read_text(encoding="utf-8"))
PAGES = [TOC["root"]] + [chapter["file"] for part in TOC["parts"] for chapter in part["chapters"]]
PAGE = """<!doctype html>
<html data-content_root="./" lang="en"><head><meta charset="utf-8"><title>A widget</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="stylesheet" href="widget.css">
<style>body { margin: 8px; background: Canvas; color-scheme: light dark }</style></head>
<body><div id="here"></div><script type="module">
import widget from "./widget.js";
const view = (text) => new DataView(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
const state = await (await fetch("state.json")).json();
for (const [name, text] of Object.entries(state.bytes)) state.plain[name] = view(text);
window.listeners = [];
const tell = (name, ...values) => listeners.filter(([n]) => n === name).forEach(([, listen]) => listen(...values));
window.model = {
  saved: 0,
  get: (name) => state.plain[name],
  set(name, value) {
    if (state.plain[name] === value) return;
    state.plain[name] = value;
    tell(`change:${name}`);
  },
  save_changes: () => (model.saved += 1),
  on: (names, listen) => names.split(" ").forEach((name) => listeners.push([name, listen])),
  off(names, listen) {
    for (const name of names.split(" ")) listeners = listeners.filter(([n, l]) => n !== name || l !== listen);
  },
  send(content, _, buffers = []) {
    if (!window.kernel) return;
    const texts = buffers.map((b) => btoa(String.fromCharCode(...new Uint8Array(b.buffer ?? b))));
    window.kernel(content, texts).then((answers) => answers.forEach(([c, b]) => tell("msg:custom", c, b.map(view))));
  },
};
window.view = async () => widget.render({ model, el: document.body.appendChild(document.createElement("div")) });
window.closeFirst = await widget.render({ model, el: document.getElementById("here") });
document.body.dataset.ready = "";
</script></body></html>"""


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder without a word."""

    extensions_map = http.server.SimpleHTTPRequestHandler.extensions_map | {".mjs": "text/javascript"}

    def log_message(self, *_: object) -> None:
        pass


def needed(what: str, there: bool) -> None:
    """Skip where something is missing on a reader's machine; fail where everything has to be there."""
    if not there:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(what)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder on this machine; gives its address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def window(browser: Browser, **options: Any) -> BrowserContext:
    """A window of the browser, whose pages may take their time."""
    context = browser.new_context(**options)
    context.set_default_timeout(1000 * PATIENCE)
    return context


def repainted(page: Page) -> None:
    """Wait until the page has drawn what it was asked for: widgets draw in the next frame."""
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def multiplied(page: Page) -> float:
    """Milliseconds that two million multiplications take in a script: how fast machine and browser are just now."""
    return page.evaluate(
        """() => {
          const [values, start] = [new Float32Array(4096).fill(1.0001), performance.now()];
          let sum = 0;
          for (let i = 0; i < 500; i++) for (let j = 0; j < values.length; j++) sum += values[j] * i;
          return [performance.now() - start, sum];
        }"""
    )[0]


def watch(page: Page, address: str) -> list[str]:
    """Give the list of a page's faults: other addresses asked for, which the browser cannot find, errors of scripts."""
    faults: list[str] = []

    def note(request: Request) -> None:
        if not request.url.startswith((f"{address}/", "data:", "blob:")):
            faults.append(f"asked for {request.url}")

    page.on("request", note)
    page.on("pageerror", lambda error: faults.append(error.stack or str(error)))
    return faults


def write(widget: anywidget.AnyWidget, folder: Path) -> None:
    """Write a page with the widget into a folder."""
    state = {name: value for name, value in widget.get_state().items() if name not in ("_esm", "_css", "layout")}
    binary = {name: base64.b64encode(v).decode() for name, v in state.items() if isinstance(v, bytes)}
    plain = {name: value for name, value in state.items() if name not in binary}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "state.json").write_text(json.dumps({"plain": plain, "bytes": binary}), encoding="utf-8")
    (folder / "widget.js").write_text(widget._esm, encoding="utf-8")
    (folder / "widget.css").write_text(widget._css, encoding="utf-8")
    (folder / "index.html").write_text(PAGE, encoding="utf-8")


@contextmanager
def opened(browser: Browser, folder: Path, *, width: int = 1000, kernel=None, **options) -> Iterator[Page]:
    """Serve the folder and open its page; other hosts are out of reach, and a fault in the page fails the test.

    `kernel` is the widget in Python, to answer the page's messages.
    """
    with served(folder) as address:
        context = window(browser, viewport={"width": width, "height": 900}, **options)
        page = context.new_page()
        faults = watch(page, address)
        if kernel is not None:
            page.expose_function("kernel", functools.partial(_answer, kernel))
        try:
            page.goto(address)
            page.wait_for_selector("body[data-ready]", state="attached")
            yield page
            assert faults == []
        finally:
            context.close()


def _answer(widget: anywidget.AnyWidget, content: dict, texts: list[str]) -> list:
    """Hand a message to the widget as the kernel does, and catch what it sends back."""
    answers = []
    widget.send = lambda content, buffers=(): answers.append((content, [base64.b64encode(b).decode() for b in buffers]))
    widget._handle_custom_msg(content, [memoryview(base64.b64decode(text)) for text in texts])
    return answers


def slide(page, label: str, value: float) -> None:
    """Move the slider of a widget, and wait until it is drawn."""
    page.get_by_label(label).evaluate(
        "(input, value) => { input.value = value; input.dispatchEvent(new Event('input')) }", value
    )
    repainted(page)
