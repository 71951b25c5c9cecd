"""Subject: what is steered. One small protocol, one final class per kind, and the function that makes it.

| kind | class | made from |
|---|---|---|
| language model | `dsas.model.language_model.LanguageModel` | a torch module, with its tokenizer where texts are read |
| image pipeline | `dsas.model.image_pipeline.ImagePipeline` | a diffusers pipeline |

Nothing above `dsas.model` asks which kind it holds: what differs between kinds is a method here. Another kind of
subject is one file with two classes, a reader of its passes and a recorder, and one line in `subject_of`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor, nn

from dsas.errors import OptionError
from dsas.files.json_values import JsonObject
from dsas.model.activations import TokenProjections
from dsas.model.conversation import Content
from dsas.model.examples import ExampleSets, Spans
from dsas.model.foreign import Foreign, Model, Tokenizer
from dsas.model.forward_pass import ForwardPass
from dsas.model.hooks import Hooks
from dsas.model.identity import ModelIdentity
from dsas.model.image_pipeline import ImagePipeline
from dsas.model.image_trace import PictureRecorder
from dsas.model.labelled_tokens import LabelledTokens
from dsas.model.language_model import LanguageModel
from dsas.model.picture_passes import PicturePasses
from dsas.model.pipeline_modules import Branch, PipelineModules
from dsas.model.reading import Tokens
from dsas.model.rendering import Rendered
from dsas.model.sites import Site, SitePatterns
from dsas.model.strength import PromptTokens
from dsas.model.token_passes import TokenPasses
from dsas.model.token_recorder import TokenRecorder
from dsas.model.wrappers import unwrapped
from dsas.parallel.workers import Spread

Passes = TokenPasses | PicturePasses  # reads each forward pass from the calls that the model makes
Recorder = TokenRecorder | PictureRecorder  # keeps what was applied at numbered sites


@runtime_checkable
class Examples(Protocol):
    """How examples run through one subject: in batches, and as vectors.

    reading: the options it was made with. batch_size: examples per batch. incremental: whether each site is read with
    the earlier ones already steered. spread: over which workers. by_position: whether samples are single positions to
    learn from. per_step: whether each denoising step gets a regulator of its own. regulator: name of the default
    regulator of `dsas.fit`.
    """

    reading: Any
    batch_size: int
    incremental: bool
    spread: Spread
    by_position: bool
    per_step: bool
    regulator: str

    @property
    def module(self) -> nn.Module:
        """The subject's module."""
        ...

    def as_dict(self) -> JsonObject:
        """Return how examples are read, JSON-ready."""
        ...

    def check(self, sets: ExampleSets) -> None:
        """Raise TextsError for sets whose read parts are the same, or of a kind that is not read."""
        ...

    def depends(self, texts: Sequence[Content], places: Sequence[int]) -> list[Foreign]:
        """Return what the vectors depend on besides the model, JSON-ready."""
        ...

    def batches(self, texts: Sequence[Content], places: Sequence[int], size: int) -> list[Foreign]:
        """Return batches of at most `size`; `batch.rows` says which example each row is.

        places: place of each example in its set, from which a pipeline takes its noise.
        """
        ...

    def vectors(
        self, batches: Sequence[Foreign], sites: Sequence[Site]
    ) -> Iterator[dict[Site, Float[Tensor, "row step sample dim"]]]:
        """Yield each batch's activations of the unsteered subject, float32 on the CPU; a text has one step and sample.

        Raises ActivationError for a value that is not finite, SiteError for a site that never fires.
        """
        ...

    def labelled_tokens(
        self, texts: Sequence[Content], spans: Sequence[Spans], sites: Sequence[Site], advance: Callable[[], None]
    ) -> LabelledTokens:
        """Return single tokens, labelled by spans of characters. Raises OptionError where examples have no tokens.

        advance: called after every batch.
        """
        ...

    def token_scores(
        self,
        texts: Sequence[Content],
        directions: Mapping[Site, Float[Tensor, "dim direction"]],
        advance: Callable[[], None],
    ) -> TokenProjections | None:
        """Return the projections of each row's tokens but the first on the directions of each site, and which count.

        None where examples are not rows of tokens. advance: called after every batch.
        """
        ...

    def rows(self, texts: Sequence[Content], tokens: Tokens = "auto") -> list[Rendered]:
        """Return the tokens of each example, cut to the longest that is read, and which of them count.

        Raises OptionError where there are none.
        """
        ...

    def pad_token(self) -> int:
        """Return a token to fill rows with. Raises OptionError where there are no tokens."""
        ...

    def run(self, batch: Foreign) -> Foreign:
        """Run a batch, with gradients where the caller records them."""
        ...

    def real(self, batch: Foreign) -> Bool[Tensor, "row token"]:
        """Return which tokens of a batch are real."""
        ...

    def counted(self, batch: Foreign) -> Bool[Tensor, "row token"]:
        """Return which tokens of a batch count; see `dsas.model.rendering`."""
        ...

    def prompt_lengths(self, batch: Foreign) -> Sequence[int]:
        """Return how many tokens of each row come before its answer: all where there is none; empty for pictures."""
        ...

    def counted_at(self, batch: Foreign, site: Site, count: int) -> Bool[Tensor, "row place"]:
        """Return which of the `count` places of a site count."""
        ...

    def pool(self, t: Float[Tensor, "row token dim"], batch: Foreign) -> Float[Tensor, "row dim"]:
        """Return one vector per row, from its tokens that count, float32 or better; gradients flow through."""
        ...

    def follow(self, hooks: Hooks, sites: Sequence[Site]) -> Callable[[Site, Tensor, Any], ForwardPass] | None:
        """Watch the passes of a run, and return the function that chooses the rows of a site's activation to read.

        None where every site fires once per batch and all its rows are read.
        """
        ...


