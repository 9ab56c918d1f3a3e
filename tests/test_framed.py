"""A report in a frame of somebody else's page: it can be neither read nor made to do anything.

No page without a server's headers can forbid to be framed, so what stands in it must be safe there.
"""

from __future__ import annotations

import pytest
import torch
from browsing import served, window
from made import images, write_report

READ = """() => [...document.querySelectorAll("iframe")].map((frame) => {
  try { return frame.contentWindow.document.body.innerText } catch (error) { return error.name }
})"""


@pytest.fixture
def report(tmp_path):
    write_report(
        tmp_path / "report",
        paths=[tmp_path / "secret.png"],
        images=(255 * images(1, 32)).byte(),
        sizes=[(32, 32)],
        maps=torch.rand(1, 32, 32),
        scores=[0.5],
        threshold=0.4,
        title="Secret",
        notes={},
    )
    return tmp_path / "report/report.html"


def framing(folder, *addresses):
    """A page of somebody else, with a frame for each address."""
    folder.mkdir()
    frames = "".join(f'<iframe src="{address}"></iframe>' for address in addresses)
    (folder / "index.html").write_text(
        f"<!doctype html><title>Other</title><script>heard = []; onmessage = (m) => heard.push(m)</script>{frames}"
    )
    return folder


def test_another_page_cannot_read_a_report_nor_have_it_do_anything(browser, report, tmp_path):
    with (
        served(report.parent) as here,
        served(framing(tmp_path / "other", f"{here}/report.html", report.as_uri())) as there,
    ):
        page = window(browser).new_page()
        page.goto(there, wait_until="load")
        inside = page.frame_locator("iframe >> nth=0")
        inside.get_by_role("heading", name="Secret", exact=True).wait_for()
        assert set(page.evaluate(READ)) <= {"SecurityError", ""}, "what stands there was read"
        assert [frame for frame in page.frames if frame.url.startswith("file:")] == [], "a file from this machine"

        asked = []
        page.on("request", lambda request: asked.append(request.url))
        for button in inside.get_by_role("button").all():
            button.click()
        inside.get_by_role("slider").fill("0.45")
        [shown] = [frame for frame in page.frames if frame.url.startswith(here)]
        assert shown.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
        assert asked == []
        assert page.evaluate("heard") == []
        page.context.close()


def test_a_page_on_the_same_disk_cannot_read_it_either(browser, report, tmp_path):
    page = window(browser).new_page()
    page.goto((framing(tmp_path / "other", report.as_uri()) / "index.html").as_uri(), wait_until="load")
    page.frame_locator("iframe").get_by_role("heading", name="Secret", exact=True).wait_for()
    assert page.evaluate(READ) == ["SecurityError"]
    page.context.close()
