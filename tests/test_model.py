"""model.py against slow, obvious references: loops over positions, heads and experts."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from conftest import SMALL, TOGGLES, build, each_toggle, tokens
from model import (
    GPT,
    MASKS,
    CausalSelfAttention,
    GPTConfig,
    MoE,
    RMSNorm,
    cross_entropy,
    keys_in_sight,
    mask_density,
    rotate,
    visible,
)

# Masks -------------------------------------------------------------------------------------------


def may_see(options, q, k):
    """The masks, once more, in words: may position q look at the earlier position k?"""
    if k > q:
        return False
    if options.get("attention") == "window":
        return k > q - options["window"]
    if options.get("attention") == "strided":
        return k > q - options["stride"] or (k + 1) % options["stride"] == 0
    return True


@pytest.mark.parametrize("name", ["plain", "window", "strided"])
def test_masks_read_like_their_formulas(name):
    options = TOGGLES[name]
    mask = visible(GPTConfig(**{**SMALL, **options}), 12)
    assert mask.tolist() == [[may_see(options, q, k) for k in range(12)] for q in range(12)]


@pytest.mark.parametrize("name", ["plain", "window", "strided"])
def test_keys_in_sight_counts_a_row_of_the_mask(name):
    options = {**TOGGLES[name], "block_size": 600}  # more rows than are taken at a time
    counted = keys_in_sight(GPTConfig(**{**SMALL, **options}))
    assert counted.tolist() == [sum(may_see(options, q, k) for k in range(600)) for q in range(600)]


def test_mask_density_by_hand():
    def density(**options):
        return mask_density(GPTConfig(**{**SMALL, **options}))

    assert density() == 1.0
    assert density(attention="window", window=3) == (1 + 2 + 10 * 3) / 78
    assert density(attention="topk", topk=2) == (1 + 11 * 2) / 78


# Attention ---------------------------------------------------------------------------------------


def turned(vector, position):
    """Rotary embedding of one vector: each pair of features turns by position * its frequency."""
    out, D = vector.clone(), len(vector)
    for i in range(D // 2):
        angle = position * 10000.0 ** (-2 * i / D)
        a, b = vector[i], vector[i + D // 2]
        out[i] = a * math.cos(angle) - b * math.sin(angle)
        out[i + D // 2] = b * math.cos(angle) + a * math.sin(angle)
    return out


def naive_head(queries, keys, values, options):
    """One query, one key at a time; lists of vectors, one for each position."""
    outputs = []
    for q, query in enumerate(queries):
        scores = {
            k: float(query @ key) / math.sqrt(len(query))
            for k, key in enumerate(keys)
            if may_see(options, q, k)
        }
        if options.get("attention") == "topk":
            best = sorted(scores, key=scores.get, reverse=True)[: options["topk"]]
            scores = {k: scores[k] for k in best}
        total = sum(math.exp(score) for score in scores.values())
        outputs.append(sum(math.exp(score) / total * values[k] for k, score in scores.items()))
    return torch.stack(outputs)


def naive_attention(attention, x, options):
    """Head by head, from the raw projection matrix."""
    config, D = attention.config, attention.head_size
    T = x.shape[1]
    query_rows, key_rows = config.n_head * D, config.n_kv_head * D
    matrices = attention.query_key_value.weight.split((query_rows, key_rows, key_rows))
    W_query, W_key, W_value = (matrix.split(D) for matrix in matrices)  # one for each head
    y = torch.zeros_like(x)
    for b, sequence in enumerate(x):
        for head in range(config.n_head):
            kv = head // (config.n_head // config.n_kv_head)
            queries = [turned(W_query[head] @ sequence[t], t) for t in range(T)]
            keys = [turned(W_key[kv] @ sequence[t], t) for t in range(T)]
            values = [W_value[kv] @ sequence[t] for t in range(T)]
            y[b, :, head * D : (head + 1) * D] = naive_head(queries, keys, values, options)
    return y @ attention.output.weight.T


ATTENTIONS = {
    f"{mask}-{n_kv_head}": {**TOGGLES.get(mask, {}), "n_kv_head": n_kv_head}
    for mask in MASKS
    for n_kv_head in (4, 2, 1)
}
each_attention = pytest.mark.parametrize("options", ATTENTIONS.values(), ids=ATTENTIONS.keys())


@each_attention
@torch.no_grad()
def test_attention_equals_a_loop_over_positions(options):
    attention = build(large_weights=True, **options).blocks[0].attention.double()
    x = torch.randn(2, 12, 16, dtype=torch.float64)
    assert torch.allclose(attention(x), naive_attention(attention, x, options), atol=1e-6)


@each_attention
@torch.no_grad()
def test_the_weights_that_instruments_read_are_those_of_the_forward_pass(options):
    attention = build(large_weights=True, **options).blocks[0].attention.double()
    x = torch.randn(2, 12, 16, dtype=torch.float64)
    _, _, value = attention.project(x)
    explicit = attention.output((attention.probabilities(x) @ value).transpose(1, 2).flatten(2))
    assert torch.allclose(explicit, attention(x), atol=1e-12)


def test_topk_keeps_exactly_k_keys_also_when_scores_tie():
    attention = CausalSelfAttention(GPTConfig(**SMALL, attention="topk", topk=3))
    attention.query_key_value.weight.data.zero_()  # every score equal
    n_kept = (attention.probabilities(torch.randn(1, 12, 16)) > 0).sum(dim=-1)
    assert (n_kept == torch.arange(1, 13).clamp(max=3)).all()


def test_rotary_scores_depend_on_the_distance_alone():
    attention = CausalSelfAttention(GPTConfig(**SMALL))
    query, key = torch.randn(2, 4)
    at_each_position = (rotate(t.expand(12, 4), attention.cos, attention.sin) for t in (query, key))
    queries, keys = at_each_position
    scores = queries @ keys.T
    for offset in range(-11, 12):
        diagonal = scores.diagonal(offset)
        assert torch.allclose(diagonal, diagonal[0].expand_as(diagonal), atol=1e-5)
    assert not torch.allclose(scores[0, 0], scores[0, 5], atol=1e-3)


# Mixture of experts ------------------------------------------------------------------------------


def naive_swiglu(gate_up, down, token):
    gate, up = (gate_up @ token).chunk(2)
    return down @ (gate * torch.sigmoid(gate) * up)


def naive_moe(moe, x):
    """Token by token, expert by expert."""
    config, y = moe.config, []
    for token in x.flatten(0, -2):
        probability = (moe.router.weight @ token).softmax(dim=0)
        ranked = sorted(range(config.n_expert), key=lambda e: -probability[e].item())
        best = ranked[: config.n_expert_active]
        total = sum(probability[e] for e in best) if config.normalize_expert_weights else 1.0
        out = torch.zeros_like(token)
        for e in best:
            out = out + probability[e] / total * naive_swiglu(moe.gate_up[e], moe.down[e], token)
        if moe.shared is not None:
            out = out + naive_swiglu(moe.shared.gate_up.weight, moe.shared.down.weight, token)
        y.append(out)
    return torch.stack(y).view_as(x)


@pytest.mark.parametrize("B", [1, 4])  # with 3 tokens and 4 experts some experts stay empty
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("toggle", ["moe", "moe_shared"])
def test_moe_forward_and_gradients_equal_a_loop_over_tokens(toggle, dtype, tolerance, B):
    moe = build(large_weights=True, **TOGGLES[toggle]).blocks[0].mlp.to(dtype)
    x = torch.randn(B, 3, 16, dtype=dtype, requires_grad=True)
    direction = torch.randn(B, 3, 16, dtype=dtype)
    wanted = [x, *moe.parameters()]
    ours = torch.autograd.grad((moe(x) * direction).sum(), wanted)
    naive = torch.autograd.grad((naive_moe(moe, x) * direction).sum(), wanted)
    assert torch.allclose(moe(x), naive_moe(moe, x), atol=tolerance)
    for gradient, reference in zip(ours, naive, strict=True):
        scale = max(1.0, float(reference.abs().max()))
        assert torch.allclose(gradient, reference, atol=tolerance * scale)


def test_router_losses_stand_apart_from_the_cross_entropy():
    model = build(**TOGGLES["moe"], load_balance_loss=3.0, router_z_loss=0.5)
    idx = tokens()
    logits, loss = model(idx, idx)
    by_hand = F.cross_entropy(logits.view(-1, 20), idx.view(-1), reduction="none").mean()
    assert torch.equal(loss, by_hand)


def test_router_losses_equal_their_formulas():
    model = build(**TOGGLES["moe"], load_balance_loss=3.0, router_z_loss=0.5)
    seen = []
    for block in model.blocks:
        block.mlp.router.register_forward_hook(lambda module, args, out: seen.append(out))
    model(tokens(), tokens())
    expected = []
    for logits in seen:  # (36 tokens, 4 experts)
        probability = logits.softmax(-1)
        share = [0.0] * 4
        for token in probability.tolist():
            for e in sorted(range(4), key=lambda e: -token[e])[:2]:
                share[e] += 1 / 72
        balance = 4 * sum(share[e] * probability[:, e].mean() for e in range(4))
        z = torch.stack([row.exp().sum().log() ** 2 for row in logits]).mean()
        expected.append(3.0 * balance + 0.5 * z)
    assert torch.allclose(model.take_router_loss(), sum(expected) / 2)


def test_router_losses_are_taken_once_and_are_none_for_dense_models():
    model = build(**TOGGLES["moe"])
    model(tokens(), tokens())
    model.take_router_loss()
    assert all(block.mlp.router_loss is None for block in model.blocks)  # no graph is kept alive
    with pytest.raises(RuntimeError, match="no training forward"):
        model.take_router_loss()
    model.eval()(tokens(), tokens())
    with pytest.raises(RuntimeError, match="no training forward"):
        model.take_router_loss()
    assert build().take_router_loss() == 0.0


def test_normalised_weights_let_the_router_learn_from_the_loss():
    """Of one expert alone the weight would always be 1; that is refused. Of two it is not."""
    model = build(large_weights=True, **TOGGLES["moe_shared"])
    model(tokens(), tokens())[1].backward()
    gradients = [block.mlp.router.weight.grad.abs().max().item() for block in model.blocks]
    assert min(gradients) > 1e-6


@pytest.mark.parametrize("collapsed, wanted", [(False, 1.0), (True, 4.0)])
def test_load_balance_is_one_when_even_and_E_over_K_when_collapsed(collapsed, wanted):
    losses = dict(load_balance_loss=1.0, router_z_loss=0.0)
    moe = MoE(GPTConfig(**SMALL, n_expert=4, n_expert_active=1, expert_hidden=16, **losses))
    expert = torch.tensor([0, 0, 0, 0] if collapsed else [0, 1, 2, 3])
    logits = 50.0 * F.one_hot(expert, 4)
    assert moe.balance_losses(logits, expert[:, None]).item() == pytest.approx(wanted)


# The whole model ---------------------------------------------------------------------------------


def pre_ln_logits(model, idx):
    """The plain model once more, from its weights and the paper's formulas; idx (3, 12)."""

    def norm(x, weight):
        return F.rms_norm(x, (16,), weight, 1e-6)

    h = model.embedding.weight[idx]
    for block in model.blocks:
        attention, mlp = block.attention, block.mlp
        x = F.linear(norm(h, block.attention_norm.weight), attention.query_key_value.weight)
        q, k, v = x.view(3, 12, 12, 4).transpose(1, 2).split(4, 1)  # (3, 4 heads, 12, 4)
        q, k = (rotate(t, attention.cos, attention.sin) for t in (q, k))
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + F.linear(a.transpose(1, 2).reshape(3, 12, 16), attention.output.weight)
        gate, up = F.linear(norm(h, block.mlp_norm.weight), mlp.gate_up.weight).split(32, -1)
        h = h + F.linear(F.silu(gate) * up, mlp.down.weight)
    return F.linear(norm(h, model.norm.weight), model.head.weight)


