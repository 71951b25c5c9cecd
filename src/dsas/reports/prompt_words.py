"""Prompt words: the tokens that the text encoders of a pipeline read in a run, with what was applied to each.

The tokens are those that an encoder was called with, never those that its tokenizer might make of the prompt. The
padding at the end is shown as one entry with the mean.

Limitations: sites of a denoiser that read the prompt (`...@text`) are not shown.
"""

from functools import partial

import torch
from torch import Tensor

from dsas.model.foreign import Arguments, Options, Pipeline
from dsas.model.hooks import Hooks
from dsas.model.image_trace import Maps
from dsas.model.pipeline_modules import Branch, PipelineModules
from dsas.reports.heat import TokenHeat


class PromptWords:
    """What each text encoder was called with since the last `begin`."""

    def __init__(self, pipeline: Pipeline, branch: Branch) -> None:
        """Watch the encoders of a pipeline; branch: which call of a run was steered."""
        self._parts, self._branch = PipelineModules(pipeline), branch
        self._calls: dict[str, list[Tensor]] = {}

    def watch(self, hooks: Hooks) -> None:
        """Note the calls of every encoder while the hooks are on."""
        for name in self._parts.encoders:
            hooks.on_call(self._parts.get_submodule(name), partial(self._note, name))

    def begin(self) -> None:
        """Forget the calls of the previous run."""
        self._calls = {}

    def heats(self, maps: Maps, row: int) -> list[TokenHeat]:
        """Return a line of tokens for each site of a prompt; maps: those of one image."""
        found = []
        for site, grid in zip(maps.sites, maps.strengths, strict=True):
            name = site.partition(".")[0]
            if not grid.numel() or name not in self._parts.encoders:
                continue
            values = grid[0].abs().mean((0, 1)).tolist()
            words, padded = self._words(name, row, len(values))
            if padded < len(values):
                words = [*words[:padded], f"{len(values) - padded} of padding"]
                values = [*values[:padded], float(torch.tensor(values[padded:]).mean())]
            found.append(TokenHeat(site, words, values))
        return found

    def _note(self, name: str, args: Arguments, kwargs: Options) -> None:
        given = args[0] if args else kwargs.get("input_ids")
        if isinstance(given, Tensor) and given.ndim == 2:
            self._calls.setdefault(name, []).append(given.detach().cpu())

    def _words(self, name: str, row: int, width: int) -> tuple[list[str], int]:
        """Return the tokens of a row as text (unknown ones as numbers), and where its padding begins."""
        calls = self._calls.get(name, [])
        which = 1 if self._branch == "unconditional" else 0
        call = calls[which] if calls and which < len(calls) else None
        tokenizer = self._parts.pipeline.components.get(name.replace("text_encoder", "tokenizer"))
        if call is None or tokenizer is None or call.shape[1] != width or row >= len(call):
            return [f"{place + 1} " for place in range(width)], width
        tokens = call[row].tolist()
        pads = {getattr(tokenizer, "pad_token_id", None)}
        real = width
        while real > 1 and tokens[real - 1] in pads and tokens[real - 2] in pads:
            real -= 1
        return [f"{tokenizer.decode([token])} " for token in tokens], real
