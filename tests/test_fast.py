"""fast.py: every class computes what its parent in model.py defines.

Outputs, losses and every gradient: in fp32 on the CPU where a class runs there; on a GPU in bf16,
whose own error, that of the plain model against fp64, is the measure."""

import ast
import shutil
import subprocess
import sys
import types
from copy import deepcopy

import pytest
import torch
import torch._dynamo.testing
import torch.nn as nn
import torch.nn.functional as F

import model
from conftest import (
    REPOSITORY,
    SMALL,
    TOGGLES,
    as_if_trained,
    build,
    each_toggle,
    tokens,
    write_data,
)
from model import GPT, MLP, Block, CausalSelfAttention, GPTConfig, Linear, MoE, RMSNorm

fast = pytest.importorskip("fast")  # it may be deleted
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def loss_and_gradients(model, idx):
    """[logits, loss, each parameter's gradient] of next-token prediction on idx (B, T + 1)."""
    model.zero_grad()
    logits, loss = model(idx[:, :-1], idx[:, 1:])
    (loss + model.take_router_loss()).backward()
    return [logits.detach(), loss.detach(), *(p.grad for p in model.parameters())]


def assert_same(model, other, tolerance=2e-5):
    idx = tokens(B=3, T=13)
    for ours, plain in zip(*(loss_and_gradients(m, idx) for m in (other, model)), strict=True):
        assert (ours - plain).norm() <= tolerance * plain.norm() + 1e-9


# Swapped layers ----------------------------------------------------------------------------------


@each_toggle
def test_swapped_layers_give_the_same_loss_and_gradients(toggle):
    plain = build(large_weights=True, **toggle)
    swapped = deepcopy(plain)
    fast.swap_layers(swapped)
    assert_same(plain, swapped)


@each_toggle
def test_swapping_changes_neither_names_nor_weights(toggle):
    plain = build(large_weights=True, **toggle)
    swapped = deepcopy(plain)
    fast.swap_layers(swapped)
    before, after = plain.state_dict(), swapped.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [n for n, _ in plain.named_parameters()] == [n for n, _ in swapped.named_parameters()]


def test_every_class_is_swapped_in_somewhere():
    used = set()
    for toggle in TOGGLES.values():
        model = build(**{**toggle, "n_embd": 64})  # heads of 16, or masks stay plain
        fast.swap_layers(model)
        used |= {type(module).__name__ for module in model.modules()}
    assert {"FoldedNorm", "FoldedLinear", "BlockSparseAttention", "GroupedMoE"} <= used


@pytest.mark.parametrize("toggle", ["moe", "moe_shared"])
def test_experts_left_out_of_the_swap_stay_plain(toggle):
    """As in fp32 on a GPU, where torch has no grouped product."""
    plain = build(large_weights=True, **TOGGLES[toggle])
    swapped = deepcopy(plain)
    fast.swap_layers(swapped, grouped_experts=False)
    assert all(type(block.mlp) is MoE for block in swapped.blocks)
    assert_same(plain, swapped)


# Whatever is deleted, the rest still works. Each group: a class and what serves it alone.
GROUPS = {
    "norms": {"FoldedNorm", "FoldedLinear", "fold", "fold_norms"},
    "masks": {"BlockSparseAttention", "block_mask", "skip_hidden_keys"},
    "experts": {"GroupedMoE", "Gather", "sort_by_counting", "group_experts"},
    "step": {"RecordedStep", "recorded"},
    "instruments": {"with_compiled_blocks", "with_sorted_experts", "sorted_experts", "SortedMoE"},
}


