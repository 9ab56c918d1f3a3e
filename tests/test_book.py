"""The book's files agree with each other and with the package. The build itself (`make book`) checks the rest."""

from __future__ import annotations

import inspect
import json
import re
import sys
import textwrap
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from project import ROOT, project, texts

PAGES = sorted((ROOT / "book").glob("*.md"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "SECURITY.md", *PAGES, *NOTEBOOKS]
EQUATIONS = {
    1: "adversarial_loss",
    2: "anomaly_adversarial_loss",
    3: "generator_loss",
    4: "attention_loss",
    5: "total_loss",
    6: "masked_features",
}


def prose(path: Path) -> str:
    """Markdown of a page or of a notebook's text cells, without code blocks and formulas."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        text = "\n\n".join("".join(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"] == "markdown")
    return re.sub(r"^```(?!\{).*?^```|\$\$.*?\$\$|\$[^$\n]*\$", "", text, flags=re.DOTALL | re.MULTILINE)


def config() -> dict:
    return yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))


def test_config_keeps_what_is_easily_lost():
    c = config()
    assert c["only_build_toc_files"], "pages outside the table of contents would be built"
    assert c["execute"]["raise_on_error"], "a failing chapter would still build"
    assert c["sphinx"]["recursive_update"], "the buttons would vanish"
    assert "path_to_book" not in c["repository"], "the Colab button would point to the wrong folder"
    assert not (ROOT / "_static").exists(), "every script in a root _static folder would load on every page"
    style = c["sphinx"]["config"]
    for css in style["html_css_files"]:
        assert any((ROOT / folder / css).is_file() for folder in style["html_static_path"])


def test_repository_address_stands_in_one_place():
    """Only _config.yml says where the repository is, so that a new address is a change of one line."""
    url = config()["repository"]["url"]
    address = re.compile(rf"(?:https?://|git@)?github(?:\.com)?[/:][\w.-]+/{re.escape(url.rsplit('/')[-1])}\b")
    for path, text in texts():
        found = {m.removesuffix(".git") for m in address.findall(text)}
        allowed = {url} if path == ROOT / "_config.yml" else set()
        assert found <= allowed, f"{path.relative_to(ROOT)} has {found - allowed}; the address stands in _config.yml"


def test_buttons_lead_to_the_repository_all_or_none():
    """An address that nobody has registered is whoever's takes it: no button opens notebooks or code from there."""
    c = config()
    launch, theme = c["launch_buttons"], c["sphinx"]["config"]["html_theme_options"]
    real = c["html"]["use_repository_button"]
    assert c["html"]["use_issues_button"] == theme["use_source_button"] == real
    assert ("colab_url" in launch) == ("binderhub_url" in launch) == real


def test_changelog_begins_with_this_version():
    latest = re.search(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)[1]
    assert latest.startswith(project()["version"])


def test_table_of_contents_is_complete():
    toc = yaml.safe_load((ROOT / "book/_toc.yml").read_text(encoding="utf-8"))
    files = [toc["root"]] + [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]
    assert len(files) == len(set(files))
    there = {path.relative_to(ROOT).with_suffix("").as_posix() for path in PAGES + NOTEBOOKS}
    assert set(files) - there == set(), "in book/_toc.yml, but there is no such file"
    assert there - set(files) == set(), "not in book/_toc.yml, so no reader will see it"
    chapters = [file for file in files if file.startswith("notebooks/")]
    assert chapters == sorted(chapters), "chapters are numbered in reading order"


def cells(path: Path, kind: str) -> list[dict]:
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def test_every_chapter_sets_itself_up_in_the_same_way():
    """The first code cell is one text in all chapters; it installs what stands beside it, and fetches no other book."""
    first = {source(cells(path, "code")[0]) for path in NOTEBOOKS}
    assert len(first) == 1, "the first code cells differ"
    (text,) = first
    assert not re.search(r"https?:|git@|git clone", text), "an address that may be a stranger's"
    assert "torch" not in "".join(re.findall(r"(?:check_call|install).*", text)), "Colab's torch must stay"
    extras = set(re.findall(r"/content/book\[([\w,]+)\]", text)[0].split(","))
    assert extras <= set(project()["optional-dependencies"])
    for path in NOTEBOOKS:
        if switch := [source(c) for c in cells(path, "code") if source(c).count("ATTNAD_PROFILE")]:
            assert len(switch) == 1, f"{path.name}: one switch"


def test_a_chapter_on_colab_says_how_the_book_gets_there_and_installs_it_once(tmp_path, monkeypatch):
    """Its first cell, where Colab's /content is a folder of ours: without the book, with it, and a second time."""
    text = source(cells(NOTEBOOKS[0], "code")[0])
    called, there = [], tmp_path / "book/notebooks"
    monkeypatch.setattr("subprocess.check_call", lambda command, **_: called.append(command))
    monkeypatch.chdir(tmp_path)

    def run() -> None:
        exec(text.replace("/content", str(tmp_path)), {})

    run()
    monkeypatch.setitem(sys.modules, "google.colab", sys)
    with pytest.raises(SystemExit, match=r"(?s)pack it as book\.zip.*clone the book.*run this cell again"):
        run()
    assert (called, Path.cwd()) == ([], tmp_path)
    there.mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None)
        run()
    assert len(called) == 1
    assert f"pip install -q '{tmp_path}/book[" in called[0]
    run()
    assert (len(called), Path.cwd()) == (1, there), "attnad is installed by now"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_code_is_as_wide_as_the_page(path: Path):
    """At 1,280 pixels a cell shows 80 columns; what is longer is cut off."""
    code = [source(cell) for cell in cells(path, "code")]
    for cell in cells(path, "markdown"):
        code += [textwrap.dedent(block) for block in re.findall(r"```python\n(.*?)```", source(cell), re.DOTALL)]
    assert [line for text in code for line in text.splitlines() if len(line) > 80] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_chapter_holds_no_role(path: Path):
    """JupyterLab, GitHub and Colab show {cite:t} and its like as they are typed; a plain link works everywhere."""
    text = "\n".join(source(cell) for cell in cells(path, "markdown"))
    assert re.findall(r"\{[\w:.-]+\}`[^`]*`", text) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_chapter_has_its_parts(path: Path):
    first, *_, last = cells(path, "markdown")
    assert all(f"**{word}.**" in source(first) for word in ("Goals", "Time", "Data"))
    text = prose(path)
    assert "\n## Summary\n" in text
    assert "**Where to go on.**" in source(last)
    exercises = re.search(r"\n## Exercises\n(.*?)\n:::", text, re.DOTALL)[1]
    solutions = re.search(r"\n:::\{admonition\} Solutions\n:class: dropdown\n(.*?)\n:::", text, re.DOTALL)[1]
    numbers = re.findall(r"^(\d)\. ", exercises, re.MULTILINE)
    assert 3 <= len(numbers) <= 5
    assert re.findall(r"^(\d)\. ", solutions, re.MULTILINE) == numbers, "a solution for each exercise"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_chapter_is_committed_executed(path: Path):
    """GitHub shows the pictures, nbval has something to compare with, and a screen reader has something to read."""
    checked = 0
    for cell in cells(path, "code"):
        assert cell["execution_count"], f"cell {cell['id']} was not executed; run make notebooks"
        outputs = cell["outputs"]
        assert not any(o["output_type"] == "error" or o.get("name") == "stderr" for o in outputs), cell["id"]
        for data in (output.get("data", {}) for output in outputs):
            drawn = "image/png" in data or not "".join(data.get("text/plain", "")).startswith("<Figure")
            assert drawn, f"cell {cell['id']}: a figure without its picture; %matplotlib inline before it"
        if any("image/png" in output.get("data", {}) for output in outputs):
            alt = cell["metadata"].get("mystnb", {}).get("image", {}).get("alt", "")
            assert len(alt) > 20, f"cell {cell['id']}: a picture without alt text"
        if "nbval-check-output" in cell["metadata"].get("tags", []):
            assert outputs, f"cell {cell['id']} is to be compared and prints nothing"
            checked += 1
    assert checked, "nothing that nbval compares"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_equation_number_stands_where_its_function_is_used(path: Path):
    code = "\n".join(source(cell) for cell in cells(path, "code"))
    text = "\n".join(source(cell) for cell in cells(path, "markdown"))
    for number, function in EQUATIONS.items():
        if re.search(rf"\b{function}\(", code):
            said = rf"\\tag\{{{number}\}}|([Ee]qs?\.|[Ee]quations?|and|to) \({number}\)"
            assert re.search(said, text), f"uses {function} and does not name eq. ({number})"


