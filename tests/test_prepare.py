"""data/prepare.py: splits, tokens and choice items of every source, and downloads from a server that misbehaves."""
import hashlib
import io
import json
import struct
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from data import prepare


@pytest.fixture
def data_folder(tmp_path, monkeypatch):
    """prepare.py writes beside itself: let it stand in a temporary folder."""
    monkeypatch.setattr(prepare, "__file__", str(tmp_path / "prepare.py"))
    return tmp_path


@pytest.fixture
def fake_ranks(monkeypatch):
    """A stand-in for GPT-2's 50256 ranks: bytes, three merges, and names that no text contains."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    for token in (b"th", b"the", b" a"):
        ranks[token] = len(ranks)
    while len(ranks) < 50256:
        ranks[b"\xff\xfe" + struct.pack(">I", len(ranks))] = len(ranks)
    monkeypatch.setattr(prepare, "gpt2_ranks", lambda: ranks)


def tokens_of(folder, split):
    return np.fromfile(folder / f"{split}.bin", dtype=np.uint16)


def decode(folder, split):
    return bytes(t if t < 256 else 10 for t in tokens_of(folder, split).tolist()).decode()


def check_dataset(folder):
    """What every dataset promises."""
    meta = json.loads((folder / "meta.json").read_text())
    digest = hashlib.sha256(b"".join((folder / name).read_bytes() for name in ("train.bin", "val.bin", "choices.jsonl")))
    assert meta["sha256"] == digest.hexdigest()
    for split in ("train", "val"):
        tokens = tokens_of(folder, split)
        assert len(tokens) == meta["tokens"][split] and tokens.max() == meta["vocab_size"] - 1
        assert (tokens == meta["vocab_size"] - 1).sum() == meta["documents"][split]
    assert not list(folder.glob("*.tmp"))
    items = [json.loads(line) for line in (folder / "choices.jsonl").read_text().splitlines()]
    assert len(items) == meta["choices"]
    return meta, items


def check_choices(items, held_out, training):
    """The true continuation follows its context in a held-out text; nothing comes from training text alone."""
    for item in items:
        assert len(item["choices"]) == len(set(item["choices"])) == 4
        document = next(text for text in held_out if item["context"] + item["choices"][item["answer"]] in text)
        assert all(choice in document for choice in item["choices"])
        assert not any(item["context"] in text for text in training)


def words(seed, n):
    rng = np.random.default_rng(seed)
    return " ".join("".join(chr(97 + letter) for letter in rng.integers(26, size=5)) for _ in range(n))


# Tokens -------------------------------------------------------------------------------------------------------

def test_byte_tokens_need_no_download_and_are_the_utf8_bytes(monkeypatch):
    monkeypatch.setattr(prepare, "gpt2_ranks", lambda: pytest.fail("downloaded"))
    text = "naïve\tcode, 数 \n\n  done"
    encoding = prepare.tokenizer(257)
    assert encoding.encode_ordinary(text) == list(text.encode())
    assert encoding.decode(list(text.encode())) == text and encoding.n_vocab == 257


def test_truncated_ranks_are_a_smaller_vocabulary(fake_ranks):
    assert prepare.tokenizer(258).encode_ordinary("the") == [256, 101]          # 256: th, 257: the, 258: " a"
    assert prepare.tokenizer(259).encode_ordinary("the a") == [257, 32, 97]
    assert prepare.tokenizer(260).encode_ordinary("the a") == [257, 258]
    assert prepare.tokenizer(50257)._special_tokens == {"<|endoftext|>": 50256}


@pytest.mark.parametrize("vocab_size", [0, 256, 50258])
def test_impossible_vocabularies_are_refused(vocab_size, data_folder, capsys):
    refused(["pycode", "--vocab_size", str(vocab_size)], "--vocab_size", capsys)


def refused(arguments, word, capsys):
    with pytest.raises(SystemExit) as stop:
        prepare.main(arguments)
    message = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and word in message and "\n" not in message and "Traceback" not in message
    return message


# Sources ------------------------------------------------------------------------------------------------------

def test_pycode_splits_by_file_without_tests(data_folder):
    prepare.main(["pycode"])
    meta, items = check_dataset(data_folder / "pycode")
    train, val = prepare.pycode()
    assert not set(train) & set(val) and meta["documents"] == {"train": len(train), "val": len(val)}
    assert not any("import idlelib.idle_test" in text for text in val)
    assert meta["vocab_size"] == 257 and meta["tokens"]["train"] > 5_000_000 and meta["tokens"]["val"] > 300_000
    assert len(items) >= 1000
    check_choices(items[:100], val, [])
    training = "\0".join(train)  # modules borrow paragraphs from one another, so a few words may stand in both
    assert sum(item["context"] in training for item in items[:200]) < 0.04 * 200


def write_archive(path, files, mode="w:gz"):
    with tarfile.open(path, mode) as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text))


def test_books_follows_the_pages_rule(data_folder, tmp_path):
    names = [f"author{i}/title{i}.md" for i in range(300)]
    files = {f"top/{name}": words(i, 300).encode() for i, name in enumerate(names)}
    files |= {"top/README.md": b"no author", "top/author/a/b.md": b"too deep", "top/author/notes.txt": b"not markdown"}
    big = next(f"big/{i}.md" for i in range(999) if hashlib.sha256(f"big/{i}.md".encode()).digest()[0] < 4)
    files[f"top/{big}"] = b"x" * 2_000_001
    for mode, suffix in (("w:gz", "gz"), ("w:xz", "xz")):
        write_archive(tmp_path / f"books.tar.{suffix}", files, mode)
        prepare.main(["books", "--archive", str(tmp_path / f"books.tar.{suffix}"), "--name", suffix])
    key = {name: hashlib.sha256(name.encode()).digest()[0] for name in names}
    meta, items = check_dataset(data_folder / "gz")
    assert meta["documents"] == {"val": sum(k < 4 for k in key.values()), "train": sum(4 <= k < 160 for k in key.values())}
    held_out = [files[f"top/{name}"].decode() for name in names if key[name] < 4]
    check_choices(items, held_out, [files[f"top/{name}"].decode() for name in names if key[name] >= 4])
    for text in held_out:
        assert text in decode(data_folder / "gz", "val") and text not in decode(data_folder / "gz", "train")
    assert (data_folder / "xz/train.bin").read_bytes() == (data_folder / "gz/train.bin").read_bytes()


def test_books_refuses_what_is_no_archive(data_folder, tmp_path, capsys):
    (tmp_path / "not.tar").write_text("hello")
    refused(["books", "--archive", str(tmp_path / "not.tar")], "not.tar", capsys)
    write_archive(tmp_path / "whole.tar.xz", {f"top/a/{i}.md": words(i, 4000).encode() for i in range(20)}, "w:xz")
    (tmp_path / "cut.tar.xz").write_bytes((tmp_path / "whole.tar.xz").read_bytes()[:20000])
    refused(["books", "--archive", str(tmp_path / "cut.tar.xz")], "cut.tar.xz", capsys)
    write_archive(tmp_path / "other.tar.gz", {"top/readme": b"hello"})
    refused(["books", "--archive", str(tmp_path / "other.tar.gz")], "other.tar.gz", capsys)
    refused(["books", "--archive", str(tmp_path / "missing.tar.gz")], "missing.tar.gz", capsys)
    assert not (data_folder / "books/meta.json").exists()


def test_own_text_holds_out_the_last_tenth_of_each_file(data_folder, tmp_path):
    texts = [words(i, 2000).replace(" ", "\n") for i in range(2)]
    for i, text in enumerate(texts):
        (tmp_path / f"{i}.txt").write_text(text)
    prepare.main(["text", str(tmp_path / "0.txt"), str(tmp_path / "1.txt"), "--name", "mine"])
    meta, items = check_dataset(data_folder / "mine")
    train, val = (decode(data_folder / "mine", split) for split in ("train", "val"))
    assert sorted(train.split() + val.split()) == sorted(" ".join(texts).split())
    assert not set(train.split()) & set(val.split()) and len(val) == pytest.approx(len(train) / 9, rel=0.01)
    check_choices(items, [val], [train])
    assert meta["documents"] == {"train": 2, "val": 2}


def test_own_text_refuses_folders_other_encodings_and_nothing(data_folder, tmp_path, capsys):
    (tmp_path / "latin.txt").write_bytes("naïve".encode("latin-1"))
    (tmp_path / "empty.txt").write_text("\n")
    refused(["text", str(tmp_path / "latin.txt")], "latin.txt is not UTF-8", capsys)
    refused(["text", str(tmp_path)], "is a folder", capsys)
    refused(["text", str(tmp_path / "none.txt")], "none.txt", capsys)
    refused(["text", str(tmp_path / "empty.txt")], "more text", capsys)
    refused(["text"], "at least one file", capsys)
    refused(["pycode", "file.txt"], "takes no files", capsys)
    refused(["pycode", "--archive", "x"], "--archive", capsys)
    refused(["fineweb", "--vocab_size", "257"], "--vocab_size", capsys)


# Downloads ----------------------------------------------------------------------------------------------------

def shard(tokens, magic=20240520, promised=None):
    header = np.zeros(256, dtype="<i4")
    header[:3] = magic, 1, len(tokens) if promised is None else promised
    return header.tobytes() + np.asarray(tokens, dtype="<u2").tobytes()


@pytest.fixture
def server(monkeypatch):
    """Serves server.files; gives at most server.limit bytes an answer; counts bytes and requests."""
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            content = server.files.get(self.path.lstrip("/"))
            server.requests.append((self.path, self.headers.get("Range")))
            if content is None:
                return self.send_error(404)
            start = int((self.headers.get("Range") or "bytes=0-")[6:-1]) if server.ranges else 0
            if start and start >= len(content):
                return self.send_error(416)
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            self.wfile.write(content[start:start + server.limit])

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.requests, server.limit, server.ranges = {}, [], 10**9, True
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
    assert [r for _, r in server.requests] == [None, "bytes=4000-", "bytes=8000-"]


def test_download_that_keeps_breaking_says_so_and_keeps_its_part(server, tmp_path):
    server.files["file"] = content = bytes(10_000)
    server.limit = 1_000
    with pytest.raises(prepare.BadInput, match="broke off after 3,000 of 10,000"):
        prepare.download(server.url + "file", tmp_path / "file")
    assert not (tmp_path / "file").exists()
    server.limit = 10**9
    prepare.download(server.url + "file", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == content and not (tmp_path / "file.part").exists()


def test_download_starts_over_where_a_server_cannot_go_on(server, tmp_path):
    server.files["file"] = b"right" * 100
    (tmp_path / "file.part").write_bytes(b"stale" * 50)
    server.ranges = False
    prepare.download(server.url + "file", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"right" * 100
    server.ranges = True
    (tmp_path / "other.part").write_bytes(b"longer than the file" * 100)
    prepare.download(server.url + "file", tmp_path / "other")
    assert (tmp_path / "other").read_bytes() == b"right" * 100


def test_download_of_what_is_not_there(server, tmp_path):
    with pytest.raises(prepare.BadInput, match="404"):
        prepare.download(server.url + "missing", tmp_path / "file")
    server.shutdown()
    server.server_close()
    with pytest.raises(prepare.BadInput, match="could not be downloaded"):
        prepare.download(server.url + "file", tmp_path / "file")


def fineweb_shards(server, fake_ranks=None):
    encoding = prepare.tokenizer(50257)
    documents = {name: [words(i + 10 * k, 400) for i in range(6)] for k, name in enumerate(
        ("edu_fineweb_val_000000.bin", "edu_fineweb_train_000001.bin", "edu_fineweb_train_000002.bin"))}
    for name, texts in documents.items():
        server.files[name] = shard([t for text in texts for t in (50256, *encoding.encode_ordinary(text))])
    return documents


def test_fineweb_joins_shards_and_asks_again_only_for_new_ones(server, data_folder, fake_ranks):
    documents = fineweb_shards(server)
    prepare.main(["fineweb", "--shards", "1"])
    assert len(server.requests) == 2
    prepare.main(["fineweb", "--shards", "2"])
    assert [path for path, _ in server.requests[2:]] == ["/edu_fineweb_train_000002.bin"]
    meta, items = check_dataset(data_folder / "fineweb")
    assert meta["documents"] == {"train": 12, "val": 6} and meta["vocab_size"] == 50257
    joined = b"".join(server.files[f"edu_fineweb_train_00000{i}.bin"][1024:] for i in (1, 2))
    assert (data_folder / "fineweb/train.bin").read_bytes() == joined
    check_choices(items, documents["edu_fineweb_val_000000.bin"], documents["edu_fineweb_train_000001.bin"])


@pytest.mark.parametrize("wrong", [b"<html>not found</html>", shard([1, 2], magic=1), shard([1, 2, 3], promised=4), b""])
def test_fineweb_refuses_a_file_whose_header_or_length_is_wrong(wrong, server, data_folder, fake_ranks, capsys):
    fineweb_shards(server)
    server.files["edu_fineweb_train_000001.bin"] = wrong
    refused(["fineweb"], "edu_fineweb_train_000001.bin", capsys)
    assert not (data_folder / "fineweb/meta.json").exists()
    fineweb_shards(server)
    prepare.main(["fineweb"])  # the wrong file did not stay
    check_dataset(data_folder / "fineweb")


def test_books_are_downloaded_once(server, data_folder):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for i in range(300):
            text = words(i, 50).encode()
            info = tarfile.TarInfo(f"top/a/{i}.md")
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text))
    server.files["books.tar.gz"] = archive.getvalue()
    prepare.main(["books"])
    prepare.main(["books"])
    assert len(server.requests) == 1
    check_dataset(data_folder / "books")
