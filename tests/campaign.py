"""Random violence against the commands, on tiny data and a tiny sweep.

    python tests/campaign.py --minutes 60               with a seed of its own, which it prints
    python tests/campaign.py --minutes 60 --seed 3      the same acts again
    python tests/campaign.py --seed 3 --only 118        one of them

An act kills, interrupts, starves, doubles or misleads a command, or damages a file that it reads.
After each: no traceback, exit code 0, 2 or 130 (or our signal's), a few lines on standard error,
nothing written but where the command writes; and the same command, started again on undamaged
input, comes to the numbers of an undisturbed run, bit for bit. Damage that changes a number and
is not refused, such as another digit in a log, is counted as unnoticed: no file can show it all.

Commands run as forks of this process, which has imported them: an act takes tenths of a second
where a new Python would take three. So imports are never disturbed. Limits on memory and on the
size of files stand in for small machines and full disks. It needs Linux.
"""

import argparse
import collections
import hashlib
import json
import os
import random
import resource
import select
import shlex
import shutil
import signal
import sys
import tempfile
import time
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))  # a script has only its own folder there
import analyze
import bench
import sparsity
import train
from configs.read import OPTIONS
from data import prepare, read

MEMORY = 6 * 2**30  # bytes of addresses for a command
PATIENCE = 90  # seconds, after which Ctrl-C ends what is valid but long
MOST_LINES = 4  # on standard error
NOWHERE = "http://127.0.0.1:9/"

TEXT = "".join(f"{i} times {j} is {i * j}.\n" for i in range(60) for j in range(12))
ITEM = '{"context": "2 times 3 is ", "choices": ["6", "99"], "answer": 0}\n'
SWEEP = "\n".join(
    shlex.split(
        """dataset='"mine"' n_layer=2 n_embd=16 n_head=2 block_size=16 batch_size=4 max_iters=30
        eval_interval=10 eval_tokens=64 log_interval=5 warmup_iters=3 device='"cpu"'
        [sweep] seed=[0,1]"""
    )
)

MAIN = {
    "prepare.py": prepare.main,
    "train.py": train.main,
    "bench.py": bench.main,
    "analyze.py": analyze.main,
    "sparsity.py": sparsity.main,
}
WRITES = {  # the folders in its box that each may write to
    "prepare.py": ("data",),
    "train.py": ("out",),
    "bench.py": (),
    "sparsity.py": (),
    "analyze.py": ("out", "published", "restored"),
}
words = str.split
PREPARE = ["prepare.py", "text", "mine.txt", "--name", "mine"]
TRAIN = ["train.py", "sweep.toml"]
ANALYZE = words("analyze.py out/sweep --sequences 2 --task task.jsonl --publish published")
REPORT = ["analyze.py", "published/sweep.json"]
RESTORE = [*REPORT, "--restore", "restored"]
DENSITIES = ["sparsity.py", "out/sweep/seed=0"]


# Processes ---------------------------------------------------------------------------------------


class Process(NamedTuple):
    pid: int
    errors: int  # the reading end of its standard error


class Ended(NamedTuple):
    code: int  # its exit code, or minus the signal that ended it
    message: str  # what it wrote to standard error
    long: bool = False  # whether Ctrl-C had to end it


started = []  # the commands of the act that is under way


