"""Runner: Steerings in a model that vLLM has loaded, and the rows of its requests brought to the model's tokens.

After the weights are there, every site's module gets its table; then the runner's own preparation of a step is followed
by filling the token buffers. In the first generation of vLLM's runners that is right after `_prepare_inputs`, where the
order of the batch is settled; in the second the model state is told of every request and of every step. Where evidence
adds up, the runner is followed to its KV cache as well (`cache_blocks`).

Nothing here imports vLLM: what is used of its objects is named in `SteeredRunner` and in the two followers.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from dsas.errors import ModelMismatchError, OptionError, StateError
from dsas.files.json_values import Json
from dsas.model.foreign import Foreign, Given
from dsas.serving.carried import Carried
from dsas.serving.config import ServingConfig, Source, load
from dsas.serving.modules import steer_module, table_of
from dsas.serving.reports import Reports, Wanted
from dsas.serving.requests import REPORTED, RESOLVED, STEERING
from dsas.serving.tables import Parts, Row, served_rows
from dsas.serving.tokens import RequestRow, TokenBuffers, identity_row
from dsas.steering.steering import Steering


class Served(NamedTuple):
    """A request that runs: the row of its tokens, and whose report they belong to, if it asked for one."""

    row: RequestRow
    wanted: Wanted | None


class SteeredRunner:
    """The Steerings of one worker: which slot each has, by digest, and the rows of the requests it runs."""

    def __init__(self, runner: Foreign, vllm_config: Foreign) -> None:
        """Steer the model of a vLLM model runner as vLLM's configuration says.

        Raises StateError without a configuration, OptionError for features that were never tried with steering,
        ModelMismatchError and OptionError for a Steering that does not fit or cannot be served.
        """
        config = ServingConfig.of(vllm_config.additional_config)
        if config is None:
            raise StateError("the worker class of dsas needs its configuration: use dsas.serving.engine.arguments")
        refuse_untried(vllm_config)
        self.together = config.together
        self._model, text = runner.get_model(), vllm_config.model_config.hf_text_config
        self._width: int = text.hidden_size
        model_class: str = vllm_config.model_config.hf_config.architectures[0]
        self._fitting = partial(served_rows, model_class=model_class, width=self._width, depth=text.num_hidden_layers)
        self._capacity = len(config.sources) + config.spare
        self._slots: dict[str, int] = {}
        self._seen: dict[str, tuple[Any, Served]] = {}
        loaded = {name: self._rows(name, load(source)) for name, source in config.sources.items()}
        self._sites = _parts(list(loaded.values()))
        adding = [path for path, parts in self._sites.items() if parts.evidence]
        tokens = TokenBuffers(self.together, _most_tokens(vllm_config), reports=config.reports, adding=len(adding))
        self.tokens = tokens.to(next(self._model.parameters()).device)
        self.reports = Reports(self.tokens)
        self._sites_of: dict[str, int] = {}
        self._install(adding)
        for name, source in config.sources.items():
            self._put(source.digest, loaded[name])
        follow = _follow_states if hasattr(runner, "model_state") else _follow_batches
        follow(self, runner)
        self.carried = None
        if adding:
            refuse_moved_blocks(vllm_config)
            prefix_caching = bool(vllm_config.cache_config.enable_prefix_caching)
            self.carried = Carried(self.tokens, runner, prefix_caching=prefix_caching)
        if config.reports or self.carried is not None:
            _follow_passes(self, runner)

    def load(self, name: str, source: Source) -> None:
        """Take another Steering into a free slot; one that is there already, by digest, takes none.

        Slots of Steerings that were loaded are never used twice, so requests that still run keep what they were given.
        Whatever is raised, no slot is taken and no row left. Raises OptionError when none is free or the Steering acts
        where no other did when the server started, and what the constructor raises.
        """
        if source.digest in self._slots:
            return
        if len(self._slots) >= self._capacity:
            raise OptionError(
                f"no slot is free for {name!r}: the server was started with {self._capacity}, and every Steering or "
                "version of one takes one for good; start it with a larger --spare"
            )
        rows = self._rows(name, load(source))
        known = [path for path in rows if path not in self._sites]
        if known:
            raise OptionError(
                f"{name!r} acts at {known[0]}, where no Steering acted when the server started ({len(known)} such "
                "sites): start the server with this Steering"
            )
        for path, row in rows.items():  # at sites of other pipeline stages too, so that all workers say the same
            self._sites[path].check(row)
        self._put(source.digest, rows)

    def row_of(self, extra_args: Mapping[str, Json] | None) -> RequestRow:
        """Return the row of a request from its arguments. Raises StateError when they were not checked on entry."""
        given = extra_args or {}
        if RESOLVED not in given:
            if STEERING in given:
                raise StateError("a request reached the worker unchecked: vLLM did not load dsas's general plugin")
            return identity_row(self.together)
        slots = [self._slots[digest] for digest, _ in given[RESOLVED]]
        idle = self.together - len(slots)
        return RequestRow((*slots, *[0] * idle), (*(strength for _, strength in given[RESOLVED]), *[0.0] * idle))

    def served(self, params: Foreign) -> "Served":
        """Return the row of a request, and the report that it wants, from its parameters. Raises as `row_of`."""
        extra_args = getattr(params, "extra_args", None) or {}
        row, wanted = self.row_of(extra_args), extra_args.get(REPORTED)
        if wanted is None:
            return Served(row, None)
        sites = [self._sites_of[digest] for digest, _ in extra_args[RESOLVED]]
        return Served(row, Wanted(wanted[0], tuple(wanted[1:]), tuple(sites)))

    def served_by_id(self, request: str, params: Foreign) -> "Served":
        """Return the same by the request's id, remembered as long as its parameters are the same object."""
        known = self._seen.get(request)
        if known is None or known[0] is not params:
            known = params, self.served(params)
            self._seen[request] = known
        return known[1]

    def begin(
        self, requests: Sequence["Served"], counts: np.ndarray, computed: np.ndarray, numbers: np.ndarray
    ) -> None:
        """Bring the requests of a step to their tokens.

        counts, computed: how many tokens of each request the step reads, and how many were read before. numbers: by
        which the runner's block tables know the requests.
        """
        self.tokens.fill([one.row for one in requests], counts)
        self.reports.begin([one.wanted for one in requests], counts)
        if self.carried is not None:
            self.carried.begin(counts, computed, numbers)

    def end(self) -> None:
        """Keep what the step that ran has left."""
        self.reports.end()
        if self.carried is not None:
            self.carried.end()

    def forget(self, alive: Mapping[str, Json]) -> None:
        """Forget requests that are over, once they are many."""
        if len(self._seen) > 2 * len(alive) + 64:
            self._seen = {request: known for request, known in self._seen.items() if request in alive}

    def _rows(self, name: str, steering: Steering) -> dict[str, Row]:
        try:
            return self._fitting(steering)
        except (ModelMismatchError, OptionError) as error:
            raise type(error)(f"{name!r} cannot be served: {error}") from error

    def _install(self, adding: Sequence[str]) -> None:
        for path, parts in self._sites.items():
            steer_module(
                self._model,
                path,
                slots=self._capacity,
                width=self._width,
                parts=parts,
                tokens=self.tokens,
                place=adding.index(path) if parts.evidence else 0,
            )

    def _put(self, digest: str, rows: Mapping[str, Row]) -> None:
        if digest in self._slots:
            return
        slot, found = len(self._slots) + 1, [(table_of(self._model, path), row) for path, row in rows.items()]
        own = [(table, row) for table, row in found if table is not None]
        try:
            for table, row in own:
                table.put(slot, row)
        except BaseException:
            for table, _ in own:
                table.clear(slot)
            raise
        self._slots[digest], self._sites_of[digest] = slot, len(rows)


