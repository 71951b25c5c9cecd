"""Language model: a transformers model that reads tokens, with its tokenizer, as one kind of subject."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, final

from jaxtyping import Bool, Float
from torch import Tensor, nn

from dsas.errors import DsasWarning, OptionError, TextsError
from dsas.files.json_values import JsonObject
from dsas.model.activations import TokenProjections, pooled, pooled_activations, token_projections
from dsas.model.chat import AS_IT_IS
from dsas.model.conversation import Content, Conversation, as_json, before_answer, media_of
from dsas.model.encoded_media import Frames, encodes_media
from dsas.model.examples import ExampleSets, Spans
from dsas.model.foreign import Foreign, Tokenizer
from dsas.model.hooks import Hooks
from dsas.model.identity import ModelIdentity
from dsas.model.labelled_tokens import LabelledTokens, labelled_tokens
from dsas.model.layers import tokens_ahead
from dsas.model.pipeline_modules import Branch
from dsas.model.reading import Reading, Tokens
from dsas.model.rendering import Rendered, covered, rendered
from dsas.model.running import check_reads_texts, check_tokens, own_tokens, run_on
from dsas.model.sites import Site, SitePatterns, find_sites
from dsas.model.strength import PromptTokens, read_prompt_tokens
from dsas.model.token_batches import Batch, batches, inputs_of
from dsas.model.token_passes import TokenPasses
from dsas.model.token_recorder import TokenRecorder
from dsas.model.token_text import placeholders
from dsas.model.tokenizing import pad_token, template_of, text_tokenizer


@final
class LanguageModel:
    """A model of tokens; its tokenizer is needed only where texts are read."""

    measured_by = "steering.port(...) or `dsas port` does"

    def __init__(self, module: nn.Module, tokenizer: Tokenizer = None) -> None:
        self.module = module
        self.tokenizer = tokenizer
        if tokenizer is not None:
            text_tokenizer(tokenizer)  # raises for anything but a tokenizer; a model alone has none

    @property
    def identity(self) -> ModelIdentity:
        """Which model this is."""
        return ModelIdentity.of(self.module)

    def sites(self, patterns: SitePatterns) -> list[Site]:
        """Return the sites that `patterns` name; see `find_sites`."""
        return find_sites(self.module, patterns)

    def passes(
        self, *, branch: Branch, prompt_tokens: PromptTokens, skip_sinks: bool, by: object = None
    ) -> TokenPasses:
        """Return the reader of the model's passes; `branch` refers to `generate(guidance_scale=...)`."""
        return TokenPasses(self.module, read_prompt_tokens(prompt_tokens), branch, by)

    def recorder(self, sites: Sequence[str]) -> TokenRecorder:
        """Return what records applied strengths by token."""
        media = placeholders(getattr(self.module, "config", None))
        return TokenRecorder(sites, media, ahead=tokens_ahead(self.module))

    def check_fusing(self, sites: Sequence[Site], branch: Branch) -> None:
        """Accept everything: a language model has branches only in `generate(guidance_scale=...)`."""

    def examples(self, reading: Any = None, *, training: bool = False) -> "TextExamples":
        """Return how texts are read.

        Raises OptionError without a tokenizer, for a reading of another kind, or for a model that reads no texts.
        """
        if self.tokenizer is None:
            raise OptionError("a language model is read with its tokenizer: pass tokenizer= as well")
        reading = reading or (Reading(batch_size=32) if training else Reading())
        if not isinstance(reading, Reading):
            raise OptionError(f"a language model is read by a dsas.Reading, got a {type(reading).__name__}")
        if training and reading.incremental:
            raise OptionError("training reads all sites at once: use a Reading without incremental=True")
        check_reads_texts(self.module)
        if encodes_media(self.module) and (training or reading.incremental):
            raise OptionError(
                f"{type(self.module).__name__} reads sounds or pictures with its encoder: such a model can be fitted, "
                "but not trained, nor fitted with incremental=True"
            )
        return TextExamples(self.module, self.tokenizer, reading)


