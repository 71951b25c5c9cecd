"""Terminal: tokens on a background as strong as the strength applied to them, for consoles with and without colour.

    heat = value / peak        in [0, 1]

Letters are black on backgrounds from pale yellow to orange, so they are legible on dark and on light consoles; above
half the peak a token is also underlined, which shows without colours, too.
"""

from collections.abc import Sequence

from rich.style import Style
from rich.text import Text

from dsas.views.explained import Explained

_PALE, _HOT = (255, 245, 215), (255, 150, 40)
_LEAST = 0.02


def styled(value: float, peak: float) -> Style:
    """Return the style of a token with this value >= 0; below a fiftieth of the peak it is plain."""
    heat = min(value / peak, 1.0) if peak > 0 else 0.0
    if heat < _LEAST:
        return Style.null()
    red, green, blue = (round(pale + heat * (hot - pale)) for pale, hot in zip(_PALE, _HOT, strict=True))
    return Style(color="black", bgcolor=f"rgb({red},{green},{blue})", underline=heat > 0.5)


def coloured(texts: Sequence[Explained]) -> Text:
    """Return the texts, each below its label, coloured by applied strength (mean over sites) on one scale."""
    peak = max((value for text in texts for value in text.means()), default=0.0)
    shown = Text()
    for number, text in enumerate(texts):
        shown.append("\n\n" if number else "").append(f"{text.label}\n", style="bold")
        begins = {turn["start"]: f"[{turn['role']}, mean {turn['mean_strength']:.3g}]\n" for turn in text.by_turn()}
        for place, (token, value) in enumerate(zip(text.tokens, text.means(), strict=True)):
            if place in begins:
                shown.append(("\n" if place else "") + begins[place], style="bold dim")
            shown.append(token, style=styled(value, peak))
    return shown.append(f"\n\napplied strength, mean over sites: 0 to {peak:.3g}", style="dim")
