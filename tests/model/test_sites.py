"""Sites: shorthands of every family, globs, regular expressions, order, and errors that show the closest names."""

import ast
import re
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import dsas
from dsas.errors import ActivationError, SiteError
from dsas.model.identity import ModelIdentity
from dsas.model.sites import SHORTHANDS, STREAMS, listed
from dsas.testing import FAMILIES, tiny_model
from dsas.testing.models import HEADS, LAYERS, WIDTH

# Where each family keeps layer {0, 1, 2}, its second norm, attention and feed-forward: read off transformers' sources.
PARTS = {
    "gemma2": ("model.layers.{}", "post_feedforward_layernorm", "self_attn", "mlp"),
    "gemma3": ("model.layers.{}", "post_feedforward_layernorm", "self_attn", "mlp"),
    "gpt2": ("transformer.h.{}", "ln_2", "attn", "mlp"),
    "gpt_neox": ("gpt_neox.layers.{}", "post_attention_layernorm", "attention", "mlp"),
    "llama": ("model.layers.{}", "post_attention_layernorm", "self_attn", "mlp"),
    "mistral": ("model.layers.{}", "post_attention_layernorm", "self_attn", "mlp"),
    "mixtral": ("model.layers.{}", "post_attention_layernorm", "self_attn", "mlp"),
    "olmo2": ("model.layers.{}", "post_feedforward_layernorm", "self_attn", "mlp"),
    "opt": ("model.decoder.layers.{}", None, "self_attn", None),
    "phi3": ("model.layers.{}", "post_attention_layernorm", "self_attn", "mlp"),
    "qwen2": ("model.layers.{}", "post_attention_layernorm", "self_attn", "mlp"),
    "qwen3": ("model.layers.{}", "post_attention_layernorm", "self_attn", "mlp"),
}


def paths(model: nn.Module, patterns: Any) -> list[str]:
    return [site.path for site in dsas.find_sites(model, patterns)]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_shorthand_names_one_site_a_layer_in_order_in_every_family(family: str) -> None:
    model, (layer, *parts) = tiny_model(family), PARTS[family]
    layers = [layer.format(number) for number in range(LAYERS)]
    assert paths(model, "residual") == layers
    for shorthand, part in zip(SHORTHANDS[1:-1], parts, strict=True):
        if part is None:
            with pytest.raises(SiteError, match=f"{shorthand!r} is not known for OPTForCausalLM"):
                dsas.find_sites(model, shorthand)
        else:
            assert paths(model, shorthand) == [f"{path}.{part}" for path in layers]


OUTPUT_PROJECTIONS = {"gpt2": "attn.c_proj", "gpt_neox": "attention.dense", "opt": "self_attn.out_proj"}


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_are_equal_slices_of_what_the_output_projection_takes_in_every_family(family: str) -> None:
    model = tiny_model(family)
    path = f"{PARTS[family][0].format(1)}.{OUTPUT_PROJECTIONS.get(family, 'self_attn.o_proj')}"
    heads = dsas.find_sites(model, "heads")
    assert len(heads) == LAYERS * HEADS
    assert heads[HEADS : 2 * HEADS] == [dsas.Site(path, side="input", part=head, parts=HEADS) for head in range(HEADS)]


def test_the_input_of_a_module_is_named_with_at_input() -> None:
    model = tiny_model()
    (site,) = dsas.find_sites(model, "*.1.mlp@input")
    assert (str(site), site.side) == ("model.layers.1.mlp@input", "input")
    with pytest.raises(SiteError, match="what follows @ must be 'input', 'output', 'image' or 'text', got 'inside'"):
        dsas.find_sites(model, "*.mlp@inside")


def test_a_part_is_read_and_written_without_touching_the_others() -> None:
    whole = torch.randn(2, 3, 8)
    site, given = dsas.Site("x", part=1, parts=4), whole.clone()
    assert torch.equal(site.read(given), whole[..., 2:4])
    written = site.write(given, torch.zeros(2, 3, 2))
    assert torch.equal(given, whole)
    assert torch.equal(written, torch.cat([whole[..., :2], torch.zeros(2, 3, 2), whole[..., 4:]], -1))
    with pytest.raises(ActivationError, match="a width of 8 has no 3 equal parts"):
        dsas.Site("x", part=0, parts=3).read(whole)
    with pytest.raises(SiteError, match="0 <= part < parts"):
        dsas.Site("x", part=4, parts=4)


