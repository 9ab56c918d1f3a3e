"""The built book in a real browser: every page, wide and narrow, light and dark. `make book` comes first."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator

import pytest
import yaml
from browsing import HTML, PAGES, ROOT, TOC, repainted, watch, window
from playwright.sync_api import Browser, BrowserContext, Page

CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))


READERS = {"wide light": (1280, 900), "phone dark": (390, 844)}


def reading(browser: Browser, reader: str) -> BrowserContext:
    """A window with a memory: what two pages share is fetched once."""
    width, height = READERS[reader]
    return window(browser, viewport={"width": width, "height": height}, color_scheme=reader.split()[1])


def new_page(context: BrowserContext, address: str) -> Page:
    """A page that may talk to the book's own server only, and that notes what goes wrong."""
    page = context.new_page()
    page.faults = watch(page, address)
    page.on(
        "console", lambda m: page.faults.append(m.text) if m.type == "error" and address in m.location["url"] else None
    )
    page.on("response", lambda r: page.faults.append(f"{r.status} {r.url}") if r.status >= 400 else None)
    return page


@pytest.fixture(scope="module")
def desk(browser: Browser) -> Iterator[BrowserContext]:
    context = reading(browser, "wide light")
    yield context
    context.close()


@pytest.fixture(params=READERS)
def page(request: pytest.FixtureRequest, browser: Browser, address: str) -> Iterator[Page]:
    context = reading(browser, request.param)
    yield new_page(context, address)
    context.close()


# A formula that opens at its tail: its head lies left of the box that it scrolls in.
TAILS = """[...document.querySelectorAll("div.math")].map((box) => [box, box.querySelector("mjx-container")])
  .filter(([box, drawn]) => drawn.getBoundingClientRect().left < box.getBoundingClientRect().left - 1)
  .map(([box]) => box.innerText)"""


@pytest.mark.parametrize("name", PAGES)
def test_page(name: str, desk: BrowserContext, address: str):
    """A page without faults, wide and light; then in the dark, on a phone."""
    page = new_page(desk, address)
    page.goto(f"{address}/{name}.html", wait_until="networkidle")
    assert page.locator("article h1").count() == 1, "a page has one title"
    broken = "[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
    assert page.evaluate(broken) == [], "pictures that do not load"
    assert page.evaluate("[...document.querySelectorAll('main img')].filter(i => !i.alt).map(i => i.src)") == []
    for reader, (width, height) in READERS.items():
        page.set_viewport_size({"width": width, "height": height})
        page.emulate_media(color_scheme=reader.split()[1])
        repainted(page)
        # A wide table or a long formula scrolls in its own box; the page itself does not move sideways under a thumb.
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth + 1"), reader
        assert page.evaluate(TAILS) == [], reader
    assert page.faults == []
    page.close()


def test_the_policy_stands_before_what_it_is_to_hold_for(address: str):
    """A browser applies a policy from where it stands: a script before it is free of it."""
    pages = [path for path in HTML.rglob("*.html") if "_static" not in path.parts and path != HTML / "index.html"]
    assert len(pages) > len(PAGES), "the search page has a policy too; the first only leads on"
    for path in pages:
        before, policy, _ = path.read_text(encoding="utf-8").partition('<meta http-equiv="Content-Security-Policy"')
        assert policy, f"{path.name} has no policy"
        tags = re.findall(r"<([a-z]+)", before.partition("<head>")[2])
        assert set(tags) <= {"meta"}, f"{path.name}: {set(tags) - {'meta'}} before the policy"


@pytest.mark.parametrize("name", [name for name in PAGES if name.startswith("notebooks/")])
def test_pictures_have_numbers_to_link_to(name: str):
    """Fig. 4.1, 4.2, ... in the order of the chapter's pictures; each number leads to itself."""
    html = (HTML / f"{name}.html").read_text(encoding="utf-8")
    article = re.search(r"<article.*?</article>", html, re.DOTALL)[0]
    chapter = re.search(r"<h1>(?:<span[^>]*>(\d+)\. </span>)?", article)[1]
    shown = re.findall(r'<p class="figure-number" id="(fig-\d+)"><a[^>]* href="#(fig-\d+)">Fig\. ([\d.]+)</a>', article)
    numbers = [f"{chapter}.{n}" if chapter else str(n) for n in range(1, len(shown) + 1)]
    assert shown == [(f"fig-{n}", f"fig-{n}", number) for n, number in enumerate(numbers, 1)]
    pictures = re.findall(r'<img [^>]*class="(?!still)[^"]*"|<img (?![^>]*class=)[^>]*>', article)
    assert len(shown) == len(pictures) > 0


