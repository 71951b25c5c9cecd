"""Reading: how a text or a conversation becomes one vector per site, and which of its tokens count."""

from typing import Literal, NamedTuple

from dsas.model.chat import AS_IT_IS, Chat
from dsas.parallel.workers import Spread

Tokens = Literal["auto", "all", "answer", "last", "last-instruction"]


class Reading(NamedTuple):
    """How examples become vectors: each is the mean of its tokens that count.

    tokens: which tokens count. "all": all of a text, or of the rendered conversation. "answer": the assistant's last
    message, or the completion of a prompt, without the template's tokens around it. "last": the last token of the
    answer, or of a text. "last-instruction": the last token before the answer, which belongs to the generation prompt
    if the template has one. "auto": the answer where there is one, else all.
    skip_sinks: leave attention sinks out of means.
    batch_size: rows per pass. max_tokens: longer examples are cut.
    incremental: read each site with the earlier sites already steered at strength 1 (AcT, arXiv 2410.23054, section
    3.2), instead of all sites from the unsteered model; `dsas.fit` only.
    spread: runs the model in several processes or over a Ray cluster, on shards of the examples; the vectors are the
    same.
    chat: how conversations are rendered: system prompt, template arguments, and which parts of an answer count.
    """

    tokens: Tokens = "auto"
    skip_sinks: bool = True
    batch_size: int = 16
    max_tokens: int = 512
    incremental: bool = False
    spread: Spread = Spread()
    chat: Chat = AS_IT_IS