class Delete(ast.NodeTransformer):
    """Deletes the definitions of the given names, and the statements that use one."""

    def __init__(self, names):
        self.names = names

    def visit_FunctionDef(self, node):
        return None if node.name in self.names else self.generic_visit(node)

    visit_ClassDef = visit_FunctionDef

    def visit_Expr(self, node):
        used = {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
        return None if used & self.names else node

    def visit_If(self, node):
        node = self.generic_visit(node)
        return node if node.body else None


def fast_without(group):
    """fast.py as a module, one group deleted."""
    tree = ast.parse((REPOSITORY / "fast.py").read_text(encoding="utf-8"))
    module = types.ModuleType("fast")
    exec(
        compile(ast.fix_missing_locations(Delete(GROUPS[group]).visit(tree)), "fast", "exec"),
        vars(module),
    )
    assert not GROUPS[group] & set(vars(module))
    return module


@pytest.mark.parametrize("toggle", ["plain", "window", "moe_shared", "together"])
@pytest.mark.parametrize("group", GROUPS)
def test_a_class_can_be_deleted(group, toggle):
    plain = build(large_weights=True, **TOGGLES[toggle])
    swapped = deepcopy(plain)
    fast_without(group).swap_layers(swapped)
    assert_same(plain, swapped)


@pytest.mark.parametrize("toggle", ["peri_ln", "remedies_together"])
def test_an_outer_norm_stays_plain_as_no_matrix_reads_it(toggle):
    model = build(**TOGGLES[toggle])
    fast.swap_layers(model)
    for block in model.blocks:
        assert type(block.mlp_norm) is fast.FoldedNorm
        assert type(block.attention_outer_norm) is type(block.mlp_outer_norm) is RMSNorm


def test_experts_that_grouped_products_cannot_take_stay_plain():
    plain = build(large_weights=True, **{**TOGGLES["moe"], "expert_hidden": 12})
    swapped = deepcopy(plain)
    fast.swap_layers(swapped)
    assert fast.loops_over_experts(swapped)
    assert_same(plain, swapped)


def test_without_grouped_experts_no_step_is_recorded_and_no_block_compiled():
    """A loop over experts waits for each one's number of rows."""
    model = build(**TOGGLES["moe"])
    assert fast.loops_over_experts(model)
    step = object()
    assert fast.recorded(step, model, None) is step
    fast.swap_layers(model)
    assert not fast.loops_over_experts(model)


TINY_SWEEP = """
dataset = "tiny"
n_layer = 1
n_embd = 16
n_head = 2
block_size = 16
batch_size = 4
warmup_iters = 0
max_iters = 2
device = "cpu"
"""


@pytest.mark.slow
def test_the_whole_file_can_be_deleted(tmp_path):
    """A sweep is timed, trained and analysed in a copy of the project without it."""
    copy = tmp_path / "copy"
    ignored = shutil.ignore_patterns(".*", "out", "tests", "fast.py", "*.png")
    shutil.copytree(REPOSITORY, copy, ignore=ignored)
    write_data(copy / "data/tiny")
    (copy / "sweep.toml").write_text(TINY_SWEEP, encoding="utf-8")
    for command in (
        ["bench.py", "sweep.toml"],
        ["train.py", "sweep.toml"],
        ["analyze.py", "out/sweep", "--sequences", "2"],
    ):
        python = [sys.executable, *command]
        result = subprocess.run(python, cwd=copy, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
    assert (copy / "out/sweep/report.md").exists()


# An edit of model.py is never trained as if it were not made -------------------------------------


def post_norm(self, x):
    x = self.attention_norm(x + self.attention(x))
    return self.mlp_norm(x + self.mlp(x))


def twice_the_attention(self, x):
    x = x + 2 * self.attention(self.attention_norm(x))
    return x + self.mlp(self.mlp_norm(x))


def relu_instead_of_silu(self, x):
    gate, up = self.gate_up(x).chunk(2, dim=-1)
    return self.down(F.relu(gate) * up)


@each_toggle
def test_the_definition_as_it_stands_is_accepted(toggle):
    fast.refuse_if_different(build(**{**toggle, "n_embd": 64}).config)


def test_a_model_can_be_made_fast_where_gradients_are_off():
    with torch.no_grad():
        fast.refuse_if_different(build(n_embd=64).config)
        assert not torch.is_grad_enabled()


def test_checking_draws_no_random_numbers_of_the_run():
    torch.manual_seed(5)
    fast.refuse_if_different(build().config)
    after = torch.rand(3)
    build()
    assert torch.equal(after, torch.rand(3))


@pytest.mark.parametrize(
    "owner, edit", [(Block, twice_the_attention), (MLP, relu_instead_of_silu)], ids=["block", "mlp"]
)
def test_an_edit_that_reaches_the_fast_layers_is_accepted(owner, edit, monkeypatch):
    monkeypatch.setattr(owner, "forward", edit)
    fast.refuse_if_different(GPTConfig(**SMALL))


def twice_what_it_was(owner, name):
    plain = getattr(owner, name)
    return lambda self, *inputs: 2 * plain(self, *inputs)


def noise_in_training(owner, name):
    plain = getattr(owner, name)

    def noisy(self, *inputs):
        out = plain(self, *inputs)
        return out + 0.01 * torch.randn_like(out) if self.training else out

    return noisy


def other_eps(self, x):
    return F.rms_norm(x, x.shape[-1:], self.weight * self.scale, 1e-5)


def first_of_each_stride(config, q, k):
    return (k <= q) & ((q - k < config.stride) | (k % config.stride == 0))


WINDOW = dict(attention="window", window=128, n_embd=64)
STRIDED = dict(attention="strided", stride=32, n_embd=64)
EDITS = {  # of what fast.py computes by itself: (owner, name, what it becomes, options)
    "norms move": (Block, "forward", post_norm, {}),
    "norm": (RMSNorm, "forward", twice_what_it_was(RMSNorm, "forward"), {}),
    "eps": (RMSNorm, "forward", other_eps, {}),
    "noisy norm": (RMSNorm, "forward", noise_in_training(RMSNorm, "forward"), {}),
    "linear": (Linear, "forward", twice_what_it_was(Linear, "forward"), {}),
    "window": (
        CausalSelfAttention,
        "attend",
        twice_what_it_was(CausalSelfAttention, "attend"),
        WINDOW,
    ),
    "strided": (
        CausalSelfAttention,
        "attend",
        twice_what_it_was(CausalSelfAttention, "attend"),
        STRIDED,
    ),
    "mix": (MoE, "mix", twice_what_it_was(MoE, "mix"), TOGGLES["moe"]),
    "noisy mix": (MoE, "mix", noise_in_training(MoE, "mix"), TOGGLES["moe"]),
    "shares": (MoE, "shares", twice_what_it_was(MoE, "shares"), TOGGLES["moe"]),
}


def assert_refused(options):
    with pytest.raises(ValueError, match="--compile=False") as error:
        fast.refuse_if_different(GPTConfig(**{**SMALL, **options}))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("owner, name, edit, options", EDITS.values(), ids=EDITS)
def test_an_edit_that_would_not_reach_the_fast_layers_is_refused(
    owner, name, edit, options, monkeypatch
):
    monkeypatch.setattr(owner, name, edit)
    assert_refused(options)


def test_an_edit_of_the_far_keys_is_refused(monkeypatch):
    monkeypatch.setitem(model.MASKS, "strided", first_of_each_stride)
    assert_refused({**STRIDED, "stride": 5})


def test_layers_with_other_parts_are_refused_in_the_same_sentence(monkeypatch):
    class GeluMLP(nn.Module):
        def __init__(self, n_embd, hidden):
            super().__init__()
            self.up, self.down = Linear(n_embd, hidden), Linear(hidden, n_embd)

        def forward(self, x):
            return self.down(F.gelu(self.up(x)))

    monkeypatch.setattr(model, "MLP", GeluMLP)
    monkeypatch.setattr(fast, "MLP", GeluMLP)
    assert_refused({})


def test_experts_that_are_not_swapped_may_be_edited(monkeypatch):
    """As in fp32 on a GPU."""
    monkeypatch.setattr(MoE, "mix", twice_what_it_was(MoE, "mix"))
    fast.refuse_if_different(GPTConfig(**SMALL, **TOGGLES["moe"]), grouped_experts=False)


# Masks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_kv_head", [4, 1])
@pytest.mark.parametrize(
    "options",
    [
        dict(attention="window", window=1),
        dict(attention="window", window=40),
        dict(attention="strided", stride=7),
        dict(attention="strided", stride=32),
    ],
)
def test_attention_by_blocks_is_attention(options, n_kv_head):
    """Uncompiled and forward alone, as the CPU can; T is no multiple of stride or of a block."""
    size = dict(block_size=150, n_embd=64, n_kv_head=n_kv_head)
    attention = build(large_weights=True, **size, **options).blocks[0].attention
    with torch.no_grad():
        query, key, value = attention.project(torch.randn(2, 150, 64))
        wanted = attention.attend(query, key, value)
        attention.__class__ = fast.BlockSparseAttention
        attention.block_mask = fast.block_mask(attention.config, "cpu")
        assert torch.allclose(attention.by_blocks(query, key, value), wanted, atol=1e-5)


# Experts, part by part ---------------------------------------------------------------------------


@pytest.mark.parametrize("n_rows", [1, 63, 64, 65, 1000])
def test_sort_by_counting_is_a_stable_sort(n_rows):
    expert = torch.randint(5, (n_rows,), generator=torch.Generator().manual_seed(n_rows))
    expert[expert == 3] = 2  # one expert has no rows
    order, place, count = fast.sort_by_counting(expert, 5)
    assert torch.equal(order, expert.sort(stable=True).indices)
    assert torch.equal(place[order], torch.arange(n_rows, dtype=place.dtype))
    assert torch.equal(count.long(), expert.bincount(minlength=5))


def test_sort_by_counting_as_in_its_docstring():
    order, place, count = fast.sort_by_counting(torch.tensor([1, 0, 1]), 2)
    assert (order.tolist(), place.tolist(), count.tolist()) == ([1, 0, 2], [1, 0, 2], [1, 2])


def test_choose_is_topk_with_its_gradient():
    moe = build(**TOGGLES["moe"]).blocks[0].mlp
    probability = torch.randn(50, 4, dtype=torch.float64).softmax(-1).requires_grad_()
    direction = torch.randn(50, 2, dtype=torch.float64)
    results = []
    for choose in (MoE.choose, fast.GroupedMoE.choose):
        weight, expert = choose(moe, probability)
        results.append(
            (weight, expert, *torch.autograd.grad((weight * direction).sum(), probability))
        )
    assert all(torch.equal(ours, plain) for ours, plain in zip(*results, strict=True))


def test_gather_passes_gradcheck_both_ways():
    """Three tokens of two rows each, in the order 3 0 4 1 5 2: row i is of token order[i] // 2."""
    order = torch.tensor([3, 0, 4, 1, 5, 2])
    token, rows_of_token = order // 2, order.argsort().view(3, 2)
    for index, back, n_rows in ((token, rows_of_token, 3), (rows_of_token, token, 6)):
        rows = torch.randn(n_rows, 3, dtype=torch.float64, requires_grad=True)

        def gather(rows, index=index, back=back):
            return fast.Gather.apply(rows, index, back)

        assert torch.autograd.gradcheck(gather, rows)
        assert torch.autograd.gradgradcheck(gather, rows)


# Compiled ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compiler():
    try:
        torch.compile(torch.sin)(torch.ones(8))
    except Exception as error:  # no C++ compiler, or none of Python's headers: many kinds
        pytest.skip(f"compiling for the CPU does not work here: {type(error).__name__}")


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(n_kv_head=1, attention="strided", stride=3, layer_norm_scaling=True),
        dict(embedding_norm=True, peri_ln=True, complete_p=True),
    ],
    ids=["plain", "toggled", "remedies"],
)
def test_a_compiled_model_equals_the_plain_one(options, compiler):
    """In fp32 on the CPU. SMALL's heads are too narrow for FlexAttention, which has no backward
    there and takes wrong values of views of one product (pytorch issue 157612)."""
    plain = build(large_weights=True, **options)
    compiled = deepcopy(plain)
    fast.make_fast(compiled)
    assert_same(plain, compiled, tolerance=1e-4)
    shorter = tokens()[:, :5]  # another length, after the first was compiled
    assert torch.allclose(compiled(shorter)[0], plain(shorter)[0], rtol=1e-4, atol=1e-4)


