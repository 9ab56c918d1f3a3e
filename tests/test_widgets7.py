"""The widgets with ipywidgets 7.7.1 and anywidget 0.9.0, which Colab has: in Python, and in the pages of that version.

Both are installed into a folder of their own, which a second Python finds before the others'.
"""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from browsing import needed, served, slide, watch, window
from made import NAMES
from playwright.sync_api import Browser

COLLECT = Path(__file__).parents[1] / "book/web/collect.py"
VERSIONS = ("ipywidgets==7.7.1", "anywidget==0.9.0", "ipython_genutils==0.2.0")  # the last is ipywidgets 7's
SCRIPTS = {"@jupyter-widgets/html-manager@0.20.6": "dist/embed-amd.js", "requirejs@2.3.8": "require.js"}

PROGRAM = """
import sys
from unittest import mock
import ipywidgets, pytest, torch, traitlets
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import display
from IPython.utils.capture import capture_output
from ipywidgets.embed import embed_minimal_html
from made import explored
from made import random_images, random_run
from attnad.widgets import AttentionExplorer, PaintDefect

assert ipywidgets.__version__ == "7.7.1"
InteractiveShell.instance()
explorer, run = AttentionExplorer(**explored(), index=2), random_run()
paint = PaintDefect(run, random_images(2))

for widget in (explorer, paint):  # shown as a widget, and as a picture where there are none
    with capture_output() as shown:
        display(widget)
    (output,) = shown.outputs
    assert output.data["application/vnd.jupyter.widget-view+json"]["model_id"] == widget.model_id
    assert output.data == widget._repr_mimebundle_()
    assert set(output.data) == {"text/plain", "application/vnd.jupyter.widget-view+json", "image/png"}

def tell(widget, method, buffers=(), **data):  # a message of the page
    widget._handle_msg({"content": {"data": {"method": method, **data}}, "buffers": list(buffers)})

tell(explorer, "update", state={"threshold": 0.25, "index": 1, "view": "swipe"}, buffer_paths=[])
assert (explorer.threshold, explorer.index, explorer.view) == (0.25, 1, "swipe")
sent = []
explorer._send = lambda message, buffers=None: sent.append(message)
with mock.patch.object(type(explorer.comm), "kernel", True):  # without one, nothing is sent
    explorer.threshold = 0.5
assert [message["state"] for message in sent if message["method"] == "update"] == [{"threshold": 0.5}]
with pytest.raises(traitlets.TraitError, match="there is no image 4"):
    explorer.index = 4
with pytest.raises(ValueError, match="4 images and 1 masks"):
    AttentionExplorer(**explored() | {"masks": [None]})

answers = []
paint.send = lambda content, buffers=(): answers.append((content, buffers))
tell(paint, "custom", content={"kind": "hello"})
pixels = random_images(1).permute(0, 2, 3, 1).contiguous().numpy()
tell(paint, "custom", [memoryview(pixels.tobytes())], content={"kind": "image", "id": 1})
assert answers[0][0] == {"kind": "kernel"}
assert answers[1][0]["scores"][0] == pytest.approx(run.score(random_images(1)).image["adgan"].item(), abs=1e-5)

page = '<!doctype html><html><head><meta charset="utf-8"><title>{title}</title></head>'
page += '<body><script src="require.js"></script>{snippet}</body></html>'
embed_minimal_html(
    sys.argv[1], [explorer, paint], template=page, drop_defaults=False, requirejs=False, embed_url="embed-amd.js"
)
"""


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the packages."""
    folder = tmp_path_factory.mktemp("widgets7")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, *VERSIONS]
    done = subprocess.run(command, capture_output=True, text=True)
    needed(f"{', '.join(VERSIONS)} could not be installed; is PyPI out of reach? {done.stderr}", not done.returncode)
    return folder


@pytest.fixture(scope="module")
def site(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What works in Python is asked there; it leaves a page with both widgets."""
    folder = tmp_path_factory.mktemp("site")
    path = os.pathsep.join(map(str, (packages, Path(__file__).parent)))
    command = [sys.executable, "-c", PROGRAM, folder / "index.html"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_in_python(site: Path):
    assert (site / "index.html").exists()


def test_in_a_page(browser: Browser, packages: Path, site: Path, tmp_path: Path):
    """The widget manager of ipywidgets 7, without a kernel and without other hosts."""
    npm = runpy.run_path(str(COLLECT))["NPM"]
    for package, script in SCRIPTS.items():
        done = subprocess.run([*npm, "pack", "--silent", package], cwd=tmp_path, capture_output=True, text=True)
        needed(f"{package} could not be fetched; is npm's registry out of reach? {done.stderr}", not done.returncode)
        with tarfile.open(tmp_path / done.stdout.split()[-1]) as archive:
            content = archive.extractfile(f"package/{script}").read()
        (site / Path(script).name).write_bytes(content)
    shutil.copy(packages / "anywidget/nbextension/index.js", site / "anywidget.js")
    with served(site) as address:
        context = window(browser, viewport={"width": 1000, "height": 900})
        page = context.new_page()
        faults = watch(page, address)
        page.goto(f"{address}/index.html")
        explorer, paint = (page.get_by_role("region", name=name) for name in ("Explorer of attention", "Paint a"))
        explorer.get_by_role("heading", name=NAMES[1]).wait_for()
        before = explorer.locator("tbody").inner_text()
        slide(page, "Threshold", 0.3)
        assert explorer.locator("tbody").inner_text() != before
        explorer.get_by_role("option", name="defect/scratch").click()
        explorer.get_by_role("heading", name="defect/scratch").wait_for()
        paint.get_by_role("button", name="Normal image 2").click()
        assert len(paint.locator(".meter strong").all_inner_texts()) == 2
        context.close()
    assert faults == []
