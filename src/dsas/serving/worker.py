"""Worker: vLLM's own worker of this platform, which steers the model it has loaded (`--worker-cls`)."""

from vllm.distributed import get_tp_group  # pyright: ignore[reportMissingImports]
from vllm.platforms import current_platform  # pyright: ignore[reportMissingImports]

from dsas.errors import DsasError
from dsas.files.json_values import JsonObject
from dsas.model.foreign import Foreign, Given
from dsas.serving.config import Source
from dsas.serving.runner import SteeredRunner

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as PlatformWorker  # pyright: ignore[reportMissingImports]
else:
    from vllm.v1.worker.gpu_worker import Worker as PlatformWorker  # pyright: ignore[reportMissingImports]


class SteeringWorker(PlatformWorker):
    """Steers after load; the operator's endpoint or `engine.load` calls `dsas_load` on all workers at once."""

    def load_model(self, *args: Given, **kwargs: Given) -> None:
        """Load the model, then give its sites their tables. Raises as `SteeredRunner` does."""
        super().load_model(*args, **kwargs)
        self.dsas = SteeredRunner(self.model_runner, self.vllm_config)

    def dsas_load(self, name: str, source: JsonObject) -> str | None:
        """Load another Steering; return what is wrong with it, or None when it is loaded."""
        try:
            self.dsas.load(name, Source(**source))
        except DsasError as error:
            return str(error)
        except Exception as error:  # whatever it is, the engine continues and the operator gets the message
            return f"{name!r} cannot be served: {type(error).__name__}: {error}"
        return None

    def sample_tokens(self, *args: Given, **kwargs: Given) -> Foreign:
        """Sample, and end the requests that their regulators' values have stopped."""
        return self.dsas.verdicts.judged(super().sample_tokens(*args, **kwargs))

    def dsas_keep(self, digests: list[str]) -> None:
        """Free the slots of all Steerings but these."""
        self.dsas.keep(digests)

    def dsas_report(self, request: str) -> JsonObject | None:
        """Return how strongly a request was steered at this pipeline stage; one worker per stage answers."""
        return self.dsas.reports.read(request) if get_tp_group().rank_in_group == 0 else None

    def dsas_reports(self, requests: list[str]) -> list[JsonObject | None] | None:
        """Return the same for several requests."""
        if get_tp_group().rank_in_group:
            return None
        return [self.dsas.reports.read(request) for request in requests]

    def dsas_find(self, request: str) -> dict[str, JsonObject]:
        """Return the same for all prompts of a request, by their ids."""
        return self.dsas.reports.find(request) if get_tp_group().rank_in_group == 0 else {}

    def dsas_describe(self) -> JsonObject:
        """Return the sites of this worker with their columns, and the bytes of its tables and buffers."""
        return self.dsas.describe()
