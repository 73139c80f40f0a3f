"""What is trained: a Pre-LN transformer, plain unless a toggle of GPTConfig says otherwise.

    h = x + attention(norm(x))          Pre-LN: every branch is added to a residual stream that nothing
    y = h + mlp(norm(h))                ever normalises, so its variance can only pile up with depth.

The toggles are the sources of sparsity of "When Does Sparsity Mitigate the Curse of Depth in LLMs" (arXiv 2603.15389):
shared keys and values (n_kv_head), experts (n_expert), masks (attention), and weight decay (GPT.parameter_groups);
beside them two published remedies, layer_norm_scaling and scaled_residual_init.
Shapes in comments: B sequences, T positions, C n_embd, H n_head, D head size, N = B*T tokens, E n_expert, K n_expert_active.
"""
import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

INIT_STD = 0.02  # every matrix and embedding, as in the paper
NORM_EPS = 1e-6


@dataclass
class GPTConfig:
    """Raises ValueError, in one sentence that names the option, for a model that cannot exist."""
    block_size: int = 256       # context length T, in tokens
    vocab_size: int = 257       # 256 bytes plus end-of-text
    n_layer: int = 4            # depth L, in blocks
    n_head: int = 4             # query heads
    n_embd: int = 128           # width of the residual stream
    mlp_hidden: int = 0         # width of the SwiGLU; 0: 8/3 of n_embd, rounded up to a multiple of 32
    n_kv_head: int = 0          # key/value heads, shared by n_head / n_kv_head query heads each; 0: n_head
    attention: str = "full"     # full, window, strided or topk
    window: int = 128           # window: the last `window` keys
    stride: int = 32            # strided: the last `stride` keys, and one of every `stride` before them
    topk: int = 32              # topk: the `topk` keys of largest score
    n_expert: int = 0           # 0: a dense MLP
    n_expert_active: int = 2    # experts that each token is sent to
    n_shared_expert: int = 0    # experts that see every token
    expert_hidden: int = 0      # width of one expert; 0: mlp_hidden split among a token's experts, to a multiple of 8
    normalize_expert_weights: bool = False  # let the active experts' weights sum to one
    load_balance_loss: float = 0.01         # weight of the loss that keeps experts equally busy
    router_z_loss: float = 0.001            # weight of the loss that keeps router logits small
    layer_norm_scaling: bool = False        # multiply block l's norms by 1/sqrt(l) (arXiv 2502.05795)
    scaled_residual_init: bool = False      # GPT-2: init both output projections with 0.02 / sqrt(2 n_layer)

    def __post_init__(self):
        self.n_kv_head = self.n_kv_head or self.n_head
        self.mlp_hidden = self.mlp_hidden or 32 * math.ceil(self.n_embd * 8 / 3 / 32)
        self.expert_hidden = self.expert_hidden or max(8, 8 * round(self.mlp_hidden / max(1, self.n_expert_active + self.n_shared_expert) / 8))
        for name, value in vars(self).items():
            least = 0 if name in ("n_expert", "n_shared_expert", "load_balance_loss", "router_z_loss") else 1
            refuse(not isinstance(value, (bool, str)) and value < least, f"{name} = {value} must be at least {least}")
        refuse(self.n_embd % self.n_head, f"n_embd = {self.n_embd} must be a multiple of n_head = {self.n_head}")
        refuse(self.n_embd // self.n_head % 2, f"n_embd / n_head = {self.n_embd // self.n_head} must be even: rotation turns pairs of features")
        refuse(self.n_head % self.n_kv_head, f"n_head = {self.n_head} must be a multiple of n_kv_head = {self.n_kv_head}")
        refuse(self.attention not in ATTENTION_PATTERNS, f'attention = "{self.attention}" must be one of {", ".join(ATTENTION_PATTERNS)}')
        refuse(self.n_shared_expert and not self.n_expert, f"n_shared_expert = {self.n_shared_expert} needs n_expert, too")
        if self.n_expert:
            refuse(self.n_expert_active > self.n_expert, f"n_expert_active = {self.n_expert_active} must be at most n_expert = {self.n_expert}")
            for name in ("n_embd", "expert_hidden"):
                refuse(getattr(self, name) % 8, f"{name} = {getattr(self, name)} must be a multiple of 8 with experts (grouped_mm's alignment)")


def refuse(wrong, sentence):
    if wrong:
        raise ValueError(sentence)


# Attention patterns: may the query at position q look at the key at position k? ------------------------------

def full_mask(config, q, k):
    return k <= q


def window_mask(config, q, k):
    return (k <= q) & (q - k < config.window)


def strided_mask(config, q, k):
    """Sparse Transformers (arXiv 1904.10509): near keys all, far keys one in `stride`."""
    return (k <= q) & ((q - k < config.stride) | (k % config.stride == config.stride - 1))


# topk's mask depends on the scores, so its causal half stands here and CausalSelfAttention.scores does the rest.
ATTENTION_PATTERNS = {"full": full_mask, "window": window_mask, "strided": strided_mask, "topk": full_mask}


def visible(config, T, device=None):
    """(T, T) bool: row q marks the keys that position q may look at (for topk: may choose from)."""
    position = torch.arange(T, device=device)
    return ATTENTION_PATTERNS[config.attention](config, position[:, None], position[None, :])


def keys_in_sight(config):
    """(block_size,) how many keys each position may look at, counted some rows of the mask at a time."""
    position, pattern = torch.arange(config.block_size), ATTENTION_PATTERNS[config.attention]
    return torch.cat([pattern(config, q[:, None], position).sum(dim=1) for q in position.split(256)])


def flex_mask(config, device):
    """FlexAttention's block mask: it skips blocks of keys that no query of a block can see. One far key in every
    stride would touch each block and skip nothing, so the strided far keys are gathered into a short run of columns
    of their own, before all the near ones (CausalSelfAttention.attend lays the keys out so)."""
    T, stride, allowed = config.block_size, config.stride, ATTENTION_PATTERNS[config.attention]
    n_far = T // stride if config.attention == "strided" else 0

    def columns(b, h, q, column):
        is_far = column < n_far
        k = torch.where(is_far, (column + 1) * stride - 1, column - n_far)
        once = is_far == (q - k >= stride) if n_far else True  # a far key that is near, too, counts as near
        return allowed(config, q, k) & once
    return create_block_mask(columns, None, None, T, n_far + T, device)


# The layers --------------------------------------------------------------------------------------------------

class Linear(nn.Linear):
    """In the dtype of its input: fp32 master weights serve a bf16 residual stream. gain (C_in,): of the norm before."""
    def forward(self, x, gain=None):
        return F.linear(x, (self.weight if gain is None else self.weight * gain).to(x.dtype))


class RMSNorm(nn.Module):
    """-> x / rms(x), and gain (C,): weight, times 1/sqrt(layer) with layer-norm scaling (a buffer: layers share compiled code).
    The matrix that follows takes the gain, W (gain * x) = (W * gain) x, so its gradient is a sum over W's rows, not all tokens."""
    def __init__(self, n_embd, layer=1):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n_embd))
        self.register_buffer("depth_scale", torch.tensor(layer ** -0.5), persistent=False)

    def forward(self, x):
        return F.rms_norm(x, x.shape[-1:], None, NORM_EPS), self.weight * self.depth_scale


