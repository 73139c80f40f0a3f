"""model.py against slow, obvious references: loops over positions, heads and experts."""
import math

import pytest
import torch
import torch.nn.functional as F

from model import (ATTENTION_PATTERNS, GPT, CausalSelfAttention, GPTConfig, Gather, MoE, cross_entropy, grouped_linear,
                   rotate, visible)

SMALL = dict(block_size=12, vocab_size=20, n_layer=2, n_head=4, n_embd=16, mlp_hidden=32)
TOGGLES = {
    "plain": {},
    "gqa": dict(n_kv_head=2),
    "mqa": dict(n_kv_head=1),
    "window": dict(attention="window", window=3),
    "strided": dict(attention="strided", stride=3),
    "topk": dict(attention="topk", topk=2),
    "moe": dict(n_expert=4, n_expert_active=2, expert_hidden=16),
    "moe_shared": dict(n_expert=4, n_expert_active=1, n_shared_expert=1, expert_hidden=16, normalize_expert_weights=True),
    "layer_norm_scaling": dict(layer_norm_scaling=True),
    "scaled_residual_init": dict(scaled_residual_init=True),
    "together": dict(n_kv_head=2, attention="window", window=3, n_expert=4, expert_hidden=16, layer_norm_scaling=True),
}
each_toggle = pytest.mark.parametrize("toggle", TOGGLES.values(), ids=TOGGLES.keys())


def build(seed=0, large_weights=False, **options):
    torch.manual_seed(seed)
    model = GPT(GPTConfig(**{**SMALL, **options}))
    if large_weights:
        as_if_trained(model, 10)
    return model


def as_if_trained(model, factor):
    """Matrices times factor: scores far apart, routers decided; and norms' weights no longer 1."""
    for parameter in model.parameters():
        parameter.data.mul_(factor) if parameter.dim() > 1 else parameter.data.uniform_(0.5, 1.5)


def tokens(B=3, T=12, seed=1):
    return torch.randint(20, (B, T), generator=torch.Generator().manual_seed(seed))


# Attention ------------------------------------------------------------------------------------------------

def may_see(options, q, k):
    """The patterns, once more, in words: which earlier keys a position may look at."""
    if k > q:
        return False
    if options.get("attention") == "window":
        return k > q - options["window"]
    if options.get("attention") == "strided":
        return k > q - options["stride"] or (k + 1) % options["stride"] == 0
    return True


