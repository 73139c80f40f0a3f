"""data/prepare.py: tokens, splits and choice items of every source, and servers that misbehave."""

import hashlib
import io
import json
import os
import signal
import struct
import subprocess
import sys
import tarfile
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from conftest import REPOSITORY
from data import files, prepare
from data.files import BadInput
from data.read import load_pairs


@pytest.fixture
def data_folder(tmp_path, monkeypatch):
    """A temporary folder that prepare.py, which writes beside itself, takes for its own."""
    monkeypatch.setattr(prepare, "__file__", str(tmp_path / "prepare.py"))
    return tmp_path


@pytest.fixture
def fake_ranks(monkeypatch):
    """Instead of GPT-2's 50256 ranks: bytes, three merges, and names that no text contains."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    for token in (b"th", b"the", b" a"):
        ranks[token] = len(ranks)
    while len(ranks) < 50256:
        ranks[b"\xff\xfe" + struct.pack(">I", len(ranks))] = len(ranks)
    monkeypatch.setattr(prepare, "gpt2_ranks", lambda: ranks)


def tokens_of(folder, split):
    return np.fromfile(folder / f"{split}.bin", dtype=np.uint16)


def text_of(folder, split):
    """A file of byte tokens as text, each end-of-text as a line feed."""
    tokens = tokens_of(folder, split).tolist()
    return bytes(token if token < 256 else 10 for token in tokens).decode()


def random_words(seed, n):
    letters = np.random.default_rng(seed).integers(26, size=(n, 5))
    return " ".join("".join(chr(97 + letter) for letter in word) for word in letters)


def first_byte(name):
    return hashlib.sha256(name.encode()).digest()[0]


def check_dataset(folder):
    """What every dataset promises; returns meta.json and the choice items."""
    assert not list(folder.glob("*.tmp"))
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    names = ("train.bin", "val.bin", "choices.jsonl")
    content = b"".join((folder / name).read_bytes() for name in names)
    assert meta["sha256"] == hashlib.sha256(content).hexdigest()
    end_of_text = meta["vocab_size"] - 1
    for split in ("train", "val"):
        tokens = tokens_of(folder, split)
        assert len(tokens) == meta["tokens"][split]
        assert tokens.max() == end_of_text
        assert (tokens == end_of_text).sum() == meta["documents"][split]
    lines = (folder / "choices.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == meta["choices"]
    return meta, [json.loads(line) for line in lines]


def check_choices(items, held_out, training):
    """The true continuation follows its context in a held-out text, which has the other three too;
    no context comes from training text."""
    for item in items:
        assert len(item["choices"]) == len(set(item["choices"])) == 4
        true_text = item["context"] + item["choices"][item["answer"]]
        document = next(text for text in held_out if true_text in text)
        assert all(choice in document for choice in item["choices"])
        assert not any(item["context"] in text for text in training)


# Tokens -------------------------------------------------------------------------------------------


def test_byte_tokens_need_no_download_and_are_the_utf8_bytes(monkeypatch):
    monkeypatch.setattr(prepare, "gpt2_ranks", lambda: pytest.fail("downloaded"))
    text = "naïve\tcode, 数 \n\n  done"
    encoding = prepare.tokenizer(257)
    assert encoding.n_vocab == 257
    assert encoding.encode_ordinary(text) == list(text.encode())
    assert encoding.decode(list(text.encode())) == text


def test_truncated_ranks_are_a_smaller_vocabulary(fake_ranks):
    # 256: "th", 257: "the", 258: " a"
    assert prepare.tokenizer(258).encode_ordinary("the") == [256, 101]
    assert prepare.tokenizer(259).encode_ordinary("the a") == [257, 32, 97]
    assert prepare.tokenizer(260).encode_ordinary("the a") == [257, 258]


def test_the_last_token_is_end_of_text(fake_ranks):
    for vocab_size in (257, 260, 50257):
        encoding = prepare.tokenizer(vocab_size)
        assert encoding.n_vocab == vocab_size
        assert encoding.decode([vocab_size - 1]) == "<|endoftext|>"


def test_a_vocabulary_that_cannot_be_had_is_refused(data_folder, monkeypatch, refused):
    def offline():
        raise ConnectionError("no route to host")

    monkeypatch.setattr(prepare, "gpt2", offline)
    message = refused(prepare.main, ["pycode", "--vocab_size", 8192])
    assert "TIKTOKEN_CACHE_DIR" in message and "ConnectionError" in message


@pytest.mark.parametrize("vocab_size", [0, 256, 50258])
def test_impossible_vocabularies_are_refused(vocab_size, data_folder, refused):
    message = refused(prepare.main, ["pycode", "--vocab_size", vocab_size])
    assert f"--vocab_size {vocab_size} must lie between" in message


# Sources ------------------------------------------------------------------------------------------


def test_pycode_splits_the_standard_library_by_file(data_folder):
    prepare.main(["pycode"])
    meta, items = check_dataset(data_folder / "pycode")
    train, val = prepare.pycode()
    assert not set(train) & set(val)
    assert not any("import idlelib.idle_test" in text for text in val)  # no tests
    assert meta["documents"] == {"train": len(train), "val": len(val)}
    assert meta["vocab_size"] == 257
    assert meta["tokens"]["train"] > 5_000_000
    assert meta["tokens"]["val"] > 300_000
    assert len(items) >= 1000
    check_choices(items[:100], val, [])
    # Modules borrow paragraphs from one another, so a few contexts may stand in both.
    training = "\0".join(train)
    assert sum(item["context"] in training for item in items[:200]) < 0.04 * 200


def write_archive(file, files, compression):
    """A tar of {name: bytes} into a path or a file object."""
    target = {"fileobj": file} if isinstance(file, io.BytesIO) else {"name": file}
    with tarfile.open(**target, mode=f"w:{compression}") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


BOOKS = {f"author{i}/title{i}.md": random_words(i, 300) for i in range(300)}
HELD_OUT_BOOKS = [text for name, text in BOOKS.items() if first_byte(name) < 4]
TRAINING_BOOKS = [text for name, text in BOOKS.items() if 4 <= first_byte(name) < 160]


@pytest.fixture
def expected_books(monkeypatch):
    """Our BOOKS take the place of the published ones."""
    used = {name: text.encode() for name, text in BOOKS.items() if first_byte(name) < 160}
    monkeypatch.setattr(prepare, "BOOKS", prepare.summary_of(used))


@pytest.fixture
def books_archive(tmp_path, expected_books):
    """books_archive(compression) -> the path of an archive of BOOKS, and of files that are none."""
    too_large = next(f"big/{i}.md" for i in range(999) if first_byte(f"big/{i}.md") < 4)
    files = {
        **{f"top/{name}": text.encode() for name, text in BOOKS.items()},
        f"top/{too_large}": b"x" * 2_000_001,
        "top/README.md": b"no author",
        "top/author/a/b.md": b"too deep",
        "top/author/notes.txt": b"not markdown",
    }

    def write(compression):
        path = tmp_path / f"books.tar.{compression}"
        write_archive(path, files, compression)
        return path

    return write


def test_books_are_split_by_the_hash_of_their_names(data_folder, books_archive):
    prepare.main(["books", "--archive", str(books_archive("gz"))])
    meta, items = check_dataset(data_folder / "books")
    assert meta["documents"] == {"val": len(HELD_OUT_BOOKS), "train": len(TRAINING_BOOKS)}
    val, train = text_of(data_folder / "books", "val"), text_of(data_folder / "books", "train")
    for text in HELD_OUT_BOOKS:
        assert text in val and text not in train
    for text in TRAINING_BOOKS:
        assert text in train and text not in val
    not_held_out = [text for text in BOOKS.values() if text not in HELD_OUT_BOOKS]
    check_choices(items, HELD_OUT_BOOKS, not_held_out)


def test_books_are_the_same_however_they_are_compressed(data_folder, books_archive):
    for compression in ("gz", "xz"):
        archive = str(books_archive(compression))
        prepare.main(["books", "--archive", archive, "--name", compression])
    for name in ("train.bin", "val.bin", "choices.jsonl"):
        assert (data_folder / "xz" / name).read_bytes() == (data_folder / "gz" / name).read_bytes()


def test_a_book_that_stands_twice_is_taken_once():
    named = [("a", "same"), ("b", "other"), ("c", "same"), ("d", " \n")]
    named.append(("e", "held out"))
    is_val = {"c", "e"}.__contains__
    assert prepare.split_by_name(named, is_val, "x") == (["same", "other"], ["held out"])
    with pytest.raises(BadInput, match="x leaves no validation documents"):
        prepare.split_by_name(named[:4], is_val, "x")


@pytest.mark.parametrize("kind", ["not_an_archive", "cut_short", "without_books", "missing"])
def test_books_refuses_what_is_no_archive_of_books(kind, data_folder, tmp_path, refused):
    archive = tmp_path / f"{kind}.tar"
    if kind == "not_an_archive":
        archive.write_text("hello", encoding="utf-8")
    if kind == "cut_short":
        books = {f"top/a/{i}.md": random_words(i, 4000).encode() for i in range(20)}
        write_archive(archive, books, "xz")
        archive.write_bytes(archive.read_bytes()[:20000])
    if kind == "without_books":
        write_archive(archive, {"top/readme": b"hello"}, "gz")
    message = refused(prepare.main, ["books", "--archive", archive])
    assert f"{kind}.tar" in message
    assert not (data_folder / "books").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="not every system has sha256sum")
def test_the_books_have_the_sum_that_sha256sum_gives(tmp_path):
    contents = {"b/ü.md": b"hello", "a/b.md": b"world"}
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    command = "sha256sum a/b.md b/ü.md | sha256sum"
    printed = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    sha256 = printed.stdout.split()[0]
    assert prepare.summary_of(contents) == {"books": 2, "bytes": 10, "sha256": sha256}


@pytest.mark.parametrize("compression", ["", "gz", "xz", "bz2"])
def test_a_flipped_bit_in_an_archive_is_noticed_or_changes_nothing(
    compression, books_archive, tmp_path
):
    archive = books_archive(compression)
    whole, right = archive.read_bytes(), prepare.books(archive)
    rng = np.random.default_rng(0)
    for place in rng.integers(8 * len(whole), size=40):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        archive.write_bytes(damaged)
        try:
            assert prepare.books(archive) == right, place
        except BadInput as error:
            assert archive.name in str(error) and "\n" not in str(error)
            assert len(str(error)) < 600


def test_own_text_holds_out_the_last_tenth_of_each_file(data_folder, tmp_path):
    texts = [random_words(i, 2000).replace(" ", "\n") for i in range(2)]
    paths = [tmp_path / f"{i}.txt" for i in range(2)]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text, encoding="utf-8")
    prepare.main(["text", *map(str, paths), "--name", "mine"])
    meta, items = check_dataset(data_folder / "mine")
    assert meta["documents"] == {"train": 2, "val": 2}
    train, val = text_of(data_folder / "mine", "train"), text_of(data_folder / "mine", "val")
    assert sorted(train.split() + val.split()) == sorted(" ".join(texts).split())
    assert not set(train.split()) & set(val.split())  # cut at a line's start: no word is halved
    assert len(val) == pytest.approx(len(train) / 9, rel=0.01)
    check_choices(items, [val], [train])


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["text", "latin.txt"], "latin.txt is not UTF-8 (byte 2)"),
        (["text", "."], "is a folder"),
        (["text", "none.txt"], "none.txt"),
        (["text", "empty.txt"], "empty.txt holds too little text"),
        (["text", "long.txt", "empty.txt"], "empty.txt holds too little text"),
        (["text", "letter.txt"], "letter.txt holds too little text"),
        (["text", "blank_end.txt"], "blank_end.txt holds too little text"),
        (["text", "utf16.txt"], "utf16.txt is no text"),
        (["text", "long.txt", "--vocab_size", "256"], "--vocab_size 256"),
        (["text", "none.txt", "--vocab_size", "256"], "--vocab_size 256"),
        (["books", "--archive", ""], "Is a directory"),
        (["books", "--archive", "none.tar.gz"], "none.tar.gz: No such file"),
        (["books", "--archive", "long.txt"], "long.txt cannot be read as a tar archive"),
        (["text", "long.txt", "--shards", "2"], "--shards goes with fineweb"),
        (["fineweb", "--shards", "1" + "0" * 30], "must lie between 1 and"),
        (["text"], "at least one file"),
        (["pycode", "file.txt"], "takes no files"),
        (["pycode", "--archive", "x"], "--archive"),
        (["blimp", "--vocab_size", "257"], "--vocab_size"),
        (["blimp", "folder"], "takes no files"),
        (["fineweb", "--vocab_size", "257"], "--vocab_size"),
        (["fineweb", "--shards", "0"], "--shards"),
        (["text", "long.txt", "--name=--"], "--name=-- gives no value"),
        (["text", "long.txt", "--vocab_size=--"], "--vocab_size=-- gives no value"),
    ],
)
def test_what_is_no_source_is_refused(arguments, words, data_folder, monkeypatch, refused):
    monkeypatch.chdir(data_folder)
    (data_folder / "latin.txt").write_bytes("naïve".encode("latin-1"))
    (data_folder / "utf16.txt").write_bytes("a text of Windows".encode("utf-16-le"))
    texts = {"empty": "\n", "letter": "a", "blank_end": "text" + 9 * "\n", "long": 99 * "text "}
    for name, text in texts.items():
        (data_folder / f"{name}.txt").write_text(text, encoding="utf-8")
    before = sorted(data_folder.rglob("*"))
    assert words in refused(prepare.main, arguments)
    assert sorted(data_folder.rglob("*")) == before


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "/x", "a/b", "ü", "a\\b", "a\0"])
def test_a_dataset_is_never_written_outside_its_folder(name, data_folder, tmp_path, refused):
    (tmp_path / "mine.txt").write_text(random_words(0, 100), encoding="utf-8")
    arguments = ["text", tmp_path / "mine.txt", "--name", name]
    assert "must be a name" in refused(prepare.main, arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_byte_order_mark_is_no_text(data_folder, tmp_path):
    text = random_words(0, 100)
    for name, encoding in (("plain", "utf-8"), ("marked", "utf-8-sig")):
        (tmp_path / f"{name}.txt").write_text(text, encoding=encoding)
        prepare.main(["text", str(tmp_path / f"{name}.txt"), "--name", name])
    assert text_of(data_folder / "marked", "train") == text_of(data_folder / "plain", "train")


# Whole or as it was -------------------------------------------------------------------------------

PREPARE = """
import resource, sys, time
from pathlib import Path
from data import prepare
prepare.__file__ = str(Path.cwd() / "prepare.py")
"""


def prepare_apart(code, folder, *arguments, **options):
    """A process that runs prepare.py's main behind code, beside folder/prepare.py."""
    command = [sys.executable, "-c", PREPARE + code + "\nprepare.main(sys.argv[1:])", *arguments]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(command, cwd=folder, env=environment, **options)