def rotate(x, cos, sin):
    """Rotary position embedding, half-split: features i and i + D/2 of x (..., D) turn by one angle. sin has the sign."""
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((second, first), dim=-1) * sin).type_as(x)


class CausalSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.head_size = config.n_embd // config.n_head
        self.query_key_value = Linear(config.n_embd, (config.n_head + 2 * config.n_kv_head) * self.head_size, bias=False)
        self.output = Linear(config.n_embd, config.n_embd, bias=False)
        self.block_mask = None  # FlexAttention's, set where the block is compiled for a GPU
        pairs = torch.arange(0, self.head_size, 2, dtype=torch.float64) / self.head_size
        angle = torch.outer(torch.arange(config.block_size), 10000.0 ** -pairs)  # (block_size, D/2)
        self.register_buffer("cos", torch.cat((angle.cos(), angle.cos()), dim=1).float(), persistent=False)
        self.register_buffer("sin", torch.cat((-angle.sin(), angle.sin()), dim=1).float(), persistent=False)

    def project(self, x, gain=1.0):
        """Queries, keys and values, (B, H, T, D) each; with GQA each key/value head is repeated for its queries."""
        T, n_head, n_kv_head = x.shape[1], self.config.n_head, self.config.n_kv_head
        heads = self.query_key_value(x, gain).unflatten(-1, (-1, self.head_size)).split((n_head, n_kv_head, n_kv_head), dim=2)
        query, key = (rotate(t, self.cos[:T, None], self.sin[:T, None]) for t in heads[:2])  # (B, T, heads, D)
        query, key, value = (t.transpose(1, 2) for t in (query, key, heads[2]))         # (B, H, T, D)
        if n_kv_head < n_head:
            key, value = (t.repeat_interleave(n_head // n_kv_head, dim=1) for t in (key, value))
        return query, key, value

    def scores(self, query, key):
        """(B, H, T, T) scaled dot products, minus infinity where the pattern forbids to look."""
        scores = query @ key.transpose(-2, -1) * self.head_size ** -0.5
        scores = scores.masked_fill(~visible(self.config, query.shape[2], query.device), float("-inf"))
        if self.config.attention == "topk":
            kept, index = scores.topk(min(self.config.topk, scores.shape[-1]))
            scores = torch.full_like(scores, float("-inf")).scatter(-1, index, kept)  # ties never add a key
        return scores

    def weights(self, x, gain=1.0):
        """(B, H, T, T) attention probabilities, the explicit way; x and gain as in forward."""
        return self.scores(*self.project(x, gain)[:2]).softmax(dim=-1)

    def attend(self, query, key, value):
        config, T = self.config, query.shape[2]
        if config.attention == "full":
            return F.scaled_dot_product_attention(query, key, value, is_causal=True)
        if config.attention == "topk":
            return self.scores(query, key).softmax(dim=-1) @ value
        # Uncompiled, FlexAttention would build all (T, T) scores; its mask is made for one length.
        if self.block_mask is not None and torch.compiler.is_compiling() and T == config.block_size:
            if config.attention == "strided":
                key, value = (torch.cat((t[:, :, config.stride - 1::config.stride], t), dim=2) for t in (key, value))
            return flex_attention(query, key, value, block_mask=self.block_mask)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=visible(config, T, query.device))

    def forward(self, x, gain=1.0):                                 # (B, T, C)
        y = self.attend(*self.project(x, gain))                     # (B, H, T, D)
        return self.output(y.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)), with gate and up in one product."""
    def __init__(self, n_embd, hidden):
        super().__init__()
        self.gate_up = Linear(n_embd, 2 * hidden, bias=False)
        self.down = Linear(hidden, n_embd, bias=False)

    def forward(self, x, gain=1.0):
        gate, up = self.gate_up(x, gain).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Gather(torch.autograd.Function):
    """rows[index], summed over index's second dimension where it has one. `back` is the index of the transpose, a gather
    too: indexing's own backward would be a slow, unordered scatter."""
    @staticmethod
    def forward(ctx, rows, index, back):
        ctx.save_for_backward(back, index)
        return rows[index] if index.dim() == 1 else rows[index].sum(dim=1)

    @staticmethod
    def backward(ctx, gradient):
        return Gather.apply(gradient, *ctx.saved_tensors), None, None


