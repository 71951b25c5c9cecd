"""What every test runs under: one thread, no network, fixed seeds."""

import os
import random

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when huggingface_hub is imported: so before the imports below

import numpy as np
import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