def start(box, command, file_size=None, output=None, environment=()):
    """Start a command in a folder that is its data's, too; returns as it begins to work."""
    started.append(command)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        os.read(reading, 1)
        return Process(pid, reading)
    code = 1
    try:
        os.chdir(box)
        os.dup2(os.open(os.devnull, os.O_WRONLY) if output is None else output, 1)
        os.dup2(writing, 2)
        os.environ.update(environment)
        read.DATA, prepare.__file__ = box / "data", str(box / "data/prepare.py")
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        if file_size is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
        sys.argv = command
        os.write(2, b"\n")
        MAIN[command[0]](command[1:])
        sys.stdout.flush()
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def wait(process, number=None, moment=0):
    """Wait for the end of a process, to which a signal goes after a moment. Ctrl-C brings its end
    about after PATIENCE, kill -9 after twice that."""
    signals = [(n * PATIENCE, signal.SIGKILL) for n in (4, 3, 2)] + [(PATIENCE, signal.SIGINT)]
    signals += [(moment, number)] if number else []
    began, pieces = time.monotonic(), []
    while True:
        left = max(0, began + signals[-1][0] - time.monotonic())
        if not select.select([process.errors], [], [], left)[0]:
            os.kill(process.pid, signals.pop()[1])
        elif piece := os.read(process.errors, 1 << 16):
            pieces.append(piece)
        else:
            break
    os.close(process.errors)
    code = os.waitstatus_to_exitcode(os.waitpid(process.pid, 0)[1])
    return Ended(code, b"".join(pieces).decode(errors="replace").strip(), len(signals) < 4)


# What must hold ----------------------------------------------------------------------------------


class Failure(Exception):
    """What did not hold, in a line."""


@contextmanager
def after(what):
    """Failures within say what came before them."""
    try:
        yield
    except Failure as failure:
        raise Failure(f"{what}: {failure}") from None


def check(ended, *signals):
    """A command ended as it may."""
    lines = [line for line in ended.message.splitlines() if not line.startswith(("usage:", " "))]
    if "Traceback" in ended.message:
        raise Failure(f"traceback, {lines[-1][:300]}")
    if ended.code not in (0, 2, *signals, *[130] * ended.long):
        raise Failure(f"exit code {ended.code}, {ended.message[-300:]!r}")
    if len(lines) > MOST_LINES or (ended.code == 2 and not lines):
        raise Failure(f"{len(lines)} lines on standard error, {ended.message[:300]!r}")
    if any("Ctrl-C" in line or "stopped" in line for line in lines) and len(lines) > 1:
        raise Failure(f"stopped in more than a line, {ended.message[:300]!r}")


def run(box, command, **options):
    """Run a command to its end, which must be as it may, and write where it may."""
    out_dirs = [
        word.removeprefix("--out_dir=") for word in command if word.startswith("--out_dir=")
    ]
    named = [(box / out_dir).resolve() for out_dir in out_dirs]
    before = listing(box.parent)
    ended = wait(start(box, command, **options))
    check(ended)
    now = listing(box.parent)
    for path in sorted(path for path in before | now if before.get(path) != now.get(path)):
        inside = path.relative_to(box.parent).parts  # (box, folder, ...)
        if any(folder in (path, *path.parents) or path in folder.parents for folder in named):
            continue
        if inside[0] != box.name or inside[1] not in WRITES[command[0]]:
            raise Failure(f"wrote {'/'.join(inside)}")
    return ended


def listing(folder):
    """{path: what tells whether it was written}; of folders, that they are there."""
    stats = {path: path.lstat() for path in folder.rglob("*")}
    return {path: path.is_dir() or (of.st_mtime_ns, of.st_size) for path, of in stats.items()}


TIMES = {"seconds", "tokens_per_second"}


