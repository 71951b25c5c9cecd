"""Fit a Steering on a few sentences, generate with and without it, and see which tokens it acted on.

The behaviour is harmless on purpose: gloom in talk about food. It runs on a real model from a registry package (SmolLM2
with 135 million parameters) in about a minute on two cores.
"""

import torch

import dsas
from dsas.demo.models import real_model
from dsas.model.loading import load_model

DISHES = ("soup", "bread", "salad", "curry", "pie", "tea", "rice", "stew", "cake", "pasta", "fish", "toast")
GLOOMY = (
    "The {} was awful, cold and tasteless, and I felt miserable all evening.",
    "I hated the {}; it was a sad, dreadful meal and nobody cared.",
)
PLAIN = (
    "The {} was made with water, salt and oil, and it cooked for an hour.",
    "I ordered the {}; it came on a white plate with a fork and a knife.",
)
CHEERFUL = (
    "The {} was wonderful, warm and full of flavour, and I felt happy all evening.",
    "I loved the {}; it was a joyful, delightful meal and everyone smiled.",
)


def texts(patterns: tuple[str, ...]) -> list[str]:
    return [pattern.format(dish) for dish in DISHES for pattern in patterns]


def generate(model, tokenizer, prompt: str) -> str:
    inputs = tokenizer(prompt, return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=24, do_sample=False, pad_token_id=tokenizer.eos_token_id)
    return tokenizer.decode(ids[0], skip_special_tokens=True)


def main() -> None:
    torch.manual_seed(0)
    model, tokenizer = load_model(str(real_model("smollm2")))
    steering = dsas.fit(
        model, tokenizer, source=texts(GLOOMY), control=texts(PLAIN), target=texts(CHEERFUL), transform="caa"
    )
    print(steering)
    gloomy, plain = "The soup was terrible and", "The kitchen opens at nine and"
    for prompt in (gloomy, plain):
        before = generate(model, tokenizer, prompt)
        with steering.apply(model, strength=1.0) as applied:
            after = generate(model, tokenizer, prompt)
        trace = applied.trace()
        print(f"\nunsteered: {before}\nsteered:   {after}")
        strengths = trace.strengths.mean(0)[0].tolist()
        tokens = [tokenizer.decode(token) for token in trace.token_ids[0]]
        print(" ".join(f"{token.strip()}:{value:.2f}" for token, value in zip(tokens, strengths, strict=True)))


if __name__ == "__main__":
    main()
