"""Store a Steering, write it as a control vector for other programs, and read a control vector back.

A control vector (GGUF) adds the same vector to every token; `dsas.adopt` can put a regulator around it.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import dsas
from dsas.demo.models import real_model

THINGS = ("soup", "train", "film", "garden", "letter", "song", "bridge", "lesson", "coat", "game", "river", "meal")


def main() -> None:
    model, tokenizer = dsas.load_model(str(real_model("smollm2")))
    plain = [f"The {thing} was there at nine." for thing in THINGS]
    gloomy = [f"The {thing} was awful, I am so sad." for thing in THINGS]
    cheerful = [f"The {thing} was wonderful, I am so happy!" for thing in THINGS]
    steering = dsas.fit(
        model, tokenizer, source=gloomy, control=plain, target=cheerful, regulator="constant",
        sites=[8, 12, 16], progress=False,
    )  # fmt: skip
    with TemporaryDirectory() as name:
        folder = Path(name)
        steering.save_pretrained(folder / "cheerful")
        again = dsas.Steering.from_pretrained(folder / "cheerful")
        print("the same Steering:", again.digest() == steering.digest())

        dsas.write_gguf(steering, folder / "cheerful.gguf", strength=0.3)
        published = dsas.read_vectors(folder / "cheerful.gguf")
        print("read back:", published.format)
        adopted = dsas.adopt(folder / "cheerful.gguf", model, tokenizer, source=gloomy, control=plain, progress=False)
    trace = dsas.explain(model, tokenizer, adopted, [gloomy[0], plain[0]], strength=1.0)
    for kind, values, real in zip(("gloomy", "plain"), trace.strengths.mean(0), trace.real, strict=True):
        print(f"mean strength applied to the {kind} text: {values[real].mean():.2f}")


if __name__ == "__main__":
    main()
