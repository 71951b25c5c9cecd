"""Claim: sets drafted from one sentence give a Steering that removes the behaviour and leaves other answers alone.

SmolLM2-135M-Instruct answers everyday questions. Behaviours are recognised by rules that nothing was trained on:

| behaviour | shown by an answer |
|---|---|
| asks the user a question | with a question mark |
| talks about the weather | with a word for weather |
| talks about cats | with a word for cats |
| is gloomy and hopeless | whose words with a valence in VADER's lexicon have a sum below -1 |
| ends each sentence with an exclamation mark | with exclamation marks at more than half of its sentence ends |
| answers in capital letters | with more than 80 % capitals among its letters |
| talks like a pirate | with a word of pirates |

`follow` says which of them this model shows when asked to, by each prompt that drafts use (n = 100 questions).
`draft` drafts sets from 70 of the questions, with the rule as the judge, and says how well the model itself judges.
`measure` fits CAA on them with each regulator, at the largest strength where, on 30 other questions, neither neutral
answers nor the same answers to the request for the behaviour lose 0.02 nats per token. It asks the last 100 questions
under the two prompts that ask for the behaviour in the user's turn (200 prompts, 3 seeds: share of answers that show
it, how surprising they are to the unsteered model after the plain question, share of repeated 4-grams), and neutrally
(what the unsteered model's own answers lose, and how far the next-token distributions move). Beside it: no steering,
a system prompt that forbids the behaviour, one that takes the request back in the same turn (of four wordings the one
that this model heeded most on 25 of the fit questions), and what learns to imitate that (`dsas.Imitate`, on the fit
questions, asked for the behaviour; what is said of neutral ones is kept).
Intervals are 95 %, by question. If interrupted, it resumes.

    python benchmarks/drafted.py {follow,draft,measure} [--behaviour NAME ...] [--only NAME ...] [--out out/drafted]
"""

import argparse
import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

import dsas
from dsas.demo.models import real_model
from dsas.drafting.answers import Writer
from dsas.drafting.judging import verdict
from dsas.drafting.prompts import KINDS, asked_by, prompts_for, rendered
from dsas.evaluation.fluency import repetition
from dsas.evaluation.generations import Sampling, sample_continuations
from dsas.evaluation.intervals import bootstrap, bootstrap_ratio
from dsas.evaluation.likelihood import Row, log_probabilities, rows_after
from dsas.evaluation.question_list import everyday_questions
from dsas.files.pinned_packages import fetch
from dsas.files.results import Results
from dsas.model.identity import fingerprint
from dsas.model.kl_divergence import kl_divergence
from dsas.model.loading import LoadedModel, load_model
from dsas.model.running import logits_on
from dsas.model.token_batches import batches
from dsas.model.tokenizing import pad_token

QUESTIONS = everyday_questions()
FIT, TUNE, TEST = QUESTIONS[::2][:70], QUESTIONS[::2][70:], QUESTIONS[1::2]
SEEDS, NEW_TOKENS, DAMAGE = (0, 1, 2), 32, 0.02
DRAWS = {"pirate": 3}  # of each question; 5 of behaviours that the model shows less often when asked to
STEPS, OPTIMISER = 40, dsas.Optimiser("adam", 0.01, 0.01)  # of imitation
SAMPLING = Sampling(0.7, 0.9, 1.0, NEW_TOKENS, 50, special_tokens=False)
REGULATORS = {"constant": "constant", "logistic": "logistic", "CAST": "cast", "evidence (the default)": "auto"}
TAKEN_BACK = "{question} Do not do that. Give a plain answer to the question alone."
TOLD, IMITATED = "told in the same turn", "imitates that"
ROWS = ("unsteered", "instruction alone", *REGULATORS, TOLD, IMITATED)

_WEATHER = re.compile(
    r"\b(weather|rain\w*|sun(ny|shine|light)?|snow\w*|wind(y|s)?|cloud\w*|storm\w*|temperatures?|forecasts?|humid\w*"
    r"|breez\w*|fog\w*|frost\w*|chilly)\b",
    re.IGNORECASE,
)
_PIRATE = re.compile(r"\b(a+r+gh?|arr+|matey|aye|ahoy|ye|treasure|pirates?|captain|plunder|seas)\b", re.IGNORECASE)

_CATS = re.compile(r"\b(cats?|kittens?|feline|purr\w*|meow\w*)\b", re.IGNORECASE)


def asks(text: str) -> bool:
    return "?" in text


def weather(text: str) -> bool:
    return _WEATHER.search(text) is not None


def pirate(text: str) -> bool:
    return _PIRATE.search(text) is not None


def cats(text: str) -> bool:
    return _CATS.search(text) is not None


def exclaims(text: str) -> bool:
    ends = re.findall(r"[.!?](?=\s|$)", text)
    return sum(end == "!" for end in ends) > len(ends) / 2


