"""Activations: one vector per example and site, pooled while the model runs and nothing else kept.

    pooled(x) = mean over tokens i of x that count of  t_i,   computed in float32

A token counts when it is asked for (all of a text, an answer, the last; see `dsas.model.rendering`) and not an
attention sink. A sink is the first real token of a row, which can attend to nothing but itself, and any token whose
norm exceeds `SINK_RATIO` times the median norm of its row: models park surplus attention there, with norms up to
hundreds of times those of other tokens (arXiv 2309.17453, 2402.17762), and a mean that includes one describes the sink
and not the text. A row of which nothing would be left keeps all tokens that are asked for.

Where somebody says which tokens matter, `token_activations` gives those tokens themselves.

The forward pass stops as soon as every site has been read, so the remaining layers and the vocabulary projection are
never computed; but not that of a model that FSDP shards, which is left whole where a pass does not end.
Limitations: no statistics beyond these vectors.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from dsas.errors import ActivationError, SiteError, closest
from dsas.model.evaluation_mode import evaluation_mode
from dsas.model.foreign import Given
from dsas.model.hooks import Hooks, StopForward
from dsas.model.running import own_tokens, run_on
from dsas.model.sites import Site
from dsas.model.token_batches import Batch, inputs_of
from dsas.model.wrappers import sharded_modules

SINK_RATIO = 8.0


class TokenProjections(NamedTuple):
    """Single tokens along directions.

    values: for each row what its tokens but the first are, (site, token, direction), float32 on the CPU. counted: for
    each row which of these tokens count, Bool (token,).
    """

    values: list[Float[Tensor, "site token direction"]]
    counted: list[Bool[Tensor, " token"]]


def pooled_activations(
    model: nn.Module,
    batches: Iterable[tuple[Mapping[str, Tensor], Tensor]],
    sites: Sequence[Site],
    *,
    skip_sinks: bool = True,
) -> Iterator[dict[Site, Float[Tensor, "batch dim"]]]:
    """Yield, for each batch of model inputs, the pooled activations of its rows at every site, float32, on the CPU.

    Each batch holds `input_ids` and `attention_mask` (batch, token) and comes with a mask that is True on the tokens
    that count. The model runs in evaluation mode, without gradients and without a cache, and is left in the mode in
    which it was given.
    Raises ActivationError for a value that is not finite (it names the site), SiteError for a site that never fires.
    """
    for batch, counted in batches:
        pool = partial(pooled, real=batch["attention_mask"].bool(), counted=counted, skip_sinks=skip_sinks)
        yield read_sites(model, batch, sites, lambda _, t, pool=pool: pool(t))


def token_activations(
    model: nn.Module, batches: Iterable[tuple[Mapping[str, Tensor], Tensor]], sites: Sequence[Site]
) -> Iterator[dict[Site, Float[Tensor, "token dim"]]]:
    """Yield, for each batch of model inputs, the activations of the tokens chosen in it, row after row, float32, CPU.

    Each batch comes with a mask (batch, token) that is True on the tokens chosen; otherwise as `pooled_activations`.
    """
    for batch, chosen in batches:
        yield read_sites(model, batch, sites, lambda _, t, chosen=chosen: t[chosen.to(t.device)].float())


def token_projections(
    model: nn.Module,
    batches: Iterable[Batch],
    projections: Mapping[Site, Float[Tensor, "dim direction"]],
) -> Iterator[list[Float[Tensor, "site token direction"]]]:
    """Yield, for each batch, what each row's real tokens but the first are along each site's directions.

    Nothing else of them is kept, so this takes little memory however many tokens there are. Otherwise as
    `pooled_activations`; float32, on the CPU.
    """
    sites = list(projections)

    def along(site: Site, t: Tensor) -> Tensor:
        return t.float() @ projections[site].to(t.device, torch.float32)

    for batch in batches:
        found = read_sites(model, inputs_of(batch), sites, along)
        values = torch.stack([found[site] for site in sites])
        yield [values[:, row, own.nonzero().flatten()[1:]] for row, own in enumerate(batch.mask)]


def read_sites(
    model: nn.Module, batch: Mapping[str, Tensor], sites: Sequence[Site], read: Callable[[Site, Tensor], Tensor]
) -> dict[Site, Tensor]:
    """Run one batch up to the last of `sites` and return what `read` makes of each and its activation, on the CPU."""
    found: dict[Site, Tensor] = {}
    stops = not sharded_modules(model)

    def reader(site: Site) -> Callable[[Given], None]:
        def look(given: Given) -> None:
            if site in found:  # a module that runs several times in a pass: the first is read
                return
            found[site] = read(site, own_tokens(site.read(given), batch["attention_mask"], f"site {site}"))
            if stops and len(found) == len(sites):
                raise StopForward

        return look

    with torch.no_grad(), evaluation_mode(model), Hooks() as hooks:
        for site in sites:
            hooks.at_site(model, site, reader(site))
        with suppress(StopForward):
            run_on(model, batch)
    missing = [str(site) for site in sites if site not in found]
    if missing:
        near = closest(missing[0], map(str, found))
        raise SiteError(f"these sites never ran in the forward pass: {', '.join(missing)}; closest that fired: {near}")
    return {site: finite(site, found[site]) for site in sites}


def finite(site: Site, pooled: Float[Tensor, "sample *rest"]) -> Float[Tensor, "sample *rest"]:
    """Return the vectors on the CPU. Raises ActivationError, naming the site, when one is not finite."""
    pooled = pooled.cpu()
    if not torch.isfinite(pooled).all():
        raise ActivationError(
            f"site {site}: {int((~torch.isfinite(pooled)).any(-1).sum())} of {len(pooled)} texts have activations that "
            "are not finite; load the model in bfloat16 or float32 instead of float16, or leave this site out"
        )
    return pooled


def pooled(
    t: Float[Tensor, "batch token dim"],
    real: Bool[Tensor, "batch token"],
    counted: Bool[Tensor, "batch token"],
    *,
    skip_sinks: bool,
) -> Float[Tensor, "batch dim"]:
    """Return the mean of each row's tokens that count, in float32; gradients pass."""
    t, real, counted = t.float(), real.to(t.device), counted.to(t.device)
    counts = counted & ~sinks(t, real) if skip_sinks else counted
    counts = torch.where(counts.any(-1, keepdim=True), counts, counted)
    weights = counts.float() / counts.sum(-1, keepdim=True)
    return torch.bmm(weights.unsqueeze(1), t.masked_fill(~real.unsqueeze(-1), 0.0)).squeeze(1)


def sinks(t: Float[Tensor, "batch token dim"], real: Bool[Tensor, "batch token"]) -> Bool[Tensor, "batch token"]:
    """Return which tokens are attention sinks: each row's first real token, and those far above the median norm."""
    first = real & (real.long().cumsum(-1) == 1)
    norms = torch.linalg.vector_norm(t, dim=-1).masked_fill(~real, float("nan"))
    return first | (norms > SINK_RATIO * norms.nanmedian(-1, keepdim=True).values)
