"""Wording: what a sweep is about, in words and columns of its report: toxic texts, or pictures that show a concept.

The rest of the report is the same for both: a share that is to fall, a cost, and fronts of the two.

Limitations: no sweeps that measure both.
"""

from typing import NamedTuple

from dsas.sweep.front import Cost
from dsas.sweep.pareto import ACCURACY_BUDGET, CHANGE_BUDGET, CHANGE_COST, PERPLEXITY_BUDGET, PERPLEXITY_COST
from dsas.sweep.resampling import (
    ACCURACY_CHANGE,
    ALL,
    JUDGE_RATIO,
    KL,
    MEAN,
    MEAN_PERPLEXITY_RATIO,
    PERPLEXITY_RATIO,
    REPETITION,
)
from dsas.sweep.samples import CHANGE

DISTINCT = "distinct-2"


class Column(NamedTuple):
    """A figure that one looks at first: its title, measure and kind, and how many digits it is shown with."""

    title: str
    measure: str
    kind: str
    digits: int = 3


class Wording(NamedTuple):
    """What a report says of its subject.

    goal: what has the share that is to fall, goal_said, y_label: its label, and best: its end. cost, with measure, unit
    and x_label: the main one. budget: of that cost, as a line in the fronts; budget_said: with the other costs.
    drawn_below: dearer points are left out of the fronts. resampled: what is drawn again besides the prompts. columns:
    of each cell. by_kind: measures that are told for each kind, and with how many digits.
    """

    goal: str
    goal_said: str
    best: str
    y_label: str
    cost: Cost
    measure: tuple[str, str]
    unit: str
    x_label: str
    budget: float
    budget_said: str
    drawn_below: float
    resampled: str
    columns: tuple[Column, ...]
    by_kind: dict[str, int]

    @property
    def cost_said(self) -> str:
        """The main cost in a sentence."""
        return self.cost.name.removesuffix(" ratio")


OF_TEXTS = Wording(
    goal="toxic",
    goal_said="Toxic is what the mean of all scorers calls so. The perplexity ratio is exp of the log-loss that "
    "steering adds per token, over all tokens of a kind of text; beside it the paper's, the mean over texts of their "
    "perplexity over that of the unsteered model, which a few texts rule.",
    best="never toxic",
    y_label="toxic continuations, %",
    cost=PERPLEXITY_COST,
    measure=(PERPLEXITY_RATIO, MEAN),
    unit=" x",
    x_label="perplexity / unsteered",
    budget=PERPLEXITY_BUDGET,
    budget_said=f"At most {PERPLEXITY_BUDGET:g} x the perplexity and {ACCURACY_BUDGET:g} point of accuracy lost, where "
    "it was measured.",
    drawn_below=1.6,
    resampled="the sentences and questions of each kind",
    columns=(
        Column("perplexity ratio", PERPLEXITY_RATIO, MEAN),
        Column("mean perplexity ratio, as the paper has it", MEAN_PERPLEXITY_RATIO, MEAN),
        Column("accuracy, points", ACCURACY_CHANGE, MEAN, 1),
        Column("KL, nats", KL, MEAN),
        Column("judge's perplexity ratio", JUDGE_RATIO, ALL, 2),
        Column(DISTINCT, DISTINCT, ALL),
        Column(REPETITION, REPETITION, ALL),
    ),
    by_kind={PERPLEXITY_RATIO: 3, ACCURACY_CHANGE: 1},
)
OF_PICTURES = Wording(
    goal="concept",
    goal_said="Concept is the share of pictures in which the detector sees it; change, how far pictures of control "
    "prompts moved, mean over pixels, of 255.",
    best="never the concept",
    y_label="pictures with the concept, %",
    cost=CHANGE_COST,
    measure=(CHANGE, MEAN),
    unit=" of 255",
    x_label="change of control pictures, of 255",
    budget=CHANGE_BUDGET,
    budget_said=f"A change of at most {CHANGE_BUDGET:g} of 255.",
    drawn_below=60.0,
    resampled="the control prompts",
    columns=(Column("change", CHANGE, MEAN, 2),),
    by_kind={CHANGE: 2},
)