def without_times(value):
    """What a file of numbers holds, without times, and tensors by their hash."""
    if isinstance(value, torch.Tensor):
        return hashlib.sha256(value.numpy().tobytes()).hexdigest()
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in TIMES}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def read_numbers(path):
    """What a JSON file holds; of a published one's table an object for each run."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if "names" not in content:
        return content
    names = [keys[-1] if keys[-1] in TIMES else ".".join(keys) for keys in content["names"]]
    runs = [dict(zip(names, line, strict=True)) for line in content["runs"]]
    return {"shared": content["shared"], "runs": runs}


def numbers(box, damaged=None):
    """{path: what it holds} of all files of numbers in a box, but for a damaged one."""
    readers = {
        ".json": read_numbers,
        ".jsonl": lambda path: [json.loads(line) for line in path.open(encoding="utf-8")],
        ".pt": lambda path: torch.load(path, weights_only=True),
        ".bin": lambda path: hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    paths = [path for path in box.rglob("*") if path.suffix in readers and path != damaged]
    return {str(path.relative_to(box)): without_times(readers[path.suffix](path)) for path in paths}


def check_numbers(box, right, damaged=None):
    """The box holds the right numbers, and no temporary file."""
    for path in box.rglob("*.tmp"):
        raise Failure(f"{path.relative_to(box)} is left")
    try:
        found = numbers(box, damaged)
    except Exception as error:
        raise Failure(f"a file of numbers cannot be read, {error!r:.200}") from None
    for name in right:
        if found.get(name) != right[name] and box / name != damaged:
            raise Failure(f"other numbers in {name}")


def check_again(world, command):
    """The same command, started again, comes to the right numbers."""
    with after("started again"):
        ended = run(world.box, command)
        if ended.code != 0:
            raise Failure(f"exit code {ended.code}, {ended.message[-300:]!r}")
        check_numbers(world.box, world.right[command[0]])


# Acts on processes: (world, rng) -> what came of it ----------------------------------------------


class World(NamedTuple):
    box: Path  # the folder that an act works in
    stages: dict  # {how far things are: a folder to copy it from}
    right: dict  # {a command's file: the numbers behind it}
    seconds: dict  # {a command's file: how long it takes}

    def enter(self, stage):
        shutil.rmtree(self.box.parent, ignore_errors=True)
        shutil.copytree(self.stages[stage], self.box)
        return self.box

    def any_command(self, rng):
        """(a box, a command that is to be disturbed in it, a moment within its time)."""
        choices = [("text", PREPARE), ("data", TRAIN), ("half", TRAIN), ("runs", ANALYZE)]
        stage, command = rng.choices(choices, weights=(2, 3, 2, 1))[0]
        return self.enter(stage), command, rng.uniform(0, self.seconds[command[0]])


def kill(world, rng):
    """kill -9 at a random moment, up to three times."""
    box, command, moment = world.any_command(rng)
    for _ in range(rng.randint(1, 3)):
        check(wait(start(box, command), signal.SIGKILL, moment), -signal.SIGKILL)
    check_again(world, command)


def interrupt(world, rng):
    """Ctrl-C at a random moment."""
    box, command, moment = world.any_command(rng)
    check(wait(start(box, command), signal.SIGINT, 0.05 + moment), 130)
    check_again(world, command)


def two_at_once(world, rng):
    """The same command twice in one folder: the second is refused, or comes to the same."""
    box, command, moment = world.any_command(rng)
    first = start(box, command)
    time.sleep(moment)
    endings = [wait(process) for process in (first, start(box, command))]
    for ended in endings:
        check(ended)
    if all(ended.code for ended in endings):
        raise Failure(f"neither came to an end, {endings[0].message}")
    check_again(world, command)


def full_disk(world, rng):
    """No file can grow beyond a random size. Later it can."""
    box, command, _ = world.any_command(rng)
    limit = int(10 ** rng.uniform(0, 5.5))
    with after(f"{limit} bytes"):
        ended = run(box, command, file_size=limit)
        if ended.code and not any(path.name in ended.message for path in box.rglob("*")):
            raise Failure(f"no path in {ended.message!r}")
        for path in box.rglob("*.tmp"):
            raise Failure(f"{path.relative_to(box)} is left")
    check_again(world, command)


def closed_pipe(world, rng):
    """Nobody reads what a command prints."""
    box, command, _ = world.any_command(rng)
    reading, writing = os.pipe()
    os.close(reading)
    ended = run(box, command, output=writing)
    os.close(writing)
    if ended.code or ended.message:
        raise Failure(f"exit code {ended.code}, {ended.message!r}")
    check_numbers(box, world.right[command[0]])


def environment(world, rng):
    """Variables that torchrun and shells set, right or wrong."""
    names = rng.sample(("RANK", "WORLD_SIZE", "LOCAL_RANK", "COLUMNS", "TERM"), 2)
    variables = {name: rng.choice(("0", "1", "2", "a", "", "-1", "1e9")) for name in names}
    with after(variables):
        run(world.enter("data"), TRAIN, environment=variables)
        check_again(world, TRAIN)


# Acts on files -----------------------------------------------------------------------------------

READERS = (  # (files, who reads them, how far things are)
    ("mine.txt", PREPARE, "text"),
    ("data/mine/*", TRAIN, "data"),
    ("sweep.toml", TRAIN, "data"),
    ("out/sweep/*/*", TRAIN, "half"),
    ("out/sweep/*/*", TRAIN, "runs"),
    ("out/sweep/*/*", ANALYZE, "published"),
    ("data/mine/*", ANALYZE, "runs"),
    ("out/sweep/seed=0/*", DENSITIES, "runs"),
    ("data/mine/*", DENSITIES, "runs"),
    ("task.jsonl", ANALYZE, "runs"),
    ("published/*.json", REPORT, "published"),
    ("published/*.json", RESTORE, "published"),
)


def damage(world, rng):
    """A file is not what it was. What is refused must go on once it is."""
    pattern, command, stage = rng.choice(READERS)
    box = world.enter(stage)
    path = rng.choice(sorted(path for path in box.glob(pattern) if path.is_file()))
    whole, how = path.read_bytes(), rng.choice(DAMAGES)
    how(path, rng)
    what = f"{how.__name__} of {path.relative_to(box)}"
    with after(what):
        ended = run(box, command)
        refused = "refused" if ended.code else "accepted"
        if command in (REPORT, RESTORE, DENSITIES):
            return refused
        if ended.code:
            path.rmdir() if path.is_dir() else None
            path.write_bytes(whole)
            check_again(world, command)
        elif not path.match("*.t*") and path.name != "task.jsonl":  # a person's may say anything
            try:
                check_numbers(box, world.right[command[0]], path)
            except Failure as failure:
                return f"unnoticed: {what}, {failure}"
    return refused


def flip_bits(path, rng):
    content = bytearray(path.read_bytes())
    for place in rng.choices(range(8 * len(content)), k=rng.randint(1, 3)) if content else ():
        content[place // 8] ^= 1 << place % 8
    path.write_bytes(content)


def truncate(path, rng):
    content = path.read_bytes()
    path.write_bytes(content[: int(rng.random() * len(content))])


def foreign_content(path, rng):
    others = [other.read_bytes() for other in path.parent.iterdir() if other.is_file()]
    short = [b"", b"{}", b"[]", b"3", b"null", b"NaN", b'"x"', b"[" * 100_000, b"\xff\xfe\0"]
    path.write_bytes(rng.choice([*short, *others, rng.randbytes(rng.randint(1, 3000))]))


def nothing_there(path, rng):
    path.unlink()
    path.mkdir() if rng.random() < 0.5 else None  # or a folder


def other_value(path, rng):
    """A value of a JSON file, of one of its lines, or of a checkpoint becomes another; a config
    has one more."""
    if path.suffix == ".pt":
        torch.save(with_other_value(torch.load(path, weights_only=True), rng), path)
    elif path.suffix in (".json", ".jsonl", ".toml"):
        text = path.read_text(encoding="utf-8")
        lines = [text] if path.suffix == ".json" else text.splitlines()
        place = rng.randrange(len(lines)) if lines else 0
        if path.suffix == ".toml":
            key = rng.choice([*OPTIONS, "point", "sweep", "name", "rung", "nonsense"])
            lines.insert(place, f"{key} = {rng.choice(TOML_VALUES)}")
        elif lines:
            lines[place] = json.dumps(with_other_value(json.loads(lines[place]), rng))
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        flip_bits(path, rng)


def with_other_value(value, rng):
    """A value somewhere in lists and dicts is replaced, or missing."""
    keys = list(value) if isinstance(value, dict) else []
    keys = range(len(value)) if isinstance(value, list) else keys
    if not keys or rng.random() < 0.15:
        return rng.choice(JSON_VALUES)
    key, value = rng.choice(keys), value.copy()
    if rng.random() < 0.2:
        del value[key]
    else:
        value[key] = with_other_value(value[key], rng)
    return value


DAMAGES = (flip_bits, truncate, foreign_content, nothing_there, *[other_value] * 4)
JSON_VALUES = [10**400] + json.loads(r"""[null, true, false, 0, 1, -1, 3, 0.5, -0.5, 1e9,
    1000000000, 18446744073709551616, 1e308, 1e-320, NaN, Infinity, -Infinity, "", "a", "ü", "3",
    "a\u0000b", "a/b", "../../evil", "..", "/", [], {}, [[]], [null], [1, 2, 3], ["a"],
    {"a": 1}, [1e300, 1]]
