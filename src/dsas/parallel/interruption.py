"""Interruption: an exception that can come between any two steps, such as KeyboardInterrupt, and what must hold anyway.

Whatever changes something that is to be changed back first says how, then changes it, inside of a `try`; and what
changes it back may be called twice.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

Result = TypeVar("Result")
Exit = TypeVar("Exit", bound=Callable[..., None])


def to_the_end(undo: Callable[[], Result]) -> Result:
    """Call `undo`, and once more where something interrupted it; the interruption then goes on."""
    try:
        return undo()
    except BaseException:
        undo()
        raise


class Leaving:
    """A context manager whose `__exit__` is `surely` one, and whose `__enter__` calls `entered` first."""

    _entries = 0

    def entered(self) -> None:
        """Take note that a block begins."""
        self._entries += 1


def surely(leave: Exit) -> Exit:
    """Return an `__exit__` that is run although an interruption comes after the block and before its first step.

    Python looks `__exit__` up before the block and would not call it then. So when what it found there is dropped
    without having been called, with the traceback at the latest, it is called after all.
    """
    return cast(Exit, _Surely(leave))


class _Surely:
    def __init__(self, leave: Callable[..., None]) -> None:
        self._leave = leave

    def __call__(self, *arguments: Any) -> None:
        self._leave(*arguments)

    def __get__(self, manager: Any, _kind: type) -> Any:
        return self if manager is None else _Exit(self._leave, manager)


class _Exit:
    def __init__(self, leave: Callable[..., None], manager: Leaving) -> None:
        self._leave, self._manager, self._entries, self._left = leave, manager, manager._entries, False

    def __call__(self, *exception: Any) -> None:
        try:
            self._leave(self._manager, *exception)
        except Exception:
            raise
        except BaseException:  # an interruption
            self._leave(self._manager, *exception)
            raise
        finally:
            self._left = True

    def __del__(self) -> None:
        if not self._left and self._manager._entries > self._entries:  # looked up for a block, and not by the way
            self._leave(self._manager, KeyboardInterrupt, None, None)
