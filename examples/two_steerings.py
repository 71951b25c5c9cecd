"""Apply two Steerings at once, each with its own strength, and see where they work against each other."""

import dsas
from dsas.demo.models import real_model

THINGS = ("soup", "train", "film", "garden", "letter", "song", "bridge", "lesson", "coat", "game", "river", "meal")


def texts(*patterns: str) -> list[str]:
    """Return each pattern with each thing."""
    return [pattern.format(thing) for thing in THINGS for pattern in patterns]


def main() -> None:
    model, tokenizer = dsas.load_model(str(real_model("smollm2")))
    plain = texts("The {} was there at nine.", "We saw the {} on our way.")
    other = texts("The {} is one of several.", "They talked about the {} yesterday.")
    cheerful = texts("The {} was wonderful, I am so happy!", "I loved the {} from beginning to end!")
    formal = texts("One wishes to commend the {} in question.", "The {} is hereby respectfully acknowledged.")
    towards = {
        name: dsas.fit(
            model, tokenizer, source=plain, control=other, target=target, regulator="constant", progress=False
        )
        for name, target in {"cheerful": cheerful, "formal": formal}.items()
    }
    both = towards["cheerful"] | towards["formal"]  # cheerful acts first
    conflicts = sorted(both.conflicts(), key=lambda one: one.cosine)
    print(f"{len(conflicts)} sites in common; the cosine of the two edits is {conflicts[0].cosine:.2f} at the lowest")

    inputs = tokenizer("The concert yesterday", return_tensors="pt")
    for strengths in ((0.0, 0.0), (0.06, 0.0), (0.0, 0.06), (0.03, 0.03)):
        with both.apply(model, strengths):
            ids = model.generate(**inputs, max_new_tokens=16, do_sample=False, pad_token_id=tokenizer.eos_token_id)
        print(strengths, tokenizer.decode(ids[0]))


if __name__ == "__main__":
    main()