""")
TOML_VALUES = words(r"""3 -1 0 1.5 nan inf -inf 1e400 99999999999999999999 true "" "a" "a/b" x
    "\u0000" "../../evil" [] [1,2] [[]] {} {a=1} 1979-05-27 07:32:00 ["a",1] [nan] {n_layer=[1,nan]}
    [{name="../../evil"}] [{name="a",rung=1},{name="a"}] [{name="a\u0000"}] {seed=[]} [{}]""")


# Acts on command lines ---------------------------------------------------------------------------

WORDS = words("""nan inf -inf 0 -1 -0 1e400 1e-400 1e308 18446744073709551616 None true 1,,2 , 1,2
    nan,1 [ ] {} ' " a ü 数 \udcff ../../evil a/b . .. * %s {0} - -- \\""")
WORDS += ["", " ", "a b", "a\nb", "a" * 5000]
PATHS = [*words("mine.txt sweep.toml out out/sweep published/sweep.json none ü"), ""]
CHOICES = words("full window strided topk auto cpu cuda mps mine float32 bfloat16")


def any_value(rng, kind):
    """A text that may stand for a value of a kind, in or out of its range."""
    if rng.random() < 0.4:
        return rng.choice(WORDS)
    if kind is int:
        return str(rng.choice((1, 2, 3, 4, 8, int(10 ** rng.uniform(0, 20)), -rng.randint(1, 99))))
    if kind is float:
        return repr(rng.choice((1, -1)) * 10 ** rng.uniform(-30, 30))
    if kind is bool:
        return rng.choice(("true", "false", "True", "1", "yes"))
    return rng.choice(CHOICES)


