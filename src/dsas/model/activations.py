"""Activations: one vector per example and site, pooled while the model runs; nothing else is kept.

    pooled(x) = mean over tokens i of x that count of  t_i,   computed in float32

A token counts when it is asked for (all of a text, an answer, the last; see `dsas.model.rendering`) and is not an
attention sink. A sink is the first real token of a row, which can attend to nothing but itself, and any token whose
norm exceeds `SINK_RATIO` times the median norm of its row: models park surplus attention there, with norms up to
hundreds of times those of other tokens (arXiv 2309.17453, 2402.17762), and a mean that includes one describes the sink
and not the text. A row that would be left without tokens keeps all that are asked for.

Where tokens are labelled, `token_activations` gives the labelled tokens themselves.

The forward pass stops as soon as every site has been read, so the remaining layers and the vocabulary projection are
never computed. The pass of a model that FSDP shards runs to its end, because it would otherwise stay unsharded.
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
from dsas.model.encoded_media import Frames
from dsas.model.evaluation_mode import evaluation_mode
from dsas.model.foreign import Given
from dsas.model.hooks import Hooks, StopForward
from dsas.model.running import own_tokens, run_on
from dsas.model.sites import Site
from dsas.model.token_batches import Batch, inputs_of
from dsas.model.wrappers import sharded_modules

SINK_RATIO = 8.0


class TokenProjections(NamedTuple):
    """Projections of single tokens on directions.

    values: per row, the projections of its tokens but the first, (site, token, direction), float32 on the CPU. counted:
    per row, which of these tokens count, Bool (token,).
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
    """Yield the pooled activations (float32, on the CPU) of the rows of each batch at every site.

    Each batch holds `input_ids` and `attention_mask` (batch, token) and comes with a mask that is True on the tokens
    that count. The model runs in evaluation mode, without gradients and without a cache, and its mode is restored
    afterwards.
    Raises ActivationError for a value that is not finite (it names the site), SiteError for a site that never fires.
    """
    for batch, counted in batches:
        real = batch["attention_mask"].bool()
        yield read_sites(model, batch, sites, partial(_pooled, real, counted, skip_sinks))


def _pooled(
    real: Tensor, counted: Tensor, skip_sinks: bool, _site: Site, t: Tensor, frames: Tensor | None
) -> Float[Tensor, "batch dim"]:
    real, counted = (real, counted) if frames is None else (frames, frames)
    return pooled(t, real, counted, skip_sinks=skip_sinks)


def token_activations(
    model: nn.Module, batches: Iterable[tuple[Mapping[str, Tensor], Tensor]], sites: Sequence[Site]
) -> Iterator[dict[Site, Float[Tensor, "token dim"]]]:
    """Yield the activations (float32, on the CPU) of the chosen tokens of each batch, row after row.

    Each batch comes with a mask (batch, token) that is True on the chosen tokens; otherwise as `pooled_activations`.
    """
    for batch, chosen in batches:
        yield read_sites(model, batch, sites, lambda _, t, _frames, chosen=chosen: t[chosen.to(t.device)].float())


def token_projections(
    model: nn.Module,
    batches: Iterable[Batch],
    projections: Mapping[Site, Float[Tensor, "dim direction"]],
) -> Iterator[list[Float[Tensor, "site token direction"]]]:
    """Yield, for each batch, the projections of each row's real tokens but the first on each site's directions.

    Nothing else is kept, so this takes little memory however many tokens there are. Otherwise as
    `pooled_activations`; float32, on the CPU.
    """
    sites = list(projections)

    def along(site: Site, t: Tensor, _frames: Tensor | None) -> Tensor:
        return t.float() @ projections[site].to(t.device, torch.float32)

    for batch in batches:
        found = read_sites(model, inputs_of(batch), sites, along)
        values = torch.stack([found[site] for site in sites])
        yield [values[:, row, own.nonzero().flatten()[1:]] for row, own in enumerate(batch.mask)]


def read_sites(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    sites: Sequence[Site],
    read: Callable[[Site, Tensor, Tensor | None], Tensor],
) -> dict[Site, Tensor]:
    """Run one batch up to the last of `sites` and return what `read` makes of each and its activation, on the CPU.

    Its third argument says which places count at a site of an encoder of sounds or pictures, and is None elsewhere.
    """
    found: dict[Site, Tensor] = {}
    stops, encoded = not sharded_modules(model), Frames(model)

    def reader(site: Site) -> Callable[[Given], None]:
        def look(given: Given) -> None:
            if site in found:  # of a module that runs several times in a pass, the first run is read
                return
            t = site.read(given, site.rows(given, batch["attention_mask"].shape))
            frames = encoded.of(site, batch, t.shape[1])
            t = own_tokens(t, batch["attention_mask"], f"site {site}") if frames is None else t
            found[site] = read(site, t, frames)
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
    """Return the mean of each row's tokens that count, in float32; gradients flow through."""
    t, real, counted = t.float(), real.to(t.device), counted.to(t.device)
    counts = counted & ~sinks(t, real) if skip_sinks else counted
    counts = torch.where(counts.any(-1, keepdim=True), counts, counted)
    weights = (counts.float() / counts.sum(-1, keepdim=True)).unsqueeze(1)
    if t.is_cpu:  # where the check is free, and a copy would cost more than everything else
        mean = torch.bmm(weights, t)
        if bool(mean.isfinite().all()):
            return mean.squeeze(1)
    return torch.bmm(weights, t.masked_fill(~real.unsqueeze(-1), 0.0)).squeeze(1)  # padding may be anything


def sinks(t: Float[Tensor, "batch token dim"], real: Bool[Tensor, "batch token"]) -> Bool[Tensor, "batch token"]:
    """Return which tokens are attention sinks: each row's first real token, and tokens far above the median norm."""
    first = real & (real.long().cumsum(-1) == 1)
    norms = torch.linalg.vector_norm(t, dim=-1).masked_fill(~real, float("nan"))
    return first | (norms > SINK_RATIO * norms.nanmedian(-1, keepdim=True).values)
