"""The fields of a config are checked against their allowed values."""

import pytest
from makers import random_steering

from dsas.errors import ArtifactError
from dsas.steering.stored_fields import check_depth, rules_of
from dsas.testing import tiny_model


def test_values_in_one_another_beyond_all_measure_are_refused() -> None:
    deep: list[object] = []
    for _ in range(32):
        deep = [deep]
    check_depth(deep[0])
    with pytest.raises(ArtifactError, match="at most 32 deep"):
        check_depth([deep])


@pytest.mark.parametrize(("weight", "accuracy"), [(1.5, 0.5), (-0.1, 0.5), (1.0, 2.0)])
def test_weights_and_accuracies_are_shares(weight: float, accuracy: float) -> None:
    artifact = random_steering(tiny_model(layers=1))._artifact()
    (line, *_) = artifact.config["rules"]
    assert len(rules_of([line], artifact.tensors)) == 1
    with pytest.raises(ArtifactError, match="expected a number from 0 to 1"):
        rules_of([line | {"weight": weight, "accuracy": accuracy}], artifact.tensors)