def _parts(loaded: Sequence[Mapping[str, Row]]) -> dict[str, Parts]:
    """Return what the table of each site needs for the rows of these Steerings."""
    at: dict[str, list[Row]] = {}
    for rows in loaded:
        for path, row in rows.items():
            at.setdefault(path, []).append(row)
    return {path: Parts.of(rows) for path, rows in at.items()}


def refuse_untried(vllm_config: Foreign) -> None:
    """Raise OptionError for features of vLLM under which a token's place in the buffers would be another."""
    parallel, cache = vllm_config.parallel_config, vllm_config.cache_config
    untried = {
        "speculative decoding": vllm_config.speculative_config is not None,
        "overlap of parts of a batch": getattr(parallel, "use_ubatching", False),
        "prefill context parallelism": getattr(parallel, "prefill_context_parallel_size", 1) > 1,
        "sequence parallelism": getattr(parallel, "enable_hc_sp", False),
        "KV-sharing fast prefill": getattr(cache, "kv_sharing_fast_prefill", False),
    }
    for what, used in untried.items():
        if used:
            raise OptionError(f"{what} cannot be combined with steering: leave it out")


def refuse_moved_blocks(vllm_config: Foreign) -> None:
    """Raise OptionError for features of vLLM under which blocks of the KV cache come without their sums."""
    moving = {
        "a KV connector": vllm_config.kv_transfer_config is not None,
        "decode context parallelism": getattr(vllm_config.parallel_config, "decode_context_parallel_size", 1) > 1,
    }
    for what, used in moving.items():
        if used:
            raise OptionError(
                f"{what} cannot be combined with the regulator 'evidence', whose sums stay where the blocks of the KV "
                "cache were read: leave it out, or fit 'probe'"
            )