@runtime_checkable
class Subject(Protocol):
    """What is steered.

    measured_by: how to find out whether a Steering works on a subject other than its own.
    """

    measured_by: str

    @property
    def module(self) -> nn.Module:
        """The tree of modules whose paths are the sites' paths."""
        ...

    @property
    def identity(self) -> ModelIdentity:
        """Which model this is, for comparison with a Steering's."""
        ...

    def sites(self, patterns: SitePatterns) -> list[Site]:
        """Return the sites that `patterns` name, in the order of the model. Raises SiteError."""
        ...

    def passes(self, *, branch: Branch, prompt_tokens: PromptTokens, skip_sinks: bool, by: object = None) -> Passes:
        """Return the reader of its passes. by: identifies a Steering's work, compared with ==.

        Raises OptionError for options that this kind does not have.
        """
        ...

    def recorder(self, sites: Sequence[str]) -> Recorder:
        """Return what records applied strengths at the named sites."""
        ...

    def check_fusing(self, sites: Sequence[Site], branch: Branch) -> None:
        """Raise OptionError where modules that steer all their rows would not do what was asked for."""
        ...

    def examples(self, reading: Any = None, *, training: bool = False) -> Examples:
        """Return how examples are read; the kind's own default when `reading` is None. Raises OptionError."""
        ...


def subject_of(model: Model, tokenizer: Tokenizer = None) -> Subject:
    """Return the subject for what a user gives as model: a torch module with its tokenizer, or a diffusers pipeline.

    The wrappers of torch.compile and of data parallelism are removed.
    Raises OptionError for anything else, or a tokenizer beside a pipeline.
    """
    if not isinstance(model, nn.Module) and isinstance(getattr(model, "components", None), dict) and callable(model):
        model = PipelineModules(model)
    if isinstance(model, PipelineModules):
        if tokenizer is not None:
            raise OptionError("a pipeline has its own tokenizers: remove tokenizer=")
        return ImagePipeline(model)
    if isinstance(model, nn.Module):
        return LanguageModel(unwrapped(model), tokenizer)
    raise OptionError(f"expected a torch module or a diffusers pipeline, got {type(model).__name__}")
