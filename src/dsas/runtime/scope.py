"""Scope: which passes a Steering affects while it is applied.

    process   every pass of the model, in any thread, task or worker of a server
    context   only passes of the thread or asyncio task that applied it, and of tasks started inside

"context" follows `contextvars`: `asyncio.create_task` and `asyncio.to_thread` take the context along, a plain
`threading.Thread` or an executor does not.
"""

from contextvars import ContextVar
from typing import Literal, get_args

from dsas.errors import OptionError, closest

Scope = Literal["process", "context"]

_ENTERED: ContextVar[frozenset[object]] = ContextVar("dsas_entered", default=frozenset())


class Entered:
    """Whether the running code is inside a scope."""

    def __init__(self, scope: str) -> None:
        """Raises OptionError for an unknown scope."""
        if scope not in get_args(Scope):
            known = get_args(Scope)
            raise OptionError(f"scope must be one of {known}, got {scope!r}; closest: {closest(scope, known, 1)}")
        self.is_everywhere = scope == "process"
        self._token = object()

    def enter(self) -> None:
        """Begin the scope in the current context."""
        if not self.is_everywhere:
            _ENTERED.set(_ENTERED.get() | {self._token})

    def leave(self) -> None:
        """End it in the current context; in others the Steering is already off."""
        if not self.is_everywhere:
            _ENTERED.set(_ENTERED.get() - {self._token})

    def here(self) -> bool:
        """Whether the running code is inside."""
        return self.is_everywhere or self._token in _ENTERED.get()