def naive_attention(attention, x, options):
    """One query, one head, one key at a time, from the raw projection matrix."""
    config, D = attention.config, attention.head_size
    B, T, C = x.shape
    query_rows, key_rows = config.n_head * D, config.n_kv_head * D
    W_query, W_key, W_value = attention.query_key_value.weight.split((query_rows, key_rows, key_rows))

    def turned(vector, position):
        out = vector.clone()
        for i in range(D // 2):
            angle = position * 10000.0 ** (-2 * i / D)
            a, b = vector[i], vector[i + D // 2]
            out[i] = a * math.cos(angle) - b * math.sin(angle)
            out[i + D // 2] = b * math.cos(angle) + a * math.sin(angle)
        return out

    y = torch.zeros(B, T, C, dtype=x.dtype)
    for b in range(B):
        for head in range(config.n_head):
            kv = head // (config.n_head // config.n_kv_head)
            queries = [turned(W_query[head * D:(head + 1) * D] @ x[b, t], t) for t in range(T)]
            keys = [turned(W_key[kv * D:(kv + 1) * D] @ x[b, t], t) for t in range(T)]
            values = [W_value[kv * D:(kv + 1) * D] @ x[b, t] for t in range(T)]
            for q in range(T):
                scores = {k: float(queries[q] @ keys[k]) / math.sqrt(D) for k in range(T) if may_see(options, q, k)}
                if options.get("attention") == "topk":
                    kept = sorted(scores, key=scores.get, reverse=True)[:options["topk"]]
                    scores = {k: scores[k] for k in kept}
                total = sum(math.exp(s) for s in scores.values())
                y[b, q, head * D:(head + 1) * D] = sum(math.exp(s) / total * values[k] for k, s in scores.items())
    return y @ attention.output.weight.T


ATTENTIONS = {name: {**pattern, **sharing} for name, pattern, sharing in
              [(f"{p}-{s}", TOGGLES.get(p, {}), dict(n_kv_head=s)) for p in ATTENTION_PATTERNS for s in (4, 2, 1)]}


@pytest.mark.parametrize("options", ATTENTIONS.values(), ids=ATTENTIONS.keys())
def test_attention_equals_a_loop_over_positions(options):
    attention = build(large_weights=True, **options).blocks[0].attention.double()
    x = torch.randn(2, 12, 16, dtype=torch.float64)
    with torch.no_grad():
        reference = naive_attention(attention, x, options)
        assert torch.allclose(attention(x), reference, atol=1e-6)
        # the explicit weights, which the instruments read, are the ones the forward pass used
        _, _, value = attention.project(x)
        explicit = attention.output((attention.weights(x) @ value).transpose(1, 2).flatten(2))
        assert torch.allclose(explicit, reference, atol=1e-6)


@pytest.mark.parametrize("options", [TOGGLES["plain"], TOGGLES["window"], TOGGLES["strided"]])
def test_masks_read_like_their_formulas(options):
    mask = visible(GPTConfig(**{**SMALL, **options}), 12)
    assert mask.tolist() == [[may_see(options, q, k) for k in range(12)] for q in range(12)]


def test_topk_keeps_exactly_k_keys_also_when_scores_tie():
    attention = CausalSelfAttention(GPTConfig(**SMALL, attention="topk", topk=3))
    attention.query_key_value.weight.data.zero_()  # every score equal
    kept = (attention.weights(torch.randn(1, 12, 16)) > 0).sum(dim=-1)
    assert (kept == torch.arange(1, 13).clamp(max=3)).all()


def test_rotary_scores_depend_on_the_distance_alone():
    attention = CausalSelfAttention(GPTConfig(**SMALL))
    query, key = torch.randn(2, 4)
    turned = lambda vector: rotate(vector.expand(1, 1, 12, 4), attention.cos, attention.sin)[0, 0]
    scores = turned(query) @ turned(key).T
    for offset in range(-11, 12):
        diagonal = scores.diagonal(offset)
        assert torch.allclose(diagonal, diagonal[0].expand_as(diagonal), atol=1e-5)
    assert not torch.allclose(scores[0, 0], scores[0, 5], atol=1e-3)


# Mixture of experts -----------------------------------------------------------------------------------------

def naive_moe(moe, x):
    config, y = moe.config, []
    for token in x.flatten(0, -2):
        probability = (moe.router.weight @ token).softmax(dim=0)
        best = sorted(range(config.n_expert), key=lambda e: -probability[e].item())[:config.n_expert_active]
        total = sum(probability[e] for e in best) if config.normalize_expert_weights else 1.0
        out = torch.zeros_like(token)
        for e in best:
            gate, up = (moe.gate_up[e] @ token).chunk(2)
            out = out + probability[e] / total * (moe.down[e] @ (gate * torch.sigmoid(gate) * up))
        if moe.shared is not None:
            gate, up = (moe.shared.gate_up.weight @ token).chunk(2)
            out = out + moe.shared.down.weight @ (gate * torch.sigmoid(gate) * up)
        y.append(out)
    return torch.stack(y).view_as(x)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("toggle", ["moe", "moe_shared"])
def test_moe_forward_and_gradients_equal_a_loop_over_experts(toggle, dtype, tolerance):
    """float32 takes grouped_mm, float64 the fallback; with 3 tokens and 4 experts some experts stay empty."""
    for B in (1, 4):
        moe = build(large_weights=True, **TOGGLES[toggle]).blocks[0].mlp.to(dtype)
        x = torch.randn(B, 3, 16, dtype=dtype, requires_grad=True)
        target = torch.randn(B, 3, 16, dtype=dtype)
        wanted = [x, *moe.parameters()]
        results = [torch.autograd.grad((f(x) * target).sum(), wanted) for f in (moe, lambda x: naive_moe(moe, x))]
        assert torch.allclose(moe(x), naive_moe(moe, x), atol=tolerance)
        for ours, reference in zip(*results):
            assert torch.allclose(ours, reference, atol=tolerance * max(1.0, float(reference.abs().max())))


def test_grouped_linear_takes_uneven_and_empty_groups():
    rows, weight = torch.randn(7, 8), torch.randn(4, 12, 8)
    ends = torch.tensor([3, 3, 4, 7], dtype=torch.int32)
    expert = [0, 0, 0, 2, 3, 3, 3]
    weight.requires_grad_()
    reference = torch.stack([weight[e] @ row for e, row in zip(expert, rows)])
    ours = grouped_linear(rows, weight, ends)
    assert torch.allclose(ours, reference, atol=1e-5)
    gradient, by_hand = (torch.autograd.grad(y.square().sum(), weight)[0] for y in (ours, reference))
    assert torch.allclose(gradient, by_hand, atol=1e-4)


def test_gather_passes_gradcheck_both_ways():
    """Three tokens of two rows each, in the order 3 0 4 1 5 2: row i belongs to token order[i] // 2."""
    order = torch.tensor([3, 0, 4, 1, 5, 2])
    token, rows_of_token = order // 2, order.argsort().view(3, 2)
    for index, back, n_rows in ((token, rows_of_token, 3), (rows_of_token, token, 6)):
        rows = torch.randn(n_rows, 3, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda rows: Gather.apply(rows, index, back), rows)
        assert torch.autograd.gradgradcheck(lambda rows: Gather.apply(rows, index, back), rows)


def test_a_bf16_router_rarely_chooses_other_experts_than_fp32():
    torch.manual_seed(0)
    moe = MoE(GPTConfig(n_embd=256, n_expert=16))
    torch.nn.init.normal_(moe.router.weight, std=0.02)
    tokens, gain = F.rms_norm(torch.randn(2**14, 256), (256,)), torch.rand(256) + 0.5
    chosen = [moe.route(x, gain)[-1].sort().values for x in (tokens, tokens.bfloat16())]
    elsewhere = (chosen[0] != chosen[1]).any(dim=-1).float().mean().item()
    assert 0 < elsewhere < 0.01
    assert moe.route(tokens.bfloat16(), gain)[1].dtype == torch.float32  # probabilities and losses stay in fp32


def test_router_losses_stand_apart_from_the_cross_entropy():
    model = build(**TOGGLES["moe"], load_balance_loss=3.0, router_z_loss=0.5)
    idx = tokens()
    logits, loss = model(idx, idx)
    assert torch.equal(loss, F.cross_entropy(logits.view(-1, 20), idx.view(-1), reduction="none").mean())
    expected = []
    for block in model.blocks:
        seen = []
        handle = block.mlp.router.register_forward_hook(lambda module, args, out: seen.append(out))
        model(idx)
        handle.remove()
        probability = seen[0].softmax(-1)
        share = F.one_hot(probability.topk(2).indices, 4).float().mean(dim=(0, 1))
        expected.append(3.0 * 4 * (share * probability.mean(0)).sum() + 0.5 * seen[0].logsumexp(-1).pow(2).mean())
    assert torch.allclose(model.router_loss(), sum(expected) / 2)
    assert build().router_loss() == 0.0


def test_load_balance_is_one_when_even_and_E_over_K_when_collapsed():
    moe = MoE(GPTConfig(**SMALL, n_expert=4, n_expert_active=1, expert_hidden=16, load_balance_loss=1.0, router_z_loss=0.0))
    even = torch.eye(4) * 50
    assert moe.balance_losses(even, even.softmax(-1), torch.tensor([1, 1, 1, 1])).item() == pytest.approx(1.0)
    collapsed = torch.tensor([[50.0, 0, 0, 0]] * 4)
    assert moe.balance_losses(collapsed, collapsed.softmax(-1), torch.tensor([4, 0, 0, 0])).item() == pytest.approx(4.0)


# The whole model --------------------------------------------------------------------------------------------

def test_plain_model_is_the_pre_ln_transformer():
    """Everything off: the same bits as Pre-LN blocks written out by hand from the same weights, while the norms' weights are
    1; with others, the same numbers, as the model multiplies them with the matrix that follows."""
    model, idx = build(), tokens()
    assert torch.equal(model(idx)[0], pre_ln_logits(model, idx))
    model = build(large_weights=True).double()
    assert torch.allclose(model(idx)[0], pre_ln_logits(model, idx), atol=1e-12)


def pre_ln_logits(model, idx):
    def norm(x, weight):
        return F.rms_norm(x, (16,), weight, 1e-6)

    h = model.embedding.weight[idx]
    for block in model.blocks:
        q, k, v = F.linear(norm(h, block.attention_norm.weight), block.attention.query_key_value.weight).view(3, 12, 12, 4).transpose(1, 2).split(4, 1)
        q, k = (rotate(t, block.attention.cos, block.attention.sin) for t in (q, k))
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(3, 12, 16)
        h = h + F.linear(a, block.attention.output.weight)
        gate, up = F.linear(norm(h, block.mlp_norm.weight), block.mlp.gate_up.weight).split(32, -1)
        h = h + F.linear(F.silu(gate) * up, block.mlp.down.weight)
    return F.linear(norm(h, model.norm.weight), model.head.weight)


def test_masks_that_hide_nothing_change_nothing():
    plain = build(seed=3)
    for options in (dict(attention="window", window=12), dict(attention="strided", stride=12), dict(attention="topk", topk=12)):
        assert torch.allclose(build(seed=3, **options)(tokens())[0], plain(tokens())[0], atol=1e-5)


@each_toggle
def test_causality_a_later_token_changes_no_earlier_logit(toggle):
    model = build(large_weights=True, **toggle).eval()
    before = tokens()
    with torch.no_grad():
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


@each_toggle
def test_overfits_one_batch(toggle):
    model = build(**toggle)
    optimizer = torch.optim.AdamW(model.parameter_groups(0.0), lr=1e-2)
    idx = tokens(B=2, T=13)
    for _ in range(120):
        _, loss = model(idx[:, :-1], idx[:, 1:])
        (loss + model.router_loss()).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.1


def test_parameter_counts_by_hand():
    norms = 2 * 2 * 16 + 16
    dense_mlp = 3 * 16 * 32
    plain = 2 * 20 * 16 + norms + 2 * (4 * 16 * 16 + dense_mlp)
    assert build().count_parameters() == build().count_parameters(active=True) == plain
    assert build(n_kv_head=1).count_parameters() == plain - 2 * 2 * 3 * 4 * 16  # 3 of 4 key and value heads gone
    moe = build(n_expert=4, n_expert_active=1, n_shared_expert=1, expert_hidden=16)
    rest = plain - 2 * dense_mlp + 2 * (4 * 16 + 3 * 16 * 16)                   # routers and shared experts
    assert moe.count_parameters() == rest + 2 * 4 * 3 * 16 * 16
    assert moe.count_parameters(active=True) == rest + 2 * 1 * 3 * 16 * 16
    assert GPTConfig(**SMALL, n_expert=4).expert_hidden == 16  # two active of 16 are as wide as the dense 32


def test_flops_per_token_by_hand():
    attention, norms = 12 * 2 * 16, 2 * 2 * 16 + 16
    plain = 6 * (20 * 16 + norms + 2 * (4 * 16 * 16 + 3 * 16 * 32))
    assert build().flops_per_token() == plain + attention * (12 + 1) / 2
    assert build(attention="window", window=1).flops_per_token() == plain + attention
    moe = dict(n_expert=8, n_expert_active=2, expert_hidden=16)
    assert build(**moe).flops_per_token() == build().flops_per_token() + 6 * 2 * 8 * 16  # the routers


def test_weight_decay_takes_matrices_and_embeddings_but_no_norm():
    model = build(**TOGGLES["moe_shared"])
    decayed, spared = model.parameter_groups(0.1)
    assert decayed["weight_decay"] == 0.1 and spared["weight_decay"] == 0.0
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)] for p in spared["params"]} == {n for n in names.values() if "norm" in n}
    assert len(decayed["params"]) + len(spared["params"]) == len(names)


