"""Several views of one widget, as a notebook may show it: each closes behind itself, and takes no other's answers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from browsing import opened, write
from made import explored, random_images, random_run

from attnad.data.tiles import Tiles
from attnad.errors import SettingError
from attnad.widgets import AttentionExplorer, BestDiscriminator, PaintDefect, ScoreThreshold, Synthesis

WIDGETS: dict[str, Any] = {
    "explorer": lambda: AttentionExplorer(**explored()),
    "synthesis": lambda: Synthesis(random_images(2)),
    "threshold": lambda: ScoreThreshold([0.1, 0.2, 0.9], ["good", "good", "bad"], 0.5),
    "best": BestDiscriminator,
    "paint": lambda: PaintDefect(random_run(), random_images(2)),
}


@pytest.mark.parametrize("name", WIDGETS)
def test_a_view_that_is_closed_listens_no_more(browser, tmp_path, name):
    write(WIDGETS[name](), tmp_path)
    with opened(browser, tmp_path) as page:
        once = page.evaluate("listeners.length")
        assert once > 0
        page.evaluate("view().then((close) => (window.closeSecond = close))")
        assert page.evaluate("listeners.length") == 2 * once
        page.evaluate("closeFirst()")
        assert page.evaluate("listeners.length") == once
        page.evaluate("closeSecond()")
        assert page.evaluate("listeners.length") == 0


def test_two_views_take_only_their_own_answers(browser, tmp_path):
    """Both are painted in before either is answered; the kernel's answers reach all views of the model."""
    write(PaintDefect(random_run(), random_images(2)), tmp_path)
    with opened(browser, tmp_path) as page:
        page.evaluate(
            """() => {
              closeFirst();
              document.getElementById("here").remove();
              window.asked = [];
              window.kernel = (content) =>
                content.kind === "hello"
                  ? Promise.resolve([[{ kind: "kernel" }, []]])
                  : new Promise((answer) => asked.push({ id: content.id, answer }));
            }"""
        )
        page.evaluate("Promise.all([view(), view()])")
        views = [page.locator(".attnad").nth(i) for i in range(2)]
        for view in views:
            view.locator("canvas[role=application]").press(" ")
        page.wait_for_function("asked.length === 2")
        assert page.evaluate("new Set(asked.map(({ id }) => id)).size") == 2
        page.evaluate(
            """(area) => asked.forEach(({ id, answer }, i) => {
              const texts = [area, 3 * area].map((n) => btoa("\\0".repeat(n)));
              answer([[{ kind: "answer", id, scores: [i + 1, i + 1] }, texts]]);
            })""",
            32 * 32,
        )
        for i, view in enumerate(views):
            view.get_by_text("the kernel answered in").wait_for()
            assert view.locator(".meter strong").all_inner_texts() == [f"{i + 1}.000"] * 2


def test_a_run_on_tiles_is_not_shown_shrunken_wholes():
    """As every other command refuses it; the file of an export says nothing of tiles, since it refuses them itself."""
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    with pytest.raises(SettingError, match=r"judges photographs in tiles.*train without --tile"):
        PaintDefect(replace(random_run(), tiles=Tiles(64, 8)), images)
