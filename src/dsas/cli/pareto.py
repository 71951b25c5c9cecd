"""Pareto: toxicity against damage, for several methods over the same strengths, prompts and texts."""

import shlex
import sys
import warnings
from functools import partial
from itertools import combinations, product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dsas.cli import options
from dsas.cli.app import app
from dsas.cli.checks import check_enough, check_methods, check_model, check_out, check_scorers, folders_by_name
from dsas.cli.choices import SCORERS, offering, regulators, transforms
from dsas.cli.examples import chat_of, kinds_of_examples, read_examples
from dsas.cli.models import loaded_model
from dsas.cli.options import REPEATABLE, STEERING, in_method, in_output, in_texts
from dsas.cli.output import say, say_json
from dsas.errors import DsasWarning, OptionError, TextsError
from dsas.files.text_files import DEFAULT_FIELD, read_texts
from dsas.model.chat import Chat
from dsas.model.conversation import Content, Half

if TYPE_CHECKING:
    from dsas.evaluation.choice import Question
    from dsas.model.loading import LoadedModel
    from dsas.sweep.jobs import Part
    from dsas.sweep.run import Chosen, Series

KL_TEXTS = 25
HALVES: dict[str, Half] = {"source": "rejected", "target": "chosen"}  # in files of pairs
STRENGTHS = [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64]
in_measures = partial(typer.Option, rich_help_panel="Measures")


