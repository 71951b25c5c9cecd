"""Published sets: requests of well-known data sets, by name, from the hub or a folder that `datasets` can read.

| name | data set on the hub | split | column | rows that count |
|---|---|---|---|---|
| xstest-safe, xstest-unsafe | walledai/XSTest (2308.01263) | test | prompt | label "safe"; "unsafe" |
| or-bench-hard, or-bench-toxic | bench-llm/or-bench (2405.20947) | train | prompt | all of the configuration |
| truthfulqa | truthfulqa/truthful_qa (2109.07958) | validation | question | all |
| realtoxicityprompts | allenai/real-toxicity-prompts (2009.11462) | train | prompt.text | all |
| toxic-chat-toxic, toxic-chat-clean | lmsys/toxic-chat (2310.17389) | train | user_input | toxicity 1; 0 |

Limitations: splits, columns and labels are those of the data sets' pages; they were tried on folders of that layout,
and not on the hub. Some of these data sets ask for consent on the hub; `datasets` then uses the user's token.
"""

from typing import NamedTuple

from dsas.errors import OptionError, TextsError, closest
from dsas.files.data_sets import PREFIX, read_rows
from dsas.files.json_values import Json
from dsas.files.text_files import field_of, text_of


class PublishedSet(NamedTuple):
    """Where a data set is: its id, configuration ("" for the only one), split and column, and which rows count.

    column: the name of one, or two joined by a dot for a field of an object. where: column and value of the rows that
    count; all of them when there is none.
    """

    repository: str
    configuration: str
    split: str
    column: str
    where: tuple[str, Json] | None = None


PUBLISHED_SETS = {
    "xstest-safe": PublishedSet("walledai/XSTest", "", "test", "prompt", ("label", "safe")),
    "xstest-unsafe": PublishedSet("walledai/XSTest", "", "test", "prompt", ("label", "unsafe")),
    "or-bench-hard": PublishedSet("bench-llm/or-bench", "or-bench-hard-1k", "train", "prompt"),
    "or-bench-toxic": PublishedSet("bench-llm/or-bench", "or-bench-toxic", "train", "prompt"),
    "truthfulqa": PublishedSet("truthfulqa/truthful_qa", "generation", "validation", "question"),
    "realtoxicityprompts": PublishedSet("allenai/real-toxicity-prompts", "", "train", "prompt.text"),
    "toxic-chat-toxic": PublishedSet("lmsys/toxic-chat", "toxicchat0124", "train", "user_input", ("toxicity", 1)),
    "toxic-chat-clean": PublishedSet("lmsys/toxic-chat", "toxicchat0124", "train", "user_input", ("toxicity", 0)),
}


def published_set(name: str, *, folder: str | None = None) -> list[str]:
    """Return the texts of a set of the table, each once, in its order.

    folder: a local copy, instead of the hub. Raises OptionError for another name, TextsError, naming data set and row,
    for one that is not there or of another layout, MissingExtraError without `datasets`.
    """
    if name not in PUBLISHED_SETS:
        raise OptionError(f"no published set {name!r}; closest: {closest(name, PUBLISHED_SETS)}")
    one = PUBLISHED_SETS[name]
    rows = read_rows(f"{PREFIX}{folder or one.repository}:{one.split}", configuration=one.configuration)
    texts = []
    for place, row in rows:
        if one.where is None or field_of(row, one.where[0], place) == one.where[1]:
            value = row
            for field in one.column.split("."):
                value = field_of(value, field, place)
            texts.append(text_of(value, place))
    if not texts:
        raise TextsError(f"{name}: expected rows with {one.where}, but none of its {len(rows)} rows has it")
    return list(dict.fromkeys(texts))