def test_workflows_run_what_exists():
    """Tests on a processor, full scale on a GPU, Colab's image, other machines, and publishing."""
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    flows = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / ".github/workflows").glob("*.yml")}
    assert {"ci", "gpu", "colab", "pages", "machines"} == flows.keys()
    for text in flows.values():
        assert yaml.safe_load(text)["jobs"]
        assert set(re.findall(r"run: make (\w+)", text)) <= targets
    assert "gpu" in yaml.safe_load(flows["gpu"])["jobs"]["chapters"]["runs-on"]


def test_citations_exist():
    bib = (ROOT / "book/references.bib").read_text(encoding="utf-8")
    keys = re.findall(r"^@\w+\{([^,\s]+),", bib, flags=re.MULTILINE)
    assert len(keys) == len(set(keys)), "a key stands twice in references.bib"
    for path in PAGES + NOTEBOOKS:
        for group in re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", prose(path)):
            unknown = {key.strip() for key in group.split(",")} - set(keys)
            assert not unknown, f"{path.name} cites {unknown}, which references.bib does not have"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_pictures(path: Path):
    text = prose(path)
    assert "![](" not in text, "a picture without alt text"
    for directive, body in re.findall(r"^[`:]{3,}\{(figure|image)\}(.*?)^[`:]{3,}", text, re.DOTALL | re.MULTILINE):
        assert re.search(r"^:alt: \S", body, re.MULTILINE), f"a {directive} without alt text"
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file) if file else path
        assert target.exists(), f"{link}: no such file"
        if anchor and target.suffix == ".md":
            there = target.read_text(encoding="utf-8")
            assert f"({anchor})=" in there or f"{{#{anchor}}}" in there, f"{link}: no such anchor"


