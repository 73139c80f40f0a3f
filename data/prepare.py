"""Text -> data/<name>/{train.bin, val.bin, choices.jsonl, meta.json}, all that training reads.

    python data/prepare.py pycode                   this Python's standard library, no download
    python data/prepare.py books --vocab_size 8192  483 public-domain books (the published results)
    python data/prepare.py fineweb --shards 10      FineWeb-Edu in tokens, 100 M of them a shard
    python data/prepare.py text mine.txt more.txt --name mine    your own UTF-8 files
    python data/prepare.py blimp                    BLiMP, a task: blimp.jsonl, and a tenth.jsonl

*.bin are uint16 tokens, one end-of-text after each document. choices.jsonl is a downstream task
made of the held-out documents alone: a context and four continuations, of which one is the true
one.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # a script has only its own folder there
from data import interrupt

if __name__ == "__main__":
    interrupt.before_imports()

import argparse
import hashlib
import http.client
import json
import os
import platform
import random
import re
import signal
import sysconfig
import tarfile
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial

import numpy as np
import tiktoken
from tiktoken_ext.openai_public import gpt2
from tqdm import tqdm

from data.files import (
    DATA_FILES,
    BadInput,
    cannot_write,
    check_name,
    locked,
    matched,
    or_one_sentence,
    parse_json_lines,
    read_text,
    reason,
    refuse_dashes,
    say,
    sha256_of,
    sync,
    write_text,
)

BYTE_VOCAB = 257
GPT2_VOCAB = 50257
END_OF_TEXT = "<|endoftext|>"
# GPT-2's way of cutting text into words, which merges never cross. For bytes it only sets the pace.
WORD_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"

CONTEXT_WORDS = 32
CONTINUATION_WORDS = 8
MAX_CHOICES = 2000

# First bytes of a name's hash, of 256, below which a document is held out, or used at all.
PYCODE_HELD_OUT = 20
BOOKS_HELD_OUT, BOOKS_IN_USE = 4, 160
LARGEST_BOOK = 2_000_000  # bytes
BOOKS_URL = (
    "https://github.com/mlschmitt/classic-books-markdown/archive/"
    "944882722e9a96fa6cf2739dc2ea757e101f412f.tar.gz"
)
BOOKS = {  # those of the published results; sha256 is of the lines that sha256sum prints of them
    "books": 483,
    "bytes": 198_484_428,
    "sha256": "9afbb9c106ffc7128a1816a7e1a1bc26475c439d452a15f8c02bdf0968586444",
}
FINEWEB_URL = (
    "https://huggingface.co/datasets/karpathy/fineweb-edu-100B-gpt2-token-shards/resolve/main/"
)
FINEWEB_SHARDS = 1000
BLIMP_URL = (
    "https://github.com/alexwarstadt/blimp/archive/3e56b06fcabca9b30822fc66435fca6b1aa40bb1.tar.gz"
)
SHARD_MAGIC = 20240520
SHARD_VERSION = 1
SHARD_HEADER_BYTES = 1024


# Tokens -------------------------------------------------------------------------------------------


def tokenizer(vocab_size):
    """A tiktoken.Encoding of `vocab_size` tokens, the last of which is end-of-text.

    257 are the bytes, which need no download. Up to 50257 are GPT-2's first vocab_size - 1 ranks,
    which are a byte-pair vocabulary of their own. Raises BadInput where they cannot be had.
    """
    if not BYTE_VOCAB <= vocab_size <= GPT2_VOCAB:
        raise BadInput(
            f"--vocab_size {vocab_size} must lie between {BYTE_VOCAB} (bytes) "
            f"and {GPT2_VOCAB} (all of GPT-2's)"
        )
    if vocab_size == BYTE_VOCAB:
        ranks = {bytes([byte]): byte for byte in range(256)}
    else:
        ranks = {token: rank for token, rank in gpt2_ranks().items() if rank < vocab_size - 1}
    return tiktoken.Encoding(
        f"nanodepth-{vocab_size}",
        pat_str=WORD_PATTERN,
        mergeable_ranks=ranks,
        special_tokens={END_OF_TEXT: vocab_size - 1},
    )


def gpt2_ranks():
    """GPT-2's {token: rank}, downloaded on first use and then read from TIKTOKEN_CACHE_DIR."""
    try:
        return gpt2()["mergeable_ranks"]
    except Exception as error:  # whatever the network stack raises
        raise BadInput(
            "GPT-2's vocabulary could not be downloaded: go online once, "
            "set TIKTOKEN_CACHE_DIR to a folder that holds it, "
            f"or use --vocab_size {BYTE_VOCAB} for bytes ({type(error).__name__})"
        ) from None


