"""Table: a row per text, token and site, as plain data or as a pandas DataFrame.

| column | meaning |
|---|---|
| row, position | which text, and the index of the token among its real tokens |
| token, site | the token's text, the site's name |
| strength, regulator, dose | applied strength, regulator alone, relative dose, as far as they were recorded |
| alone | for a regulator that accumulates evidence over the row: the evidence of each token by itself |
| role, counted | in conversations: whose turn the token is in, and whether it counts as the answer |
| kl | KL(unsteered || steered) of the next token in nats, the same at every site, if it was measured |
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dsas.errors import MissingExtraError
from dsas.views.explained import Explained

if TYPE_CHECKING:
    from pandas import DataFrame


def rows(texts: Sequence[Explained]) -> list[dict[str, Any]]:
    """Return the rows; a column that only some texts have is None for the others."""
    found: list[dict[str, Any]] = []
    for row, text in enumerate(texts):
        columns = _columns(row, text)
        found += [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    names = dict.fromkeys(name for one in found for name in one)
    return [{name: one.get(name) for name in names} for one in found]


def frame(texts: Sequence[Explained]) -> "DataFrame":
    """Return the table. Raises MissingExtraError without pandas."""
    try:
        import pandas
    except ImportError as error:
        raise MissingExtraError("pandas", "reports") from error
    return pandas.concat([pandas.DataFrame(_columns(row, text)) for row, text in enumerate(texts)], ignore_index=True)


def _columns(row: int, text: Explained) -> dict[str, list[Any]]:
    """Return the columns of one text, site by site and within a site token by token."""
    tokens, sites = len(text.tokens), len(text.sites)
    columns: dict[str, list[Any]] = {
        "row": [row] * tokens * sites,
        "position": list(range(tokens)) * sites,
        "token": list(text.tokens) * sites,
        "site": [site for site in text.sites for _ in range(tokens)],
        **{name: value.flatten().tolist() for name, value in text.values.items()},
    }
    if text.turns:
        columns |= {"role": text.roles() * sites, "counted": list(text.counted) * sites}
    if text.next_tokens is not None:
        columns["kl"] = list(text.next_tokens.kl) * sites
    return columns
