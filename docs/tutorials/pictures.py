# %% [markdown]
# # Pictures
#
# A diffusers pipeline is steered like a language model: prompts take the place of texts, and every position of the
# picture is a token. You will take red out of the pictures of a small text-to-image model.
#
# You need a checkout of the repository and `pip install 'dsas[diffusion,reports]'`. The model draws scenes of one or
# two things at 32 x 32 pixels; it has 4.9 million parameters and is part of the repository, so this runs in a minute.
# For Stable Diffusion, SDXL, SD3, FLUX and PixArt the code is the same: [Steer a diffusers
# pipeline](../howto/diffusion.md).

# %%
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
from scenes import caption, concept_present, paint, replaced, scene_pipeline, scenes_with, without

import dsas

pipeline = scene_pipeline()
red = scenes_with("red", things=1)
fit_on, report_on = red[:60], red[60:84]
sets = {
    "source": fit_on,
    "control": without(fit_on, "red", avoid="blue", seed=0),
    "target": [replaced(scene, "red", "blue") for scene in fit_on],
}
for name, scenes in sets.items():
    print(f"{name:<8} {len(scenes)} prompts, such as: {caption(scenes[0])}")

# %% [markdown]
# ## Fit
#
# `sites` are the cross-attention outputs of the U-Net, where the prompt enters. `Drawing` says how pictures are drawn
# while activations are read: the same steps and guidance as later.

# %%
drawing = dsas.Drawing(steps=10, options={"guidance_scale": 3.0}, batch_size=30)
steering = dsas.fit(
    pipeline,
    **{name: [caption(scene) for scene in scenes] for name, scenes in sets.items()},
    sites="unet.**.attn2",
    regulator=partial(dsas.Logistic.fit, components=20),
    reading=drawing,
    progress=False,
)
steered = [line for line in steering.report() if line.weight > 0]
print(f"{len(steered)} of {len(steering.report())} sites are steered")

# %% [markdown]
# ## Count
#
# A detector says what is in each picture; scenes drawn by code it reads exactly. The captions are held out, and the
# noise is the same at every strength.

# %%
asked = [caption(scene) for scene in report_on]
plain = [caption(scene) for scene in without(report_on, "red", seed=1)]
drawn = {0.0: paint(pipeline, asked, seed=5, steps=10, guidance=3.0)}
untouched = paint(pipeline, plain, seed=5, steps=10, guidance=3.0)
print(f"unsteered: red in {concept_present(drawn[0.0], 'red').mean():.0%} of {len(asked)} pictures that ask for it")
for strength in (1.0, 2.0, 4.0):
    with steering.apply(pipeline, strength):
        drawn[strength] = paint(pipeline, asked, seed=5, steps=10, guidance=3.0)
        moved = paint(pipeline, plain, seed=5, steps=10, guidance=3.0)
    change = np.abs(moved.astype(float) - untouched).mean()
    shown = concept_present(drawn[strength], "red").mean()
    print(f"strength {strength:g}: red in {shown:.0%}; other pictures change by {change:.1f} of 255")

# %% [markdown]
# ## Look

# %%
figure, axes = plt.subplots(len(drawn), 8, figsize=(8, 4.2))
for row, (strength, pictures) in zip(axes, drawn.items(), strict=True):
    for axis, picture in zip(row, pictures, strict=False):
        axis.imshow(picture)
        axis.axis("off")
    row[0].set_title(f"strength {strength:g}", fontsize=8, loc="left")
plt.show()

# %% [markdown]
# ## Where it acted
#
# `applied.maps()` has the applied strength for each site, denoising step and position. It is high on the red thing and
# not on the background.

# %%
with steering.apply(pipeline, 2.0) as applied:
    picture = paint(pipeline, asked[:1], seed=5, steps=10, guidance=3.0)[0]
figure = applied.maps().plot(picture / 255, image=0)
figure

# %% [markdown]
# Results on 200 captions per concept, with intervals and three transforms, are in [the lab](../lab/pictures.md).