def test_first_page_is_light(browser: Browser, address: str):
    """Less than 500 kB travel for it, compressed as servers of pages do; pictures further down wait."""
    context, bodies = window(browser), {}
    page = context.new_page()
    page.on("response", lambda response: bodies.setdefault(response.url, response))
    page.goto(f"{address}/book/intro.html", wait_until="networkidle")
    assert page.locator("article h1").count() == 1
    kilobytes = {
        url: min(len(body), len(gzip.compress(body))) / 1000
        for url, response in bodies.items()
        if response.status == 200
        for body in [response.body()]
    }
    assert sum(kilobytes.values()) < 500, sorted(kilobytes.items(), key=lambda each: -each[1])[:8]
    icons = page.locator("button i.fas, button i.fa-solid, button i.fab").locator("visible=true").all()
    assert icons
    for icon in icons:  # drawn by the font, without the script that the page leaves out
        glyph, size = icon.evaluate("i => [getComputedStyle(i, '::before').content, i.getBoundingClientRect().width]")
        assert glyph != "none"
        assert size > 5
    context.close()


@pytest.mark.parametrize("name", [name for name in PAGES if name.startswith("notebooks/")])
@pytest.mark.usefixtures("address")
def test_chapter_opens_elsewhere(name: str):
    """Buttons on top of a chapter: its notebook is to be had, and Colab and Binder open it once its address is real."""
    html = (HTML / f"{name}.html").read_text(encoding="utf-8")
    buttons = html.partition('<div class="article-header-buttons">')[2].partition("<article")[0]
    links = re.findall(r'<a href="([^"]+)"', buttons)
    assert any(link.startswith("../_sources/") and (HTML / name).parent.joinpath(link).exists() for link in links)
    repository = CONFIG["repository"]["url"].removeprefix("https://")
    branch = CONFIG["repository"]["branch"]
    if not CONFIG["html"]["use_repository_button"]:
        assert repository.removeprefix("github.com/") not in html, "a link to an address that is not ours"
        return
    assert f"https://colab.research.google.com/{repository.replace('.com', '')}/blob/{branch}/{name}.ipynb" in links
    assert any(re.fullmatch(rf"https://mybinder.org/.*attnad.*{name}.ipynb", link) for link in links)
    assert f"https://{repository}/blob/{branch}/{name}.ipynb?plain=1" in links


def test_playground(page: Page, address: str):
    """Both widgets work in the page as it is served, with no kernel and no other host."""
    page.goto(f"{address}/book/playground.html")
    found = page.locator(".explorer path.found:not(.halo)").first
    found.wait_for(state="attached")
    before = found.get_attribute("d"), page.locator(".attnad tbody").inner_text()
    page.get_by_label("Threshold").press("End")
    page.wait_for_function("document.querySelector('.explorer path.found:not(.halo)').getAttribute('d') === ''")
    assert (found.get_attribute("d"), page.locator(".attnad tbody").inner_text()) != before
    assert page.get_by_role("radio", name="Overlay").is_checked()
    assert page.get_by_role("radio", name="Brush").first.is_checked()

    for which in range(2):  # discriminators, then the paper's
        board = page.locator("canvas[tabindex]").nth(which)
        board.scroll_into_view_if_needed()
        box = board.bounding_box()
        page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.2 * box["height"])
        page.mouse.down()
        page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 0.7 * box["height"], steps=8)
        page.mouse.up()
        page.get_by_text("the model in this page answered in").nth(which).wait_for()
        page.wait_for_function(
            "(which) => (([was, now]) => was && now.textContent - was.textContent > 0.2)"
            "(document.querySelectorAll('.under')[which].querySelectorAll('strong'))",
            arg=which,
        )
    assert page.faults == []