def sentence_of(process, code):
    """The one sentence with which a process ended."""
    printed, message = process.communicate(timeout=60)
    assert process.returncode == code, message
    assert printed == "" and len(message.strip().splitlines()) == 1
    return message


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def before(data_folder):
    """What the dataset `mine` holds before new.txt, twice as long, is to take its place."""
    for name, n_words in (("old", 1000), ("new", 2000)):
        (data_folder / f"{name}.txt").write_text(random_words(0, n_words), encoding="utf-8")
    prepare.main(["text", str(data_folder / "old.txt"), "--name", "mine"])
    return contents(data_folder / "mine")


NEW = ("text", "new.txt", "--name", "mine")


@pytest.mark.skipif(os.name == "nt", reason="needs limits on processes")
@pytest.mark.parametrize("limit", [0, 100, 3_000, 20_000])
def test_a_full_disk_leaves_the_former_dataset(limit, before, data_folder):
    """A limit on the size of files stands in for the disk."""
    code = f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
    message = sentence_of(prepare_apart(code, data_folder, *NEW), 2)
    assert f"{data_folder / 'mine'} cannot be written (File too large)" in message
    assert contents(data_folder / "mine") == before
    assert prepare_apart("", data_folder, *NEW).wait() == 0
    check_dataset(data_folder / "mine")
    assert contents(data_folder / "mine") != before


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is no signal there")
@pytest.mark.parametrize("moment", ["make_choices", "sha256_of", "sync", "os.replace"])
def test_ctrl_c_leaves_the_former_dataset_or_the_new_one(moment, before, data_folder):
    owner, _, name = f"prepare.{moment}".rpartition(".")
    code = f"""
original = {owner}.{name}
def slow(*arguments):
    print("now", flush=True)
    time.sleep(0.3)
    return original(*arguments)
{owner}.{name} = slow
"""
    process = prepare_apart(code, data_folder, *NEW)
    assert process.stdout.readline() == "now\n"
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=60)
    check_dataset(data_folder / "mine")
    if moment == "os.replace":  # too late
        assert process.returncode == 0 and message == ""
        assert contents(data_folder / "mine") != before
    else:
        assert process.returncode == 130 and len(message.strip().splitlines()) == 1
        assert "a dataset that was there is whole" in message
        assert contents(data_folder / "mine") == before


