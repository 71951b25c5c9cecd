"""Fit on conversations, steer the assistant's turns alone, and see whose turn was steered.

An assistant that answers curtly should answer warmly. The chat template is applied by dsas; do not render it yourself.
"""

import dsas
from dsas.demo.models import real_model

QUESTIONS = (
    "How do I bake bread?", "What is a good book?", "How far is the moon?", "Why is the sky blue?",
    "What should I cook?", "How do plants grow?", "What is a verb?", "How do I sleep better?",
    "Where is Peru?", "Who painted this?", "How do I learn to swim?", "When do swallows leave?",
)  # fmt: skip


def talk(question: str, answer: str) -> list[dict[str, str]]:
    """Return a conversation of one question and its answer."""
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def main() -> None:
    model, tokenizer = dsas.load_model(str(real_model("smollm2")))
    steering = dsas.fit(
        model,
        tokenizer,
        source=[talk(question, "Look it up. I have no time for this.") for question in QUESTIONS],
        control=[talk(question, "There are several answers to this question.") for question in QUESTIONS],
        target=[talk(question, "What a lovely question! I am glad to help you.") for question in QUESTIONS],
        progress=False,
    )
    only_answers = steering.within(dsas.Turns.of(tokenizer, only=["assistant"]))

    asked = talk("How do I mend a chair?", "Look it up. I have no time for chairs.")
    for name, one in {"all tokens": steering, "the assistant's turns": only_answers}.items():
        trace = dsas.explain(model, tokenizer, one, [asked], strength=1.0)
        for turn in trace.row().by_turn():
            print(f"{name}: {turn['role']:<9} mean strength {turn['mean_strength']:.3f}")


if __name__ == "__main__":
    main()