def write_tokens(path, documents, encoding):
    """Write documents as uint16 tokens, end-of-text after each; returns the number of tokens."""
    end_of_text = np.array([encoding.n_vocab - 1], dtype=np.uint16)
    encode = partial(encoding.encode_to_numpy, disallowed_special=())
    n_characters = sum(len(text) for text in documents)
    n_tokens = 0
    with (
        open(path, "wb") as file,
        progress(total=n_characters, desc=path.stem) as bar,
        ThreadPoolExecutor(os.cpu_count()) as pool,
        closing(pool.map(encode, documents)) as encoded,  # Ctrl-C does not wait for those to come
    ):
        for text, ids in zip(documents, encoded, strict=True):
            file.write(ids.astype(np.uint16))
            file.write(end_of_text)
            n_tokens += len(ids) + 1
            bar.update(len(text))
    return n_tokens


def progress(**options):
    """A bar that counts bytes, where standard error is a terminal."""
    return tqdm(unit="B", unit_scale=True, disable=None, **options)


# Choice items -------------------------------------------------------------------------------------


def make_choices(documents):
    """Up to MAX_CHOICES items from held-out documents, the same every time."""
    rng = random.Random(0)
    items = [item for document in documents for item in choices_from(document, rng)]
    return rng.sample(items, min(MAX_CHOICES, len(items)))


def choices_from(document, rng):
    """One item {"context": text, "choices": [four texts], "answer": index} for each piece of a
    document, which is cut into pieces of 32 + 8 words.

    The context is a piece's first 32 words, and the true continuation its last 8. The false ones
    are the last 8 of three other pieces of the same document, so topic and style give nothing away.
    Chance is one in four.
    """
    words = re.findall(r"\s*\S+", document)
    size = CONTEXT_WORDS + CONTINUATION_WORDS
    pieces = [words[i : i + size] for i in range(0, len(words) - size + 1, size)]
    contexts = ["".join(piece[:CONTEXT_WORDS]) for piece in pieces]
    endings = ["".join(piece[CONTEXT_WORDS:]) for piece in pieces]
    distinct = sorted(set(endings))
    if len(distinct) < 4:
        return []
    place = {ending: i for i, ending in enumerate(distinct)}
    items = []
    for context, ending in zip(contexts, endings, strict=True):
        # Three of all endings but this one: the numbers from its own place on count past it.
        picked = rng.sample(range(len(distinct) - 1), 3)
        choices = [distinct[i if i < place[ending] else i + 1] for i in picked]
        answer = rng.randrange(4)
        choices.insert(answer, ending)
        items.append({"context": context, "choices": choices, "answer": answer})
    return items


# Files --------------------------------------------------------------------------------------------


@contextmanager
def replacing_dataset(folder):
    """Temporary names {file: path} to write to, which then take the dataset's place, through to
    the disk. meta.json goes first and comes last, so that a folder with one is whole."""
    temporary = {name: folder / f"{name}.tmp" for name in (*DATA_FILES, "meta.json")}
    on_ctrl_c = signal.getsignal(signal.SIGINT)
    try:
        yield temporary
        for path in temporary.values():
            sync(path)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # for the moment in which nothing is whole
        (folder / "meta.json").unlink(missing_ok=True)
        for name, path in temporary.items():
            sync(folder)
            os.replace(path, folder / name)
        sync(folder)
    except OSError as error:
        raise cannot_write(folder, error) from None
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)
        signal.signal(signal.SIGINT, on_ctrl_c)