def test_ten_layers_and_more_are_in_the_order_of_the_model_and_not_of_the_alphabet() -> None:
    model = tiny_model(layers=12)
    assert paths(model, "residual") == [f"model.layers.{number}" for number in range(12)]
    assert paths(model, ["model.layers.11", "model.layers.2"]) == ["model.layers.2", "model.layers.11"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("layers.*", ["model.layers.0", "model.layers.1", "model.layers.2"]),
        ("*.1", ["model.layers.1"]),
        ("model.layers.?.mlp", ["model.layers.0.mlp", "model.layers.1.mlp", "model.layers.2.mlp"]),
        ("layers.0.*_proj", []),
        ("layers.0.**o_proj", ["model.layers.0.self_attn.o_proj"]),
        ("model.norm", ["model.norm"]),
        ("odel.norm", []),
        ("modelXnorm", []),
        (r"re:model\.layers\.[02]", ["model.layers.0", "model.layers.2"]),
        (r"re:layers\.0", []),
        ("layers.1.self_attn.[qk]_proj", []),
    ],
)
def test_globs_stay_inside_a_segment_and_regular_expressions_match_whole_paths(
    pattern: str, expected: list[str]
) -> None:
    model = tiny_model()
    if expected:
        assert paths(model, pattern) == expected
    else:
        with pytest.raises(SiteError, match="matches no module of LlamaForCausalLM"):
            dsas.find_sites(model, pattern)


def test_patterns_that_overlap_give_each_site_once_and_two_tensors_of_one_module_are_two_sites() -> None:
    model, second = tiny_model(), dsas.Site("model.layers.1", index=1)
    found = dsas.find_sites(model, ["layers.1", second, "residual", dsas.Site("model.layers.0")])
    expected = ["model.layers.0", "model.layers.1", "model.layers.1[1]", "model.layers.2"]
    assert list(map(str, found)) == expected


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("model.layers.0.mpl", "matches no module.*closest: 'model.layers.0.mlp'.*shorthands: residual, norm"),
        ("re:model.layer.1", "matches no module.*closest: .*'model.layers.1'"),
        ("layerz.*", "matches no module of LlamaForCausalLM; closest: 'model.layers"),
        (dsas.Site("model.layers.9"), "no module 'model.layers.9' in LlamaForCausalLM; closest: 'model.layers"),
        ("re:model.(", r"is not a regular expression: .*unterminated|missing \)"),
        ([], "expected at least one site pattern, got none; try 'residual'"),
        (["residual", "nothing.here"], "'nothing.here' matches no module"),
        ("", "matches no module"),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused_with_the_closest_names(pattern: Any, message: str) -> None:
    with pytest.raises(SiteError, match=message):
        dsas.find_sites(tiny_model(), pattern)


def test_a_shorthand_of_an_unknown_model_says_what_can_be_named_instead() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    with pytest.raises(SiteError, match=re.escape("not known for Sequential; name the modules by path or glob")):
        dsas.find_sites(model, "mlp")


def test_a_site_reads_and_writes_its_own_tensor_of_whatever_a_module_gives() -> None:
    pair = namedtuple("pair", ["image", "text"])
    one, two, new = (torch.full((1, 2, 3), float(number)) for number in range(3))
    for output in ((one, two), [one, two], pair(one, two)):
        site = dsas.Site("block", index=1)
        assert site.read(output) is two
        written = site.write(output, new)
        assert type(written) is type(output)
        assert written[0] is one
        assert written[1] is new
        assert output[1] is two
    assert dsas.Site("block").write(one, new) is new


@pytest.mark.parametrize(
    ("output", "came"), [(torch.zeros(2, 3), r"shape \(2, 3\)"), ((None, 1), "NoneType"), ({"x": 1}, "dict")]
)
def test_an_output_without_a_tensor_of_tokens_is_refused_by_site_and_shape(output: Any, came: str) -> None:
    with pytest.raises(ActivationError, match=rf"site block: expected a tensor \(batch, token, dim\), got {came}"):
        dsas.Site("block").read(output)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_a_picture_is_read_as_tokens_and_written_back_in_its_own_format(memory: torch.memory_format) -> None:
    picture = torch.randn(2, 5, 3, 4).contiguous(memory_format=memory)
    site, before = dsas.Site("block", layout="picture"), picture.clone()
    tokens = site.read((picture,))
    assert torch.equal(tokens[1, 1 * 4 + 2], picture[1, :, 1, 2])
    (written,) = site.write((picture,), 2 * tokens)
    assert torch.equal(written, 2 * picture)
    assert written.stride() == picture.stride()
    assert torch.equal(picture, before)
    assert (site.grid(picture), site.grid(torch.randn(2, 6, 5))) == ((3, 4), None)


def test_a_part_of_a_picture_is_a_part_of_its_channels() -> None:
    picture = torch.randn(2, 6, 3, 4)
    site = dsas.Site("block", layout="picture", part=1, parts=3)
    written = site.write(picture, torch.zeros_like(site.read(picture)))
    assert not written[:, 2:4].any()
    assert torch.equal(written[:, [0, 1, 4, 5]], picture[:, [0, 1, 4, 5]])


