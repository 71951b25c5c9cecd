"""Port: check whether a Steering still tells source from control on a related model, and store it for that one."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dsas.cli import options
from dsas.cli.app import app
from dsas.cli.calibration import budget_of
from dsas.cli.checks import check_model, check_out, check_table
from dsas.cli.examples import chat_of, kinds_of_examples, read_examples
from dsas.cli.models import loaded_model
from dsas.cli.options import REPEATABLE, STEERING, in_method, in_output, in_texts
from dsas.cli.output import say, say_json, show_table
from dsas.errors import OptionError
from dsas.files.text_files import DEFAULT_FIELD
from dsas.files.tidy_tables import write_rows
from dsas.steering.folder import steering_folder

if TYPE_CHECKING:
    from dsas.steering.porting import Ported


@app.command(
    "port", epilog="Example: `dsas port detox/ ./tuned --source rude.txt --control clean.txt --out detox-tuned`"
)
def port(
    steering: Annotated[str, typer.Argument(help=STEERING)],
    model: options.Model,
    source: options.Source,
    control: options.Control,
    least: Annotated[float, in_method(min=0.0, max=1.0, help="Least AUROC at which a site counts as intact.")] = 0.75,
    tune: Annotated[
        list[str], in_texts(help=f"Neutral texts used to choose the strength again: [KIND=]FILE. {REPEATABLE}")
    ] = [],  # noqa: B006
    held_out: Annotated[
        list[str], in_texts(help=f"Other neutral texts, used to check the strength: [KIND=]FILE. {REPEATABLE}")
    ] = [],  # noqa: B006
    budget: Annotated[
        list[str], in_method(help=f"Damage that the strength may do: perplexity=RATIO or kl=NATS. {REPEATABLE}")
    ] = ["perplexity=1.05"],  # noqa: B006
    out: Annotated[Path | None, in_output(help="Folder to write the Steering to, adjusted to this model.")] = None,
    tokens: options.Tokens = "auto",
    system: options.System = None,
    template_args: options.TemplateArgs = options.NO_ARGS,
    field: options.Field = DEFAULT_FIELD,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    table: options.Table = None,
    as_json: options.AsJson = False,
) -> None:
    """Test at each site whether the regulator still separates source from control on another model of the family.

    Use texts that the Steering was not fitted on. With --tune and --held-out the strength is calibrated as well.
    """
    if bool(tune) != bool(held_out):
        raise OptionError("the strength is calibrated with --tune and --held-out together: give both, or neither")
    allowed = [budget_of(text) for text in budget]
    chat = chat_of(system, template_args)
    unwanted, neutral = read_examples(source, field, half="rejected"), read_examples(control, field)
    tuned, checked = kinds_of_examples(tune, field, chat), kinds_of_examples(held_out, field, chat)
    stored = steering_folder(steering)
    if out is not None:
        check_out(out)
    check_table(table)
    check_model(model)
    import dsas

    loaded = loaded_model(model, device, precision)
    reading = dsas.Reading(tokens, chat=chat)
    found = dsas.Steering.from_pretrained(stored).port(
        *loaded, source=unwanted, control=neutral, least=least, reading=reading
    )
    ported = found.steering
    if tune:
        budgets = [dsas.Budget(damage, most) for damage, most in allowed]  # pyright: ignore[reportArgumentType]
        calibration = dsas.calibrate(
            *loaded, ported, tune=tuned, held_out=checked, budget=budgets, progress=not as_json
        )
        ported = ported.calibrated(calibration)
    if out is not None:
        ported.save_pretrained(out)
    if table is not None:
        write_rows(table, [site._asdict() for site in found.sites])
    if as_json:
        sites = [site._asdict() for site in found.sites]
        told = {"verdict": found.verdict, "differences": found.differences, "sites": sites, "strength": ported.strength}
        say_json({**told, "saved": None if out is None else str(out)})
    else:
        _show(found, ported.strength, out)


def _show(found: "Ported", strength: float | None, out: Path | None) -> None:
    say(f"the model differs: {'; '.join(found.differences)}" if found.differences else "it was fitted on this model")
    show_table(
        ("site", "AUROC", "on source", "on control", "weight"),
        [
            (
                site.site,
                "-" if site.auroc is None else f"{site.auroc:.3f} ({site.low:.3f} to {site.high:.3f})",
                f"{site.on_source:.3g}",
                f"{site.on_control:.3g}",
                f"{site.weight:.3g}",
            )
            for site in found.sites
        ],
    )
    say(f"verdict: {found.verdict}" + (f": {', '.join(found.refit())}" if found.refit() else ""))
    if strength is not None:
        say(f"strength: {strength:.4g}")
    if out is not None:
        say(f"saved: {out}")
