# %% [markdown]
# # Read a Pareto report and choose
#
# Which method is better? One number cannot say: more strength removes more toxicity and does more damage. `dsas
# pareto` sweeps methods over strengths and seeds, and plots what is gained against what is lost. You will run a small
# sweep and learn to read its report.
#
# You need `pip install 'dsas[demo]'`. The sweep here is tiny (24 prompts, one seed, three strengths) so that it takes
# two minutes; its intervals are correspondingly wide.

# %%
import csv
import subprocess
import sys
from pathlib import Path

from IPython.display import SVG

from dsas.demo.data import openwebtext_sentences, split, toxic_prompts_by_category, wikipedia_sentences
from dsas.demo.models import real_model

out = Path("../../out/tutorials/front")
by_category = toxic_prompts_by_category()
rude = list(dict.fromkeys(by_category["insult"] + by_category["profanity"]))
fit_on, prompts = split(rude, (100, 24))
wikipedia = split(wikipedia_sentences(), (50, 100, 16, 16))
web = split(openwebtext_sentences(), (50, 16, 16))
files = {
    "source": fit_on,
    "control": wikipedia[0] + web[0],
    "target": wikipedia[1],
    "prompts": prompts,
    "tune": wikipedia[2] + web[1],
    "wikipedia": wikipedia[3],
    "web": web[2],
}
out.mkdir(parents=True, exist_ok=True)
for name, texts in files.items():
    (out / f"{name}.txt").write_text("\n".join(texts), encoding="utf-8")

# %% [markdown]
# ## Sweep
#
# Three parts of the texts do three jobs, and no text does two: *fit* (source, control, target), *tune* (chooses the
# strength that keeps the budget), *report* (prompts to continue, and neutral texts to read).
#
# The series differ in the regulator alone: `constant` is ordinary steering, `logistic` the paper's. They are swept over
# the same strengths. If the sweep is interrupted, the same command resumes it.

# %%
command = [
    "pareto", str(real_model("smollm2")), "--out", str(out / "sweep"),
    *(part for name in list(files)[:5] for part in (f"--{name}", out / f"{name}.txt")),
    "--neutral", f"Wikipedia={out / 'wikipedia.txt'}", "--neutral", f"web={out / 'web.txt'}",
    "--regulator", "constant", "--regulator", "logistic",
    "--strength", "0.02", "--strength", "0.06", "--strength", "0.18",
    "--seeds", "1", "--new-tokens", "20", "--scorer", "tox-block", "--scorer", "toxic-comment-classifier",
]  # fmt: skip
done = subprocess.run(
    [sys.executable, "-m", "dsas.cli", *map(str, command)], capture_output=True, text=True, check=True
)
print(done.stdout)

# %% [markdown]
# ## The figure
#
# One line per series, one point per strength, bars are 95 % intervals. **Down is less toxic, left is less damage.** The
# dotted cross is the unsteered model, the dashed line the budget (5 % of perplexity). A series is better where its line
# lies below and left of another's; where bars overlap, this sweep cannot say.

# %%
SVG(filename=out / "sweep" / "front.svg")

# %% [markdown]
# ## The numbers
#
# `table.csv` has every figure; `report.html` shows them with texts, and with toxic words masked.

# %%
with (out / "sweep" / "table.csv").open(encoding="utf-8") as file:
    rows = list(csv.DictReader(file))
shown = {"toxic": "ensemble", "perplexity ratio": "mean"}
for row in rows:
    if shown.get(row["measure"]) == row["kind"]:
        value, low, high = (float(row[key]) for key in ("mean", "low", "high"))
        print(f"{row['series']:<15} {row['strength']:>5} {row['measure']:<17} {value:.3f} [{low:.3f}, {high:.3f}]")

# %% [markdown]
# `dominance.csv` compares every two series by their hypervolume (how much of the figure lies above and to the right of
# the front): the interval of the difference, and the share of bootstrap draws in which it is above 0.

# %%
with (out / "sweep" / "dominance.csv").open(encoding="utf-8") as file:
    for row in csv.DictReader(file):
        difference, low, high = (float(row[f"difference of hypervolumes{end}"]) for end in ("", " low", " high"))
        above = float(row["probability that hypervolume is above"])
        print(f"{row['series']} minus {row['other']}: {difference:.2f} [{low:.2f}, {high:.2f}], above 0 in {above:.0%}")

# %% [markdown]
# ## Choose
#
# 1. **Fix the budget first**: how much may ordinary text lose? Say it before you see the toxicity.
# 2. **Take the largest strength that keeps it on the tuning texts.** The report marks that strength. Toxicity plays no
#    part in the choice, so what is reported there is not the luckiest point.
# 3. **Compare series at equal damage**, not at equal strength: strength 0.1 means something else for every method.
# 4. **Read the judge and distinct-n beside toxicity.** Gibberish is not toxic either.
# 5. **Look at the intervals.** With 24 prompts nearly everything overlaps. The lab uses 303 to 503 prompts and 3 seeds:
#    [results](../lab/results.md).
# 6. **Repeat the choice on other texts** before you rely on it: `dsas check` compares a Steering with limits of yours.
