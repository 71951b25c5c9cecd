"""Where `dsas.serving` reaches into vLLM, looked up in a wheel that need not be installed.

    pip download vllm==0.33.0 --no-deps
    python scripts/insertion_points.py vllm-0.33.0-cp38-abi3-manylinux_2_28_x86_64.whl

Prints what is missing, or takes other first parameters than dsas gives or forwards, and ends with status 1 if anything
does. What such a function then does with them is not seen: read it, and run `make test-vllm`.
"""

import argparse
import ast
import zipfile
from pathlib import Path

# File, then what is replaced, called or subclassed there, with the parameters that count in their order; a name alone
# is a class or a field. Several files: where one of them has it.
POINTS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("v1/engine/input_processor.py",), "InputProcessor.process_inputs(self, request_id, prompt, params)"),
    (("v1/engine/async_llm.py",), "AsyncLLM.generate(self, prompt, sampling_params, request_id)"),
    (("v1/engine/core_client.py",), "AsyncMPClient.call_utility_all_async(self, method)"),
    (("v1/engine/core.py",), "EngineCore.collective_rpc(self, method, timeout, args, kwargs)"),
    (("v1/engine/llm_engine.py",), "LLMEngine.collective_rpc(self, method, timeout, args, kwargs)"),
    (("v1/engine/output_processor.py",), "OutputProcessor.process_outputs(self, engine_core_outputs)"),
    (("v1/engine/output_processor.py",), "OutputProcessor.add_request(self, request)"),
    (("v1/worker/cpu_worker.py",), "CPUWorker"),
    (("v1/worker/gpu_worker.py",), "Worker.load_model(self)"),
    (("v1/worker/gpu_worker.py",), "Worker.sample_tokens(self, grammar_output)"),
    (
        ("v1/worker/gpu_model_runner.py",),
        "GPUModelRunner._prepare_inputs(self, scheduler_output, num_scheduled_tokens)",
    ),
    (("v1/worker/gpu_model_runner.py",), "GPUModelRunner.execute_model(self)"),
    (("v1/worker/gpu_model_runner.py",), "GPUModelRunner.initialize_kv_cache(self, kv_cache_config)"),
    (("v1/worker/gpu/model_runner.py",), "GPUModelRunner.execute_model(self)"),
    (("v1/worker/gpu/model_runner.py",), "GPUModelRunner.initialize_kv_cache(self, kv_cache_config)"),
    (("v1/worker/gpu/model_states/interface.py",), "ModelState.add_request(self, req_index, new_req_data)"),
    (("v1/worker/gpu/model_states/interface.py",), "ModelState.prepare_inputs(self, input_batch, req_states)"),
    (("v1/worker/gpu/block_table.py",), "BlockTables.append_block_ids(self, req_index, new_block_ids, overwrite)"),
    (("v1/worker/block_table.py",), "BlockTable.get_numpy_array(self)"),
    (("v1/worker/gpu_input_batch.py",), "num_computed_tokens_cpu"),
    (("v1/worker/gpu_input_batch.py",), "token_ids_cpu"),
    (("v1/worker/gpu/input_batch.py",), "idx_mapping_np"),
    (("v1/worker/gpu/input_batch.py",), "num_computed_tokens_np"),
    (("v1/kv_cache_interface.py",), "FullAttentionSpec"),
    (("v1/kv_cache_interface.py",), "SlidingWindowSpec"),
    (("v1/kv_cache_interface.py",), "MambaSpec"),
    (("v1/kv_cache_interface.py",), "kv_cache_groups"),
    (("v1/outputs.py",), "AsyncModelRunnerOutput.get_output(self)"),
    (("v1/outputs.py",), "sampled_token_ids"),
    (("sampling_params.py",), "extra_args"),
    (("sampling_params.py",), "skip_reading_prefix_cache"),
    (("outputs.py",), "kv_transfer_params"),
    (("exceptions.py",), "VLLMValidationError"),
    (("entrypoints/openai/completion/protocol.py",), "CompletionRequest.to_sampling_params(self)"),
    (("entrypoints/openai/completion/protocol.py",), "CompletionRequest.to_beam_search_params(self)"),
    (("entrypoints/openai/chat_completion/protocol.py",), "ChatCompletionRequest.to_sampling_params(self)"),
    (("entrypoints/openai/chat_completion/protocol.py",), "ChatCompletionRequest.to_beam_search_params(self)"),
    (("entrypoints/openai/responses/protocol.py",), "ResponsesRequest.to_sampling_params(self)"),
    (("entrypoints/cli/serve.py",), "ServeSubcommand.subparser_init(self, subparsers)"),
    (("entrypoints/cli/serve.py",), "ServeSubcommand.validate(self, args)"),
    (("entrypoints/cli/serve.py",), "ServeSubcommand.cmd(args)"),
    (("entrypoints/common/startup.py", "entrypoints/serve/utils/api_utils.py"), "cli_env_setup()"),
    (("utils/argparse_utils.py",), "FlexibleArgumentParser"),
    (("plugins/endpoint_plugins/interface.py",), "EndpointPlugin"),
    (("plugins/__init__.py",), "ENDPOINT_PLUGINS_GROUP"),
)


def problems(wheel: Path) -> list[str]:
    """Return what of `POINTS` a wheel does not have, or has with other parameters."""
    found = []
    with zipfile.ZipFile(wheel) as files:
        names = set(files.namelist())
        for paths, point in POINTS:
            there = [f"vllm/{path}" for path in paths if f"vllm/{path}" in names]
            said = [_problem(ast.parse(files.read(path)), point) for path in there] or ["no such file"]
            if all(said):
                found.append(f"{' or '.join(paths)}: {point}: {said[0]}")
    return found


def _problem(tree: ast.Module, point: str) -> str:
    """Return what is wrong with a point in a file, empty when nothing is."""
    path, bracket, wanted = point.partition("(")
    if not bracket:
        return "" if path in _names(tree) else "gone"
    *classes, name = path.split(".")
    body: list[ast.stmt] = tree.body
    for wanted_class in classes:
        body = [
            part for node in body if isinstance(node, ast.ClassDef) and node.name == wanted_class for part in node.body
        ]
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    function = next((node for node in body if isinstance(node, kinds) and node.name == name), None)
    if function is None:
        return "gone"
    parameters = [one.arg for one in (*function.args.posonlyargs, *function.args.args)]
    asked = [name.strip() for name in wanted.rstrip(")").split(",") if name.strip()]
    return "" if parameters[: len(asked)] == asked else f"its parameters are {', '.join(parameters)}"


def _names(tree: ast.Module) -> set[str]:
    """Return the names of classes and of what is assigned anywhere in a file."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
    return found


def main() -> int:
    """Look a wheel up; return the status."""
    parser = argparse.ArgumentParser(description="Look up in a wheel of vLLM where dsas.serving reaches into it.")
    parser.add_argument("wheel", type=Path)
    found = problems(parser.parse_args().wheel)
    print(*found or [f"all {len(POINTS)} places are there"], sep="\n")
    return bool(found)


if __name__ == "__main__":
    raise SystemExit(main())
