"""What the files around the code say of the project: versions, the licence, links."""

from __future__ import annotations

import re
import runpy
from unittest import mock

import pytest

from tests.support.processes import ROOT

PYPROJECT = (ROOT / "pyproject.toml").read_text()


def field(pattern: str, text: str) -> str:
    return re.search(pattern, text, re.MULTILINE).group(1)


def test_one_version():
    version = field(r'^version = "(.*)"$', PYPROJECT)
    assert field(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text()) == version
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert f"first release will be {version}." in changelog or f"\n## [{version}] - 20" in changelog


def test_one_licence():
    licence = (ROOT / "LICENSE").read_text()
    assert "Apache License\n" in licence and "APPENDIX: How to apply the Apache License to your work." in licence
    assert field(r'^license = "(.*)"$', PYPROJECT) == "Apache-2.0"
    assert field(r"^license: (.*)$", (ROOT / "CITATION.cff").read_text()) == "Apache-2.0"


def test_an_index_gets_no_link_that_only_the_repository_has():
    setuptools = pytest.importorskip("setuptools")
    with mock.patch.object(setuptools, "setup") as setup:
        runpy.run_path(str(ROOT / "setup.py"))
    text = setup.call_args.kwargs["long_description"]
    assert text.startswith("# multikv\n")
    targets = re.findall(r"\]\(([^)]*)\)", text)
    assert [target for target in targets if not target.startswith("https://")] == []


WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_call_make_and_pinned_actions(workflow):
    """A person can run what a workflow runs, and nobody can change an action under it."""
    text = workflow.read_text()
    targets = re.findall(r"^ +- run: make (.*)$", text, re.MULTILINE)
    rules = re.findall(r"^([\w -]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert targets and set(targets) <= {name for rule in rules for name in rule.split()}
    actions = re.findall(r"^ +- uses: (.*)$", text, re.MULTILINE)
    assert actions and all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v[\d.]+", action) for action in actions)


PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    """Files exist, and so do the headings that a link names."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        linked = (page.parent / file).resolve() if file else page
        assert linked.exists(), target
        if anchor and linked.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, target
