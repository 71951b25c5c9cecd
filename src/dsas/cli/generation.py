"""Generate: continue prompts with a steered model, beside the unsteered one, or in colour while it writes."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dsas.cli import options
from dsas.cli.app import app
from dsas.cli.checks import check_model, check_table, prompts_of
from dsas.cli.conversing import Conversing
from dsas.cli.examples import asked_of, chat_of
from dsas.cli.models import loaded_model
from dsas.cli.options import LARGEST_SEED, in_method, in_output, in_texts
from dsas.cli.output import console, say, say_json, show_table
from dsas.errors import OptionError
from dsas.files.json_values import JsonObject
from dsas.files.text_files import DEFAULT_FIELD
from dsas.files.tidy_tables import write_rows
from dsas.model.chat import Chat
from dsas.model.conversation import Completion, Conversation, as_text
from dsas.model.foreign import Tokenizer
from dsas.steering.folder import steering_folder

if TYPE_CHECKING:
    import dsas


@app.command(epilog='Example: `dsas generate ./model "The idea is" --steering detox --strength 0.1 --compare`')
def generate(
    model: options.Model,
    prompt: Annotated[str | None, typer.Argument(help="One prompt; or give --file.")] = None,
    steering: Annotated[str | None, in_method(help="Folder or hub id of a Steering; none: unsteered.")] = None,
    strength: options.Strength = None,
    file: options.File = None,
    chat: Annotated[
        bool, in_texts(help="Put each prompt through the model's chat template; without a prompt: converse.")
    ] = False,
    system: options.System = None,
    template_args: options.TemplateArgs = options.NO_ARGS,
    compare: Annotated[bool, in_output(help="Show the unsteered text beside the steered one.")] = False,
    explain: Annotated[bool, in_output(help="Write token by token, coloured by applied strength.")] = False,
    new_tokens: options.NewTokens = 64,
    temperature: Annotated[float, in_texts(min=0.0, help="Sampling temperature; 0 is greedy.")] = 0.0,
    top_p: Annotated[
        float, in_texts(min=0.0, max=1.0, help="Sample from the likeliest tokens whose probabilities add up to this.")
    ] = 1.0,
    seed: Annotated[int, in_texts(min=0, max=LARGEST_SEED, help="Seed of the sampling.")] = 0,
    field: options.Field = DEFAULT_FIELD,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    table: options.Table = None,
    as_json: options.AsJson = False,
) -> None:
    """Continue prompts with a steered model; with --chat and without a prompt, hold a conversation with it."""
    if (system is not None or template_args != options.NO_ARGS) and not chat:
        raise OptionError("--system and --template-args need --chat")
    chat_options = chat_of(system, template_args)
    converses = chat and prompt is None and file is None
    _check_together(converses, steering is not None, compare, explain, as_json or table is not None)
    given = [] if converses else _given(prompt, file, field, chat_options if chat else None)
    check_table(table)
    folder = steering_folder(steering) if steering else None
    check_model(model)
    import dsas
    from dsas.evaluation.generations import Sampling, sample_continuations
    from dsas.explaining.dialogue import Dialogue, Drawn
    from dsas.model.chat_template import chat_prompts
    from dsas.parallel.progress import progress_bar

    chosen = dsas.Steering.from_pretrained(folder) if folder else None
    loaded = loaded_model(model, device, precision)
    if converses:
        dialogue = Dialogue(*loaded, chat=chat_options, drawn=Drawn(temperature, top_p, new_tokens, seed))
        Conversing(dialogue, chosen, strength).run(input)
        return
    if chosen is not None and strength is None:
        strength = chosen.default_strength
    sampling = Sampling(temperature, top_p, repetition_penalty=1.0, new_tokens=new_tokens, special_tokens=not chat)
    prompts = list(map(as_text, given))
    asked = chat_prompts(loaded.tokenizer, given) if chat else prompts
    sample = partial(sample_continuations, *loaded, seeds=(seed,), sampling=sampling)

    def run(applied: Any) -> list[str]:
        with applied, progress_bar(not as_json) as bar:
            task = bar.add_task("generating", total=len(prompts))
            return sample(asked, progress=lambda done: bar.update(task, completed=done))[0]

    if explain and chosen is not None:
        for text in asked:
            _write(partial(sample, [text]), loaded.tokenizer, chosen.apply(loaded.model, strength))
        say(f"coloured by applied strength, mean over sites: 0 to {strength:g}")
        return
    texts = {"steered": run(chosen.apply(loaded.model, strength))} if chosen else {}
    if compare or chosen is None:
        texts["unsteered"] = run(nullcontext())
    rows = [{"prompt": p, **{name: column[i] for name, column in texts.items()}} for i, p in enumerate(prompts)]
    if table is not None:
        write_rows(table, _tidy(rows, strength, seed))
    if as_json:
        say_json({"strength": strength if chosen else 0.0, "generations": rows})
        return
    show_table(list(rows[0]), [list(row.values()) for row in rows], ruled=True)


def _check_together(converses: bool, steered: bool, compare: bool, explain: bool, written: bool) -> None:
    """Raise OptionError for options that exclude each other. written: whether --table or --json was given."""
    if converses and (compare or written):
        raise OptionError("a conversation goes without --compare, --table and --json: give a prompt or --file")
    if compare and not steered:
        raise OptionError("--compare needs --steering: there is nothing to compare with")
    if explain and (not steered or compare or written):
        others = "--compare, --table and --json"
        raise OptionError(f"--explain needs --steering, and goes without {others}; see also: dsas explain")


def _tidy(rows: list[dict[str, str]], strength: float | None, seed: int) -> list[JsonObject]:
    """Return a row per text that was generated, of rows with the texts of a prompt each."""
    used = {"steered": strength, "unsteered": 0.0}
    return [
        {"row": number, "prompt": row["prompt"], "strength": used[name], "seed": seed, "text": row[name]}
        for number, row in enumerate(rows)
        for name in used
        if name in row
    ]


def _given(prompt: str | None, file: Path | None, field: str, chat: Chat | None) -> list[str | Conversation]:
    """Return the prompts: texts without `chat`, conversations with it. Raises OptionError for completions."""
    if chat is None:
        return list(prompts_of(prompt, file, field))
    found = asked_of(prompt, file, field, chat=chat, as_chat=True)
    turns = [one for one in found if not isinstance(one, Completion)]
    if len(turns) < len(found):
        raise OptionError(f"--chat takes texts and conversations, and {file} has prompts with completions")
    return turns


def _write(sample: Callable[..., object], tokenizer: Tokenizer, applied: "dsas.Applied") -> None:
    """Continue one text on the console; a token is written once the next one is known, as it is steered only then."""
    from dsas.explaining.token_stream import TokenStream
    from dsas.views.terminal import styled

    peak, drawn = abs(float(applied.strength)), console()

    def show(piece: str, value: float | None) -> None:
        style = styled(abs(value), peak) if value is not None else None
        drawn.print(piece, style=style, end="", soft_wrap=True)

    with applied:
        sample(streamer=TokenStream(tokenizer, applied, show))
    drawn.print("\n")
