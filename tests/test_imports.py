"""Modules import downwards only, and importing them changes nothing."""

from __future__ import annotations

import ast
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import attnad

PACKAGE = Path(__file__).parents[1] / "attnad"

# From the ground up. A module may import those of the rows before its own, and none of its own row. In a package each
# file is one; its own name stands for its __init__.
ROWS = [
    ("errors", "config"),
    ("features.backbones", "features.registration"),
    (
        "training.storage",
        "training.machine",
        "augmentations",
        "losses",
        "metrics",
        "report.plotting",
        "run.calibration",
    ),
    ("data.folders", "data.images", "data.textures", "training.graph", "training.state", "features.stains", "models"),
    ("data.layouts", "training.epochs", "run.drift"),
    ("features.places", "train"),
    ("data.cifar10", "score"),
    ("data",),
    ("data.tiles",),
    (
        "detectors.neighbours",
        "detectors.paper",
        "detectors.gaussian",
        "detectors.strong",
        "report.report",
        "run.self_check",
        "run.region",
    ),
    ("detectors.adapted", "detectors.baselines.attention", "detectors.baselines.networks", "detectors.network"),
    ("detectors.baselines.anogan", "detectors.baselines.autoencoder", "detectors.baselines.cavga"),
    ("detectors.baselines.gamma_vae", "detectors.baselines.lsa", "detectors.baselines.ocgan"),
    ("detectors.baselines.students", "detectors.baselines.superpixels", "detectors.baselines.ulslm"),
    ("detectors.baselines.vevae", "detectors.map", "detectors.dcgan"),
    ("detectors.baselines", "detectors.guided"),
    ("detectors",),
    ("run.run",),
    ("run.export", "report.scoring", "study.bench", "study.tables"),
    ("report.follow", "study.results", "study.processes", "widgets", "detector", "study.moved", "study.records"),
    ("study.summary", "study.plan", "study.compare_anomalib"),
    ("study.claims", "study.engines", "study.choice"),
    ("study.sets",),
    ("study.curves", "study.few", "study.calibration"),
    ("cli.flags",),
    ("cli.bench", "cli.evaluate", "cli.export", "cli.figure", "cli.reproduce", "cli.score", "cli.train"),
    ("cli.arguments",),
    ("cli",),
    ("__main__",),
]
LEVEL = dict.fromkeys(("__init__", "training", "features", "run", "report", "study"), -1) | {
    m: level for level, row in enumerate(ROWS) for m in row
}
FILES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((PACKAGE.parent / "tests").glob("*.py"))


def name_of(path: Path) -> str:
    """Name of a file's module below the package: data.layouts, data for its __init__; all widgets are one."""
    name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
    return "widgets" if name.startswith("widgets.") else name


