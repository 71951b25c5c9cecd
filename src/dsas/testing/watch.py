"""Watch: observes the output of each site's module before and after steering, to see whether it was written into."""

from typing import Any

from torch import Tensor, nn

from dsas.model.foreign import Foreign, Given
from dsas.model.sites import Site
from dsas.testing.laws import require


class Watch:
    """Watches the sites of a model that is not used elsewhere, because it replaces their modules' `forward`."""

    def __init__(self, sites: list[Site], model: nn.Module) -> None:
        """Watch the outputs of the sites from now on; inputs are not watched."""
        self._model = model
        self._sites = [site for site in dict.fromkeys(sites) if site.side == "output"]
        self._before: dict[Site, tuple[Tensor, Tensor]] = {}
        self._after: dict[Site, Tensor] = {}
        for site in self._sites:
            module = model.get_submodule(site.path)
            forward = module.forward

            def watched(*args: Given, _forward: Any = forward, _site: Site = site, **kwargs: Given) -> Foreign:
                output = _forward(*args, **kwargs)
                value = _site.read(output)
                self._before[_site] = (value, value.detach().clone())
                return output

            module.forward = watched  # type: ignore[method-assign]

    def look_after(self) -> None:
        """Also watch the input of the next module; to be called once steering is on."""
        for site in self._sites:

            def look(_module: nn.Module, _args: Any, output: Given, _site: Site = site) -> None:
                given, copied = self._before[_site]
                require(3, bool((given == copied).all()), f"the output of {_site} was written into")
                self._after[_site] = _site.read(output)

            self._model.get_submodule(site.path).register_forward_hook(look)

    def check(self) -> None:
        """Require that shape, dtype and device of every output were kept."""
        for site, value in self._after.items():
            given, _ = self._before[site]
            same = value.dtype == given.dtype and value.shape == given.shape and value.device == given.device
            require(3, same, f"the output of {site} changed its dtype, shape or device ({given.dtype}, {value.dtype})")