def write_dataset(folder, source, encoding, train, val):
    """Write the training and validation documents as a dataset; returns meta.json's content."""
    with replacing_dataset(folder) as paths:
        tokens = {
            "train": write_tokens(paths["train.bin"], train, encoding),
            "val": write_tokens(paths["val.bin"], val, encoding),
        }
        documents = {"train": len(train), "val": len(val)}
        return finish_dataset(paths, source, encoding.n_vocab, make_choices(val), tokens, documents)


def finish_dataset(paths, source, vocab_size, choices, tokens, documents):
    """Add choices.jsonl and meta.json to train.bin and val.bin, and return meta.json's content.

    `paths` are those of replacing_dataset; `tokens` and `documents` are the numbers of them,
    {"train": int, "val": int}.
    """
    lines = [json.dumps(item) + "\n" for item in choices]
    paths["choices.jsonl"].write_text("".join(lines), encoding="utf-8", newline="\n")
    meta = {
        "source": source,
        "tokenizer": "bytes" if vocab_size == BYTE_VOCAB else "gpt2",
        "vocab_size": vocab_size,
        "documents": documents,
        "tokens": tokens,
        "choices": len(choices),
        "sha256": sha256_of(paths[name] for name in DATA_FILES),
        "python": platform.python_version(),
    }
    text = json.dumps(meta, indent=1) + "\n"
    paths["meta.json"].write_text(text, encoding="utf-8", newline="\n")
    return meta


# Sources ------------------------------------------------------------------------------------------


def first_byte(name):
    """A number from 0 to 255 that depends on the name alone, to split documents by."""
    return hashlib.sha256(name.encode(errors="surrogateescape")).digest()[0]


def split_by_name(named_documents, is_val, where):
    """[(name, text)] -> training and validation texts.

    A text seen before is dropped, so that none is in both. Raises BadInput, which says where they
    are from, if there are none of a kind.
    """
    train, val, seen = [], [], set()
    for name, text in named_documents:
        if text.strip() and text not in seen:
            seen.add(text)
            (val if is_val(name) else train).append(text)
    for split, texts in (("training", train), ("validation", val)):
        if not texts:
            raise BadInput(
                f"{where} leaves no {split} documents: take another source, such as text"
            )
    return train, val


NOT_WRITTEN_BY_HAND = {"encodings", "pydoc_data"}
NOT_THE_LIBRARY = {"site-packages", "dist-packages", "__pycache__"}
TESTS = {"test", "tests", "idle_test"}


def pycode():
    """The running Python's standard library, without tests and without what programs wrote.

    8 % of the files are held out, by the hash of their path.
    """
    left_out = NOT_WRITTEN_BY_HAND | NOT_THE_LIBRARY | TESTS
    root = Path(sysconfig.get_paths()["stdlib"])
    documents = []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if not left_out & set(name.parts):
            text = path.read_text(encoding="utf-8", errors="replace")
            documents.append((name.as_posix(), text))
    return split_by_name(documents, lambda name: first_byte(name) < PYCODE_HELD_OUT, root)


def books(archive):
    """The archive's AUTHOR/TITLE.md of at most 2 MB, split by the first byte of that name's hash:
    below 4 is held out, 4 to 159 is for training, the rest is unused. Raises BadInput where they
    are not BOOKS, to the last bit."""
    contents = {}
    with opened_archive(archive) as tar:
        for member in tqdm(tar, desc="reading", unit=" files", disable=None):
            name = member.name.split("/", 1)[-1]  # without the archive's top folder
            if is_book(member, name) and first_byte(name) < BOOKS_IN_USE:
                contents[name] = tar.extractfile(member).read()
    if (found := summary_of(contents)) != BOOKS:
        raise BadInput(
            f"{archive} does not hold the books of the published results "
            f"(but {found}, instead of {BOOKS}): give another, or, where it was downloaded, delete "
            "it, and the same command downloads it again"
        )
    documents = [(name, contents[name].decode(errors="replace")) for name in sorted(contents)]
    return split_by_name(documents, lambda name: first_byte(name) < BOOKS_HELD_OUT, archive)