ONE_COMPILATION = ["plain", "moe", "layer_norm_scaling", "peri_ln"]
ALSO_SLOW = ["moe_shared", "gqa", "embedding_norm", "complete_p", "remedies_together"]


@pytest.mark.parametrize(
    "toggle", ONE_COMPILATION + [pytest.param(name, marks=pytest.mark.slow) for name in ALSO_SLOW]
)
def test_all_blocks_share_one_compilation(toggle):
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    model = build(**{**TOGGLES[toggle], "n_layer": 5})
    model.compute_dtype = torch.bfloat16  # compiled, grouped products know no other dtype
    fast.swap_layers(model)
    for block in model.blocks:
        block.compile(backend=counter, dynamic=False)
    loss_and_gradients(model, tokens(T=13))
    assert counter.frame_count == 1


# On a GPU ----------------------------------------------------------------------------------------

GPU_SHAPE = dict(block_size=256, vocab_size=512, n_layer=3, n_head=4, n_embd=128, mlp_hidden=256)
ON_GPU = {
    **TOGGLES,
    "window": dict(attention="window", window=40),
    "strided": dict(attention="strided", stride=32),
    "topk": dict(attention="topk", topk=16),
    "moe": dict(n_expert=8, expert_hidden=128),
    "together": dict(
        n_kv_head=2,
        attention="strided",
        stride=24,
        n_expert=4,
        expert_hidden=64,
        layer_norm_scaling=True,
    ),
}