@app.command(
    epilog="Example: `dsas pareto ./model --source rude.txt --control plain.txt --target polite.txt --prompts ask.txt "
    "--tune a.txt --neutral b.txt --transform caa --transform iti --out front`"
)
def pareto(
    model: options.Model,
    prompts: Annotated[Path, in_texts(help="Prompts to continue, none of them used for fitting.")],
    tune: Annotated[list[str], in_texts(help=f"Neutral texts used to choose the strengths: [KIND=]FILE. {REPEATABLE}")],
    neutral: Annotated[list[str], in_texts(help=f"Other neutral texts, to report on: [KIND=]FILE. {REPEATABLE}")],
    out: Annotated[Path, in_output(help="Folder for samples and report.")],
    source: Annotated[Path | None, in_texts(help="Texts with the undesired behaviour, to fit on.")] = None,
    control: Annotated[Path | None, in_texts(help="Neutral texts that must stay as they are, to fit on.")] = None,
    target: options.Target = None,
    held_out_source: Annotated[
        Path | None,
        in_texts(help="Other texts with the undesired behaviour, used by no fit, to measure selectivity on."),
    ] = None,
    transform: Annotated[
        list[str],
        in_method(help=f"A name; each is fitted with every --regulator. {REPEATABLE}", autocompletion=transforms),
    ] = ["caa"],  # noqa: B006
    regulator: Annotated[
        list[str], in_method(help=f"A name, or a product of names, a*b. {REPEATABLE}", autocompletion=regulators)
    ] = ["constant", "logistic"],  # noqa: B006
    steering: Annotated[list[Path], in_method(help=f"{STEERING} It is swept as well. {REPEATABLE}")] = [],  # noqa: B006
    nulls: Annotated[
        bool,
        in_method(
            help="Beside each series that adds vectors, sweep a random and the opposite direction at its KL divergence."
        ),
    ] = False,
    sites: options.Sites = ["residual"],  # noqa: B006
    strength: Annotated[
        list[float],
        in_method(callback=options.finite, help=f"Strengths to sweep, the same for all methods. {REPEATABLE}"),
    ] = STRENGTHS,
    seeds: Annotated[int, in_measures(min=1, help="Continuations per prompt.")] = 3,
    budget: Annotated[
        float, in_measures(help="Largest perplexity ratio (steered/unsteered) on --tune allowed.")
    ] = 1.05,
    limit: Annotated[float, in_measures(help="Skip strengths whose perplexity ratio exceeds this.")] = 1.6,
    scorer: Annotated[
        list[str],
        in_measures(
            help=f"A packaged scorer, or a classifier as ID[@LABEL]. {REPEATABLE}", autocompletion=offering(SCORERS)
        ),
    ] = list(SCORERS),  # noqa: B006
    judge: Annotated[str, in_measures(help="Another language model that judges the continuations.")] = "",
    questions: Annotated[
        Path | None, in_measures(exists=True, dir_okay=False, help=".jsonl with prompt, choices and answer (a number).")
    ] = None,
    new_tokens: options.NewTokens = 32,
    chat: options.Chat = False,
    system: options.System = None,
    template_args: options.TemplateArgs = options.NO_ARGS,
    workers: options.Workers = 1,
    ray: options.Ray = "",
    show_words: Annotated[bool, in_output(help="Do not mask toxic words in the report.")] = False,
    field: options.Field = DEFAULT_FIELD,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Sweep methods over strengths and seeds, and report toxicity against damage; a rerun resumes."""
    files, talk = _given(source, control, target, steering), chat_of(system, template_args)
    asked = read_texts(prompts, field=field)
    sets, texts, unwanted = _read(files, {"tune": tune, "neutral": neutral}, held_out_source, field, talk)
    _check_sets(sets, texts, asked, unwanted)
    folders = folders_by_name(steering)
    check_methods(transform, regulator)
    check_scorers(scorer)
    check_out(out)
    for name in filter(None, (model, judge)):
        check_model(name)
    import dsas
    from dsas.evaluation.choice import read_questions
    from dsas.evaluation.generations import Sampling
    from dsas.model.chat_template import chat_prompts
    from dsas.model.identity import fingerprint
    from dsas.reports.pareto import write_pareto_report
    from dsas.sweep.jobs import Setup, scorer_of
    from dsas.sweep.run import Grid, Series, run_sweep

    quiz = {questions.stem: read_questions(questions)} if questions else {}
    stored = [Series(name, dsas.Steering.from_pretrained(folders[name]), "stored", "stored") for name in folders]
    for name in scorer:
        scorer_of(name, device=device)
    loaded = loaded_model(model, device, precision)
    # all pairs share one checkpoint, so activations are collected once
    fit = partial(
        dsas.fit, *loaded, **sets, sites=sites, reading=dsas.Reading(chat=talk), checkpoint=out / "collected",
        progress=not as_json,
    )  # fmt: skip
    pairs = product(transform, regulator) if sets else ()
    fitted = [Series(f"{how} + {when}", fit(transform=how, regulator=when), how, when) for how, when in pairs]
    swept = [*fitted, *stored, *_nulls([*fitted, *stored] if nulls else [], loaded, texts["tune"], strength)]
    asked = chat_prompts(loaded.tokenizer, asked, talk) if chat else asked
    spread = dsas.Spread(workers, ray)
    setup = Setup(
        model, fingerprint(loaded.model), prompts=tuple(asked), parts=_parts(texts, quiz, unwanted),
        scorers=tuple(scorer), judge=judge, sampling=Sampling(new_tokens=new_tokens, special_tokens=not chat),
        device=device, precision=precision, threads=spread.threads,
    )  # fmt: skip
    chosen = run_sweep(
        out,
        setup,
        [one._replace(strengths=tuple(strength)) for one in swept],
        grid=Grid(tuple(range(seeds)), budget, limit),
        spread=spread,
        command=shlex.join(["dsas", *sys.argv[1:]]),
        progress=not as_json,
    )
    write_pareto_report(out, show_words=show_words)
    _show(chosen, out, as_json)


def _nulls(
    series: "list[Series]", loaded: "LoadedModel", tune: dict[str, list[Content]], strengths: list[float]
) -> "list[Series]":
    """Return the null directions of the series that add vectors, matched on tuning texts in the middle of the grid."""
    from dsas.sweep.nulls import adds_vectors, matched_nulls
    from dsas.sweep.run import Series

    texts = [text for some in tune.values() for text in some[:KL_TEXTS]]
    middle = sorted(strengths)[len(strengths) // 2]
    found = []
    for one in series:
        if not adds_vectors(one.steering):
            warnings.warn(f"{one.name} does more than add vectors, so it has no nulls", DsasWarning, stacklevel=2)
            continue
        for what, null in matched_nulls(*loaded, one.steering, texts, strength=middle).by_name.items():
            found.append(Series(f"{one.name}, {what}", null.steering, f"{one.transform}, {what}", one.regulator))
    return found


def _show(chosen: "dict[str, Chosen]", out: Path, as_json: bool) -> None:
    if as_json:
        say_json({"chosen": {name: found.strength for name, found in chosen.items()}, "out": str(out)})
        return
    for name, found in chosen.items():
        said = "no strength of the grid keeps the budget" if found.strength is None else f"strength {found.strength:g}"
        say(f"{name}: {said}")
    say(f"report: {out / 'report.html'}")


def _given(source: Path | None, control: Path | None, target: Path | None, steering: list[Path]) -> dict[str, Path]:
    """Return the files to fit on. Raises OptionError when only some are given, or neither files nor a Steering."""
    files = {"source": source, "control": control, "target": target or control}
    given = {name: file for name, file in files.items() if file is not None}
    if len(given) < len(files) and (given or not steering):
        raise OptionError("give --source and --control to fit on, or --steering with a fitted Steering")
    return given


def _read(
    files: dict[str, Path], kinds: dict[str, list[str]], unwanted: Path | None, field: str, chat: Chat
) -> tuple[dict[str, list[Content]], dict[str, dict[str, list[Content]]], list[Content]]:
    """Return the sets to fit on, the texts to read by part and kind, and the held-out texts with the behaviour."""
    sets = {name: read_examples(file, field, chat=chat, half=HALVES.get(name)) for name, file in files.items()}
    texts = {part: kinds_of_examples(given, field, chat) for part, given in kinds.items()}
    return sets, texts, read_examples(unwanted, field, chat=chat) if unwanted else []


def _check_sets(
    sets: dict[str, list[Content]],
    texts: dict[str, dict[str, list[Content]]],
    prompts: list[str],
    unwanted: list[Content],
) -> None:
    """Raise TextsError for a text that serves two purposes, and for too few texts to measure selectivity on."""
    parts = {
        "--held-out-source": set(unwanted),
        "the texts to fit on": {text for some in sets.values() for text in some},
        **{f"--{name}": {text for some in kinds.values() for text in some} for name, kinds in texts.items()},
        "--prompts": set(prompts),
    }
    for (one, first), (other, second) in combinations(parts.items(), 2):
        if shared := first & second:
            raise TextsError(f"{len(shared)} texts are in both {one} and {other}: what is reported must be held out")
    if unwanted:
        kinds = {f"--neutral {kind}=...": some for kind, some in texts["neutral"].items()}
        check_enough({"--held-out-source": unwanted, **kinds})


def _parts(
    texts: dict[str, dict[str, list[Content]]], quiz: "dict[str, tuple[Question, ...]]", unwanted: list[Content]
) -> "dict[str, Part]":
    """Return what is read to choose strengths, and what to report; KL takes two passes, so it reads fewer texts."""
    from dsas.sweep.jobs import Part

    tune, report = ({kind: tuple(some) for kind, some in kinds.items()} for kinds in texts.values())
    first = {kind: some[:KL_TEXTS] for kind, some in report.items()}
    return {"tune": Part(tune), "report": Part(report, first, quiz, tuple(unwanted))}
