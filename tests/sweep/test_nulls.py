import pytest
import torch
from makers import random_steering

import dsas
from dsas.errors import DsasWarning, OptionError
from dsas.evaluation.divergence import divergence
from dsas.sweep.nulls import RANDOM, TURNED, _matched, adds_vectors, matched_nulls
from dsas.testing import tiny_model, tiny_tokenizer
from dsas.testing.models import WIDTH

TEXTS = ["The door is open.", "A long walk along the river", "It is late"]


def test_both_nulls_move_the_model_as_far_as_the_steering_and_keep_its_regulators() -> None:
    model = tiny_model()
    steering = random_steering(model)
    nulls = matched_nulls(model, tiny_tokenizer(), steering, TEXTS, strength=0.3, seed=1)

    def of(one: dsas.Steering) -> float:
        return divergence(model, tiny_tokenizer(), TEXTS, lambda: one.apply(model, 0.3, record=False)).mean

    assert nulls.kl == pytest.approx(of(steering))
    for null in nulls.by_name.values():
        assert of(null.steering) == pytest.approx(nulls.kl, rel=0.03)
        assert null.kl == pytest.approx(of(null.steering))
        for one, other in zip(null.steering.rules, steering.rules, strict=True):
            assert (one.site, one.weight, one.regulator) == (other.site, other.weight, other.regulator)


def test_one_points_the_other_way_and_one_anywhere_and_a_seed_gives_the_same_again() -> None:
    model = tiny_model()
    steering = random_steering(model)
    given = (model, tiny_tokenizer(), steering, TEXTS)
    nulls = matched_nulls(*given, strength=0.3, seed=7).by_name
    vectors = {name: null.steering.rules[0].transform.vector for name, null in nulls.items()}
    own = steering.rules[0].transform.vector
    torch.testing.assert_close(vectors[TURNED], -nulls[TURNED].factor * own)
    assert abs(torch.cosine_similarity(vectors[RANDOM], own, dim=0)) < 0.9
    torch.testing.assert_close(vectors[RANDOM].norm(), nulls[RANDOM].factor * own.norm())
    again, other = (matched_nulls(*given, strength=0.3, seed=seed).by_name[RANDOM].steering for seed in (7, 8))
    assert again.digest() == nulls[RANDOM].steering.digest() != other.digest()


def test_a_steering_that_does_more_than_add_or_moves_nothing_has_no_nulls() -> None:
    model = tiny_model()
    ablation = random_steering(model, transform=dsas.Ablation(torch.eye(WIDTH)[0], torch.tensor(0.0)))
    assert not adds_vectors(ablation)
    with pytest.raises(OptionError, match="nulls are only for Steerings that add vectors"):
        matched_nulls(model, tiny_tokenizer(), ablation, TEXTS, strength=1.0)
    with pytest.raises(OptionError, match="changes nothing on these texts"):
        matched_nulls(model, tiny_tokenizer(), random_steering(model), TEXTS, strength=0.0)


@pytest.mark.parametrize("most", [0.9, 1.5])
def test_a_null_is_the_nearest_that_was_tried_and_one_that_comes_nowhere_near_is_told(most: float) -> None:
    """KL that jumps: 0.2 below a factor of 1, then `most`; no factor gives the 1 that is wanted."""
    steering = random_steering(tiny_model())
    length = float(steering.rules[0].transform.vector.norm())

    def moved(one: dsas.Steering) -> float:
        return most if float(one.rules[0].transform.vector.norm()) >= 0.999 * length else 0.2

    if most == 0.9:
        assert _matched("null", steering, moved, 1.0).kl == most
        return
    with pytest.warns(DsasWarning, match=r"'null' has a KL divergence of 1.5 nats, and the Steering 1: .* not matched"):
        assert _matched("null", steering, moved, 1.0).kl == most