def summary_of(contents):
    """What tells {name: bytes} from others, see BOOKS."""
    lines = [
        f"{hashlib.sha256(content).hexdigest()}  {name}\n".encode(errors="surrogateescape")
        for name, content in sorted(contents.items())
    ]
    return {
        "books": len(contents),
        "bytes": sum(map(len, contents.values())),
        "sha256": hashlib.sha256(b"".join(lines)).hexdigest(),
    }


@contextmanager
def opened_archive(path):
    """An open tar archive. What is wrong with it while it is read raises BadInput."""
    try:
        with tarfile.open(path) as tar:
            yield tar
    except (BadInput, FileNotFoundError, IsADirectoryError):
        raise
    except Exception as error:  # whatever the four modules below tarfile raise
        raise BadInput(
            f"{path} cannot be read as a tar archive ({reason(error).rstrip(':')}): give a whole "
            "one, or, where it was downloaded, delete it, and the same command downloads it again"
        ) from None


def is_book(member, name):
    """Is a tar's member a file AUTHOR/TITLE.md of a size that can be a book's?"""
    in_folder = name.count("/") == 1
    return member.isfile() and in_folder and name.endswith(".md") and member.size <= LARGEST_BOOK


def own_text(paths):
    """The first nine tenths of each file for training; the last tenth, from a line's start, held
    out."""
    train, val = [], []
    for path in paths:
        text = read_text(path)
        nine_tenths = len(text) * 9 // 10
        cut = text.rfind("\n", 0, nine_tenths) + 1 or nine_tenths
        if "\0" in text:
            raise BadInput(
                f"{path} is no text (it holds NUL characters): convert it to UTF-8 first"
            )
        if not (text[:cut].strip() and text[cut:].strip()):
            raise BadInput(f"{path} holds too little text to hold out a tenth: give it more")
        train.append(text[:cut])
        val.append(text[cut:])
    return train, val


def fineweb(folder, n_shards):
    """FineWeb-Edu in GPT-2's tokens: the hub's validation shard, and n_shards training shards.
    Returns meta.json's content."""
    (folder / "shards").mkdir(exist_ok=True)
    names = {
        "val": ["edu_fineweb_val_000000.bin"],
        "train": [f"edu_fineweb_train_{i:06d}.bin" for i in range(1, n_shards + 1)],
    }
    tokens, documents = {}, {}
    with replacing_dataset(folder) as paths:
        for split in names:
            tokens[split] = documents[split] = 0
            with open(paths[f"{split}.bin"], "wb") as file:
                for name in names[split]:
                    shard = fetch_shard(folder / "shards" / name)
                    file.write(shard)
                    tokens[split] += len(shard)
                    documents[split] += int((shard == GPT2_VOCAB - 1).sum())
        val = np.fromfile(paths["val.bin"], dtype="<u2", count=2_000_000)
        texts = tokenizer(GPT2_VOCAB).decode(val.tolist()).split(END_OF_TEXT)
        choices = make_choices(texts)
        return finish_dataset(paths, "fineweb", GPT2_VOCAB, choices, tokens, documents)


def fetch_shard(path):
    """A shard's tokens, uint16, downloaded unless they are there.

    Raises BadInput, and removes the file, where its header, its length and its tokens disagree.
    """
    if not path.exists():
        download(FINEWEB_URL + path.name, path)
    content = path.read_bytes()
    n_tokens = (len(content) - SHARD_HEADER_BYTES) / 2
    promised = (SHARD_MAGIC, SHARD_VERSION, n_tokens)
    if n_tokens >= 0 and tuple(np.frombuffer(content, dtype="<i4", count=3)) == promised:
        tokens = np.frombuffer(content, dtype="<u2", offset=SHARD_HEADER_BYTES)
        if tokens.max(initial=0) < GPT2_VOCAB:
            return tokens
    path.unlink()
    raise BadInput(
        f"{path} is not a shard of GPT-2 tokens (its header, its tokens and its {len(content):,} "
        "bytes disagree): it was removed, run the command again"
    )


