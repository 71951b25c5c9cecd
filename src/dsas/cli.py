"""The command line: parse, call one function, print. Errors that are the user's to mend end with exit status 2."""

import json
import shutil
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import dsas
from dsas.collection import Reading, progress_bar
from dsas.errors import DsasError, DsasWarning, OptionError
from dsas.evaluation.generations import Sampling, sample_continuations
from dsas.loading import load_model
from dsas.text import chat_prompts
from dsas.textfiles import DEFAULT_FIELD, read_spans, read_texts

console, errors = Console(), Console(stderr=True)


class _Commands(typer.core.TyperGroup):
    """Commands whose errors end as exit status 2, and whose interruption as 130, with one line instead of a trace."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except DsasError as error:
            errors.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
            raise typer.Exit(2) from error
        except KeyboardInterrupt as interrupt:
            errors.print("interrupted; fit and demo go on from here when run again")
            raise typer.Exit(130) from interrupt


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    help="Steer generative models only when and where it is needed.",
)

Model = Annotated[str, typer.Argument(help="Folder, hub id or .gguf file of a transformers causal language model.")]
Device = Annotated[str, typer.Option(help="'auto' (a GPU when there is one), 'cpu', 'cuda', 'cuda:1', ...")]
Precision = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Field = Annotated[str, typer.Option(help="JSON key or CSV column that holds the text.")]


@app.command(epilog="Example: `dsas fit ./model --source rude.txt --control plain.txt --target polite.txt --out detox`")
def fit(
    model: Model,
    source: Annotated[Path, typer.Option(help="Texts with the undesired behaviour: .txt, .jsonl or .csv.")],
    control: Annotated[Path, typer.Option(help="Neutral texts of the same style that must stay as they are.")],
    out: Annotated[Path, typer.Option(help="Folder to write the Steering to.")],
    target: Annotated[Path | None, typer.Option(help="Texts with the desired behaviour; default: control.")] = None,
    transform: Annotated[str, typer.Option(help="A name that `dsas methods` lists.")] = "caa",
    regulator: Annotated[str, typer.Option(help="A name that `dsas methods` lists, or a product, a*b.")] = "logistic",
    sites: Annotated[list[str], typer.Option(help="Shorthand, path, glob or re:...; repeatable.")] = ["residual"],  # noqa: B006
    selection: Annotated[str, typer.Option(help="threshold, smooth, top or all.")] = "threshold",
    threshold: Annotated[float, typer.Option(help="Least held-out accuracy of a steered site.")] = 0.75,
    top: Annotated[int, typer.Option(help="With --selection top: how many sites are steered.")] = 48,
    incremental: Annotated[bool, typer.Option(help="Fit each site with the earlier ones already steered.")] = False,
    spans: Annotated[bool, typer.Option(help="Learn from tokens: the source .jsonl has 'spans'.")] = False,
    pooling: Annotated[str, typer.Option(help="A text's vector: the mean of its tokens, or the last.")] = "mean",
    batch_size: Annotated[int, typer.Option(help="Texts a forward pass.")] = 16,
    max_tokens: Annotated[int, typer.Option(help="Longer texts are cut.")] = 512,
    field: Field = DEFAULT_FIELD,
    device: Device = "auto",
    precision: Precision = "auto",
    as_json: AsJson = False,
) -> None:
    """Fit a Steering from sets of texts and write it to a folder; an interrupted fit resumes where it stopped."""
    _hide_foreign_bars()
    texts = {"source": read_texts(source, field=field), "control": read_texts(control, field=field)}
    goal = read_texts(target, field=field) if target else None
    loaded = load_model(model, device=device, precision=precision)
    collected = out.with_name(f".{out.name}.collected")
    steering = dsas.fit(
        loaded.model,
        loaded.tokenizer,
        **texts,
        target=goal,
        transform=transform,
        regulator=regulator,
        sites=sites,
        selection=selection,  # pyright: ignore[reportArgumentType]
        threshold=threshold,
        top=top,
        spans=read_spans(source) if spans else None,
        incremental=incremental,
        reading=Reading(pooling, batch_size=batch_size, max_tokens=max_tokens),  # pyright: ignore[reportArgumentType]
        checkpoint=collected,
        progress=not as_json,
    )
    steering.save_pretrained(out)
    shutil.rmtree(collected, ignore_errors=True)
    _show(steering, as_json, saved=str(out))


@app.command(epilog='Example: `dsas generate ./model "The idea is" --steering detox --strength 0.1 --compare`')
def generate(
    model: Model,
    prompt: Annotated[str | None, typer.Argument(help="One prompt; or give --file.")] = None,
    steering: Annotated[str | None, typer.Option(help="Folder or hub id of a Steering; none: unsteered.")] = None,
    strength: Annotated[float, typer.Option(help="0 is unsteered; residual sites often need only 0.1.")] = 1.0,
    file: Annotated[Path | None, typer.Option(help="Prompts: .txt, .jsonl or .csv.")] = None,
    chat: Annotated[bool, typer.Option(help="Put each prompt through the model's chat template.")] = False,
    compare: Annotated[bool, typer.Option(help="Show the unsteered text beside the steered one.")] = False,
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
    if (prompt is None) == (file is None):
        raise OptionError("give either one prompt or --file with prompts")
    if compare and steering is None:
        raise OptionError("--compare needs --steering: there is nothing to compare with")
    _hide_foreign_bars()
    prompts = [prompt] if prompt is not None else read_texts(file, field=field)  # pyright: ignore[reportArgumentType]
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


@app.command(epilog="Example: `dsas info detox --json`")
def info(
    steering: Annotated[str, typer.Argument(help="Folder or hub id of a Steering.")], as_json: AsJson = False
) -> None:
    """Show what a stored Steering does, site by site."""
    _show(dsas.Steering.from_pretrained(steering), as_json)


@app.command(epilog="Example: `dsas methods --json`")
def methods(as_json: AsJson = False) -> None:
    """List every transform and regulator: name, formula, paper, what is left out, cost a token."""
    kinds = {"transform": dsas.TRANSFORMS, "regulator": dsas.REGULATORS}
    rows = [{"kind": kind, "name": name, **of[name].facts._asdict()} for kind, of in kinds.items() for name in of]
    if as_json:
        print(json.dumps(rows))
        return
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(escape(value) for value in row.values()))
    console.print(table)


@app.command(epilog="Example: `dsas demo --out out/demo --model smollm2`")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for report, Steering and measurements.")] = Path("out/demo"),
    model: Annotated[str, typer.Option(help="smollm2 or gemma3, taken from registry packages.")] = "smollm2",
    prompts: Annotated[int, typer.Option(min=1, max=303, help="Held-out prompts to continue.")] = 100,
    seeds: Annotated[int, typer.Option(min=1, help="Continuations of each prompt.")] = 1,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Fit, steer and measure a real language model end to end, and write a report; a second run reuses the first."""
    from dsas.demo.report import summary, write_report
    from dsas.demo.run import run_demo

    _hide_foreign_bars()
    result = run_demo(out, model=model, device=device, prompts=prompts, seeds=seeds, progress=not as_json)
    command = f"dsas demo --out {out} --model {model} --prompts {prompts} --seeds {seeds}"
    write_report(out / "report.html", result, command)
    if as_json:
        print(json.dumps(result.as_dict()))
        return
    for line in summary(result):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(f"report: {out / 'report.html'}", soft_wrap=True)


def _hide_foreign_bars() -> None:
    """Keep the bars that transformers draws while it loads weights out of the way of ours."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def _show(steering: dsas.Steering, as_json: bool, **extra: str) -> None:
    lines = steering.report()
    if as_json:
        facts = {"model": steering.model.as_dict(), "settings": steering.settings}
        print(json.dumps({**facts, "sites": [line._asdict() for line in lines], **extra}))
        return
    table = Table("site", "accuracy", "weight", "status", title=f"Steering for {steering.model.model_class}")
    for line in lines:
        accuracy = "-" if line.accuracy is None else f"{line.accuracy:.2f}"
        table.add_row(line.site, accuracy, f"{line.weight:.2f}", line.status)
    console.print(table)
    for key, value in {**steering.settings, **extra}.items():
        console.print(f"{key}: {value}", markup=False)


def main() -> None:
    """Run the command line: exit status 0 done, 2 bad input, 130 interrupted."""
    warnings.showwarning = _show_warning
    app()


def _show_warning(message: Warning | str, category: type[Warning], *_where: Any) -> None:
    if issubclass(category, DsasWarning):
        errors.print(f"warning: {message}", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
