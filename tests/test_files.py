"""data/files.py: errors in one sentence, names, and text files that are whole."""

import json
import os
import signal
import subprocess
import sys

import pytest

from conftest import REPOSITORY
from data import files
from data.files import BadInput, Each, Line, Number, Several


def python(code, *arguments, env=None, **options):
    """A process that runs code in the project's folder, finished."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    options = {"check": True, "capture_output": True, "text": True, **options}
    return subprocess.run(command, cwd=REPOSITORY, env=env, **options)


# What a person reads -----------------------------------------------------------------------------


def raise_it(error):
    raise error


@pytest.mark.parametrize(
    "error, sentence",
    [
        (BadInput("no such layer: give one of 0 to 3"), "no such layer: give one of 0 to 3"),
        (FileNotFoundError(2, "No such file", "none.txt"), "none.txt: No such file"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (
            FileExistsError(17, "File exists", "out"),
            "out: File exists; a folder is to stand there: name another, or move the file away",
        ),
        (OSError("a reason\nand more"), "a reason"),
        (MemoryError(), "out of memory: give the model fewer blocks, or a step fewer sequences"),
    ],
)
def test_bad_input_ends_in_one_sentence(refused, error, sentence):
    message = refused(lambda argv: files.or_one_sentence(raise_it, error), [])
    assert message.endswith(f": {sentence}")


def test_ctrl_c_is_one_line_that_says_what_is_safe(capsys):
    with pytest.raises(SystemExit) as stop:
        files.or_one_sentence(raise_it, KeyboardInterrupt(), stopped="all is as it was")
    lines = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 130 and len(lines) == 1 and "all is as it was" in lines[0]


def test_what_a_terminal_cannot_show_is_no_error():
    """As a run's name in another alphabet, or a plus-minus sign, under an old locale."""
    code = "from data.files import say; say('\\u6570 \\u00b1 1')"
    printed = python(code, env={**os.environ, "PYTHONIOENCODING": "ascii:strict"}).stdout
    assert printed == "\\u6570 \\xb1 1\n"


@pytest.mark.parametrize(
    "seconds, text", [(8.4, "8 s"), (150, "2 minutes"), (5999, "100 minutes"), (9000, "2.5 hours")]
)
def test_durations_are_said_in_a_fitting_unit(seconds, text):
    assert files.duration(seconds) == text


COMMANDS = {
    "train.py": ["train.py", "none.toml"],
    "bench.py": ["bench.py", "none.toml"],
    "analyze.py": ["analyze.py", "none"],
    "sparsity.py": ["sparsity.py", "none"],
    "theory.py": ["theory.py"],
    "prepare.py": ["data/prepare.py", "text", "none.txt"],
    "pretrained.py": ["pretrained.py", "none"],
    "hot.py": ["-m", "results.hot", "none"],
    "scaling.py": ["-m", "results.scaling"],
    "public_cost.py": ["-m", "results.public_cost"],
    "published_way.py": ["-m", "results.published_way", "none"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("module", ["argparse", "numpy"])  # when it is imported, and long before
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT to send")
def test_ctrl_c_during_imports_is_one_line(command, module):
    """-X importtime prints a line for every import, which tells when to stop."""
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", *COMMANDS[command]],
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stderr:
        if line.split("|")[-1].strip() == module:
            process.send_signal(signal.SIGINT)
            break
    rest = process.stderr.read().splitlines()
    said = [line for line in rest if line and not line.startswith("import time:")]
    assert process.wait() == 130
    assert said == [f"{command}: stopped; nothing was begun"]


def test_what_imports_a_command_keeps_its_own_ctrl_c():
    code = "import signal, data.prepare; print(signal.getsignal(2) is signal.default_int_handler)"
    assert python(code).stdout == "True\n"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT to send")
def test_ctrl_c_that_is_ignored_stays_ignored():
    """As of a job that a script put into the background."""
    command = [sys.executable, "data/prepare.py", "text", "none.txt"]
    code = (
        "import signal, subprocess, sys; signal.signal(2, signal.SIG_IGN)\n"
        "process = subprocess.Popen(sys.argv[1:]); process.send_signal(2); sys.exit(process.wait())"
    )
    message = python(code, *command, check=False).stderr
    assert "none.txt" in message and "stopped" not in message


@pytest.mark.skipif(os.name == "nt", reason="needs a shell of Unix")
def test_a_closed_pipe_stops_only_the_printing(tmp_path):
    code = (
        "import sys, pathlib; from data.files import say\n"
        "for i in range(20000): say(f'line {i}')\n"
        "pathlib.Path(sys.argv[1]).write_text('went on')\n"
    )
    command = f'{sys.executable} -c "{code}" {tmp_path / "end"} | head -1'
    result = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert result.stdout == "line 0\n" and result.stderr == "" and result.returncode == 0
    assert (tmp_path / "end").read_text(encoding="utf-8") == "went on"


def test_what_printing_locks_is_there_before_the_first_line():
    """As tqdm, stopped while it makes its lock, raises AttributeError and not KeyboardInterrupt."""
    code = "import data.files; from tqdm import tqdm; print('_lock' in vars(tqdm))"
    assert python(code).stdout == "True\n"


def test_an_old_python_is_told_which_one_is_needed():
    code = (
        "import sys; sys.version_info, sys.version = (3, 10, 9), '3.10.9 (main)'; import data.files"
    )
    result = python(code, check=False)
    assert result.returncode == 1
    assert result.stderr == "nanodepth needs Python 3.11 or later, and this is 3.10.9\n"


def test_patterns_are_what_they_match(tmp_path):
    """As Windows' shells hand them on; a name that is none, or matches nothing, stays."""
    for name in ("b", "a", "c.json"):
        (tmp_path / name).mkdir()
    found = files.matched([tmp_path / "none", tmp_path / "*.json", f"{tmp_path}/*", "x*y"])
    names = [path.name for path in found]
    assert names == ["none", "c.json", "a", "b", "c.json", "x*y"]


@pytest.mark.parametrize("name", ["n_layer=8,seed=0", "0-shallow", "lr=1e+30", "a.b", "..a", "-"])
def test_a_name_is_a_name(name):
    assert files.check_name(name, "run") == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "a/b",
        "../x",
        "/x",
        "a\\b",
        "a\0",
        "a\n",
        "a b",
        "ü",
        "a:b",
        "*",
        "...",
        "a" * 201,
    ],
)
def test_what_could_leave_its_folder_is_no_name(name):
    with pytest.raises(BadInput, match="must be a name"):
        files.check_name(name, "run")


