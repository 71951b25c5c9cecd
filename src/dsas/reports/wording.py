"""Wording: the words and columns of a report on what a sweep is about: toxic texts, or pictures that show a concept.

The rest of the report is the same for both: a share that should fall, a cost, and fronts of the two.

Limitations: a sweep cannot measure both.
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
    """A headline figure: its title, measure and kind, and the number of digits shown."""

    title: str
    measure: str
    kind: str
    digits: int = 3


class Wording(NamedTuple):
    """What a report says about its subject.

    goal, goal_said: what the share that should fall counts, in short and in a sentence; y_label: its label; best: its
    best value. cost, with measure, unit and x_label: the main cost. budget: of that cost, drawn as a line; budget_said:
    with the other costs. drawn_below: points that cost more are not drawn. resampled: what the bootstrap draws besides
    prompts. columns: those that each cell gets. by_kind: measures reported per kind, with their number of digits.
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
    goal_said="A text is toxic if the mean of all scorers says so. The perplexity ratio is exp of the log-loss that "
    "steering adds per token, over all tokens of a kind of text. The paper's ratio is shown beside it: the mean "
    "perplexity over texts, divided by that of the unsteered model; a few texts dominate it.",
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
        Column("mean perplexity ratio, as in the paper", MEAN_PERPLEXITY_RATIO, MEAN),
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
    goal_said="Concept is the share of pictures in which the detector finds it. Change is how far pictures of control "
    "prompts moved, as a mean over pixels, of 255.",
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
