"""Playground: a small web page on this machine to type a prompt, move the strength, and see what steering does.

The functions are those of the command line: `dsas.explain` continues the prompt with and without steering, and its
trace draws the coloured text and the map. The server listens on 127.0.0.1 only, offers no public link, and sends no
usage statistics.

Left out: chats of several turns, several users at once.
"""

import os
from collections.abc import Mapping
from typing import Any

from dsas.errors import MissingExtraError, OptionError
from dsas.explaining.explanation import explain
from dsas.model.foreign import Foreign, Model, Tokenizer
from dsas.model.token_batches import chat_prompts
from dsas.steering.steering import Steering
from dsas.views.explanation import framed

HOST = "127.0.0.1"
_START = "The library opens at nine. You are"


def playground(
    model: Model, tokenizer: Tokenizer, steerings: Mapping[str, Steering], *, strength: float | None = None
) -> Foreign:
    """Return the page as a `gradio.Blocks`, not yet served; `serve` does that.

    steerings: by the names to choose from. strength: where the slider begins; it goes to four times that. When not
    given, it begins at the calibrated strength, or 1, of the Steering that is chosen.
    Raises OptionError without a Steering or for a strength that is not > 0, MissingExtraError without gradio.
    """
    if not steerings or (strength is not None and not strength > 0):
        raise OptionError(f"expected a Steering and a strength > 0, got {list(steerings)} and {strength}")
    gradio = _gradio()
    begins = {name: one.default_strength if strength is None else strength for name, one in steerings.items()}

    def choose(name: str) -> Foreign:
        return gradio.Slider(maximum=4 * begins[name], value=begins[name])

    def run(prompt: str, name: str, strength: float, tokens: float, chat: bool) -> tuple[str, str, str]:
        if not prompt.strip():
            raise gradio.Error("Please type a prompt.")
        given = chat_prompts(tokenizer, [prompt])[0] if chat else prompt
        unsteered = {"prompt": given, "generate": int(tokens), "special_tokens": not chat}
        # At 0 nothing is steered, so there is nothing to trace: the least strength shows what would have been steered.
        trace = explain(model, tokenizer, steerings[name], **unsteered, strength=max(strength, 1e-6), next_tokens=3)
        (beside,), (pieces,) = trace.comparisons, trace.tokens
        return "".join(pieces[beside.prompt_tokens :]), "".join(beside.unsteered), framed(trace.to_html())

    with gradio.Blocks(title="dsas playground", analytics_enabled=False) as page:
        gradio.Markdown("# dsas playground\nThe same prompt, continued greedily with and without steering.")
        with gradio.Row():
            prompt = gradio.Textbox(_START, label="Prompt", lines=2, elem_id="prompt", scale=3)
            names = list(steerings)
            name = gradio.Dropdown(names, value=names[0], label="Steering", elem_id="steering", scale=1)
        with gradio.Row():
            first = begins[names[0]]
            slider = gradio.Slider(0, 4 * first, value=first, label="Strength", elem_id="strength")
            tokens = gradio.Slider(1, 256, value=32, step=1, label="New tokens", elem_id="tokens")
            chat = gradio.Checkbox(False, label="Chat template", visible=bool(tokenizer.chat_template))
        button = gradio.Button("Run", variant="primary", elem_id="run")
        with gradio.Row():
            steered = gradio.Textbox(label="Steered", lines=4, elem_id="steered", interactive=False)
            plain = gradio.Textbox(label="Unsteered", lines=4, elem_id="unsteered", interactive=False)
        heat = gradio.HTML(elem_id="heat")
        inputs, outputs = [prompt, name, slider, tokens, chat], [steered, plain, heat]
        chosen = name.change(choose, name, slider, api_name=False) if strength is None else None
        for event in (button.click, prompt.submit, slider.release, chosen.then if chosen else name.change):
            event(run, inputs, outputs, api_name=False, concurrency_id="model", concurrency_limit=1)
    return page


def serve(page: Any, *, port: int = 7860, wait: bool = True) -> str:
    """Serve a playground at 127.0.0.1 and return its address; with `wait`, only once it is stopped by Ctrl-C."""
    gradio = _gradio()
    fonts = ["system-ui", "sans-serif"]  # those of the machine: the default theme would ask the network for its own
    options = {"theme": gradio.themes.Default(font=fonts, font_mono=["ui-monospace", "monospace"])}
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
