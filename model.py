"""What is trained: a Pre-LN transformer, plain unless a toggle of GPTConfig says otherwise.

    h = x + attention(norm(x))      Pre-LN: every branch is added to a residual stream that nothing
    y = h + mlp(norm(h))            ever normalises, so its variance can only pile up with depth.

The toggles are the sources of sparsity of "When Does Sparsity Mitigate the Curse of Depth in LLMs"
(arXiv 2603.15389): shared keys and values (n_kv_head), experts (n_expert), masks (attention) and
weight decay (GPT.parameter_groups); beside them published remedies of other kinds, from
layer_norm_scaling to complete_p.

From top to bottom: options, masks, layers, the model, refusals. Everything here is the definition,
and nothing here needs fast.py, which computes the same numbers faster on a GPU; some methods are
small so that it can put a faster one in their place.

Shapes in comments: B sequences, T positions, C n_embd, H n_head, D head size, N = B * T tokens,
E n_expert, K n_expert_active.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

INIT_STD = 0.02  # every matrix and embedding, as in the paper
NORM_EPS = 1e-6
ROTARY_BASE = 10000.0
COMPLETE_P_DEPTH = 4  # L_base, the depth at which complete_p changes nothing


@dataclass
class GPTConfig:
    """A model's options. Raises ValueError, naming the option, for a model that cannot exist."""

    block_size: int = 256  # context length T, in tokens
    vocab_size: int = 257  # bytes and end-of-text; left out in training: as many as the data has
    n_layer: int = 4  # depth L, in blocks
    n_head: int = 4  # query heads
    n_embd: int = 128  # width of the residual stream
    mlp_hidden: int = 0  # width of the SwiGLU; 0: 8/3 of n_embd, rounded up to a multiple of 32
    n_kv_head: int = 0  # key/value heads, each for n_head / n_kv_head query heads; 0: n_head
    attention: str = "full"  # full, window, strided or topk
    window: int = 128  # window: the last `window` keys
    stride: int = 32  # strided: the last `stride` keys, and one of every `stride` before them
    topk: int = 32  # topk: the `topk` keys of largest score
    n_expert: int = 0  # 0: a dense MLP
    n_expert_active: int = 2  # experts that each token is sent to
    n_shared_expert: int = 0  # experts that see every token
    expert_hidden: int = 0  # width of one expert; 0: mlp_hidden split among a token's experts
    normalize_expert_weights: bool = False  # let the active experts' weights sum to one
    load_balance_loss: float = 0.01  # weight of the loss that keeps experts equally busy
    router_z_loss: float = 0.001  # weight of the loss that keeps router logits small
    layer_norm_scaling: bool = False  # multiply block l's norms by 1/sqrt(l) (arXiv 2502.05795)
    scaled_residual_init: bool = False  # GPT-2: shrink both output projections by sqrt(2 n_layer)
    down_init_scale: float = 1.0  # initial std of the feed-forward's last matrices, times this
    embedding_norm: bool = False  # begin the stream at E / rms(E), with no weight
    peri_ln: bool = False  # a second norm, with a gain, on what each branch adds (arXiv 2502.02732)
    complete_p: bool = False  # add 4 / n_layer of a branch; Adam's eps alike (arXiv 2505.01618)

    def __post_init__(self):
        self.n_kv_head = self.n_kv_head or self.n_head
        self.mlp_hidden = self.mlp_hidden or 32 * math.ceil(self.n_embd * 8 / 3 / 32)
        if self.expert_hidden == 0:
            n_used = max(1, self.n_expert_active + self.n_shared_expert)
            # A multiple of 8, as GPUs like it.
            self.expert_hidden = max(8, 8 * round(self.mlp_hidden / n_used / 8))
        refuse_impossible(self)


# Masks: may the query at position q look at the key at position k? -------------------------------


def full_mask(config, q, k):
    return k <= q


def window_mask(config, q, k):
    return (k <= q) & (q - k < config.window)


def strided_mask(config, q, k):
    """Sparse Transformers (arXiv 1904.10509): near keys all, far keys one in `stride`."""
    is_near = q - k < config.stride
    is_one_in_stride = k % config.stride == config.stride - 1
    return (k <= q) & (is_near | is_one_in_stride)


# Which keys topk keeps depends on the scores, so CausalSelfAttention.scores picks them among those
# that the full mask leaves in sight.
MASKS = {"full": full_mask, "window": window_mask, "strided": strided_mask, "topk": full_mask}


