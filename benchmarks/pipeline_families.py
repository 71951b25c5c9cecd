"""Families of pipelines: what steering knows of each, by structure, on tiny random pipelines.

    python benchmarks/pipeline_families.py

prints a Markdown table. Everything is checked against hooks written here, not against what dsas says of itself:

- fit: `dsas.fit` on eight prompts at the residual stream gives a rule for each site;
- steer: each shorthand changes the pictures;
- branch: the rows that are steered in the conditional branch are those whose first activations change when the prompt
  does and the negative prompt does not, in every pass of the first step; and the other way round;
- trace: the maps have a picture, a step and a position for what was steered;
- fuse: a fused pipeline draws what it draws under `apply(branch="both")`.
"""

import sys
from typing import Any

import torch
from torch import Tensor

import dsas
from dsas.errors import DsasError
from dsas.model.hooks import Hooks
from dsas.model.pipeline_modules import PIPELINE_FAMILIES
from dsas.model.subject import subject_of
from dsas.testing.newer_pipelines import NEWER_OPTIONS
from dsas.testing.pipelines import NEWER_PIPELINES, PIPELINES, tiny_pipeline

SHORT = {"height": 16, "width": 16, "max_sequence_length": 16}
OPTIONS: dict[str, dict[str, Any]] = {
    "sd": {"height": 16, "width": 16},
    "sdxl": {"height": 16, "width": 16},
    "sd3": SHORT,
    "flux": {**SHORT, "negative_prompt": ["bad", "worse"], "true_cfg_scale": 3.0},
    "pixart": {**SHORT, "use_resolution_binning": False, "clean_caption": False},
    **NEWER_OPTIONS,
}
PROMPTS = ("a red dog", "the sky, late")
UNGUIDED = ("flux2",)  # the guidance is distilled into the model
SHORTHANDS = ("residual", "norm", "attention", "mlp")


def draw(pipeline: Any, family: str, prompts: tuple[str, ...] = PROMPTS, **options: Any) -> Tensor:
    """Return the latents of a picture or video for each of two prompts."""
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
    given = {"num_inference_steps": 2, "output_type": "latent", "generator": generators, **OPTIONS[family], **options}
    out = pipeline(prompt=list(prompts), **given)
    return out.images if hasattr(out, "images") else out.frames


