"""What tests of pipelines share: how each family is run, to small latents, and steerings at its sites."""

from typing import Any

import torch
from torch import Tensor

import dsas
from dsas.model.hooks import Hooks
from dsas.model.subject import subject_of

PROMPTS = ["a red dog", "the sky, late"]
SIZE: dict[str, Any] = {"height": 16, "width": 16}
OPTIONS: dict[str, dict[str, Any]] = {
    "sd": SIZE,
    "sdxl": SIZE,
    "sd3": {**SIZE, "max_sequence_length": 16},
    "flux": {**SIZE, "max_sequence_length": 16},
    "pixart": {**SIZE, "max_sequence_length": 16, "use_resolution_binning": False, "clean_caption": False},
}


def drawn(pipeline: Any, family: str, prompts: list[str] | None = None, *, seeds: Any = None, **options: Any) -> Tensor:
    """Return the latents of one picture per prompt, drawn in two steps unless told otherwise."""
    prompts = prompts or PROMPTS
    count = len(prompts) * options.get("num_images_per_prompt", 1)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds or range(count)]
    arguments = {
        "num_inference_steps": 2,
        "output_type": "latent",
        "generator": generators,
        **OPTIONS[family],
        **options,
    }
    return pipeline(prompts, **arguments).images


def widths(pipeline: Any, family: str, sites: Any) -> dict[dsas.Site, int]:
    """Return the width of every site that fires while pictures are drawn."""
    module, found = subject_of(pipeline).module, {}
    with Hooks() as hooks:
        for site in dsas.find_sites(module, sites):
            hooks.at_site(module, site, lambda given, site=site: found.update({site: site.read(given).shape[-1]}))
        drawn(pipeline, family)
    return found


def steered_at(
    pipeline: Any, family: str, sites: Any = "residual", *, regulator: Any = None, scale: float = 1.0
) -> dsas.Steering:
    """Return random additions, with random logistic regulators unless told otherwise."""
    draw = torch.Generator().manual_seed(1)
    rules = []
    for site, width in widths(pipeline, family, sites).items():
        vector, theta = (torch.randn(width, generator=draw) for _ in range(2))
        rules.append(
            dsas.Rule(site, dsas.Addition(scale * vector), regulator or dsas.Logistic(theta, torch.tensor(0.0)))
        )
    return dsas.Steering(rules, subject_of(pipeline).identity)


def close(got: Tensor, expected: Tensor, tolerance: float = 1e-3) -> bool:
    """Whether two pictures are the same up to rounding, relative to the largest value."""
    return float((got - expected).abs().max()) <= tolerance * float(expected.abs().max())
