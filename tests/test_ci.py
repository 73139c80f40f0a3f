"""The workflow that runs README's commands on every system."""

import re

from conftest import REPOSITORY

WORKFLOW = (REPOSITORY / ".github/workflows/ci.yml").read_text(encoding="utf-8")
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def test_it_runs_readmes_commands_as_they_stand_there():
    first_block = re.search("```sh\n(.*?)```", README, re.DOTALL)[1]
    commands = [line.partition("  #")[0] for line in first_block.splitlines() if line]
    assert len(commands) == 3
    steps = re.findall("- run: (.*)", WORKFLOW)
    assert commands == steps[:3]


def test_it_runs_the_oldest_python_that_is_promised():
    oldest = re.search(r'requires-python = ">=(3\.\d+)"', pyproject())[1]
    assert f'python: ["{oldest}", ' in WORKFLOW
    assert f"Python {oldest} or later" in README


def pyproject():
    return (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
