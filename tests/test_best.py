"""The best discriminator in the plane: what Python says of a point, and what a reader does with it in a browser."""

from __future__ import annotations

import numpy as np
import pytest
import traitlets
from browsing import opened, repainted, write
from scipy.stats import multivariate_normal

from attnad.widgets import BestDiscriminator


@pytest.fixture
def page(browser, tmp_path):
    write(BestDiscriminator(), tmp_path)
    with opened(browser, tmp_path) as page:
        yield page


def numbers(page) -> list[float]:
    """Both densities, the logit, Mahalanobis distance, and distance from the middle."""
    return [float(text) for text in page.locator(".attnad td").all_inner_texts()]


def covariance(stretch: float, angle: float) -> np.ndarray:
    turn = np.radians(angle)
    axis = np.array([np.cos(turn), np.sin(turn)])
    return stretch * np.outer(axis, axis) + (np.eye(2) - np.outer(axis, axis)) / stretch


def by_scipy(x, y, stretch, angle, noise) -> list[float]:
    shape = covariance(stretch, angle)
    real, fake = (multivariate_normal([0, 0], shape * wide).pdf([x, y]) for wide in (1, 1 + noise**2))
    distance = np.sqrt([x, y] @ np.linalg.inv(shape) @ [x, y])
    return [real, fake, np.log(real / fake), distance, np.hypot(x, y)]


STATES = [
    {"x": 2.0, "y": 2.0, "stretch": 3.0, "angle": 30.0, "noise": 1.5},
    {"x": -3.5, "y": 0.5, "stretch": 1.0, "angle": 0.0, "noise": 0.5},
    {"x": 0.0, "y": 0.0, "stretch": 4.0, "angle": 120.0, "noise": 3.0},
]


@pytest.mark.parametrize("state", STATES)
def test_python_and_the_page_say_what_scipy_says(page, state):
    expected = by_scipy(**state)
    assert BestDiscriminator(**state).logit() == pytest.approx(expected[2])
    for name, value in state.items():
        page.evaluate(f"model.set('{name}', {value})")
    page.wait_for_function(
        "(want) => document.querySelectorAll('.attnad td')[2].textContent === want", arg=f"{expected[2]:.2f}"
    )
    assert numbers(page) == pytest.approx(expected, abs=6e-3)


def test_along_the_ellipse_nothing_changes_but_the_place(page):
    before, logits = numbers(page), set()
    for _ in range(5):
        at = page.evaluate("[model.get('x'), model.get('y')]")
        page.get_by_role("button", name="Walk along the ellipse").click()
        page.wait_for_function("(at) => model.get('x') !== at", arg=at[0])
        repainted(page)
        logits.add(numbers(page)[2])
    assert logits == {before[2]}
    assert numbers(page)[4] != before[4]


def test_the_point_is_dragged_and_moved_by_keys(page):
    box = page.locator(".plane").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + box["height"] * 0.5, steps=4)
    page.mouse.up()
    assert page.evaluate("[model.get('x'), model.get('y')]") == pytest.approx([3, 0], abs=0.1)
    page.get_by_role("slider", name="Point, up").press("End")
    assert page.evaluate("model.get('y')") == 6
    page.get_by_text("says").first.wait_for()
    assert page.evaluate("model.saved") > 0


def test_its_dots_are_as_far_as_it_says(page):
    """The drawn features have the covariance that the sliders ask for, and fakes that of the noise too."""
    page.evaluate("model.set('noise', 2)")
    repainted(page)
    for kind, wide in (("real", 1), ("fake", 5)):
        places = (
            f"[...document.querySelectorAll('circle.{kind}')].map((c) => ['cx', 'cy'].map((k) => c.getAttribute(k)))"
        )
        drawn = np.array(page.evaluate(places), float) * [1, -1]
        assert np.cov(drawn.T) / wide == pytest.approx(covariance(3, 30), abs=0.5)


def test_values_outside_are_refused():
    with pytest.raises(traitlets.TraitError):
        BestDiscriminator(noise=0)
    bundle, *_ = BestDiscriminator()._repr_mimebundle_()
    assert bundle["image/png"]