@pytest.mark.parametrize("large_weights", [False, True])
def test_everything_off_is_the_pre_ln_transformer_bit_for_bit(large_weights):
    model, idx = build(large_weights=large_weights), tokens()
    assert torch.equal(model(idx)[0], pre_ln_logits(model, idx))


REMEDIES = ("embedding_norm", "peri_ln", "complete_p")


def remedied_logits(model, idx, embedding_norm, peri_ln, complete_p):
    """The whole model once more, with the remedies from their formulas."""

    def norm(x, gain=1.0):
        return x / (x.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt() * gain

    def added(branch, block, name):
        if peri_ln:
            branch = norm(branch, getattr(block, f"{name}_outer_norm").weight)
        return 4 / len(model.blocks) * branch if complete_p else branch

    h = model.embedding.weight[idx]
    if embedding_norm:
        h = norm(h)
    for block in model.blocks:
        branch = block.attention(norm(h, block.attention_norm.weight))
        h = h + added(branch, block, "attention")
        branch = block.mlp(norm(h, block.mlp_norm.weight))
        h = h + added(branch, block, "mlp")
    return norm(h, model.norm.weight) @ model.head.weight.T


@pytest.mark.parametrize("n_layer", [3, 8])
@pytest.mark.parametrize("on", list(itertools.product([False, True], repeat=3)))
@torch.no_grad()
def test_remedies_alone_and_together_equal_their_formulas(on, n_layer):
    options = dict(zip(REMEDIES, on, strict=True))
    model = build(large_weights=True, n_layer=n_layer, **options).double()
    assert torch.allclose(model(tokens())[0], remedied_logits(model, tokens(), *on), atol=1e-9)


@pytest.mark.parametrize("name", REMEDIES)
def test_remedies_leave_names_and_first_weights_as_they_are(name):
    plain, remedied = build().state_dict(), build(**{name: True}).state_dict()
    assert all(torch.equal(remedied.pop(weight), plain[weight]) for weight in plain)
    outer_norms = {
        f"blocks.{l}.{branch}_outer_norm.weight" for l in (0, 1) for branch in ("attention", "mlp")
    }
    assert set(remedied) == (outer_norms if name == "peri_ln" else set())


def test_complete_p_changes_nothing_at_its_base_depth():
    plain, remedied = build(n_layer=4), build(n_layer=4, complete_p=True)
    assert torch.equal(plain(tokens())[0], remedied(tokens())[0])


@pytest.mark.parametrize("mask", ["window", "strided", "topk"])
def test_masks_that_hide_nothing_change_nothing(mask):
    length_option = {"window": "window", "strided": "stride", "topk": "topk"}[mask]
    masked = build(seed=3, attention=mask, **{length_option: 12})
    assert torch.allclose(masked(tokens())[0], build(seed=3)(tokens())[0], atol=1e-5)


@each_toggle
@torch.no_grad()
def test_causality_a_later_token_changes_no_earlier_logit(toggle):
    model = build(large_weights=True, **toggle).eval()
    before = tokens()
    for position in (1, 5, 11):
        after = before.clone()
        after[:, position] = (after[:, position] + 1) % 20
        difference = (model(before)[0] - model(after)[0]).abs().amax(dim=(0, 2))
        assert difference[:position].max() < 1e-5
        assert difference[position] > 1e-3


@each_toggle
def test_shorter_sequences_are_prefixes_of_longer_ones(toggle):
    model = build(large_weights=True, **toggle).eval()
    assert torch.allclose(model(tokens()[:, :7])[0], model(tokens())[0][:, :7], atol=1e-4)


@pytest.mark.slow
@each_toggle
def test_overfits_one_batch(toggle):
    model = build(**toggle)
    optimizer = torch.optim.AdamW(model.parameter_groups(0.0), lr=1e-2)
    idx = tokens(B=2, T=13)
    for _ in range(120):
        _, loss = model(idx[:, :-1], idx[:, 1:])
        (loss + model.take_router_loss()).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.1


def test_parameter_counts_by_hand():
    norms = 2 * 2 * 16 + 16
    dense_mlp = 3 * 16 * 32
    plain = 2 * 20 * 16 + norms + 2 * (4 * 16 * 16 + dense_mlp)
    assert build().count_parameters() == build().count_parameters(active=True) == plain
    lost_heads = 2 * 2 * 3 * 4 * 16  # 3 of 4 key and of 4 value heads, in 2 blocks
    assert build(n_kv_head=1).count_parameters() == plain - lost_heads


def test_parameter_counts_of_experts_by_hand():
    moe = build(n_expert=4, n_expert_active=1, n_shared_expert=1, expert_hidden=16)
    one_expert, router = 3 * 16 * 16, 4 * 16
    without_experts = build().count_parameters() - 2 * 3 * 16 * 32
    rest = without_experts + 2 * (router + one_expert)  # the shared expert counts always
    assert moe.count_parameters() == rest + 2 * 4 * one_expert
    assert moe.count_parameters(active=True) == rest + 2 * 1 * one_expert


def test_two_active_experts_are_as_wide_as_the_dense_mlp():
    assert GPTConfig(**SMALL, n_expert=4).expert_hidden == 16  # mlp_hidden is 32


def test_flops_per_token_by_hand():
    attention, norms = 12 * 2 * 16, 2 * 2 * 16 + 16
    plain = 6 * (20 * 16 + norms + 2 * (4 * 16 * 16 + 3 * 16 * 32))
    assert build().flops_per_token() == plain + attention * (12 + 1) / 2
    assert build(attention="window", window=1).flops_per_token() == plain + attention
    moe = build(n_expert=8, n_expert_active=2, expert_hidden=16)
    routers = 6 * 2 * 8 * 16
    assert moe.flops_per_token() == build().flops_per_token() + routers


def test_weight_decay_takes_matrices_and_embeddings_but_no_norm():
    model = build(**TOGGLES["moe_shared"])
    decayed, spared = model.parameter_groups(0.1)
    assert decayed["weight_decay"] == 0.1 and spared["weight_decay"] == 0.0
    names = {id(p): name for name, p in model.named_parameters()}
    norms = {name for name in names.values() if "norm" in name}
    assert {names[id(p)] for p in spared["params"]} == norms
    assert len(decayed["params"]) + len(spared["params"]) == len(names)


@pytest.mark.parametrize("n_layer", [2, 8])
def test_complete_p_shrinks_the_blocks_eps_alone(n_layer):
    """Each parameter by its name; the rule of decay stays."""
    model = build(n_layer=n_layer, complete_p=True, peri_ln=True, **TOGGLES["moe_shared"])
    names, seen = {id(p): name for name, p in model.named_parameters()}, []
    for group in model.parameter_groups(0.1, eps=1e-6):
        for parameter in group["params"]:
            name = names[id(parameter)]
            factor = 4 / n_layer if name.startswith("blocks.") else 1
            assert group["eps"] == pytest.approx(1e-6 * factor), name
            assert group["weight_decay"] == (0.0 if "norm" in name else 0.1), name
            seen.append(name)
    assert sorted(seen) == sorted(names.values())


def test_initialisation():
    options = dict(n_embd=256, n_layer=8, n_expert=4, n_shared_expert=1)
    model = GPT(GPTConfig(**options, scaled_residual_init=True))
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            assert (parameter == 1).all()
            continue
        ends = ("attention.output", "mlp.down", "mlp.shared.down")
        std = 0.02 / 4 if any(end in name for end in ends) else 0.02  # sqrt(2 * 8) = 4
        assert_spread(name, parameter, std)


def assert_spread(name, parameter, std):
    four_standard_errors = 4 / math.sqrt(2 * parameter.numel())
    assert parameter.std().item() == pytest.approx(std, rel=four_standard_errors), name


@pytest.mark.parametrize("options", [{}, {"n_expert": 4, "n_shared_expert": 1}])
def test_the_feed_forwards_last_matrices_can_start_smaller(options):
    model = GPT(GPTConfig(n_embd=256, n_layer=2, **options, down_init_scale=0.125))
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            assert_spread(name, parameter, 0.02 / 8 if "down" in name else 0.02)


@pytest.mark.parametrize("layer", [1, 2, 9])
def test_a_norm_divides_by_rms_and_multiplies_with_weight_and_scale(layer):
    norm, x = RMSNorm(16, layer**-0.5), torch.randn(2, 3, 16)
    norm.weight.data.uniform_(0.5, 1.5)
    rms = x.square().mean(dim=-1, keepdim=True).sqrt()
    assert torch.allclose(norm(x), x / rms * norm.weight / math.sqrt(layer), atol=1e-5)


def test_layer_norm_scaling_knows_each_blocks_number_and_spares_the_last_norm():
    for scaling, wanted in ((False, [1, 1]), (True, [1, 2**-0.5])):
        model = build(layer_norm_scaling=scaling)
        for kind in ("attention_norm", "mlp_norm"):
            scales = [getattr(block, kind).scale.item() for block in model.blocks]
            assert scales == pytest.approx(wanted)
        assert model.norm.scale.item() == 1.0


def test_bf16_stream_keeps_fp32_weights_and_cross_entropy():
    model = build()
    model.compute_dtype = torch.bfloat16
    logits, loss = model(tokens(), tokens())
    assert model.embed(tokens()).dtype == logits.dtype == torch.bfloat16
    assert loss.dtype == torch.float32 and model.head.weight.dtype == torch.float32
    assert cross_entropy(logits.double(), tokens()).dtype == torch.float64


def test_a_bf16_router_keeps_fp32_probabilities_and_rarely_chooses_other_experts():
    torch.manual_seed(0)
    moe = MoE(GPTConfig(n_embd=256, n_expert=16))
    torch.nn.init.normal_(moe.router.weight, std=0.02)
    x = F.rms_norm(torch.randn(2**14, 256), (256,))
    _, _, wanted = moe.route(x)
    logits, weight, chosen = moe.route(x.bfloat16())
    assert logits.dtype == weight.dtype == torch.float32
    elsewhere = (chosen.sort().values != wanted.sort().values).any(dim=-1)
    assert 0 < elsewhere.float().mean().item() < 0.01


def test_generate_takes_the_most_likely_token_at_temperature_0():
    model = build(large_weights=True).eval()
    start = tokens(B=2, T=3)
    out = model.generate(start, 15, temperature=0)  # past block_size, so the context slides
    assert out.shape == (2, 18) and torch.equal(out[:, :3], start)
    for t in range(3, 18):
        logits = model(out[:, max(0, t - 12) : t])[0][:, -1]
        assert torch.equal(out[:, t], logits.argmax(-1))


def test_generate_samples_among_the_top_k():
    model = build(large_weights=True).eval()
    start = tokens(B=2, T=3)
    allowed = model(start)[0][:, -1].topk(2).indices
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        sampled = model.generate(start, 1, top_k=2)[:, -1:]
        assert (sampled == allowed).any(dim=1).all()
        seen.add(tuple(sampled.flatten().tolist()))
    assert len(seen) > 1


@pytest.mark.parametrize(
    "options, name",
    [
        (dict(n_head=3), "n_head"),
        (dict(n_kv_head=3), "n_kv_head"),
        (dict(n_embd=20, n_head=4), "n_embd / n_head"),
        (dict(window=0), "window"),
        (dict(stride=0), "stride"),
        (dict(topk=0), "topk"),
        (dict(attention="sparse"), "attention"),
        (dict(n_expert=2, n_expert_active=3), "n_expert_active"),
        (dict(n_expert=-1), "n_expert"),
        (dict(n_shared_expert=1), "n_shared_expert"),
        (dict(n_layer=0), "n_layer"),
        (dict(n_head=0), "n_head"),
        (dict(load_balance_loss=math.nan), "load_balance_loss"),
        (dict(router_z_loss=math.inf), "router_z_loss"),
        (dict(n_expert=4, n_expert_active=1, normalize_expert_weights=True), "normalize_expert"),
    ],
)
def test_impossible_models_are_refused_by_name(options, name):
    with pytest.raises(ValueError, match=name) as error:
        GPTConfig(**{**SMALL, **options})
    assert "\n" not in str(error.value)
