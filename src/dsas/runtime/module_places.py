"""Module places: the modules at the sites when a Steering was applied, to notice if they are replaced."""

import warnings
from collections.abc import Sequence

from torch import nn

from dsas.errors import DsasWarning, StateError
from dsas.model.compiled_code import uncompiled
from dsas.model.hooks import Hooks
from dsas.runtime.rule import Rule


class Places:
    """The modules of a model that is steered."""

    def __init__(self, model: nn.Module, rules: Sequence[Rule]) -> None:
        """Begin without a note."""
        self._model, self._rules = model, rules
        self._sites: list[tuple[str, nn.Module]] = []
        self._paths: tuple[str, ...] = ()

    def note(self) -> None:
        """Take note of what is there now."""
        paths = [rule.site.path for rule in self._rules]
        self._sites = [(path, uncompiled(self._model.get_submodule(path))) for path in paths]
        self._paths = self._now()

    def check(self, hooks: Hooks) -> None:
        """Raise StateError where a module was replaced since it was noted; warn, once, of other changes to the model.

        hooks: those of the Steering; where they are off, there is no warning.
        """
        if not hooks.active:
            return
        self.check_sites()
        paths = self._now()
        if paths != self._paths:
            self._paths = paths
            warnings.warn(
                "modules were added to the model or removed from it after the Steering was applied, such as adapters: "
                "the model that runs is not the one it was fitted on; apply it again to see how they differ",
                DsasWarning,
                stacklevel=2,
            )

    def check_sites(self) -> None:
        """Raise StateError where a module was replaced since it was noted."""
        moved = [path for path, module in self._sites if self._at(path) is not module]
        if moved:
            raise StateError(
                f"{len(moved)} steered modules, such as {moved[0]}, were replaced after the Steering was applied (as "
                "when an adapter is loaded or merged): leave the Steering and apply it again"
            )

    def _at(self, path: str) -> nn.Module | None:
        try:
            return uncompiled(self._model.get_submodule(path))
        except AttributeError:
            return None

    def _now(self) -> tuple[str, ...]:
        """Return the paths of the modules, compiled or not."""
        paths = (path for path, module in self._model.named_modules() if uncompiled(module) is module)
        return tuple(".".join(part for part in path.split(".") if part != "_orig_mod") for path in paths)
