"""The widget of synthetic anomalies in a real browser: it computes what PyTorch computes."""

from __future__ import annotations

import numpy as np
import pytest
from browsing import opened, slide, write
from synthesising import SIDE, drawn, expected, images, pictures, state

from attnad.widgets import Synthesis
from attnad.widgets.front import coloured


@pytest.fixture
def page(browser, tmp_path):
    write(Synthesis(images(), quarter_turns=1, grid=2), tmp_path)
    with opened(browser, tmp_path) as page:
        yield page


def box(page) -> list[int]:
    return page.evaluate("model.get('box')")


def replaced(page) -> list[int]:
    """The rectangle as the map shows it: top, left, bottom, right."""
    rows, columns = np.nonzero((pictures(page)[3] == coloured(np.full((1, 1), 255, np.uint8), "inferno")).all(2))
    return [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]


def drag(page, *places: tuple[float, float]) -> None:
    """Drag over x'' from place to place, each (row, column) in pixels of the image."""
    there = page.get_by_role("application").bounding_box()
    to = [
        (there["x"] + (c + 0.5) / SIDE * there["width"], there["y"] + (r + 0.5) / SIDE * there["height"])
        for r, c in places
    ]
    page.mouse.move(*to[0])
    page.mouse.down()
    for place in to[1:]:
        page.mouse.move(*place, steps=4)
    page.mouse.up()


def test_the_page_computes_what_pytorch_computes(page):
    for seed in range(12):
        chosen = drawn(seed)
        page.evaluate("(values) => Object.entries(values).forEach(([name, value]) => model.set(name, value))", chosen)
        for what, got, wanted in zip(("x", "x'", "x''", "A"), pictures(page), expected(chosen), strict=True):
            assert np.abs(got - wanted).max() <= 1, f"{what} with {chosen}"


def test_controls_say_what_they_do(page):
    page.get_by_role("button", name="Normal image 2").click()
    page.get_by_role("radio", name="270°").check()
    page.get_by_role("radio", name="4 × 4").check()
    page.get_by_role("radio", name="zeros").check()
    slide(page, "Hue", -0.15)
    now = state(page)
    assert (now["index"], now["quarter_turns"], now["grid"], now["hue"]) == (1, 3, 4, -0.15)
    assert sorted(now["order"]) == list(range(16))
    assert np.abs(pictures(page) - expected(now)).max() <= 1
    page.get_by_role("button", name="Shuffle").click()
    assert state(page)["order"] != now["order"]
    page.get_by_text(str(state(page)["order"])).wait_for()
    assert page.get_by_text("covers 25.0 % of the image").count() >= 1
    page.wait_for_function("document.querySelector('[role=status]').textContent.includes('Rotated by 270 degrees')")
    page.get_by_role("button", name="Start again").click()
    now = state(page)
    assert (now["quarter_turns"], now["grid"], now["order"], now["hue"], now["filling"]) == (0, 1, [0], 0, "zeros")
    x, x1, *_ = pictures(page)
    assert np.abs(x1 - x).max() <= 1
    assert page.get_by_role("button", name="Shuffle").is_disabled()


def test_what_is_drawn_python_takes(page):
    areas, fillings = [], set()
    for _ in range(40):
        page.get_by_role("button", name="Draw one").click()
        now = state(page)
        Synthesis(images(), **now)  # refuses what is out of range
        assert now["quarter_turns"] in (1, 2, 3)
        assert now["grid"] in (2, 4)
        assert now["order"] != sorted(now["order"])
        top, left, bottom, right = now["box"]
        areas.append((bottom - top) * (right - left) / SIDE**2)
        fillings.add(now["filling"])
    assert 0.01 < min(areas) < 0.1 < max(areas) < 0.45
    assert fillings == {"x'", "zeros"}
    assert np.abs(pictures(page) - expected(now)).max() <= 1


