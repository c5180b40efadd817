"""Datasets of the Hugging Face hub: the rows of a split, as JSON lines.

The `datasets` library is heavy and reads what strangers wrote, so it runs in a process of its own (this module, run
with `-m`), in an empty folder, with a time limit. Rows are streamed; only tables are read (JSON, CSV, parquet), no
code, no pickles, and no file outside the repository that was named.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hpsearch.errors import HpsearchError, InvalidDataset, TooLarge, UnknownDataset
from hpsearch.spec.data import HubDataset

AT_ONCE = 4
"""Downloads at the same time; each holds a thread of the API and some hundred megabytes."""
BATCH = 200
"""Rows in memory."""
KINDS = {"json", "csv", "parquet"}
"""The library's readers that are used."""
USED_COLUMNS = ("messages", "prompt", "completion", "instruction", "input", "output")
CARDS = ("README.md", ".huggingface.yaml")
"""Files in which a repository says what its splits are."""

_free = threading.BoundedSemaphore(AT_ONCE)
_REFUSALS: dict[str, type[HpsearchError]] = {kind.code: kind for kind in (UnknownDataset, InvalidDataset, TooLarge)}


@dataclass(frozen=True)
class Fetched:
    """What was written."""

    commit: str
    rows: int
    sha256: str
    """Of the file."""
    left_out: tuple[str, ...]
    """Columns that hold what JSON can't say (bytes, times, images)."""


def fetch(asked: HubDataset, into: Path, field: str, most_bytes: int, seconds: float) -> Fetched:
    """Write the rows to a new file, in their order. What else is written lies in its folder, which the caller removes.

    Raises:
        UnknownDataset: It can't be found or read, the hub doesn't answer in time, or the extra is not installed.
        InvalidDataset: A column that is needed holds what JSON can't say.
        TooLarge: The rows are more than `most_bytes`.
    """
    work, cache = into.parent / f"{into.name}.work", into.parent / f"{into.name}.cache"
    work.mkdir()  # empty, so that no id can mean a folder
    request = json.dumps({**asdict(asked), "into": str(into), "most_bytes": most_bytes})
    if not _free.acquire(blocking=False):
        raise UnknownDataset(
            f"{field}: {AT_ONCE} other datasets are being downloaded just now; try again in a minute", field
        )
    try:
        done = subprocess.run(
            [sys.executable, "-m", "hpsearch.dataset.hub"],
            input=request, capture_output=True, text=True, errors="replace", cwd=work, env=_environment(cache),
            timeout=seconds, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise UnknownDataset(
            f"{field}: downloading {asked} took too long: take a slice such as split=train[:2000], upload the rows, "
            "or let the operator raise HPSEARCH_HUB_TIMEOUT_SECONDS",
            field,
        ) from None
    finally:
        _free.release()
    return _read_answer(done, asked, field)


def _environment(cache: Path) -> dict[str, str]:
    caches = ("HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_MODULES_CACHE", "HF_ASSETS_CACHE", "HF_XET_CACHE")
    ours = {name: str(cache / name) for name in caches}
    quiet = dict.fromkeys(("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"), "1")
    light = dict.fromkeys(("USE_TORCH", "USE_TF", "USE_JAX"), "0")
    given = {name: value for name, value in os.environ.items() if not name.startswith("HPSEARCH_")}  # passwords
    return {**given, **ours, **quiet, **light, "HF_HUB_DISABLE_TELEMETRY": "1"}


def _read_answer(done: subprocess.CompletedProcess[str], asked: HubDataset, field: str) -> Fetched:
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):  # it died: its last words are all there is
        words = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise UnknownDataset(f"{field}: {asked} can't be read: {words[-1][:300]}", field) from None
    if "refused" in answer:
        raise _REFUSALS[answer["refused"]](f"{field}: {asked}: {answer['text']}", field)
    return Fetched(answer["commit"], answer["rows"], answer["sha256"], tuple(answer["left_out"]))


# From here on: in the process of its own.


