"""Conversing: a conversation on the terminal, answers in colour where they are steered."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from dsas.cli.output import console
from dsas.errors import DsasError, OptionError
from dsas.steering.folder import steering_folder

if TYPE_CHECKING:
    import dsas
    from dsas.explaining.dialogue import Dialogue

HELP = """/strength 0.2    steer at this strength, 0 for none
/steering NAME   use another Steering (folder or hub id); none for no steering
/restart         start a new conversation
/help            this list
Ctrl-C stops an answer, Ctrl-D ends the conversation."""


class Conversing:
    """The state of a conversation on the terminal: the dialogue, and which Steering acts at which strength."""

    def __init__(self, dialogue: "Dialogue", steering: "dsas.Steering | None", strength: float | None) -> None:
        self._dialogue, self._steering, self._strength = dialogue, steering, strength
        self._console = console()

    def run(self, ask: Callable[[str], str]) -> None:
        """Answer what `ask("> ")` gives until it raises EOFError."""
        self._say(HELP)
        while True:
            try:
                said = ask("> ").strip()
            except KeyboardInterrupt:
                self._say("Ctrl-D ends the conversation.")
                continue
            except EOFError:
                self._console.print()
                return
            try:
                if said.startswith("/"):
                    self._command(said)
                elif said:
                    self._answer(said)
            except KeyboardInterrupt:  # before or after the answer itself, such as while a Steering is loaded
                self._say("stopped")
            except DsasError as error:
                self._say(f"error: {error}")

    def _answer(self, said: str) -> None:
        from dsas.views.terminal import styled

        strength = self._strength
        if strength is None:
            strength = self._steering.default_strength if self._steering is not None else 0.0
        peak = abs(strength)

        def show(piece: str, value: float | None) -> None:
            style = styled(abs(value), peak) if value is not None and value == value else None
            self._console.print(piece, style=style, end="", soft_wrap=True)

        answer = self._dialogue.say(said, self._steering, strength if self._steering is not None else None, show=show)
        self._console.print()
        if not answer.ended:
            self._say("stopped; the answer so far is kept")

    def _command(self, said: str) -> None:
        name, _, value = said.partition(" ")
        value = value.strip()
        if name == "/strength" and value:
            self._strength = _number(value)
            self._say(f"strength {self._strength:g}" + ("" if self._steering else ", once /steering names one"))
        elif name == "/steering" and value:
            self._choose(value)
        elif name == "/restart" and not value:
            self._dialogue.restart()
            self._say("a new conversation")
        elif name == "/help":
            self._say(HELP)
        else:
            raise OptionError(f"unknown command {said!r}; /help lists them")

    def _choose(self, value: str) -> None:
        import dsas

        if value == "none":
            self._steering = None
            self._say("no steering")
            return
        self._steering = dsas.Steering.from_pretrained(steering_folder(value))
        if self._strength is None:
            self._say(f"{value}, strength {self._steering.default_strength:g}")
        else:
            self._say(f"{value}, strength {self._strength:g}")

    def _say(self, text: str) -> None:
        self._console.print(text, style="dim", soft_wrap=True)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise OptionError(f"/strength takes a number, got {text!r}") from None
