"""Foreign imports: undo what other packages change in the caller's process when they are first imported.

Some draw from Python's random numbers, register filters of warnings or set variables of the environment at import.

Limitations: what torch, transformers and scikit-learn do when they are first imported stays, because their native
libraries read it later; `import dsas` needs all three.
"""

import os
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def unnoticed() -> Iterator[None]:
    """Leave Python's random numbers, warning filters and environment as they are, whatever is imported."""
    numbers, environment = random.getstate(), dict(os.environ)
    try:
        with warnings.catch_warnings():
            yield
    finally:
        random.setstate(numbers)
        for name in [name for name, value in os.environ.items() if environment.get(name) != value]:
            if name in environment:
                os.environ[name] = environment[name]
            else:
                del os.environ[name]