@pytest.mark.skipif(os.name == "nt", reason="no such signal there")
def test_what_a_killed_process_left_does_not_stay(before, data_folder):
    code = "prepare.sha256_of = lambda paths: (print('now', flush=True), time.sleep(60))"
    process = prepare_apart(code, data_folder, *NEW)
    assert process.stdout.readline() == "now\n"
    process.kill()
    process.communicate()
    left = contents(data_folder / "mine")
    assert {name: left[name] for name in before} == before and "train.bin.tmp" in left
    assert prepare_apart("", data_folder, *NEW).wait() == 0
    check_dataset(data_folder / "mine")


@pytest.mark.skipif(files.fcntl is None, reason="this system has no such locks")
def test_a_dataset_is_prepared_by_one_process_at_a_time(before, data_folder, refused):
    with files.locked(data_folder / "mine"):
        message = sentence_of(prepare_apart("", data_folder, *NEW), 2)
    assert "mine is in use by another process" in message
    assert contents(data_folder / "mine") == before


def test_a_closed_pipe_does_not_stop_the_preparing(before, data_folder):
    reading, writing = os.pipe()
    os.close(reading)
    process = prepare_apart("", data_folder, *NEW, stdout=writing)
    os.close(writing)
    assert process.communicate()[1] == "" and process.returncode == 0
    assert contents(data_folder / "mine") != before


