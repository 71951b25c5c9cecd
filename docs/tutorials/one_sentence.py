# %% [markdown]
# # A behaviour from one sentence
#
# You have no texts, only a sentence that says what the assistant should stop doing. `dsas.draft` lets the model answer
# everyday questions three ways (asked for the behaviour, asked to avoid it, asked for nothing) and makes the three sets
# of the answers.
#
# You need `pip install 'dsas[demo]'` and a model with a chat template that does what it is told. The behaviour is
# harmless on purpose: talking like a pirate.

# %%
import dsas
from dsas.demo.models import real_model
from dsas.evaluation.question_list import everyday_questions
from dsas.model.chat_template import chat_prompts

model, tokenizer = dsas.load_model(str(real_model("smollm2")))
questions = everyday_questions()
print(len(questions), "questions, such as:", questions[0])

# %% [markdown]
# ## Draft
#
# A judge decides which answers show the behaviour. Here it is a rule of ours, since pirates are easy to recognise;
# without `judge=` the model judges by itself, from its own likelihoods.

# %%
PIRATE = ("arr", "matey", "ahoy", "aye", "treasure", "pirate", "sail", "captain", "landlubber", "the sea", "ye ")


def judge(texts: list[str]) -> list[float]:
    """Return 1 for each text with a word that pirates use, else 0."""
    return [float(any(word in text.lower() for word in PIRATE)) for text in texts]


drafted = dsas.draft(
    model,
    tokenizer,
    "talks like a pirate",
    questions=questions[:120],
    judge=judge,
    new_tokens=40,
    batch_size=20,
    least=16,
    progress=False,
)
print("kept", len(drafted.chosen.kept), "dropped", drafted.chosen.counts())
sets = drafted.sets()
for name, rows in sets.items():
    print(f"\n{name}: {rows[0]['prompt'][0]['content']}\n  {rows[0]['completion'][0]['content']}")

# %% [markdown]
# All three sets answer the same questions at about the same length, and none of them holds the prompt that asked for
# the behaviour. So they differ only in the behaviour.
#
# ## Fit and try
#
# The unwanted behaviour is now asked for in the question, on questions that the draft never saw.

# %%
fit_on = {name: rows[8:] for name, rows in sets.items()}
held_out = {name: rows[:8] for name, rows in sets.items()}
steering = dsas.fit(model, tokenizer, **fit_on, progress=False)
asked = chat_prompts(
    tokenizer, [f"{question} Give an answer that talks like a pirate." for question in questions[140:160]]
)


def answers(prompts: list[str]) -> list[str]:
    """Return one answer per prompt, the likeliest one."""
    from dsas.evaluation.generations import Sampling, sample_continuations

    greedy = Sampling(temperature=0.0, repetition_penalty=1.0, new_tokens=40, special_tokens=False)
    return sample_continuations(model, tokenizer, prompts, seeds=(0,), sampling=greedy)[0]


before = answers(asked)
print(f"unsteered: {sum(judge(before)):.0f} of {len(before)} talk like a pirate")
for strength in (1.0, 2.0, 4.0):
    with steering.apply(model, strength, record=False):
        after = answers(asked)
    print(f"strength {strength:g}: {sum(judge(after)):.0f} of {len(after)}")

# %%
with steering.apply(model, 2.0):
    steered = answers(asked[:2])
for question, first, second in zip(questions[140:142], before, steered, strict=False):
    print(f"{question}\n  unsteered: {first}\n  steered:   {second}\n")

# %% [markdown]
# ## What it does where nobody asks for pirates
#
# The regulator should leave plain answers alone. `fires_on` reads texts that nothing was fitted on and reports the mean
# value of the regulators on each kind.

# %%
from dsas.evaluation.firing import fires_on

kinds = {"pirate answers": held_out["source"], "plain answers": held_out["control"]}
for kind in fires_on(model, tokenizer, steering, kinds, progress=False).kinds:
    value = kind.value
    print(f"{kind.kind}: mean regulator {value.mean:.2f} [{value.low:.2f}, {value.high:.2f}], {kind.tokens} tokens")

# %% [markdown]
# On the command line all of this, with a calibrated strength and a report, is
#
# ```console
# $ dsas new calm "talks like a pirate" --model MODEL
# ```
#
# How good drafted sets are, and which judge to take, is measured in [the lab](../lab/drafting.md).
