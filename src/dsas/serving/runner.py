"""Runner: Steerings in a model that vLLM has loaded, with the rows of its requests assigned to the tokens.

After the weights are loaded, every site's module gets its table; then the token buffers are filled after the runner's
own preparation of each step. In the first generation of vLLM's runners that is right after `_prepare_inputs`, where the
order of the batch is final; in the second, the model state is called for every request and every step. If evidence
accumulates, the runner's KV cache is watched as well (`cache_blocks`).

Nothing here imports vLLM: `SteeredRunner` and the two followers name the parts of its objects that are used.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from dsas.errors import ModelMismatchError, OptionError, StateError
from dsas.files.json_values import Json, JsonObject
from dsas.model.foreign import Foreign, Given
from dsas.serving.carried import Carried
from dsas.serving.config import ServingConfig, Source, load
from dsas.serving.features import ids_hidden, most_tokens, refuse_moved_blocks, refuse_untried
from dsas.serving.modules import served_path, steer_module, table_of
from dsas.serving.parts import parts_by_site
from dsas.serving.places import Ids, Lists, Past, Placed, Places, refuse_unknown_ids
from dsas.serving.reports import Reports, Wanted
from dsas.serving.request_prompts import PromptOf, Prompts
from dsas.serving.requests import REPORTED, RESOLVED, STEERING
from dsas.serving.rule_rows import Row, places_of, served_rows
from dsas.serving.steps import Served, Step
from dsas.serving.tables import SiteTable
from dsas.serving.tokens import RequestRow, TokenBuffers, identity_row
from dsas.serving.verdicts import VERDICT, Verdicts
from dsas.steering.steering import Steering


class SteeredRunner:
    """The Steerings of one worker: their slots, by digest, and the rows of its requests."""

    def __init__(self, runner: Foreign, vllm_config: Foreign) -> None:
        """Steer the model of a vLLM model runner as vLLM's configuration says.

        Raises StateError without a configuration, OptionError for features that were not tested with steering,
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
        self._sites = parts_by_site(list(loaded.values()))
        adding = [path for path, parts in self._sites.items() if parts.evidence]
        deciding = [path for path, parts in self._sites.items() if parts.prompt]
        self._ids_hidden = ids_hidden(runner, vllm_config)
        for name, rows in loaded.items():
            refuse_unknown_ids(name, places_of(rows), self._ids_hidden)
        self._most_places = max(len(places_of(rows)) for rows in loaded.values())
        most, places = most_tokens(vllm_config), self._most_places
        tokens = TokenBuffers(self.together, most, reports=config.reports, adding=len(adding), places=places)
        if deciding:
            tokens.read_prompts(len(deciding), 2 * vllm_config.scheduler_config.max_num_seqs, self._width)
        self.tokens = tokens.to(next(self._model.parameters()).device)
        self.reports, self.places, self.verdicts = Reports(self.tokens), Places(self.tokens), Verdicts(self.tokens)
        self._sites_of: dict[str, int] = {}
        self._lists: dict[str, Lists] = {}
        self._decides: dict[str, bool] = {}
        self._install(adding, deciding)
        self.prompts = None
        if deciding:
            refuse_moved_blocks(vllm_config, "cast")
            self.prompts = Prompts(self.tokens)
        for name, source in config.sources.items():
            self._put(source.digest, loaded[name])
        follow = _follow_states if hasattr(runner, "model_state") else _follow_batches
        follow(self, runner)
        self.carried = None
        if adding:
            refuse_moved_blocks(vllm_config)
            prefix_caching = bool(vllm_config.cache_config.enable_prefix_caching)
            self.carried = Carried(self.tokens, runner, prefix_caching=prefix_caching)
        if config.reports or self.carried is not None or self.prompts is not None:
            _follow_passes(self, runner)

    def load(self, name: str, source: Source) -> None:
        """Load another Steering into a free slot; one that is already loaded, by digest, takes none.

        On an error, no slot is taken and no row is left. Raises OptionError when no slot is free or the Steering acts
        at sites where none did when the server started, and what the constructor raises.
        """
        if source.digest in self._slots:
            return
        if len(self._slots) >= self._capacity:
            raise OptionError(
                f"no slot is free for {name!r}: the server was started with {self._capacity}, and every Steering takes "
                "one until it is unloaded and its last request has ended; unload one, or start with a larger --spare"
            )
        rows = self._rows(name, load(source))
        known = [path for path in rows if path not in self._sites]
        if known:
            raise OptionError(
                f"{name!r} acts at {known[0]}, where no Steering acted when the server started ({len(known)} such "
                "sites): start the server with this Steering"
            )
        for path, row in rows.items():  # at sites of other pipeline stages, too, so that all workers agree
            self._sites[path].check(row)
        refuse_unknown_ids(name, places_of(rows), self._ids_hidden)
        if len(places_of(rows)) > self._most_places:
            raise OptionError(
                f"{name!r} has {len(places_of(rows))} different conditions on places, and no Steering had more than "
                f"{self._most_places} when the server started: start the server with this Steering"
            )
        self._put(source.digest, rows)

    def keep(self, digests: Sequence[str]) -> None:
        """Free the slots of all Steerings but these, which requests may name or have named."""
        for digest in [digest for digest in self._slots if digest not in digests]:
            slot = self._slots.pop(digest)
            for known in (self._sites_of, self._lists, self._decides):
                del known[digest]
            for path in self._sites:
                table = table_of(self._model, path)
                if table is not None:
                    table.clear(slot)

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

    def served(self, request: str, params: Foreign, prompt: int) -> "Served":
        """Return what a request with this id and this many prompt tokens asks for. Raises as `row_of` does."""
        extra_args = getattr(params, "extra_args", None) or {}
        row, asked = self.row_of(extra_args), extra_args.get(RESOLVED, ())
        wanted, lists = extra_args.get(REPORTED), tuple(self._lists[digest] for digest, _ in asked)
        placed = Placed(lists, Past(prompt)) if any(lists) else None
        sites = tuple(self._sites_of[digest] for digest, _ in asked)
        report = None if wanted is None else Wanted(wanted[0], tuple(wanted[1:]), sites)
        verdict = extra_args.get(VERDICT)
        watched = None if verdict is None else self.verdicts.watch(request, verdict, sites, prompt)
        decides = any(self._decides[digest] for digest, _ in asked)
        return Served(row, report, placed, watched, PromptOf(request, prompt) if decides else None)

    def served_by_id(self, request: str, params: Foreign, prompt: int) -> "Served":
        """Return the same by the request's id, cached as long as its parameters are the same object."""
        known = self._seen.get(request)
        if known is None or known[0] is not params:
            known = params, self.served(request, params, prompt)
            self._seen[request] = known
        return known[1]

    def begin(self, requests: Sequence["Served"], step: Step) -> None:
        """Assign the requests of a step to their tokens."""
        self.verdicts.settle()
        self.tokens.fill([one.row for one in requests], step.counts)
        self.verdicts.begin([one.watched for one in requests], step.counts, step.computed)
        self.reports.begin([one.wanted for one in requests], step.counts)
        if self._most_places:
            self.places.begin([one.placed for one in requests], step.counts, step.computed, step.ids)
        if self.prompts is not None:
            self.prompts.begin([one.prompt for one in requests], step.counts, step.computed)
        if self.carried is not None:
            self.carried.begin([one.prompt for one in requests], step.counts, step.computed, step.numbers)

    def end(self) -> None:
        """Store the results of the last step."""
        self.reports.end()
        if self.prompts is not None:
            self.prompts.end()
        if self.carried is not None:
            self.carried.end()

    def forget(self, alive: Mapping[str, Json]) -> None:
        """Forget finished requests, once there are many."""
        if len(self._seen) > 2 * len(alive) + 64:
            self._seen = {request: known for request, known in self._seen.items() if request in alive}

    def describe(self) -> JsonObject:
        """Return the sites of this worker with the columns of their tables, and the bytes of tables and buffers."""
        found = {path: table_of(self._model, path) for path in self._sites}
        tables = {path: table for path, table in found.items() if table is not None}
        return {
            "sites": {path: {k: v for k, v in table.parts._asdict().items() if v} for path, table in tables.items()},
            "table_bytes": sum(table.rows.nbytes for table in tables.values()),
            "buffer_bytes": sum(buffer.nbytes for buffer in self.tokens.buffers()),
        }

    def _rows(self, name: str, steering: Steering) -> dict[str, Row]:
        try:
            rows = self._fitting(steering)
        except (ModelMismatchError, OptionError) as error:
            raise type(error)(f"{name!r} cannot be served: {error}") from error
        decoder, depth = steering.model.decoder, steering.model.depth
        return {served_path(self._model, path, decoder, depth): row for path, row in rows.items()}

    def _install(self, adding: Sequence[str], deciding: Sequence[str]) -> None:
        for path, parts in self._sites.items():
            table = SiteTable(self._capacity, self._width, parts)
            place = adding.index(path) if parts.evidence else 0
            prompt = deciding.index(path) if parts.prompt else 0
            steer_module(self._model, path, table, self.tokens, place=place, prompt=prompt)

    def _put(self, digest: str, rows: Mapping[str, Row]) -> None:
        if digest in self._slots:
            return
        slot = min(set(range(1, self._capacity + 1)) - set(self._slots.values()))
        found = [(table_of(self._model, path), row) for path, row in rows.items()]
        own = [(table, row) for table, row in found if table is not None]
        try:
            for table, row in own:
                table.put(slot, row)
        except BaseException:
            for table, _ in own:
                table.clear(slot)
            raise
        self._slots[digest], self._sites_of[digest] = slot, len(rows)
        self._lists[digest] = places_of(rows)
        self._decides[digest] = any(row.by_prompt for row in rows.values())


