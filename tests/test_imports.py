"""The picture of the house: which file may import which. Arrows point one way, and stand at the
top of a file."""

import ast

import pytest

from conftest import REPOSITORY

DATA = {"data.interrupt", "data.files", "data.read", "data.prepare"}
RESULTS = {
    "results.scores",
    "results.checks",
    "results.runs",
    "results.verdicts",
    "results.claims",
    "results.contrasts",
    "results.figures",
    "results.report",
    "results.paper",
    "results.tables",
}
MAY_IMPORT = {
    "model": set(),
    "data.interrupt": set(),
    "data.files": {"data.interrupt"},
    "data.read": {"data.files"},
    "data.prepare": {"data.interrupt", "data.files"},
    "configs.read": {"model", "data.files", "data.read"},
    "fast": {"model"},
    "results.scores": set(),
    "results.checks": {"configs.read", "data.files", "results.scores"},
    "results.runs": {
        "model",
        "configs.read",
        "data.files",
        "data.read",
        "results.checks",
        "results.scores",
    },
    "results.verdicts": set(),
    "results.claims": {
        "model",
        "configs.read",
        "data.files",
        "results.scores",
        "results.verdicts",
    },
    "results.contrasts": {"results.claims", "results.verdicts"},
    "results.figures": {"results.claims", "results.verdicts", "data.files"},
    "results.report": {
        "configs.read",
        "results.claims",
        "results.contrasts",
        "results.figures",
        "results.scores",
        "results.verdicts",
        "data.files",
    },
    "results.paper": {"results.claims", "results.report"},
    "results.tables": {
        "model",
        "configs.read",
        "results.claims",
        "results.contrasts",
        "results.paper",
        "results.report",
        "results.runs",
        "results.verdicts",
        "data.files",
    },
    "results.hot": {
        "results.claims",
        "results.figures",
        "results.report",
        "results.runs",
        "data.interrupt",
        "data.files",
    },
    "hardware": {"model", "fast", "data.files"},
    "train": {"model", "hardware", "configs.read", "results.checks", "results.runs", *DATA},
    "bench": {"train", "hardware", "configs.read", *DATA},
    "sparsity": {"hardware", "results.runs", "results.scores", *DATA},
    "theory": {
        "model",
        "results.claims",
        "results.figures",
        "results.runs",
        "results.scores",
        "results.verdicts",
        "data.interrupt",
        "data.files",
    },
    "downstream": {"model"},
    "pending": {"train", "hardware", "configs.read", "results.runs", *DATA},
    "analyze": {
        "model",
        "sparsity",
        "theory",
        "downstream",
        "hardware",
        "train",
        "pending",
        "configs.read",
        "results.hot",
        *DATA,
        *RESULTS,
    },
    # Public models.
    "decoder": {"model", "data.files"},
    "results.public": {
        "results.claims",
        "results.figures",
        "results.report",
        "results.runs",
        "results.scores",
        "data.files",
    },
    "stream_scores": {"analyze", "results.public", "results.scores", "data.files"},
    "pretrained": {
        "analyze",
        "decoder",
        "downstream",
        "hardware",
        "pending",
        "stream_scores",
        "configs.read",
        "results.public",
        *DATA,
    },
    # Scripts that time: they stand on everything, and nothing stands on them.
    "results.scaling": {"bench", "configs.read", *DATA, *RESULTS},
    "results.published_way": {"analyze", "hardware", "configs.read", *DATA, *RESULTS},
    "results.public_cost": {
        "decoder",
        "hardware",
        "pretrained",
        "stream_scores",
        "configs.read",
        *DATA,
        *RESULTS,
    },
}


def own_files():
    """{module: path} of all that is no test."""
    paths = [path for folder in ("", "configs", "data", "results") for path in files_in(folder)]
    return {".".join(path.relative_to(REPOSITORY).with_suffix("").parts): path for path in paths}


def files_in(folder):
    return sorted((REPOSITORY / folder).glob("*.py"))


FILES = own_files()


def imports_of(nodes):
    """The project's own modules that these statements import, and all inside them."""
    found = set()
    for statement in nodes:
        for node in ast.walk(statement):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            else:
                continue
            found |= {name for name in names if name in FILES}
    return found


def parsed(module):
    return ast.parse(FILES[module].read_text(encoding="utf-8"))


def test_every_file_has_its_place_in_the_picture():
    assert set(FILES) == set(MAY_IMPORT)


@pytest.mark.parametrize("module", FILES)
def test_arrows_are_those_of_the_picture(module):
    assert imports_of([parsed(module)]) <= MAY_IMPORT[module]


@pytest.mark.parametrize("module", FILES)
def test_nothing_of_ours_is_imported_inside_a_function(module):
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    inside = [node for node in ast.walk(parsed(module)) if isinstance(node, functions)]
    assert imports_of(inside) == set()


@pytest.mark.parametrize("module", FILES)
def test_only_what_may_be_deleted_is_tried(module):
    """hardware.py tries to import fast.py, without which everything works, only slower."""
    tried = [node for node in ast.walk(parsed(module)) if isinstance(node, ast.Try)]
    assert imports_of(tried) == ({"fast"} if module == "hardware" else set())


def test_arrows_make_no_circle():
    arrows = {module: imports_of([parsed(module)]) for module in FILES}
    while arrows:
        leaves = [module for module, others in arrows.items() if not others & arrows.keys()]
        assert leaves, f"a circle among {sorted(arrows)}"
        for module in leaves:
            del arrows[module]


def test_model_py_imports_torch_and_the_standard_library_alone():
    for node in ast.walk(parsed("model")):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module]
        else:
            continue
        assert {name.split(".")[0] for name in names} <= {"math", "dataclasses", "torch"}