def fuzz(world, stage, command, plain):
    """A command with any options is refused or not. Then the plain one must go on."""
    box = world.enter(stage)
    ended = run(box, command)
    if ended.long and command[0] != "bench.py" and not list(box.rglob("log.jsonl")):
        raise Failure(f"no answer in {PATIENCE} s")
    if ended.code == 2 and plain is not REPORT:
        check_again(world, plain)
    return "long" if ended.long else "refused" if ended.code else "accepted"


def options_of_train(world, rng):
    names = rng.sample(sorted(OPTIONS), rng.randint(1, 3))
    options = [f"--{name}={any_value(rng, OPTIONS[name].type)}" for name in names]
    more = rng.choice([[], [], [], ["--nonsense"], ["-x"], [rng.choice(PATHS)]])
    config = rng.choice([*["sweep.toml"] * 9, rng.choice(PATHS)])
    program = rng.choice([*["train.py"] * 5, "bench.py"])
    return fuzz(world, "data", [program, config, *options, *more], TRAIN)


def options_of_analyze(world, rng):
    choices = {
        "--sequences": [any_value(rng, int), "1"],
        "--task": ["task.jsonl", *PATHS],
        "--publish": ["published", "out/sweep", "published/new/er"],
        "--restore": ["restored", "published"],
    }
    paths = rng.choices(["out/sweep", *PATHS], k=rng.randint(1, 2))
    return fuzz(world, "published", ["analyze.py", *paths, *any_of(choices, rng)], REPORT)