# Reading -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value, wanted, fault",
    [
        ({"a": 1, "more": []}, {"a": int}, None),
        ({}, {"a": int}, "a is missing"),
        ([], {"a": int}, "the content must be an object, not []"),
        ({"a": {"b": "x"}}, {"a": {"b": Number(int, 1)}}, "a.b = 'x' must be a whole number of"),
        ({"a": [1, 2, None]}, {"a": [Number()]}, "a[2] = None must be a finite number"),
        ({"a": 3}, {"a": [Number()]}, "a must be a list"),
        ({"a": True}, {"a": Number()}, "a = True must be a finite number"),
        ({"a": float("nan")}, {"a": Number()}, "a = nan must be a finite number"),
        ({"a": 1.5}, {"a": Number(int)}, "a = 1.5 must be a whole number"),
        ({"a": -1}, {"a": Number(int, 0)}, "a = -1 must be a whole number of at least 0"),
        ({"a": 9}, {"a": Number(int, 0, 8)}, "a = 9 must be a whole number of at least 0 and at"),
        ({"a": None}, {"a": (Number(), type(None))}, None),
        ({"a": "x"}, {"a": (Number(), type(None))}, "a = 'x' must be a finite number"),
        ({"a": 10**400}, {"a": Number(int, 0, 8)}, "a = 1000"),
        ({"a": 1}, {"a": str}, "a = 1 must be of type str"),
        ({"a": {"b": 1, "c": 2.5}}, {"a": Each(Number())}, None),
        ({"a": {"b": 1, "c": []}}, {"a": Each(Number())}, "a.c = [] must be a finite number"),
        ({"a": [1]}, {"a": Each(Number())}, "a must be an object, not [1]"),
        ({"a": [1, 2]}, {"a": Several(2, Number())}, None),
        ({"a": [1, 2]}, {"a": Several(3, Number())}, "a has 2 entries, where 3 belong"),
        ({"a": [1, "x"]}, {"a": Several(2, Number())}, "a[1] = 'x' must be a finite number"),
        ({"a": {}}, {"a": Several(0, Number())}, "a must be a list"),
        ({"a": "NVIDIA H100 80GB HBM3, é"}, {"a": Line()}, None),
        ({"a": "b|c"}, {"a": Line()}, "a = 'b|c' must be a line of text without |"),
        ({"a": "b\nc"}, {"a": Line()}, "a = 'b\\nc' must be a line of text"),
        ({"a": "b" * 201}, {"a": Line()}, "a = 'bbb"),
        ({"a": 3}, {"a": Line()}, "a = 3 must be a line of text"),
    ],
)
def test_a_fault_names_its_field(value, wanted, fault):
    found = files.fault_of(value, wanted)
    assert found is None if fault is None else found.startswith(fault)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[" * 100_000, b"\xff\xfe", b'{"a": 1', b"{}", b"3", b'{"a": [1, 2]}']
)
def test_bad_json_gets_one_sentence_with_the_file(tmp_path, content):
    path = tmp_path / "content.json"
    path.write_bytes(content)
    with pytest.raises(BadInput, match="content.json") as error:
        files.read_json(path, {"a": int})
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_a_folder_in_a_files_place_is_told(tmp_path):
    with pytest.raises(BadInput, match="is a folder.*move the folder away"):
        files.read_json(tmp_path)


