"""Interruption: how changes are undone although an exception such as KeyboardInterrupt can come between any two steps.

Code that makes a temporary change first records how to undo it, then makes it, inside a `try`; the undoing code may be
called twice.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

Result = TypeVar("Result")
Exit = TypeVar("Exit", bound=Callable[..., None])


def to_the_end(undo: Callable[[], Result]) -> Result:
    """Call `undo`, and once more if it was interrupted; the interruption is then raised again."""
    try:
        return undo()
    except BaseException:
        undo()
        raise


class Leaving:
    """A context manager whose `__exit__` is `surely` one, and whose `__enter__` calls `entered` first."""

    _entries = 0

    def entered(self) -> None:
        """Note that a block begins."""
        self._entries += 1


def surely(leave: Exit) -> Exit:
    """Return an `__exit__` that runs even if an interruption comes between the block and its first step.

    Python looks `__exit__` up before the block and would not call it then. So if the object that it found is dropped
    without having been called (at the latest with the traceback), it is called after all.
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
    _left = True  # until it is made: what is cut while it is made was looked up for no block

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
        if not self._left and self._manager._entries > self._entries:  # looked up for a block
            self._leave(self._manager, KeyboardInterrupt, None, None)