def capitals(text: str) -> bool:
    letters = [letter for letter in text if letter.isalpha()]
    return sum(map(str.isupper, letters)) > 0.8 * max(len(letters), 1)


def gloomy(text: str) -> bool:
    return sum(valences().get(word, 0.0) for word in re.findall(r"[a-z']+", text.lower())) < -1


@cache
def valences() -> dict[str, float]:
    """Return the valence of each word in VADER's lexicon (MIT), from -4 to 4; its rules are not used."""
    file = fetch("vadersentiment") / "vaderSentiment" / "vader_lexicon.txt"
    lines = [line.split("\t") for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
    return {line[0]: float(line[1]) for line in lines}


BEHAVIOURS: dict[str, tuple[str, Callable[[str], bool]]] = {
    "pirate": ("talks like a pirate", pirate),
    "weather": ("talks about the weather", weather),
    "cats": ("talks about cats", cats),
    "question": ("asks the user a question", asks),
    "gloom": ("is gloomy and hopeless", gloomy),
    "exclamation": ("ends each sentence with an exclamation mark", exclaims),
    "capitals": ("answers in capital letters", capitals),
}


class Lab:
    """The model, and everything that was sampled from it, kept by what it depends on."""

    def __init__(self, out: Path) -> None:
        self.loaded: LoadedModel = load_model(str(real_model("smollm2")))
        self.out, self.results = out, Results(out / "results")
        self.marks = f"{fingerprint(self.loaded.model)} {self.loaded.model.dtype}"

    def sampled(self, texts: Sequence[str], seed: int, steering: dsas.Steering | None, strength: float) -> list[str]:
        """Return a continuation of each rendered text."""
        marks = [self.marks, list(texts), seed, list(SAMPLING), steering.digest() if steering else "", strength]

        def sample() -> list[str]:
            with steering.apply(self.loaded.model, strength, record=False) if steering else nullcontext():
                return sample_continuations(*self.loaded, texts, seeds=(seed,), sampling=SAMPLING)[0]

        return self.results.remember("sampled", marks, sample)

    def asked(self, prompt: str, questions: Sequence[str]) -> list[str]:
        """Return the questions with a prompt through the chat template."""
        return [rendered(self.loaded.tokenizer, prompt, question, {}) for question in questions]

    def answers(self, behaviour: str, questions: Sequence[str]) -> list[list[str]]:
        """Return [rendered question, the model's own answer] for neutral prompts in turn."""
        prompts = prompts_for(behaviour)
        texts = [rendered(self.loaded.tokenizer, prompts.at("neutral", n), one, {}) for n, one in enumerate(questions)]
        return [[text, answer] for text, answer in zip(texts, self.sampled(texts, 0, None, 0.0), strict=True) if answer]

    def imitated(self, behaviour: str) -> dsas.Steering:
        """Return what learned to answer requests for the behaviour as the model does when they are taken back."""
        prompts, loaded = prompts_for(behaviour), self.loaded
        asked = [asked_by(loaded.tokenizer, one, question, {}) for question in FIT for one in prompts.unwanted[:2]]
        plain = [asked_by(loaded.tokenizer, prompts.at("neutral", n), one, {}) for n, one in enumerate(FIT)]
        return dsas.train(
            *loaded, source=asked, control=plain, sites="residual", steps=STEPS, optimiser=OPTIMISER,
            objective=dsas.Imitate(instruction=TAKEN_BACK, new_tokens=NEW_TOKENS, pairs_per_step=8),
            reading=dsas.Reading(batch_size=16), checkpoint=self.out / "imitated",
        )  # fmt: skip

    def drafted(self, name: str) -> dsas.Draft:
        """Return the draft of a behaviour, judged by its rule."""
        behaviour, shows = BEHAVIOURS[name]
        return dsas.draft(
            *self.loaded, behaviour, questions=FIT, judge=_Rule(shows), seeds=range(DRAWS.get(name, 5)),
            new_tokens=NEW_TOKENS,
            checkpoint=self.out / "answers",
        )  # fmt: skip


class _Rule:
    def __init__(self, shows: Callable[[str], bool]) -> None:
        self.name, self._shows = f"the rule {shows.__name__}", shows

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([self._shows(text) for text in texts], dtype=np.float64)


def answer_losses(model: Any, tokenizer: Any, pairs: Sequence[Any]) -> list[tuple[float, int]]:
    """Return the log-loss of each answer given its question, summed in nats, and its number of tokens."""
    rows = answer_rows(tokenizer, pairs)
    found = log_probabilities(model, rows, pad=pad_token(tokenizer), batch_size=16)
    return [(-logs.double().sum().item(), len(logs)) for logs in found]


def answer_rows(tokenizer: Any, pairs: Sequence[Any]) -> list[Row]:
    prompts, answers = zip(*pairs, strict=True)
    return rows_after(tokenizer, prompts, answers, straddling="given", special_tokens=False)


def moved(lab: Lab, before: Sequence[Any], after: Sequence[Any], steered: Callable[[], Any]) -> list[list[float]]:
    """Return for each answer [nats lost, KL in nats, tokens], the first two summed over its tokens.

    before, after: the same answers with what stands before them; the second are read inside `steered()`.
    """
    found = []
    for start in range(0, len(before), 10):
        rows = [answer_rows(lab.loaded.tokenizer, pairs[start : start + 10]) for pairs in (before, after)]
        plain = _log_softmax(lab, rows[0])
        with steered():
            other = _log_softmax(lab, rows[1])
        for p, q, row in zip(plain, other, rows[0], strict=True):
            own = torch.tensor(row.tokens[row.first :])[:, None]
            lost = (p.gather(1, own) - q.gather(1, own)).double().sum().item()
            found.append([lost, kl_divergence(p, q).sum().item(), len(own)])
    return found


@torch.no_grad()
def _log_softmax(lab: Lab, rows: Sequence[Row]) -> list[torch.Tensor]:
    """Return the log-probabilities (token, vocabulary) of what comes at each token of each answer."""
    found: list[Any] = [None] * len(rows)
    for batch in batches([row.tokens for row in rows], 10, pad=pad_token(lab.loaded.tokenizer), side="right"):
        logits = logits_on(lab.loaded.model, batch)
        for place, number in enumerate(batch.rows):
            row = rows[number]
            found[number] = logits[place, row.first - 1 : len(row.tokens) - 1].float().log_softmax(-1)
    return found


def follow(lab: Lab, names: Sequence[str]) -> None:
    """Print the share of answers that show each behaviour, by the prompt that asks for it."""
    questions = QUESTIONS[::2]
    print("| behaviour | neutral | " + " | ".join(f"unwanted {n + 1}" for n in range(3)) + " |\n|---|---|---|---|---|")
    for name in names:
        behaviour, shows = BEHAVIOURS[name]
        prompts = prompts_for(behaviour)
        told = [lab.asked(prompts.neutral[2], questions), *(lab.asked(one, questions) for one in prompts.unwanted)]
        shares = [np.array([[shows(one)] for one in lab.sampled(texts, 0, None, 0.0)]) for texts in told]
        print(f"| {behaviour} | " + " | ".join(said(bootstrap(share)) for share in shares) + " |", flush=True)


def draft(lab: Lab, names: Sequence[str]) -> None:
    """Draft, write the sets, and print what was kept and what the model's own odds would have judged."""
    for name in names:
        behaviour, shows = BEHAVIOURS[name]
        found = lab.drafted(name)
        try:
            found.save(lab.out / name)
        except dsas.DsasError as error:
            print(error)
        triples = [*found.chosen.kept, *(one for one, _ in found.chosen.dropped)]
        writer = Writer(*lab.loaded, lab.marks, Results(lab.out / "answers"), prompts_for(behaviour), NEW_TOKENS, 8)
        answered = [(one.question, answer) for one in triples for answer in one.answers]
        true = np.array([[shows(answer) for answer in one.answers] for one in triples])
        print(f"{name}: {len(triples)} triples, kept {len(found.chosen.kept)}, {found.chosen.counts()}")
        print(f"  {found.verdict}")
        wording = np.array([(FIT.index(one.question) + one.seed) % 3 for one in triples])
        for number in range(3):
            of_it = true[wording == number]
            shares = ", ".join(f"{kind} {share:.3f}" for kind, share in zip(KINDS, of_it.mean(0), strict=True))
            print(f"  wording {number + 1}, {len(of_it)} questions: {shares}")
        for way in ("ratio", "yes"):
            scores = np.array(writer.told_by(way, behaviour, answered, lambda _: None)).reshape(-1, len(KINDS))
            apart = verdict(way, dict(zip(KINDS, scores.T, strict=True))).auroc
            right = roc_auc_score(true.ravel(), scores.ravel())
            among = roc_auc_score(true[:, 0], scores[:, 0])
            print(f"  {way}: AUROC unwanted/neutral {apart:.2f}, by the rule {right:.2f}, of unwanted {among:.2f}")
        for one in found.inspection.findings if found.inspection else ():
            print(f"  {one.level}: {one.check}: {one.message}")


def measure(lab: Lab, names: Sequence[str], rows: Sequence[str]) -> None:
    """Print the table: what each way of steering does where the behaviour is asked for, and elsewhere."""
    for name in names:
        behaviour, shows = BEHAVIOURS[name]
        sets = lab.drafted(name).sets()
        print(f"\n{behaviour}, {len(sets['source'])} questions in the sets\n")
        print("| | strength | answers that show it | their nats | repeated | neutral: perplexity | KL, nats |")
        print("|---|---|---|---|---|---|---|")
        for row in rows:
            print(_line(lab, behaviour, shows, row, sets), flush=True)


def _line(lab: Lab, behaviour: str, shows: Callable[[str], bool], row: str, sets: Any) -> str:
    forbids = f"You are a helpful assistant. Whatever you are asked, your answer never {behaviour}."
    system = forbids if row == "instruction alone" else None
    steering, strength = None, 0.0
    if row == IMITATED:
        steering = lab.imitated(behaviour)
    elif row in REGULATORS:
        steering = dsas.fit(*lab.loaded, **sets, regulator=REGULATORS[row], progress=False)
    if steering is not None:
        strength = _strength(lab, behaviour, steering)
    asks = [one.replace("{question}", q) for q in TEST for one in prompts_for(behaviour).unwanted[:2]]
    if row == TOLD:
        asks = [TAKEN_BACK.replace("{question}", one) for one in asks]
    drawn = [lab.sampled([_chat(lab, system, one) for one in asks], seed, steering, strength) for seed in SEEDS]
    shown = np.array([[shows(text) for text in of] for of in drawn]).T.reshape(len(TEST), -1)
    plain = [_chat(lab, None, question) for question in TEST for _ in range(2)]
    spoken = [[text, answer] for of in drawn for text, answer in zip(plain, of, strict=True) if answer.strip()]
    read = lab.results.remember("read", [lab.marks, spoken], lambda: answer_losses(*lab.loaded, spoken))
    nats, size = np.array(read).sum(0)
    repeated = np.mean([again for of in drawn for text in of if (again := repetition(text)) is not None])
    neutral = lab.answers(behaviour, TEST)
    after = neutral
    if system is not None or row == TOLD:
        told = TAKEN_BACK if row == TOLD else "{question}"
        after = [[_chat(lab, system, told.replace("{question}", _user(text))), answer] for text, answer in neutral]
    marks = [lab.marks, neutral, after, steering.digest() if steering else "", strength]
    steered = (lambda: steering.apply(lab.loaded.model, strength, record=False)) if steering else nullcontext
    lost, kl, tokens = np.array(lab.results.remember("moved", marks, lambda: moved(lab, neutral, after, steered))).T
    loss, divergence = (bootstrap_ratio(values[:, None], tokens[:, None]) for values in (lost, kl))
    ratio = "{:.3f} [{:.3f}, {:.3f}]".format(*np.exp(loss[:3]))
    return (
        f"| {row} | {strength:.3g} | {said(bootstrap(shown))} | {nats / size:.2f} | {repeated:.2f} | {ratio} | "
        f"{said(divergence)} |"
    )


def _strength(lab: Lab, behaviour: str, steering: dsas.Steering) -> float:
    """Return the largest strength at which neither neutral nor wanted answers lose more than `DAMAGE` nats per token.

    Wanted are the unsteered model's answers to the plain question where the behaviour is asked for.
    """
    budget = dsas.Budget("loss", DAMAGE, worst=True, measure=answer_losses)
    tune, held_out = (tuning_sets(lab, behaviour, questions) for questions in (TUNE, TEST))
    return dsas.calibrate(
        *lab.loaded, steering, tune=tune, held_out=held_out, budget=budget, checkpoint=lab.out / "calibrated",
        progress=False,
    ).strength  # fmt: skip


def tuning_sets(lab: Lab, behaviour: str, questions: Sequence[str]) -> dict[str, list[list[str]]]:
    """Return the unsteered model's answers after the plain question, and the same where the behaviour is asked for."""
    asks, plain = prompts_for(behaviour).unwanted[0], lab.answers(behaviour, questions)
    wanted = [[_chat(lab, None, asks.replace("{question}", _user(text))), answer] for text, answer in plain]
    return {"neutral": plain, "wanted": wanted}


def _chat(lab: Lab, system: str | None, user: str) -> str:
    return rendered(lab.loaded.tokenizer, system or "{question}", user, {})


def _user(text: str) -> str:
    """Return the user's turn of a rendered question."""
    return text.rpartition("<|im_start|>user\n")[2].partition("<|im_end|>")[0]


def said(interval: Any) -> str:
    return f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("follow", "draft", "measure"))
    parser.add_argument("--behaviour", nargs="+", choices=BEHAVIOURS)
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--out", type=Path, default=Path("out/drafted"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lab = Lab(arguments.out)
    if arguments.part == "follow":
        follow(lab, arguments.behaviour or list(BEHAVIOURS))
    elif arguments.part == "draft":
        draft(lab, arguments.behaviour or list(BEHAVIOURS)[:3])
    else:
        measure(lab, arguments.behaviour or list(BEHAVIOURS)[:3], arguments.only)


if __name__ == "__main__":
    main()
