import json
import pickle
import subprocess
import sys
import time

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

import dsas
from dsas.errors import DsasWarning, OptionError, TextsError
from dsas.evaluation.choice import Question
from dsas.evaluation.generations import Sampling, sample_continuations
from dsas.evaluation.loss_curve import Yardstick
from dsas.evaluation.perplexity import perplexity
from dsas.model.identity import fingerprint
from dsas.model.loading import load_model
from dsas.parallel.workers import Spread
from dsas.sweep.curves import read_curves
from dsas.sweep.jobs import Job, Part, Setup, Worker, scorer_of
from dsas.sweep.run import Grid, Series, run_sweep

NEUTRAL = ("w3 w4 w5 w6", "w7 w8 w9", "w10 w11 w12 w13 w14")
PROMPTS = ("w3", "w4 w5", "w6 w7 w8")
STRENGTHS = (0.1, 0.4)
GRID = Grid(seeds=(0, 1), budget=1.05, limit=50.0)


@pytest.fixture
def setup(tmp_path, llama, tokenizer) -> Setup:
    """A sweep's setup on the tiny model, written to a folder as workers load it, with a tiny random scorer."""
    model, scorer = tmp_path / "model", tmp_path / "scorer"
    llama.save_pretrained(model)
    tokenizer.save_pretrained(model)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    labels = {"id2label": {0: "fine", 1: "toxic"}, "label2id": {"fine": 0, "toxic": 1}}
    BertForSequenceClassification(BertConfig(**sizes, vocab_size=90, **labels)).save_pretrained(scorer)
    tokenizer.__class__(tokenizer_object=tokenizer._tokenizer, pad_token="<end>").save_pretrained(scorer)
    questions = (Question("w3 w4", (" w5", " w6"), 0), Question("w7", (" w8 w9", " w10"), 1))
    parts = {
        "tune": Part(perplexity={"plain": NEUTRAL[:2]}),
        "report": Part(perplexity={"plain": NEUTRAL[2:]}, kl={"plain": NEUTRAL[2:]}, choice={"guess": questions}),
    }
    return Setup(
        model=str(model), fingerprint=fingerprint(llama), prompts=PROMPTS, parts=parts, scorers=(f"{scorer}@toxic",),
        judge=str(model), sampling=Sampling(new_tokens=5), device="cpu",
    )  # fmt: skip


@pytest.fixture
def series(llama, tokenizer) -> list[Series]:
    plain = [f"w{i} w5 w6" for i in range(40, 50)]
    texts = {"source": [f"w{i} w{i + 1} w3" for i in range(20, 30)], "control": plain, "target": plain}
    found = []
    for regulator in ("constant", "logistic"):
        steering = dsas.fit(
            llama, tokenizer, **texts, regulator=regulator, sites="residual", selection="all", progress=False
        )
        found.append(Series(f"caa + {regulator}", steering, "caa", regulator, STRENGTHS))
    return found


def samples(out) -> list[dict]:
    return [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]


def test_every_sample_is_what_the_measures_say_by_themselves(tmp_path, setup, series):
    chosen = run_sweep(tmp_path / "out", setup, series, grid=GRID, progress=False)
    loaded, found = load_model(setup.model), samples(tmp_path / "out")
    strength = max(chosen["caa + logistic"].strengths)
    with series[1].steering.apply(loaded.model, strength):
        texts = sample_continuations(*loaded, PROMPTS, seeds=(0, 1), sampling=setup.sampling)
        read = perplexity(*loaded, NEUTRAL[2:])
    mine = [line for line in found if (line["series"], line["strength"]) == ("caa + logistic", strength)]
    said = {(line["seed"], line["item"]): line for line in mine if line["measure"] == "generation"}
    assert [[said[seed, item]["text"] for item in range(3)] for seed in (0, 1)] == texts
    losses = [line for line in mine if line["measure"] == "loss"]
    assert [line["value"] for line in losses] == pytest.approx(read.losses)
    assert [line["tokens"] for line in losses] == read.tokens.tolist()
    assert {line["measure"]: 0 for line in mine}.keys() == {"generation", "loss", "kl", "choice"}
    assert [said[seed, 0]["judge"] is None for seed in (0, 1)] == [
        False,
        True,
    ]  # one seed is judged unless told otherwise
    (name,) = setup.scorers
    scorer = scorer_of(name, device="cpu")
    for item, text in enumerate(texts[0]):
        assert said[0, item]["scores"][name] == pytest.approx(scorer([text])[0] if text else 0.0)
    unsteered = {line["measure"] for line in found if line["series"] == "unsteered"}
    assert unsteered == {"generation", "loss", "choice"}
    assert json.loads((tmp_path / "out" / "sweep.json").read_text())["series"][0]["regulator"] == "constant"


