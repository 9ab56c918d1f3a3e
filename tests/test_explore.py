"""The explorer of attention maps: what Python hands over, and what a reader does with it in a real browser."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
import traitlets
from browsing import opened, slide, write
from made import NAMES, explored
from PIL import Image

from attnad.widgets import AttentionExplorer

# --- in Python -------------------------------------------------------------------------------------------------------


def test_what_travels_is_compact_and_within_half_a_step():
    given = explored()
    widget = AttentionExplorer(**given)
    assert len(widget._images) == 4 * 16 * 16 * 3
    assert (
        np.frombuffer(widget._images, np.uint8).reshape(4, 16, 16, 3) == given["images"].permute(0, 2, 3, 1).numpy()
    ).all()
    maps = torch.rand(4, 16, 16, generator=torch.Generator().manual_seed(1))
    widget = AttentionExplorer(given["images"], maps)
    error = np.abs(np.frombuffer(widget._maps, np.uint8).reshape(maps.shape) / 255 - maps.numpy()).max()
    assert 1 / 1000 < error <= 1 / 510 + 1e-6
    assert np.allclose(widget._facts["scores"], maps.mean((1, 2)), atol=1e-3)
    assert widget._facts["known"] == [False] * 4


def test_gray_images_travel_as_one_channel():
    widget = AttentionExplorer(explored()["images"][:2], explored()["maps"][:2])
    assert (widget._facts["channels"], len(widget._images)) == (1, 2 * 16 * 16)


def test_masks_travel_as_bits():
    widget = AttentionExplorer(**explored())
    bits = np.unpackbits(np.frombuffer(widget._masks, np.uint8), bitorder="little").reshape(4, 16, 16)
    assert (bits[0].astype(bool) == explored()["masks"][0].numpy()).all()
    assert bits[1:].sum() == 0
    assert widget._facts["known"] == [True, True, False, False]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"images": torch.zeros(4, 3, 16, 16)}, "give uint8"),
        ({"images": torch.zeros(4, 1, 16, 16, dtype=torch.uint8)}, "give uint8"),
        ({"images": torch.zeros(0, 3, 16, 16, dtype=torch.uint8)}, "give uint8"),
        ({"maps": torch.full((4, 16, 16), 1.1)}, r"maps have values outside \[0, 1\]"),
        ({"maps": torch.full((4, 16, 16), torch.nan)}, "or NaN"),
        ({"maps": torch.zeros(3, 16, 16)}, "give one for each image"),
        ({"steps": ["epoch 1", "epoch 2"]}, r"each image at each of the 2 steps, \[4, 16, 16\]"),
        ({"maps": torch.zeros(2, 4, 16, 16)}, "give one for each image, "),
        ({"masks": [None]}, "4 images and 1 masks"),
        ({"masks": [torch.zeros(8, 8)] + [None] * 3}, "masks of the images' size"),
        ({"scores": [1.0]}, "4 images and 1 scores"),
        ({"scores": [1, 2, 3, float("nan")]}, "give finite numbers"),
        ({"names": ["a"]}, "4 images and 1 names"),
    ],
)
def test_what_does_not_fit_is_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        AttentionExplorer(**explored() | wrong)


def test_state_can_be_set_and_wrong_state_is_refused():
    widget = AttentionExplorer(**explored(), index=3, threshold=0.25, view="swipe")
    assert (widget.index, widget.threshold, widget.view) == (3, 0.25, "swipe")
    for name, value in (
        ("index", 4),
        ("index", -1),
        ("step", 1),
        ("threshold", 1.5),
        ("view", "both"),
        ("colormap", "jet"),
    ):
        with pytest.raises(traitlets.TraitError):
            setattr(widget, name, value)


def test_a_still_picture_where_no_widget_is_shown():
    bundle, *_ = AttentionExplorer(**explored(), index=2)._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    picture = np.array(Image.open(io.BytesIO(base64.b64decode(bundle["image/png"]))))
    assert picture.shape == (32, 2 * (16 + 4 + 16), 3)
    assert (picture[::2, :32:2] == explored()["images"][2].permute(1, 2, 0).numpy()).all()


# --- in the browser --------------------------------------------------------------------------------------------------


@pytest.fixture
def page(browser, tmp_path):
    write(AttentionExplorer(**explored()), tmp_path)
    with opened(browser, tmp_path) as page:
        yield page


def numbers(page) -> list[list[str]]:
    return [row.locator("td").all_inner_texts() for row in page.locator(".attnad tbody tr").all()]


def area(page, kind: str) -> float:
    """Pixels inside an outline of the first picture, counted by the browser."""
    return page.evaluate(
        """(kind) => {
          const segments = document.querySelector(`.frame path.${kind}:not(.halo)`).getAttribute("d");
          const upright = [...segments.matchAll(/M(\\d+) (\\d+)V(\\d+)/g)].map((m) => m.slice(1).map(Number));
          // Each upright edge adds or takes what lies to its left: pair them along each row.
          let area = 0;
          for (let y = 0; y < 64; y++) {
            const xs = upright.filter(([x, y0, y1]) => y0 <= y && y < y1).map(([x]) => x).sort((a, b) => a - b);
            for (let i = 0; i < xs.length; i += 2) area += xs[i + 1] - xs[i];
          }
          return area;
        }""",
        kind,
    )


def test_threshold_moves_numbers_and_outline(page):
    # The defect has 16 pixels, 8 of them at 0.8 and 8 at 0.4, and 16 normal pixels beside it are at 0.4 too.
    assert numbers(page)[0] == ["100.0 %", "50.0 %", "0.0 %"]
    assert (area(page, "found"), area(page, "truth")) == (8, 16)
    slide(page, "Threshold", 0.3)
    assert numbers(page) == [["50.0 %", "100.0 %", "6.7 %"], ["50.0 %", "100.0 %", f"{100 * 16 / (512 - 16):.1f} %"]]
    assert (area(page, "found"), area(page, "truth")) == (32, 16)
    assert page.evaluate("[model.get('threshold'), model.saved > 0]") == [0.3, True]
    slide(page, "Threshold", 0.9)
    assert numbers(page)[0] == ["–", "0.0 %", "0.0 %"]
    assert area(page, "found") == 0
    page.wait_for_function("document.querySelector('[role=status]').textContent.includes('recall 0.0 %')")


def test_state_set_from_python_shows(page):
    page.evaluate("model.set('index', 1); model.set('view', 'side by side'); model.set('threshold', 0.05)")
    page.get_by_role("heading", name="good").wait_for()
    assert page.get_by_label("Side by side").is_checked()
    assert page.locator("figure:visible").count() == 2
    assert numbers(page)[0] == ["0.0 %", "–", "100.0 %"]
    assert page.get_by_label("Threshold").input_value() == "0.05"


def test_the_slider_leads_through_the_training(browser, tmp_path):
    given = explored()
    steps = torch.stack([torch.zeros_like(given["maps"]), given["maps"]])
    widget = AttentionExplorer(**given | {"maps": steps}, steps=["epoch 1", "epoch 9"])
    assert widget.step == 1
    write(widget, tmp_path)
    with opened(browser, tmp_path) as page:
        assert numbers(page)[0] == ["100.0 %", "50.0 %", "0.0 %"]
        slider = page.get_by_label("Maps of")
        slider.focus()
        page.keyboard.press("ArrowLeft")
        page.get_by_text("epoch 1", exact=True).wait_for()
        page.wait_for_function("document.querySelector('[role=status]').textContent.includes('epoch 1')")
        assert page.evaluate("model.get('step')") == 0
        assert numbers(page) == [["–", "0.0 %", "0.0 %"]] * 2, "nothing is flagged yet"
        assert area(page, "found") == 0
        page.evaluate("model.set('step', 1)")
        page.get_by_text("epoch 9", exact=True).wait_for()
        assert area(page, "found") == 8


def test_without_moments_no_slider_for_them(page):
    assert page.get_by_text("Maps of", exact=True).is_hidden()


def test_gallery_sorts_and_names_are_text(page):
    def order() -> list[str]:
        return page.locator("[role=option]").evaluate_all("nodes => nodes.map(node => node.title)")

    assert order() == [NAMES[i] for i in (2, 0, 3, 1)]
    page.get_by_label("Sorted by").select_option("name")
    assert order() == [NAMES[i] for i in (2, 0, 1, 3)]
    page.locator("[role=option]").first.click()
    page.get_by_role("heading", name="<img").wait_for()
    assert page.locator(".attnad img").count() == 0
    assert numbers(page)[0] == ["–"] * 3, "no mask is known"


def test_the_pointer_reads_the_map(page):
    box = page.locator(".frame").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 4.5 / 16, box["y"] + box["height"] * 5.5 / 16)
    page.get_by_text("map 0.80 at column 4, row 5: flagged").wait_for()
    page.mouse.move(box["x"] + box["width"] * 10.5 / 16, box["y"] + box["height"] * 5.5 / 16)
    page.get_by_text("map 0.40 at column 10, row 5: not flagged").wait_for()


def test_all_of_it_by_keyboard(page):
    seen = []
    for _ in range(8):
        page.keyboard.press("Tab")
        focused = page.evaluate(
            """() => { const node = document.activeElement, style = getComputedStyle(node.closest("label") ?? node);
            const own = getComputedStyle(node);
            return [node.getAttribute("aria-label") ?? node.closest("label").innerText.split("\\n")[0],
                    own.outlineStyle !== "none" || style.outlineStyle !== "none"]; }"""
        )
        seen.append(focused[0])
        assert focused[1], f"{focused[0]} shows no focus"
        if focused[0].startswith("Image and map"):
            page.keyboard.press("ArrowLeft")
            page.get_by_text("map 0.10 at column 7, row 8").wait_for()
            page.keyboard.press("Shift+ArrowLeft")
            page.get_by_text("at column 0, row 8").wait_for()
        elif focused[0] == "Overlay":
            page.keyboard.press("ArrowRight")
            assert page.evaluate("model.get('view')") == "side by side"
            page.keyboard.press("ArrowLeft")
        elif focused[0] == "Threshold":
            page.keyboard.press("ArrowRight")
            assert page.evaluate("model.get('threshold')") == pytest.approx(0.505)
        elif focused[0] == "Images":
            page.keyboard.press("ArrowRight")
            page.get_by_role("heading", name="other/grass").wait_for()
            page.keyboard.press("Home")
            page.get_by_role("heading", name="<img").wait_for()
            page.keyboard.press("End")
            page.get_by_role("heading", name="good").wait_for()
            break
    assert [name.split(":")[0] for name in seen] == [
        "Overlay", "Image and map", "Threshold", "Opacity", "Colours", "Sorted by", "Images",
    ]  # fmt: skip


def test_swipe_uncovers_the_map(page):
    page.get_by_role("radio", name="Swipe").check()
    box = page.locator(".frame").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2, steps=3)
    page.mouse.up()
    page.wait_for_function("Math.abs(parseFloat(document.querySelector('.divider').style.left) - 25) < 1")
    clipped = page.locator("canvas.map").first.evaluate("node => parseFloat(node.style.clipPath.split(' ').at(-1))")
    assert clipped == pytest.approx(25, abs=1)


def test_phone_by_touch(browser, tmp_path):
    write(AttentionExplorer(**explored()), tmp_path)
    with opened(browser, tmp_path, width=360, has_touch=True, is_mobile=True) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.get_by_role("option", name="other/grass").tap()
        page.get_by_role("heading", name="other/grass").wait_for()
        page.locator(".frame").first.tap(position={"x": 5, "y": 5})
        page.get_by_text("map 0.10 at column 0, row 0").wait_for()


@pytest.mark.parametrize(
    ("scheme", "mark", "dark"),
    [
        ("light", "", False), ("dark", "", True),
        ("dark", "document.documentElement.dataset.theme = 'light'", False),
        ("light", "document.documentElement.dataset.theme = 'dark'", True),
        ("light", "document.body.dataset.jpThemeLight = 'false'", True),
    ],
)  # fmt: skip
def test_dark_where_the_page_is_dark(browser, tmp_path, scheme, mark, dark):
    write(AttentionExplorer(**explored()), tmp_path)
    with opened(browser, tmp_path, color_scheme=scheme) as page:
        page.evaluate(f"() => {{ {mark} }}")
        ink, card = page.locator(".attnad").evaluate(
            "n => [getComputedStyle(n).color, getComputedStyle(n).backgroundColor].map(c => +c.match(/[\\d.]+/g)[1])"
        )
        assert (ink > card) is dark
        assert abs(ink - card) > 150, "text must stand out"