# BLiMP --------------------------------------------------------------------------------------------

PARADIGMS = {"b_island": 23, "a_agreement": 11}  # and how many pairs


def blimp_file(paradigm, n):
    lines = [
        {"sentence_good": f"{paradigm} Zoë {i}.", "sentence_bad": f"{i}", "UID": paradigm, "x": 1}
        for i in range(n)
    ]
    return "".join(json.dumps(line) + "\n" for line in lines)


BLIMP = {f"{paradigm}.jsonl": blimp_file(paradigm, n) for paradigm, n in PARADIGMS.items()}


def check_blimp(folder):
    """All pairs, paradigm by paradigm, and every tenth."""
    for name, every in (("blimp", 1), ("tenth", 10)):
        assert load_pairs(folder / f"{name}.jsonl") == [
            {"paradigm": paradigm, "good": f"{paradigm} Zoë {i}.", "bad": f"{i}"}
            for paradigm in ("a_agreement", "b_island")
            for i in range(0, PARADIGMS[paradigm], every)
        ]


def test_blimp_of_a_local_folder(data_folder, tmp_path):
    for name, text in BLIMP.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    prepare.main(["blimp", "--archive", str(tmp_path)])
    check_blimp(data_folder / "blimp")


def test_blimp_is_downloaded_once(server, data_folder, monkeypatch):
    archive = io.BytesIO()
    files = {f"blimp-3e5/data/{name}": text.encode() for name, text in BLIMP.items()}
    others = {"blimp-3e5/raw_results/summary/models.jsonl": b"{}", "blimp-3e5/data/README.md": b""}
    write_archive(archive, {**files, **others}, "gz")
    server.files["blimp.tar.gz"] = archive.getvalue()
    monkeypatch.setattr(prepare, "BLIMP_URL", server.url + "blimp.tar.gz")
    prepare.main(["blimp"])
    prepare.main(["blimp"])
    assert len(server.requests) == 1
    check_blimp(data_folder / "blimp")


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("notes.md", b"x", "holds no data/*.jsonl"),
        ("a.jsonl", b"", "holds no data/*.jsonl"),
        ("a.jsonl", b"{", "a.jsonl, line 1: not JSON"),
        ("a.jsonl", b"\n" + b"[" * 100_000, "a.jsonl, line 2: not JSON"),
        ("a.jsonl", b'{"context": "a"}', "a.jsonl, line 1: UID is missing; it is no file of BLiMP"),
        ("a.jsonl", b"[1]", "a.jsonl, line 1: the content must be an object"),
        (
            "a.jsonl",
            b'{"UID": "a", "sentence_good": 2, "sentence_bad": "b"}',
            "a.jsonl, line 1: sentence_good = 2 must be of type str",
        ),
        ("a.jsonl", "{}".encode("utf-16"), "a.jsonl is not UTF-8"),
    ],
)
def test_a_folder_that_is_not_blimps_is_refused(name, text, words, data_folder, tmp_path, refused):
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / name).write_bytes(text)
    assert words in refused(prepare.main, ["blimp", "--archive", tmp_path / "given"])
    assert not (data_folder / "blimp").exists()


