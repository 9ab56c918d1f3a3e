"""The threshold over histograms: what Python hands over, and what a reader does with it in a real browser."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from browsing import opened, write
from PIL import Image

from attnad.widgets import ScoreThreshold

SCORES = [-2.0, -1.0, 0.0, 1.0, 0.5, 1.5, 2.5, 3.0]
GROUPS = ["good"] * 4 + ["scratch", "scratch", "<b>hole", "<b>hole"]


@pytest.fixture
def page(browser, tmp_path):
    write(ScoreThreshold(SCORES, GROUPS, 0.75), tmp_path)
    with opened(browser, tmp_path) as page:
        yield page


def flagged(page) -> dict[str, str]:
    rows = page.locator(".attnad tbody tr").all()
    return {row.locator("th").inner_text(): row.locator("td").nth(1).inner_text() for row in rows}


def where(page) -> float:
    """The threshold's place in the drawing, as a share of its width."""
    return float(page.locator("path.limit").get_attribute("d").split()[0][1:]) / 640


def test_numbers_follow_the_threshold(page):
    assert flagged(page) == {"good": "1 of 4", "<b>hole": "2 of 2", "scratch": "1 of 2"}
    assert "Found 75.0 % of the anomalies for 25.0 % of false alarms; balanced accuracy 0.750" in page.content()
    page.evaluate("model.set('threshold', 1.0)")  # a score at the threshold is not above it
    page.get_by_text("balanced accuracy 0.875").wait_for()
    assert flagged(page)["good"] == "0 of 4"
    page.get_by_role("button", name="Back to").click()
    assert page.evaluate("model.get('threshold')") == 0.75


def test_the_line_is_dragged(page):
    box = page.locator(".plot").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 2, box["y"] + 50, steps=4)
    page.mouse.up()
    page.get_by_text("Found 100.0 % of the anomalies for 100.0 %").wait_for()
    assert where(page) < 0.01
    assert page.evaluate("model.saved") > 0
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 50)  # not pressed: it stays
    assert where(page) < 0.01


def test_all_of_it_by_keyboard(page):
    seen = []
    for _ in range(2):
        page.keyboard.press("Tab")
        node = page.locator("*:focus")
        assert node.evaluate("n => getComputedStyle(n).outlineStyle") != "none"
        seen.append(node.evaluate("n => n.tagName"))
    assert seen == ["BUTTON", "INPUT"]
    for key, limit in (("ArrowRight", 0.775), ("ArrowLeft", 0.75), ("PageUp", 1.0), ("ArrowDown", 0.975)):
        page.keyboard.press(key)
        assert page.evaluate("model.get('threshold')") == pytest.approx(limit)
    page.keyboard.press("End")
    page.get_by_text("Found 0.0 % of the anomalies for 0.0 %").wait_for()
    page.wait_for_function("document.querySelector('[role=status]').textContent.includes('Found 0.0 %')")


def test_the_bars_are_the_scores(browser, tmp_path):
    """Where each bar begins, and how high it is beside the tallest of its group."""
    scores, groups = [0.0, 0.0, 0.0, 4.0, 8.0, 8.0, 2.0], ["good"] * 6 + ["defect"]
    write(ScoreThreshold(scores, groups, 4.0), tmp_path)
    with opened(browser, tmp_path) as page:
        bars = [
            page.evaluate(
                """(group) => [...document.querySelector(`.plot .group${group}`).getAttribute("d")
                  .matchAll(/M([\\d.]+) \\d+v-([\\d.]+)/g)].map((m) => [Number(m[1]), Number(m[2])])""",
                group,
            )
            for group in (0, 1)
        ]
        at = {score: 640 * (score + 0.24) / 8.48 for score in (0.0, 2.0, 4.0, 7.8)}
        assert np.allclose(bars[0], [[at[0.0], 63], [at[4.0], 21], [at[7.8], 42]], atol=1e-3)
        assert np.allclose(bars[1], [[at[2.0], 63]], atol=1e-3)


def test_phone_width_and_names_as_text(browser, tmp_path):
    write(ScoreThreshold(SCORES, GROUPS, 0.75), tmp_path)
    with opened(browser, tmp_path, width=360, has_touch=True, is_mobile=True) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert page.locator(".attnad b").count() == 0


def test_constant_scores_are_shown_too(browser, tmp_path):
    write(ScoreThreshold([1.0, 1.0], ["good", "defect"], 1.0), tmp_path)
    with opened(browser, tmp_path) as page:
        assert flagged(page) == {"good": "0 of 1", "defect": "0 of 1"}


def test_groups_keep_their_order_and_so_their_colours():
    """Normal images first, then the others as they come: the colours of a histogram drawn from the same lists."""
    facts = ScoreThreshold(SCORES, ["wrong", "good", *["wrong", "also"] * 3], 0.0)._facts
    assert facts["kinds"] == ["good", "wrong", "also"]
    assert facts["groups"] == [1, 0, 1, 2, 1, 2, 1, 2]


@pytest.mark.parametrize(
    ("scores", "groups", "fixed", "said"),
    [
        ([1.0], ["good", "a"], 0.0, "1 scores and 2 groups"),
        ([1.0, float("nan")], ["good", "a"], 0.0, "give finite numbers"),
        ([1.0, 2.0], ["good", "a"], float("inf"), "give finite numbers"),
        ([1.0, 2.0], ["normal", "a"], 0.0, "groups are a, normal; give 'good'"),
        ([1.0, 2.0], ["good", "good"], 0.0, "one to four others"),
        ([1.0] * 6, ["good", *"abcde"], 0.0, "one to four others"),
    ],
)
def test_what_does_not_fit_is_refused(scores, groups, fixed, said):
    with pytest.raises(ValueError, match=said):
        ScoreThreshold(scores, groups, fixed)


def test_a_still_picture_where_no_widget_is_shown():
    bundle, *_ = ScoreThreshold(SCORES, GROUPS, 0.75)._repr_mimebundle_()
    picture = np.array(Image.open(io.BytesIO(base64.b64decode(bundle["image/png"]))))
    assert picture.shape == (280, 640, 3)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 10, "an empty picture"
