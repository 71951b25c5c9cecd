"""The laws as far as a single method can keep or break them: `check_transform` and `check_regulator`.

Both take the class, which is then fitted on random activations, or an object made by hand. No model is needed.
"""

import copy
from collections.abc import Callable
from functools import partial
from itertools import product

import torch
from torch import Tensor
from torch.func import functional_call

from dsas.methods.base import Fitted
from dsas.methods.moments import Moments
from dsas.model.foreign import Given
from dsas.model.forward_pass import ForwardPass
from dsas.model.sequence import Sequences
from dsas.regulators.base import FittedRegulator, Regulator
from dsas.testing.laws import close, require, require_gradient, untouched
from dsas.transforms.base import Transform

ROWS, TOKENS = 3, 5


def check_transform(method: type[Transform] | Transform, *, dim: int = 16, seed: int = 0) -> None:
    """Raise AssertionError, naming the law, if a transform breaks one.

    method: the class, to be fitted on random activations of width `dim`, or an object of that width.
    """
    generator = torch.Generator().manual_seed(seed)
    if isinstance(method, type):
        source, target = _pooled(generator, dim)
        with untouched(3, f"{method.__name__}.fit", source, target):
            transform = method.fit(source, target)
        require(5, isinstance(transform, method), f"{method.__name__}.fit returned a {type(transform).__name__}")
        _check_moments(transform, source, target)
    else:
        transform = method
    t = torch.randn(ROWS, TOKENS, dim, generator=generator)
    _check_rebuild(transform)
    name = type(transform).__name__
    with untouched(3, f"{name}.edit", t, *transform.buffers()):
        edit = transform.edit(t)
    require(3, edit.shape == t.shape, f"{name}.edit gave shape {tuple(edit.shape)} for {tuple(t.shape)}")
    _check_bfloat16(f"{name}.edit", transform.edit, t)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        require(3, transform(t.to(dtype)).dtype == dtype, f"{name} turned {dtype} into {transform(t.to(dtype)).dtype}")
    require(3, bool(torch.isfinite(transform.edit(torch.zeros_like(t))).all()), f"{name} is not finite at zero")
    for row, token in product(range(ROWS), range(TOKENS)):
        place = (slice(row, row + 1), slice(token, token + 1))
        require(
            2, close(transform.edit(t[place]), edit[place]), f"{name} edits a token differently beside other tokens"
        )
    _check_gradients(transform, t.double())


def check_regulator(method: type[Regulator] | Regulator, *, dim: int = 16, seed: int = 0) -> None:
    """Raise AssertionError, naming the law, if a regulator breaks one.

    method: the class, to be fitted on random activations of width `dim`, or an object of that width.
    """
    generator = torch.Generator().manual_seed(seed)
    if isinstance(method, type):
        source, control = _pooled(generator, dim)
        target = torch.randn(10, dim, generator=generator) - 0.4
        with untouched(3, f"{method.__name__}.fit", source, control, target):
            fitted = method.fit(source, control, target)
        _check_fitted(method, fitted)
        regulator = fitted.regulator
    else:
        regulator = method
    t = torch.randn(ROWS, TOKENS, dim, generator=generator)
    _check_rebuild(regulator)
    name, forward_pass = type(regulator).__name__, ForwardPass(ROWS, TOKENS)
    with untouched(3, name, t, *regulator.buffers()):
        value = regulator(t, forward_pass)
    shapes = [(ROWS, TOKENS, 1), (ROWS, TOKENS, dim)]
    require(3, tuple(value.shape) in shapes, f"{name} gave shape {tuple(value.shape)}, expected one of {shapes}")
    require(3, value.dtype == torch.float32, f"{name} gave {value.dtype}, expected float32")
    require(3, bool(torch.isfinite(value).all() and (value >= 0).all()), f"{name} gave a value below 0 or not finite")
    _check_bfloat16(name, lambda x: regulator(x, forward_pass), t)
    _check_rows(regulator, t, value)
    _check_gradients(regulator, t.double(), forward_pass)


def _pooled(generator: torch.Generator, dim: int) -> tuple[Tensor, Tensor]:
    """Return two sets of unequal size, apart by about one standard deviation."""
    return torch.randn(12, dim, generator=generator) + 0.5, torch.randn(9, dim, generator=generator) - 0.5


