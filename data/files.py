"""What lies below everything: the error that a person reads, and text files that are whole."""

import json
import os
import sys
from contextlib import contextmanager
from pathlib import Path


class BadInput(Exception):
    """One sentence for the person at the keyboard: what is wrong and what to do."""


def or_one_sentence(function, *arguments):
    """Return function(*arguments).

    Bad input ends in one sentence on standard error and exit code 2, not in a traceback.
    """
    try:
        return function(*arguments)
    except BadInput as error:
        sentence = error
    except OSError as error:
        sentence = f"{error.filename}: {error.strerror}"
    print(f"{Path(sys.argv[0]).name}: {sentence}", file=sys.stderr)
    sys.exit(2)


@contextmanager
def replacing(path):
    """A temporary name to write to, which then takes path's place: a file is whole or as it was."""
    temporary = path.with_name(path.name + ".tmp")
    yield temporary
    os.replace(temporary, path)


def write_text(path, text):
    """Write text as UTF-8 with line feeds, whatever the machine's locale."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path, content):
    """Write content as JSON; raises ValueError where a number is not finite."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def read_json(path):
    """Raises OSError where there is no file, ValueError where it is not JSON."""
    return json.loads(path.read_text(encoding="utf-8"))
