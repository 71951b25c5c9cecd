"""Take a Steering to a model with other weights, here one with a LoRA adapter, and ask whether it still fits."""

import warnings

from peft import LoraConfig, get_peft_model

import dsas
from dsas.demo.models import real_model

DISHES = ("soup", "bread", "salad", "curry", "pie", "tea", "rice", "stew", "cake", "pasta", "fish", "toast")


def texts(*patterns: str) -> list[str]:
    """Return each pattern with each dish."""
    return [pattern.format(dish) for dish in DISHES for pattern in patterns]


def main() -> None:
    model, tokenizer = dsas.load_model(str(real_model("smollm2")))
    steering = dsas.fit(
        model,
        tokenizer,
        source=texts("The {} was awful and I felt miserable.", "I hated the {}; it was a dreadful meal."),
        control=texts("The {} was made with water and salt.", "I ordered the {}; it came on a white plate."),
        target=texts("The {} was wonderful and I felt happy.", "I loved the {}; it was a joyful meal."),
        progress=False,
    )
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", dsas.DsasWarning)
        with steering.apply(tuned, 1.0):
            tuned(**tokenizer("The soup was bad", return_tensors="pt"))
    print("warning:", next(str(one.message) for one in said if issubclass(one.category, dsas.DsasWarning)))

    ported = steering.port(
        tuned,
        tokenizer,
        source=texts("What a terrible {}, I was in tears."),
        control=texts("This {} takes half an hour to make."),
    )
    aurocs = sorted(site.auroc for site in ported.sites if site.auroc is not None)
    print(f"{ported.verdict}; AUROC of {len(aurocs)} sites: {aurocs[0]:.2f} to {aurocs[-1]:.2f}")


if __name__ == "__main__":
    main()