def test_the_chosen_strength_keeps_the_budget_on_the_tuning_texts_and_the_next_tried_does_not(tmp_path, setup, series):
    chosen = run_sweep(tmp_path / "out", setup, series, grid=GRID._replace(budget=1.02), progress=False)
    loaded = load_model(setup.model)
    plain = perplexity(*loaded, NEUTRAL[:2]).of_tokens
    for one in series:
        strength = chosen[one.name].strength
        assert strength not in {None, *STRENGTHS}  # halved between two of the grid, or below it
        ratios = []
        for value in (strength, 1.6 * strength):
            with one.steering.apply(loaded.model, value):
                ratios.append(perplexity(*loaded, NEUTRAL[:2]).of_tokens / plain)
        assert ratios[0] <= 1.02 < ratios[1]


def with_source(setup) -> Setup:
    """Return the setup with enough texts to measure selectivity on."""
    report = setup.parts["report"]._replace(
        perplexity={"plain": tuple(f"w{i} w{i + 1} w{i + 2}" for i in range(4))},
        source=tuple(f"w{i} w9 w{i + 1} w{i}" for i in range(20, 25)),
    )
    return setup._replace(parts={**setup.parts, "report": report})


def test_the_curves_are_what_the_yardstick_says_and_are_not_measured_again(tmp_path, setup, series, monkeypatch):
    out, setup = tmp_path / "out", with_source(setup)
    run_sweep(out, setup, series, grid=GRID, progress=False)
    found, loaded, part = read_curves(out / "curves.json"), load_model(setup.model), setup.parts["report"]
    assert found.against == {"caa + constant": "caa + constant", "caa + logistic": "caa + constant"}
    yardstick = Yardstick(*loaded, source=part.source, control=part.perplexity)
    for one in series:
        curve = found.curves[one.name]
        for strength, losses in zip(curve.strengths, curve.losses, strict=True):
            expected = yardstick.losses(one.steering.apply(loaded.model, strength))
            assert losses.source == pytest.approx(expected.source, abs=1e-5)
            assert losses.control["plain"] == pytest.approx(expected.control["plain"], abs=1e-5)
    monkeypatch.setattr(Worker, "run", None)
    run_sweep(out, setup, series, grid=GRID, progress=False)
    assert read_curves(out / "curves.json").as_dict() == found.as_dict()


def test_a_strength_above_the_limit_is_not_measured(tmp_path, setup, series):
    one = series[0]._replace(strengths=(0.1, 1000.0))
    chosen = run_sweep(tmp_path / "out", setup, [one], grid=GRID._replace(limit=2.0), progress=False)
    assert 1000.0 not in chosen[one.name].strengths
    assert max(line["strength"] for line in samples(tmp_path / "out")) < 1000.0


def test_a_strength_at_which_the_model_breaks_down_is_said_and_not_measured(tmp_path, setup, series):
    stored = series[0].steering
    rules = [rule._replace(transform=dsas.Addition(torch.full((16,), 4.0))) for rule in stored.rules]
    one = series[0]._replace(steering=dsas.Steering(rules, stored.model), strengths=(0.01, 3e38))
    with pytest.warns(DsasWarning, match=r"caa \+ constant: at strength 3e\+38 the steered model's perplexity"):
        chosen = run_sweep(tmp_path / "out", setup, [one], grid=GRID._replace(limit=1e9), progress=False)
    assert 3e38 not in chosen[one.name].strengths


def test_a_sweep_that_was_stopped_computes_only_what_is_missing(tmp_path, setup, series, monkeypatch):
    out, count = tmp_path / "out", 0
    run_sweep(out, setup, series, grid=GRID, progress=False)
    before = samples(out)
    lost = sorted((out / "jobs").glob("generate-*.json"))[:2]
    for file in lost:
        file.unlink()
    run = Worker.run

    def counted(self, job):
        nonlocal count
        count += 1
        return run(self, job)

    monkeypatch.setattr(Worker, "run", counted)
    run_sweep(out, setup, series, grid=GRID, progress=False)
    assert (count, samples(out)) == (2, before)


def test_a_damaged_result_is_a_warning_and_is_measured_again(tmp_path, setup, series):
    out = tmp_path / "out"
    run_sweep(out, setup, series[:1], grid=GRID, progress=False)
    before, damaged = samples(out), sorted((out / "jobs").glob("*.json"))[::5]
    for file in damaged:
        file.write_bytes(file.read_bytes()[:-3])
    with pytest.warns(DsasWarning, match="is damaged: its result is measured again"):
        run_sweep(out, setup, series[:1], grid=GRID, progress=False)
    assert samples(out) == before


