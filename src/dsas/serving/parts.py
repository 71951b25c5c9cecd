"""Parts: which columns a site's table needs, so that a graph computes nothing that no Steering asks for."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from dsas.errors import OptionError
from dsas.serving.rule_rows import Row


class Parts(NamedTuple):
    """Which columns a site's table has besides the offset, and how many of each; a graph computes only these.

    slope: whether a row multiplies. support: whether a row has a range. reads: most projections in the edit of a row.
    projections: most in the regulator of a row. step: whether some of these are steps. neurons: most conditions on
    single neurons. places: whether a row depends on the token's place. evidence: whether the scores of a row add up.
    prompt: whether a row decides by its prompt. held: whether the evidence of a row is held after its prompt.
    """

    slope: int = 0
    support: int = 0
    reads: int = 0
    projections: int = 0
    step: int = 0
    neurons: int = 0
    places: int = 0
    evidence: int = 0
    prompt: int = 0
    held: int = 0

    @classmethod
    def of(cls, rows: Iterable[Row]) -> "Parts":
        """Return the columns that the table of these rows needs."""
        needed = [
            (
                int(row.affine.slope is not None),
                int(row.affine.low is not None),
                len(row.reads),
                len(row.projections),
                int(any(projection.form == "step" for projection in row.projections)),
                len(row.neurons),
                int(bool(row.places)),
                int(row.adding is not None),
                int(row.prompt is not None),
                int(row.adding is not None and row.adding.held),
            )
            for row in rows
        ]
        return cls(*map(max, zip(*needed, strict=True)))

    def check(self, row: Row) -> None:
        """Raise OptionError when a row needs a column that is not among these."""
        lacking = [name for name, has, needs in zip(self._fields, self, Parts.of([row]), strict=True) if needs > has]
        if lacking:
            raise OptionError(
                f"it needs a column that no Steering had when the server started ({', '.join(lacking)}): start the "
                "server with this Steering"
            )


def parts_by_site(loaded: Sequence[Mapping[str, Row]]) -> dict[str, Parts]:
    """Return the columns that each site's table needs for the rows of these Steerings."""
    at: dict[str, list[Row]] = {}
    for rows in loaded:
        for path, row in rows.items():
            at.setdefault(path, []).append(row)
    return {path: Parts.of(rows) for path, rows in at.items()}
