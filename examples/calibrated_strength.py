"""Choose the strength by what ordinary text may lose, and store it with the Steering.

The budget is 5 % of perplexity on tuning texts; other texts check it. A calibrated Steering is applied at its own
strength by default.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import dsas
from dsas.demo.models import real_model

DISHES = ("soup", "bread", "salad", "curry", "pie", "tea", "rice", "stew", "cake", "pasta", "fish", "toast")
PLACES = ("station", "library", "market", "harbour", "museum", "garden", "school", "bridge")


def texts(words: tuple[str, ...], *patterns: str) -> list[str]:
    """Return each pattern with each word."""
    return [pattern.format(word) for word in words for pattern in patterns]


def main() -> None:
    model, tokenizer = dsas.load_model(str(real_model("smollm2")))
    plain = texts(DISHES, "The {} was made with water and salt.", "I ordered the {}; it came on a white plate.")
    steering = dsas.fit(
        model,
        tokenizer,
        source=texts(DISHES, "The {} was awful and I felt miserable.", "I hated the {}; it was a dreadful meal."),
        control=plain,
        target=texts(DISHES, "The {} was wonderful and I felt happy.", "I loved the {}; it was a joyful meal."),
        progress=False,
    )
    # the second kind borders on the behaviour: where the regulator is near 0, any strength keeps the budget
    found = dsas.calibrate(
        model,
        tokenizer,
        steering,
        tune={
            "places": texts(PLACES, "The {} opens at nine.", "We walked from the {} to the river."),
            "border": texts(PLACES, "The {} was closed, which was a pity.", "It rained at the {} all day."),
        },
        held_out={
            "places": texts(PLACES, "The {} was built of stone.", "A bus goes to the {} twice an hour."),
            "border": texts(PLACES, "The {} was rather dull.", "We were late for the {}."),
        },
        budget=dsas.Budget("perplexity", 1.05),
        progress=False,
    )
    print(*found.lines(), sep="\n")
    with TemporaryDirectory() as folder:
        steering.calibrated(found).save_pretrained(Path(folder) / "cheerful")
        print("stored strength:", dsas.Steering.from_pretrained(Path(folder) / "cheerful").strength)


if __name__ == "__main__":
    main()
