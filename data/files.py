"""Below everything else: bad input in one sentence, and text files that are whole or as they were."""

import json
import os
import sys
from contextlib import contextmanager
from pathlib import Path


class BadInput(Exception):
    """One sentence for the person at the keyboard: what is wrong and what to do."""


def or_one_sentence(function, *arguments):
    """function(*arguments); bad input ends in one sentence on standard error and exit code 2."""
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
    """A temporary name to write to, which then takes path's place: whole there, or as it was."""
    temporary = path.with_name(path.name + ".tmp")
    yield temporary
    os.replace(temporary, path)


def write_text(path, text):
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path, content):
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))
