"""Train: make a Steering from texts by gradients through the model."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from dsas.cli import options
from dsas.cli.app import app
from dsas.cli.checks import check_methods, check_model, check_out, check_table
from dsas.cli.choices import STARTS, LearnedForm, OptimiserName, objectives, offering, regulators
from dsas.cli.examples import chat_of, read_examples
from dsas.cli.models import loaded_model
from dsas.cli.options import LARGEST_SEED, in_method, in_model, in_output, in_texts
from dsas.cli.output import show, write_sites
from dsas.errors import ArtifactError, OptionError
from dsas.files.text_files import DEFAULT_FIELD
from dsas.steering.folder import steering_folder
from dsas.training.objectives import OBJECTIVES, objective_named

if TYPE_CHECKING:
    from dsas.training.gradients import Start

in_training = partial(typer.Option, rich_help_panel="Training")


@app.command(
    epilog="Example: `dsas train ./model --source rude.txt --control plain.txt --target polite.txt --out detox "
    "--objective e2e-dsas --regulator-form relu`. Without texts: `dsas train ./model --out polite --objective imitate "
    "--instruction 'Answer politely.'`"
)
def train(
    model: options.Model,
    out: Annotated[Path, in_output(help="Folder to write the Steering to; log and state go to OUT/training.")],
    source: Annotated[
        Path | None,
        in_texts(help="Texts with the undesired behaviour; for imitate: questions (default: everyday ones)."),
    ] = None,
    target: Annotated[
        Path | None,
        in_texts(help="Texts with the desired behaviour; for preference, line i is preferred to line i of --source."),
    ] = None,
    control: Annotated[Path | None, in_texts(help="Neutral texts that must stay as they are.")] = None,
    objective: Annotated[
        str,
        in_method(
            help="lineas learns how to steer; e2e-dsas, preference and imitate also learn when.",
            autocompletion=objectives,
        ),
    ] = "lineas",
    instruction: Annotated[
        str | None, in_method(help='For imitate: the instruction to learn, such as "Answer politely".')
    ] = None,
    regulator_form: Annotated[
        LearnedForm | None, in_method(help="Form of the regulators that are learned; default: sigmoid.")
    ] = None,
    control_weight: Annotated[
        float | None,
        in_method(min=0, help="Weight of keeping control texts as they are; default: 0.3, preference 3, imitate 1."),
    ] = None,
    sparsity: Annotated[float, in_method(min=0, help="Weight of the sparse group lasso; 0 is dense.")] = 0.0,
    beta: Annotated[float | None, in_method(help="DPO beta (1/nats); larger saturates earlier; default: 0.1.")] = None,
    pairs_per_step: Annotated[
        int | None, in_training(min=1, help="Pairs, and control texts, per step of preference or imitate; default: 16.")
    ] = None,
    new_tokens: Annotated[
        int | None, in_training(min=1, help="Most tokens per answer that imitate samples; default: 64.")
    ] = None,
    steps: Annotated[
        int,
        in_training(min=1, help="Optimizer steps: full batch, or --pairs-per-step pairs (preference, imitate)."),
    ] = 50,
    start: Annotated[
        str,
        in_method(
            help="Where to start: fitted or scratch regulators, or a Steering to train further.",
            autocompletion=offering(STARTS),
        ),
    ] = "fitted",
    start_strength: Annotated[
        float,
        in_method(
            callback=options.finite, help="Factor on the Steering to start from, such as 0.1 for one of dsas fit."
        ),
    ] = 1.0,
    regulator: Annotated[
        str | None, in_method(help="Regulator to fit for the transforms of lineas.", autocompletion=regulators)
    ] = None,
    sites: options.Sites = ["norm"],  # noqa: B006
    optimiser: Annotated[OptimiserName, in_training(help="Optimizer.")] = "adam",
    rate: Annotated[float, in_training(help="Learning rate of the transforms.")] = 0.003,
    regulator_rate: Annotated[float, in_training(help="Learning rate of the regulators.")] = 0.003,
    held_out: Annotated[
        float, in_training(min=0, max=0.5, help="Share of the texts held out to decide when to stop.")
    ] = 0.2,
    batch_size: Annotated[
        int, in_model(min=1, help="Texts per forward pass; gradients accumulate over all texts.")
    ] = 32,
    checkpointing: Annotated[
        bool, in_model(help="Use less memory, at the cost of one more forward pass per step.")
    ] = False,
    tensorboard: Annotated[bool, in_output(help="Also write TensorBoard events.")] = False,
    seed: Annotated[
        int, in_training(min=0, max=LARGEST_SEED, help="Seed of the train/held-out split and the pair order.")
    ] = 0,
    tokens: options.Tokens = "auto",
    system: options.System = None,
    template_args: options.TemplateArgs = options.NO_ARGS,
    parts: options.Parts = options.ALL_PARTS,
    field: options.Field = DEFAULT_FIELD,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    table: options.Table = None,
    as_json: options.AsJson = False,
) -> None:
    """Learn a Steering by gradients through the model; Ctrl-C keeps the best so far, and a rerun resumes.

    Under `torchrun -m dsas.cli train ...` its processes share the work.
    """
    folder = _start_folder(start, start_strength)
    chat = chat_of(system, template_args, parts)
    unwanted = read_examples(source, field, half="rejected") if source else []
    wanted = read_examples(target, field, half="chosen") if target else None
    neutral = read_examples(control, field) if control else []
    check_out(out)
    check_table(table)
    check_methods([], [regulator] if regulator is not None else [])
    OBJECTIVES.check(objective)
    _check_sets(objective, source, target, instruction)
    check_model(model)
    import dsas
    from dsas.training.ranks import is_first

    given = {
        "regulator_form": regulator_form, "control_weight": control_weight, "sparsity": sparsity, "beta": beta,
        "pairs_per_step": pairs_per_step, "regulator": regulator, "instruction": instruction, "new_tokens": new_tokens,
    }  # fmt: skip
    made = objective_named(objective, {name: value for name, value in given.items() if value is not None})
    begin = cast("Start", start) if folder is None else dsas.Steering.from_pretrained(folder)
    loaded = loaded_model(model, device, precision)
    steering = dsas.train(
        *loaded,
        source=unwanted,
        target=wanted,
        control=neutral,
        objective=replace(made, seed=seed) if "seed" in made.as_dict() else made,
        steps=steps,
        start=start_strength * begin if isinstance(begin, dsas.Steering) and start_strength != 1 else begin,
        sites=sites,
        optimiser=dsas.Optimiser(optimiser, rate, regulator_rate),
        held_out=dsas.HeldOut(held_out, seed=seed),
        reading=dsas.Reading(tokens, batch_size=batch_size, chat=chat),
        checkpoint=out / "training",
        running=dsas.Running(checkpointing=checkpointing, tensorboard=tensorboard, progress=not as_json),
    )
    if is_first():
        steering.save_pretrained(out)
        write_sites(table, steering)
        show(steering, as_json, saved=str(out), log=str(out / "training" / "log.csv"))
    if steering.settings["training"]["stopped"] == "interrupted":
        raise typer.Exit(130)


def _check_sets(objective: str, source: Path | None, target: Path | None, instruction: str | None) -> None:
    """Raise OptionError for sets that the objective needs and did not get, or makes itself."""
    if objective != "imitate" and (source is None or target is None):
        raise OptionError(f"--objective {objective} needs --source and --target: files of texts or conversations")
    if objective == "imitate" and not (instruction or "").strip():
        raise OptionError('--objective imitate needs --instruction, such as "Answer politely."')
    if objective == "imitate" and target is not None:
        raise OptionError("--objective imitate draws its target from the model itself: remove --target")


def _start_folder(start: str, strength: float) -> Path | None:
    if start in STARTS:
        if strength != 1:
            raise OptionError(f"--start-strength needs a Steering to start from, and --start is {start!r}")
        return None
    try:
        return steering_folder(start)
    except ArtifactError as error:
        raise OptionError(f"--start must be fitted, scratch or a Steering: {error}") from error