MODULES = sorted(
    ".".join(["attnad", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")
    for path in FILES
    if path.stem != "__main__"
)
NAMES = {name_of(path) for path in FILES}


def imported(source: str, package: str = "attnad") -> set[str]:
    """Modules of attnad that a file of `package` imports, anywhere in it, even in a function."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            names = [".".join([*start, *filter(None, [node.module]), alias.name]) for alias in node.names]
        for name in names:
            parts = name.split(".")[1:] if name.startswith("attnad.") else []
            known = [
                ".".join(parts[:n]) for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in NAMES | {"widgets"}
            ]
            found |= set(known[:1])
    return found


def test_the_reader_of_imports_finds_them():
    source = """
import attnad.config, numpy
from attnad import losses as l, __version__
def f():
    from attnad.models import ADGAN
    if True:
        from . import data
        from .train import x
"""
    assert imported(source) == {"config", "losses", "models", "data", "train"}
    source = "from ..score import s\nfrom .widgets import w\nfrom . import w"
    assert imported(source, "attnad.report") == {"score", "report"}
    assert imported("from attnad.data import textures\nfrom attnad.data.layouts import x\nfrom attnad import data") == {
        "data.textures", "data.layouts", "data",
    }  # fmt: skip
    assert imported("from attnad.widgets.front import y") == {"widgets"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    module, package = name_of(path), ".".join(["attnad", *path.relative_to(PACKAGE).parts[:-1]])
    assert module in LEVEL, f"give attnad.{module} its place in ROWS of {Path(__file__).name}"
    for other in imported(path.read_text(encoding="utf-8"), package) - {module}:
        assert other in LEVEL, f"give attnad.{other} its place in ROWS of {Path(__file__).name}"
        assert LEVEL[other] < LEVEL[module], f"attnad.{module} must not import attnad.{other}, which stands no lower"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_private_name_crosses_a_file(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("attnad"):
            private = [alias.name for alias in node.names if alias.name.startswith("_") and alias.name != "__version__"]
            assert not private, f"{path.name} imports {private} of {node.module}: make it public there, or move it"


@pytest.mark.parametrize("path", [*FILES, *TESTS], ids=lambda path: str(path.relative_to(PACKAGE.parent)))
def test_a_file_is_short_or_says_why_it_is_not(path):
    text = path.read_text(encoding="utf-8")
    if len(text.splitlines()) > 300:
        assert "More than 300 lines: " in ast.get_docstring(ast.parse(text)), "split it, or give the reason at its head"


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.name)
def test_no_test_file_imports_another(path):
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    assert not {name for name in names if name and name.startswith("test_")}, "what both need goes into tests/made.py"


def run(code: str, folder: Path, *arguments: str) -> dict:
    """Run code in a process whose home, cache, temporary and current folder is `folder`; it prints one line of JSON."""
    places = ("HOME", "USERPROFILE", "LOCALAPPDATA", "TMPDIR", "TEMP", "TMP", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")
    kept = {k: v for k, v in os.environ.items() if k not in ("MPLCONFIGDIR", "TORCH_HOME", "ATTNAD_DATA")}
    environment = kept | {"PYTHONPATH": str(PACKAGE.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= dict.fromkeys(places, str(folder))
    command = [sys.executable, "-c", code, *arguments]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (line,) = result.stdout.splitlines()
    return json.loads(line)


def test_importing_the_package_alone_is_cheap(tmp_path):
    code = "import json, sys, attnad; print(json.dumps(sorted(sys.modules)))"
    loaded = set(run(code, tmp_path))
    assert "attnad" in loaded
    assert not loaded & {"torch", "torchvision", "timm", "matplotlib.pyplot", "numpy"}


def test_the_package_offers_what_a_few_lines_need():
    modules = {path.stem for path in PACKAGE.iterdir()}
    for name, module in attnad.OFFERED.items():
        assert getattr(attnad, name) is getattr(importlib.import_module(f"attnad.{module}"), name)
        assert name in dir(attnad)
        assert name not in modules, f"attnad.{name} would hide a module"
    with pytest.raises(AttributeError, match="no attribute 'Trainer'"):
        attnad.Trainer  # noqa: B018


def test_help_needs_nothing_slow(tmp_path):
    code = """
import contextlib, io, json, sys
from attnad.__main__ import main
for arguments in (["--help"], ["train", "--help"], ["reproduce", "--help"], ["train", "--recipe", "nothing"]):
    sys.argv = ["attnad", *arguments]
    with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO())), contextlib.suppress(SystemExit):
        main()
    if "nothing" not in arguments:
        loaded = sorted(sys.modules)
print(json.dumps(loaded))
"""
    loaded = set(run(code, tmp_path))
    assert "attnad.cli.arguments" in loaded
    assert not loaded & {"torch", "torchvision", "timm", "matplotlib.pyplot", "numpy"}


def test_commands_import_what_few_of_them_need_only_then(tmp_path):
    code = """
import contextlib, io, json, sys
from attnad.cli import main
commands = ["train x", "evaluate x", "score x y --out z", "reproduce table1 --set x", "figure x --out z", "export x z"]
with contextlib.redirect_stderr(io.StringIO()):
    assert [main(command.split()) for command in commands] == 6 * [2]
print(json.dumps(sorted(sys.modules)))
"""
    loaded = set(run(code, tmp_path))
    assert "torch" in loaded
    assert not loaded & {"torchvision", "timm", "matplotlib.pyplot", "skimage", "sklearn", "torch._dynamo"}


def test_importing_has_no_side_effect(tmp_path):
    code = """
import importlib, json, random, sys
import numpy, torch

network = []
def watch(event, arguments):
    if event.startswith(("socket.connect", "socket.getaddrinfo", "socket.gethostby", "urllib.")):
        network.append([event, str(arguments)])
sys.addaudithook(watch)

def state():
    kind, keys, *rest = numpy.random.get_state()
    return [random.getstate(), torch.get_rng_state().tolist(), kind, keys.tolist(), rest, torch.get_num_threads(),
            str(torch.get_default_dtype()), torch.are_deterministic_algorithms_enabled(), torch.is_grad_enabled()]

before = state()
changed = []
for module in sys.argv[1:]:
    importlib.import_module(module)
    if state() != before:
        changed.append(module)
        before = state()
print(json.dumps({"changed": changed, "network": network, "modules": sorted(sys.modules)}))
"""
    result = run(code, tmp_path, *MODULES)
    assert result["changed"] == [], "importing these changed a random generator or a setting of torch"
    assert result["network"] == []
    assert set(MODULES) <= set(result["modules"])
    assert not {"timm", "matplotlib.pyplot", "ray"} & set(result["modules"]), "slow or optional: import it where used"
    # Some versions of torch and Matplotlib make their empty cache folders; nobody may write a file.
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if not path.is_dir()] == []