def test_a_layout_says_where_the_width_of_three_dimensions_is() -> None:
    given = torch.randn(2, 5, 7)
    assert dsas.Site("norm", layout="channels").read(given).shape == (2, 7, 5)
    assert torch.equal(dsas.Site("norm", layout="channels").write(given, given.transpose(1, 2) + 1), given + 1)
    assert dsas.Site("block", layout="picture").read(given).shape == (2, 5, 7)
    with pytest.raises(ActivationError, match=r"got shape \(2, 5, 3, 4\); a picture .* layout='picture'.*'mlp'"):
        dsas.Site("block").read(torch.randn(2, 5, 3, 4))
    with pytest.raises(SiteError, match="the layout of a site is one of"):
        unchecked_site(layout="image")


def unchecked_site(**options: Any) -> dsas.Site:
    site = object.__new__(dsas.Site)
    for name, value in {"path": "x", "index": 0, "side": "output", "part": 0, "parts": 1, **options}.items():
        object.__setattr__(site, name, value)
    dsas.Site.__post_init__(site)
    return site


def test_numbers_of_other_libraries_are_layers_and_what_is_no_name_of_a_site_is_refused() -> None:
    for given in (np.array([0, -1]), [torch.tensor(0), np.int64(-1)], (0, -1), range(0, -2, -1)):
        assert listed(given) == [0, -1]
    assert listed(torch.tensor(2)) == listed(2) == [2]
    for wrong in (None, 1.5, True, slice(0, 2), [[0]]):
        with pytest.raises(SiteError, match="expected a shorthand, the number of a layer"):
            listed(wrong)


def test_flat_tokens_are_one_row_and_are_asked_for_by_name() -> None:
    """As a vision tower has the patches of all pictures one after another."""
    given, site = torch.arange(12.0).view(3, 4), dsas.Site("tower", layout="flat", part=1, parts=2)
    assert torch.equal(site.read(given), given[None, :, 2:])
    written = site.write((given, None), torch.zeros(1, 3, 2))
    assert torch.equal(written[0], torch.cat([given[:, :2], torch.zeros(3, 2)], dim=1))
    with pytest.raises(ActivationError, match=r"\(batch, token, dim\), got shape \(3, 4\); .*layout='flat'"):
        dsas.Site("tower").read(given)
    with pytest.raises(ActivationError, match=r"expected a tensor \(token, dim\), got shape \(1, 1, 3, 4\)$"):
        site.read(given[None, None])


def test_flat_tokens_of_all_rows_are_divided_into_rows_and_what_has_rows_is_read_as_it_stands() -> None:
    """As the routers and the experts of mixtures have them."""
    given, site = torch.arange(24.0).view(6, 4), dsas.Site("router", layout="flat")
    assert site.rows(given, (2, 3)) == 2
    assert site.rows(given, (2, 4)) == 1
    read = site.read(given, 2)
    assert torch.equal(read, given.view(2, 3, 4))
    assert torch.equal(site.write((given, None), read + 1)[0], given + 1)
    assert torch.equal(site.read(read, 2), read)


def test_the_layout_follows_from_the_module() -> None:
    model = nn.Module()
    model.conv, model.group, model.linear = nn.Conv2d(4, 4, 3), nn.GroupNorm(2, 4), nn.LayerNorm(4)
    model.block = nn.Sequential(nn.GroupNorm(2, 4))
    found = {site.path: site.layout for site in dsas.find_sites(model, ["conv", "group", "linear", "block"])}
    assert found == {"conv": "channels", "group": "channels", "linear": "tokens", "block": "picture"}
    (given,) = dsas.find_sites(model, "conv@input")
    assert given == dsas.Site("conv", side="input", layout="channels")


def test_the_order_of_a_blocks_streams_is_the_one_that_diffusers_returns() -> None:
    diffusers = pytest.importorskip("diffusers")
    folder = Path(diffusers.__file__).parent / "models"
    found = {}
    for file in [folder / "attention.py", *sorted((folder / "transformers").glob("*.py"))]:
        for kind in [node for node in ast.parse(file.read_text()).body if isinstance(node, ast.ClassDef)]:
            for line in ast.walk(kind):
                given = line.value.elts if isinstance(line, ast.Return) and isinstance(line.value, ast.Tuple) else []
                names = {"hidden_states": "image", "encoder_hidden_states": "text"}
                order = tuple(names.get(ast.unparse(element), "") for element in given)
                if set(order) == {"image", "text"} and kind.name.endswith("TransformerBlock"):
                    found[kind.name] = order
    videos = ("HunyuanVideo", "Mochi", "MotifVideo")
    expected = {name: order for name, order in found.items() if not name.startswith(videos)}
    assert expected == STREAMS


