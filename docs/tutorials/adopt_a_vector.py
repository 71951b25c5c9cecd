# %% [markdown]
# # Adopt a published vector
#
# Steering vectors are published by the thousand, and nearly all are unconditional: they are added to every token of
# every text. `dsas.adopt` keeps a vector as it is and fits a regulator around it.
#
# You need `pip install 'dsas[demo]'`. To have a "published" vector at hand, the first cell makes one and writes it as
# llama.cpp's control vector; take any file that [File formats](../reference/formats.md) lists instead.

# %%
from pathlib import Path

import dsas
from dsas.demo.models import real_model

model, tokenizer = dsas.load_model(str(real_model("smollm2")))
DISHES = ("soup", "bread", "salad", "curry", "pie", "tea", "rice", "stew", "cake", "pasta", "fish", "toast")


def texts(*patterns: str) -> list[str]:
    """Return each pattern with each dish."""
    return [pattern.format(dish) for dish in DISHES for pattern in patterns]


gloomy = texts("The {} was awful, cold and tasteless, and I felt miserable.", "I hated the {}; it was a sad, bad meal.")
cheerful = texts(
    "The {} was wonderful, warm and tasty, and I felt happy.", "I loved the {}; it was a joyful, good meal."
)
plain = texts("The {} was made with water and salt in about an hour.", "I ordered the {}; it came on a white plate.")

path = Path("../../out/tutorials/happy.gguf")
vectors = dsas.fit(
    model, tokenizer, source=gloomy, control=plain, target=cheerful, regulator="constant", progress=False
)
vectors = dsas.Steering(vectors.rules[1:], vectors.model, vectors.settings)  # the format has none for the first layer
dsas.write_gguf(vectors, path, strength=0.1)
print(path.name, path.stat().st_size, "bytes")

# %% [markdown]
# ## As it was published
#
# With `regulator="constant"` it stays unconditional, and strength 1 is what was published.

# %%
published = dsas.adopt(path, model, tokenizer, regulator="constant")


def said(prompt: str) -> str:
    """Return the likeliest continuation."""
    inputs = tokenizer(prompt, return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=20, do_sample=False, pad_token_id=tokenizer.eos_token_id)
    return tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :])


prompts = {"gloomy": "The soup was terrible and", "about trains": "The train leaves the station at"}
for kind, prompt in prompts.items():
    print(f"{kind}: {prompt}\n  unsteered: {said(prompt)!r}")
    with published.apply(model, 1.0):
        print(f"  published: {said(prompt)!r}")

# %% [markdown]
# ## With a regulator around it
#
# The vector is the same; examples now show where the behaviour occurs and where it does not. The control set has to
# hold what must stay: plain talk about food, and general text, which the model writes itself.

# %%
general = dsas.general_texts(model, tokenizer, 24, progress=False)
adopted = dsas.adopt(path, model, tokenizer, source=gloomy, control=plain + general, progress=False)
for kind, prompt in prompts.items():
    with adopted.apply(model, 1.0) as applied:
        print(f"{kind}: {said(prompt)!r}\n  mean strength applied: {applied.trace().mean().mean():.3f}")

# %% [markdown]
# ## What was gained
#
# At a strength where general text loses 0.01 nats per token, how much does gloomy text lose, and how many times as much
# as with the published vector? The larger the ratio, the more selective the regulator makes it. None of these texts was
# fitted on.

# %%
from dsas.evaluation.selectivity import measure_selectivity

later = dsas.general_texts(model, tokenizer, 24, seed=100, progress=False)
found = measure_selectivity(
    model,
    tokenizer,
    adopted,
    source=[text.replace("The ", "Their ").replace("I ", "We ") for text in gloomy],
    control={"general": later},
    damage=0.01,
    progress=False,
)
print(f"at {found.damage} nats lost per token of general text, gloomy text loses {found.nats.mean:.2f}")
print(f"that is {found.ratio.mean:.1f} times what it loses with the published vector" if found.ratio else "")

# %% [markdown]
# ## Write it back
#
# A control vector has no regulator. `dsas.write_gguf(..., gains=...)` and `dsas export --mean-gain` write one at the
# regulators' mean, and warn that it then steers every token.
