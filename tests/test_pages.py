"""README.md and the pages it leads to: what they link to is there, and README stays short."""

import re

import pytest

from conftest import REPOSITORY

PAGES = [
    path
    for folder in (".", "results", "results/hot", "results/pretrained", "tests/exercises", "tasks")
    for path in sorted((REPOSITORY / folder).glob("*.md"))
]
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")  # to a file of ours
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(REPOSITORY)))


@each_page
def test_what_a_page_links_to_is_there(page):
    text = page.read_text(encoding="utf-8")
    assert text.strip()
    for target in LINK.findall(text):
        assert (page.parent / target).stat().st_size > 0, target


def test_readme_is_short():
    assert (REPOSITORY / "README.md").stat().st_size <= 14_000


def test_readme_names_files_that_are_there():
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    names = re.findall(r"`([\w/]+\.(?:py|md|toml|ipynb|jsonl))`", text)
    assert len(names) > 10
    rooms = [REPOSITORY / folder for folder in (".", "results", "configs", "data")]
    written = {"choices.jsonl", "log.jsonl", "report.md", "out/demo/report.md"}  # by commands
    for name in set(names) - written:
        assert any((room / name).exists() for room in rooms), name