def test_without_refinements_the_chosen_strength_is_the_largest_of_the_grid_within_the_budget(tmp_path, setup, series):
    one = series[0]._replace(strengths=(0.01, 0.02, 5.0))
    chosen = run_sweep(tmp_path / "out", setup, [one], grid=GRID._replace(refinements=0), progress=False)
    assert chosen[one.name].strength == 0.02


def test_a_result_of_another_precision_is_not_taken_for_this_one(setup):
    jobs = [Job("generate"), Job("losses", part="report"), Job("read", part="report"), Job("judge", texts=("w3",))]
    other = setup._replace(precision="bfloat16")
    assert all(job.depends(setup) != job.depends(other) for job in jobs)


@pytest.mark.parametrize("spread", [Spread(workers=2), Spread(ray="auto")], ids=["processes", "ray"])
def test_two_workers_find_what_one_process_finds(tmp_path, setup, series, spread):
    if spread.ray:
        pytest.importorskip("ray")
    run_sweep(tmp_path / "one", setup, series[:1], grid=GRID, progress=False)
    run_sweep(tmp_path / "two", setup, series[:1], grid=GRID, spread=spread, progress=False)
    assert samples(tmp_path / "two") == samples(tmp_path / "one")


def test_a_sweep_killed_half_way_goes_on_where_it_was(tmp_path, setup, series):
    series[0].steering.save_pretrained(tmp_path / "steering")
    script = tmp_path / "sweep.py"
    script.write_text(
        "import sys, pickle, pathlib\n"
        "from dsas.sweep.run import Grid, Series, run_sweep\n"
        "import dsas\n"
        "if __name__ == '__main__':\n"
        "    setup = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())\n"
        f"    steering = dsas.Steering.from_pretrained({str(tmp_path / 'steering')!r})\n"
        f"    series = [Series('caa', steering, 'caa', 'constant', {STRENGTHS!r})]\n"
        f"    run_sweep(pathlib.Path(sys.argv[2]), setup, series, grid=Grid({tuple(range(40))!r}, 1.05, 50.0, 0))\n"
    )

    (tmp_path / "setup").write_bytes(pickle.dumps(setup))
    out = tmp_path / "out"
    call = [sys.executable, str(script), str(tmp_path / "setup"), str(out)]
    process = subprocess.Popen(call, stderr=subprocess.DEVNULL)
    while len(list((out / "jobs").glob("generate-*.json"))) < 5:
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    kept = {file: file.stat().st_mtime_ns for file in (out / "jobs").glob("*.json")}
    subprocess.run(call, check=True, stderr=subprocess.DEVNULL)
    assert all(file.stat().st_mtime_ns == written for file, written in kept.items())
    assert len(list((out / "jobs").glob("generate-*.json"))) > len(kept)


def test_what_a_sweep_cannot_use_is_refused_before_anything_runs(tmp_path, setup, series):
    for wrong, message in (
        ({"series": [*series, series[0]]}, "different names"),
        ({"series": [series[0]._replace(name="unsteered")]}, "none of them 'unsteered'"),
        ({"series": [series[0]._replace(strengths=(0.0,))]}, "strength above 0"),
        ({"setup": setup._replace(parts={"report": setup.parts["report"]})}, "parts 'tune'"),
        ({"grid": Grid(budget=2.0, limit=1.5)}, "budget <= limit, got 2.0 and 1.5"),
        ({"spread": Spread(workers=0)}, "at least one worker, got 0"),
    ):
        asked = {"setup": setup, "series": series, **wrong}
        with pytest.raises(OptionError, match=message):
            run_sweep(tmp_path / "out", progress=False, **asked)
    part = with_source(setup).parts["report"]
    for changed, error, message in (
        (part._replace(source=("w3 w4",)), TextsError, "held-out source must hold at least 4 texts, got 1"),
        (part._replace(perplexity={"few": NEUTRAL}), TextsError, "few must hold at least 4 texts, got 3"),
        (part._replace(perplexity={}), OptionError, r"both with texts for perplexity, got such parts \['tune'\]"),
    ):
        asked = setup._replace(parts={**setup.parts, "report": changed})
        with pytest.raises(error, match=message):
            run_sweep(tmp_path / "out", asked, series, progress=False)
    with pytest.raises(OptionError, match="no scorer 'toxblock'; closest packaged ones: 'tox-block'"):
        scorer_of("toxblock")


def test_a_name_of_a_folder_that_is_no_text_loses_no_sample(tmp_path, setup, series):
    named = [series[0]._replace(name="bad\udcff", strengths=(0.1,))]
    quick = Grid(seeds=(0,), budget=1.05, limit=50.0, judged=0, refinements=0)
    run_sweep(tmp_path / "out", setup, named, grid=quick, command="dsas pareto bad\udcff", progress=False)
    about = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert [one["name"] for one in about["series"]] == ["bad?"]
    assert {line["series"] for line in samples(tmp_path / "out")} == {"unsteered", "bad?"}
