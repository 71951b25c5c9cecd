"""One batch, a strength for every row; then change the strength of a Steering that is installed.

Each row gets the text that it would get alone, whatever else is in the batch. Strength 0 is the unsteered model to the
bit.
"""

import dsas
from dsas.demo.models import real_model

THINGS = ("soup", "train", "film", "garden", "letter", "song", "bridge", "lesson", "coat", "game", "river", "meal")


def main() -> None:
    model, tokenizer = dsas.load_model(str(real_model("smollm2")), precision="float32")
    plain = [f"The {thing} was there at nine." for thing in THINGS]
    other = [f"They talked about the {thing}." for thing in THINGS]
    cheerful = [f"The {thing} was wonderful, I am so happy!" for thing in THINGS]
    steering = dsas.fit(
        model, tokenizer, source=plain, control=other, target=cheerful, regulator="constant", progress=False
    )

    def said(rows: int) -> list[str]:
        """Return the continuations of a batch of equal prompts."""
        inputs = tokenizer(["The concert yesterday"] * rows, return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=12, do_sample=False, pad_token_id=tokenizer.eos_token_id)
        return tokenizer.batch_decode(ids)

    strengths = [0.0, 0.03, 0.06]
    with steering.apply(model, strengths):
        together = said(len(strengths))
    print(*(f"{strength}: {text}" for strength, text in zip(strengths, together, strict=True)), sep="\n")

    applied = steering.apply(model, 0.0).install()
    for strength, expected in zip(strengths, together, strict=True):
        applied.strength = strength
        assert said(1) == [expected]
    print("what steers the model now:", len(dsas.installed(model)), "Steering")
    applied.remove()


if __name__ == "__main__":
    main()
