"""What lies below everything: errors in one sentence, names, and files that are whole.

Text is UTF-8 with line feeds, whatever the machine's locale. A file that others write is read by
read_json or read_json_lines, which say which file and which field is not as it must be.
"""

import hashlib
import json
import math
import os
import re
import sys
from contextlib import contextmanager
from glob import glob
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from data import interrupt

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None


if sys.version_info < (3, 11):  # noqa: UP036  who runs an older one has not read pyproject.toml
    sys.exit(f"nanodepth needs Python 3.11 or later, and this is {sys.version.split()[0]}")

tqdm.get_lock()  # made now, as Ctrl-C while the first line makes it would be another error
LARGEST = sys.float_info.max
DATA_FILES = ("train.bin", "val.bin", "choices.jsonl")  # of a dataset, beside meta.json

# What a person reads -----------------------------------------------------------------------------


class BadInput(Exception):
    """One sentence for the person at the keyboard: what is wrong and what to do."""


def or_one_sentence(function, *arguments, stopped="nothing was written"):
    """Return function(*arguments).

    Bad input, and a disk that is full or not ours to write on, end in one sentence on standard
    error and exit code 2, not in a traceback. Ctrl-C ends in a line that says what was `stopped`
    in its middle, and exit code 130.
    """
    program = Path(sys.argv[0]).name
    interrupt.begin()
    try:
        return function(*arguments)
    except KeyboardInterrupt:
        print(f"\n{program}: stopped; {stopped}", file=sys.stderr)
        sys.exit(130)
    except BadInput as error:
        sentence = str(error)
    except MemoryError:
        sentence = "out of memory: give the model fewer blocks, or a step fewer sequences"
    except OSError as error:
        sentence = reason(error)
        if error.filename is not None:
            sentence = f"{error.filename}: {sentence}"
        if isinstance(error, (FileExistsError, NotADirectoryError)):
            sentence += "; a folder is to stand there: name another, or move the file away"
    print(f"{program}: {sentence}", file=sys.stderr)
    sys.exit(2)


def reason(error):
    """An error's first line, as the operating system or the library put it."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.splitlines()[0]


def say(text):
    """Print a line between progress bars, what the terminal cannot show as an escape. Where nobody
    reads it any more, as behind `| head`, the printing stops and the work goes on."""
    encoding = sys.stdout.encoding or "utf-8"
    text = str(text).encode(encoding, errors="backslashreplace").decode(encoding)
    try:
        tqdm.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())


def duration(seconds):
    """Such as "40 s", "3 minutes" or "2.5 hours"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 6000 else f"{seconds / 3600:.1f} hours"


def refuse_dashes(arguments):
    """Raises BadInput for --option=--, of which argparse makes an empty list."""
    for name, value in vars(arguments).items():
        if value == [] and name != "paths":  # as a list of no paths may be
            raise BadInput(f"--{name}=-- gives no value: write one behind the equals sign")


def check_name(name, what):
    """The name of a run, point, dataset or config, which is to become a folder's: raises BadInput
    where it could leave the folder that it is put into, or where some system refuses it."""
    if not re.fullmatch(r"[A-Za-z0-9=,._+-]{1,200}", name) or set(name) == {"."}:
        raise BadInput(
            f"{what} {shortened(name)} must be a name of letters, digits and = , . _ + - alone, "
            "at most 200 of them"
        )
    return name


def matched(paths):
    """The paths of a command line, a pattern such as out/* in the place of what it matches: shells
    do that, but not those of Windows. One that matches nothing stays."""
    found = []
    for path in paths:
        matches = sorted(glob(str(path))) if "*" in str(path) else []
        found += matches or [path]
    return [Path(path) for path in found]


# Reading -----------------------------------------------------------------------------------------


class Number(NamedTuple):
    """What read_json can ask for: a finite number, whole or not, within limits."""

    kind: type = float
    least: float = -math.inf
    most: float = math.inf


class Line(NamedTuple):
    """A text that can stand in a row of a table: of one line, without a bar."""

    most: int = 200  # characters


class Maybe(NamedTuple):
    """The value of a key that may be missing."""

    wanted: object


class Each(NamedTuple):
    """An object of any keys, of which every value is as wanted."""

    wanted: object


class Several(NamedTuple):
    """A list of n items, each as wanted."""

    n: int
    wanted: object


