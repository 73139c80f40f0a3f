"""Text -> data/<name>/{train.bin, val.bin, choices.jsonl, meta.json}, the only files that training and analysis read.

    python data/prepare.py pycode                              this machine's Python standard library, no download
    python data/prepare.py books --vocab_size 8192             483 public-domain books (the published results)
    python data/prepare.py fineweb --shards 10                 FineWeb-Edu, already tokenised, 100 M tokens a shard
    python data/prepare.py text mine.txt more.txt --name mine  your own UTF-8 files

*.bin are uint16 tokens, one end-of-text after each document. choices.jsonl is a downstream task made of the
held-out documents alone: a context and four continuations, of which one is the true one.
"""
import argparse
import hashlib
import json
import lzma
import os
import platform
import random
import re
import sys
import sysconfig
import tarfile
import urllib.error
import urllib.request
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import tiktoken
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))
from data.files import BadInput, or_one_sentence  # noqa: E402

BYTE_VOCAB, GPT2_VOCAB = 257, 50257
BOOKS_URL = ("https://github.com/mlschmitt/classic-books-markdown/archive/"
             "944882722e9a96fa6cf2739dc2ea757e101f412f.tar.gz")
FINEWEB_URL = "https://huggingface.co/datasets/karpathy/fineweb-edu-100B-gpt2-token-shards/resolve/main/"
SHARD_MAGIC, SHARD_VERSION, SHARD_HEADER_BYTES = 20240520, 1, 1024
CONTEXT_WORDS, CONTINUATION_WORDS, MAX_CHOICES = 32, 8, 2000


# Tokens -------------------------------------------------------------------------------------------------------

def tokenizer(vocab_size):
    """A tiktoken.Encoding of `vocab_size` tokens, the last of which is end-of-text. 257: bytes, no download;
    up to 50257: GPT-2's first vocab_size - 1 ranks, which are a byte-pair vocabulary of their own.
    Raises BadInput where GPT-2's ranks are needed and cannot be had."""
    if not BYTE_VOCAB <= vocab_size <= GPT2_VOCAB:
        raise BadInput(f"--vocab_size {vocab_size} must lie between {BYTE_VOCAB} (bytes) and {GPT2_VOCAB} (all of GPT-2's)")
    if vocab_size == BYTE_VOCAB:
        ranks = {bytes([byte]): byte for byte in range(256)}
    else:
        ranks = {token: rank for token, rank in gpt2_ranks().items() if rank < vocab_size - 1}
    # GPT-2's way of cutting text into words; merges never cross a cut, so for bytes it only sets the pace.
    cut = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
    return tiktoken.Encoding(f"nanodepth-{vocab_size}", pat_str=cut, mergeable_ranks=ranks,
                             special_tokens={"<|endoftext|>": vocab_size - 1})


def gpt2_ranks():
    from tiktoken_ext.openai_public import gpt2  # downloads on first use, then reads TIKTOKEN_CACHE_DIR
    try:
        return gpt2()["mergeable_ranks"]
    except Exception as error:  # whatever the network stack raises
        raise BadInput("GPT-2's vocabulary could not be downloaded: go online once, set TIKTOKEN_CACHE_DIR to a folder "
                       f"that holds it, or use --vocab_size {BYTE_VOCAB} for bytes ({type(error).__name__})") from None


def write_tokens(path, documents, encoding):
    """Tokenise documents into a uint16 file, end-of-text after each; returns the number of tokens."""
    n_tokens, end = 0, np.array([encoding.n_vocab - 1], dtype=np.uint16)
    with open(path, "wb") as file, tqdm(total=sum(map(len, documents)), desc=path.stem, unit="B", unit_scale=True, disable=None) as bar:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for text, ids in zip(documents, pool.map(partial(encoding.encode_to_numpy, disallowed_special=()), documents)):
                ids.astype(np.uint16).tofile(file)
                end.tofile(file)
                n_tokens += len(ids) + 1
                bar.update(len(text))
    return n_tokens


def make_choices(documents):
    """Up to MAX_CHOICES items {"context", "choices", "answer"} from held-out documents, the same every time.

    A document is cut into pieces of 32 + 8 words. The question is a piece's first 32; the true continuation its
    last 8; the false ones are the last 8 of three other pieces of the same document, so topic and style give
    nothing away. Chance is one in four.
    """
    rng, items = random.Random(0), []
    size = CONTEXT_WORDS + CONTINUATION_WORDS
    for document in documents:
        words = re.findall(r"\s*\S+", document)
        pieces = [words[i:i + size] for i in range(0, len(words) - size + 1, size)]
        endings = ["".join(piece[CONTEXT_WORDS:]) for piece in pieces]
        distinct = sorted(set(endings))
        if len(distinct) < 4:
            continue
        place = {ending: i for i, ending in enumerate(distinct)}
        for piece, ending in zip(pieces, endings):
            choices = [distinct[i + (i >= place[ending])] for i in rng.sample(range(len(distinct) - 1), 3)]  # all but this one
            answer = rng.randrange(4)
            choices.insert(answer, ending)
            items.append({"context": "".join(piece[:CONTEXT_WORDS]), "choices": choices, "answer": answer})
    return rng.sample(items, min(MAX_CHOICES, len(items)))


