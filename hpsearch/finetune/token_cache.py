"""Tokenised data on disk: the first worker that needs it makes it, the others map the same file.

A file's name says everything that decides its content, so a file is never out of date. It is written aside and
renamed, and carries a checksum: what a kill, a full disk or another version left is no file, and is made anew.
Nothing here ever fails a trial; without a usable folder everyone tokenises for himself.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
import transformers
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, from_numpy

from hpsearch import __version__
from hpsearch.finetune.checkpoint import flush
from hpsearch.finetune.tokenised import TokenisedData, TokenisedSplit
from hpsearch.finetune.tokens import tokenizer_fingerprint
from hpsearch.spec.data import DataSpec
from hpsearch.watchdog import mark

log = logging.getLogger(__name__)

VERSION = "1"
"""Raise it with any change to what a file holds, or to how examples are read, split, rendered or tokenised."""

MOST_BYTES = 10 * 10**9
"""In one folder; beyond it the files go that were used longest ago."""

PATIENCE_SECONDS = 600
"""So long a worker waits for another one that tokenises the same; then it does the work itself."""

MARK_SECONDS = 1.0
"""Who waits says so often that it does."""

STALE_SECONDS = 24 * 60 * 60
"""What was left unfinished so long ago, nobody is writing any more."""

_ARRAYS = ("ids", "completion", "offsets", "completion_tokens", "completion_bytes", "cut")
_COUNTS = ("truncated", "left_out", "tokens_lost")
_SPLITS = ("train", "validation")
_CONTENT, _CHECKSUM, _VERSION = "hpsearch", "hpsearch.crc32", "hpsearch.version"
_SUFFIX, _ASIDE = ".safetensors", "unfinished-"
_NO_FOLDER = (OSError, NotImplementedError, SafetensorError)
"""What a folder that is full, read-only or knows no locks raises."""


def token_key(data: DataSpec, tokenizer: Any, max_length: int) -> str | None:
    """SHA-256 of everything that decides the tokens of a study; None when its files can't be read.

    Args:
        data: Its files count by what is in them.
        tokenizer: Its special tokens are more than its fingerprint holds: a template may write them.
        max_length: Tokens, after what the model can read.
    """
    try:
        files = [None if path is None else _digest(Path(path)) for path in (data.train, data.validation)]
    except OSError:
        return None
    terms = {
        "versions": [VERSION, __version__, transformers.__version__, tokenizers.__version__],
        "files": files,
        "format": data.format,
        "held back": data.validation_fraction if data.validation is None else None,
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "special tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "chat template": data.chat_template,
        "max_length": max_length,
    }
    return hashlib.sha256(json.dumps(terms, sort_keys=True).encode()).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class TokenCache:
    """A folder of tokenised data, used by any number of processes at once."""

    folder: Path
    most_bytes: int = MOST_BYTES
    patience_seconds: float = PATIENCE_SECONDS

    def get(self, key_of: Callable[[], str | None], make: Callable[[], TokenisedData]) -> TokenisedData:
        """What is stored under a key; what `make` returns, and stores, when nothing is.

        Args:
            key_of: The key; None to store nothing. It is asked again when the tokens are made: if it is another by
                then, a file was changed meanwhile, and nobody knows which of its contents they are of.
            make: Tokenises.

        Raises:
            Exception: Whatever the two raise.
        """
        key = key_of()
        if key is None:
            return make()
        found = self._read(key)
        if found is not None:
            return found
        with self._alone(key):
            found = self._read(key)  # another process may have made it meanwhile
            if found is not None:
                return found
            made = make()
            if key_of() == key:
                self._store(key, made)
            return made

    def _store(self, key: str, tokens: TokenisedData) -> None:
        try:
            self._write(key, tokens)
            self._make_room(key)
        except _NO_FOLDER as error:
            log.warning("tokens not stored", extra={"folder": str(self.folder), "reason": str(error)})

    @contextlib.contextmanager
    def _alone(self, key: str) -> Iterator[None]:
        """One process at a time for each key; a lock whose holder died is free. In vain, it goes on without."""
        lock = FileLock(self.folder / f"{key}.lock")
        try:
            _make_private(self.folder)
            self._acquire(lock)
        except Timeout:
            log.warning("waited for tokens in vain", extra={"folder": str(self.folder), "key": key})
        except _NO_FOLDER as error:
            log.warning("no lock for tokens", extra={"folder": str(self.folder), "reason": str(error)})
        try:
            yield
        finally:
            lock.release()

    def _acquire(self, lock: FileLock) -> None:
        """Wait for it; Timeout when patience is out. Waiting has this limit of its own, so it is no hang."""
        deadline = time.monotonic() + self.patience_seconds
        while True:
            mark()
            left = max(0.0, deadline - time.monotonic())
            if left <= MARK_SECONDS:
                lock.acquire(timeout=left)
                return
            with contextlib.suppress(Timeout):
                lock.acquire(timeout=MARK_SECONDS)
                return

    def _read(self, key: str) -> TokenisedData | None:
        """Mapped into memory, not copied: processes of one machine share its pages."""
        path = self.folder / f"{key}{_SUFFIX}"
        try:
            with safe_open(path, "pt") as stored:
                metadata = stored.metadata() or {}
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - no mapping
            content = metadata.get(_CONTENT, "")
            if metadata.get(_VERSION) != VERSION or metadata.get(_CHECKSUM) != str(_checksum(key + content, tensors)):
                log.warning("tokens made anew: their file is damaged", extra={"path": str(path)})
                return None
            known = json.loads(content)
            train, validation = (_split(name, tensors, known[name]) for name in _SPLITS)
        except FileNotFoundError:
            return None
        except (*_NO_FOLDER, RuntimeError, ValueError, KeyError) as error:
            log.warning("tokens made anew", extra={"path": str(path), "reason": str(error)})
            return None
        with contextlib.suppress(OSError):  # so that it is the last to go; a read-only folder keeps its own time
            os.utime(path)
        return TokenisedData(train, validation, known["validation_fingerprint"])

    def _write(self, key: str, tokens: TokenisedData) -> None:
        splits = {name: getattr(tokens, name) for name in _SPLITS}
        tensors = {
            f"{name}.{array}": from_numpy(getattr(split, array)) for name, split in splits.items() for array in _ARRAYS
        }
        size = sum(tensor.nbytes for tensor in tensors.values())
        if size > self.most_bytes:
            log.warning("tokens not stored: they are too many", extra={"folder": str(self.folder), "bytes": size})
            return
        counts = {name: {count: getattr(split, count) for count in _COUNTS} for name, split in splits.items()}
        content = json.dumps({**counts, "validation_fingerprint": tokens.validation_fingerprint})
        metadata = {_CONTENT: content, _CHECKSUM: str(_checksum(key + content, tensors)), _VERSION: VERSION}
        _make_private(self.folder)
        aside = Path(tempfile.mkdtemp(prefix=_ASIDE, dir=self.folder))
        try:
            save_file(tensors, aside / key, metadata)
            flush(aside / key)
            (aside / key).replace(self.folder / f"{key}{_SUFFIX}")
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def _make_room(self, newest: str) -> None:
        """Remove what was used longest ago, and what a killed process left."""
        for aside in self.folder.glob(f"{_ASIDE}*"):
            if time.time() - _used(aside) > STALE_SECONDS:
                shutil.rmtree(aside, ignore_errors=True)
        files = sorted(self.folder.glob(f"*{_SUFFIX}"), key=lambda path: (path.stem == newest, _used(path)))
        excess = sum(map(_size, files)) - self.most_bytes
        for path in files[:-1]:
            if excess <= 0:
                return
            excess -= _size(path)
            path.unlink(missing_ok=True)  # those who have mapped it keep it
            path.with_suffix(".lock").unlink(missing_ok=True)


def _split(name: str, tensors: Mapping[str, Tensor], counts: Mapping[str, int]) -> TokenisedSplit:
    fields: dict[str, Any] = {array: tensors[f"{name}.{array}"].numpy() for array in _ARRAYS}
    fields |= {count: counts[count] for count in _COUNTS}
    return TokenisedSplit(**fields)


def _checksum(content: str, tensors: Mapping[str, Tensor]) -> int:
    """Of everything: a wrong token would make a wrong curve that nobody notices."""
    checksum = zlib.crc32(content.encode())
    for name, tensor in sorted(tensors.items()):
        checksum = zlib.crc32(f"{name} {tensor.dtype} {list(tensor.shape)}".encode(), checksum)
        checksum = zlib.crc32(tensor.numpy().data, checksum)
    return checksum


def _make_private(folder: Path) -> None:
    """With the folders above it that are missing; only for their owner, because examples are."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    for each in reversed(missing):
        each.mkdir(mode=0o700, exist_ok=True)


def _used(path: Path) -> float:
    """When; 0 when another process has removed it."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
