"""Registry: methods by name, built in or from other packages.

A method is given by the place of its class, "module:Class", and imported when it is asked for, so that listing and
checking names imports nothing. Another package adds its methods by entry points, in the groups "dsas.transforms",
"dsas.regulators" and "dsas.objectives":

    [project.entry-points."dsas.transforms"]
    shrink = "their_package.shrink:Shrink"

They are looked up when a name is not built in, or when all are listed, so importing dsas imports no other package. The
name that counts is the class's own `name`.
"""

import threading
import warnings
from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar, final

from dsas.errors import DsasWarning, OptionError, closest

Method = TypeVar("Method")


@final
class Registry(Mapping[str, type[Method]], Generic[Method]):
    """Classes of one kind by name, in the order in which they are given, followed by those from entry points."""

    def __init__(self, group: str, kind: str, methods: Mapping[str, str]) -> None:
        """Hold `methods` by name, subclasses of `kind`, and whatever packages declare in the entry-point group `group`.

        kind and the values of `methods` are written as "module:Class".
        """
        self._group, self._kind = group, kind
        self._known: dict[str, str | type[Method]] = dict(methods)
        self._complete, self._looking, self._one = False, False, threading.RLock()

    def __getitem__(self, name: str) -> type[Method]:
        if name not in self._known:
            self._complete_from_packages()
        method: Any = self._known[name]
        if isinstance(method, str):
            self._known[name] = method = self._load(method)
        return method

    def __contains__(self, name: object) -> bool:
        if name not in self._known:
            self._complete_from_packages()
        return name in self._known

    def __iter__(self) -> Iterator[str]:
        self._complete_from_packages()
        return iter(self._known)

    def __len__(self) -> int:
        self._complete_from_packages()
        return len(self._known)

    def check(self, name: str) -> None:
        """Raise OptionError for an unknown name. Imports no method of dsas."""
        if name not in self:
            kind = self._kind.rpartition(":")[2].lower()
            raise OptionError(f"unknown {kind} {name!r}; closest: {closest(name, self)}")

    def _load(self, value: str) -> Any:
        return EntryPoint("", value, self._group).load()

    def _complete_from_packages(self) -> None:
        if self._complete:
            return
        problems = list[str]()
        with self._one:  # another thread waits until all are loaded; what an entry imports may use the registry, too
            if self._complete or self._looking:
                return
            self._looking = True
            try:
                problems = self._problems()
                self._complete = True
            finally:
                self._looking = False
        for problem in problems:  # last, so that a warning turned into an error does not keep other methods away
            warnings.warn(problem, DsasWarning, stacklevel=3)

    def _problems(self) -> list[str]:
        """Add the methods that other packages declare, and return what is wrong with those that are not added."""
        problems = []
        for entry in entry_points(group=self._group):
            try:
                kind, method = self._load(self._kind), entry.load()
                right = isinstance(method, type) and issubclass(method, kind)
                problem = None if right else f"it is not a subclass of dsas.{kind.__name__}"
                if right and method.name in self._known:
                    problem = f"the name {method.name!r} is taken by {self[method.name].__name__}"
            except Exception as error:  # nothing that another package does may keep dsas from working
                method, problem = None, f"{type(error).__name__}: {error}"
            if problem is not None:
                problems.append(f"{entry.value} of {self._group!r} is not used: {problem}")
            else:
                self._known[method.name] = method  # pyright: ignore[reportOptionalMemberAccess, reportArgumentType]
        return problems
