"""The base models that are loaded on a device, and whether there is memory for one more.

A load takes memory from all devices of its node. So it is weighed before it begins: what is idle goes first, and what
does not fit beside what others use waits until they are done. Whoever is alone on the node loads in any case.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from hpsearch.spec.finetune import FinetuneConfig
from hpsearch.watchdog import lengthy

if TYPE_CHECKING:
    from hpsearch.finetune.prepare import Prepared

log = logging.getLogger(__name__)

KEPT_MODELS = 2
"""Base models with their data that stay loaded on a device while no trial uses them."""

WANTED_SECONDS = 5.0
"""Whoever waits for memory says so more often than this."""


class NoRoom(Exception):
    """The base model does not fit now, beside what trials use."""


class NodeMemory:
    """What the devices of one node tell one another, by locks on files: a process that dies holds none.

    Args:
        folder: The node's.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or Path(tempfile.gettempdir()) / f"hpsearch-memory-{os.getuid()}"
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._models = (self._folder / "models").open("a")
        self._loading = (self._folder / "loading").open("a")
        self._wanted = self._folder / "wanted"

    def is_alone(self) -> bool:
        """Whether no other device has a model loaded, nor can load one before `hold` or `let_go`."""
        return _locked(self._models, fcntl.LOCK_EX)

    def hold(self) -> bool:
        """Say that this device has a model loaded; False while another loads alone, and can't hear it."""
        return _locked(self._models, fcntl.LOCK_SH)

    def let_go(self) -> None:
        """This device has none."""
        fcntl.flock(self._models, fcntl.LOCK_UN)

    @contextlib.contextmanager
    def loading(self) -> Iterator[bool]:
        """Whether this device is the only one to load what is more than its part of the memory."""
        is_only = _locked(self._loading, fcntl.LOCK_EX)
        try:
            yield is_only
        finally:
            if is_only:
                fcntl.flock(self._loading, fcntl.LOCK_UN)

    def want(self) -> None:
        """This device waits for memory."""
        self._wanted.touch()

    def is_wanted(self) -> bool:
        """Whether some device waits for memory."""
        try:
            return time.time() - self._wanted.stat().st_mtime < WANTED_SECONDS
        except FileNotFoundError:
            return False


def _locked(file: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class Models:
    """Of one device; for the thread that trains.

    Args:
        is_gpu: Whether they lie on `cuda:0`.
        share: Part of the node's free memory that is this device's without asking.
        node: Its devices.
    """

    def __init__(self, is_gpu: bool, share: float, node: NodeMemory | None = None) -> None:
        self._is_gpu, self._share = is_gpu, share
        self._device = "cuda:0" if is_gpu else "cpu"
        self._node = node or NodeMemory()
        self._prepared: OrderedDict[str, Prepared] = OrderedDict()
        self._is_said = True

    def get(
        self,
        config: FinetuneConfig,
        cache: Path | None,
        used: Collection[Prepared],
        goes_on: Callable[[], bool] = lambda: True,
    ) -> Prepared:
        """The base model with its data, loaded once for all trials that share it.

        Args:
            config: Of the trial.
            cache: Folder of tokenised data.
            used: By the trials of this device.
            goes_on: Whether somebody still waits for it.

        Raises:
            Abandoned: `goes_on` says that nobody waits for it any more.
            NoRoom: It does not fit beside what is used; it may when others are done.
            InvalidInput: The model or the data can't be used.
        """
        from hpsearch.finetune.prepare import is_loaded, load_base, prepare, prepared_key

        key = prepared_key(config)
        if key not in self._prepared:
            # Held while what is idle goes: other data, or a longer context, on the base that is there.
            _base = load_base(config.model, self._device) if is_loaded(config.model, self._device) else None
            self._forget(used, KEPT_MODELS - 1)
            with self._admitted(config, used), lengthy("loading the model and the data"):
                self._prepared[key] = prepare(config, self._device, cache, goes_on)
            for text in self._prepared[key].warnings:
                log.warning("data cut", extra={"train": config.data.train, "text": text})
        self._prepared.move_to_end(key)
        return self._prepared[key]

    def make_room(self, used: Collection[Prepared]) -> None:
        """Let go of what no trial of this device uses, when another device waits for memory."""
        if not self._is_gpu and self._prepared and self._node.is_wanted():
            self._forget(used, 0)
            self._say()
        if not self._is_said:
            self._say()

    @contextlib.contextmanager
    def _admitted(self, config: FinetuneConfig, used: Collection[Prepared]) -> Iterator[None]:
        """Inside, it may be loaded."""
        from hpsearch.finetune import memory

        needed = memory.loading_bytes(config, self._device)
        try:
            if self._is_gpu:
                if used and not memory.has_room(needed, self._device):
                    raise NoRoom(self._text(needed))
                yield
            elif memory.has_room(needed, self._device, self._share):
                yield
            else:
                yield from self._alone_at_it(config, used, needed)
        finally:
            self._say()

    def _alone_at_it(self, config: FinetuneConfig, used: Collection[Prepared], needed: int) -> Iterator[None]:
        """More than this device's part of the memory: one device of the node after the other."""
        from hpsearch.finetune import memory

        with self._node.loading() as is_only:
            if is_only and not memory.has_room(needed, self._device):
                self._forget(used, 0)
                needed = memory.loading_bytes(config, self._device)
            if not is_only or not (memory.has_room(needed, self._device) or (not used and self._node.is_alone())):
                self._node.want()
                raise NoRoom(self._text(needed))
            yield

    @staticmethod
    def _text(needed: int) -> str:
        return f"loading the base model takes about {needed / 2**30:.1f} GiB, which others use now: it waits for them"

    def _say(self) -> None:
        """Whether anything is loaded here."""
        if self._is_gpu:
            return
        if self._prepared:
            self._is_said = self._node.hold()
        else:
            self._node.let_go()
            self._is_said = True

    def _forget(self, used: Collection[Prepared], most: int) -> None:
        """Let at most so many base models stay loaded that no trial uses, the last ones; on a GPU, none."""
        idle = [key for key, each in self._prepared.items() if not any(each is one for one in used)]
        for key in idle[: len(idle) - (0 if self._is_gpu else most)]:
            del self._prepared[key]
        if self._is_gpu:
            import torch

            torch.cuda.empty_cache()