def test_commands_exist():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for path in [ROOT / "README.md", ROOT / ".ci/run", *PAGES]:
        used = set(re.findall(r"^make (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE))
        assert used <= targets, f"{path.name}: make {used - targets}"
        if path.name in ("README.md", "run"):
            assert {"book", "test"} <= used


@pytest.mark.parametrize(("number", "function"), EQUATIONS.items())
def test_equation_leads_to_its_function(number: int, function: str):
    losses = import_module("attnad.losses")
    assert f"eq. ({number})" in getattr(losses, function).__doc__
    text = (ROOT / "book/notation.md").read_text(encoding="utf-8")
    assert f"\\tag{{{number}}}" in text
    assert re.search(rf"^\|.*\({number}\).*`losses\.{function}`", text, re.MULTILINE), "no row in the table of symbols"


def test_notation_names_what_exists():
    text = (ROOT / "book/notation.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(augmentations|data|losses|models|score)\.(\w+)`", text))
    for module, function in sorted(named):
        assert callable(getattr(import_module(f"attnad.{module}"), function, None)), f"attnad.{module}.{function}"
    losses = import_module("attnad.losses")
    for function, value in inspect.getmembers(losses, inspect.isfunction):
        if value.__module__ == "attnad.losses" and not function.startswith("_"):
            assert ("losses", function) in named, f"notation.md does not mention losses.{function}"
