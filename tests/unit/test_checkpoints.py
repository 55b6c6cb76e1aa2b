"""Finding a model on this machine, and telling two of them apart."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from launcher.checkpoints import Checkpoint, find_model
from launcher.errors import SpecError

CONFIGS = Path(__file__).parent.parent / "fixtures" / "configs"


def checkpoint(folder: Path, config: str = "smollm2-135m") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(CONFIGS / f"{config}.json", folder / "config.json")
    (folder / "model.safetensors").write_bytes(b"w" * 100)
    return folder


def find(name: str, base: Path, **environ: str) -> Checkpoint | None:
    return find_model(name, base=base, environ={"HOME": str(base / "home")} | environ).checkpoint


def found(name: str, base: Path, **environ: str) -> Checkpoint:
    checkpoint = find(name, base, **environ)
    assert checkpoint is not None
    return checkpoint


def codes(name: str, base: Path, **environ: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        find(name, base, **environ)
    return [problem.code for problem in caught.value.problems]


def test_a_directory_is_found_from_the_job_file_on(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "models" / "small")
    assert found("models/small", tmp_path).path == folder
    assert found(str(folder), Path("/")).path == folder
    assert found("models/small", tmp_path).shape.layers == 30


def test_a_built_in_name_needs_no_checkpoint(tmp_path: Path) -> None:
    model = find_model("llama-3.1-405b", base=tmp_path, environ={"HOME": str(tmp_path)})
    assert model.checkpoint is None
    assert model.shape is not None


def test_a_built_in_model_in_the_cache_is_a_checkpoint(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    checkpoint(cache / "smollm2-135m")
    assert found("smollm2-135m", tmp_path, HPC_LLM_MODEL_CACHE=str(cache)).path.parent == cache


def hub(tmp_path: Path, *, ref: str | None = "abc") -> Path:
    entry = tmp_path / "hf" / "hub" / "models--org--small"
    checkpoint(entry / "snapshots" / "abc")
    if ref is not None:
        (entry / "refs").mkdir()
        (entry / "refs" / "main").write_text(ref)
    return tmp_path / "hf"


def test_a_hub_id_is_found_in_the_local_cache(tmp_path: Path) -> None:
    home = hub(tmp_path)
    assert found("org/small", tmp_path, HF_HOME=str(home)).path.name == "abc"
    assert found("org/small", tmp_path, HF_HUB_CACHE=str(home / "hub")).path.name == "abc"


@pytest.mark.parametrize("ref", [None, "gone", ""])
def test_a_hub_id_without_its_snapshot_is_not_cached(tmp_path: Path, ref: str | None) -> None:
    home = hub(tmp_path, ref=ref)
    assert codes("org/small", tmp_path, HF_HOME=str(home)) == ["model.not-cached"]


@pytest.mark.parametrize(
    "name", ["nosuch", "a/b/c", "~nosuchuser/x", "x" * 5000, "../x", "*", "{{ x }}", "\x1b[31m"]
)
def test_a_name_that_means_nothing_is_missing(tmp_path: Path, name: str) -> None:
    assert codes(name, tmp_path) == ["model.missing"]


def test_a_file_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert codes("model.gguf", tmp_path) == ["model.missing"]


@pytest.mark.parametrize(
    "config", [None, b"", b"{", b"[]", b"null", b'"x"', b"7", b"{}", b"\xff", b"[" * 100_000]
)
def test_an_unusable_config_is_named(tmp_path: Path, config: bytes | None) -> None:
    (tmp_path / "m").mkdir()
    if config is not None:
        (tmp_path / "m" / "config.json").write_bytes(config)
    assert set(codes("m", tmp_path)) == {"model.config"}


@pytest.mark.parametrize("content", [b"[]", b"null", b"{", b"\xff"])
def test_an_unusable_tokenizer_config_is_named(tmp_path: Path, content: bytes) -> None:
    folder = checkpoint(tmp_path / "m")
    (folder / "tokenizer_config.json").write_bytes(content)
    assert codes("m", tmp_path) == ["model.config"]


def test_a_chat_template_is_found_in_either_place(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m")
    assert not found("m", tmp_path).chat_template
    tokenizer = folder / "tokenizer_config.json"
    tokenizer.write_text(json.dumps({"chat_template": None}))
    assert not found("m", tmp_path).chat_template
    tokenizer.write_text(json.dumps({"chat_template": "{{ x }}"}))
    assert found("m", tmp_path).chat_template
    tokenizer.unlink()
    (folder / "chat_template.jinja").write_text("{{ x }}")
    assert found("m", tmp_path).chat_template


def test_a_copy_of_a_checkpoint_is_the_same_model(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "one")
    shutil.copytree(folder, tmp_path / "two")
    assert found("one", tmp_path).digest == found("two", tmp_path).digest


@pytest.mark.parametrize("change", ["config", "weights", "weights-name", "tokenizer"])
def test_another_model_has_another_digest(tmp_path: Path, change: str) -> None:
    folder = checkpoint(tmp_path / "m")
    before = found("m", tmp_path).digest
    weights = folder / "model.safetensors"
    if change == "config":
        text = (folder / "config.json").read_text()
        (folder / "config.json").write_text(text + "\n")
    elif change == "weights":
        weights.write_bytes(b"w" * 101)
    elif change == "weights-name":
        weights.rename(folder / "other.safetensors")
    else:
        (folder / "tokenizer.json").write_text("{}")
    assert found("m", tmp_path).digest != before


def test_how_modelopt_quantised_a_checkpoint_counts_before_its_config(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m", "deepseek-v3")
    own = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4"}}
    (folder / "hf_quant_config.json").write_text(json.dumps(own))
    how = found("m", tmp_path).shape.quantisation
    assert how is not None
    assert (how.method, how.algorithm, how.block_size) == ("modelopt", "NVFP4", None)


def test_an_hf_quant_config_that_quantises_nothing_leaves_the_config_as_it_is(
    tmp_path: Path,
) -> None:
    folder = checkpoint(tmp_path / "m", "deepseek-v3")
    before = found("m", tmp_path).shape
    (folder / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": null}}')
    assert found("m", tmp_path).shape == before


def test_a_checkpoint_of_the_hub_knows_the_cache_that_it_lies_in(tmp_path: Path) -> None:
    home = hub(tmp_path)
    assert found("org/small", tmp_path, HF_HOME=str(home)).hub_cache == home / "hub"
    directory = home / "hub/models--org--small/snapshots/abc"
    assert found(str(directory), tmp_path).hub_cache is None


# --- tensors


def write_tensors(path: Path, sizes: Mapping[str, int]) -> None:
    """A safetensors file of zeros: eight bytes of length, a header in JSON, the data."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, size in sizes.items():
        header[name] = {"dtype": "U8", "shape": [size], "data_offsets": [start, start + size]}
        start += size
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(start))


