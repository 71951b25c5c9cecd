"""Explanation: one self-contained HTML file in which a reader explores what steering did to some texts.

The page holds its data (JSON, values as base64), one style and one script, and its policy (Content-Security-Policy)
allows only that style and that script, by their digests, and no requests, whatever a text may contain. It works when
opened as a file. Values are rounded to 1/65535 of the largest one of their kind in a text.

The slider rescales the measured values to another strength. It does not run the model: at another strength later sites
would see other activations.

Limitations: a browser holds some hundred thousand tokens at most.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from dsas.errors import OptionError
from dsas.views.explained import Explained

_LEVELS = 65535
_BODY = """<header><h1>{title}</h1>
<p>Text is coloured by what steering applied to each token; the map below it shows every token (across) at every site
(down, first layer on top). Point at a token or a cell, or step with the arrow keys, to read the numbers.</p></header>
<noscript><p>This page draws its texts with a script of its own, which this browser does not run.</p></noscript>
<form id="controls" aria-label="Display" autocomplete="off">
<label>Show <select id="quantity"></select></label>
<label>Site <select id="site"></select></label>
<label id="slider">Strength <input type="range" id="strength" min="0" max="400" value="100" step="1">
<output id="factor" for="strength"></output></label>
<button type="button" id="reset">As run</button>
<span id="scale">0 <i></i> <b id="peak"></b></span>
</form>
<p id="note">The slider multiplies what was measured; it does not run the model again.</p>
<main id="texts"></main>
<div id="readout" role="status" aria-live="polite"></div>
"""


def explanation_html(texts: Sequence[Explained], *, title: str) -> str:
    """Return the page; the same texts give the same bytes. Raises OptionError for no text, or for differing sites."""
    if not texts or any(text.sites != texts[0].sites for text in texts):
        raise OptionError(f"expected at least one text, and the same sites in all, got {len(texts)} texts")
    style, script = (_asset(f"explanation.{kind}") for kind in ("css", "js"))
    data = json.dumps([_packed(text) for text in texts], allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    policy = f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; img-src data:"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n{_BODY.format(title=escape(title))}"
        f'<script type="application/json" id="data">{data}</script>\n<script>{script}</script>\n</body>\n</html>\n'
    )


def framed(page: str) -> str:
    """Return a page as an element for another page or a notebook; it can run its script and nothing else."""
    look = "width:100%;height:36rem;border:0"
    return f'<iframe srcdoc="{escape(page)}" sandbox="allow-scripts" style="{look}" title="What was steered"></iframe>'


def _packed(text: Explained) -> dict[str, Any]:
    """Return a text in the form that the script reads."""
    packed: dict[str, Any] = {"label": text.label, "tokens": text.tokens, "sites": text.sites, "asked": text.strength}
    packed["values"] = {name: _quantised(values) for name, values in text.values.items()}
    if text.next_tokens is not None:
        packed["next"] = text.next_tokens._asdict()
    if text.turns:
        packed["turns"] = text.by_turn()
        packed["counted"] = text.counted
    if text.comparison is not None:
        packed["comparison"] = text.comparison._asdict()
    return packed


def _quantised(values: Float[Tensor, "site token"]) -> dict[str, Any]:
    """Return the largest value, and all of them as shares of it: little-endian 16-bit numbers in base64."""
    peak = float(values.max()) if values.numel() else 0.0
    shares = (values.double() / (peak or 1.0) * _LEVELS).round().numpy().astype(np.dtype("<u2"))
    return {"peak": peak, "data": base64.b64encode(shares.tobytes()).decode()}


def _asset(name: str) -> str:
    return (files("dsas.views") / name).read_text(encoding="utf-8")


def _digest(content: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"
