"""Fit, info and methods: make a Steering from texts, show what a stored one does, list what there is to choose."""

import shutil
from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from dsas.cli import options
from dsas.cli import picture_options as drawn
from dsas.cli.app import app
from dsas.cli.checks import check_apart, check_methods, check_model, check_out, check_table, resumed_from
from dsas.cli.choices import Selection
from dsas.cli.examples import ExampleFile, chat_of, chosen_of
from dsas.cli.firing import show_firing
from dsas.cli.models import loaded_model, loaded_pipeline
from dsas.cli.options import STEERING, in_method, in_texts
from dsas.cli.output import say, say_json, show, show_table, write_sites
from dsas.errors import TextsError
from dsas.files.text_files import DEFAULT_FIELD, read_spans
from dsas.files.tidy_tables import write_rows
from dsas.model.conversation import Conversation
from dsas.model.foreign import Foreign
from dsas.regulators import REGULATORS
from dsas.steering.folder import steering_folder
from dsas.transforms import TRANSFORMS

if TYPE_CHECKING:
    from dsas import Steering
    from dsas.evaluation.firing import FiringReport

# Options that have no effect on one kind of model, and are refused when given.
OF_TEXTS = ("incremental", "spans", "tokens", "system", "template_args", "parts", "max_tokens", "general")
OF_TEXTS += ("workers", "ray")
OF_PICTURES = ("seed", "steps", "guidance", "negative", "branch", "call", "pooling", "positions")
OF_PICTURES += ("per_step",)
RESERVOIR = "Examples of each set that are kept; of longer sets all are run, and regulators learn from so many."
GENERAL = "Texts for the model to write freely, to warn where regulators fire on general text; 0: none."