def test_json_lines_name_the_line_and_keep_unusual_separators(tmp_path):
    path = tmp_path / "items.jsonl"
    path.write_text('{"a": "x\u2028y"}\n\n{"a": 3}\n', encoding="utf-8")
    assert files.read_json_lines(path) == [(1, {"a": "x\u2028y"}), (3, {"a": 3})]
    with pytest.raises(BadInput, match="items.jsonl, line 3: a = 3"):
        files.read_json_lines(path, {"a": str})


def test_a_byte_order_mark_is_dropped(tmp_path):
    (tmp_path / "text.txt").write_bytes(b"\xef\xbb\xbfhello")
    assert files.read_text(tmp_path / "text.txt") == "hello"


# Writing -----------------------------------------------------------------------------------------


def test_text_is_utf8_with_line_feeds(tmp_path):
    files.write_text(tmp_path / "text.md", "0.87 ± 0.02\n")
    assert (tmp_path / "text.md").read_bytes() == "0.87 ± 0.02\n".encode()


def test_a_name_that_is_no_utf8_can_be_written(tmp_path):
    """As of a folder whose name Linux hands on byte by byte."""
    files.write_text(tmp_path / "report.md", "# run \udcff\n")
    assert (tmp_path / "report.md").read_bytes() == b"# run \\udcff\n"


def test_text_is_utf8_whatever_the_locale(tmp_path):
    code = (
        "import locale, pathlib, sys; from data.files import read_json, write_text;"
        "path = pathlib.Path(sys.argv[1]);"
        "write_text(path, '\"\\u00b1\"');"
        "print(read_json(path) == '\\u00b1', locale.getpreferredencoding(False))"
    )
    plain = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    printed = python(code, tmp_path / "content.json", env={**os.environ, **plain}).stdout
    assert printed.startswith("True ") and "UTF-8" not in printed
    assert (tmp_path / "content.json").read_bytes() == '"±"'.encode()


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, MemoryError])
def test_a_file_is_whole_or_as_it_was_and_nothing_else_stays(tmp_path, error):
    path = tmp_path / "content.json"
    files.write_json(path, {"loss": 2.5})
    with pytest.raises(error), files.replacing(path) as temporary:
        temporary.write_text("half", encoding="utf-8")
        raise error
    assert json.loads(path.read_text(encoding="utf-8")) == {"loss": 2.5}
    assert [file.name for file in tmp_path.iterdir()] == ["content.json"]


def test_a_number_that_is_not_finite_is_not_written(tmp_path):
    with pytest.raises(ValueError):
        files.write_json(tmp_path / "content.json", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="needs limits on processes")
def test_a_full_disk_ends_in_one_sentence_and_leaves_what_was(tmp_path):
    """A limit on the size of files stands in for the disk."""
    code = (
        "import pathlib, resource, sys; from data.files import or_one_sentence, write_text\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "write_text(path, 'before')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "or_one_sentence(write_text, path, 'x' * 100_000)\n"
    )
    result = python(code, tmp_path / "text.txt", check=False)
    assert result.returncode == 2 and "text.txt cannot be written" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["text.txt"]
    assert (tmp_path / "text.txt").read_text(encoding="utf-8") == "before"


@pytest.mark.skipif(files.fcntl is None, reason="this system has no such locks")
def test_one_process_at_a_time_works_in_a_folder(tmp_path):
    code = (
        "import pathlib, sys; from data.files import locked, or_one_sentence\n"
        "def work():\n"
        "    with locked(pathlib.Path(sys.argv[1])): print('alone')\n"
        "or_one_sentence(work)\n"
    )
    with files.locked(tmp_path):
        second = python(code, tmp_path, check=False)
        assert second.returncode == 2 and "in use by another process" in second.stderr
    assert python(code, tmp_path).stdout == "alone\n"
    assert not list(tmp_path.iterdir())  # a lock is no file


def test_training_loads_nothing_that_only_preparing_needs():
    loaded = python("import sys, train; print(*sys.modules)").stdout.split()
    assert "data.read" in loaded
    assert not {"data.prepare", "tiktoken"} & set(loaded)