def grouped_linear(rows, weight, ends):
    """rows[ends[e-1]:ends[e]] @ weight[e].T for every expert e: rows (M, C), weight (E, C_out, C), ends (E,)."""
    if rows.dtype == torch.float64 or (rows.is_cuda and rows.dtype != torch.bfloat16):
        # grouped_mm has no such kernel; only measurements and tests come here, never a bf16 training step.
        return torch.cat([group @ w.T for group, w in zip(rows.tensor_split(ends[:-1].tolist()), weight)])
    return F.grouped_mm(rows, weight.mT, offs=ends)


def largest(values, n):
    """values.topk(n) of a short last dimension: n passes of max are one kernel, where topk sorts."""
    left, position, found, places = values.detach(), torch.arange(values.shape[-1], device=values.device), [], []
    for _ in range(n):
        places.append(left.argmax(dim=-1, keepdim=True))
        here = position == places[-1]
        found.append((values * here).sum(dim=-1, keepdim=True))
        left = left.masked_fill(here, float("-inf"))
    return torch.cat(found, dim=-1), torch.cat(places, dim=-1)


class MoE(nn.Module):
    """Dropless mixture of experts: y = shared(x) + sum over a token's top K experts of probability * expert(x)."""
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.router = Linear(config.n_embd, config.n_expert, bias=False)
        self.gate_up = nn.Parameter(torch.empty(config.n_expert, 2 * config.expert_hidden, config.n_embd))
        self.down = nn.Parameter(torch.empty(config.n_expert, config.n_embd, config.expert_hidden))
        self.shared = MLP(config.n_embd, config.n_shared_expert * config.expert_hidden) if config.n_shared_expert else None
        self.router_loss = None  # of the last training forward, weighted; kept apart from the cross-entropy

    def route(self, tokens, gain=1.0):
        """tokens (N, C) -> router logits and probabilities (N, E), and the top K's weights and experts (N, K)."""
        logits = self.router(tokens, gain).to(torch.promote_types(tokens.dtype, torch.float32))
        probability = logits.softmax(dim=-1)
        weight, expert = largest(probability, self.config.n_expert_active)
        weight = weight / weight.sum(dim=-1, keepdim=True) if self.config.normalize_expert_weights else weight
        return logits, probability, weight, expert

    def balance_losses(self, logits, probability, count):
        """Switch's load balance E * sum_e share_e * mean probability_e (1 when even), and mean logsumexp squared. count (E,): rows."""
        balance = self.config.n_expert * (count / count.sum() * probability.mean(dim=0)).sum()
        return self.config.load_balance_loss * balance + self.config.router_z_loss * logits.logsumexp(-1).square().mean()

    def forward(self, x, gain=1.0):
        K, tokens = self.config.n_expert_active, x.flatten(0, -2)              # (N, C)
        logits, probability, weight, expert = self.route(tokens, gain)
        # Sort the N*K rows by expert. Counting takes fewer kernels than sort(): a row's place is behind all rows of smaller
        # experts and the earlier rows of its own. The counts run side by side over pieces of 64 rows, then over the pieces.
        chosen = expert.view(-1, 1) == torch.arange(self.config.n_expert, device=x.device)
        chosen = F.pad(chosen, (0, 0, 0, -len(chosen) % 64)).unflatten(0, (-1, 64))              # (pieces, 64, E)
        rank = chosen.cumsum(dim=1, dtype=torch.int32)                         # among its piece's rows of one expert, from 1
        total = rank[:, -1].cumsum(dim=0, dtype=torch.int32)                   # (pieces, E), so far
        count = total[-1]                                                      # (E,)
        ends = count.cumsum(dim=0, dtype=torch.int32)
        before = ends - count + total - rank[:, -1] - 1
        inverse = ((before[:, None] + rank) * chosen).sum(dim=-1).flatten()[:expert.numel()]
        order = torch.empty_like(inverse)
        order[inverse] = torch.arange(len(order), device=x.device)
        token, inverse = order // K, inverse.view(-1, K)                       # a row's token, and a token's K rows
        if self.training:
            self.router_loss = self.balance_losses(logits, probability, count)
        ends = ends if x.dtype == torch.bfloat16 else ends.cpu()  # where grouped_linear loops, wait for the GPU once
        rows = Gather.apply(tokens, token, inverse)
        gate, up = grouped_linear(rows, (self.gate_up * gain).to(x.dtype), ends).chunk(2, dim=-1)
        weight = Gather.apply(weight.to(x.dtype).flatten(), order, inverse.flatten())             # (N*K,), a row's
        rows = grouped_linear(F.silu(gate) * up, self.down.to(x.dtype), ends) * weight[:, None]
        y = Gather.apply(rows, inverse, token).view_as(x)
        return y if self.shared is None else y + self.shared(x, gain)