LAYERS = {f"model.layers.{index}.mlp.up_proj.weight": 7 for index in range(30)}


def test_tensors_of_one_file_are_counted_by_layer(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m")
    sizes = LAYERS | {"model.embed_tokens.weight": 11, "model.norm.weight": 2}
    write_tensors(folder / "model.safetensors", sizes)
    stored = found("./m", tmp_path).shape.stored
    assert stored is not None
    assert stored.layers == (7,) * 30
    assert (stored.embedding, stored.head, stored.rest) == (11, 0, 2)


def test_tensors_of_several_files_are_those_of_the_index(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    parts = {"one.safetensors": {"model.embed_tokens.weight": 11}, "two.safetensors": LAYERS}
    for name, sizes in parts.items():
        write_tensors(folder / name, sizes)
    # A copy in another form, which the index does not name.
    write_tensors(folder / "consolidated.safetensors", LAYERS)
    names = {tensor: name for name, sizes in parts.items() for tensor in sizes}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    stored = found("./m", tmp_path).shape.stored
    assert stored is not None
    assert sum(stored.layers) == 210


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"w" * 100,
        (2**40).to_bytes(8, "little"),
        (2).to_bytes(8, "little") + b"[]",
        (2).to_bytes(8, "little") + b"{}",
        (9).to_bytes(8, "little") + b'{"a": {}}',
        (24).to_bytes(8, "little") + b'{"a":{"data_offsets":0}}',
    ],
)
def test_a_file_that_holds_no_tensors_leaves_sizes_to_the_config(
    tmp_path: Path, content: bytes
) -> None:
    folder = checkpoint(tmp_path / "m")
    (folder / "model.safetensors").write_bytes(content)
    assert found("./m", tmp_path).shape.stored is None


@pytest.mark.parametrize("index", [b"", b"[]", b'{"weight_map": 1}', b'{"weight_map": {"a": 1}}'])
def test_an_index_that_names_no_files_leaves_sizes_to_the_config(
    tmp_path: Path, index: bytes
) -> None:
    folder = checkpoint(tmp_path / "m")
    (folder / "model.safetensors.index.json").write_bytes(index)
    assert found("./m", tmp_path).shape.stored is None
