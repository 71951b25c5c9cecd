"""Own words: general texts sampled from the model itself, for a control set where there is no corpus.

A regulator must be shown text of other kinds than the source's own, or it may fire on them. What the model writes
freely is such text. Each text begins with one of `OPENERS`, in turn, is continued by sampling (temperature 1, top-p
0.95), and ends with its last whole sentence.

Limitations: English openers; a model writes what it was trained to write, which may include the behaviour.
"""

from collections.abc import Sequence

from dsas.errors import OptionError, TextsError
from dsas.model.foreign import Model, Tokenizer
from dsas.parallel.progress import progress_bar

OPENERS = (
    "The", "In", "It is", "There are", "When", "After", "We", "She", "He", "They", "Many", "Most", "Some", "This",
    "These", "Our", "Her", "His", "Their", "People", "If", "As", "For", "At", "On", "One of", "During", "Since",
    "While", "Before", "How to", "What", "Why", "New", "An", "A", "According to", "Although", "Both", "Every",
)  # fmt: skip
LEAST_WORDS = 5
ROUNDS = 4  # of sampling, until there are enough texts


def general_texts(
    model: Model,
    tokenizer: Tokenizer,
    n: int,
    *,
    new_tokens: int = 32,
    openers: Sequence[str] = OPENERS,
    seed: int = 0,
    progress: bool = True,
) -> list[str]:
    """Return `n` different texts that the model writes freely; the same call gives the same texts.

    new_tokens: most tokens per text. openers: beginnings of texts. Raises OptionError for numbers below 1 or no
    openers, TextsError when the model writes too few different texts.
    """
    if n < 1 or new_tokens < 1 or not openers:
        raise OptionError(f"expected n >= 1, new_tokens >= 1 and openers, got {n}, {new_tokens} and {len(openers)}")
    from dsas.evaluation.generations import Sampling, sample_continuations  # loads transformers

    sampling = Sampling(top_p=0.95, repetition_penalty=1.0, new_tokens=new_tokens)
    found: dict[str, None] = {}
    with progress_bar(progress) as bar:
        task = bar.add_task("drawing general texts", total=n)
        for attempt in range(ROUNDS):
            asked = [openers[number % len(openers)] for number in range(n - len(found) + 8)]
            (drawn,) = sample_continuations(model, tokenizer, asked, seeds=(seed + attempt,), sampling=sampling)
            texts = [whole(opener + text) for opener, text in zip(asked, drawn, strict=True)]
            found |= dict.fromkeys(text for text in texts if len(text.split()) >= LEAST_WORDS)
            bar.update(task, completed=min(n, len(found)))
            if len(found) >= n:
                return list(found)[:n]
    raise TextsError(
        f"expected {n} different texts of at least {LEAST_WORDS} words, but the model wrote {len(found)} in {ROUNDS} "
        "rounds: ask for fewer, or for longer ones (new_tokens=)"
    )


def whole(text: str) -> str:
    """Return a text in one line, up to its last whole sentence where it has one."""
    line = " ".join(text.split())
    end = max(line.rfind(mark) for mark in ".!?")
    return line[: end + 1] if end > 0 else line