class Block(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.attention_norm = RMSNorm(config.n_embd, layer if config.layer_norm_scaling else 1)
        self.attention = CausalSelfAttention(config)
        self.mlp_norm = RMSNorm(config.n_embd, layer if config.layer_norm_scaling else 1)
        self.mlp = MoE(config) if config.n_expert else MLP(config.n_embd, config.mlp_hidden)

    def forward(self, x):
        x = x + self.attention(*self.attention_norm(x))
        return x + self.mlp(*self.mlp_norm(x))


class GPT(nn.Module):
    """`blocks` may be edited freely: anything that maps (B, T, C) to (B, T, C) can stand in for a block."""
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.compute_dtype = None  # dtype of the residual stream; None: that of the weights
        self.embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(1, config.n_layer + 1))
        self.norm = RMSNorm(config.n_embd)
        self.head = Linear(config.n_embd, config.vocab_size, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() >= 2:
                ends_branch = name.endswith(("attention.output.weight", "down", "down.weight"))
                shrink = (2 * config.n_layer) ** -0.5 if config.scaled_residual_init and ends_branch else 1.0
                nn.init.normal_(parameter, std=INIT_STD * shrink)

    def embed(self, idx):
        """Token ids (B, T) -> h_0, the residual stream before the first block (B, T, C)."""
        return self.embedding(idx).to(self.compute_dtype or self.embedding.weight.dtype)

    def compile_for_gpu(self):
        """For speed alone. One compilation serves all blocks; block masks skip work; two passes over logits beat one that rescales its sum."""
        torch._dynamo.config.recompile_limit = 256  # a sweep's points share the block's code; eight variants are the default
        masked = self.config.attention in ("window", "strided") and self.config.n_embd // self.config.n_head >= 16
        block_mask = flex_mask(self.config, self.head.weight.device) if masked else None
        for block in self.blocks:
            block.attention.block_mask = block_mask
            block.compile(dynamic=False)
        self.embed = torch.compile(self.embed, dynamic=False)
        self.read_out_with_loss = torch.compile(self.read_out_with_loss, dynamic=False, options={"online_softmax": False})

    def read_out(self, h):
        """Residual stream (B, T, C) -> logits (B, T, vocab_size)."""
        return self.head(*self.norm(h))

    def read_out_with_loss(self, h, targets):
        """Logits to look at and the loss to train on: gradients of both would fill a whole array of zeros for one."""
        logits = self.read_out(h)
        return logits.detach(), cross_entropy(logits, targets).mean()

    def forward(self, idx, targets=None):
        """idx, targets (B, T) -> logits (B, T, vocab_size) and the mean cross-entropy in nats, or None."""
        h = self.embed(idx)
        for block in self.blocks:
            h = block(h)
        return (self.read_out(h), None) if targets is None else self.read_out_with_loss(h, targets)

    def router_loss(self):
        """Weighted load-balance and router z losses of the last training forward, mean over blocks; 0 when dense.
        Handed over once: kept, they would keep that step's whole graph."""
        if not self.config.n_expert:
            return 0.0
        losses = [block.mlp.router_loss for block in self.blocks]
        for block in self.blocks:
            block.mlp.router_loss = None
        return torch.stack(losses).mean()

    def parameter_groups(self, weight_decay):
        """AdamW's groups: matrices and embeddings decay, norms do not (the paper's rule)."""
        matrices, vectors = ([p for p in self.parameters() if (p.dim() >= 2) == wanted] for wanted in (True, False))
        return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]

    def count_parameters(self, active=False):
        """All parameters, embeddings included; active: without the experts that a token is not sent to."""
        total = sum(p.numel() for p in self.parameters())
        if active and self.config.n_expert:
            unused = 1 - self.config.n_expert_active / self.config.n_expert
            total -= round(unused * sum(b.mlp.gate_up.numel() + b.mlp.down.numel() for b in self.blocks))
        return total

    def flops_per_token(self):
        """Floating-point operations of a training step, per token: 6 for each weight of a matrix product (2 forward,
        4 backward; the embedding is a look-up), active experts only; and 12 n_embd for each key in sight (2 for its
        score and 2 for its value, times 3), in sight as the mask needs: causal full attention has (T + 1) / 2."""
        config = self.config
        weights = self.count_parameters(active=True) - self.embedding.weight.numel()
        return 6 * weights + 12 * config.n_layer * config.n_embd * keys_in_sight(config).sum().item() / config.block_size

    @torch.no_grad()
    def generate(self, idx, max_new_tokens, temperature=1.0, top_k=None):
        """Continue idx (B, T) by max_new_tokens sampled tokens; temperature 0 takes the most likely one."""
        for _ in range(max_new_tokens):
            logits = self(idx[:, -self.config.block_size:])[0][:, -1].float()
            if top_k is not None:
                logits = logits.masked_fill(logits < logits.topk(min(top_k, logits.shape[-1])).values[:, -1:], float("-inf"))
            following = (logits.argmax(dim=-1, keepdim=True) if temperature == 0 else
                         torch.multinomial((logits / temperature).softmax(dim=-1), num_samples=1))
            idx = torch.cat((idx, following), dim=1)
        return idx


def cross_entropy(logits, targets):
    """(B, T) cross-entropy per position in nats, in fp32 or better."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
