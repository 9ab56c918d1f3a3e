"""The widgets in JupyterLab and Notebook 7: a real server, kernel and browser that reaches no other host.

One notebook holds all the widgets, two paintings among them: an ONNX file answers one, a run that the notebook trains,
for seconds only, answers the other with PyTorch. The last cell asks the kernel what a test wants to know.

More than 300 lines: one server and one open notebook serve all of them.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nbformat
import numpy as np
import psutil
import pytest
from browsing import needed, watch, window
from playwright.sync_api import Browser, Locator, Page, expect
from waiting import PATIENCE, until

MODEL = Path(__file__).parents[1] / "book/web/textures.onnx"

CELLS = [
    f"""
from dataclasses import replace
from pathlib import Path
from attnad.detectors import recipe
from attnad.data import load_test
from attnad.widgets import AttentionExplorer, PaintDefect
from attnad.run.export import load_exported
from attnad.run.run import train_run

exported = load_exported(Path({str(MODEL)!r}))
test = load_test("textures", size=64)
chosen = [0, 1, 67, 90, 110]
scores = exported.score(test.images[chosen])
masks = [mask if there else None for mask, there in zip(test.masks[chosen], test.has_mask[chosen], strict=True)]
explorer = AttentionExplorer(
    test.images[chosen], scores.maps, masks, scores.image["adgan"].tolist(), [test.kinds[i] for i in chosen], index=2)
explorer""",
    "from_file = PaintDefect(exported)\nfrom_file",
    """
config = recipe("quick", "textures")
config = replace(config, size=32, attention=replace(config.attention, epochs=2, width=8))
run = train_run(replace(config, adgan=replace(config.adgan, epochs=1)), Path("run"), progress=False)
from_torch = PaintDefect(run)
from_torch""",
    "from attnad.widgets import Synthesis\nsynthesis = Synthesis(test.images[:2])\nsynthesis",
    """