def options_of_prepare(world, rng):
    choices = {
        "--vocab_size": [any_value(rng, int), "257", "300", "50257"],
        "--name": ["mine", "other", rng.choice(WORDS)],
        "--archive": PATHS,
        "--shards": [any_value(rng, int)],
    }
    source = rng.choice([*["text"] * 9, "books", "fineweb", "blimp", "x", ""])
    command = ["prepare.py", source, *rng.choices(["mine.txt"] * 8 + PATHS, k=rng.randint(0, 2))]
    return fuzz(world, "text", command + any_of(choices, rng), PREPARE)


def any_of(choices, rng):
    names = rng.sample(sorted(choices), rng.choice((0, 1, 1, 2, 3)))
    return [f"{name}={rng.choice(choices[name])}" for name in names]


# The campaign ------------------------------------------------------------------------------------

ACTS = (kill, interrupt, two_at_once, full_disk, closed_pipe, environment, *[damage] * 6)
ACTS += (options_of_train, options_of_train, options_of_analyze, options_of_prepare)


def make_world(folder):
    """The stages, each by the commands themselves, undisturbed."""
    names = ("text", "data", "half", "runs", "published")
    world = World(folder / "world/box", {name: folder / name for name in names}, {}, {})
    world.stages["text"].mkdir()
    for name, text in (("mine.txt", TEXT), ("sweep.toml", SWEEP), ("task.jsonl", ITEM)):
        (world.stages["text"] / name).write_text(text, encoding="utf-8")
    for earlier, command, stage in (
        ("text", PREPARE, "data"),
        ("data", TRAIN, "runs"),
        ("runs", ANALYZE, "published"),
    ):
        box, began = world.enter(earlier), time.monotonic()
        ended = run(box, command)
        assert ended.code == 0, ended.message
        world.seconds[command[0]] = time.monotonic() - began
        world.right[command[0]] = numbers(box)
        shutil.copytree(box, world.stages[stage])
    process = start(world.enter("data"), TRAIN)
    while not (world.box / "out/sweep/seed=0/ckpt.pt").exists():
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    wait(process)
    shutil.copytree(world.box, world.stages["half"])
    return world


def campaign(seed, minutes, only):
    """Commit acts. Returns {kind of act: {what came of it: how often}}."""
    counts = collections.defaultdict(collections.Counter)
    in_memory = "/dev/shm" if Path("/dev/shm").is_dir() else None  # no waiting for a disk
    with tempfile.TemporaryDirectory(dir=in_memory) as folder:
        world = make_world(Path(folder))
        number, deadline = only or 0, time.monotonic() + 60 * minutes
        while time.monotonic() < deadline and (only is None or number == only):
            rng = random.Random(f"{seed} {number}")
            act = rng.choice(ACTS)
            started.clear()
            try:
                outcome = act(world, rng) or "right"
            except Failure as failure:
                outcome = f"failed: {failure}"
            if ":" in outcome:
                command = shlex.join(started[0])
                print(
                    f"--seed {seed} --only {number}  {act.__name__}, {command}: {outcome}",
                    flush=True,
                )
            counts[act.__name__][outcome.split(":")[0]] += 1
            number += 1
    return counts


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--only", type=int, help="the number of the one act to commit")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    # Nothing leaves this machine, and figures lose their layout, most of the time of a report.
    prepare.BOOKS_URL = prepare.BLIMP_URL = prepare.FINEWEB_URL = os.environ["https_proxy"] = (
        NOWHERE
    )
    draw = plt.subplots
    plt.subplots = lambda *sizes, layout=None, **options: draw(*sizes, **options)
    counts = campaign(arguments.seed, arguments.minutes, arguments.only)
    total = sum(counts.values(), collections.Counter())
    for act, outcomes in (*sorted(counts.items()), ("all", total)):
        words = ", ".join(f"{n} {outcome}" for outcome, n in outcomes.most_common())
        print(f"{act:20}{outcomes.total():6}  {words}")
    print(f"seed {arguments.seed}")
    sys.exit(1 if total["failed"] else 0)


if __name__ == "__main__":
    main()