def test_dragging_moves_draws_and_resizes(page):
    assert box(page) == replaced(page) == [8, 8, 24, 24]
    drag(page, (16, 16), (18, 13))  # inside: moves
    assert box(page) == replaced(page) == [10, 5, 26, 21]
    drag(page, (18, 13), (0, 40))  # as far as the border
    assert box(page) == [0, 16, 16, 32]
    drag(page, (28, 4), (20, 10))  # elsewhere: a new one, in any direction
    assert box(page) == replaced(page) == [20, 4, 29, 11]
    drag(page, (2, 2))  # a click alone draws nothing
    assert box(page) == [20, 4, 29, 11]
    page.evaluate("model.set('box', [0, 0, 32, 32])")
    drag(page, (31, 31), (7, 3))  # a corner: resizes
    assert box(page) == replaced(page) == [0, 0, 8, 4]
    assert page.locator(".frame path.truth:not(.halo)").get_attribute("d") == "M0 0H4V8H0z"
    assert np.abs(pictures(page) - expected(state(page))).max() <= 1
    page.get_by_label("Outline the rectangle").uncheck()
    assert page.evaluate("model.get('outline')") is False
    page.wait_for_function("document.querySelector('.frame path.truth').getAttribute('d') === ''")


def test_keyboard_only(page):
    seen = []
    for _ in range(22):
        page.keyboard.press("Tab")
        name, visible = page.evaluate(
            """() => { const node = document.activeElement;
              const label = (node.getAttribute("aria-label") ?? node.textContent) || node.closest("label")?.textContent;
              const shown = node.type === "radio" ? node.parentElement : node;
              return [document.activeElement === document.body ? "BODY" : label,
                      getComputedStyle(shown).outlineStyle !== "none"]; }"""
        )
        if name == "BODY":
            break
        seen.append(name)
        assert visible, f"{name} shows no focus"
        if name == "Normal image 2":
            page.keyboard.press("Enter")
            assert page.evaluate("model.get('index')") == 1
        elif name.startswith("x″"):
            for key in ("ArrowRight", "ArrowDown", "ArrowDown"):
                page.keyboard.press(key)
            assert box(page) == replaced(page) == [10, 9, 26, 25]
            for key in ("Shift+ArrowRight", "Shift+ArrowUp"):
                page.keyboard.press(key)
            assert box(page) == replaced(page) == [10, 9, 25, 26]
            for _ in range(40):
                page.keyboard.press("Shift+ArrowLeft")
                page.keyboard.press("ArrowUp")
            assert box(page) == replaced(page) == [0, 9, 15, 10]
            page.wait_for_function(
                f"document.querySelector('[role=status]').textContent.includes('{15 / 10.24:.1f} %')"
            )
        elif name == "90°":
            page.keyboard.press("ArrowRight")
            assert page.evaluate("model.get('quarter_turns')") == 2
        elif name.startswith("Brightness"):
            page.keyboard.press("ArrowRight")
            assert page.evaluate("model.get('brightness')") == pytest.approx(1.01)
    order = (
        "Draw one", "Start again", "Normal image 1", "Normal image 2", "Normal image 3", "x″", "90°", "2 × 2",
        "Shuffle", "Brightness", "Contrast", "Saturation", "Hue", "x′", "Outline the rectangle",
    )  # fmt: skip
    assert all(name.startswith(wanted) for name, wanted in zip(seen, order, strict=True)), seen


def test_phone_by_touch(browser, tmp_path):
    write(Synthesis(images()), tmp_path)
    with opened(browser, tmp_path, width=360, has_touch=True, is_mobile=True, color_scheme="dark") as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.get_by_role("button", name="Normal image 3").tap()
        page.get_by_role("radio", name="4 × 4").tap()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert state(page)["index"] == 2
        # A finger's drag, from the middle two pixels to the right: the browser must not scroll or cancel it.
        there = page.get_by_role("application").bounding_box()
        x, y = there["x"] + there["width"] / 2 + 1, there["y"] + there["height"] / 2 + 1
        touch = page.context.new_cdp_session(page)
        for kind, across in (("touchStart", 0), ("touchMove", 1), ("touchMove", 2), ("touchEnd", None)):
            points = [] if across is None else [{"x": x + across * there["width"] / SIDE, "y": y}]
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        assert replaced(page) == [8, 10, 24, 26]
