"""Explain: a page that shows which tokens of some texts were steered, where, and by how much."""

from pathlib import Path
from typing import Annotated

import typer

import dsas
from dsas.cli.options import (
    AsJson,
    Chat,
    Device,
    Field,
    File,
    Model,
    Precision,
    Strength,
    app,
    console,
    hide_foreign_bars,
    prompts_of,
)
from dsas.explaining.explanation import write_explanation
from dsas.files.text_files import DEFAULT_FIELD
from dsas.model.loading import load_model
from dsas.model.token_batches import chat_prompts


@app.command(epilog='Example: `dsas explain ./model "You are a fool." --steering detox --strength 0.1`')
def explain(
    model: Model,
    steering: Annotated[str, typer.Option(help="Folder or hub id of a Steering.")],
    text: Annotated[str | None, typer.Argument(help="One text; or give --file.")] = None,
    file: File = None,
    strength: Strength = None,
    generate: Annotated[int, typer.Option(min=0, help="Continue the texts by so many tokens, steered and not.")] = 0,
    next_tokens: Annotated[int, typer.Option(min=0, help="Compare so many of the likeliest next tokens.")] = 0,
    skip_sinks: Annotated[bool, typer.Option(help="Leave the first token of each text alone.")] = False,
    out: Annotated[Path, typer.Option(help="Page to write.")] = Path("explain.html"),
    chat: Chat = False,
    field: Field = DEFAULT_FIELD,
    device: Device = "auto",
    precision: Precision = "auto",
    as_json: AsJson = False,
) -> None:
    """Write a page that shows which tokens were steered, at which sites, and by how much; --json prints it instead."""
    texts = prompts_of(text, file, field)
    hide_foreign_bars()
    loaded = load_model(model, device=device, precision=precision)
    chosen = dsas.Steering.from_pretrained(steering)
    given = chat_prompts(loaded.tokenizer, texts) if chat else texts
    trace = dsas.explain(
        *loaded,
        chosen,
        None if generate else given,
        prompt=given if generate else None,
        generate=max(generate, 1),
        strength=strength,
        next_tokens=next_tokens,
        skip_sinks=skip_sinks,
        special_tokens=not chat,
    )
    if as_json:
        print(trace.to_json())
        return
    used = chosen.default_strength if strength is None else strength
    write_explanation(out, trace, title=f"What {Path(steering).name} steered at strength {used:g}")
    console.print(f"page: {out}", markup=False, highlight=False, soft_wrap=True)
