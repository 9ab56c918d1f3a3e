"""Painting a defect: the kernel's answers, the page's own model, and what a reader does with them in a real browser."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from browsing import multiplied, needed, opened, slide, write
from made import random_run
from PIL import Image
from torchvision.transforms.functional import gaussian_blur

from attnad.data import load_test
from attnad.run.export import load_exported
from attnad.widgets import PaintDefect

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "book/web/textures.onnx"
WEB = ROOT / "book/_build/web/explore"
PLACES = WEB / "discriminators.onnx"


def serve(widget: PaintDefect, folder: Path, model: Path = MODEL) -> None:
    """Write a page with the widget, its model and onnxruntime-web."""
    needed("the pages' scripts are not there; run make book first", WEB.exists())
    write(widget, folder)
    there = folder / "_static/explore"
    there.mkdir(parents=True)
    for name in ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"):
        shutil.copy(WEB / name, there)
    shutil.copy(model, there)


@pytest.fixture(scope="module")
def sites(tmp_path_factory) -> dict[Path, Path]:
    """A page for each of the playground's models."""
    needed("the playground's models are not there; run make book first", PLACES.exists())
    folders = {model: tmp_path_factory.mktemp("paint") for model in (MODEL, PLACES)}
    for model, folder in folders.items():
        serve(PaintDefect(load_exported(model)), folder, model)
    return folders


@pytest.fixture(scope="module")
def site(sites) -> Path:
    return sites[MODEL]


def scratch(page, xs=(0.3, 0.6), ys=(0.2, 0.7)) -> None:
    """Drag over the picture, in shares of its sides, and wait for the answer to the last of it."""
    box = page.locator(".frame").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] * xs[0], box["y"] + box["height"] * ys[0])
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * xs[1], box["y"] + box["height"] * ys[1], steps=8)
    page.mouse.up()
    settled(page)


def settled(page) -> None:
    """Wait until the numbers are those of the picture as it is."""
    page.locator(".meters[aria-busy=false]").wait_for()
    page.get_by_text("answered in").wait_for()


def scores(page) -> list[float]:
    return [float(text) for text in page.locator(".meter strong").all_inner_texts()]


def marked(page) -> list[float]:
    """The map's mean where it is painted: before, now."""
    return [float(number) for number in page.locator(".under strong").all_inner_texts()]


def picture(page, which: int) -> np.ndarray:
    """Pixels of the painted picture, the map or the reconstruction: uint8 [s, s, 3]."""
    data = (
        page.locator(".frame canvas")
        .nth(which)
        .evaluate("c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]")
    )
    side = int((len(data) / 4) ** 0.5)
    return np.array(data, np.uint8).reshape(side, side, 4)[..., :3]


# --- the page's own model --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [MODEL, PLACES], ids=["paper", "discriminators"])
def test_a_scratch_is_marked_and_raises_the_scores(browser, sites, model):
    with opened(browser, sites[model]) as page:
        before = scores(page)
        scratch(page)
        after, (was, now) = scores(page), marked(page)
        assert now > was + 0.2
        assert after[0] > before[0] + 0.05
        assert after[-1] > before[-1] + 0.01
        assert "the model in this page answered in" in page.locator(".answered").inner_text()
        page.get_by_role("button", name="Undo").click()
        page.wait_for_function("document.querySelector('.under').textContent.startsWith('Nothing')")
        settled(page)
        assert scores(page) == pytest.approx(before, abs=2e-3)


@pytest.mark.parametrize(
    ("model", "shown"), [(MODEL, ["adgan", "attention"]), (PLACES, ["top"])], ids=["paper", "discriminators"]
)
def test_the_page_answers_as_python_does(browser, sites, model, shown):
    run = load_exported(model)
    with opened(browser, sites[model]) as page:
        scratch(page)
        painted = torch.from_numpy(picture(page, 0).copy()).permute(2, 0, 1)[None].contiguous()
        expected = run.score(painted)
        assert scores(page) == pytest.approx([expected.image[name].item() for name in shown], abs=1.1e-3)
        assert page.locator(".frame canvas").count() == (3 if model == MODEL else 2)
        if model == MODEL:
            difference = picture(page, 2).astype(float) - 255 * expected.x_re[0].permute(1, 2, 0).numpy()
            assert np.abs(difference).max() < 1.1


