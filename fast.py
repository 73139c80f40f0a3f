"""For speed alone: the layers of model.py that a GPU would rather have written another way.

    make_fast(model)             for training: swaps those layers in and compiles, in place
    recorded(step, ...)          for training: a step recorded as a CUDA graph, then replayed
    with_compiled_blocks(model)  for the instruments: a second view of a model, blocks compiled
    with_sorted_experts(model)   the same, experts waiting less; hooks still run

Each class computes what its parent in model.py defines, and says what it buys in a training step
on one H100 (results/speed.md). Delete one, with what serves it alone and the line that
calls for it (in swap_layers; of the last two in train.py and analyze.py), or delete this file: all
still works, slower by that much. Weights, their names, checkpoints and results stay, as a swap
changes a layer's __class__ and no more (torch's fully_shard does the same). Where a layer of
model.py was changed, make_fast refuses to train until this file computes the same, too, or until
training is told --compile=False.
"""

import math
from copy import copy, deepcopy
from dataclasses import replace

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.utils._triton import has_triton

from model import GPT, MASKS, MLP, NORM_EPS, CausalSelfAttention, Linear, MoE, RMSNorm


def make_fast(model):
    """Swap and compile, in place; for training on a GPU. Raises ValueError where the layers below
    no longer compute what model.py defines."""
    grouped_experts = model.compute_dtype == torch.bfloat16
    refuse_if_different(model.config, grouped_experts)
    allow_many_compilations()
    swap_layers(model, grouped_experts)
    if not loops_over_experts(model):  # else every step would bring new shapes to compile for
        for block in model.blocks:
            block.compile(dynamic=False)  # one compilation serves all blocks
    model.embed = torch.compile(model.embed, dynamic=False)
    plain_read_out = model.read_out_with_loss

    def read_out_with_loss(h, targets):
        # Were a gradient possible for the logits, too, a whole array of zeros would be filled.
        logits, loss = plain_read_out(h, targets)
        return logits.detach(), loss

    # Two passes over the logits take less time than one that rescales its sum on the way.
    model.read_out_with_loss = torch.compile(
        read_out_with_loss, dynamic=False, options={"online_softmax": False}
    )


def allow_many_compilations():
    """The points of a sweep share their blocks' code, each with a compilation of its own; torch's
    default, eight, would let the later ones run uncompiled."""
    torch._dynamo.config.recompile_limit = 256


def loops_over_experts(model):
    return any(type(block.mlp) is MoE for block in model.blocks)


def swap_layers(model, grouped_experts=True):
    """Give the layers their classes below. grouped_experts: only a bf16 stream can have them on a
    GPU, as torch's grouped product there knows no other dtype."""
    skip_hidden_keys(model)
    if grouped_experts:
        group_experts(model)
    fold_norms(model)


# The check that all this is still what model.py says ---------------------------------------------


def refuse_if_different(config, grouped_experts=True):
    """Raises ValueError where swapped layers do not compute what model.py defines: two blocks of
    random weights, few tokens and narrow masks, on the CPU in fp32, in training as in evaluation.
    So an edit of model.py that would not reach the fast layers is not trained in silence."""
    try:
        same = computes_the_same(small_config(config), grouped_experts)
    except (AttributeError, TypeError, RuntimeError, ValueError):  # a layer has other parts now
        same = False
    if not same:
        raise ValueError(
            "fast.py does not compute what model.py defines, which was changed: train with "
            "--compile=False, or change fast.py alike"
        )


def small_config(config):
    """A small model's config with the same toggles."""
    n_expert = min(config.n_expert, max(8, config.n_expert_active))
    return replace(
        config,
        n_layer=2,
        mlp_hidden=min(config.mlp_hidden, 64),
        n_expert=n_expert,
        expert_hidden=min(config.expert_hidden, 16),
        vocab_size=64,
        block_size=min(config.block_size, 32),
        window=min(config.window, 8),
        stride=min(config.stride, 8),
        topk=min(config.topk, 8),
    )


def computes_the_same(config, grouped_experts):
    """Do a plain model and a swapped one agree: logits in evaluation; loss, router loss and every
    gradient in training; and attention by blocks, which no uncompiled pass takes?"""
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        plain = GPT(config)
        for parameter in plain.parameters():
            if parameter.dim() == 1:
                nn.init.uniform_(parameter, 0.5, 1.5)  # as a folded gain of 1 would hide
            else:
                nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
        idx = torch.randint(config.vocab_size, (2, config.block_size + 1))
        swapped = deepcopy(plain)
        swap_layers(swapped, grouped_experts)
        wanted, got = everything_computed(plain, idx), everything_computed(swapped, idx)
    agree = all(near(ours, theirs) for ours, theirs in zip(got, wanted, strict=True))
    return agree and all(key_blocks_agree(block.attention) for block in swapped.blocks)


