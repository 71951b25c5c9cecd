"""Serve several requests from one model at once, each steered in its own way, by threads.

`scope="context"` steers only passes of the thread (or asyncio task) that applied it.
"""

from concurrent.futures import ThreadPoolExecutor

import dsas
from dsas.demo.models import real_model

THINGS = ("soup", "train", "film", "garden", "letter", "song", "bridge", "lesson", "coat", "game", "river", "meal")


def main() -> None:
    model, tokenizer = dsas.load_model(str(real_model("smollm2")))
    plain = [f"The {thing} was there at nine." for thing in THINGS]
    other = [f"They talked about the {thing}." for thing in THINGS]
    towards = {
        "cheerful": [f"The {thing} was wonderful, I am so happy!" for thing in THINGS],
        "formal": [f"One wishes to commend the {thing} in question." for thing in THINGS],
    }
    steerings = {
        name: dsas.fit(
            model, tokenizer, source=plain, control=other, target=target, regulator="constant", progress=False
        )
        for name, target in towards.items()
    }

    def answered(request: tuple[str, float]) -> str:
        """Return the continuation of one prompt, steered as the request asks."""
        name, strength = request
        inputs = tokenizer("The concert yesterday", return_tensors="pt")
        with steerings[name].apply(model, strength, scope="context", record=False):
            ids = model.generate(**inputs, max_new_tokens=12, do_sample=False, pad_token_id=tokenizer.eos_token_id)
        return tokenizer.decode(ids[0])

    requests = [("cheerful", 0.0), ("cheerful", 0.08), ("formal", 0.08), ("formal", 0.04)]
    alone = list(map(answered, requests))
    with ThreadPoolExecutor(len(requests)) as threads:
        together = list(threads.map(answered, requests))
    assert together == alone
    print(*(f"{request}: {text}" for request, text in zip(requests, together, strict=True)), sep="\n")


if __name__ == "__main__":
    main()