def test_chapters_widgets(page: Page, address: str):
    """What the chapters' widgets show follows the reader, in the page as it is served."""

    def shown(chapter: str) -> None:
        page.goto(f"{address}/notebooks/{chapter}.html")
        page.wait_for_function("document.querySelectorAll('.attnad').length === 1")
        assert page.locator(".still:visible").count() == 0, "a picture beside its widget"

    shown("02_synthesis")
    before = page.evaluate("[...document.querySelectorAll('.attnad canvas')].map((c) => c.toDataURL())")
    page.get_by_label("Brightness").press("Home")
    page.wait_for_function(
        "(before) => [...document.querySelectorAll('.attnad canvas')].some((c, i) => c.toDataURL() !== before[i])",
        arg=before,
    )
    shown("04_attention_network")
    before = page.locator("canvas.map").first.evaluate("c => c.toDataURL()")
    page.get_by_label("Maps of").press("Home")
    page.get_by_text("epoch 1", exact=True).wait_for()
    assert page.locator("canvas.map").first.evaluate("c => c.toDataURL()") != before
    shown("11_rivals")
    for key, rival in (("End", "vevae"), ("Home", "ae-l2")):
        page.get_by_label("Maps of").press(key)
        page.get_by_text(rival, exact=True).and_(page.locator(".attnad output")).wait_for()
    shown("05_adgan")
    page.get_by_role("slider", name="Threshold").press("End")
    page.get_by_text("Found 0.0 % of the anomalies for 0.0 % of false alarms").wait_for()
    flagged = page.locator(".attnad tbody td:nth-child(3)").all_inner_texts()
    assert len(flagged) == 3
    assert all(text.startswith("0 of ") for text in flagged)
    for chapter in ("06_cifar10", "07_mvtec", "09_your_images"):
        shown(chapter)
        for key, place in (("Home", 0), ("ArrowRight", 1)):
            page.get_by_role("listbox", name="Images").press(key)
            option = page.locator(".gallery > *").nth(place)
            page.wait_for_function("(node) => node.ariaSelected === 'true'", arg=option.element_handle())
            name, _, score = option.get_attribute("aria-label").rpartition(", score ")
            assert page.locator(".attnad h3").inner_text() == name
            assert f"score {score}," in page.locator(".attnad .about").inner_text()
    assert page.faults == []


def test_without_scripts_there_are_pictures(browser: Browser, address: str):
    context = window(browser, java_script_enabled=False)
    page = context.new_page()
    for name in ("book/playground", "notebooks/02_synthesis", "notebooks/07_mvtec"):
        page.goto(f"{address}/{name}.html")
        for still in page.locator(".still").all():
            still.scroll_into_view_if_needed()
            assert still.bounding_box()["width"] > 200
            assert still.get_attribute("alt")
        assert page.locator(".still").count() == (3 if "playground" in name else 1)
    context.close()


def test_opened_from_a_file(browser: Browser, address: str):
    """Without a server the explorer works; painting says what it needs."""
    context = window(browser)
    page = context.new_page()
    page.goto((HTML / "book/playground.html").as_uri())
    page.get_by_role("slider", name="Threshold").press("End")
    page.wait_for_function("document.querySelector('.explorer path.found:not(.halo)').getAttribute('d') === ''")
    page.locator("canvas[tabindex]").first.click()
    page.get_by_role("alert").first.get_by_text(
        "A page opened from a file cannot load a model. Serve its folder"
    ).wait_for()
    context.close()


def test_dark_mode_is_dark(browser: Browser, address: str):
    def lightness(scheme: str) -> float:
        context = window(browser, color_scheme=scheme)
        page = context.new_page()
        watch(page, address)
        page.goto(f"{address}/{TOC['root']}.html")
        rgb = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/[0-9.]+/g).slice(0, 3).map(Number)")
        context.close()
        return sum(rgb) / 3 / 255

    assert lightness("light") > 0.9 > 0.3 > lightness("dark")
