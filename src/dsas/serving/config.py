"""Config: the Steerings of a server, as the JSON that vLLM passes to all its processes (`--additional-config`).

    {"dsas": {"together": 1, "spare": 0, "reports": false, "default": null,
              "steerings": {"detox": {"folder": "detox/", "digest": "...", "strength": 1.0}}}}

It is part of the key of vLLM's compile cache, so code compiled for one set of Steerings is not used for another.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from dsas.errors import OptionError
from dsas.files.json_values import JsonObject
from dsas.serving.requests import Default, Entry
from dsas.steering.steering import Steering

KEY = "dsas"


class Source(NamedTuple):
    """Where a Steering comes from, and its state when the server's configuration was made.

    reads_prompts: whether its requests must read their whole prompts, and so cannot use the prefix cache.
    """

    folder: str
    digest: str
    strength: float
    reads_prompts: bool = False


class ServingConfig(NamedTuple):
    """The Steerings by name, how many of them one request may combine, and how many more can be loaded later.

    reports: whether a request may ask how strongly it was steered, and be judged by it. default: the Steering of
    requests that name none.
    """

    sources: dict[str, Source]
    together: int = 1
    spare: int = 0
    reports: bool = False
    default: Default | None = None

    @classmethod
    def of(cls, additional_config: Any) -> "ServingConfig | None":
        """Return what vLLM's additional configuration says about Steerings, or None."""
        given = additional_config.get(KEY) if isinstance(additional_config, Mapping) else None
        if given is None:
            return None
        sources = {name: Source(**source) for name, source in given["steerings"].items()}
        default = Default(*given["default"]) if given.get("default") else None
        return cls(sources, given["together"], given["spare"], given["reports"], default)

    def as_json(self) -> JsonObject:
        """Return this as vLLM's additional configuration."""
        steerings = {name: source._asdict() for name, source in self.sources.items()}
        rest = {"together": self.together, "spare": self.spare, "reports": self.reports}
        default = None if self.default is None else list(self.default)
        return {KEY: {"steerings": steerings, **rest, "default": default}}

    def entries(self) -> dict[str, Entry]:
        """Return the Steerings that a request may name."""
        return {name: Entry(source.digest, source.strength) for name, source in self.sources.items()}


def source_of(folder: str, steering: Steering) -> Source:
    """Return the source of a Steering that was read from `folder`."""
    return Source(folder, steering.digest(), steering.default_strength)


def load(source: Source) -> Steering:
    """Read a Steering again, in another process. Raises OptionError when it has changed since."""
    steering = Steering.from_pretrained(source.folder)
    if steering.digest() != source.digest:
        raise OptionError(f"{source.folder} has changed since the server was configured: load it again")
    return steering