def test_half_a_pair_of_surrogates_in_blimp_stays_what_it_is(data_folder, tmp_path):
    """As an escape, which is the one way to write it."""
    line = b'{"UID": "a", "sentence_good": "\\ud800", "sentence_bad": "b"}\n'
    (tmp_path / "a.jsonl").write_bytes(line)
    prepare.main(["blimp", "--archive", str(tmp_path)])
    (pair,) = load_pairs(data_folder / "blimp/blimp.jsonl")
    assert pair == {"paradigm": "a", "good": "\ud800", "bad": "b"}


def test_the_published_tenth_has_a_hundred_pairs_of_each_paradigm():
    pairs = load_pairs(REPOSITORY / "tasks/blimp.jsonl")
    counts = Counter(pair["paradigm"] for pair in pairs)
    assert len(counts) == 67 and set(counts.values()) == {100}
    assert "CC BY 4.0" in (REPOSITORY / "tasks/README.md").read_text(encoding="utf-8")


# Downloads ----------------------------------------------------------------------------------------


@pytest.fixture
def server(monkeypatch):
    """A server of server.files that gives at most server.limit bytes an answer.

    It keeps each request in server.requests as (path, Range). Without server.ranges it serves
    whole files only, and without server.lengths it does not tell their length, as GitHub does
    not of an archive: in chunks, the last of which is empty, or else the answer broke off.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            wanted = self.headers.get("Range")
            server.requests.append((self.path, wanted))
            content = server.files.get(self.path.lstrip("/"))
            if content is None:
                return self.send_error(404)
            start = 0
            if wanted and server.ranges:
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start and start >= len(content):
                return self.send_error(416)
            self.send_response(206 if start else 200)
            piece = content[start : start + server.limit]
            if server.lengths:
                self.send_header("Content-Length", str(len(content) - start))
                self.end_headers()
                self.wfile.write(piece)
            else:
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                end = b"0\r\n\r\n" if len(piece) == len(content) - start else b""
                self.wfile.write(b"%x\r\n%s\r\n%s" % (len(piece), piece, end))
                self.close_connection = True

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.requests, server.limit = {}, [], 10**9
    server.ranges = server.lengths = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.url = f"http://127.0.0.1:{server.server_port}/"
    monkeypatch.setattr(prepare, "FINEWEB_URL", server.url)
    monkeypatch.setattr(prepare, "BOOKS_URL", server.url + "books.tar.gz")
    yield server
    server.shutdown()
    server.server_close()


def test_download_goes_on_where_it_broke_off(server, tmp_path):
    server.files["file"] = content = np.random.default_rng(0).bytes(10_000)
    server.limit = 4_000
    prepare.download(server.url + "file", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == content
    ranges = [wanted for _, wanted in server.requests]
    assert ranges == [None, "bytes=4000-", "bytes=8000-"]


def test_download_that_keeps_breaking_says_so_and_keeps_its_part(server, tmp_path):
    server.files["file"] = content = bytes(10_000)
    server.limit = 1_000
    with pytest.raises(BadInput, match="broke off after 3,000 of 10,000"):
        prepare.download(server.url + "file", tmp_path / "file")
    assert not (tmp_path / "file").exists()
    server.limit = 10**9
    prepare.download(server.url + "file", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == content
    assert not (tmp_path / "file.part").exists()


def test_download_of_unknown_length(server, tmp_path):
    server.files["file"] = content = np.random.default_rng(0).bytes(10_000)
    server.lengths = server.ranges = False
    prepare.download(server.url + "file", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == content
    server.limit = 4_000
    with pytest.raises(BadInput, match="could not be downloaded .IncompleteRead"):
        prepare.download(server.url + "file", tmp_path / "second")
    assert not (tmp_path / "second").exists()


@pytest.mark.skipif(os.name == "nt", reason="needs limits on processes")
def test_a_full_disk_is_not_called_a_fault_of_the_network(server, tmp_path):
    server.files["file"] = content = bytes(10_000)
    code = (
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\n"
        "prepare.or_one_sentence(prepare.download, sys.argv[1], Path(sys.argv[2]))"
    )
    process = prepare_apart(code, tmp_path, server.url + "file", tmp_path / "file")
    message = sentence_of(process, 2)
    assert "file.part cannot be written (File too large)" in message
    assert len(server.requests) == 1
    assert (tmp_path / "file.part").stat().st_size == 3000
    prepare.download(server.url + "file", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == content
    assert server.requests[1] == ("/file", "bytes=3000-")


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is no signal there")
def test_ctrl_c_keeps_what_was_downloaded(server, tmp_path):
    server.files["books.tar.gz"] = bytes(10_000_000)
    code = f"""