def everything_computed(model, idx):
    """[logits in evaluation, loss in training, every parameter's gradient]."""
    inputs, targets = idx[:, :-1], idx[:, 1:]
    with torch.no_grad():
        logits, _ = model.eval()(inputs)
    torch.manual_seed(1)  # where training draws numbers, both draw the same
    _, loss = model.train()(inputs, targets)
    loss = loss + model.take_router_loss()
    gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return [logits, loss.detach(), *gradients]


def near(ours, theirs, tolerance=2e-5):
    """To ten times fp32's rounding; two gradients that are not there are near, too."""
    if ours is None or theirs is None:
        return ours is theirs
    return bool((ours - theirs).norm() <= tolerance * theirs.norm() + 1e-9)


def key_blocks_agree(attention):
    """Is attention by blocks of keys, where the layer has it, what model.py defines?"""
    if not hasattr(attention, "by_blocks"):
        return True
    D, H, T = attention.head_size, attention.config.n_head, attention.config.block_size
    query, key, value = torch.randn(3, 2, H, T, D, generator=torch.Generator().manual_seed(2))
    plain = super(type(attention), attention).attend(query, key, value)
    return near(attention.by_blocks(query, key, value), plain)


# Norms -------------------------------------------------------------------------------------------


class FoldedNorm(RMSNorm):
    """x / rms(x); the matrix that reads it takes the gain, W (gain * x) = (W * gain) x. The gain's
    gradient is then a sum over the matrix's rows instead of one over all tokens. 3 % of a step."""

    def forward(self, x):
        return F.rms_norm(x, x.shape[-1:], None, NORM_EPS)

    def gain(self):
        return self.weight * self.scale


class FoldedLinear(Linear):
    """The matrix that reads a FoldedNorm."""

    def forward(self, x):
        weight = self.weight * self.norm_before[0].gain()
        return F.linear(x, weight.to(x.dtype))


def fold(norm, *layers):
    """Let the layers that read the norm's output multiply their matrices with its gain."""
    norm.__class__ = FoldedNorm
    for layer in layers:
        layer.norm_before = (norm,)  # in a tuple, or its weight would get a second name
        if isinstance(layer, Linear):
            layer.__class__ = FoldedLinear


def fold_norms(model):
    """All but Peri-LN's outer norms, whose output no matrix reads."""
    for block in model.blocks:
        fold(block.attention_norm, block.attention.query_key_value)
        mlp = block.mlp
        if isinstance(mlp, MLP):
            fold(block.mlp_norm, mlp.gate_up)
        elif hasattr(mlp, "norm_before"):  # GroupedMoE; a plain one reads its input as it comes
            shared = [mlp.shared.gate_up] if mlp.shared else []
            fold(block.mlp_norm, mlp, mlp.router, *shared)
    fold(model.norm, model.head)


# Masks -------------------------------------------------------------------------------------------


def block_mask(config, device):
    """FlexAttention's mask, of whole blocks of queries and keys. One far key in every stride would
    touch each block of keys, and none could be skipped; so the strided far keys are gathered into a
    short run of columns of their own, before all the near ones (BlockSparseAttention.attend)."""
    T = config.block_size
    stride = config.stride
    mask = MASKS[config.attention]
    n_far = T // stride if config.attention == "strided" else 0

    def is_visible(b, h, q, column):
        is_far = column < n_far
        k = torch.where(is_far, (column + 1) * stride - 1, column - n_far)
        # A far key that is near, too, counts once, as a near one.
        counts = is_far == (q - k >= stride) if n_far else True
        return mask(config, q, k) & counts

    return create_block_mask(is_visible, None, None, T, n_far + T, device)


class BlockSparseAttention(CausalSelfAttention):
    """Skips the blocks of keys that no query of a block of queries can see, by FlexAttention. 1.8
    times as fast a step at a window of 512 in a context of 8192."""

    def attend(self, query, key, value):
        # Uncompiled, FlexAttention would build all (T, T) scores; and a mask is of one length.
        if torch.compiler.is_compiling() and query.shape[2] == self.config.block_size:
            return self.by_blocks(query, key, value)
        return super().attend(query, key, value)

    def by_blocks(self, query, key, value):
        if self.config.attention == "strided":
            far = slice(self.config.stride - 1, None, self.config.stride)
            key = torch.cat((key[:, :, far], key), dim=2)
            value = torch.cat((value[:, :, far], value), dim=2)
        return flex_attention(query, key, value, block_mask=self.block_mask)