def read_text(path):
    """A text file that a person may have written, without the byte-order mark of some editors."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not UTF-8 (byte {error.start}): convert it first") from None
    except IsADirectoryError:
        raise BadInput(
            f"{path} is a folder, where a file belongs: name one in it, or move the folder away"
        ) from None


def read_json(path, wanted=object):
    """The content of a JSON file, which is as `wanted` (see fault_of). Raises BadInput, naming the
    file and the field, where it is not; OSError where there is no such file."""
    return parse_json(read_text(path), wanted, path)


def read_json_lines(path, wanted=object, n_left_out=0):
    """Of a file that holds one value a line: [(line number, value)], without the last n_left_out
    lines. The sentence names the line, too."""
    return parse_json_lines(read_text(path), wanted, path, n_left_out)


def parse_json_lines(text, wanted, source, n_left_out=0):
    lines = text.split("\n")
    lines = lines[: len(lines) - n_left_out]
    return [
        (number, parse_json(line, wanted, f"{source}, line {number}"))
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]


def parse_json(text, wanted, source):
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{source}: not JSON ({reason(error)})") from None
    if fault := fault_of(value, wanted):
        raise BadInput(f"{source}: {fault}")
    return value


def fault_of(value, wanted, field="the content"):
    """Why a value is not as wanted, such as "tokens.train = -1 must be a whole number of at least
    1"; None where it is. wanted: a type; a Number; a Line; {key: wanted}, where other keys are
    welcome; [wanted], of every item of a list; an Each; a Several; or several of these in a tuple,
    of which one must fit. A key whose value is a Maybe can be missing."""
    if isinstance(wanted, Number):
        return fault_of_number(value, wanted, field)
    if isinstance(wanted, Line):
        return fault_of_line(value, wanted, field)
    if isinstance(wanted, Each):
        wanted = dict.fromkeys(value, wanted.wanted) if isinstance(value, dict) else {}
    if isinstance(wanted, Several):
        if isinstance(value, list) and len(value) != wanted.n:
            return f"{field} has {len(value)} entries, where {wanted.n} belong"
        wanted = [wanted.wanted]
    if isinstance(wanted, tuple):
        faults = [fault_of(value, one, field) for one in wanted]
        return None if None in faults else faults[0]
    if isinstance(wanted, dict):
        return fault_of_object(value, wanted, field)
    if isinstance(wanted, list):
        if not isinstance(value, list):
            return f"{field} must be a list"
        faults = (fault_of(item, wanted[0], f"{field}[{i}]") for i, item in enumerate(value))
        return next((fault for fault in faults if fault), None)
    if wanted is object or isinstance(value, wanted):
        return None
    return f"{field} = {shortened(value)} must be of type {wanted.__name__}"


def fault_of_object(value, wanted, field):
    if not isinstance(value, dict):
        return f"{field} must be an object, not {shortened(value)}"
    for key, of_key in wanted.items():
        name = key if field == "the content" else f"{field}.{key}"
        if isinstance(of_key, Maybe):
            if key not in value:
                continue
            of_key = of_key.wanted
        if key not in value:
            return f"{name} is missing"
        if fault := fault_of(value[key], of_key, name):
            return fault
    return None


def fault_of_number(value, wanted, field):
    kinds = (int,) if wanted.kind is int else (int, float)
    least, most = max(wanted.least, -LARGEST), min(wanted.most, LARGEST)
    if type(value) in kinds and least <= value <= most:  # never so for nan
        return None
    rule = "a whole number" if wanted.kind is int else "a finite number"
    if math.isfinite(wanted.least):
        rule += f" of at least {wanted.least}"
    if math.isfinite(wanted.most):
        rule += f" {'and' if math.isfinite(wanted.least) else 'of'} at most {wanted.most}"
    return f"{field} = {shortened(value)} must be {rule}"


def fault_of_line(value, wanted, field):
    is_text = isinstance(value, str) and value.isprintable()
    if is_text and "|" not in value and len(value) <= wanted.most:
        return None
    return f"{field} = {shortened(value)} must be a line of text without |, as a table's cell"


def at(nested, keys):
    """The value under these keys of dicts, one inside the other; None where there is none."""
    for key in keys:
        nested = nested.get(key) if isinstance(nested, dict) else None
    return nested


def shortened(value, most=40):
    text = repr(value)
    return text if len(text) <= most else text[: most - 3] + "..."


def sha256_of(paths):
    """The hash, in hexadecimal, of the files' contents one after another."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while piece := file.read(1 << 24):
                digest.update(piece)
    return digest.hexdigest()


# Writing -----------------------------------------------------------------------------------------


@contextmanager
def replacing(path):
    """A temporary name to write to, which then takes path's place, through to the disk. The file
    is whole or as it was, whatever happens, and nothing else stays. Raises BadInput, with the
    path, where it cannot be written."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from None
    finally:
        temporary.unlink(missing_ok=True)


def cannot_write(path, error):
    return BadInput(
        f"{path} cannot be written ({reason(error)}): what was there before is whole; "
        "the same command goes on once it can be"
    )


def sync(path):
    """Wait until a file, or what a folder lists, is on the disk, so that a crash of the machine
    cannot leave a later write without an earlier one."""
    if os.name == "nt" and path.is_dir():  # Windows opens no folders
        return
    file = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def write_text(path, text):
    with replacing(path) as temporary:
        # A folder's name may be no UTF-8: its byte FF, which Python hands on so, becomes \udcff.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


def write_json(path, content):
    """Write content as JSON; raises ValueError where a number is not finite."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def append_line(path, text):
    """One more line at the end of a file."""
    try:
        with open(path, "a", encoding="utf-8", newline="\n") as file:
            file.write(text + "\n")
    except OSError as error:
        raise cannot_write(path, error) from None


@contextmanager
def locked(folder):
    """Work in a folder alone. Raises BadInput where another process does; its death, of any kind,
    frees the folder. (Windows and some network file systems have no such locks; there, two at once
    are not noticed.)"""
    if fcntl is None:
        yield
        return
    file = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        raise BadInput(f"{folder} is in use by another process: wait for it, or stop it") from None
    except OSError:
        pass  # some network file systems have no such locks, either
    try:
        yield
    finally:
        os.close(file)