def write_dataset(folder, source, encoding, train, val):
    """Every file under a temporary name first; meta.json last, so that a folder with one is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens = {}
    for split, documents in (("train", train), ("val", val)):
        if not documents:
            raise BadInput(f"{source} leaves no {split} documents: give it more text")
        tokens[split] = write_tokens(folder / f"{split}.bin.tmp", documents, encoding)
    finish_dataset(folder, source, encoding.n_vocab, make_choices(val), tokens, {"train": len(train), "val": len(val)})


def finish_dataset(folder, source, vocab_size, choices, tokens, documents):
    digest = hashlib.sha256()
    (folder / "choices.jsonl.tmp").write_text("".join(json.dumps(item) + "\n" for item in choices))
    for name in ("train.bin", "val.bin", "choices.jsonl"):
        with open(folder / f"{name}.tmp", "rb") as file:
            while chunk := file.read(1 << 24):
                digest.update(chunk)
    meta = {"source": source, "tokenizer": "bytes" if vocab_size == BYTE_VOCAB else "gpt2", "vocab_size": vocab_size,
            "documents": documents, "tokens": tokens, "choices": len(choices), "sha256": digest.hexdigest(),
            "python": platform.python_version()}
    (folder / "meta.json.tmp").write_text(json.dumps(meta, indent=1) + "\n")
    (folder / "meta.json").unlink(missing_ok=True)
    for name in ("train.bin", "val.bin", "choices.jsonl", "meta.json"):
        os.replace(folder / f"{name}.tmp", folder / name)
    print(f"{folder}: {tokens['train']:,} training and {tokens['val']:,} validation tokens "
          f"of a vocabulary of {vocab_size:,}, {len(choices):,} choice items")


# Sources ------------------------------------------------------------------------------------------------------

def first_byte(name):
    return hashlib.sha256(name.encode()).digest()[0]


def split_by_name(named_documents, is_val):
    """{name: text} -> training and validation texts; a text seen before is dropped, so that none is in both."""
    train, val, seen = [], [], set()
    for name, text in named_documents:
        if text.strip() and text not in seen:
            seen.add(text)
            (val if is_val(name) else train).append(text)
    return train, val


def pycode():
    """The running Python's standard library, without tests and without the tables and texts that programs wrote; 8 % of
    the files, by the hash of their path, held out."""
    root = Path(sysconfig.get_paths()["stdlib"])
    skipped = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "pydoc_data", "encodings"}
    files = [(path.relative_to(root).as_posix(), path) for path in sorted(root.rglob("*.py"))]
    files = [(name, path) for name, path in files if not skipped & set(Path(name).parts)]
    return split_by_name(((name, path.read_text(encoding="utf-8", errors="replace")) for name, path in files),
                         lambda name: first_byte(name) < 20)


def books(archive):
    """Books of at most 2 MB under an author's folder; by the first byte of the hash of AUTHOR/TITLE.md,
    below 4 is held out, 4 to 159 is for training, the rest is unused."""
    documents = []
    try:
        with tarfile.open(archive) as tar:
            for member in tqdm(tar, desc="reading", unit=" files", disable=None):
                name = member.name.split("/", 1)[-1]
                if (member.isfile() and name.count("/") == 1 and name.endswith(".md") and member.size <= 2_000_000
                        and first_byte(name) < 160):
                    documents.append((name, tar.extractfile(member).read().decode("utf-8", errors="replace")))
    except (tarfile.TarError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise BadInput(f"{archive} is no whole tar archive ({str(error).splitlines()[0]}): download it again") from None
    if not documents:
        raise BadInput(f"{archive} holds no AUTHOR/TITLE.md below its top folder: give the archive of classic-books-markdown")
    return split_by_name(sorted(documents), lambda name: first_byte(name) < 4)


def own_text(paths):
    """The first nine tenths of each file for training, the last tenth, from a line's start, held out."""
    train, val = [], []
    for path in paths:
        try:
            text = Path(path).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise BadInput(f"{path} is not UTF-8 (byte {error.start}): convert it first") from None
        except IsADirectoryError:
            raise BadInput(f"{path} is a folder: name the files in it, such as {path}/*.txt") from None
        cut = text.rfind("\n", 0, len(text) * 9 // 10) + 1 or len(text) * 9 // 10
        train += [text[:cut]] if text[:cut].strip() else []
        val += [text[cut:]] if text[cut:].strip() else []
    return train, val


def download(url, path, tries=3):
    """Fetch url to path through path.part, going on where an earlier try broke off."""
    part = path.with_name(path.name + ".part")
    for _ in range(tries):
        done = part.stat().st_size if part.exists() else 0
        request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                done = done if answer.status == 206 else 0  # a server without ranges starts over
                total = done + int(answer.headers["Content-Length"])
                with open(part, "ab" if done else "wb") as file, \
                        tqdm(total=total, initial=done, desc=path.name, unit="B", unit_scale=True, disable=None) as bar:
                    while chunk := answer.read(1 << 20):
                        file.write(chunk)
                        bar.update(len(chunk))
        except urllib.error.HTTPError as error:
            if error.code == 416:  # the part is longer than the file: it is not the file's
                part.unlink()
                continue
            raise BadInput(f"{url} answers {error.code} {error.reason}: check the address, or try again later") from None
        except (OSError, urllib.error.URLError) as error:
            reason = error
            continue
        if part.stat().st_size == total:
            os.replace(part, path)
            return
        reason = f"it broke off after {part.stat().st_size:,} of {total:,} bytes"
    raise BadInput(f"{url} could not be downloaded ({reason}): the same command goes on from there")


def read_shard(path):
    """A shard's tokens, uint16; raises BadInput, and removes the file, where header and length do not agree."""
    header = np.fromfile(path, dtype="<i4", count=SHARD_HEADER_BYTES // 4)
    size = path.stat().st_size
    if len(header) == 256 and tuple(header[:2]) == (SHARD_MAGIC, SHARD_VERSION) and size == SHARD_HEADER_BYTES + 2 * header[2]:
        return np.memmap(path, dtype="<u2", mode="r", offset=SHARD_HEADER_BYTES)
    path.unlink()
    raise BadInput(f"{path} is not a shard of GPT-2 tokens (its header and its {size:,} bytes disagree): "
                   "it was removed, run the command again")


def fineweb(folder, n_shards):
    """FineWeb-Edu in GPT-2's tokens: the hub's validation shard, and as many training shards as asked for."""
    shards = folder / "shards"
    shards.mkdir(parents=True, exist_ok=True)
    names = {"val": ["edu_fineweb_val_000000.bin"], "train": [f"edu_fineweb_train_{i:06d}.bin" for i in range(1, n_shards + 1)]}
    tokens, documents = {}, {}
    for split in names:
        tokens[split] = documents[split] = 0
        with open(folder / f"{split}.bin.tmp", "wb") as file:
            for name in names[split]:
                if not (shards / name).exists():
                    download(FINEWEB_URL + name, shards / name)
                shard = read_shard(shards / name)
                shard.tofile(file)
                tokens[split] += len(shard)
                documents[split] += int((shard == GPT2_VOCAB - 1).sum())
    val = np.memmap(folder / "val.bin.tmp", dtype="<u2", mode="r")[:2_000_000]
    texts = tokenizer(GPT2_VOCAB).decode(val.tolist()).split("<|endoftext|>")
    finish_dataset(folder, "fineweb", GPT2_VOCAB, make_choices(texts), tokens, documents)


def prepare(arguments):
    folder = Path(__file__).parent / (arguments.name or arguments.source)
    if arguments.paths and arguments.source != "text":
        raise BadInput(f"{arguments.source} takes no files, but was given {arguments.paths[0]}: did you mean the source text?")
    if arguments.archive and arguments.source != "books":
        raise BadInput(f"--archive goes with books, not with {arguments.source}")
    if arguments.source == "fineweb":
        if arguments.vocab_size not in (None, GPT2_VOCAB) or arguments.shards < 1:
            raise BadInput(f"fineweb is tokenised already: its --vocab_size is {GPT2_VOCAB}, and --shards at least 1")
        return fineweb(folder, arguments.shards)
    encoding = tokenizer(BYTE_VOCAB if arguments.vocab_size is None else arguments.vocab_size)
    if arguments.source == "pycode":
        train, val = pycode()
    elif arguments.source == "books":
        archive = Path(arguments.archive or folder / "books.tar.gz")
        if not arguments.archive and not archive.exists():
            folder.mkdir(parents=True, exist_ok=True)
            download(BOOKS_URL, archive)
        train, val = books(archive)
    else:
        if not arguments.paths:
            raise BadInput("text needs at least one file: python data/prepare.py text mine.txt")
        train, val = own_text(arguments.paths)
    write_dataset(folder, arguments.source, encoding, train, val)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", choices=("pycode", "books", "fineweb", "text"))
    parser.add_argument("paths", nargs="*", help="text: the files")
    parser.add_argument("--vocab_size", type=int, help=f"{BYTE_VOCAB} for bytes (the default), up to {GPT2_VOCAB} for GPT-2's tokens")
    parser.add_argument("--name", help="folder under data/ (default: the source's name)")
    parser.add_argument("--archive", help="books: a local archive instead of the download")
    parser.add_argument("--shards", type=int, default=1, help="fineweb: training shards of 100 M tokens (default 1)")
    or_one_sentence(prepare, parser.parse_args(argv))


if __name__ == "__main__":
    main()