# BLiMP --------------------------------------------------------------------------------------------

EVERY = 10  # one pair in so many goes into tenth.jsonl
BLIMP_LINE = {"UID": str, "sentence_good": str, "sentence_bad": str}


def prepare_blimp(folder, source):
    """source: a local archive or folder, or None for the download."""
    pairs = None if source is None else blimp_pairs(Path(source))
    folder.mkdir(parents=True, exist_ok=True)  # only now: what is refused leaves nothing behind
    with locked(folder):
        pairs = pairs or blimp_pairs(fetch_archive(folder / "blimp.tar.gz", BLIMP_URL))
        write_blimp(folder, pairs)


def blimp_pairs(source):
    """{file name: its pairs} of BLiMP (Warstadt et al. 2020, arXiv 1912.00582; CC BY 4.0): pairs of
    English sentences that differ in one point of grammar. source: the repository's archive, or a
    folder of its files data/PARADIGM.jsonl. Raises BadInput."""
    pairs = {name: pairs_of(name, text) for name, text in sorted(blimp_files(source))}
    if not any(pairs.values()):
        raise BadInput(f"{source} holds no data/*.jsonl: give BLiMP's archive, or its folder data")
    return pairs


def write_blimp(folder, pairs):
    """blimp.jsonl, {"paradigm", "good", "bad"} a line, and tenth.jsonl, every tenth pair of each
    paradigm from the first on, into folder."""
    for name, every in (("blimp", 1), ("tenth", EVERY)):
        chosen = [pair for of_paradigm in pairs.values() for pair in of_paradigm[::every]]
        lines = [json.dumps(pair, ensure_ascii=False) + "\n" for pair in chosen]
        write_text(folder / f"{name}.jsonl", "".join(lines))
        say(f"{folder / name}.jsonl: {len(chosen):,} pairs of {len(pairs)} paradigms")


def blimp_files(source):
    """[(file name, text)] of the JSONL files in a folder, or of those in an archive's folder
    data."""
    if source.is_dir():
        return [(path.name, read_text(path)) for path in source.glob("*.jsonl")]
    with opened_archive(source) as tar:
        return [
            (Path(member.name).name, tar.extractfile(member).read().decode("utf-8"))
            for member in tar
            if member.isfile() and Path(member.name).match("*/data/*.jsonl")
        ]


def pairs_of(name, text):
    """The pairs of one file, in its order. Raises BadInput, which names the line."""
    try:
        lines = parse_json_lines(text, BLIMP_LINE, name)
    except BadInput as error:
        raise BadInput(f"{error}; it is no file of BLiMP") from None
    return [
        {"paradigm": line["UID"], "good": line["sentence_good"], "bad": line["sentence_bad"]}
        for _, line in lines
    ]


# Downloads ----------------------------------------------------------------------------------------


def download(url, path, tries=3):
    """Fetch url to path through path.part, going on where an earlier try broke off."""
    part = path.with_name(path.name + ".part")
    for _ in range(tries):
        try:
            total = fetch_rest(url, part)
        except urllib.error.HTTPError as error:
            if error.code == 416:  # the part is longer than the file: it is not the file's
                part.unlink()
                continue
            raise BadInput(
                f"{url} answers {error.code} {error.reason}: check the address, or try again later"
            ) from None
        except (OSError, http.client.HTTPException) as error:  # urllib's errors are among these
            why = reason(error)
            continue
        if total is None or part.stat().st_size == total:
            sync(part)
            os.replace(part, path)
            return
        why = f"it broke off after {part.stat().st_size:,} of {total:,} bytes"
    raise BadInput(f"{url} could not be downloaded ({why}): the same command goes on from there")


def fetch_rest(url, part):
    """Append what part lacks of the file at url, as far as it comes; returns the file's size, or
    None where the server does not tell it."""
    done = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={done}-"} if done else {}
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        if answer.status != 206:  # a server without ranges starts over
            done = 0
        total = None if answer.length is None else done + answer.length
        write_piece(part, b"", "ab" if done else "wb")
        with progress(total=total, initial=done, desc=part.stem) as bar:
            while piece := answer.read(1 << 20):
                write_piece(part, piece, "ab")
                bar.update(len(piece))
    return total


