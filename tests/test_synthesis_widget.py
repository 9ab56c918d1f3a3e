"""The widget of synthetic anomalies in Python: its state, what it refuses, its still picture."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
import traitlets
from PIL import Image
from synthesising import SIDE, drawn, expected, images

from attnad.widgets import Synthesis

# --- in Python -------------------------------------------------------------------------------------------------------


def test_at_first_nothing_is_changed():
    widget = Synthesis(images())
    x, x1, x2, target = widget._made()
    assert (x1 - x).abs().max() < 1e-5
    assert (x2 - x).abs().max() < 1e-5
    assert widget.box == [8, 8, 24, 24]
    assert (target == 0).sum() == 16 * 16


@pytest.mark.parametrize(
    "wrong",
    [
        torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 64, dtype=torch.uint8),
        torch.zeros(1, 3, 30, 30, dtype=torch.uint8),
    ],
)  # fmt: skip
def test_images_must_fit(wrong):
    with pytest.raises(ValueError, match=r"give (uint8|square)"):
        Synthesis(wrong)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("index", 3, "there is no image 3; choose 0 to 2"), ("index", -1, "there is no image -1"),
        ("quarter_turns", 4, "quarter_turns"), ("grid", 3, "grid"), ("filling", "ones", "filling"),
        ("brightness", 1.6, "brightness"), ("hue", -0.3, "hue"), ("contrast", float("nan"), "contrast is NaN"),
        ("order", [0, 1], "for 1 x 1 patches give each of 0 to 0 once"), ("order", [1], "does not fit the grid"),
        ("box", [0, 0, 0, 5], "is no rectangle"), ("box", [0, 0, 5, 33], "from 0 to 32"), ("box", [1, 2, 3], "is no"),
        ("box", [0.5, 0, 5, 5], "box"),
    ],
)  # fmt: skip
def test_wrong_state_is_refused(name, value, said):
    widget = Synthesis(images())
    before = getattr(widget, name)
    with pytest.raises(traitlets.TraitError, match=said):
        setattr(widget, name, value)
    assert getattr(widget, name) == before
    with pytest.raises(traitlets.TraitError, match=said):
        Synthesis(images(), **{name: value})


def test_a_new_grid_draws_an_order_unless_one_comes_with_it():
    widget = Synthesis(images(), grid=2)
    assert sorted(widget.order) == [0, 1, 2, 3]
    assert widget.order != [0, 1, 2, 3]
    widget.grid = 4
    assert len(widget.order) == 16
    assert Synthesis(images(), grid=2, order=[3, 2, 1, 0]).order == [3, 2, 1, 0]
    widget.set_state({"grid": 2, "order": [1, 0, 2, 3]})  # as the page sends it
    assert (widget.grid, widget.order) == (2, [1, 0, 2, 3])
    widget.set_state({"grid": 1, "order": [0]})
    assert (widget.grid, widget.order) == (1, [0])


def test_the_still_picture():
    chosen = drawn(2)
    bundle, *_ = Synthesis(images(), **chosen)._repr_mimebundle_()
    picture = np.array(Image.open(io.BytesIO(base64.b64decode(bundle["image/png"]))))[::2, ::2]
    for i, wanted in enumerate(expected(chosen)):
        assert np.abs(picture[:, i * (SIDE + 4) :][:, :SIDE] - wanted).max() < 1
