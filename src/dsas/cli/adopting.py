"""Adopt and export: vectors that others published, with a regulator around them, and Steerings in others' formats."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dsas.cli import options
from dsas.cli.app import app
from dsas.cli.calibration import budget_of
from dsas.cli.checks import check_methods, check_model, check_out, check_strength, check_table
from dsas.cli.examples import chat_of, kinds_of_examples, read_examples
from dsas.cli.models import loaded_model
from dsas.cli.options import REPEATABLE, STEERING, in_method, in_model, in_output, in_texts
from dsas.cli.output import say, say_json, show
from dsas.errors import OptionError
from dsas.files.json_values import JsonObject
from dsas.files.text_files import DEFAULT_FIELD
from dsas.files.tidy_tables import write_rows
from dsas.steering.folder import steering_folder

if TYPE_CHECKING:
    from dsas import Steering
    from dsas.model.conversation import Content
    from dsas.model.loading import LoadedModel


@app.command(
    epilog="Example: `dsas adopt happy.gguf --model ./model --source rude.txt --control clean.txt --out happy`"
)
def adopt(
    vectors: Annotated[
        str,
        typer.Argument(
            help="Published vectors: a .gguf, .pt, .safetensors, .csv or .statedict file, or a folder of these."
        ),
    ],
    model: Annotated[str, in_model(help="Folder, hub id or .gguf file of the model that they are for.")],
    out: options.Out,
    source: Annotated[
        Path | None, in_texts(help="Texts or conversations in which to steer; not with --regulator constant.")
    ] = None,
    control: Annotated[Path | None, in_texts(help="Texts of the same style that must stay as they are.")] = None,
    sites: Annotated[
        list[str], in_method(help=f"Layers and other sites whose vectors are adopted; default: all. {REPEATABLE}")
    ] = [],  # noqa: B006
    regulator: options.Regulator = "auto",
    tune: Annotated[
        list[str], in_texts(help=f"Neutral texts used to choose the strength: [KIND=]FILE. {REPEATABLE}")
    ] = [],  # noqa: B006
    held_out: Annotated[
        list[str], in_texts(help=f"Other neutral texts, used to check the strength: [KIND=]FILE. {REPEATABLE}")
    ] = [],  # noqa: B006
    budget: Annotated[
        list[str], in_method(help=f"Damage that the strength may do: perplexity=RATIO or kl=NATS. {REPEATABLE}")
    ] = ["perplexity=1.05"],  # noqa: B006
    tokens: options.Tokens = "auto",
    system: options.System = None,
    template_args: options.TemplateArgs = options.NO_ARGS,
    field: options.Field = DEFAULT_FIELD,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    table: options.Table = None,
    as_json: options.AsJson = False,
) -> None:
    """Fit a regulator around published vectors, so that they are added only where the behaviour is.

    Strength 1 is what was published. With --tune and --held-out the strength is calibrated, too. The command prints how
    well each layer separates source from control, and the damage to held-out (or else control) texts with and without
    the regulator.
    """
    needed = regulator != "constant"
    if needed != (source is not None) or needed != (control is not None):
        what = "--source and --control are needed" if needed else "--source and --control are not read"
        raise OptionError(f"{what} with --regulator {regulator}")
    if bool(tune) != bool(held_out):
        raise OptionError("the strength is calibrated with --tune and --held-out together: give both, or neither")
    allowed, chat = [budget_of(text) for text in budget], chat_of(system, template_args)
    unwanted, neutral = ([] if path is None else read_examples(path, field) for path in (source, control))
    kinds = [kinds_of_examples(given, field, chat) for given in (tune, held_out)]
    check_methods([], [regulator])
    check_out(out)
    check_table(table)
    check_model(model)
    import dsas
    from dsas.formats.adopting import adopted_rows, damage_to

    dsas.read_vectors(vectors)
    loaded = loaded_model(model, device, precision)
    reading = dsas.Reading(tokens, chat=chat)
    sets = {"source": unwanted, "control": neutral}
    how = {"sites": sites or None, "regulator": regulator, "reading": reading, "progress": not as_json}
    steering = dsas.adopt(vectors, *loaded, **sets, **how)  # pyright: ignore[reportArgumentType]
    if tune:
        budgets = [dsas.Budget(damage, most) for damage, most in allowed]  # pyright: ignore[reportArgumentType]
        steering = steering.calibrated(
            dsas.calibrate(*loaded, steering, tune=kinds[0], held_out=kinds[1], budget=budgets, progress=not as_json)
        )
    steering.save_pretrained(out)
    extra, rows = JsonObject(saved=str(out)), adopted_rows(steering)
    if needed:
        texts = [text for some in kinds[1].values() for text in some] or neutral
        found = damage_to(*loaded, steering, texts)
        rows += found.rows()
        told = f"of {len(texts)} {'held-out' if tune else 'control'} texts, {found.line()}"
        extra["damage"] = found._asdict() if as_json else told
    if table is not None:
        write_rows(table, rows)
    show(steering, as_json, **extra)


@app.command(epilog="Example: `dsas export calm/ --gguf calm.gguf --strength 0.8`")
def export(
    steering: Annotated[str, typer.Argument(help=STEERING)],
    gguf: Annotated[
        Path | None, in_output(help="Control vector to write, for llama.cpp, repeng and EasySteer.")
    ] = None,
    merged: Annotated[
        Path | None, in_output(help="Folder for --model with the Steering in its weights, for plain transformers.")
    ] = None,
    strength: Annotated[
        float | None, in_method(help="Factor on the vectors; default: the calibrated strength, or 1.")
    ] = None,
    mean_gain: Annotated[
        Path | None,
        in_texts(help="With --gguf: texts to average each regulator over; its mean applies at every token."),
    ] = None,
    model: Annotated[
        str | None, in_model(help="Folder, hub id or .gguf file of the model; with --mean-gain or --merged.")
    ] = None,
    field: options.Field = DEFAULT_FIELD,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Write a Steering in another format; what the format cannot hold is refused, with the rule and the reason.

    --gguf writes vectors that are added to every token at layer outputs. --merged writes a model whose weights contain
    the Steering; it needs constant regulators, at sites with a linear layer behind them.
    """
    if (gguf is None) == (merged is None):
        raise OptionError("give either --gguf FILE or --merged FOLDER")
    if (mean_gain is None and merged is None) != (model is None):
        raise OptionError("--mean-gain and --merged need --model, and --model needs one of them")
    if mean_gain is not None and merged is not None:
        raise OptionError("--mean-gain cannot be combined with --merged: weights have no regulator to average")
    texts = read_examples(mean_gain, field) if mean_gain else []
    if gguf is not None and (gguf.is_dir() or not gguf.parent.is_dir()):
        raise OptionError(f"--gguf: expected a file in a folder that exists, got {str(gguf)!r}")
    if merged is not None:
        check_out(merged)
    check_strength(strength)
    if model is not None:
        check_model(model)
    stored = steering_folder(steering)
    import dsas
    from dsas.evaluation.generations import Sampling, sample_continuations

    chosen, gains = dsas.Steering.from_pretrained(stored), dict[str, float]()
    loaded = None if model is None else loaded_model(model, device, precision)
    if gguf is not None:
        gains = {} if loaded is None else _gains(loaded, chosen, texts)
        dsas.write_gguf(chosen, gguf, strength=strength, gains=gains)
    elif merged is not None and loaded is not None:
        with chosen.fuse(loaded.model, strength) as fused:
            sample_continuations(*loaded, ["The"], seeds=(0,), sampling=Sampling(new_tokens=1))  # reports an overflow
            fused.save_pretrained(merged)
        loaded.tokenizer.save_pretrained(merged)
    if as_json:
        say_json({"saved": str(gguf or merged), "mean_gains": gains})
    else:
        say(f"saved: {gguf or merged}")


def _gains(loaded: "LoadedModel", steering: "Steering", texts: "list[Content]") -> dict[str, float]:
    """Return the mean value of the regulator at each site that is steered, over all tokens of the texts."""
    from dsas.evaluation.firing import fires_on

    report = fires_on(*loaded, steering, {"texts": texts}, max_tokens=512)
    return dict(zip(report.sites, report.by_site["texts"], strict=True))
