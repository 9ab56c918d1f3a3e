"""The built pages for all readers: screen readers (axe-core's rules), search engines, previews, slow lines."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

import pytest
import yaml
from axe_playwright_python.sync_playwright import Axe
from browsing import HTML, PAGES, ROOT, window
from playwright.sync_api import Browser, Page

SITE = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["sphinx"]["config"]["ogp_site_url"]
# Markup of others, which no page of ours can change: the theme's logo stands outside of a landmark, and docutils writes
# a bibliography in roles that have been given up since.
OF_OTHERS = {"region", "aria-allowed-role", "aria-deprecated-role", "aria-required-children"}

# Colours that fade are taken to their end. To wait for it could be for ever: a browser under load may draw no more.
SETTLE = """document.getAnimations().forEach(
  (a) => (a.effect.getComputedTiming().endTime < Infinity ? a.finish() : a.cancel()))"""


@pytest.fixture(scope="module")
def page(browser: Browser) -> Iterator[Page]:
    """A page into which axe-core's script can be put, which the book's own policy would refuse."""
    context = window(browser, viewport={"width": 1280, "height": 900}, color_scheme="light", bypass_csp=True)
    yield context.new_page()
    context.close()


COLOURS = ["color-contrast", "link-in-text-block"]
# Contrast takes nearly all of axe's time, on thousands of cells and letters that look alike. So it is asked of one text
# or field for each look: the colours and sizes of its element and of all that this stands in.
LOOKS = """async (rules) => {
  const numbers = new Map(), looks = new Map(), shown = new Map();
  const number = (text) => numbers.get(text) ?? numbers.set(text, numbers.size).get(text);
  const look = (element) => {
    if (!element) return "";
    if (!looks.has(element)) {
      const style = getComputedStyle(element);
      const own = ["color", "backgroundColor", "backgroundImage", "opacity", "fontSize", "fontWeight", "textDecoration",
        "textShadow", "position"];
      looks.set(element, number([look(element.parentElement), ...own.map((name) => style[name])].join()));
    }
    return looks.get(element);
  };
  for (const element of document.body.querySelectorAll("*")) {
    const text = [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim());
    const field = element.matches("input, select, textarea");
    if ((text || field) && element.checkVisibility() && !shown.has(look(element))) shown.set(look(element), element);
  }
  return await axe.run({ include: [...shown.values()] }, { runOnly: rules, resultTypes: ["violations"] });
}"""


def said(found: dict) -> list[str]:
    assert found["passes"], "rules were applied"
    return [f"{v['id']}: {v['nodes'][0]['html'][:120]}" for v in found["violations"] if v["id"] not in OF_OTHERS]


@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_nothing(name: str, page: Page, address: str):
    """Contrast, names of controls, labels, tables, landmarks and more; headings without gaps are among its rules.

    In the dark the rules on colours alone are asked again: nothing else is another there.
    """
    page.emulate_media(color_scheme="light")
    page.goto(f"{address}/{name}.html", wait_until="networkidle")
    # All other rules are asked of everything; of what passes, one place is told.
    others = {"rules": {rule: {"enabled": False} for rule in COLOURS}, "resultTypes": ["violations"]}
    assert said(Axe().run(page, options=others).response) == []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.wait_for_function("scheme => document.documentElement.dataset.theme === scheme", arg=scheme)
        page.evaluate(SETTLE)
        assert said(page.evaluate(LOOKS, COLOURS)) == [], scheme


def test_axe_sees_one_pale_word_among_many(page: Page, address: str):
    """In the dark and in the light, of a table whose other cells all look alike."""
    page.emulate_media(color_scheme="light")
    page.goto(f"{address}/book/results.html", wait_until="networkidle")
    Axe().run(page, options={"runOnly": ["html-has-lang"]})  # brings axe into the page
    page.evaluate("document.querySelectorAll('main td')[77].style.color = 'rgb(128, 128, 128)'")
    page.evaluate("document.querySelectorAll('main td')[77].style.backgroundColor = 'rgb(110, 110, 110)'")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.evaluate(SETTLE)
        (violation,) = page.evaluate(LOOKS, COLOURS)["violations"]
        assert (violation["id"], len(violation["nodes"])) == ("color-contrast", 1)


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.usefixtures("address")
def test_page_can_be_found_and_shared(name: str):
    html = (HTML / f"{name}.html").read_text(encoding="utf-8")
    metas = dict(re.findall(r'<meta (?:property|name)="([^"]+)" content="([^"]*)"', html))
    assert len(metas["description"]) > 40
    assert metas["og:url"] == f"{SITE}{name}.html"
    card = HTML / metas["og:image"].removeprefix(SITE)
    assert card.exists(), "the preview's picture is not part of the site"
    assert card.stat().st_size < 300_000  # messengers leave out larger ones; about 40,000 whatever the fonts


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.usefixtures("address")
def test_pictures_load_late_and_headings_have_no_gaps(name: str):
    article = re.search(r"<article.*?</article>", (HTML / f"{name}.html").read_text(encoding="utf-8"), re.DOTALL)[0]
    assert [image for image in re.findall(r"<img [^>]*>", article) if 'loading="lazy"' not in image] == []
    levels = [int(level) for level in re.findall(r"<h([1-6])[ >]", article)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