def seen(pipeline: Any, family: str, site: dsas.Site, **options: Any) -> list[Tensor]:
    """Return what a site gave in each pass of the only step of a run, as rows of numbers."""
    module, found = subject_of(pipeline).module, list[Tensor]()
    with Hooks() as hooks:
        hooks.at_site(module, site, lambda given: found.append(site.read(given).detach().clone().flatten(1)))
        steps = 2 if family == "pixart" else 1  # PixArt takes a single step for one of a consistency model
        draw(pipeline, family, num_inference_steps=steps, **options)
    return found[: len(found) // steps]


def moved(before: list[Tensor], after: list[Tensor]) -> list[tuple[bool, ...]]:
    """Return which rows of which passes differ."""
    return [
        tuple(((one - other).abs().amax(1) > 1e-6 * one.abs().max()).tolist())
        for one, other in zip(before, after, strict=True)
    ]


def negative(family: str) -> dict[str, Any]:
    """Return the option that sets another negative prompt, with as many letters as the usual one."""
    if family in UNGUIDED:
        return {}
    return {"negative_prompt": ["odd", "worst"] if "negative_prompt" in OPTIONS[family] else ["q", "z"]}


def first_site(pipeline: Any) -> dsas.Site:
    """Return the last site of the residual stream, in the denoiser of the first step."""
    sites = subject_of(pipeline).sites("residual")
    parts = {site.path.partition(".")[0] for site in sites}
    return [site for site in sites if site.path.startswith(f"{min(parts)}.")][-1]


def branch_found(pipeline: Any, family: str, branch: Any) -> bool:
    """Whether the rows that are steered by branch are those that depend on that prompt."""
    site = first_site(pipeline)
    with torch.no_grad():
        before = seen(pipeline, family, site)
        depends = (
            moved(before, seen(pipeline, family, site, prompts=("a fat cat", "the sea, late")))
            if branch == "conditional"
            else moved(before, seen(pipeline, family, site, **_by_embedding(pipeline, family)))
        )
        width = site_width(pipeline, family, site)
        rule = dsas.Rule(site, dsas.Addition(torch.randn(width)), dsas.Constant(1.0))
        steering = dsas.Steering([rule], subject_of(pipeline).identity)
        with steering.apply(pipeline, branch=branch):
            steered = seen(pipeline, family, site)
    return moved(before, steered) == depends and any(any(rows) for rows in depends)


def _by_embedding(pipeline: Any, family: str) -> dict[str, Any]:
    """Return what changes the negative prompt alone: as text, or as embeddings where the call takes no text."""
    if family != "klein":
        return negative(family)
    embeds, _ = pipeline.encode_prompt(
        prompt=["q", "z"], max_sequence_length=16, text_encoder_out_layers=OPTIONS[family]["text_encoder_out_layers"]
    )
    return {"negative_prompt_embeds": embeds}


def site_width(pipeline: Any, family: str, site: dsas.Site) -> int:
    """Return the width of a site."""
    module, found = subject_of(pipeline).module, list[int]()
    with Hooks() as hooks:
        hooks.at_site(module, site, lambda given: found.append(site.read(given).shape[-1]))
        draw(pipeline, family, num_inference_steps=1)
    return found[0]


def constant_at(pipeline: Any, family: str, sites: Any) -> dsas.Steering:
    """Return random additions everywhere at some sites."""
    module, widths = subject_of(pipeline).module, dict[dsas.Site, int]()
    with Hooks() as hooks:
        for site in dsas.find_sites(module, sites):
            hooks.at_site(module, site, lambda given, site=site: widths.update({site: site.read(given).shape[-1]}))
        draw(pipeline, family)
    make = torch.Generator().manual_seed(1)
    rules = [
        dsas.Rule(site, dsas.Addition(0.3 * torch.randn(width, generator=make)), dsas.Constant(1.0))
        for site, width in widths.items()
    ]
    return dsas.Steering(rules, subject_of(pipeline).identity)


def fits(pipeline: Any, family: str) -> str:
    """Return the number of sites of the residual stream at which a Steering is fitted."""
    texts = {"source": "a red dog, {}", "control": "the sky, {}", "target": "a blue dog, {}"}
    sets: dict[str, Any] = {name: [text.format(number) for number in range(4)] for name, text in texts.items()}
    batched = {name: value for name, value in OPTIONS[family].items() if name != "negative_prompt"}
    if "negative_prompt" in OPTIONS[family]:
        batched["negative_prompt"] = ["bad"] * 2
    reading = dsas.Drawing(steps=2, options=batched, batch_size=2)
    return str(len(dsas.fit(pipeline, **sets, reading=reading, selection="all", progress=False).rules))


def steers(pipeline: Any, family: str) -> str:
    """Return which shorthands change pictures, and where one does not, which."""
    plain, idle = draw(pipeline, family), list[str]()
    for sites in SHORTHANDS:
        with constant_at(pipeline, family, sites).apply(pipeline):
            if torch.equal(draw(pipeline, family), plain):
                idle.append(sites)
    return "all" if not idle else f"not {', '.join(idle)}"


def traced(pipeline: Any, family: str) -> str:
    """Return the shape of the last site's map."""
    steering = constant_at(pipeline, family, "residual")
    with steering.apply(pipeline) as applied:
        draw(pipeline, family)
    maps = applied.maps()
    assert all(line.mean_strength is not None for line in applied.report())
    return " x ".join(map(str, maps.strengths[-1].shape))


def fuses(pipeline: Any, family: str) -> str:
    """Return whether a fused pipeline draws the pictures of one under `apply`."""
    steering = constant_at(pipeline, family, "mlp")
    with steering.apply(pipeline, branch="both"):
        wanted = draw(pipeline, family)
    with steering.fuse(pipeline, branch="both"):
        found = draw(pipeline, family)
    return "same" if torch.allclose(found, wanted, rtol=1e-3, atol=1e-4) else "differs"


def branches(pipeline: Any, family: str) -> str:
    """Return which branches were found where they are."""
    names = ("conditional",) if family in UNGUIDED else ("conditional", "unconditional")
    found = [name for name in names if branch_found(pipeline, family, name)]
    return "right" if len(found) == len(names) else f"wrong: {set(names) - set(found)}"


def row(family: str) -> list[str]:
    """Return one line of the table."""
    pipeline = tiny_pipeline(family)
    known = PIPELINE_FAMILIES[type(subject_of(pipeline).module.denoiser).__name__]
    cells = [family, type(pipeline).__name__, known.guidance if family not in UNGUIDED else "none"]
    for measure in (fits, steers, branches, traced, fuses):
        try:
            cells.append(measure(pipeline, family))
        except DsasError as error:
            cells.append(f"refused: {error}"[:120])
    return cells


if __name__ == "__main__":
    heads = (
        "family",
        "pipeline",
        "guidance",
        "fit: sites",
        "steer",
        "branches",
        "map: image, step, height, width",
        "fuse",
    )
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for name in sys.argv[1:] or (*PIPELINES, *NEWER_PIPELINES):
        print(f"| {' | '.join(row(name))} |", flush=True)