def on_gpu(name, dtype):
    """A model of ON_GPU with a stream of this dtype; float64: weights, too."""
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("highest")
    model = GPT(GPTConfig(**{**GPU_SHAPE, **ON_GPU[name]}))
    as_if_trained(model, 3)
    model.compute_dtype = dtype
    return model.cuda().double() if dtype == torch.float64 else model.cuda()


def random_tokens(B, T):
    generator = torch.Generator("cuda").manual_seed(1)
    return torch.randint(512, (B, T), device="cuda", generator=generator)


@needs_gpu
@pytest.mark.parametrize("name", ON_GPU)
def test_on_a_gpu_fast_is_as_near_to_fp64_as_plain_bf16(name):
    idx = random_tokens(4, 257)
    exact = loss_and_gradients(on_gpu(name, torch.float64), idx)
    plain = loss_and_gradients(on_gpu(name, torch.bfloat16), idx)
    model = on_gpu(name, torch.bfloat16)
    fast.make_fast(model)
    ours = loss_and_gradients(model, idx)
    chooses = "topk" in name or "n_expert" in ON_GPU[name]  # rounding moves a few choices
    for mine, bf16, fp64 in zip(ours, plain, exact, strict=True):
        error, plain_error = ((t.double() - fp64).norm().item() for t in (mine, bf16))
        allowed = 0.05 if chooses else 0.01
        assert error <= 1.5 * plain_error + allowed * fp64.norm().item()