def test_initialisation():
    model = GPT(GPTConfig(n_embd=256, n_layer=8, n_expert=4, n_shared_expert=1, scaled_residual_init=True))
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            assert (parameter == 1).all()
        else:
            ends_branch = any(end in name for end in ("attention.output", "mlp.down", "mlp.shared.down"))
            tolerance = 4 / math.sqrt(2 * parameter.numel())  # four standard errors
            assert parameter.std().item() == pytest.approx(0.02 / 4 if ends_branch else 0.02, rel=tolerance), name


def test_layer_norm_scaling_divides_each_norm_by_the_root_of_its_layer():
    model, x = build(layer_norm_scaling=True), torch.randn(2, 3, 16)
    for layer, block in enumerate(model.blocks, start=1):
        for norm in (block.attention_norm, block.mlp_norm):
            norm.weight.data.uniform_(0.5, 1.5)
            (normalized, gain), rms = norm(x), x.square().mean(dim=-1, keepdim=True).sqrt()
            assert torch.allclose(normalized * gain, x / rms * norm.weight / math.sqrt(layer), atol=1e-5)
    assert torch.equal(model.norm(x)[1], torch.ones(16))


def test_bf16_stream_keeps_fp32_weights_and_cross_entropy():
    model = build()
    model.compute_dtype = torch.bfloat16
    logits, loss = model(tokens(), tokens())
    assert model.embed(tokens()).dtype == logits.dtype == torch.bfloat16
    assert loss.dtype == torch.float32 and model.head.weight.dtype == torch.float32
    assert cross_entropy(logits.double(), tokens()).dtype == torch.float64


