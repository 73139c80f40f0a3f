"""decoder.py: the pieces of public architectures make the whole, what reads more than the stream is
refused, and a folder that cannot be used is one sentence."""

import json

import pytest
import torch

import decoder
from analyze import run_blocks
from conftest import as_if_trained
from data.files import BadInput
from decoder import Decoder, load_decoder, read_config, refuse_unlike_itself

transformers = pytest.importorskip(
    "transformers", reason="public models need it: pip install transformers"
)
T, VOCABULARY = 12, 40
SIZE = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
HEADS = dict(head_dim=8)
EXPERTS = dict(num_experts=4, num_experts_per_tok=2)
DEEPSEEK = dict(
    moe_intermediate_size=16,
    n_routed_experts=4,
    num_experts_per_tok=2,
    n_group=1,
    topk_group=1,
    first_k_dense_replace=1,
    kv_lora_rank=8,
    q_lora_rank=8,
    qk_nope_head_dim=8,
    qk_rope_head_dim=8,
    v_head_dim=8,
)
GPT2 = dict(vocab_size=VOCABULARY, n_positions=64, n_embd=32, n_layer=3, n_head=4)
STATE = dict(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=3, state_size=8)
ARCHITECTURES = {  # config class: its options, or (name of the config class, its options)
    "Llama": SIZE,
    "Mistral": {**SIZE, "sliding_window": 4},
    "Qwen2": SIZE,
    "Qwen3": {**SIZE, **HEADS},
    "GPT2": {**GPT2, "bos_token_id": 1, "eos_token_id": 2},
    "GPTNeoX": {**SIZE, "rotary_pct": 0.5},
    "Gemma": {**SIZE, **HEADS},
    "Gemma2": {**SIZE, **HEADS, "sliding_window": 4, "query_pre_attn_scalar": 8},
    "Gemma3Text": {**SIZE, **HEADS, "sliding_window": 4, "sliding_window_pattern": 2},
    "Olmo2": SIZE,
    "Olmoe": {**SIZE, **EXPERTS},
    "Mixtral": {**SIZE, "num_local_experts": 4},
    "Phi3": {**SIZE, "sliding_window": 4},
    "Falcon": {**SIZE, "new_decoder_architecture": False, "alibi": False},
    "Bloom": dict(vocab_size=VOCABULARY, hidden_size=32, n_layer=3, n_head=4),
    "OPT": {**SIZE, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "Cohere": SIZE,
    "StableLm": SIZE,
    "DeepseekV3": {**SIZE, **DEEPSEEK, "num_key_value_heads": 4},
    "Mamba": STATE,
}
each_architecture = pytest.mark.parametrize("name", ARCHITECTURES)


def config_of(name, **options):
    return getattr(transformers, f"{name}Config")(**{**ARCHITECTURES.get(name, SIZE), **options})


def hf_model(name, **options):
    """A random model, far from initialisation, so that every layer does something."""
    torch.manual_seed(0)
    hf = transformers.AutoModelForCausalLM.from_config(config_of(name, **options))
    as_if_trained(hf, 4)
    return hf


def token_ids(B=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (B, T), generator=generator)


def composed(model, idx, blocks=None):
    blocks = model.blocks if blocks is None else blocks
    with torch.no_grad():
        return model.read_out(run_blocks(blocks, model.embed(idx)))


def own_logits(hf, idx):
    """Of the model by itself, in the hands of nobody."""
    with torch.no_grad():
        return hf.eval()(idx).logits


# The adapter -------------------------------------------------------------------------------------


@each_architecture
def test_the_pieces_make_the_whole(name):
    hf, idx = hf_model(name), token_ids()
    wanted = own_logits(hf, idx)
    model = Decoder(hf)
    scale = wanted.abs().max()
    for rows, of_rows in ((idx, wanted), (idx[:1], wanted[:1])):
        assert (composed(model, rows) - of_rows).abs().max() < 1e-5 * scale
    without_one = composed(model, idx, model.blocks[1:])
    assert (without_one - wanted).abs().max() > 1e-2 * scale
    refuse_unlike_itself(model, idx, name)
    assert (own_logits(hf, idx) - wanted).abs().max() == 0  # the model is as it was


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "Mamba"])  # no h_0
def test_a_block_is_the_layer_of_the_model(name):
    """h_l by the blocks are the hidden states that transformers itself hands out."""
    hf, idx = hf_model(name), token_ids()
    with torch.no_grad():
        wanted = hf.eval()(idx, output_hidden_states=True).hidden_states
    model = Decoder(hf)
    with torch.no_grad():
        h = model.embed(idx)
        for block, state in zip(model.blocks, wanted, strict=False):
            assert (h - state).abs().max() < 1e-5 * state.abs().max()
            h = block(h)
    assert model.config.n_layer == 3 and h.shape == (2, T, model.config.n_embd)


@pytest.mark.parametrize("name, sees", [("Llama", True), ("Mistral", False)])
def test_a_layer_keeps_its_window_wherever_it_stands(name, sees):
    """With a window of 4 what stands at position 0 changes nothing at the last one."""
    model = Decoder(hf_model(name))
    with torch.no_grad():
        h = model.embed(token_ids())
        other = h.clone()
        other[:, 0] += 1
        for block in reversed(model.blocks):
            difference = (block(h)[:, -1] - block(other)[:, -1]).abs().max()
            assert (difference > 1e-6) == sees


def test_layers_of_two_kinds_are_each_handed_their_own():
    """Gemma 2 alternates windows and full attention: swapped, layers keep what they were."""
    model = Decoder(hf_model("Gemma2"))
    with torch.no_grad():
        h = model.embed(token_ids())
        other = h.clone()
        other[:, 0] += 1
        reach = [
            bool((block(h)[:, -1] - block(other)[:, -1]).abs().max() > 1e-6)
            for block in model.blocks
        ]
    assert reach == [False, True, False]