def _main() -> None:
    request = json.load(sys.stdin)
    into, most_bytes = Path(request.pop("into")), request.pop("most_bytes")
    try:
        answer = asdict(_download(HubDataset(**request), into, most_bytes))
    except HpsearchError as error:
        answer = {"refused": error.code, "text": error.detail}
    print(json.dumps(answer), flush=True)  # noqa: T201
    os._exit(0)  # the libraries' threads that still read ahead are of no use any more


def _download(asked: HubDataset, into: Path, most_bytes: int) -> Fetched:
    try:
        import datasets
        from huggingface_hub import HfApi
    except ModuleNotFoundError as error:
        text = f"the service can't read hub datasets, for {error.name} is not installed"
        raise UnknownDataset(f"{text}: pip install 'hpsearch[datasets]'") from None
    try:
        found = HfApi().dataset_info(asked.id, revision=asked.revision, timeout=10)
    except Exception as error:  # the client's, the HTTP library's and the system's errors
        raise _unknown(error, f"the hub can't be reached ({type(error).__name__}); upload the rows instead") from None
    if "/" not in found.id or found.id.startswith("buckets/"):  # the library would take `json` for its own reader
        raise UnknownDataset("this is no dataset of a person or an organisation (org/name)")
    try:
        _refuse_foreign_files(found)
        name = f"hf://datasets/{found.id}"  # never a folder of this machine
        builder = datasets.load_dataset_builder(name, name=asked.config, revision=found.sha)
        _check_files(builder, f"{name}@{found.sha}/")
        splits = builder.as_streaming_dataset()
        tables = itertools.chain.from_iterable(_tables(splits, *part) for part in _parts(splits, asked.split))
        return _write(tables, into, most_bytes, str(found.sha))
    except HpsearchError:
        raise
    except Exception as error:
        text = " ".join(line.strip() for line in str(error).splitlines()[:2] if line.strip())
        raise _unknown(error, f"it can't be read: {type(error).__name__}: {text[:300]}") from None


def _unknown(error: Exception, otherwise: str) -> UnknownDataset:
    """Why the hub said no; libraries wrap each other's errors, so the causes are looked at too."""
    reasons = {
        "GatedRepoError": "access to it is restricted: accept its terms on the hub and set HF_TOKEN for the service",
        "RepositoryNotFoundError": "the hub has no such dataset (for a private one, set HF_TOKEN for the service)",
        "RevisionNotFoundError": "the hub has the dataset, but not this revision",
        "HFValidationError": "this is no hub id",
        "OfflineModeIsEnabled": "the service is offline (HF_HUB_OFFLINE, TRANSFORMERS_OFFLINE); upload the rows",
        "DataFilesNotFoundError": "it has no files of JSON lines, CSV or parquet",
        "EmptyDatasetError": "it has no files of JSON lines, CSV or parquet",
    }
    cause: BaseException | None = error
    while cause is not None:
        if type(cause).__name__ in reasons:
            return UnknownDataset(reasons[type(cause).__name__])
        cause = cause.__cause__ or cause.__context__
    return UnknownDataset(otherwise)


def _refuse_foreign_files(found: Any) -> None:
    """A repository's card names its data files, and the library would follow it to any address or local path."""
    import yaml
    from huggingface_hub import hf_hub_download
    from huggingface_hub.repocard import metadata_load  # the library's own way: what it sees is what is looked at

    for card in {sibling.rfilename for sibling in found.siblings or ()} & set(CARDS):
        path = Path(hf_hub_download(found.id, card, repo_type="dataset", revision=found.sha))
        content = metadata_load(path) if card == "README.md" else yaml.safe_load(path.read_text(encoding="utf-8"))
        for pattern in _texts(content.get("configs") if isinstance(content, dict) else None):
            if "::" in pattern or "://" in pattern or pattern.startswith(("/", "~")) or ".." in pattern.split("/"):
                text = f"its {card} names data outside the repository ({pattern[:80]}), which is not read"
                raise UnknownDataset(text)