def write_piece(path, piece, mode):
    """Write to a file; what fails is not taken for the network's fault."""
    try:
        with open(path, mode) as file:
            file.write(piece)
    except OSError as error:
        raise cannot_write(path, error) from None


# Command line -------------------------------------------------------------------------------------


def prepare(arguments):
    """Make the dataset that the command line asks for."""
    refuse_arguments(arguments)
    source = arguments.source
    folder = Path(__file__).parent / (source if arguments.name is None else arguments.name)
    encoding = tokenizer(BYTE_VOCAB if arguments.vocab_size is None else arguments.vocab_size)
    if source == "blimp":
        prepare_blimp(folder, arguments.archive)
        return
    documents = None
    if source == "pycode":
        documents = pycode()
    elif source == "text":
        documents = own_text(matched(arguments.paths))
    elif arguments.archive is not None:
        documents = books(Path(arguments.archive))
    folder.mkdir(parents=True, exist_ok=True)  # only now: what is refused leaves nothing behind
    with locked(folder):
        if source == "fineweb":
            meta = fineweb(folder, arguments.shards or 1)
        else:
            documents = documents or books(fetch_archive(folder / "books.tar.gz", BOOKS_URL))
            meta = write_dataset(folder, source, encoding, *documents)
    say(
        f"{folder}: {meta['tokens']['train']:,} training and {meta['tokens']['val']:,} validation "
        f"tokens of a vocabulary of {meta['vocab_size']:,}, {meta['choices']:,} choice items"
    )


def refuse_arguments(arguments):
    """Raise BadInput where arguments do not go together."""
    source, paths = arguments.source, arguments.paths
    refuse_dashes(arguments)
    if paths and source != "text":
        raise BadInput(
            f"{source} takes no files, but was given {paths[0]}: did you mean the source text?"
        )
    if source == "text" and not paths:
        raise BadInput("text needs at least one file: python data/prepare.py text mine.txt")
    for option, of_sources in (("archive", ("books", "blimp")), ("shards", ("fineweb",))):
        if getattr(arguments, option) is not None and source not in of_sources:
            raise BadInput(f"--{option} goes with {' and '.join(of_sources)}, not with {source}")
    if source == "blimp" and arguments.vocab_size is not None:
        raise BadInput("blimp is not tokenised: leave --vocab_size out")
    if arguments.name is not None:
        check_name(arguments.name, "--name")
    if source == "fineweb" and arguments.vocab_size not in (None, GPT2_VOCAB):
        raise BadInput(f"fineweb is tokenised already: its --vocab_size is {GPT2_VOCAB}")
    if arguments.shards is not None and not 1 <= arguments.shards <= FINEWEB_SHARDS:
        raise BadInput(f"--shards {arguments.shards} must lie between 1 and {FINEWEB_SHARDS}")


def fetch_archive(archive, url):
    """The archive's path, to which it is downloaded from url unless it is there."""
    if not archive.exists():
        download(url, archive)
    return archive


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", choices=("pycode", "books", "fineweb", "text", "blimp"))
    parser.add_argument("paths", nargs="*", help="text: the files")
    parser.add_argument(
        "--vocab_size",
        type=int,
        help=f"{BYTE_VOCAB} for bytes (the default), up to {GPT2_VOCAB} for GPT-2's tokens",
    )
    parser.add_argument("--name", help="folder under data/ (default: the source's name)")
    parser.add_argument("--archive", help="books, blimp: a local archive, or blimp's folder data")
    parser.add_argument(
        "--shards", type=int, help="fineweb: training shards of 100 M tokens (default 1)"
    )
    stopped = "a dataset that was there is whole, and a download goes on from where it is"
    or_one_sentence(prepare, parser.parse_args(argv), stopped=stopped)


if __name__ == "__main__":
    main()