def skip_hidden_keys(model):
    config = model.config
    head_size = config.n_embd // config.n_head
    if config.attention in ("window", "strided") and head_size >= 16:  # FlexAttention's least
        mask = block_mask(config, model.head.weight.device)
        for block in model.blocks:
            block.attention.__class__ = BlockSparseAttention
            block.attention.block_mask = mask


# Experts -----------------------------------------------------------------------------------------


class GroupedMoE(MoE):
    """Rows sorted by expert and one grouped product for all experts, instead of a loop over them
    that waits for each one's number of rows, which no CUDA graph can record."""

    norm_before = ()  # the norm whose gain was folded into the experts, if one was

    def choose(self, probability):
        """probability.topk: K passes of max are one kernel, where topk sorts. 1 % of a step."""
        left = probability.detach()
        position = torch.arange(left.shape[-1], device=left.device)
        weights, experts = [], []
        for _ in range(self.config.n_expert_active):
            experts.append(left.argmax(dim=-1, keepdim=True))
            here = position == experts[-1]
            weights.append((probability * here).sum(dim=-1, keepdim=True))
            left = left.masked_fill(here, -math.inf)
        return torch.cat(weights, dim=-1), torch.cat(experts, dim=-1)

    def shares(self, chosen):
        # The same counts as in mix: compiled together, they are computed once.
        _, _, count = sort_by_counting(chosen.flatten(), self.config.n_expert)
        return count / chosen.numel()

    def mix(self, tokens, weight, chosen):
        K = self.config.n_expert_active
        dtype = tokens.dtype
        order, place, count = sort_by_counting(chosen.flatten(), self.config.n_expert)
        ends = count.cumsum(dim=0, dtype=torch.int32)
        token, rows_of_token = order // K, place.view(-1, K)
        rows = Gather.apply(tokens, token, rows_of_token)  # (N * K, C)
        weight = Gather.apply(weight.to(dtype).flatten(), order, place)  # (N * K,)
        gate_up = self.gate_up
        for norm in self.norm_before:
            gate_up = gate_up * norm.gain()
        gate, up = F.grouped_mm(rows, gate_up.to(dtype).mT, offs=ends).chunk(2, dim=-1)
        rows = F.grouped_mm(F.silu(gate) * up, self.down.to(dtype).mT, offs=ends)
        return Gather.apply(rows * weight[:, None], rows_of_token, token)


class Gather(torch.autograd.Function):
    """rows[index], summed over index's second dimension where it has one. `back` is the index of
    the transpose, a gather, too: indexing's own backward would be a slow, unordered scatter. Used
    by GroupedMoE."""

    @staticmethod
    def forward(ctx, rows, index, back):
        ctx.save_for_backward(back, index)
        return rows[index] if index.dim() == 1 else rows[index].sum(dim=1)

    @staticmethod
    def backward(ctx, gradient):
        back, index = ctx.saved_tensors
        return Gather.apply(gradient, back, index), None, None


def sort_by_counting(expert, n_expert, piece=64):
    """expert.sort(stable=True) in fewer kernels, for few experts; 1 % of a step. expert (M,) ->
    order (M,), the rows sorted by expert; place (M,), where each row goes, order's inverse; and
    count (E,), each expert's rows.

    A row's place is the number of rows before it: all rows of smaller experts, and the earlier rows
    of its own. Rows are counted in pieces of 64 side by side, then over the pieces. Of
    expert = [1, 0, 1] the places are [1, 0, 2]."""
    chosen = expert[:, None] == torch.arange(n_expert, device=expert.device)  # (M, E)
    chosen = F.pad(chosen, (0, 0, 0, -len(chosen) % piece)).unflatten(0, (-1, piece))
    rank = chosen.cumsum(dim=1, dtype=torch.int32)  # in its piece, from 1: (pieces, 64, E)
    in_piece = rank[:, -1]  # (pieces, E)
    so_far = in_piece.cumsum(dim=0, dtype=torch.int32)  # up to the piece's end
    count = so_far[-1]  # (E,)
    of_smaller_experts = count.cumsum(dim=0, dtype=torch.int32) - count
    before_piece = of_smaller_experts + so_far - in_piece  # (pieces, E)
    place = ((before_piece[:, None] + rank - 1) * chosen).sum(dim=-1).flatten()[: len(expert)]
    order = torch.empty_like(place)
    order[place] = torch.arange(len(order), device=expert.device)
    return order, place, count


def group_experts(model):
    aligned = model.config.n_embd % 8 == 0 and model.config.expert_hidden % 8 == 0
    for block in model.blocks:
        if isinstance(block.mlp, MoE) and aligned:  # grouped_mm takes no others
            block.mlp.__class__ = GroupedMoE


