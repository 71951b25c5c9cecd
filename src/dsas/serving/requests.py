"""Requests: what a client may ask of a server that steers, and what it means.

    vllm_xargs = {"dsas_steering": "detox"}                                 at the strength stored with it
    vllm_xargs = {"dsas_steering": "detox", "dsas_strength": 0.5}
    vllm_xargs = {"dsas_steering": ["detox", "topic"], "dsas_strength": [0.5, 1.0]}     acting in this order

    vllm_xargs = {"dsas_steering": "detox", "dsas_report": True}       and report how strongly (`reports`)
    vllm_xargs = {"dsas_steering": "detox", "dsas_stop_above": 0.8}    and stop where it fires (`verdicts`)
    vllm_xargs = {"dsas_off": True}                                    not even by the operator's default

A name alone means the Steering's own strength, and neither key means the unsteered model, or the operator's default. A
request names what the operator has loaded: it carries no tensors, no paths and no code.

Names are resolved to digests once, when a request enters: a request that waits while a Steering is replaced is still
steered by the one it named, and blocks of the prefix cache are shared only between requests of the same salt.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dsas.errors import OptionError, StrengthError, closest, shown
from dsas.files.json_values import Json
from dsas.model.foreign import Foreign
from dsas.serving.verdicts import RAISE_ABOVE, RAISE_TO, STOP_ABOVE, STOP_WINDOW, verdict_of

STEERING, STRENGTH, REPORT, RESOLVED = "dsas_steering", "dsas_strength", "dsas_report", "dsas_resolved"
REPORTED = "dsas_reported"  # passed to the worker for a request with a report: its id, and the names that act
OFF = "dsas_off"
PREFIX = "dsas"  # prefix of all keys of dsas
_KEYS = (STEERING, STRENGTH, REPORT, OFF, STOP_ABOVE, STOP_WINDOW, RAISE_ABOVE, RAISE_TO)
LARGEST = 1e6
LONGEST_NAME = 100


class Default(NamedTuple):
    """The Steering of requests that name none; strength None is its own. may_be_off: whether it can be turned off."""

    name: str
    strength: float | None = None
    may_be_off: bool = False


class Entry(NamedTuple):
    """One Steering, and the strength that a request asks for, or its default."""

    digest: str
    strength: float


def resolve(
    extra_args: Mapping[str, Json] | None, entries: Mapping[str, Entry], together: int, *, reports: bool = False
) -> list[Entry]:
    """Return the requested Steerings in the order in which they act; those of strength 0 only if they watch.

    together: how many Steerings one request may combine. reports: whether the server keeps reports. Raises OptionError
    for an unknown name or key and for a report that is not kept, StrengthError for an invalid strength.
    """
    asked = {key: value for key, value in (extra_args or {}).items() if key.startswith(PREFIX)}
    unknown = [key for key in asked if key not in _KEYS]
    if unknown:
        raise OptionError(f"unknown key {shown(unknown[0])} in vllm_xargs; closest: {closest(unknown[0], _KEYS)}")
    if asked.get(REPORT, False) not in (True, False):
        raise OptionError(f"{REPORT!r} must be true or false, got {shown(asked[REPORT])}")
    if asked.get(REPORT, False) and not reports:
        raise OptionError(f"{REPORT!r} needs a server that was started with --reports")
    watches = verdict_of(asked) is not None
    if watches and not reports:
        raise OptionError("to stop or raise by the regulators' values needs a server that was started with --reports")
    if STEERING not in asked:
        if STRENGTH in asked:
            raise OptionError(f"{STRENGTH!r} is given without {STEERING!r}, the name of a Steering")
        if watches:
            raise OptionError(f"to stop or raise a request needs {STEERING!r}, the name of a Steering that watches")
        return []
    names = _listed(asked[STEERING])
    strange = [name for name in names if not isinstance(name, str) or name not in entries]
    if strange:
        said = shown(strange[0])
        raise OptionError(f"no Steering {said} is loaded; closest: {closest(said.strip(chr(39)), entries)}")
    if len(set(names)) < len(names) or not 1 <= len(names) <= together:
        raise OptionError(
            f"{STEERING!r} must be 1 to {together} different names (set when the server starts), got {shown(names)}"
        )
    given = _listed(asked[STRENGTH]) if STRENGTH in asked else [entries[name].strength for name in names]
    if len(given) != len(names):
        raise StrengthError(f"{len(names)} Steerings are named but {len(given)} strengths given")
    strengths = [_strength(value) for value in given]
    asked_for = zip(names, strengths, strict=True)
    return [Entry(entries[name].digest, strength) for name, strength in asked_for if strength or watches]


def with_default(
    extra_args: Mapping[str, Json] | None, default: Default | None, entries: Mapping[str, Entry]
) -> dict[str, Json]:
    """Return the arguments of a request, with the operator's default where it names nothing.

    Raises OptionError for a request that turns the default off, or down, if the operator does not allow it.
    """
    given = dict(extra_args or {})
    off = given.get(OFF, False)
    if off not in (True, False):
        raise OptionError(f"{OFF!r} must be true or false, got {shown(off)}")
    if off and STEERING in given:
        raise OptionError(f"{OFF!r} and {STEERING!r} contradict each other: give one of them")
    if default is None:
        return given
    own = entries[default.name].strength if default.strength is None else default.strength
    if not default.may_be_off:
        _check_raise(given.get(RAISE_TO), own, default.name)
    if STEERING not in given and not off:
        return {**given, STEERING: default.name, STRENGTH: own} if STRENGTH not in given else given
    if not default.may_be_off:
        names = [name for name in _listed(given.get(STEERING, [])) if isinstance(name, str)]
        strengths = _listed(given.get(STRENGTH, [entries[name].strength for name in names if name in entries]))
        if (default.name, own) not in zip(names, strengths, strict=False):
            raise OptionError(
                f"this server steers every request by {default.name!r} at {own:g}, and its operator does not "
                "allow turning it off: name nothing, or name it at that strength together with others"
            )
    return given


def check_name(name: str) -> None:
    """Raise OptionError for a name that cannot be part of a URL or of a line in a log."""
    plain = name.isprintable() and name == name.strip() and not {"/", "\\"} & set(name)
    if not (plain and 1 <= len(name) <= LONGEST_NAME and name not in (".", "..")):
        raise OptionError(
            f"expected the name of a Steering as 1 to {LONGEST_NAME} printable characters without a slash, "
            f"got {shown(name)}: give another one, name=folder"
        )


def named(extra_args: Mapping[str, Json] | None) -> list[str]:
    """Return the names in a request that `resolve` has accepted."""
    return _listed((extra_args or {}).get(STEERING, []))


def acting(extra_args: Mapping[str, Json], entries: Mapping[str, Entry]) -> list[str]:
    """Return the names in a request that `resolve` has accepted and returned."""
    names = named(extra_args)
    given = _listed(extra_args[STRENGTH]) if STRENGTH in extra_args else [entries[name].strength for name in names]
    watches = verdict_of(extra_args) is not None
    return [name for name, strength in zip(names, given, strict=True) if strength or watches]


def wants_report(extra_args: Mapping[str, Json] | None) -> bool:
    """Whether a request asks how strongly it was steered."""
    return bool((extra_args or {}).get(REPORT, False))


def salt(asked: Sequence[Entry], own: str | None = None, *, alone: str = "") -> str | None:
    """Return the salt of the prefix cache for a request; `own` is the client's own salt.

    alone: the id of a request that shares its blocks with no other, because its strength changes while it runs. An
    unsteered request keeps its own salt, so it shares blocks as on a server that does not steer; a client's own salt
    that looks like one of these is changed to one that no steered request has.
    """
    asked = [one for one in asked if one.strength]
    if not asked and not alone:
        return f"dsas::{own}" if own is not None and own.startswith("dsas:") else own
    steered = ";".join(f"{one.digest}*{one.strength!r}" for one in asked)
    return f"dsas:{steered}:{own or ''}:{alone}" if alone else f"dsas:{steered}:{own or ''}"


def _check_raise(to: Foreign, own: float, name: str) -> None:
    """Raise OptionError for a strength to raise to that would turn the operator's default down."""
    if isinstance(to, (int, float)) and not to * own >= own * own:
        raise OptionError(
            f"{RAISE_TO!r} must be {own:g} or stronger, at which this server steers every request by {name!r}, got "
            f"{shown(to)}: its operator does not allow turning it down"
        )


def _listed(value: Foreign) -> list[Foreign]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _strength(value: Foreign) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= LARGEST:
        raise StrengthError(
            f"{STRENGTH!r} must be a number from {-LARGEST:g} to {LARGEST:g}, or one for each, got {shown(value)}"
        )
    return float(value)