prepare.BOOKS_URL = {server.url + "books.tar.gz"!r}
write_piece = prepare.write_piece
def slow(*arguments):
    write_piece(*arguments)
    if len(arguments[1]):
        print("now", flush=True)
        time.sleep(60)
prepare.write_piece = slow
"""
    process = prepare_apart(code, tmp_path, "books")
    assert process.stdout.readline() == "now\n"
    process.send_signal(signal.SIGINT)
    assert "a download goes on from where it is" in sentence_of(process, 130)
    assert (tmp_path / "books/books.tar.gz.part").stat().st_size == 1 << 20


def test_download_starts_over_where_a_server_cannot_go_on(server, tmp_path):
    server.files["file"] = b"right" * 100
    server.ranges = False
    (tmp_path / "file.part").write_bytes(b"stale" * 50)
    prepare.download(server.url + "file", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"right" * 100


def test_download_starts_over_where_its_part_is_longer_than_the_file(server, tmp_path):
    server.files["file"] = b"right" * 100
    (tmp_path / "file.part").write_bytes(b"longer than the file" * 100)
    prepare.download(server.url + "file", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"right" * 100


def test_download_of_what_is_not_there(server, tmp_path):
    with pytest.raises(BadInput, match="404"):
        prepare.download(server.url + "missing", tmp_path / "file")


def test_download_from_a_server_that_is_not_there(server, tmp_path):
    server.shutdown()
    server.server_close()
    with pytest.raises(BadInput, match="could not be downloaded"):
        prepare.download(server.url + "file", tmp_path / "file")


def test_books_are_downloaded_once(server, data_folder, expected_books):
    archive = io.BytesIO()
    write_archive(archive, {f"top/{name}": text.encode() for name, text in BOOKS.items()}, "gz")
    server.files["books.tar.gz"] = archive.getvalue()
    prepare.main(["books"])
    prepare.main(["books"])
    assert len(server.requests) == 1
    check_dataset(data_folder / "books")


# Shards of FineWeb-Edu ----------------------------------------------------------------------------

VAL_SHARD = "edu_fineweb_val_000000.bin"
TRAINING_SHARDS = ["edu_fineweb_train_000001.bin", "edu_fineweb_train_000002.bin"]


def shard(tokens, magic=20240520, promised=None):
    """A file of tokens behind its header, which promises as many as there are, if nothing else."""
    header = np.zeros(256, dtype="<i4")
    header[:3] = magic, 1, len(tokens) if promised is None else promised
    return header.tobytes() + np.asarray(tokens, dtype="<u2").tobytes()


def serve_shards(server):
    """Puts three shards of six documents onto the server; returns {name: documents}."""
    encoding = prepare.tokenizer(50257)
    documents = {}
    for k, name in enumerate((VAL_SHARD, *TRAINING_SHARDS)):
        documents[name] = [random_words(i + 10 * k, 400) for i in range(6)]
        tokens = []
        for text in documents[name]:
            tokens += [50256, *encoding.encode_ordinary(text)]
        server.files[name] = shard(tokens)
    return documents


def test_fineweb_joins_its_shards(server, data_folder, fake_ranks):
    documents = serve_shards(server)
    prepare.main(["fineweb", "--shards", "2"])
    meta, items = check_dataset(data_folder / "fineweb")
    assert meta["documents"] == {"train": 12, "val": 6}
    assert meta["vocab_size"] == 50257
    joined = b"".join(server.files[name][1024:] for name in TRAINING_SHARDS)
    assert (data_folder / "fineweb/train.bin").read_bytes() == joined
    assert items
    check_choices(items, documents[VAL_SHARD], documents[TRAINING_SHARDS[0]])


def test_fineweb_asks_again_only_for_new_shards(server, data_folder, fake_ranks):
    serve_shards(server)
    prepare.main(["fineweb", "--shards", "1"])
    assert len(server.requests) == 2
    prepare.main(["fineweb", "--shards", "2"])
    assert [path for path, _ in server.requests[2:]] == [f"/{TRAINING_SHARDS[1]}"]
    meta, _ = check_dataset(data_folder / "fineweb")
    assert meta["documents"]["train"] == 12


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(b"<html>not found</html>", id="html"),
        pytest.param(b"", id="empty"),
        pytest.param(shard([1, 2], magic=1), id="magic"),
        pytest.param(shard([1, 2, 3], promised=4), id="length"),
        pytest.param(shard([1, 2, 3])[:11], id="short"),
        pytest.param(shard([1, 2, 3])[:-1], id="odd"),
        pytest.param(shard([1, 50257, 3]), id="token"),
    ],
)
def test_a_file_that_is_no_shard_is_refused_and_removed(
    wrong, server, data_folder, fake_ranks, refused
):
    serve_shards(server)
    server.files[TRAINING_SHARDS[0]] = wrong
    assert TRAINING_SHARDS[0] in refused(prepare.main, ["fineweb"])
    assert not (data_folder / "fineweb/meta.json").exists()
    serve_shards(server)
    prepare.main(["fineweb"])
    check_dataset(data_folder / "fineweb")