@pytest.mark.parametrize("model", [MODEL, PLACES], ids=["paper", "discriminators"])
def test_it_answers_fast_enough_to_paint(browser, sites, model):
    """Moves of a stroke are answered before it ends, each in less than forty million multiplications take.

    These take 30 milliseconds on a laptop. The fastest of each is compared: what else a machine does only makes slower.
    """
    assert model.stat().st_size < 2e6, "a phone has to fetch it"
    with opened(browser, sites[model]) as page:
        scratch(page)  # loads the model
        box = page.locator(".frame").first.bounding_box()
        page.mouse.move(box["x"] + 0.1 * box["width"], box["y"] + 0.5 * box["height"])
        page.mouse.down()
        answers, units = [], []
        for i in range(1, 41):
            page.evaluate("performance.clearMeasures('attnad answer')")
            page.mouse.move(box["x"] + (0.1 + 0.02 * i) * box["width"], box["y"] + 0.5 * box["height"])
            answered = page.wait_for_function("performance.getEntriesByName('attnad answer')[0]?.duration")
            answers.append(answered.json_value())
            units.append(multiplied(page))
        page.mouse.up()
    assert min(answers) < 20 * min(units), f"{min(answers):.1f} ms; two million multiplications: {min(units):.1f} ms"


def test_tools(browser, site):
    with opened(browser, site) as page:
        clean = picture(page, 0)
        scratch(page)
        brushed = picture(page, 0)
        assert (brushed == [20, 20, 20]).all(2).sum() > 30
        page.get_by_role("radio", name="Eraser").check()
        slide(page, "Width", 4)
        scratch(page)
        assert (picture(page, 0) == clean).all()
        page.get_by_role("radio", name="Blur").check()
        scratch(page)
        blurred = picture(page, 0)
        assert (blurred != clean).any()
        assert blurred.std() < clean.std()
        page.get_by_role("button", name="Start again").click()
        page.get_by_role("radio", name="Swap patches").check()
        scratch(page)
        swapped = picture(page, 0)
        assert (swapped != clean).any()
        assert (np.sort(swapped, axis=None) == np.sort(clean, axis=None)).all(), "pixels only change places"


def test_keyboard_only(browser, site):
    with opened(browser, site) as page:
        for _ in range(12):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.getAttribute('role')") == "application":
                break
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid", "the focus must be seen"
        for _ in range(12):
            page.keyboard.press("Space")
            page.keyboard.press("ArrowRight")
        settled(page)
        was, now = marked(page)
        assert now > was
        for _ in range(12):
            page.keyboard.press("Control+z")
        assert "Nothing is painted" in page.locator(".under").inner_text()


def test_an_image_of_ones_own(browser, site, tmp_path):
    Image.new("RGB", (200, 100), (250, 30, 30)).save(tmp_path / "red.png")
    (tmp_path / "not.png").write_text("no image")
    with opened(browser, site) as page:
        page.locator("input[type=file]").set_input_files(tmp_path / "not.png")
        page.get_by_role("alert").get_by_text("not.png is not an image").wait_for()
        before = scores(page)
        page.locator("input[type=file]").set_input_files(tmp_path / "red.png")
        page.get_by_text("answered in").wait_for()
        settled(page)
        assert (picture(page, 0) == [250, 30, 30]).all()
        assert scores(page) != before
        assert page.get_by_role("alert").is_hidden()


def test_phone(browser, site):
    with opened(browser, site, width=360, has_touch=True, is_mobile=True, color_scheme="dark") as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.locator("canvas[tabindex]").tap()
        settled(page)
        assert page.locator(".under strong").count() == 2