def _check_moments(transform: Transform, source: Tensor, target: Tensor) -> None:
    own = "fit_moments" in vars(type(transform))  # a class with another `fit` does not inherit it
    made = transform.fit_moments(Moments.of(source), Moments.of(target)) if own else None
    if made is not None:
        numbers = zip(transform.buffers(), made.buffers(), strict=True)
        same = type(made) is type(transform) and all(close(one, other) for one, other in numbers)
        require(6, same, f"{type(transform).__name__}.fit_moments made another transform than fit of the samples")


def _check_gradients(method: Fitted, t: Tensor, *forward_pass: ForwardPass) -> None:
    precise, name = copy.deepcopy(method).double(), type(method).__name__
    require_gradient(lambda x: precise(x, *forward_pass), t, f"{name} by its input")
    for key, tensor in list(precise.named_buffers()):
        if tensor.is_floating_point():
            replaced = partial(_with_buffer, precise, key, t, *forward_pass)
            require_gradient(replaced, tensor, f"{name} by {key!r}")


def _with_buffer(method: Fitted, key: str, t: Tensor, *arguments: Given) -> Tensor:
    """Return `method`'s values for t as a function of its buffer `key`, given as the last argument."""
    *forward_pass, value = arguments
    return functional_call(method, {key: value}, (t, *forward_pass))


def _check_fitted(method: type[Regulator], fitted: object) -> None:
    right = isinstance(fitted, FittedRegulator) and isinstance(fitted.regulator, method)
    require(
        5, right, f"{method.__name__}.fit must return a FittedRegulator that holds a {method.__name__}, got {fitted!r}"
    )
    accuracy = fitted.accuracy if isinstance(fitted, FittedRegulator) else None
    require(6, accuracy is None or 0 <= accuracy <= 1, f"{method.__name__}.fit reports an accuracy of {accuracy}")


def _check_rebuild(method: Fitted) -> None:
    again = type(method)(**copy.deepcopy(method.arguments()))
    state, other = method.state_dict(), again.state_dict()
    same = state.keys() == other.keys() and all(torch.equal(state[key], other[key]) for key in state)
    stored = {key.split(".")[0] for key in state} <= set(method.arguments())
    name = type(method).__name__
    require(5, same and stored and repr(again) == repr(method), f"{name} is not rebuilt by its own arguments()")
    require(7, not any(True for _ in method.parameters()), f"{name} holds nn.Parameters; keep() makes buffers")


def _check_bfloat16(name: str, function: Callable[[Tensor], Tensor], t: Tensor) -> None:
    half = t.to(torch.bfloat16)
    got, expected = function(half), function(half.float())
    wide = got.dtype in (torch.float32, torch.float64)
    require(3, wide, f"{name} computes in {got.dtype} when the activation is bfloat16, expected float32 or better")
    require(3, close(got, expected), f"{name} gives other values for the same activation in bfloat16")


def _check_rows(regulator: Regulator, t: Tensor, value: Tensor) -> None:
    name = type(regulator).__name__
    for row in range(ROWS):
        alone = regulator(t[row : row + 1], ForwardPass(1, TOKENS))
        require(2, close(alone, value[row : row + 1]), f"{name} gives row {row} other values beside other rows")
    pad = 2
    for side, mask in (("left", [0] * pad + [1] * TOKENS), ("right", [1] * TOKENS + [0] * pad)):
        noise = torch.full((ROWS, pad, t.shape[-1]), 7.0)
        padded = torch.cat([noise, t] if side == "left" else [t, noise], dim=1)
        forward_pass = ForwardPass(ROWS, TOKENS + pad, mask=torch.tensor([mask] * ROWS))
        got = regulator(padded, forward_pass)[:, torch.tensor(mask, dtype=torch.bool)]
        require(2, close(got, value), f"{name} gives other values when rows are padded on the {side}")
    history = Sequences(ROWS)
    history.begin(0, 2)
    regulator(t[:, :2], ForwardPass(ROWS, 2, history=history))
    history.end()
    history.begin(2, TOKENS - 2)
    later = ForwardPass(ROWS, TOKENS - 2, past=2, mask=torch.ones(ROWS, TOKENS), history=history)
    require(
        2, close(regulator(t[:, 2:], later), value[:, 2:]), f"{name} gives other values to tokens that come in chunks"
    )
