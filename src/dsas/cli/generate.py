"""Generate: continue prompts with a steered model, beside the unsteered one, or in colour while it writes."""

import json
from contextlib import nullcontext
from typing import Annotated, Any

import typer
from rich.table import Table

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
from dsas.errors import OptionError
from dsas.evaluation.generations import Sampling, sample_continuations
from dsas.explaining.token_stream import TokenStream
from dsas.files.text_files import DEFAULT_FIELD
from dsas.model.loading import LoadedModel, load_model
from dsas.model.token_batches import chat_prompts
from dsas.parallel.progress import progress_bar
from dsas.views.terminal import styled


@app.command(epilog='Example: `dsas generate ./model "The idea is" --steering detox --strength 0.1 --compare`')
def generate(
    model: Model,
    prompt: Annotated[str | None, typer.Argument(help="One prompt; or give --file.")] = None,
    steering: Annotated[str | None, typer.Option(help="Folder or hub id of a Steering; none: unsteered.")] = None,
    strength: Strength = None,
    file: File = None,
    chat: Chat = False,
    compare: Annotated[bool, typer.Option(help="Show the unsteered text beside the steered one.")] = False,
    explain: Annotated[bool, typer.Option(help="Write token by token, coloured by applied strength.")] = False,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate.")] = 64,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0)] = 1.0,
    seed: int = 0,
    field: Field = DEFAULT_FIELD,
    device: Device = "auto",
    precision: Precision = "auto",
    as_json: AsJson = False,
) -> None:
    """Continue prompts with a steered model."""
    prompts = prompts_of(prompt, file, field)
    if compare and steering is None:
        raise OptionError("--compare needs --steering: there is nothing to compare with")
    if explain and (steering is None or compare or as_json):
        raise OptionError("--explain needs --steering, and goes without --compare and --json; see also: dsas explain")
    hide_foreign_bars()
    loaded = load_model(model, device=device, precision=precision)
    sampling = Sampling(temperature=temperature, top_p=top_p, repetition_penalty=1.0, new_tokens=new_tokens)
    asked = chat_prompts(loaded.tokenizer, prompts) if chat else prompts

    def run(applied: Any) -> list[str]:
        with applied, progress_bar(not as_json) as bar:
            task = bar.add_task("generating", total=len(prompts))
            return sample_continuations(
                *loaded,
                asked,
                seeds=(seed,),
                sampling=sampling,
                special_tokens=not chat,
                progress=lambda done: bar.update(task, completed=done),
            )[0]

    chosen = dsas.Steering.from_pretrained(steering) if steering else None
    if chosen is not None and strength is None:
        strength = chosen.default_strength
    if explain and chosen is not None:
        for text in asked:
            _write(loaded, chosen.apply(loaded.model, strength), text, sampling, seed=seed, special_tokens=not chat)
        console.print(f"coloured by applied strength, mean over sites: 0 to {strength:g}", style="dim", highlight=False)
        return
    texts = {"steered": run(chosen.apply(loaded.model, strength))} if chosen else {}
    if compare or chosen is None:
        texts["unsteered"] = run(nullcontext())
    rows = [{"prompt": p, **{name: column[i] for name, column in texts.items()}} for i, p in enumerate(prompts)]
    if as_json:
        print(json.dumps({"strength": strength if chosen else 0.0, "generations": rows}))
        return
    table = Table(*rows[0], show_lines=True)
    for row in rows:
        table.add_row(*row.values())
    console.print(table)


def _write(
    loaded: LoadedModel, applied: dsas.Applied, text: str, sampling: Sampling, *, seed: int, special_tokens: bool
) -> None:
    """Continue one text on the console; a token is written once the next one is known, for it is steered only then."""
    peak = float(applied.strength)

    def show(piece: str, value: float | None) -> None:
        style = styled(value, peak) if value is not None else None
        console.print(piece, style=style, end="", markup=False, highlight=False, soft_wrap=True)

    with applied:
        sample_continuations(
            *loaded,
            [text],
            seeds=(seed,),
            sampling=sampling,
            special_tokens=special_tokens,
            streamer=TokenStream(loaded.tokenizer, applied, show),
        )
    console.print("\n")
