"""Figure: the strength applied to one text, a column per token and a line per site, drawn by matplotlib."""

from typing import TYPE_CHECKING

from dsas.errors import MissingExtraError
from dsas.views.explained import Explained

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABELLED = 60  # with more tokens than this, labels would be illegible


def strength_figure(text: Explained) -> "Figure":
    """Return the figure; more than 60 tokens are numbered instead of named. Raises MissingExtraError."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "reports") from error
    tokens, sites = len(text.tokens), len(text.sites)
    figure = Figure(figsize=(min(3 + 0.22 * tokens, 16), min(1.6 + 0.16 * sites, 9)), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(text.values["strength"].numpy(), aspect="auto", cmap="viridis", vmin=0.0, interpolation="none")
    axes.set_yticks(range(sites) if sites <= 12 else range(0, sites, 5))
    axes.set_yticklabels([text.sites[int(tick)] for tick in axes.get_yticks()])
    if tokens <= LABELLED:
        axes.set_xticks(range(tokens), [repr(token)[1:-1] for token in text.tokens], rotation=90, parse_math=False)
    for turn in text.turns[1:]:
        axes.axvline(turn.start - 0.5, color="white", linewidth=1)
    axes.set_xlabel("token" if not text.turns else "token, by turn: " + ", ".join(turn.role for turn in text.turns))
    axes.set_title(text.label, parse_math=False)
    figure.colorbar(image, ax=axes, label="applied strength")
    return figure
