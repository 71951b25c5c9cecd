"""The tree: packages and tests where a reader looks for them, in files of readable size, and nothing asked twice."""

import ast
import inspect
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import dsas

TESTS = Path(__file__).parent
SOURCE = TESTS.parent / "src" / "dsas"
MODULES = sorted(path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py") if path.name != "__init__.py")

# Modules without a test file of their own name, and the file under tests/ that would fail if they broke: commands are
# tried beside one another, a contract by those who keep it, and small pieces by what is made of them.
HELD_BY = {
    "cli/__main__.py": "cli/test_fit_and_generate.py",
    "cli/app.py": "cli/test_first_second.py",
    "cli/calibration.py": "cli/test_calibrate_command.py",
    "cli/choices.py": "cli/test_options.py",
    "cli/demo.py": "demo/test_run.py",
    "cli/drafting.py": "cli/test_draft_command.py",
    "cli/explanation.py": "cli/test_explain_and_inspect.py",
    "cli/firing.py": "cli/test_explain_and_inspect.py",
    "cli/fitting.py": "cli/test_fit_and_generate.py",
    "cli/generation.py": "cli/test_fit_and_generate.py",
    "cli/images.py": "model/test_drawing.py",
    "cli/inspection.py": "cli/test_explain_and_inspect.py",
    "cli/models.py": "cli/test_fit_and_generate.py",
    "cli/playground.py": "demo/test_playground.py",
    "cli/release.py": "cli/test_check_command.py",
    "cli/selectivity.py": "cli/test_explain_and_inspect.py",
    "cli/porting.py": "cli/test_port_command.py",
    "cli/harness.py": "evaluation/test_lm_eval_model.py",
    "cli/adopting.py": "cli/test_adopt_command.py",
    "formats/published.py": "formats/test_torch_vectors.py",
    "cli/serving.py": "serving/test_cli_serve.py",
    "cli/training.py": "training/test_gradients.py",
    "errors.py": "model/test_sites.py",
    "testing/newer_pipelines.py": "model/test_guidance.py",
    "model/passed.py": "model/test_sequence.py",
    "methods/served_form.py": "serving/test_rule_rows.py",
    "serving/answers.py": "serving/test_engine.py",
    "serving/checking.py": "serving/test_cli_serve.py",
    "serving/features.py": "serving/test_runner.py",
    "serving/parts.py": "serving/test_tables.py",
    "serving/steps.py": "serving/test_runner.py",
    "evaluation/bag.py": "evaluation/test_scorers.py",
    "evaluation/harmful_requests.py": "evaluation/test_refusal_classifier.py",
    "evaluation/sentence_embeddings.py": "evaluation/test_refusal_classifier.py",
    "files/atomic.py": "steering/test_artifact.py",
    "fitting/collectors.py": "fitting/test_closed_form.py",
    "fitting/selection.py": "fitting/test_site_rule.py",
    "methods/base.py": "steering/test_serialization.py",
    "methods/tuned_boundary.py": "regulators/test_evidence.py",
    "model/by_thread.py": "model/test_token_recorder.py",
    "model/continuous_batching.py": "test_sequences.py",
    "model/hooks.py": "runtime/test_applied.py",
    "calibration/silence.py": "calibration/test_largest_strength.py",
    "model/instruction.py": "drafting/test_prompts.py",
    "model/layers.py": "model/test_sites.py",
    "model/labelled_tokens.py": "fitting/test_closed_form.py",
    "model/language_model.py": "fitting/test_closed_form.py",
    "model/linear_layers.py": "runtime/test_fuse.py",
    "model/picture_activations.py": "model/test_drawing.py",
    "model/picture_passes.py": "model/test_image_pipeline.py",
    "model/pipeline_modules.py": "model/test_image_pipeline.py",
    "model/strength.py": "steering/test_steering.py",
    "model/subject.py": "model/test_image_pipeline.py",
    "model/token_batches.py": "fitting/test_collect.py",
    "model/token_trace.py": "runtime/test_generating.py",
    "model/weights.py": "model/test_relatives.py",
    "model/wrappers.py": "model/test_relatives.py",
    "parallel/foreign_imports.py": "test_process_state.py",
    "regulators/base.py": "regulators/test_evidence.py",
    "regulators/probe.py": "regulators/test_evidence.py",
    "reports/estimates.py": "reports/test_pareto_report.py",
    "reports/panels.py": "reports/test_front.py",
    "reports/rounding.py": "reports/test_pareto_report.py",
    "reports/wording.py": "reports/test_picture_page.py",
    "runtime/site_report.py": "steering/test_unchanged.py",
    "runtime/unchanged.py": "evaluation/test_firing.py",
    "serving/admission.py": "serving/test_engine.py",
    "serving/config.py": "serving/test_engine.py",
    "serving/reports.py": "serving/test_runner.py",
    "serving/tokens.py": "serving/test_modules.py",
    "serving/worker.py": "serving/test_engine.py",
    "steering/calibration_record.py": "calibration/test_largest_strength.py",
    "steering/folder.py": "steering/test_artifact.py",
    "sweep/jobs.py": "sweep/test_sweep.py",
    "sweep/lab.py": "sweep/test_sweep.py",
    "sweep/run.py": "sweep/test_sweep.py",
    "testing/sequences.py": "testing/test_law_steerings.py",
    "testing/drawings.py": "testing/test_law_steerings.py",
    "testing/laws.py": "testing/test_law_methods.py",
    "testing/passes.py": "testing/test_law_steerings.py",
    "testing/pipelines.py": "model/test_image_pipeline.py",
    "testing/watch.py": "testing/test_law_steerings.py",
    "testing/ways.py": "testing/test_law_steerings.py",
    "training/descent.py": "training/test_trainer.py",
    "training/learner.py": "training/test_trainer.py",
    "training/learning.py": "training/test_trainer.py",
    "training/answering.py": "training/objectives/test_imitate.py",
    "training/next_tokens.py": "training/objectives/test_preference.py",
    "training/objectives/base.py": "training/objectives/test_objectives.py",
    "training/objectives/e2e.py": "training/objectives/test_objectives.py",
    "training/objectives/lineas.py": "training/objectives/test_objectives.py",
    "training/passes.py": "training/test_trainer.py",
    "training/plan.py": "training/test_trainer.py",
    "training/run.py": "training/test_gradients.py",
    "training/sets.py": "training/objectives/test_preference.py",
    "transforms/base.py": "test_laws.py",
    "views/explained.py": "views/test_views.py",
    "views/explanation.py": "views/test_views.py",
    "views/figure.py": "views/test_views.py",
    "views/pictures.py": "reports/test_strips.py",
    "views/table.py": "views/test_views.py",
    "views/terminal.py": "views/test_views.py",
}

DRAWERS = {"common", "utils", "util", "helpers", "helper", "misc", "base_utils", "tools"}
TOP = ["errors.py", "public.py", "version.py"]
LONGEST_FILE, LONGEST_FUNCTION, MOST_PARAMETERS = 300, 50, 7
OF_VERBS = {"fit": 12, "train": 14}  # and every other function that `dsas` offers: as fit
# What tells a language model from a pipeline: only model/ may ask which of these it holds.
KINDS = (
    "LanguageModel", "ImagePipeline", "PipelineModules", "TextExamples", "PictureExamples", "Reading", "Drawing",
    "TokenPasses", "PicturePasses", "TokenRecorder", "PictureRecorder", "Trace", "Maps",
)  # fmt: skip


@cache
def tree(module: str) -> ast.Module:
    return ast.parse((SOURCE / module).read_text())


def functions(module: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def has_logic(module: str) -> bool:
    """Whether there is more in a module than constants, docstrings and classes that only say what they hold."""
    return any(not is_abstract(node) for node in functions(module))


def is_abstract(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether a function has a docstring and no body, as those of contracts have."""
    body = [part for part in node.body if not (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant))]
    return not body


def own_tests(module: str) -> list[Path]:
    """Return the test files in the same folder of tests/ that have the module's name among the words of theirs."""
    path = Path(module)
    named = re.compile(rf"test_(.*_)?{path.stem}(_.*)?\.py")
    return [file for file in sorted((TESTS / path.parent).glob("test_*.py")) if named.fullmatch(file.name)]


def test_no_two_tests_have_one_name_under_which_python_would_import_only_the_first() -> None:
    names = Counter(path.name for path in TESTS.rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []


def test_every_module_with_logic_has_its_tests_where_it_stands_or_it_is_said_where_else() -> None:
    assert [module for module in MODULES if has_logic(module) and not own_tests(module) and module not in HELD_BY] == []


def test_what_is_said_to_be_tested_elsewhere_is_there_has_no_tests_of_its_own_and_the_place_is_there() -> None:
    assert [module for module in HELD_BY if module not in MODULES or own_tests(module)] == []
    assert [place for place in HELD_BY.values() if not (TESTS / place).is_file()] == []


def test_every_room_of_tests_is_a_room_of_the_package() -> None:
    extra = {"golden", "browser", "docs", "scenes"}  # pages stand in docs/, the scenes are drawn in benchmarks/
    rooms = {path.parent.relative_to(TESTS).as_posix() for path in TESTS.rglob("test_*.py")} - {"."}
    assert sorted(room for room in rooms - extra if not (SOURCE / room).is_dir()) == []


def test_at_the_top_of_the_package_stand_rooms_and_nothing_loose() -> None:
    assert [module for module in MODULES if "/" not in module and module not in TOP] == []


def test_no_room_and_no_module_is_a_drawer() -> None:
    named = {part for module in MODULES for part in Path(module).with_suffix("").parts}
    assert sorted(named & DRAWERS) == []


def test_no_two_modules_of_one_room_and_no_room_and_module_have_one_name() -> None:
    rooms = {Path(module).parent.as_posix() for module in MODULES}
    assert [module for module in MODULES if module.removesuffix(".py") in rooms] == []


def test_no_public_function_has_the_name_of_a_module_or_room() -> None:
    """`import dsas.fit as f` must give a module or fail."""
    rooms = {path.name for path in SOURCE.iterdir() if path.is_dir()}
    taken = rooms | {Path(module).stem for module in MODULES if "/" not in module}
    assert sorted(taken & set(dsas.__all__)) == []


def test_every_file_can_be_read_at_a_sitting() -> None:
    counts = {module: len((SOURCE / module).read_text().splitlines()) for module in MODULES}
    assert {module: count for module, count in counts.items() if count > LONGEST_FILE} == {}


def test_every_function_fits_on_a_page_its_docstring_aside() -> None:
    long = {}
    for module in MODULES:
        for node in functions(module):
            docstring = node.body[0] if ast.get_docstring(node) is not None else None
            documented = 1 + (docstring.end_lineno or 0) - docstring.lineno if docstring is not None else 0
            begins = node.body[0].lineno if is_command(node) else node.lineno
            count = 1 + (node.end_lineno or 0) - begins - documented
            if count > LONGEST_FUNCTION:
                long[f"{module}:{node.name}"] = count
    assert long == {}


def is_command(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether a function is a command of the command line, whose parameters are its options."""
    return any(isinstance(call, ast.Call) and "command" in ast.unparse(call.func) for call in node.decorator_list)


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    given = node.args
    names = [one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    sets = ("source", "control", "target", "groups") if node.name == "fit" else ()  # what a method's fit is given
    return [name for name in names if name not in ("self", "cls", *sets)]


def test_options_that_belong_together_are_one_object_so_that_no_function_takes_many() -> None:
    verbs = {name for name in dsas.__all__ if inspect.isfunction(getattr(dsas, name))}
    many = {}
    for module in MODULES:
        top = {id(node) for node in tree(module).body}
        for node in functions(module):
            is_verb = node.name in verbs and id(node) in top
            most = OF_VERBS.get(node.name, OF_VERBS["fit"]) if is_verb else MOST_PARAMETERS
            count = len(parameters(node))
            if count > most and not is_command(node):
                many[f"{module}:{node.name}"] = count
    assert many == {}


def test_no_function_takes_whatever_it_is_given_unless_it_stands_in_for_another_one() -> None:
    """What is taken by names that are not known beforehand has a name itself: `options`, `arguments`, `inputs`."""
    loose = [
        f"{module}:{node.name}"
        for module in MODULES
        for node in functions(module)
        if node.args.kwarg is not None and node.args.kwarg.arg == "kwargs" and node.args.vararg is None
    ]
    assert loose == []


def test_only_the_room_of_models_asks_which_kind_of_model_it_holds() -> None:
    asked = re.compile(rf"isinstance\([^()]*,\s*\(?[^()]*\b({'|'.join(KINDS)})\b")
    found = [
        f"{module}:{number}"
        for module in MODULES
        if not module.startswith("model/")
        for number, line in enumerate((SOURCE / module).read_text().splitlines(), 1)
        if asked.search(line)
    ]
    assert found == []
