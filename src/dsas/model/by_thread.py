"""By thread: the last object that each thread made, for as long as the thread lives, and the last that any made."""

import sys
import threading
import weakref
from collections.abc import Callable
from typing import Generic, TypeVar

import torch

from dsas.model.foreign import Foreign

Made = TypeVar("Made")


class _Slot(Generic[Made]):
    """What one thread made last."""

    made: Made


class ByThread(Generic[Made]):
    """What threads made last."""

    def __init__(self) -> None:
        self._local = threading.local()
        self._slots: weakref.WeakKeyDictionary[threading.Thread, _Slot[Made]] = weakref.WeakKeyDictionary()
        self._last: Made | None = None
        # torch.compile may try to trace the uncompiled parts of a pass, and cannot trace this.
        self._thread: Callable[[], threading.Thread] = threading.current_thread
        if "torch._dynamo" in sys.modules:
            untraced: Foreign = torch.compiler.disable
            self._thread = untraced(threading.current_thread)

    def put(self, made: Made) -> Made:
        """Keep what this thread made, in place of what it made before, and return it."""
        slot: _Slot[Made] | None = getattr(self._local, "slot", None)
        if slot is None:
            slot = self._local.slot = _Slot()
            slot.made = made
            self._slots[self._thread()] = slot
        slot.made = self._last = made
        return made

    def own(self) -> Made | None:
        """Return what this thread made last."""
        slot: _Slot[Made] | None = getattr(self._local, "slot", None)
        return None if slot is None else slot.made

    def of(self, thread: threading.Thread | None = None) -> Made | None:
        """Return what a thread made last. None is this thread or, if it made nothing, the last one that did."""
        if thread is not None:
            slot = self._slots.get(thread)
            return None if slot is None else slot.made
        own = self.own()
        return self._last if own is None else own