def test_a_block_of_two_streams_is_named_with_the_one_that_is_meant() -> None:
    pytest.importorskip("diffusers")
    from dsas.model.subject import subject_of
    from dsas.testing.pipelines import tiny_pipeline

    model = subject_of(tiny_pipeline("flux")).module
    block = "transformer.transformer_blocks.1"
    named = {which: dsas.find_sites(model, block + which)[0] for which in ("", "@image", "@text", "@input")}
    assert [named[which].index for which in named] == [1, 1, 0, 0]
    assert str(named["@text"]) == block
    assert model.reads_text(named["@text"])
    assert not model.reads_text(named[""])
    with pytest.raises(SiteError, match="is not a block of two streams, so it has no @text"):
        dsas.find_sites(model, "transformer.norm_out@text")


def test_heads_are_those_of_each_layer_where_layers_have_different_numbers_of_them() -> None:
    model = tiny_model(layers=2)
    attention = model.model.layers[1].self_attn  # type: ignore
    attention.o_proj = nn.Linear(2 * attention.head_dim, WIDTH)
    parts = [(site.path, site.parts) for site in dsas.find_sites(model, "heads")]
    assert parts == [
        (f"model.layers.{n}.self_attn.o_proj", count) for n, count in ((0, 4), (1, 2)) for _ in range(count)
    ]


def test_a_decoder_that_is_called_by_the_name_of_the_head_is_found() -> None:
    from transformers import ModernBertDecoderConfig, ModernBertDecoderForCausalLM

    config = ModernBertDecoderConfig(
        vocab_size=257, hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2,
    )  # fmt: skip
    model: Any = ModernBertDecoderForCausalLM(config).eval()
    assert model.get_decoder() is model.get_output_embeddings()
    assert paths(model, "residual") == ["model.layers.0", "model.layers.1"]
    rule = dsas.Rule(dsas.Site("model.layers.0"), dsas.Addition(torch.ones(WIDTH)), dsas.Constant())
    with dsas.Steering([rule], ModelIdentity.of(model)).apply(model, 1.0) as applied:
        model(input_ids=torch.tensor([[1, 5, 6, 2]]))
    assert applied.trace().token_ids.tolist() == [[1, 5, 6, 2]]  # type: ignore


def test_an_activation_with_time_first_is_read_and_written_row_by_row() -> None:
    site, given = dsas.Site("layer.0", layout="time"), (torch.arange(24.0).view(4, 2, 3), None)
    t = site.read(given)
    assert torch.equal(t[1], given[0][:, 1])
    moved, rest = site.write(given, t + torch.tensor([0.0, 1.0]).view(2, 1, 1))
    assert torch.equal(moved - given[0], torch.tensor([0.0, 1.0]).view(1, 2, 1).expand(4, 2, 3))
    assert rest is None


def test_layers_whose_parts_stand_in_lists_of_their_own_are_named_and_xlnet_s_have_time_first() -> None:
    from transformers import XLMConfig, XLMWithLMHeadModel, XLNetConfig, XLNetLMHeadModel

    xlm = XLMWithLMHeadModel(XLMConfig(vocab_size=16, emb_dim=8, n_layers=2, n_heads=2, max_position_embeddings=16))
    names = {name: str(dsas.find_sites(xlm, name)[-1]) for name in ("residual", "norm", "attention", "mlp", "heads")}
    assert names == {
        "residual": "transformer.layer_norm2.1", "norm": "transformer.layer_norm1.1", "mlp": "transformer.ffns.1",
        "attention": "transformer.attentions.1", "heads": "transformer.attentions.1.out_lin@input#1/2",
    }  # fmt: skip
    xlnet = XLNetLMHeadModel(XLNetConfig(vocab_size=16, d_model=8, n_layer=2, n_head=2, d_inner=16))
    assert {site.layout for site in dsas.find_sites(xlnet)} == {"time"}


@pytest.mark.parametrize("sites", ["residual", 1, dsas.Site("layers.0", layout="picture")], ids=str)
def test_a_residual_of_several_streams_is_refused_before_anything_runs_and_its_summands_are_named(sites: Any) -> None:
    class HyperConnection(nn.Module):
        """As DeepSeek-V4 and its like have it; Gemma 3n's is an AltUp."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp, self.attn_hc = nn.Linear(2, 2), HyperConnection()

    model: Any = nn.Module()
    model.layers = nn.ModuleList([Layer(), Layer()])
    with pytest.raises(SiteError, match=r"several streams \(HyperConnection\).* sites='mlp' or sites='attention'"):
        dsas.find_sites(model, sites)
    rule = dsas.Rule(dsas.Site("layers.0"), dsas.Addition(torch.ones(2)), dsas.Constant())
    with pytest.raises(SiteError, match="several streams"):
        dsas.Steering([rule], ModelIdentity.of(model)).apply(model)
    assert [site.path for site in dsas.find_sites(model, "mlp")] == ["layers.0.mlp", "layers.1.mlp"]