def test_gradients_go_through_a_block_and_stay_out_of_its_weights():
    model = Decoder(hf_model("Llama"))
    with torch.no_grad():
        h = model.embed(token_ids())
    h.requires_grad_()
    model.blocks[1](h).sum().backward()
    assert h.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in model.hf.parameters())


def test_notes_of_many_shapes_do_not_pile_up():
    model = Decoder(hf_model("Llama"))
    for B in range(1, 10):
        model.notes((B, T))
    assert len(model.noted) == decoder.SHAPES_KEPT


# Refusals ----------------------------------------------------------------------------------------


class ReadsEmbeddingsAgain(torch.nn.Module):
    """A layer that looks behind the stream's back, as Zamba's do."""

    def __init__(self, layer, embedding):
        super().__init__()
        self.layer, self.kept = layer, None
        embedding.register_forward_hook(lambda _, __, out: setattr(self, "kept", out))

    def forward(self, h, *arguments, **named):
        return self.layer(h, *arguments, **named) + self.kept


def test_layers_that_read_more_than_the_stream_are_refused():
    hf = hf_model("Llama")
    hf.model.layers[1] = ReadsEmbeddingsAgain(hf.model.layers[1], hf.model.embed_tokens)
    with pytest.raises(BadInput, match="read more than the stream"):
        refuse_unlike_itself(Decoder(hf), token_ids(), "a model")


def test_a_public_architecture_of_this_kind_is_refused():
    """Gemma 3n's layers read token embeddings of their own."""
    text = dict(
        **{**SIZE, "intermediate_size": [48] * 4, "num_hidden_layers": 4},
        **HEADS,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=VOCABULARY,
        num_kv_shared_layers=0,
        laurel_rank=4,
        altup_num_inputs=2,
        activation_sparsity_pattern=[0.0] * 4,
        layer_types=["sliding_attention", "full_attention"] * 2,
        sliding_window=4,
    )
    hf = transformers.Gemma3nForCausalLM(transformers.Gemma3nTextConfig(**text))
    as_if_trained(hf, 4)
    with pytest.raises(BadInput, match="read more than the stream"):
        refuse_unlike_itself(Decoder(hf), token_ids(), "a model")


def test_what_reads_what_comes_after_is_refused():
    hf = transformers.BertLMHeadModel(
        transformers.BertConfig(**{key: SIZE[key] for key in SIZE if key != "num_key_value_heads"})
    )
    as_if_trained(hf, 4)
    with pytest.raises(BadInput, match="tokens behind them, as an encoder's"):
        refuse_unlike_itself(Decoder(hf), token_ids(), "a model")


def test_without_transformers_the_error_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setattr(decoder, "transformers", None)
    with pytest.raises(BadInput, match="pip install transformers"):
        load_decoder(tmp_path)


@pytest.fixture
def folder(tmp_path):
    """A Llama's Hugging Face folder, without a tokenizer."""
    hf_model("Llama").save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_saved_model_is_loaded_as_it_was(folder):
    hf = decoder.load_model(folder, torch.float32)
    assert torch.equal(own_logits(hf, token_ids()), own_logits(hf_model("Llama"), token_ids()))
    config = read_config(folder)
    assert decoder.count_parameters(config) == sum(p.numel() for p in hf.parameters())


def test_a_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(BadInput, match="is no folder"):
        read_config(tmp_path / "none")


def test_a_folder_without_config_or_weights_is_refused(folder):
    weights = folder / "model.safetensors"
    weights.rename(folder / "elsewhere")
    with pytest.raises(BadInput, match="no weights"):
        read_config(folder)
    (folder / "elsewhere").rename(weights)
    (folder / "config.json").unlink()
    with pytest.raises(BadInput, match="no config.json"):
        read_config(folder)


def test_an_unknown_architecture_is_refused(folder):
    edit_config(folder, model_type="never_heard_of")
    with pytest.raises(BadInput, match="does not know this architecture") as refusal:
        read_config(folder)
    assert "\n" not in str(refusal.value)


def test_an_encoder_is_refused_by_its_config(folder):
    edit_config(folder, model_type="t5")
    with pytest.raises(BadInput, match="t5 is no decoder of text"):
        read_config(folder)


def test_damaged_weights_are_refused(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BadInput, match="cannot be loaded"):
        decoder.load_model(folder, torch.float32)


def test_weights_that_are_not_all_there_are_refused(folder):
    edit_config(folder, num_hidden_layers=4)
    with pytest.raises(BadInput, match="lacks 9 of the weights"):
        decoder.load_model(folder, torch.float32)


def test_weights_of_another_shape_are_refused(folder):
    edit_config(folder, intermediate_size=64)
    with pytest.raises(BadInput, match="cannot be loaded|lacks"):
        decoder.load_model(folder, torch.float32)


def test_a_folder_without_tokenizer_is_refused(folder):
    with pytest.raises(BadInput, match="no tokenizer"):
        load_decoder(folder)


# Fewer layers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Llama", "GPT2", "Gemma2", "Mixtral"])
def test_a_model_without_some_layers_loads_and_says_what_the_others_said(name, tmp_path):
    model, idx = Decoder(hf_model(name)), token_ids()
    wanted = composed(model, idx, [model.blocks[0], model.blocks[2]])
    n_before = decoder.bytes_of_weights(model)
    decoder.save_without(model, {1}, tmp_path / "shorter")
    hf = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "shorter")
    assert (own_logits(hf, idx) - wanted).abs().max() < 1e-5 * wanted.abs().max()
    shorter = Decoder(hf)
    assert shorter.config.n_layer == 2 and decoder.bytes_of_weights(shorter) < n_before
