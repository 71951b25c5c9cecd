"""Question list: everyday questions that come with dsas, which a steered model should answer as before.

Limitations: English.
"""

from importlib.resources import files


def everyday_questions() -> list[str]:
    """Return the 200 questions: ten each on twenty topics, from cooking to crafts."""
    return (files("dsas.evaluation") / "questions.txt").read_text(encoding="utf-8").split("\n")[:-1]