@app.command(epilog="Example: `dsas fit ./model --source rude.txt --control plain.txt --target polite.txt --out detox`")
def fit(
    model: Annotated[
        str, typer.Argument(help="Folder, hub id or .gguf file of a causal language model, or of a diffusers pipeline.")
    ],
    source: options.Source,
    control: options.Control,
    out: options.Out,
    target: options.Target = None,
    transform: options.Transform = "caa",
    regulator: options.Regulator = "auto",
    sites: options.Sites = ["residual"],  # noqa: B006
    selection: Annotated[Selection, in_method(help="Which sites are steered, by held-out accuracy.")] = "threshold",
    threshold: Annotated[
        float, in_method(min=0, max=1, help="With --selection threshold: least accuracy of a steered site.")
    ] = 0.75,
    top: Annotated[int, in_method(min=1, help="With --selection top: how many sites are steered.")] = 48,
    incremental: Annotated[bool, in_method(help="Fit each site with the earlier ones already steered.")] = False,
    spans: Annotated[bool, in_method(help="Learn from labelled tokens: the source .jsonl has 'spans'.")] = False,
    tokens: options.Tokens = "auto",
    system: options.System = None,
    template_args: options.TemplateArgs = options.NO_ARGS,
    parts: options.Parts = options.ALL_PARTS,
    batch_size: Annotated[int, in_texts(min=1, help="Texts per forward pass.")] = 16,
    max_tokens: Annotated[int, in_texts(min=1, help="Longer texts are cut to this many tokens.")] = 512,
    general: Annotated[int, in_texts(min=0, help=GENERAL)] = 40,
    reservoir: Annotated[int, in_texts(min=4, help=RESERVOIR)] = 4096,
    seed: drawn.Seed = 0,
    steps: drawn.Steps = 20,
    guidance: drawn.Guidance = None,
    negative: drawn.Negative = None,
    branch: drawn.BranchName = "conditional",
    call: drawn.CallOptions = drawn.NO_OPTIONS,
    pooling: drawn.PoolingName = "mean",
    positions: drawn.Positions = 32,
    per_step: drawn.PerStep = False,
    workers: options.Workers = 1,
    ray: options.Ray = "",
    field: options.Field = DEFAULT_FIELD,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    table: options.Table = None,
    as_json: options.AsJson = False,
) -> None:
    """Fit a Steering from texts, conversations or a pipeline's prompts, and write it; an interrupted fit resumes."""
    given = dict(locals())
    check_apart(incremental=incremental, spans=spans, workers=workers > 1, ray=bool(ray))
    chat = chat_of(system, template_args, parts)
    texts: dict[str, Iterable[Foreign]] = {"source": ExampleFile(source, field, half="rejected").checked()}
    texts["control"] = ExampleFile(control, field).checked()
    goal = ExampleFile(target, field, half="chosen").checked() if target else chosen_of(source, field)
    labels = read_spans(source) if spans else None
    pictures = drawn.Drawn(
        steps, drawn.call_options(call, guidance, negative), seed, branch, pooling, positions, per_step
    )
    collected = resumed_from(out, "collected")
    for folder in (out, collected):
        check_out(folder)
    check_table(table)
    check_methods([transform], [regulator])
    check_model(model, "transformers model or a diffusers pipeline")
    pipeline = drawn.is_pipeline(model)
    unmeant = (OF_TEXTS, "a pipeline") if pipeline else (OF_PICTURES, "a language model")
    drawn.check_meant(fit, given, *unmeant)
    import dsas

    loaded = (loaded_pipeline if pipeline else loaded_model)(model, device, precision)
    first = islice(texts["source"], general)
    shown = [one.under(chat) if isinstance(one, Conversation) else one for one in first]
    if labels is not None:
        texts["source"] = list(map(dsas.Example, texts["source"], labels))  # which holds all of them
    reading = dsas.Reading(tokens, True, batch_size, max_tokens, incremental, dsas.Spread(workers, ray), chat)
    steering = dsas.fit(
        *loaded,
        **texts,
        target=goal,
        transform=transform,
        regulator=regulator,
        sites=sites,
        selection={"threshold": dsas.Threshold(threshold), "top": dsas.Top(top)}.get(selection, selection),
        reading=pictures.drawing(batch_size) if pipeline else reading,
        reservoir=reservoir,
        checkpoint=collected,
        progress=not as_json,
    )
    steering.save_pretrained(out)
    write_sites(table, steering)
    shutil.rmtree(collected, ignore_errors=True)
    steered = not pipeline and regulator != "constant" and any(rule.weight > 0 for rule in steering.rules)
    fires = _general(loaded, steering, shown, general, max_tokens, not as_json) if general and steered else None
    show(steering, as_json, saved=str(out), **({"fires_on": fires.as_dict()} if fires and as_json else {}))
    if fires and not as_json:
        show_firing(fires)


def _general(
    loaded: tuple[Foreign, ...], steering: "Steering", source: list[Foreign], n: int, max_tokens: int, progress: bool
) -> "FiringReport | None":
    """Return what the Steering fires on in general text; None, and a line that says so, where none can be drawn."""
    from dsas.evaluation.firing import general_firing

    try:
        return general_firing(loaded[0], loaded[1], steering, source, n=n, max_tokens=max_tokens, progress=progress)
    except TextsError as error:
        say(f"whether regulators fire on general text was not checked: {error}", error=True)
        return None


@app.command(epilog="Example: `dsas info detox --json`")
def info(
    steering: Annotated[str, typer.Argument(help=STEERING)],
    table: options.Table = None,
    as_json: options.AsJson = False,
) -> None:
    """Show what a stored Steering does, site by site."""
    check_table(table)
    folder = steering_folder(steering)
    import dsas

    found = dsas.Steering.from_pretrained(folder)
    write_sites(table, found)
    show(found, as_json)


@app.command(epilog="Example: `dsas methods --json`")
def methods(table: options.Table = None, as_json: options.AsJson = False) -> None:
    """List every transform and regulator: name, formula, paper, limitations, cost per token."""
    check_table(table)
    kinds = {"transform": TRANSFORMS, "regulator": REGULATORS}
    rows = [{"kind": kind, "name": name, **of[name].facts._asdict()} for kind, of in kinds.items() for name in of]
    if table is not None:
        write_rows(table, rows)
    if as_json:
        say_json(rows)
    else:
        show_table([key.replace("left_out", "limitations") for key in rows[0]], [list(row.values()) for row in rows])
