"""Where serving reaches into vLLM is looked up in a wheel: what is gone or takes something else is named."""

import importlib
import zipfile
from pathlib import Path

points = importlib.import_module("insertion_points")


def wheel(path: Path, **changed: str) -> Path:
    """Write a wheel that has all the points, but for those whose text is given another one."""
    files: dict[str, list[str]] = {}
    for (file, *_), point in points.POINTS:
        name, bracket, parameters = point.partition("(")
        owner, _, method = name.rpartition(".")
        text = f"class {name}: pass"
        if bracket:
            text = (
                f"class {owner}:\n    def {method}({parameters}: pass" if owner else f"def {method}({parameters}: pass"
            )
        files.setdefault(f"vllm/{file}", []).append(changed.get(name.replace(".", "_"), text))
    with zipfile.ZipFile(path, "w") as written:
        for file, texts in files.items():
            written.writestr(file, "\n".join(texts))
    return path


def test_a_wheel_that_has_them_all_has_no_problem_wherever_one_of_two_files_has_it(tmp_path: Path) -> None:
    assert points.problems(wheel(tmp_path / "a.whl")) == []


def test_what_is_gone_or_takes_other_parameters_or_has_no_file_is_named(tmp_path: Path) -> None:
    other = "class AsyncLLM:\n    async def generate(self, request, prompt): pass"
    found = points.problems(wheel(tmp_path / "a.whl", AsyncLLM_generate=other, MambaSpec="class Mamba: pass"))
    assert found == [
        "v1/engine/async_llm.py: AsyncLLM.generate(self, prompt, sampling_params, request_id): "
        "its parameters are self, request, prompt",
        "v1/kv_cache_interface.py: MambaSpec: gone",
    ]
    with zipfile.ZipFile(tmp_path / "b.whl", "w"):
        pass
    assert len(points.problems(tmp_path / "b.whl")) == len(points.POINTS)