def _follow_batches(steered: SteeredRunner, runner: Foreign) -> None:
    """Fill the buffers after a runner of the first generation has prepared a step."""
    prepare: Callable[..., Foreign] = runner._prepare_inputs

    def prepare_inputs(scheduler_output: Any, counts: np.ndarray) -> Foreign:
        prepared = prepare(scheduler_output, counts)
        requests, batch = runner.requests, runner.input_batch
        names = batch.req_ids
        served = [
            steered.served_by_id(one, requests[one].sampling_params, requests[one].num_prompt_tokens) for one in names
        ]
        computed = batch.num_computed_tokens_cpu[: len(names)]
        steered.begin(served, Step(counts, computed, np.arange(len(names)), ids_of))
        steered.forget(requests)
        return prepared

    def ids_of(number: int) -> Ids:
        return lambda start, end: runner.input_batch.token_ids_cpu[number, start:end]

    runner._prepare_inputs = prepare_inputs


def _follow_states(steered: SteeredRunner, runner: Foreign) -> None:
    """Fill the buffers when a model state of the second generation, which numbers requests, prepares a step."""
    state = runner.model_state
    add, prepare = state.add_request, state.prepare_inputs
    served = [Served(identity_row(steered.together))] * state.max_num_reqs

    def add_request(number: int, request: Foreign) -> None:
        prompt = len(request.prompt_token_ids or ())
        served[number] = steered.served(request.req_id, request.sampling_params, prompt)
        add(number, request)

    def prepare_inputs(batch: Foreign, states: Any) -> Foreign:
        requests = [served[number] for number in batch.idx_mapping_np]
        counts, computed, numbers = batch.num_scheduled_tokens, batch.num_computed_tokens_np, batch.idx_mapping_np
        steered.begin(requests, Step(counts, computed, numbers, ids_of))
        return prepare(batch, states)

    def ids_of(_number: int) -> Ids:
        def hidden(_start: int, _end: int) -> np.ndarray:  # `ids_hidden` refuses regulators that need them
            raise StateError("the token ids are on the device")

        return hidden

    state.add_request, state.prepare_inputs = add_request, prepare_inputs


def _follow_passes(steered: SteeredRunner, runner: Foreign) -> None:
    """Store the results of every pass of a runner, of either generation, as soon as it is launched."""
    execute: Callable[..., Foreign] = runner.execute_model

    def execute_model(*args: Given, **kwargs: Given) -> Foreign:
        output = execute(*args, **kwargs)
        steered.end()
        return output

    runner.execute_model = execute_model
