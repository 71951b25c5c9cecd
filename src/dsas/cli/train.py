"""Train: make a Steering from texts by gradients through the model."""

from pathlib import Path
from typing import Annotated

import typer

import dsas
from dsas.cli.options import AsJson, Device, Field, Model, Precision, app, hide_foreign_bars, show
from dsas.errors import ArtifactError, OptionError
from dsas.files.text_files import DEFAULT_FIELD, read_texts
from dsas.model.loading import load_model
from dsas.model.reading import Reading
from dsas.training.gradients import Start
from dsas.training.ranks import is_first


@app.command(
    epilog="Example: `dsas train ./model --source rude.txt --control plain.txt --target polite.txt --out detox "
    "--objective e2e-dsas --gate relu`"
)
def train(
    model: Model,
    source: Annotated[Path, typer.Option(help="Texts with the undesired behaviour: .txt, .jsonl or .csv.")],
    target: Annotated[
        Path, typer.Option(help="Texts with the desired behaviour; line i goes with line i of source for preference.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write the Steering to; log and state go to OUT/training.")],
    control: Annotated[Path | None, typer.Option(help="Neutral texts that must stay as they are.")] = None,
    objective: Annotated[str, typer.Option(help="lineas (how), e2e-dsas (how and when) or preference.")] = "lineas",
    gate: Annotated[str, typer.Option(help="Form of regulators that are learned: sigmoid or relu.")] = "sigmoid",
    gamma: Annotated[
        float | None, typer.Option(help="Weight of keeping control texts as they are; 0.3, or 3 for preference.")
    ] = None,
    sparsity: Annotated[float, typer.Option(help="Weight of the sparse group lasso; 0 is dense.")] = 0.0,
    beta: Annotated[float, typer.Option(help="How soon a pair is preferred enough, in one over nats.")] = 0.1,
    per_step: Annotated[int, typer.Option(help="Pairs, and control texts, that a step of preference takes.")] = 16,
    steps: Annotated[int, typer.Option(help="Steps, each over all texts but with preference.")] = 50,
    start: Annotated[
        str, typer.Option(help="Where regulators start: fitted or scratch; or a Steering to go on from.")
    ] = "fitted",
    start_strength: Annotated[
        float, typer.Option(help="How much of the Steering to start from, such as 0.1 of what dsas fit gave.")
    ] = 1.0,
    regulator: Annotated[str, typer.Option(help="Put this fitted regulator before lineas's transforms.")] = "constant",
    sites: Annotated[list[str], typer.Option(help="Shorthand, path, glob or re:...; repeatable.")] = ["norm"],  # noqa: B006
    optimiser: Annotated[str, typer.Option(help="adam or sgd.")] = dsas.Optimiser().name,
    rate: Annotated[float, typer.Option(help="Learning rate of the transforms.")] = dsas.Optimiser().rate,
    regulator_rate: Annotated[float, typer.Option(help="And of the regulators.")] = dsas.Optimiser().regulator_rate,
    held_out: Annotated[float, typer.Option(help="Share of the texts that decide when to stop.")] = 0.2,
    batch_size: Annotated[int, typer.Option(help="Texts a forward pass; the gradient is that of all texts.")] = 32,
    checkpointing: Annotated[bool, typer.Option(help="Less memory for one more forward pass a step.")] = False,
    tensorboard: Annotated[bool, typer.Option(help="Write TensorBoard events too.")] = False,
    seed: Annotated[
        int, typer.Option(help="Of the split into learned-from and held-out texts, and of the pairs' order.")
    ] = 0,
    field: Field = DEFAULT_FIELD,
    device: Device = "auto",
    precision: Precision = "auto",
    as_json: AsJson = False,
) -> None:
    """Learn a Steering by gradients through the model; Ctrl-C keeps the best so far, and running it again goes on.

    Under `torchrun -m dsas.cli train ...` its processes share the work.
    """
    hide_foreign_bars()
    loaded = load_model(model, device=device, precision=precision)
    steering = dsas.train(
        loaded.model,
        loaded.tokenizer,
        source=read_texts(source, field=field),
        target=read_texts(target, field=field),
        control=read_texts(control, field=field) if control else (),
        objective=objective,  # pyright: ignore[reportArgumentType]
        gate=gate,  # pyright: ignore[reportArgumentType]
        gamma=gamma,
        sparsity=sparsity,
        beta=beta,
        per_step=per_step,
        steps=steps,
        start=_start(start, start_strength),
        regulator=regulator,
        sites=sites,
        optimiser=dsas.Optimiser(optimiser, rate, regulator_rate),  # pyright: ignore[reportArgumentType]
        held_out=dsas.HeldOut(held_out),
        reading=Reading(batch_size=batch_size),
        checkpointing=checkpointing,
        checkpoint=out / "training",
        tensorboard=tensorboard,
        seed=seed,
        progress=not as_json,
    )
    if is_first():
        steering.save_pretrained(out)
        show(steering, as_json, saved=str(out), log=str(out / "training" / "log.csv"))
    if steering.settings["training"]["stopped"] == "interrupted":
        raise typer.Exit(130)


def _start(start: str, strength: float) -> Start:
    """Return where training starts, a Steering read from its folder or the hub if one is named."""
    if start == "fitted" or start == "scratch":
        if strength != 1:
            raise OptionError(f"--start-strength is of a Steering to start from, and --start is {start!r}")
        return start
    try:
        steering = dsas.Steering.from_pretrained(start)
    except ArtifactError as error:
        raise OptionError(f"--start must be fitted, scratch or a Steering: {error}") from error
    return steering if strength == 1 else strength * steering
