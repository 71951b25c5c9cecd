"""Playground: a small web page on this machine to talk to a model, move the strength, and see what steering does.

A model with a chat template gets a chat (`dsas.demo.chat_tab`); every model can continue a prompt, with the functions
of the command line: `dsas.explain` continues it with and without steering, and its trace draws the coloured text and
the map. The server listens on 127.0.0.1 only, answers only requests that name this machine (`dsas.demo.own_host`),
offers no public link, and sends no usage statistics.
"""

import os
from collections.abc import Mapping
from functools import partial
from typing import Any

from dsas.demo.chat_tab import Visitors, chat_tab
from dsas.demo.own_host import OwnHost
from dsas.errors import MissingExtraError, OptionError
from dsas.explaining.explanation import explain
from dsas.model.foreign import Foreign, Model, Tokenizer
from dsas.steering.steering import Steering
from dsas.views.explanation import framed

HOST = "127.0.0.1"
_START = "The library opens at nine. You are"


def playground(
    model: Model, tokenizer: Tokenizer, steerings: Mapping[str, Steering], *, strength: float | None = None
) -> Foreign:
    """Return the page as a `gradio.Blocks`, not yet served; `serve` does that.

    steerings: Steerings by the name shown for choosing. strength: where the slider begins; it goes up to four times
    that. When not given, it begins at the calibrated strength of the chosen Steering, or at 1.
    Raises OptionError without a Steering or for a strength that is not > 0, MissingExtraError without gradio.
    """
    if not steerings or (strength is not None and not strength > 0):
        raise OptionError(f"expected a Steering and a strength > 0, got {list(steerings)} and {strength}")
    gradio = _gradio()
    begins = {name: one.default_strength if strength is None else strength for name, one in steerings.items()}

    def choose(name: str) -> Foreign:
        return gradio.Slider(maximum=4 * begins[name], value=begins[name])

    with gradio.Blocks(title="dsas playground", analytics_enabled=False) as page:
        gradio.Markdown("# dsas playground\nThe same model, with and without steering.")
        with gradio.Row():
            first, names = begins[next(iter(begins))], list(steerings)
            name = gradio.Dropdown(names, value=names[0], label="Steering", elem_id="steering")
            slider = gradio.Slider(0, 4 * first, value=first, label="Strength", elem_id="strength")
            tokens = gradio.Slider(1, 256, value=32, step=1, label="New tokens", elem_id="tokens")
        chosen = name.change(choose, name, slider, api_name=False) if strength is None else None
        choices, changes = [name, slider, tokens], [slider.release, chosen.then if chosen else name.change]
        if getattr(tokenizer, "chat_template", None):
            with gradio.Tab("Conversation"):
                chat_tab(gradio, Visitors(model, tokenizer, steerings, gradio), choices)
            with gradio.Tab("Prompt"):
                _prompt_tab(gradio, partial(_continued, gradio, model, tokenizer, steerings), choices, changes)
        else:
            _prompt_tab(gradio, partial(_continued, gradio, model, tokenizer, steerings), choices, changes)
    return page


def _continued(
    gradio: Foreign, model: Model, tokenizer: Tokenizer, steerings: Mapping[str, Steering], *asked: Any
) -> tuple[str, str, str]:
    """Return a prompt's continuation steered and unsteered, and the page that shows what was steered."""
    prompt, name, strength, tokens = asked
    if not prompt.strip():
        raise gradio.Error("Please type a prompt.")
    # At 0 nothing is steered, so there is nothing to trace: the least strength shows what would have been steered.
    strength, options = max(strength, 1e-6), {"prompt": prompt, "generate": int(tokens), "next_tokens": 3}
    trace = explain(model, tokenizer, steerings[name], **options, strength=strength)
    (beside,), (pieces,) = trace.comparisons, trace.tokens
    return "".join(pieces[beside.prompt_tokens :]), "".join(beside.unsteered), framed(trace.to_html())


def _prompt_tab(gradio: Foreign, run: Foreign, choices: list[Foreign], changes: list[Foreign]) -> None:
    """Put a prompt and its continuations into the page; changes: events after which it is continued again."""
    prompt = gradio.Textbox(_START, label="Prompt", lines=2, elem_id="prompt")
    button = gradio.Button("Run", variant="primary", elem_id="run")
    with gradio.Row():
        steered = gradio.Textbox(label="Steered", lines=4, elem_id="steered", interactive=False)
        plain = gradio.Textbox(label="Unsteered", lines=4, elem_id="unsteered", interactive=False)
    heat = gradio.HTML(elem_id="heat")
    for event in (button.click, prompt.submit, *changes):
        event(
            run, [prompt, *choices], [steered, plain, heat], api_name=False, concurrency_id="model",
            concurrency_limit=1,
        )  # fmt: skip


def serve(page: Any, *, port: int = 7860, wait: bool = True) -> str:
    """Serve a playground at 127.0.0.1 and return its address; with `wait`, only once it is stopped by Ctrl-C."""
    gradio = _gradio()
    fonts = ["system-ui", "sans-serif"]  # fonts of the machine: the default theme would fetch its own from the network
    from starlette.middleware import Middleware  # pyright: ignore[reportMissingImports]

    options = {"app_kwargs": {"middleware": [Middleware(OwnHost)]}}
    options |= {"theme": gradio.themes.Default(font=fonts, font_mono=["ui-monospace", "monospace"])}
    _, address, _ = page.launch(
        server_name=HOST, server_port=port, share=False, quiet=True, prevent_thread_lock=not wait, **options
    )
    return address


def _gradio() -> Foreign:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    try:
        import gradio
    except ImportError as error:
        raise MissingExtraError("gradio", "playground") from error
    return gradio