@final
class TextExamples:
    """Texts and conversations as a language model reads them: batches of tokens, one vector per example and site."""

    def __init__(self, module: nn.Module, tokenizer: Tokenizer, reading: Reading) -> None:
        self.module, self.reading, self.tokenizer = module, reading, tokenizer
        self.batch_size, self.incremental, self.spread = reading.batch_size, reading.incremental, reading.spread
        self.by_position = self.per_step = False
        self._frames = Frames(module)
        pooled_alone = reading.tokens in ("last", "last-instruction") or encodes_media(module)
        self.regulator = "logistic" if pooled_alone else "evidence"

    def as_dict(self) -> JsonObject:
        """Return how examples are read, JSON-ready."""
        named = self.reading._asdict()
        found = {key: named[key] for key in ("tokens", "skip_sinks", "batch_size", "max_tokens")}
        return found if self.reading.chat == AS_IT_IS else {**found, "chat": self.reading.chat.as_dict()}

    def check(self, sets: ExampleSets) -> None:
        """Raise TextsError for sets whose conversations are the same up to the answer, if no more is read."""
        if self.reading.tokens != "last-instruction":
            return
        asked = {name: set(map(before_answer, members)) for name, members in sets.as_dict().items()}
        for name in ("control", "target"):
            if asked["source"] == asked[name]:
                raise TextsError(
                    f"source and {name} differ only in their answers, and tokens='last-instruction' does not read "
                    "these: read the answers, or give other instructions"
                )

    def depends(self, texts: Sequence[Content], places: Sequence[int]) -> list[Foreign]:
        """Return what the vectors depend on besides the model, JSON-ready."""
        template = template_of(self.tokenizer)
        own = [] if all(isinstance(one, str) for one in texts) else [str(template)]
        return ["texts", list(map(as_json, texts)), self.as_dict(), *own]

    def batches(self, texts: Sequence[Content], places: Sequence[int], size: int) -> list[Batch]:
        """Return the examples in batches of at most `size`, sorted by length, padded on the right."""
        rows = self._rows(texts, self.reading.tokens)
        counted = [row.counted for row in rows]
        ids, prompts = [row.ids for row in rows], [row.prompt for row in rows]
        padding: dict[str, Any] = {"pad": self.pad_token(), "side": "right", "oblong": True}
        found = list(batches(ids, size, counted=counted, prompts=prompts, **padding))
        for batch in found:
            check_tokens(self.module, batch.tokens.shape[1], int(batch.tokens.max()))
        return found

    def vectors(
        self, batches: Sequence[Batch], sites: Sequence[Site]
    ) -> Iterator[dict[Site, Float[Tensor, "row 1 1 dim"]]]:
        """Yield each batch's pooled activations at every site, float32 on the CPU."""
        counted = ((inputs_of(batch), batch.counted) for batch in batches)
        for found in pooled_activations(self.module, counted, sites, skip_sinks=self.reading.skip_sinks):
            yield {site: value[:, None, None] for site, value in found.items()}

    def labelled_tokens(
        self, texts: Sequence[Content], spans: Sequence[Spans], sites: Sequence[Site], advance: Callable[[], None]
    ) -> LabelledTokens:
        """Return single tokens, labelled by spans of characters. Raises OptionError when read incrementally."""
        if self.incremental:
            raise OptionError("spans need activations of the unsteered model: use a Reading without incremental=True")
        if self._frames.any(sites):
            raise OptionError("spans are of the text that the decoder reads: choose sites of the decoder")
        marks = covered(self.tokenizer, self._under(texts), spans, self.reading.tokens)
        found = self.batches(texts, range(len(texts)), self.batch_size)
        return labelled_tokens(self.module, found, marks, sites, skip_sinks=self.reading.skip_sinks, advance=advance)

    def token_scores(
        self,
        texts: Sequence[Content],
        directions: Mapping[Site, Float[Tensor, "dim direction"]],
        advance: Callable[[], None],
    ) -> TokenProjections | None:
        """Return what each row's tokens but the first are along the directions of each site, and which count.

        None where one of the sites is in an encoder of sounds or pictures, which has no tokens.
        """
        if self._frames.any(list(directions)):
            return None
        batches = self.batches(texts, range(len(texts)), self.batch_size)
        values: dict[int, Tensor] = {}
        counted: dict[int, Tensor] = {}
        for batch, found in zip(batches, token_projections(self.module, batches, directions), strict=True):
            values |= dict(zip(batch.rows, found, strict=True))
            each = zip(batch.rows, batch.mask, batch.counted, strict=True)
            counted |= {row: counts[real][1:] for row, real, counts in each}
            advance()
        order = range(len(texts))
        return TokenProjections([values[number] for number in order], [counted[number] for number in order])

    def rows(self, texts: Sequence[Content], tokens: Tokens = "auto") -> list[Rendered]:
        """Return the tokens of each example, cut to `reading.max_tokens` with a warning, and which of them count.

        Raises TextsError for an example with no token left that counts, and for pictures, videos and sounds, which
        tokens alone do not hold.
        """
        if any(media_of(one) for one in texts):
            raise TextsError(
                "conversations with pictures or sounds cannot be trained as pairs: give texts alone, or fit on them"
            )
        return self._rows(texts, tokens)

    def _rows(self, texts: Sequence[Content], tokens: Tokens) -> list[Rendered]:
        if not texts:
            return []
        most, rows = self.reading.max_tokens, rendered(self.tokenizer, self._under(texts), tokens)
        if most < 1:
            raise OptionError(f"max_tokens must be at least 1, got {most}")
        found = [row.cut(most) for row in rows]
        lost = sum(not any(row.counted) for row in found)
        if lost:
            raise TextsError(f"{lost} examples have no token that counts among their first {most}: raise max_tokens")
        too_long = sum(len(row.ids) > most for row in rows)
        if too_long:
            warnings.warn(f"{too_long} texts were cut to max_tokens={most}", DsasWarning, stacklevel=4)
        return found

    def pad_token(self) -> int:
        """Return a token to fill rows with."""
        return pad_token(self.tokenizer)

    def run(self, batch: Batch) -> Foreign:
        """Run the model on a batch, with gradients where the caller records them."""
        return run_on(self.module, inputs_of(batch))

    def real(self, batch: Batch) -> Bool[Tensor, "row token"]:
        """Return which tokens of a batch are real."""
        return batch.mask

    def counted(self, batch: Batch) -> Bool[Tensor, "row token"]:
        """Return which tokens of a batch count."""
        return batch.counted

    def prompt_lengths(self, batch: Batch) -> Sequence[int]:
        """Return how many tokens of each row come before its answer: all where there is none."""
        return batch.prompts

    def counted_at(self, batch: Batch, site: Site, count: int) -> Bool[Tensor, "row place"]:
        """Return which of a site's `count` places count: those of tokens, or of what its encoder takes."""
        own = self._frames.of(site, inputs_of(batch), count)
        return batch.counted if own is None else own

    def pool(self, t: Float[Tensor, "row token dim"], batch: Batch) -> Float[Tensor, "row dim"]:
        """Return one vector per row; gradients flow through."""
        own = own_tokens(t, batch.mask, "a site")
        return pooled(own, batch.mask, batch.counted, skip_sinks=self.reading.skip_sinks)

    def _under(self, texts: Sequence[Content]) -> list[Content]:
        """Return the examples; conversations get the options of the reading."""
        return [one.under(self.reading.chat) if isinstance(one, Conversation) else one for one in texts]

    def follow(self, hooks: Hooks, sites: Sequence[Site]) -> None:
        """Return None: every site fires once per batch, and all its rows are read."""