def test_generate_samples_from_the_model():
    model = build(large_weights=True).eval()
    start = tokens(B=2, T=3)
    out = model.generate(start, 15, temperature=0)  # past block_size, so the context slides
    assert out.shape == (2, 18) and torch.equal(out[:, :3], start)
    for t in range(3, 18):
        assert torch.equal(out[:, t], model(out[:, max(0, t - 12):t])[0][:, -1].argmax(-1))
    allowed = model(start)[0][:, -1].topk(2).indices
    for seed in range(20):
        torch.manual_seed(seed)
        assert (model.generate(start, 1, top_k=2)[:, -1:] == allowed).any(dim=1).all()


@pytest.mark.parametrize("options, name", [
    (dict(n_head=3), "n_head"), (dict(n_kv_head=3), "n_kv_head"), (dict(n_embd=20, n_head=4), "n_embd / n_head"),
    (dict(window=0), "window"), (dict(stride=0), "stride"), (dict(topk=0), "topk"), (dict(attention="sparse"), "attention"),
    (dict(n_expert=2, n_expert_active=3), "n_expert_active"), (dict(n_expert=4, expert_hidden=12), "expert_hidden"),
    (dict(n_expert=-1), "n_expert"), (dict(n_shared_expert=1), "n_shared_expert"), (dict(n_layer=0), "n_layer")])
