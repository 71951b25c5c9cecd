"""Language model: a transformers model that reads tokens, with its tokenizer, as one kind of subject."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, final

from jaxtyping import Bool, Float
from torch import Tensor, nn

from dsas.errors import OptionError
from dsas.files.json_values import JsonObject
from dsas.model.activations import pooled_activations, pooler, token_projections
from dsas.model.examples import Spans
from dsas.model.foreign import Foreign, Tokenizer
from dsas.model.hooks import Hooks
from dsas.model.identity import ModelIdentity
from dsas.model.labelled_tokens import LabelledTokens, labelled_tokens
from dsas.model.pipeline_modules import Branch
from dsas.model.reading import Reading
from dsas.model.running import check_reads_texts, check_tokens, own_tokens, run_on
from dsas.model.sites import Site, SitePatterns, find_sites
from dsas.model.strength import PromptTokens, read_prompt_tokens
from dsas.model.token_batches import Batch, cut_rows, inputs_of, pad_token, read_batches, text_tokenizer, tokenize
from dsas.model.token_passes import TokenPasses
from dsas.model.token_recorder import TokenRecorder


@final
class LanguageModel:
    """A model of tokens; its tokenizer is needed only where texts are read."""

    def __init__(self, module: nn.Module, tokenizer: Tokenizer = None) -> None:
        self.module = module
        self.tokenizer = None if tokenizer is None else text_tokenizer(tokenizer)

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
        """Return the reader of the model's passes; `branch` is that of `generate(guidance_scale=...)`."""
        return TokenPasses(self.module, read_prompt_tokens(prompt_tokens), branch, by)

    def recorder(self, sites: Sequence[str]) -> TokenRecorder:
        """Return what records applied strengths by token."""
        return TokenRecorder(sites)

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
        return TextExamples(self.module, self.tokenizer, reading)


@final
class TextExamples:
    """Texts as a language model reads them: batches of tokens, and one vector per text and site."""

    def __init__(self, module: nn.Module, tokenizer: Tokenizer, reading: Reading) -> None:
        self.module, self.reading, self.tokenizer = module, reading, tokenizer
        self._pool = pooler(reading.pooling, reading.skip_sinks)
        self.batch_size, self.incremental, self.spread = reading.batch_size, reading.incremental, reading.spread
        self.by_position = self.per_step = False
        self.regulator = "evidence" if reading.pooling == "mean" else "logistic"

    def as_dict(self) -> JsonObject:
        """Return how texts are read, JSON-ready."""
        named = self.reading._asdict()
        return {key: named[key] for key in ("pooling", "skip_sinks", "batch_size", "max_tokens")}

    def depends(self, texts: Sequence[str], places: Sequence[int]) -> list[Foreign]:
        """Return what the vectors depend on besides the model, JSON-ready."""
        return ["texts", list(texts), self.as_dict()]

    def batches(self, texts: Sequence[str], places: Sequence[int], size: int) -> list[Batch]:
        """Return the texts in batches of at most `size`, sorted by length, padded on the right."""
        found = read_batches(self.tokenizer, texts, self.reading._replace(batch_size=size)) if texts else []
        for batch in found:
            check_tokens(self.module, batch.tokens.shape[1], int(batch.tokens.max()))
        return found

    def vectors(
        self, batches: Sequence[Batch], sites: Sequence[Site]
    ) -> Iterator[dict[Site, Float[Tensor, "row 1 1 dim"]]]:
        """Yield each batch's pooled activations at every site, float32 on the CPU."""
        reading, inputs = self.reading, map(inputs_of, batches)
        options = {"pooling": reading.pooling, "skip_sinks": reading.skip_sinks}
        for found in pooled_activations(self.module, inputs, sites, **options):
            yield {site: value[:, None, None] for site, value in found.items()}

    def labelled_tokens(
        self, texts: Sequence[str], spans: Sequence[Spans], sites: Sequence[Site], advance: Callable[[], None]
    ) -> LabelledTokens:
        """Return single tokens, labelled by spans of characters. Raises OptionError when read incrementally."""
        if self.incremental:
            raise OptionError("spans need activations of the unsteered model: use a Reading without incremental=True")
        return labelled_tokens(self.module, self.tokenizer, texts, spans, sites, reading=self.reading, advance=advance)

    def token_scores(
        self,
        texts: Sequence[str],
        directions: Mapping[Site, Float[Tensor, "dim direction"]],
        advance: Callable[[], None],
    ) -> list[Float[Tensor, "site token direction"]]:
        """Return what each text's tokens but the first are along the directions of each site."""
        batches = self.batches(texts, range(len(texts)), self.batch_size)
        found: dict[int, Tensor] = {}
        for batch, values in zip(
            batches, token_projections(self.module, map(inputs_of, batches), directions), strict=True
        ):
            found |= dict(zip(batch.rows, values, strict=True))
            advance()
        return [found[number] for number in range(len(texts))]

    def token_rows(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of each text, cut to `reading.max_tokens` with a warning."""
        return cut_rows(tokenize(self.tokenizer, texts), self.reading.max_tokens) if texts else []

    def pad_token(self) -> int:
        """Return a token to fill rows with."""
        return pad_token(self.tokenizer)

    def run(self, batch: Batch) -> Foreign:
        """Run the model on a batch, with gradients where the caller records them."""
        return run_on(self.module, inputs_of(batch))

    def real(self, batch: Batch) -> Bool[Tensor, "row token"]:
        """Return which tokens of a batch are real."""
        return batch.mask

    def pool(self, t: Float[Tensor, "row token dim"], real: Bool[Tensor, "row token"]) -> Float[Tensor, "row dim"]:
        """Return one vector per row; gradients pass."""
        return self._pool(own_tokens(t, real, "a site"), real)

    def follow(self, hooks: Hooks, sites: Sequence[Site]) -> None:
        """Return None: every site fires once per batch, and all its rows are read."""