from attnad.widgets import ScoreThreshold
groups = ["good" if kind == "good" else "anomalous" for kind in explorer._facts["names"]]
histograms = ScoreThreshold(explorer._facts["scores"], groups, exported.facts["threshold"])
histograms""",
    "",
]


def answers(address: str) -> bool:
    try:
        urllib.request.urlopen(address, timeout=PATIENCE).close()
    except OSError:
        return False
    return True


def stop(server: subprocess.Popen) -> list[psutil.Process]:
    """End the server as `kill` does, and give what it leaves behind after that, which is ended too."""
    started = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
    server.terminate()
    _, left = psutil.wait_procs(started, timeout=PATIENCE)
    for process in left:
        process.kill()
    server.wait()
    return left


@pytest.fixture(scope="module", params=["lab", "notebook"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """JupyterLab or Notebook with settings of its own; gives its address and the notebook's path there."""
    app = request.param
    there = subprocess.run([sys.executable, "-m", "jupyter", app, "--version"], capture_output=True).returncode == 0
    needed(f"jupyter {app} is not there; make test installs it", there)
    folder = tmp_path_factory.mktemp(app)
    names = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR", "IPYTHONDIR")
    environment = os.environ | {name: str(folder / name) for name in names}
    # Else cells come, go and move while they are scrolled to, and Lab asks, over the notebook, for news.
    settings = {"notebook-extension/tracker": {"windowingMode": "none"}}
    if app == "lab":
        settings["apputils-extension/notification"] = {"fetchNews": "false", "checkForUpdates": False}
    for name, values in settings.items():
        file = folder / f"JUPYTERLAB_SETTINGS_DIR/@jupyterlab/{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(values))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell.strip()) for cell in CELLS])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    (folder / "root").mkdir()
    nbformat.write(notebook, folder / "root" / "x.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address, token = f"http://127.0.0.1:{port}", secrets.token_hex()
    command = [
        sys.executable, "-m", "jupyter", app, "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
        "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder / 'root'}",
        f"--{'LabApp' if app == 'lab' else 'JupyterNotebookApp'}.expose_app_in_browser=True",
    ]  # fmt: skip
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        status = f"{address}/api/status?token={token}"
        until(lambda: answers(status), lambda: process.poll() is None, f"See {folder / 'log.txt'}")
        yield address, f"{'lab/tree' if app == 'lab' else 'notebooks'}/x.ipynb?token={token}"
    finally:
        left = stop(process)
    assert left == [], "the server or its kernels did not end"


@pytest.fixture(scope="module")
def lab(browser: Browser, server: tuple[str, str]) -> Iterator[Page]:
    """The notebook, opened and run from the top to the bottom."""
    address, path = server
    context = window(browser, viewport={"width": 1400, "height": 1000})
    page = context.new_page()
    page.add_init_script("Error.stackTraceLimit = Infinity")
    faults = watch(page, address)
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.goto(f"{address}/{path}")
    page.wait_for_function("window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel")
    page.evaluate("jupyterapp.shell.currentWidget.sessionContext.ready")
    page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')")
    page.wait_for_function("document.querySelectorAll('.attnad').length === 5")
    yield page
    context.close()
    assert [fault for fault in faults if not jupyters_own(fault, address)] == []


def jupyters_own(fault: str, address: str) -> bool:
    """Whether only Jupyter's own scripts led to an error, as to two of Notebook's under load; a widget's is `blob:`."""
    called = re.findall(r"\n    at .*?((?:blob:)?https?:[^\s)]+)", fault)
    own = (f"{address}/static/", f"{address}/lab/extensions/@jupyter")
    return called != [] and all(place.startswith(own) for place in called)


def python(lab: Page, code: str) -> str:
    """Run code in the notebook's last cell; gives what it prints."""
    outputs = lab.evaluate(
        """async (code) => {
          const notebook = jupyterapp.shell.currentWidget.content;
          notebook.activeCellIndex = notebook.widgets.length - 1;
          notebook.activeCell.model.sharedModel.setSource(code);
          await jupyterapp.commands.execute("notebook:run-cell");
          return notebook.activeCell.model.outputs.toJSON();
        }""",
        code,
    )
    assert all(output["output_type"] == "stream" for output in outputs), outputs
    return "".join("".join(output["text"]) for output in outputs)


def reaches_python(lab: Page, trait: str, wanted: float) -> None:
    """A value of the page's arrives in Python; it waits there until the one before it has been answered."""
    until(lambda: float(python(lab, f"print({trait})")) == pytest.approx(wanted, abs=1e-6), why=f"{trait} was {wanted}")


def cell(lab: Page, number: int) -> Locator:
    """The widget under a cell, in sight."""
    widget = lab.locator(".attnad").nth(number)
    widget.scroll_into_view_if_needed()
    return widget


def cells(lab: Page) -> list[str]:
    """What stands in the notebook's cells, and which is the active one: what shortcuts would change."""
    return lab.evaluate(
        """() => { const notebook = jupyterapp.shell.currentWidget.content;
        return [...notebook.widgets.map((cell) => cell.model.sharedModel.getSource()), notebook.activeCellIndex,
                notebook.mode, jupyterapp.shell.currentWidget.context.path]; }"""
    )


def look(explorer: Locator) -> tuple[str, str]:
    """What the explorer shows: its numbers and the outline of what is flagged."""
    outline = explorer.locator("path.found:not(.halo)").first.get_attribute("d")
    return explorer.locator("tbody").inner_text(), outline or ""


def test_a_widgets_fault_is_not_taken_for_jupyters():
    address = "http://127.0.0.1:8888"
    manager = f"{address}/lab/extensions/@jupyter-widgets/jupyterlab-manager/static/7.js"
    jupyter = f"TypeError: no\n    at d.load ({address}/static/main.js?v=1:5:2)\n    at {manager}:9:1"
    assert jupyters_own(jupyter, address)
    assert not jupyters_own(f"{jupyter}\n    at render (blob:{address}/6b1f:3:1)", address)
    assert not jupyters_own(f"{jupyter}\n    at load ({address}/lab/extensions/anywidget/static/1.js:3:1)", address)
    assert not jupyters_own(f"{jupyter}\n    at https://elsewhere.org/x.js:1:1", address)
    assert not jupyters_own("Failed to load resource", address)
    assert not jupyters_own(f"asked for {address}/static/x.js", address)


def test_threshold_moved_in_the_page_reaches_python(lab: Page):
    explorer = cell(lab, 0)
    before = look(explorer)
    box = explorer.get_by_label("Threshold").bounding_box()
    lab.mouse.click(box["x"] + 0.3 * box["width"], box["y"] + box["height"] / 2)
    lab.wait_for_function("document.querySelector('.attnad output').textContent !== '0.500'")
    clicked = float(explorer.get_by_label("Threshold").input_value())
    lab.keyboard.press("ArrowRight")  # the click left the focus on the slider
    explorer.get_by_text(f"{clicked + 0.005:.3f}").wait_for()
    numbers, outline = look(explorer)
    assert numbers != before[0]
    assert outline != before[1]
    shown = float(explorer.get_by_label("Threshold").input_value())
    assert 0.25 < shown < 0.35
    reaches_python(lab, "explorer.threshold", shown)


def test_the_page_follows_python(lab: Page):
    explorer = cell(lab, 0)
    python(lab, "explorer.threshold, explorer.index, explorer.view = 0.25, 3, 'side by side'")
    name = python(lab, "print(test.kinds[chosen[3]])").strip()
    explorer.get_by_role("heading", name=name).wait_for()
    expect(explorer.get_by_label("Threshold")).to_have_value("0.25")
    expect(explorer.get_by_label("Side by side")).to_be_checked()
    python(lab, "explorer.view = 'overlay'")
    lab.wait_for_function("document.querySelectorAll('.attnad figure')[1].checkVisibility() === false")
    said = python(lab, "try:\n    explorer.index = 9\nexcept Exception as error:\n    print(error)")
    assert said.strip() == "there is no image 9; choose 0 to 4"
    assert explorer.get_by_role("heading", name=name).is_visible()


def test_by_keyboard_and_no_key_is_the_notebooks(lab: Page):
    explorer = cell(lab, 0)
    python(lab, "explorer.threshold = 0.5; explorer.index = 0")
    explorer.get_by_text("0.500").wait_for()
    before = cells(lab)
    # With the cell itself in focus, b is Lab's: a cell more, which d d takes away. So its shortcuts are on.
    lab.evaluate("jupyterapp.shell.currentWidget.content.activeCell.node.focus()")
    lab.keyboard.press("b")
    lab.wait_for_function(f"jupyterapp.shell.currentWidget.content.widgets.length === {len(CELLS) + 1}")
    lab.keyboard.press("d")
    lab.keyboard.press("d")
    lab.wait_for_function(f"jupyterapp.shell.currentWidget.content.widgets.length === {len(CELLS)}")

    lab.evaluate("jupyterapp.shell.currentWidget.content.activeCellIndex = 0")
    explorer.get_by_label("Threshold").focus()
    before = cells(lab)
    for key in ("ArrowRight", "ArrowUp", "ArrowRight"):
        lab.keyboard.press(key)
    assert float(explorer.get_by_label("Threshold").input_value()) == pytest.approx(0.515)
    explorer.locator(".stage").focus()
    for key in ("ArrowLeft", "ArrowDown", "ArrowDown"):
        lab.keyboard.press(key)
    explorer.get_by_text("at column 31, row 34").wait_for()
    for place in (".stage", ".gallery", ".scale input"):
        explorer.locator(place).focus()
        for key in ("a", "b", "x", "c", "v", "d", "d", "i", "i", "m", "y", "z", "Space", "Enter", "Shift+Enter"):
            lab.keyboard.press(key)
        assert cells(lab) == before, place
    for _ in range(20):  # and Tab leads out of it
        lab.keyboard.press("Tab")
    assert lab.evaluate("document.activeElement.closest('.attnad') !== document.querySelector('.attnad')")
    reaches_python(lab, "explorer.threshold", 0.515)


@pytest.mark.parametrize(("number", "name"), [(1, "from_file"), (2, "from_torch")])
def test_a_scratch_is_answered_by_the_kernel(lab: Page, number: int, name: str):
    paint = cell(lab, number)
    meters = paint.locator(".meter strong")
    before = meters.all_text_contents()
    clean = json.loads(python(lab, f"print({name}._facts['scores'][0])"))
    assert [float(text) for text in before] == pytest.approx(clean, abs=6e-4)
    paint = cell(lab, number)
    board = paint.locator("canvas[tabindex]")
    board.hover()  # waits until it has stopped moving
    box = board.bounding_box()
    lab.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.2 * box["height"])
    lab.mouse.down()
    lab.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 0.7 * box["height"], steps=8)
    lab.mouse.up()
    paint.get_by_text("the kernel answered in").wait_for()
    paint.locator(".meters[aria-busy=false]").wait_for()
    was, now = (float(text) for text in paint.locator(".under strong").all_inner_texts())
    if name == "from_file":
        assert now > was + 0.2
    assert meters.all_text_contents()[0] != before[0]
    # What stands there is what the run in the kernel says of the pixels in the page.
    pixels = paint.locator("canvas").first.evaluate(
        "c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data].filter((_, i) => i % 4 < 3)"
    )
    side = int((len(pixels) / 3) ** 0.5)
    painted = np.array(pixels).reshape(side, side, 3).transpose(2, 0, 1).tolist()
    said = python(lab, f"import torch; s = {name}._run.score(torch.tensor([{painted}], dtype=torch.uint8))\n"
                       "print([s.image['adgan'].item(), s.image['attention'].item()])")  # fmt: skip
    assert [float(text) for text in meters.all_text_contents()] == pytest.approx(json.loads(said), abs=6e-4)

    paint.locator("canvas[tabindex]").focus()  # which makes its cell the active one
    state = cells(lab)
    lab.keyboard.press("Control+z")
    paint.get_by_text("Nothing is painted yet.").wait_for()
    paint.locator(".meters[aria-busy=false]").wait_for()
    assert [float(text) for text in meters.all_text_contents()] == pytest.approx(clean, abs=2e-3)
    for key in ("Space", "ArrowRight", "Space", "x", "d", "d"):
        lab.keyboard.press(key)
    paint.locator(".under").get_by_text("Map where you painted").wait_for()
    assert cells(lab) == state