def test_impossible_models_are_refused_by_name(options, name):
    with pytest.raises(ValueError, match=name) as error:
        GPTConfig(**{**SMALL, **options})
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def compiler():
    try:
        torch.compile(torch.sin)(torch.ones(8))
    except Exception as error:  # no C++ compiler, or none of Python's headers: many kinds
        pytest.skip(f"compiling for the CPU does not work here: {type(error).__name__}")


@pytest.mark.parametrize("options", [dict(), dict(n_kv_head=1, attention="strided", stride=3, layer_norm_scaling=True)], ids=["plain", "toggled"])
def test_the_compiled_path_equals_the_plain_one(options, monkeypatch, compiler):
    """Loss and every gradient, on the CPU and in fp32, where both exist. Not FlexAttention: it has no backward there, and
    compiled with the projection it takes wrong values, as they are views of one tensor (pytorch issue 157612)."""
    monkeypatch.setattr("model.flex_mask", lambda *_: None)
    results = []
    for compiled in (False, True):
        model = build(large_weights=True, **{"n_layer": 2, **options})
        if compiled:
            model.compile_for_gpu()
        idx = torch.randint(model.config.vocab_size, (3, model.config.block_size + 1), generator=torch.Generator().manual_seed(1))
        logits, loss = model(idx[:, :-1], idx[:, 1:])
        loss.backward()
        shorter = model(idx[:, :5])[0].detach()  # another context length, after the first was compiled
        results.append([logits, loss.detach(), shorter, *(p.grad for p in model.parameters())])
    for ours, plain in zip(*reversed(results), strict=True):
        assert torch.allclose(ours, plain, atol=1e-5 * plain.abs().max())
