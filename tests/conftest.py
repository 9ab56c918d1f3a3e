"""What holds for all tests. Their networks are tiny: one thread is fastest, above all on a busy machine."""

import multiprocessing
import os
import shutil
import sys

import pytest
from hypothesis import HealthCheck, settings
from waiting import PATIENCE

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported
# How long an example takes to draw or to test says how busy the machine is.
settings.register_profile("any machine", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
BROWSERS = ("chromium", "google-chrome", "chromium-browser", "chrome")
# Fixtures of several files; runs are trained once for all.
pytest_plugins = ["faults", "photographs", "pictures", "studies"]
FLAGS = [
    "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # there is no other host
]  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    """A real browser."""
    from browsing import needed
    from playwright.sync_api import Error, sync_playwright

    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    needed(f"no browser found; install one of {', '.join(BROWSERS)}", program is not None)
    with sync_playwright() as playwright:
        options = {"executable_path": program, "args": FLAGS, "timeout": 1000 * PATIENCE}
        try:
            browser = playwright.chromium.launch(chromium_sandbox=True, **options)
        except Error:  # there can be none, as for root
            browser = playwright.chromium.launch(chromium_sandbox=False, **options)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address():
    """The built book, served on this machine."""
    from browsing import HTML, needed, served

    needed("the book is not built; run make book first", (HTML / "index.html").exists())
    with served(HTML) as address:
        yield address


@pytest.fixture
def elsewhere(tmp_path, monkeypatch) -> None:
    """Work in an empty folder, with no data sets but the embedded one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ATTNAD_DATA", str(tmp_path / "data"))


@pytest.fixture(scope="session")
def lite0():
    """EfficientNet-Lite0 with ImageNet's weights."""
    pytest.importorskip("timm", reason="the extra lite0 is not installed")
    from attnad.config import AttentionConfig
    from attnad.models import build_encoder

    return build_encoder(AttentionConfig(encoder="efficientnet-lite0")).eval()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A page that never answers fails its test, by name: Playwright waits for a script's end without a limit."""
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(2 * PATIENCE))


def pytest_collection_finish() -> None:
    """Processes are forked from a server that has imported all they need once: seconds less for each."""
    modules = [name for name in ("test_engines", "faults", "test_run") if name in sys.modules]
    if "forkserver" in multiprocessing.get_all_start_methods():
        modules = ["attnad.cli", "attnad.study.engines", "attnad.report.follow", "skimage.data", "timm", *modules]
        multiprocessing.get_context("forkserver").set_forkserver_preload(modules)
