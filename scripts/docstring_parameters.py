"""What a docstring says about parameters, as a list in the reference: an extension of griffe, which mkdocstrings uses.

Docstrings in dsas say `name, other: what they are.` in running text, one sentence per parameter. For the site each
becomes an entry of Google's `Args:` or `Attributes:`, and `Raises ...` a paragraph of its own. A name counts only if
the object has a parameter or an attribute of that name, so ordinary colons stay as they are.
"""

import re
from typing import Any

import griffe

_NAMED = re.compile(r"(?:(?<=^)|(?<=[.?!] )|(?<=\n))((?:[a-z]\w*)(?:, [a-z]\w*)*): ")


class DocstringParameters(griffe.Extension):
    """Rewrites the docstring of every function and class once it is loaded."""

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        """Rewrite by the function's own parameters."""
        self._rewrite(func, {parameter.name for parameter in func.parameters}, "Args")

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        """Rewrite by the parameters of `__init__`, or by the fields of a NamedTuple or a dataclass."""
        init = cls.members.get("__init__")
        if isinstance(init, griffe.Function):
            self._rewrite(cls, {parameter.name for parameter in init.parameters}, "Args")
        else:
            self._rewrite(cls, {name for name, member in cls.members.items() if member.is_attribute}, "Attributes")

    def _rewrite(self, owner: griffe.Object, names: set[str], section: str) -> None:
        if owner.docstring is not None:
            owner.docstring.value = with_parameters(owner.docstring.value, names, section)


def with_parameters(text: str, names: set[str], section: str = "Args") -> str:
    """Return a docstring whose sentences about `names` are a section of Google's at its end, in their order."""
    first, _, rest = text.partition("\n\n")
    entries: list[tuple[str, str]] = []
    kept = []
    for paragraph in rest.split("\n\n"):
        raised = re.search(r"(?:^|(?<=[.] )|(?<=\n))(Raises (?:what |[A-Z]).*)", paragraph, re.DOTALL)
        body = paragraph[: raised.start()] if raised else paragraph
        begins = [one for one in _NAMED.finditer(body) if all(name in names for name in one[1].split(", "))]
        kept.append(body[: begins[0].start()].strip() if begins else body.strip())
        for number, begin in enumerate(begins):
            end = begins[number + 1].start() if number + 1 < len(begins) else len(body)
            entries.append((begin[1], " ".join(body[begin.end() : end].split())))
        if raised:
            kept.append(raised[1].strip())
    if not entries:
        return text
    lines = [f"    {name}: {said}" for names_, said in entries for name in names_.split(", ")]
    return "\n\n".join([first, *filter(None, kept), "\n".join([f"{section}:", *lines])])