# The step ----------------------------------------------------------------------------------------


def recorded(step, model, optimizer):
    """step(batch), recorded where it can be: on a GPU, in bf16 (all whose steps were tried), and
    without a loop over experts."""
    device = model.head.weight.device
    if device.type != "cuda" or model.compute_dtype != torch.bfloat16 or loops_over_experts(model):
        return step
    return RecordedStep(step, optimizer, device)


class RecordedStep:
    """step(batch) -> tensors, recorded once as a CUDA graph and replayed, as launching a step's
    many small kernels one by one takes longer than running them: 1.2 times as fast at a width of
    256, 1.3 at 128. A replay repeats what was recorded with whatever then stands in the same
    memory, so batch and learning rates are copied there first, and what it returns is overwritten
    by the next call. The first calls run as they are, and compile and allocate what is lazy."""

    n_warm_up = 3

    def __init__(self, step, optimizer, device):
        self.step, self.groups = step, optimizer.param_groups
        self.learning_rates = []
        for group in self.groups:
            group["capturable"] = True
            self.learning_rates.append(torch.tensor(group["lr"], device=device))
        self.graph = torch.cuda.CUDAGraph()
        self.stream = torch.cuda.Stream(device)
        self.n_calls = 0
        self.batch = None
        self.result = None

    def __call__(self, batch):
        if self.batch is None:
            self.batch = torch.empty_like(batch)
        self.batch.copy_(batch)
        for learning_rate, group in zip(self.learning_rates, self.groups, strict=True):
            learning_rate.fill_(group["lr"])
        self.n_calls += 1
        if self.n_calls <= self.n_warm_up:
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                self.result = self.run()
            torch.cuda.current_stream().wait_stream(self.stream)
            return self.result
        if self.n_calls == self.n_warm_up + 1:
            with torch.cuda.graph(self.graph):
                self.result = self.run()
        self.graph.replay()
        return self.result

    def run(self):
        """The step on the batch's fixed place, the optimizer reading its rates from theirs."""
        plain_rates = [group["lr"] for group in self.groups]
        for learning_rate, group in zip(self.learning_rates, self.groups, strict=True):
            group["lr"] = learning_rate
        try:
            return self.step(self.batch)
        finally:
            for plain_rate, group in zip(plain_rates, self.groups, strict=True):
                group["lr"] = plain_rate


# The instruments ---------------------------------------------------------------------------------


class SortedMoE(MoE):
    """Choices sorted by expert, so that a GPU is waited for once a layer and not once an expert;
    uncompiled and in any dtype, where GroupedMoE wants bf16."""

    def mix(self, tokens, weight, expert):
        K = self.config.n_expert_active
        expert = expert.flatten()  # (N * K,): choice i is of token i // K
        order = expert.argsort(stable=True)
        counts = expert.bincount(minlength=self.config.n_expert).tolist()  # waits
        rows = []
        for e, of_e in enumerate(tokens[order // K].split(counts)):
            gate, up = F.linear(of_e, self.gate_up[e].to(of_e.dtype)).chunk(2, dim=-1)
            rows.append(F.linear(F.silu(gate) * up, self.down[e].to(of_e.dtype)))
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=order.device)
        of_choices = torch.cat(rows)[place].view(-1, K, tokens.shape[-1])
        return (of_choices * weight[..., None].to(tokens.dtype)).sum(dim=1)


def with_sorted_experts(model):
    """The same weights behind a GPT whose experts are SortedMoEs; a dense model itself. The given
    one stays as it is."""
    if not model.config.n_expert:
        return model
    return with_blocks(model, [sorted_experts(block) for block in model.blocks])


def sorted_experts(block):
    view, mlp = copy(block), copy(block.mlp)
    mlp.__class__ = SortedMoE
    view._modules = {**block._modules, "mlp": mlp}
    return view


def with_blocks(model, blocks):
    """The same weights behind a GPT with these blocks."""
    view = copy(model)
    view._modules = {**model._modules, "blocks": nn.ModuleList(blocks)}
    return view


def with_compiled_blocks(model):
    """The same weights behind a GPT whose blocks are compiled, where the model is on a GPU that can
    compile; the given one stays as it is, as compiled code runs no hooks. Experts are sorted
    instead: in fp32 their numbers of rows decide what runs."""
    if not model.head.weight.is_cuda or not has_triton():
        return model
    if model.config.n_expert:
        return with_sorted_experts(model)
    allow_many_compilations()
    compiled = with_blocks(model, [torch.compile(b, dynamic=False) for b in model.blocks])
    compiled.position_losses = torch.compile(model.position_losses, dynamic=False)
    return compiled
