"""Table: a pandas DataFrame with a line a text, token and site.

| column | meaning |
|---|---|
| row, position | which text, and the index of the token among its real tokens |
| token, site | the token's text, the site's name |
| strength, regulator, dose | applied strength, regulator alone, relative dose, as far as they were recorded |
| alone | of a regulator that adds evidence up over the row: what each token says by itself |
| role, counted | of conversations: whose turn the token is in, and whether it counts as the answer |
| kl | KL(unsteered || steered) of the next token in nats, the same at every site, if it was measured |
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dsas.errors import MissingExtraError
from dsas.views.explained import Explained

if TYPE_CHECKING:
    from pandas import DataFrame


def frame(texts: Sequence[Explained]) -> "DataFrame":
    """Return the table. Raises MissingExtraError without pandas."""
    try:
        import pandas
    except ImportError as error:
        raise MissingExtraError("pandas", "reports") from error
    parts = []
    for row, text in enumerate(texts):
        tokens, sites = len(text.tokens), len(text.sites)
        columns = {
            "row": [row] * tokens * sites,
            "position": list(range(tokens)) * sites,
            "token": list(text.tokens) * sites,
            "site": [site for site in text.sites for _ in range(tokens)],
            **{name: value.flatten().numpy() for name, value in text.values.items()},
        }
        if text.turns:
            columns |= {"role": text.roles() * sites, "counted": list(text.counted) * sites}
        if text.next_tokens is not None:
            columns["kl"] = list(text.next_tokens.kl) * sites
        parts.append(pandas.DataFrame(columns))
    return pandas.concat(parts, ignore_index=True)
