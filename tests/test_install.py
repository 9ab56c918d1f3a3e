"""What the commands install, and what error messages tell to install: named in one place, and never attnad itself."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
import yaml
from project import ROOT, name, project, texts

from attnad.cli import main
from attnad.errors import PACKAGES, remedy

EXTRAS = project()["optional-dependencies"]


def packages(extra: str) -> set[str]:
    """Names of the packages that an extra of pyproject.toml lists, those of the extras that it names included."""
    found = set()
    for requirement in EXTRAS[extra]:
        if name(requirement) == project()["name"]:
            found |= set.union(*map(packages, re.search(r"\[([\w,]+)\]", requirement)[1].split(",")))
        else:
            found.add(name(requirement))
    return found


def installed(target: str) -> list[set[str]]:
    """The extras that each step of `make target` installs where nothing is installed yet, in their order."""
    if shutil.which("make") is None:
        pytest.skip("there is no make")
    done = subprocess.run(["make", "-n", "-B", target], cwd=ROOT, capture_output=True, text=True, check=True)
    return [set(extras.split(",")) for extras in re.findall(r"install .*-e '\.\[([\w,]+)\]'", done.stdout)]


def test_dependencies_stand_once():
    p = project()
    for requirement in p["dependencies"] + p["optional-dependencies"]["lite0"]:
        assert re.fullmatch(r"[\w.-]+>=[\w.]+", requirement), f"{requirement}: lower bounds only, for Colab"
    groups = [p["dependencies"], *p["optional-dependencies"].values()]
    names = [name(requirement) for group in groups for requirement in group if name(requirement) != p["name"]]
    assert len(names) == len(set(names)), "a dependency is listed twice in pyproject.toml"
    assert not list(ROOT.glob("*requirements*.txt"))

    conda = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    plain = [name(entry) for entry in conda if isinstance(entry, str)]
    assert set(plain) == {"python", "pip"}, "environment.yml repeats what pyproject.toml lists"
    assert f"python{p['requires-python']}" in conda
    (pip,) = (entry["pip"] for entry in conda if isinstance(entry, dict))
    (install,) = pip
    extras = re.fullmatch(r"-e \.\[([\w,]+)\]", install)[1].split(",")
    assert set(extras) <= set(p["optional-dependencies"])


# The first version without a hole that was published, of what the lists let in before.
MENDED = {
    "filelock": "3.20.3",  # CVE-2025-68146, CVE-2026-22701: what a link in the lock's place names is emptied
    "pillow": "11.3",  # CVE-2025-48379
    "jinja2": "3.1.6",  # CVE-2025-27516
    "jupyterlab": "4.5.7",  # CVE-2026-40171, CVE-2026-42266, CVE-2026-42557: a notebook takes the token
    "notebook": "7.5.6",  # CVE-2026-40171
    "onnx": "1.22",  # CVE-2026-27489, CVE-2026-34445 to -34447: a model reads files outside its folder
    "playwright": "1.56",  # CVE-2025-59288
    "pypdf": "7",  # CVE-2026-134367
    "pytest": "9.0.3",  # CVE-2025-71176
    "ray": "2.56",  # CVE-2025-62593, CVE-2026-57516; tokens are there from 2.52 on
    "scikit-learn": "1.5",  # CVE-2024-5206
    "torch": "2.10",  # CVE-2025-32434, CVE-2026-24747: weights_only runs code
    "tqdm": "4.66.3",  # CVE-2024-34062
}


def test_no_version_with_a_known_hole_is_let_in():
    p = project()
    groups = [p["dependencies"], *p["optional-dependencies"].values()]
    least = {name(each): each.partition(">=")[2].partition(",")[0] for group in groups for each in group}
    for package, mended in MENDED.items():
        assert numbers(least[package]) >= numbers(mended), f"{package}: {mended} is the first without the hole"


def numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


def test_the_package_imports_what_it_requires():
    modules = {"pillow": "PIL", "scikit-image": "skimage"}
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "attnad").rglob("*.py"))
    imported = set(re.findall(r"^ *(?:from|import) (\w+)", code, re.MULTILINE))
    required = {modules.get(package, package) for package in map(name, project()["dependencies"])}
    assert required - imported == {"ipywidgets"}, "anywidget speaks through it in a notebook"
    assert "scikit-learn" in packages("book"), "chapter 1 compares with it"


def test_each_command_installs_what_it_needs():
    assert installed("book") == installed("notebook") == [{"book"}]
    for target in ("test", "pdf", "lint", "chapters", "machines"):
        assert installed(target) == [{"book"}, {"book", "test"}], target
    assert installed("beside") == [{"book"}, {"book", "test"}, {"book", "test", "anomalib"}]
    assert not packages("book") & {"anomalib", "ray", "playwright", "pytest", "ruff", "mypy"}
    assert "anomalib" not in packages("test"), "it would come for the tests of one file"
    assert {"playwright", "pypdf", "pytest", "nbval", "ruff", "mypy"} <= packages("test")


def test_what_anomalib_is_needed_for_is_tested_by_ci():
    assert re.search(r"^make beside$", (ROOT / ".ci/run").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("extra", PACKAGES)
def test_a_remedy_names_the_packages_of_pyproject(extra):
    assert set(PACKAGES[extra]) == packages(extra), "attnad.errors.PACKAGES and pyproject.toml differ"
    assert remedy(extra) == f"pip install {' '.join(PACKAGES[extra])}"


def test_help_names_the_remedy_too(capsys):
    with pytest.raises(SystemExit):
        main(["reproduce", "--help"])
    assert remedy("ray") in " ".join(re.sub(r"[│╭╮╰╯─]", " ", capsys.readouterr().out).split())


def test_nobody_is_told_to_install_a_package_that_is_not_there():
    """attnad stands on no index. A stranger who takes its name there would be installed on our word."""
    told = re.compile(r"attnad\[\w[^\]\n]*\]|\binstall (?:-\S+ )*['\"]?attnad\b")
    extras_of_extras = re.compile(r'"attnad\[[\w,]+\]", ')  # a list in pyproject.toml that holds others
    for path, text in texts():
        if path.name == "pyproject.toml":
            text = extras_of_extras.sub("", text)
        assert told.findall(text) == [], f"{path.relative_to(ROOT)}: name the packages, as attnad.errors.remedy does"