def _follow_batches(steered: SteeredRunner, runner: Foreign) -> None:
    """Fill the buffers after a runner of the first generation has prepared a step."""
    prepare: Callable[..., Foreign] = runner._prepare_inputs

    def prepare_inputs(scheduler_output: Any, counts: np.ndarray) -> Foreign:
        prepared = prepare(scheduler_output, counts)
        requests = runner.requests
        ids, computed = runner.input_batch.req_ids, runner.input_batch.num_computed_tokens_cpu
        served = [steered.served_by_id(one, requests[one].sampling_params) for one in ids]
        steered.begin(served, counts, computed[: len(ids)], np.arange(len(ids)))
        steered.forget(requests)
        return prepared

    runner._prepare_inputs = prepare_inputs


def _follow_states(steered: SteeredRunner, runner: Foreign) -> None:
    """Fill the buffers when a model state of the second generation prepares a step; it knows requests by number."""
    state = runner.model_state
    add, prepare = state.add_request, state.prepare_inputs
    served = [Served(identity_row(steered.together), None)] * state.max_num_reqs

    def add_request(number: int, request: Foreign) -> None:
        served[number] = steered.served(request.sampling_params)
        add(number, request)

    def prepare_inputs(batch: Foreign, states: Any) -> Foreign:
        requests = [served[number] for number in batch.idx_mapping_np]
        steered.begin(requests, batch.num_scheduled_tokens, batch.num_computed_tokens_np, batch.idx_mapping_np)
        return prepare(batch, states)

    state.add_request, state.prepare_inputs = add_request, prepare_inputs


def _follow_passes(steered: SteeredRunner, runner: Foreign) -> None:
    """Keep what every pass of a runner, of either generation, has left, as soon as it is on its way."""
    execute: Callable[..., Foreign] = runner.execute_model

    def execute_model(*args: Given, **kwargs: Given) -> Foreign:
        output = execute(*args, **kwargs)
        steered.end()
        return output

    runner.execute_model = execute_model


def _most_tokens(vllm_config: Foreign) -> int:
    graphs = getattr(vllm_config.compilation_config, "max_cudagraph_capture_size", None) or 0
    return max(vllm_config.scheduler_config.max_num_batched_tokens, graphs)
