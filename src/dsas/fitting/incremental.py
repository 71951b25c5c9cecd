"""Incremental: the forward passes of all batches, paused together at every site until its rule is known.

"Causal" fitting needs, at each site, activations that all earlier sites have already steered. Running the
model anew for every site would cost as many forward passes as there are sites. Here every batch runs in a thread of its
own and waits at each site until the others are there and the rule is made, then goes on with its activations steered:
each text runs through the model once. The price is memory: the activations of all batches between two sites, about
(tokens of all texts) x width numbers, where fitting at once holds one batch.

One thread runs at a time, in the order of the batches, so the result is the same every time.

Source: incremental estimation of AcT (arXiv 2410.23054, section 3.2).
Limitations: it cannot resume in the middle.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from dsas.errors import SiteError
from dsas.model.activations import finite
from dsas.model.evaluation_mode import evaluation_mode
from dsas.model.foreign import Foreign, Given
from dsas.model.hooks import Hooks, StopForward
from dsas.model.sites import Site
from dsas.model.subject import Examples, Subject
from dsas.parallel.interruption import Leaving, surely, to_the_end
from dsas.runtime.edit import General
from dsas.runtime.rule import Rule


class Held(NamedTuple):
    """Where all passes are paused: the site, and what was read there for every batch (row, dim)."""

    site: Site
    vectors: list[Float[Tensor, "row dim"]]


class PausedPasses(Leaving):
    """The passes of several batches over one model; a context manager, iterated site by site.

    for held in passes: make a rule from `held.vectors`, then give it to `passes.steer`.
    """

    def __init__(self, subject: Subject, examples: Examples, batches: Sequence[Foreign], sites: Sequence[Site]) -> None:
        self._model, self._sites, self._examples = subject.module, list(sites), examples
        self._reader = subject.passes(branch="both", prompt_tokens=None, skip_sinks=False)
        self._hooks, self._left = Hooks(), ExitStack()
        self._passes = [_Pass(examples, batch) for batch in batches]
        self._way: General | None = None

    def steer(self, rule: Rule) -> None:
        """Steer all batches by `rule` at the site where they are paused, at strength 1; weight 0 changes nothing."""
        weight = torch.tensor(rule.weight)
        self._way = General(rule.transform, rule.regulator, weight, False) if rule.weight > 0 else None

    def __enter__(self) -> "PausedPasses":
        self.entered()
        try:
            self._left.enter_context(evaluation_mode(self._model))
            for module, read in self._reader.calls:
                self._hooks.on_call(module, read)
            for number, site in enumerate(self._sites):
                self._hooks.at_site(self._model, site, self._holder(number, site))
            for one in self._passes:
                one.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    @surely
    def __exit__(self, *_exception: object) -> None:
        to_the_end(self._close)

    def _close(self) -> None:
        for one in self._passes:
            one.give_up()
        self._hooks.remove()
        self._left.close()

    def __iter__(self) -> Iterator[Held]:
        """Give each site once all batches wait there, in the order in which the model reaches them."""
        for done in range(len(self._sites)):
            places = [one.advance() for one in self._passes]
            sites = {place[0] for place in places if place is not None}
            if len(sites) != 1 or None in places:
                missing = [str(site) for site in self._sites][done:]
                raise SiteError(
                    f"not all texts reach the same sites in the same order; not reached: {', '.join(missing)}"
                )
            (site,) = sites
            self._way = None
            yield Held(site, [finite(site, place[1]) for place in places if place is not None])

    def _holder(self, number: int, site: Site) -> Callable[[Given], Given]:
        def hold(given: Given) -> Foreign:
            one = threading.current_thread()
            if not isinstance(one, _Pass):
                return None
            t = site.read(given, self._reader.rows_at(site, given))
            one.pause(site, self._examples.pool(t, one.batch))
            if self._way is None:
                return None
            step = self._reader.at(site, t, given)
            step.ask(number)
            return site.write(given, self._way(t, step).t)

        return hold


class _Pass(threading.Thread):
    """One batch on its way through the model, which runs only between `advance` and the next `pause`."""

    def __init__(self, examples: Examples, batch: Foreign) -> None:
        super().__init__(daemon=True)
        self.batch = batch
        self._examples = examples
        self._go, self._wait = threading.Semaphore(0), threading.Semaphore(0)
        self._place: tuple[Site, Tensor] | None = None
        self._error: BaseException | None = None
        self._given_up = False

    def advance(self) -> tuple[Site, Tensor] | None:
        """Run to the next site and return it with what was read there; None when the pass has ended."""
        self._place = None
        self._go.release()
        self._wait.acquire()
        if self._error is not None:
            raise self._error
        return self._place

    def pause(self, site: Site, read: Tensor) -> None:
        """Report where the pass is, and wait. Raises StopForward when the pass is no longer needed."""
        self._place = (site, read)
        self._wait.release()
        self._go.acquire()
        if self._given_up:
            raise StopForward

    def give_up(self) -> None:
        self._given_up = True
        self._go.release()
        if self.is_alive():
            self.join()

    def run(self) -> None:
        self._go.acquire()
        try:
            if not self._given_up:
                with torch.no_grad():
                    self._examples.run(self.batch)
        except StopForward:
            pass
        except BaseException as error:  # passed to the thread that waits for this one
            self._error = error
        finally:
            self._wait.release()