def visible(config, T, device=None):
    """(T, T) bool: row q marks the keys that position q may look at (for topk: may choose from)."""
    position = torch.arange(T, device=device)
    return MASKS[config.attention](config, position[:, None], position[None, :])


def keys_in_sight(config):
    """(block_size,) how many keys each position may look at (for topk: may choose from)."""
    position = torch.arange(config.block_size)
    mask = MASKS[config.attention]
    # Some rows at a time, as a mask of all may not fit.
    counts = [mask(config, q[:, None], position).sum(dim=1) for q in position.split(256)]
    return torch.cat(counts)


def mask_density(config):
    """Share of the causal (query, key) pairs in use: those in sight, of which a query of topk uses
    at most `topk`."""
    T = config.block_size
    n_keys = keys_in_sight(config)
    if config.attention == "topk":
        n_keys = n_keys.clamp(max=config.topk)
    return n_keys.sum().item() / (T * (T + 1) / 2)


# Layers ------------------------------------------------------------------------------------------


def at_least_fp32(x):
    """x in fp32, where a softmax or a variance in bf16 would lose digits; float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Linear(nn.Linear):
    """nn.Linear in the dtype of its input: fp32 master weights serve a bf16 residual stream."""

    def forward(self, x):
        return F.linear(x, self.weight.to(x.dtype))


class RMSNorm(nn.Module):
    """x / rms(x) * weight, times a constant scale."""

    def __init__(self, n_embd, scale=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n_embd))
        # A buffer and no float, which torch.compile would take for other code in every layer.
        self.register_buffer("scale", torch.tensor(scale), persistent=False)

    def forward(self, x):
        gain = self.weight * self.scale
        return F.rms_norm(x, x.shape[-1:], gain.to(x.dtype), NORM_EPS)


def rotate(x, cos, sin):
    """Rotary position embedding (arXiv 2104.09864), half-split: features i and i + D/2 of x
    (..., D) turn by the angle of their position. cos, sin (T, D/2), or what broadcasts to x; in
    fp32, so that a bf16 x is rounded once, at the end."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).type_as(x)


class CausalSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.head_size = config.n_embd // config.n_head
        n_heads = config.n_head + 2 * config.n_kv_head
        self.query_key_value = Linear(config.n_embd, n_heads * self.head_size, bias=False)
        self.output = Linear(config.n_embd, config.n_embd, bias=False)
        # Angles in float64: at large positions fp32 would lose their fraction of a turn.
        exponent = torch.arange(0, self.head_size, 2, dtype=torch.float64) / self.head_size
        angle = torch.outer(torch.arange(config.block_size), ROTARY_BASE**-exponent)  # (T, D/2)
        self.register_buffer("cos", angle.cos().float(), persistent=False)
        self.register_buffer("sin", angle.sin().float(), persistent=False)

    def project(self, x):
        """x (B, T, C) -> queries, keys and values, (B, H, T, D) each; with grouped-query attention
        a key/value head is repeated for each of its queries."""
        T = x.shape[1]
        n_head, n_kv_head = self.config.n_head, self.config.n_kv_head
        heads = self.query_key_value(x).unflatten(-1, (-1, self.head_size))  # (B, T, heads, D)
        query, key, value = heads.split((n_head, n_kv_head, n_kv_head), dim=2)
        cos, sin = self.cos[:T, None], self.sin[:T, None]  # (T, 1, D/2)
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        query, key, value = (t.transpose(1, 2) for t in (query, key, value))  # (B, heads, T, D)
        if n_kv_head < n_head:
            n_sharing = n_head // n_kv_head
            key = key.repeat_interleave(n_sharing, dim=1)
            value = value.repeat_interleave(n_sharing, dim=1)
        return query, key, value

    def scores(self, query, key):
        """(B, H, T, T) scaled dot products, minus infinity where the query may not look."""
        scores = query @ key.transpose(-2, -1) / math.sqrt(self.head_size)
        mask = visible(self.config, query.shape[2], query.device)
        scores = scores.masked_fill(~mask, -math.inf)
        if self.config.attention == "topk":
            kept, index = scores.topk(min(self.config.topk, scores.shape[-1]))
            scores = torch.full_like(scores, -math.inf).scatter(-1, index, kept)
        return scores

    def probabilities(self, x):
        """x (B, T, C) -> (B, H, T, T) attention, written out, for the instruments."""
        query, key, _ = self.project(x)
        return self.scores(query, key).softmax(dim=-1)

    def attend(self, query, key, value):
        """softmax(scores) @ value, (B, H, T, D). topk needs the scores first; the other masks take
        torch's own kernel, which never holds them all."""
        if self.config.attention == "topk":
            return self.scores(query, key).softmax(dim=-1) @ value
        if self.config.attention == "full":
            return F.scaled_dot_product_attention(query, key, value, is_causal=True)
        mask = visible(self.config, query.shape[2], query.device)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)

    def forward(self, x):  # (B, T, C)
        y = self.attend(*self.project(x))  # (B, H, T, D)
        return self.output(y.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """SwiGLU (arXiv 2002.05202): down(silu(gate(x)) * up(x)), gate and up in one product."""

    def __init__(self, n_embd, hidden):
        super().__init__()
        self.gate_up = Linear(n_embd, 2 * hidden, bias=False)
        self.down = Linear(hidden, n_embd, bias=False)

    def forward(self, x):
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class MoE(nn.Module):
    """Dropless mixture of experts, each a SwiGLU:
    y = shared(x) + sum over the K most probable experts of probability * expert(x)."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        E, hidden, C = config.n_expert, config.expert_hidden, config.n_embd
        self.router = Linear(C, E, bias=False)
        self.gate_up = nn.Parameter(torch.empty(E, 2 * hidden, C))
        self.down = nn.Parameter(torch.empty(E, C, hidden))
        self.shared = MLP(C, config.n_shared_expert * hidden) if config.n_shared_expert else None
        self.router_loss = None  # of the last training forward, for GPT.take_router_loss

    def route(self, tokens):
        """tokens (N, C) -> router logits (N, E), and of the K chosen experts the weights and the
        numbers, (N, K) each. Logits and weights are in fp32 or better."""
        logits = at_least_fp32(self.router(tokens))
        weight, chosen = self.choose(logits.softmax(dim=-1))
        if self.config.normalize_expert_weights:
            weight = weight / weight.sum(dim=-1, keepdim=True)
        return logits, weight, chosen

    def choose(self, probability):
        """(N, E) -> the K largest probabilities and the numbers of their experts, (N, K) each."""
        return probability.topk(self.config.n_expert_active)

    def mix(self, tokens, weight, chosen):
        """y[n] = sum over k of weight[n, k] * expert_e(tokens[n]) with e = chosen[n, k], (N, C)."""
        y = torch.zeros_like(tokens)
        gate_up, down = self.gate_up.to(y.dtype), self.down.to(y.dtype)
        for e in range(self.config.n_expert):
            n, k = (chosen == e).nonzero(as_tuple=True)  # which tokens chose e, as which choice
            gate, up = F.linear(tokens[n], gate_up[e]).chunk(2, dim=-1)
            out = F.linear(F.silu(gate) * up, down[e])
            y.index_add_(0, n, out * weight[n, k, None].to(y.dtype))
        return y

    def shares(self, chosen):
        """chosen (N, K) -> each expert's share of all N * K choices, (E,)."""
        return F.one_hot(chosen, self.config.n_expert).float().mean(dim=(0, 1))

    def balance_losses(self, logits, chosen):
        """Switch's load balance, E * sum_e share_e * mean probability_e, which is 1 when even
        (arXiv 2101.03961, eq. 4), and ST-MoE's router z, mean logsumexp^2 (2202.08906, eq. 5)."""
        mean_probability = logits.softmax(dim=-1).mean(dim=0)
        balance = self.config.n_expert * (self.shares(chosen) * mean_probability).sum()
        z = logits.logsumexp(dim=-1).square().mean()
        return self.config.load_balance_loss * balance + self.config.router_z_loss * z

    def forward(self, x):  # (B, T, C)
        tokens = x.flatten(0, -2)  # (N, C)
        logits, weight, chosen = self.route(tokens)
        if self.training:
            self.router_loss = self.balance_losses(logits, chosen)
        y = self.mix(tokens, weight, chosen).view_as(x)
        return y if self.shared is None else y + self.shared(x)


class Block(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        scale = layer**-0.5 if config.layer_norm_scaling else 1.0
        self.attention_norm = RMSNorm(config.n_embd, scale)
        self.attention = CausalSelfAttention(config)
        self.mlp_norm = RMSNorm(config.n_embd, scale)
        self.mlp = MoE(config) if config.n_expert else MLP(config.n_embd, config.mlp_hidden)

    def forward(self, x):
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


def branch_factor(config):
    """What each branch is multiplied by before it is added: 1, or with CompleteP L_base / L (arXiv
    2505.01618, exponent 1), so that L branches together move the stream as far as L_base do, and
    one learning rate serves every depth."""
    return COMPLETE_P_DEPTH / config.n_layer if config.complete_p else 1.0


class RemediedBlock(Block):
    """What each branch adds goes through a norm of its own with peri_ln, and is made smaller with
    complete_p: x + factor * outer_norm(attention(norm(x))), and the same of the other branch."""

    def __init__(self, config, layer):
        super().__init__(config, layer)
        self.attention_outer_norm = RMSNorm(config.n_embd) if config.peri_ln else nn.Identity()
        self.mlp_outer_norm = RMSNorm(config.n_embd) if config.peri_ln else nn.Identity()
        self.factor = branch_factor(config)

    def forward(self, x):
        x = x + self.factor * self.attention_outer_norm(self.attention(self.attention_norm(x)))
        return x + self.factor * self.mlp_outer_norm(self.mlp(self.mlp_norm(x)))


# The model ---------------------------------------------------------------------------------------


def cross_entropy(logits, targets):
    """(B, T) cross-entropy per position in nats, in fp32 or better."""
    logits = at_least_fp32(logits).flatten(0, 1)
    loss = F.cross_entropy(logits, targets.flatten(), reduction="none")
    return loss.view_as(targets)


class GPT(nn.Module):
    """`blocks` may be edited freely: whatever maps (B, T, C) to (B, T, C) can stand in for one."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.compute_dtype = None  # dtype of the residual stream; None: that of the weights
        self.embedding = nn.Embedding(config.vocab_size, config.n_embd)
        block = RemediedBlock if config.peri_ln or config.complete_p else Block
        self.blocks = nn.ModuleList(block(config, l) for l in range(1, config.n_layer + 1))
        self.norm = RMSNorm(config.n_embd)
        self.head = Linear(config.n_embd, config.vocab_size, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() >= 2:
                nn.init.normal_(parameter, std=self.init_std(name))

    def init_std(self, name):
        """Standard deviation that the matrix of this name is drawn with."""
        ends_attention = name.endswith("attention.output.weight")
        ends_feed_forward = name.endswith(("mlp.down", "down.weight"))  # experts', dense or shared
        std = INIT_STD
        if ends_feed_forward:
            std *= self.config.down_init_scale
        if self.config.scaled_residual_init and (ends_attention or ends_feed_forward):
            std /= math.sqrt(2 * self.config.n_layer)
        return std

    def embed(self, idx):
        """Token ids (B, T) -> h_0, the residual stream before the first block (B, T, C)."""
        h = self.embedding(idx)
        if self.config.embedding_norm:
            h = F.rms_norm(h, h.shape[-1:], eps=NORM_EPS)
        return h.to(self.compute_dtype or h.dtype)

    def read_out(self, h):
        """Residual stream (B, T, C) -> logits (B, T, vocab_size)."""
        return self.head(self.norm(h))

    def read_out_with_loss(self, h, targets):
        """Residual stream and targets (B, T) -> logits, and their mean cross-entropy in nats."""
        logits = self.read_out(h)
        return logits, cross_entropy(logits, targets).mean()

    def position_losses(self, h, targets):
        """Residual stream and targets (B, T) -> each position's cross-entropy in nats, (B, T)."""
        return cross_entropy(self.read_out(h), targets)

    def forward(self, idx, targets=None):
        """idx, targets (B, T) -> logits (B, T, vocab_size), and the mean cross-entropy in nats,
        or None without targets. The experts' losses are apart: take_router_loss."""
        h = self.embed(idx)
        for block in self.blocks:
            h = block(h)
        if targets is None:
            return self.read_out(h), None
        return self.read_out_with_loss(h, targets)

    def take_router_loss(self):
        """Weighted balance and z losses of the last training forward, mean over blocks; 0 when
        dense. They can be taken once: what stayed would keep that step's whole graph."""
        if not self.config.n_expert:
            return 0.0
        losses = [block.mlp.router_loss for block in self.blocks]
        if None in losses:
            raise RuntimeError("no training forward since the router loss was last taken")
        for block in self.blocks:
            block.mlp.router_loss = None
        return torch.stack(losses).mean()

    def parameter_groups(self, weight_decay, eps=1e-8):
        """AdamW's groups: matrices and embeddings decay, norms do not (the paper's rule). CompleteP
        makes gradients in the blocks smaller by its factor, hence Adam's eps there, too."""
        parts = [(list(self.parameters()), eps)]
        if self.config.complete_p:
            inside = dict.fromkeys(self.blocks.parameters())  # a set that keeps their order
            outside = [p for p in self.parameters() if p not in inside]
            parts = [(outside, eps), (inside, eps * branch_factor(self.config))]
        groups = []
        for parameters, its_eps in parts:
            matrices = [p for p in parameters if p.dim() >= 2]
            vectors = [p for p in parameters if p.dim() < 2]
            groups.append({"params": matrices, "weight_decay": weight_decay, "eps": its_eps})
            groups.append({"params": vectors, "weight_decay": 0.0, "eps": its_eps})
        return groups

    def count_parameters(self, active=False):
        """All parameters, embeddings too; active: without experts that a token is not sent to."""
        total = sum(p.numel() for p in self.parameters())
        if active and self.config.n_expert:
            experts = sum(
                block.mlp.gate_up.numel() + block.mlp.down.numel() for block in self.blocks
            )
            total -= round(experts * (1 - self.config.n_expert_active / self.config.n_expert))
        return total

    def flops_per_token(self):
        """Floating-point operations of a training step, per token: 6 for each weight of a matrix
        product (2 forward, 4 backward; the embedding is a look-up), active experts only; and
        12 n_embd for each key in sight (2 for its score, 2 for its value, times 3)."""
        weights = self.count_parameters(active=True) - self.embedding.weight.numel()
        keys = keys_in_sight(self.config).sum().item() / self.config.block_size
        return 6 * weights + 12 * self.config.n_layer * self.config.n_embd * keys

    @torch.no_grad()
    def generate(self, idx, max_new_tokens, temperature=1.0, top_k=None):
        """Continue idx (B, T) by sampled tokens; temperature 0 takes the most likely one."""
        for _ in range(max_new_tokens):
            logits = self(idx[:, -self.config.block_size :])[0][:, -1].float()
            if top_k is not None:
                least = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
                logits = logits.masked_fill(logits < least, -math.inf)
            if temperature == 0:
                next_token = logits.argmax(dim=-1, keepdim=True)
            else:
                next_token = torch.multinomial((logits / temperature).softmax(dim=-1), 1)
            idx = torch.cat((idx, next_token), dim=1)
        return idx


# Refusals ----------------------------------------------------------------------------------------


def refuse(wrong, sentence):
    """Raises ValueError(sentence) where `wrong` holds."""
    if wrong:
        raise ValueError(sentence)


def refuse_outside(name, value, least):
    """Raises ValueError where a number is smaller, not finite, or larger than torch can count."""
    refuse(not least <= value < math.inf, f"{name} = {value} must be finite and at least {least}")
    refuse(type(value) is int and value >= 2**63, f"{name} = {value} must be smaller than 2^63")


def refuse_impossible(config):
    """Raises ValueError, in one sentence that names the option, for a model that cannot exist."""
    losses = ("load_balance_loss", "router_z_loss")
    at_least_0 = ("n_expert", "n_shared_expert", "down_init_scale", *losses)
    for name, value in vars(config).items():
        if type(value) in (int, float):
            refuse_outside(name, value, least=0 if name in at_least_0 else 1)

    C, n_head, n_kv_head = config.n_embd, config.n_head, config.n_kv_head
    refuse(C % n_head, f"n_embd = {C} must be a multiple of n_head = {n_head}")
    D = C // n_head
    refuse(D % 2, f"n_embd / n_head = {D} must be even: rotation turns pairs of features")
    refuse(n_head % n_kv_head, f"n_head = {n_head} must be a multiple of n_kv_head = {n_kv_head}")

    attention, known = config.attention, ", ".join(MASKS)
    refuse(attention not in MASKS, f'attention = "{attention}" must be one of {known}')

    E, K, n_shared = config.n_expert, config.n_expert_active, config.n_shared_expert
    refuse(n_shared and not E, f"n_shared_expert = {n_shared} needs n_expert, too")
    refuse(E and K > E, f"n_expert_active = {K} must be at most n_expert = {E}")
    always_1 = K == 1 and config.normalize_expert_weights  # a weight without a gradient
    refuse(
        E and always_1, "normalize_expert_weights needs n_expert_active = 2 or more to learn from"
    )