@needs_gpu
@pytest.mark.parametrize("name", ["plain", "window", "strided"])
def test_on_a_gpu_a_compiled_model_takes_other_context_lengths(name):
    """A block mask is made for one length; the others go another way, whichever comes first."""
    model, idx = on_gpu(name, torch.float32), random_tokens(2, 256)
    with torch.no_grad():
        plain = {T: model(idx[:, :T])[0] for T in (100, 256, 130)}
        fast.make_fast(model)
        for T, logits in plain.items():
            assert torch.allclose(model(idx[:, :T])[0], logits, atol=1e-3 * logits.abs().max())


@needs_gpu
@pytest.mark.parametrize(
    "options", [dict(attention="window", window=512), dict(attention="strided", stride=128)]
)
def test_block_masks_skip_work(options):
    mask = fast.block_mask(GPTConfig(block_size=8192, n_embd=64, n_head=2, **options), "cuda")
    assert mask.sparsity() > 85  # per cent of blocks skipped, of the whole square; causal: 49


@needs_gpu
@pytest.mark.parametrize(
    "name",
    [
        *("plain", "gqa", "window", "strided", "topk"),
        *("layer_norm_scaling", "embedding_norm", "peri_ln", "complete_p"),
    ],
)
def test_compiled_blocks_for_the_instruments_equal_plain_ones(name):
    model, idx = on_gpu(name, None).eval(), random_tokens(4, 256)
    compiled = fast.with_compiled_blocks(model)
    assert not any(isinstance(b, torch._dynamo.OptimizedModule) for b in model.blocks)
    with torch.no_grad():
        h = model.embed(idx)
        for block, its_compiled in zip(model.blocks, compiled.blocks, strict=True):
            assert isinstance(its_compiled, torch._dynamo.OptimizedModule)
            assert torch.allclose(its_compiled(h), block(h), rtol=1e-3, atol=1e-3)
            h = block(h)
        losses = [m.position_losses(h, idx) for m in (model, compiled)]
        assert torch.allclose(*losses, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("toggle", ["plain", "moe"])
def test_the_cpu_keeps_plain_blocks_for_the_instruments(toggle):
    model = build(**TOGGLES[toggle])
    assert fast.with_compiled_blocks(model) is model


EXPERTS = [name for name, toggle in TOGGLES.items() if "n_expert" in toggle]


@pytest.mark.parametrize("toggle", EXPERTS)
def test_sorted_experts_give_the_same_loss_and_gradients(toggle):
    plain = build(large_weights=True, **TOGGLES[toggle])
    view = fast.with_sorted_experts(plain)
    assert all(type(block.mlp) is MoE for block in plain.blocks)  # as it was
    assert all(type(block.mlp) is fast.SortedMoE for block in view.blocks)
    assert all(ours is its for ours, its in zip(view.parameters(), plain.parameters(), strict=True))
    expected = [t.clone() for t in loss_and_gradients(plain, tokens(T=13))]
    for ours, its in zip(loss_and_gradients(view, tokens(T=13)), expected, strict=True):
        assert (ours - its).norm() <= 2e-5 * its.norm() + 1e-9


def test_sorted_experts_of_which_some_are_never_chosen():
    model = build(large_weights=True, n_expert=8, n_expert_active=1, expert_hidden=16).eval()
    view = fast.with_sorted_experts(model)
    idx = tokens(B=1, T=3)  # three choices of eight experts
    assert torch.allclose(view(idx)[0], model(idx)[0], rtol=1e-5, atol=1e-5)


def test_a_dense_model_has_no_experts_to_sort():
    model = build()
    assert fast.with_sorted_experts(model) is model
