"""What runs on GitHub: code of a fork or of a package may read the repository, and do no more."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from mutants import MUTANTS
from project import ROOT

WORKFLOWS = sorted((ROOT / ".github/workflows").iterdir())


def workflow(text: str) -> dict[str, Any]:
    """A workflow with its events under "on", which YAML takes for true."""
    values = yaml.safe_load(text)
    events = values.pop(True, None) or values.pop("on")
    return {**values, "on": {events} if isinstance(events, str) else set(events)}


def faults(text: str) -> list[str]:
    """What a workflow gives away."""
    found, values = [], workflow(text)
    if values.get("permissions") not in ({}, {"contents": "read"}):
        found.append("its rights at the top are more than to read")
    for line in re.findall(r"uses: *(\S.*)", text):
        if not re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line):
            found.append(f"{line}: no full commit with its version behind it")
    if values["on"] & {"pull_request_target", "workflow_run", "issue_comment"}:
        found.append("a stranger's event starts it with the repository's rights")
    for name, job in values["jobs"].items():
        steps = job["steps"]
        if job.get("permissions") and any("run" in step or "checkout@" in step["uses"] for step in steps):
            found.append(f"{name} has rights of its own, and runs code")
        if "self-hosted" in job["runs-on"] and "pull_request" in values["on"]:
            found.append(f"{name}: a fork's code on a machine of one's own")
        for step in steps:
            if "checkout@" in step.get("uses", "") and step.get("with", {}).get("persist-credentials") is not False:
                found.append(f"{name} leaves its token in the clone")
            if "${{" in step.get("run", "").replace("${{ matrix.", ""):
                found.append(f"{name} writes what others may choose into a script: {step['run']}")
        if "secrets." in str(job):
            found.append(f"{name} holds a secret")
    return found


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_gives_nothing_away(path):
    assert faults(path.read_text(encoding="utf-8")) == []


SOUND = """
on: {push: {branches: [main]}}
permissions: {contents: read}
jobs:
  build:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@de0fac2e4500dabe0009e67214ff5f5447ce83dd # v6.0.2
        with: {persist-credentials: false}
      - run: make book
"""


@pytest.mark.parametrize(
    ("part", "other"),
    [
        ("permissions: {contents: read}\n", ""),
        ("{contents: read}", "write-all"),
        ("{contents: read}", "{contents: read, pages: write}"),
        ("@de0fac2e4500dabe0009e67214ff5f5447ce83dd # v6.0.2", "@v6"),
        (" # v6.0.2", ""),
        ("5f5447ce83dd #", " #"),
        ("false", "true"),
        ("        with: {persist-credentials: false}\n", ""),
        ("  build:\n", "  build:\n    permissions: {pages: write}\n"),
        ("{push: {branches: [main]}}", "pull_request_target"),
        ("ubuntu-latest", "[self-hosted, gpu]\n    if: true"),
        ("make book", "echo ${{ github.event.pull_request.title }}"),
        ("make book", "make book\n        env: {TOKEN: '${{ secrets.TOKEN }}'}"),
    ],
)
def test_each_fault_is_seen(part, other):
    text = SOUND.replace("{push: {branches: [main]}}", "[push, pull_request]") if "self-hosted" in other else SOUND
    assert faults(text) == []
    assert len(faults(text.replace(part, other))) == 1


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.what)
def test_a_mutants_text_is_in_its_file(mutant):
    """The weekly run stops at one that is not; tests/mutants.py says what they are."""
    assert mutant.right in (ROOT / "attnad" / mutant.file).read_text(encoding="utf-8")
