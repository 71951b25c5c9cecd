"""Module places: the modules of the sites as they were when a Steering went to work, to notice other ones there."""

import warnings
from collections.abc import Sequence

from torch import nn

from dsas.errors import DsasWarning, StateError
from dsas.model.compiled_code import uncompiled
from dsas.runtime.rule import Rule


class Places:
    """The modules of a model that is steered."""

    def __init__(self, model: nn.Module, rules: Sequence[Rule]) -> None:
        """Take note of them."""
        self._model = model
        self._sites = [(rule.site.path, uncompiled(model.get_submodule(rule.site.path))) for rule in rules]
        self._paths = self._now()

    def check(self) -> None:
        """Raise StateError where a steered module is another one now; warn, once, of other changes to the model."""
        modules = dict(self._model.named_modules())
        moved = [path for path, module in self._sites if uncompiled(modules.get(path, self._model)) is not module]
        if moved:
            raise StateError(
                f"{len(moved)} steered modules, such as {moved[0]}, were replaced after the Steering was applied (as "
                "when an adapter is loaded): leave the Steering and apply it again"
            )
        paths = self._now()
        if paths != self._paths:
            self._paths = paths
            warnings.warn(
                "modules were added to the model or taken out of it after the Steering was applied, as adapters are: "
                "what it was fitted on is not what runs; apply it again to see how they differ",
                DsasWarning,
                stacklevel=2,
            )

    def _now(self) -> tuple[str, ...]:
        """Return the paths of the modules, compiled or not."""
        paths = (path for path, module in self._model.named_modules() if uncompiled(module) is module)
        return tuple(".".join(part for part in path.split(".") if part != "_orig_mod") for path in paths)