def _texts(content: Any) -> Iterator[str]:
    """Every text in a YAML value."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict | list):
        for part in content.values() if isinstance(content, dict) else content:
            yield from _texts(part)


def _check_files(builder: Any, inside: str) -> None:
    kinds = {kind.__module__.rpartition(".")[2] for kind in type(builder).__mro__}
    if not kinds & KINDS:
        raise UnknownDataset("it is no table of text: only JSON, CSV and parquet files are read")
    for file in itertools.chain.from_iterable((builder.config.data_files or {}).values()):
        if not str(file).startswith(inside):
            raise UnknownDataset("it names data outside the repository, which is not read")


def _parts(splits: dict[str, Any], asked: str) -> list[tuple[str, int, int]]:
    """The parts of splits that are asked for, as (split, from row, to row). Rows are counted only if need be."""
    from datasets import ReadInstruction

    named = [part.partition("[") for part in asked.split("+")]
    for split, _, _ in named:
        if split not in splits:
            raise UnknownDataset(f"there is no split '{split}' (splits: {', '.join(splits)}); name one with ?split=...")
    counted = {split for split, _, numbers in named if "%" in numbers or "-" in numbers}
    lengths = {split: sys.maxsize for split, _, _ in named}
    lengths |= {split: sum(len(table) for table in _tables(splits, split, 0, sys.maxsize)) for split in counted}
    try:
        parts = ReadInstruction.from_spec(asked).to_absolute(lengths)
    except (AssertionError, ValueError) as error:
        raise UnknownDataset(str(error)) from None
    return [(part.splitname, part.from_, part.to) for part in parts]


def _tables(splits: dict[str, Any], split: str, start: int, stop: int) -> Iterator[Any]:
    """Arrow tables; nothing in them is decoded, for an image may be the path of a local file."""
    at = 0
    for table in splits[split].with_format("arrow").iter(batch_size=BATCH):
        if at + len(table) > start:
            yield table.slice(max(start - at, 0), stop - max(start, at))
        at += len(table)
        if at >= stop:
            return


def _write(tables: Iterator[Any], into: Path, most_bytes: int, commit: str) -> Fetched:
    digest, rows, size = hashlib.sha256(), 0, 0
    left_out: set[str] = set()
    with into.open("xb") as file:
        for table in tables:
            readers = {column: _reader(table.schema.field(column).type) for column in table.column_names}
            left_out |= {column for column, reader in readers.items() if reader is None}
            for column in sorted(left_out.intersection(USED_COLUMNS)):
                kind = table.schema.field(column).type
                raise InvalidDataset(f"its column '{column}' holds {str(kind)[:80]}, which is no text")
            columns = {column: reader for column, reader in readers.items() if reader is not None}
            for row in table.select(list(columns)).to_pylist():
                line = _line({column: read(row[column]) for column, read in columns.items()})
                size += len(line)
                if size > most_bytes:
                    raise TooLarge(f"it is larger than {most_bytes:,} bytes: take a slice, such as split=train[:2000]")
                digest.update(line)
                file.write(line)
                rows += 1
    return Fetched(commit, rows, digest.hexdigest(), tuple(sorted(left_out)))


def _reader(kind: Any) -> Callable[[Any], Any] | None:
    """How values of an Arrow type become JSON; None when they can't."""
    import pyarrow as pa

    if isinstance(kind, pa.JsonType):
        return lambda value: None if value is None else json.loads(value)
    if pa.types.is_dictionary(kind):
        return _reader(kind.value_type)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        read = _reader(kind.value_type)
        return read and (lambda values: None if values is None else [read(value) for value in values])
    if pa.types.is_struct(kind):
        readers = {part.name: _reader(part.type) for part in kind}
        parts = {name: read for name, read in readers.items() if read is not None}
        if len(parts) < len(readers):
            return None
        return lambda value: None if value is None else {name: read(value[name]) for name, read in parts.items()}
    plain = ("is_string", "is_large_string", "is_string_view", "is_boolean", "is_integer", "is_floating", "is_null")
    return (lambda value: value) if any(getattr(pa.types, test)(kind) for test in plain) else None


def _line(row: dict[str, Any]) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half a character, which only an escape can say; whoever reads the line refuses it
        return json.dumps(row).encode() + b"\n"


if __name__ == "__main__":
    _main()
