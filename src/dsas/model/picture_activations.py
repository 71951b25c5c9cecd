"""Picture activations: activations of a pipeline while it draws, as one vector per prompt, step and sample.

The branch of guidance that will be steered is read. A sample is the mean over the positions of one picture,
or one of its positions. Where a scheduler runs the denoiser twice in a step, the mean of both is taken.

Source: spatial means as in DSAS (arXiv 2512.03661). Limitations: padding tokens of prompts count at sites of the text
encoders; a given picture cannot be noised and read.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import torch
from jaxtyping import Float
from torch import Tensor

from dsas.errors import SiteError, StateError, closest
from dsas.model.activations import finite
from dsas.model.drawing import Drawing, Prompts, draw, watch
from dsas.model.evaluation_mode import evaluation_mode
from dsas.model.foreign import Given
from dsas.model.forward_pass import UNKNOWN
from dsas.model.hooks import Hooks, StopForward
from dsas.model.picture_passes import PicturePasses
from dsas.model.pipeline_modules import PipelineModules
from dsas.model.sites import Site


def drawn_activations(
    parts: PipelineModules, batches: Sequence[Prompts], sites: Sequence[Site], drawing: Drawing
) -> Iterator[dict[Site, Float[Tensor, "prompt step sample dim"]]]:
    """Yield, per batch of prompts, the activations of every site while pictures were drawn, float32, on the CPU.

    The pipeline runs in evaluation mode and is left as it was. Raises ActivationError for a value that is not finite
    (it names the site), SiteError for a site that never fires in the branch that is read.
    """
    drawing.check()
    for batch in batches:
        found: dict[Site, dict[int, list[Tensor]]] = {site: {} for site in sites}
        reader = PicturePasses(parts, drawing.branch)
        with evaluation_mode(parts), Hooks() as hooks:
            watch(hooks, reader, parts, sites)
            for site in sites:
                hooks.at_site(parts, site, _looker(site, reader, drawing, found[site]))
            with suppress(StopForward):
                draw(parts.pipeline, batch, drawing)
        missing = [str(site) for site in sites if not found[site]]
        if missing:
            fired = [str(site) for site in sites if found[site]]
            raise SiteError(
                f"these sites never ran in the {drawing.branch} branch: {', '.join(missing)}; closest that fired: "
                f"{closest(missing[0], fired)}"
            )
        yield {site: _stacked(site, found[site], len(batch.prompts)) for site in sites}


def chosen_positions(tokens: int, count: int) -> Tensor:
    """Return which of `tokens` positions are read, at most `count`: random, but always the same."""
    order = torch.randperm(tokens, generator=torch.Generator().manual_seed(tokens))
    return order[:count].sort().values


def _looker(
    site: Site, reader: PicturePasses, drawing: Drawing, found: dict[int, list[Tensor]]
) -> Callable[[Given], None]:
    def look(given: Given) -> None:
        t = site.read(given)
        step = reader.at(site, t, given)
        if step.copies == UNKNOWN:
            raise StateError(
                f"site {site}: it is unknown to which prompt each of its {len(t)} rows belongs; fit other sites"
            )
        t = step.take(t.detach())
        if len(t) == 0:
            return
        if drawing.pooling == "mean":
            read = t.float().mean(1, keepdim=True)
        else:
            read = t[:, chosen_positions(t.shape[1], drawing.positions).to(t.device)].float()
        read = read.unflatten(0, (step.copies, -1)).mean(0)
        found.setdefault(0 if step.denoising is None else step.denoising.number, []).append(read.cpu())

    return look


def _stacked(site: Site, found: dict[int, list[Tensor]], prompts: int) -> Float[Tensor, "prompt step sample dim"]:
    steps = torch.stack([torch.stack(found[number]).mean(0) for number in sorted(found)], dim=1)
    finite(site, steps.flatten(0, -2))
    rows = steps.unflatten(0, (prompts, -1))  # prompt, image, step, sample, dim
    return rows.transpose(1, 2).flatten(2, 3)
