"""Steer a diffusers pipeline and see where in the picture it acted.

The pipeline has a few thousand weights, is made in code and draws noise, so it takes seconds; the calls are the same
for Stable Diffusion, SDXL, SD3, FLUX and PixArt.
"""

import dsas
from dsas.testing import tiny_pipeline

THINGS = ("dog", "car", "house", "tree", "boat", "chair", "bird", "cup")


def main() -> None:
    pipeline = tiny_pipeline("sd")
    steps, size = 3, {"height": 16, "width": 16, "guidance_scale": 3.0}
    steering = dsas.fit(
        pipeline,
        source=[f"a red {thing}" for thing in THINGS],
        control=[f"a {thing}" for thing in THINGS],
        target=[f"a blue {thing}" for thing in THINGS],
        sites="norm",
        selection="all",
        reading=dsas.Drawing(steps=steps, options=size),
        progress=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    with steering.apply(pipeline, strength=[0.0, 1.0]) as applied:  # a strength per prompt
        pictures = pipeline(["a red dog"] * 2, num_inference_steps=steps, output_type="np", **size).images
    maps = applied.maps()
    print("pictures:", pictures.shape)
    for site, grid in list(zip(maps.sites, maps.strengths, strict=True))[:3]:
        print(f"{site}: image, step, height, width = {tuple(grid.shape)}, mean strength {grid.mean():.3f}")


if __name__ == "__main__":
    main()