def test_the_other_widgets_reach_python_too(lab: Page):
    for number, slider, trait in ((3, "Brightness", "synthesis.brightness"), (4, "Threshold", "histograms.threshold")):
        before = float(python(lab, f"print({trait})"))
        low, moved = cell(lab, number).get_by_role("slider", name=slider), f"!== {before}"
        low.press("Home")
        low.evaluate(f"input => new Promise(done => setInterval(() => Number(input.value) {moved} && done(), 50))")
        shown = float(low.input_value())
        reaches_python(lab, trait, shown)
        python(lab, f"{trait} = {before}")
        back = f"Math.abs(input.value - {before}) < 1e-6"
        low.evaluate(f"input => new Promise(done => setInterval(() => {back} && done(), 50))")


def test_dark_where_lab_is_dark(lab: Page):
    for theme, dark in (("JupyterLab Dark", True), ("JupyterLab Light", False)):
        lab.evaluate("theme => jupyterapp.commands.execute('apputils:change-theme', { theme })", theme)
        lab.wait_for_function(f"document.body.dataset.jpThemeLight === '{str(not dark).lower()}'")
        ink, card = lab.locator(".attnad").first.evaluate(
            "n => [getComputedStyle(n).color, getComputedStyle(n).backgroundColor].map(c => +c.match(/[\\d.]+/g)[1])"
        )
        assert (ink > card) is dark
        assert abs(ink - card) > 150, "text must stand out"
