"""Learn transforms and regulators of all sites together, by gradients through the whole model (E2E-DSAS).

The model has two layers and is made in code, so it takes seconds; a real one is trained with the same call.
"""

import dsas
from dsas.testing import tiny_model, tiny_tokenizer


def main() -> None:
    model, tokenizer = tiny_model(layers=2), tiny_tokenizer()
    rude, plain, polite = ([f"{start} {n}" for n in range(12)] for start in ("SHUT UP", "the door", "thank you"))
    steering = dsas.train(
        model,
        tokenizer,
        source=rude,
        control=plain,
        target=polite,
        objective=dsas.E2E(control_weight=0.3),
        sites="residual",
        steps=30,
        optimiser=dsas.Optimiser(rate=0.05),
        held_out=dsas.HeldOut(share=0.25, every=10),
        running=dsas.Running(progress=False),
    )
    trace = dsas.explain(model, tokenizer, steering, [rude[0], plain[0]], strength=1.0)
    for name, values, real in zip(("rude", "plain"), trace.strengths.mean(0), trace.real, strict=True):
        print(f"mean strength applied to the {name} text: {values[real].mean():.2f}")
    print("learned by:", steering.settings["fitted"])


if __name__ == "__main__":
    main()