@pytest.mark.parametrize("harm", ["missing", "corrupt", "truncated", "no runtime"])
def test_a_model_that_cannot_be_used_is_said_clearly(browser, tmp_path, harm):
    serve(PaintDefect(load_exported(MODEL)), tmp_path)
    file = tmp_path / "_static/explore" / MODEL.name
    content = bytearray(file.read_bytes())
    said = "textures.onnx is damaged, or not the one"
    if harm == "missing":
        file.unlink()
        said = "textures.onnx is not where this page looks for it"
    elif harm == "corrupt":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif harm == "truncated":
        file.write_bytes(content[:-100])
    else:
        (file.parent / "ort-wasm-simd-threaded.wasm").write_bytes(b"nothing")
        said = "The model cannot run in this browser"
    with opened(browser, tmp_path) as page:
        page.locator("canvas[tabindex]").click()
        page.get_by_role("alert").get_by_text(said).wait_for()
        assert (picture(page, 0) == [20, 20, 20]).all(2).any(), "painting itself goes on"
        page.get_by_role("button", name="Normal image 2").click()
        assert len(scores(page)) == 2


def test_what_the_playground_says_of_scratches_and_blur():
    """A scratch is nearly whole in our maps and in pieces in the paper's; a blur shows faintly, or not at all."""
    needed("the playground's models are not there; run make book first", PLACES.exists())
    test, whole, blur = load_test("textures", size=64), {}, {}
    scratched = [i for i, kind in enumerate(test.kinds) if kind == "defect/scratch"]
    wall = test.images[~test.labels][:20]
    blurred = wall.clone()
    blurred[..., 20:44, 20:44] = gaussian_blur(wall, [9, 9], [2.0, 2.0])[..., 20:44, 20:44]
    for model in (MODEL, PLACES):
        run = load_exported(model)
        whole[model] = (run.score(test.images[scratched]).maps[test.masks[scratched]] > 0.4).float().mean()
        before, after = (run.score(images).maps[:, 20:44, 20:44].mean() for images in (wall, blurred))
        blur[model] = after - before
    assert whole[MODEL] < 0.5
    assert whole[PLACES] > 0.9
    assert abs(blur[MODEL]) < 0.02
    assert 0.05 < blur[PLACES] < 0.2


# --- the kernel ------------------------------------------------------------------------------------------------------


def test_with_a_kernel_the_pytorch_model_answers(browser, tmp_path):
    run = random_run()
    images = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    widget = PaintDefect(run, images)
    write(widget, tmp_path)  # no model lies there
    with opened(browser, tmp_path, kernel=widget) as page:
        scratch(page)
        assert "the kernel answered in" in page.locator(".answered").inner_text()
        expected = run.score(torch.from_numpy(picture(page, 0).copy()).permute(2, 0, 1)[None].contiguous())
        assert scores(page) == pytest.approx(
            [expected.image["adgan"].item(), expected.image["attention"].item()], abs=6e-4
        )


def test_without_kernel_and_model_it_says_so(browser, tmp_path):
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    write(PaintDefect(random_run(), images), tmp_path)
    with opened(browser, tmp_path) as page:
        page.locator("canvas[tabindex]").click()
        page.get_by_role("alert").get_by_text("There is no kernel, and this page was saved without a model").wait_for()


def test_a_kernel_that_fails_says_why():
    widget = PaintDefect(random_run(), torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    sent = []
    widget.send = lambda content, buffers=(): sent.append(content)
    widget._handle_custom_msg({"kind": "image", "id": 3}, [b"too few"])
    assert (sent[0]["kind"], sent[0]["id"]) == ("error", 3)
    assert re.search("ValueError: .*reshape", sent[0]["text"])


def test_images_must_fit():
    with pytest.raises(ValueError, match="this run takes 32 x 32 pixels"):
        PaintDefect(random_run(), torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    with pytest.raises(ValueError, match="give uint8"):
        PaintDefect(random_run(), torch.zeros(1, 3, 32, 32))


def test_the_shipped_model_is_small():
    assert MODEL.stat().st_size <= 2_000_000
    assert load_exported(MODEL).facts["size"] == 64
