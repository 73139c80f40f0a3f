"""A decoder of a Hugging Face folder behind what the instruments ask of a model: `embed`, `blocks`
that each take the stream h (B, T, C) to h, and `read_out`.

    model, tokenizer = load_decoder("SmolLM2-135M")
    h = model.embed(idx)
    for block in model.blocks:
        h = block(h)
    logits = model.read_out(h)

A layer of such a model wants more than h (rotary tables, a mask, positions), and every family calls
these by other names. No family is known here: the model runs once for each shape (B, T), what its
layers were handed beside h is noted, and handed to them again wherever they then stand. Whether the
pieces make the whole, refuse_unlike_itself says: a model whose layers read more than the stream,
such as the embeddings once more, is refused.

transformers is an optional extra: nothing else of the project needs it.
"""

from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn as nn

from data.files import BadInput, reason
from model import cross_entropy

try:
    import transformers
except ModuleNotFoundError:
    transformers = None

UNLIMITED = 2**20  # tokens at once, where a model sets no limit
SHAPES_KEPT = 4  # of notes, which may hold masks
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.03}  # of largest logits
WEIGHTS = ("*.safetensors", "*.bin")


# The adapter -------------------------------------------------------------------------------------


class Stop(Exception):
    """Ends a run of the model once what was wanted is there."""


class ForeignBlock(nn.Module):
    """h (B, T, C) -> h: a layer, handed whatever else the model itself hands it for B sequences of
    T tokens."""

    def __init__(self, layer, notes):
        super().__init__()
        self.layer, self.notes = layer, notes

    def forward(self, h):
        note = self.notes(h.shape[:2])[self.layer]
        out = self.layer(h, *note.positional, **note.named)
        return out[0] if isinstance(out, tuple) else out


class Given(nn.Module):
    """Stands in for a layer and returns h in the form in which that layer returned its own."""

    def __init__(self, layer, h, n_more):
        super().__init__()
        self.out = h if n_more is None else (h, *[None] * n_more)
        # Some models ask a layer for its kind.
        kept = {key: value for key, value in vars(layer).items() if not key.startswith("_")}
        self.__dict__.update(kept)

    def forward(self, *_, **__):
        return self.out


class Decoder(nn.Module):
    """A causal model of transformers, in eval mode and without gradients of its weights, as the
    instruments want it: embed, blocks, read_out, and the few numbers of `config` that they ask for.
    Raises BadInput where it has no list of layers, or no output embeddings."""

    def __init__(self, hf):
        super().__init__()
        self.hf = hf.eval().requires_grad_(False)
        self.noted = {}
        text = hf.config.get_text_config()
        self.path = path_of_layers(hf, text.num_hidden_layers)
        self.head = output_embeddings(hf)
        self.layers = list(hf.get_submodule(self.path))
        self.blocks = nn.ModuleList(ForeignBlock(layer, self.notes) for layer in self.layers)
        self.config = SimpleNamespace(
            n_layer=len(self.layers),
            n_embd=text.hidden_size,
            vocab_size=self.head.weight.shape[0],
            block_size=getattr(text, "max_position_embeddings", None) or UNLIMITED,
        )

    def run(self, idx, layers=None, before=None, after=None):
        """Logits of idx (B, T) by the model's own forward pass, or None where a hook, `before` or
        `after` a layer, raised Stop; layers: what stands in for its own."""
        parent, _, name = self.path.rpartition(".")
        parent = self.hf.get_submodule(parent)
        own = getattr(parent, name)
        handles = [
            hook
            for layer in self.layers
            for hook in (
                layer.register_forward_pre_hook(before or (lambda *_: None), with_kwargs=True),
                layer.register_forward_hook(after or (lambda *_: None)),
            )
        ]
        try:
            setattr(parent, name, own if layers is None else nn.ModuleList(layers))
            return self.hf(idx, use_cache=False).logits
        except Stop:
            return None
        finally:
            setattr(parent, name, own)
            for handle in handles:
                handle.remove()

    def notes(self, shape):
        """{layer: what the model hands it beside h for idx of this shape (B, T), positional and
        named, and how many things it returns behind h: None where h comes alone}."""
        if shape not in self.noted:
            noted = {}

            def before(layer, arguments, named):
                others = {key: value for key, value in named.items() if key != "hidden_states"}
                noted[layer] = SimpleNamespace(positional=arguments[1:], named=others, n_more=None)

            def after(layer, _, out):
                noted[layer].n_more = len(out) - 1 if isinstance(out, tuple) else None

            with torch.no_grad():
                self.run(self.blank(shape), before=before, after=after)
            if len(self.noted) == SHAPES_KEPT:
                del self.noted[next(iter(self.noted))]  # the oldest
            self.noted[shape] = noted
        return self.noted[shape]

    def blank(self, shape):
        """Token ids where only their shape matters."""
        return torch.zeros(shape, dtype=torch.long, device=self.head.weight.device)

    def embed(self, idx):
        """Token ids (B, T) -> h_0, what the first layer is handed, (B, T, C)."""
        handed = []

        def before(_, arguments, named):
            handed.append(arguments[0] if arguments else named["hidden_states"])
            raise Stop

        self.run(idx, before=before)
        return handed[0]

    def read_out(self, h):
        """Stream (B, T, C) -> logits (B, T, vocab_size): the model runs, and each layer gives h."""
        noted = self.notes(h.shape[:2])
        given = [Given(layer, h, noted[layer].n_more) for layer in self.layers]
        return self.run(self.blank(h.shape[:2]), layers=given)

    def position_losses(self, h, targets):
        """Stream (B, T, C) and targets (B, T) -> each position's cross-entropy in nats, (B, T)."""
        return cross_entropy(self.read_out(h), targets)

    def forward(self, idx):
        """Token ids (B, T) -> (logits, None), by the model's own forward pass."""
        return self.run(idx), None


def path_of_layers(hf, n_layer):
    """Where the model keeps its layers, such as "model.layers": its first list of so many."""
    for path, module in hf.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == n_layer:
            return path
    raise BadInput(f"{type(hf).__name__} keeps no list of its {n_layer} layers: nothing to score")


def output_embeddings(hf):
    head = hf.get_output_embeddings()
    if getattr(head, "weight", None) is None:
        raise BadInput(f"{type(hf).__name__} gives no logits over a vocabulary: it is no decoder")
    return head


@torch.no_grad()
def refuse_unlike_itself(model, idx, what):
    """Raises BadInput where embed, blocks and read_out do not make the model's own logits of idx
    (B, T), in two shapes; or where these read what comes after: then it is no decoder. what: the
    model's name."""
    half = idx.shape[1] // 2
    for rows in (idx[:1], idx[-1:, : 2 * half].reshape(2, half)):
        if not is_one_stream(model, rows):
            raise BadInput(
                f"{what}: its layers read more than the stream of the layer before, so that scores "
                "of single blocks would be those of another model; choose another architecture"
            )
    changed = idx[:1].clone()
    changed[0, -1] = (changed[0, -1] + 1) % model.config.vocab_size
    if not alike(model(idx[:1])[0][:, :-1], model(changed)[0][:, :-1]):
        raise BadInput(
            f"{what}: its predictions change with the tokens behind them, as an encoder's do; "
            "choose a model that was trained to predict the next token"
        )


def is_one_stream(model, idx):
    """Are the model's own logits of idx (B, T) those of embed, its blocks in turn and read_out?"""
    own, h = model(idx)[0], model.embed(idx)
    if h.shape != (*idx.shape, model.config.n_embd):
        return False
    for block in model.blocks:
        h = block(h)
    return alike(own, model.read_out(h))


def alike(wanted, got):
    difference, scale = (got - wanted).abs().max(), wanted.abs().max()
    return bool(difference <= TOLERANCE[wanted.dtype] * scale)  # never so for nan


# Loading -----------------------------------------------------------------------------------------


def refuse_without_transformers():
    if transformers is None:
        raise BadInput("public models need one package more: pip install transformers")


def read_config(folder):
    """The config of a Hugging Face folder. Raises BadInput where there is no folder, or one without
    config or weights, or where transformers knows no decoder of this kind."""
    refuse_without_transformers()
    if not folder.is_dir():
        raise BadInput(
            f"{folder} is no folder: name one that holds a model's config.json, its weights "
            "(*.safetensors) and its tokenizer, as Hugging Face models come"
        )
    if not (folder / "config.json").exists():
        raise BadInput(f"{folder} has no config.json: it is not the folder of a Hugging Face model")
    if not any(path for pattern in WEIGHTS for path in folder.glob(pattern)):
        raise BadInput(f"{folder} has no weights (*.safetensors): fetch all of the model's files")
    quiet(transformers)
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the library raises many kinds
        raise BadInput(
            f"{folder / 'config.json'}: transformers {transformers.__version__} does not know this "
            f"architecture ({reason(error)}): try a newer version, or another model"
        ) from None
    if type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        raise BadInput(
            f"{folder / 'config.json'}: {config.model_type} is no decoder of text: choose a model "
            "that was trained to predict the next token"
        )
    return config


def quiet(library):
    library.utils.logging.set_verbosity_error()
    library.utils.logging.disable_progress_bar()


def count_parameters(config):
    """Of the model that a config describes, without building it. Raises BadInput."""
    try:
        with torch.device("meta"):  # shapes alone
            hf = transformers.AutoModelForCausalLM.from_config(config)
    except Exception as error:
        raise BadInput(f"{config.model_type} cannot be built ({reason(error)})") from None
    return sum(parameter.numel() for parameter in hf.parameters())


def load_decoder(folder, dtype=torch.float32, device="cpu"):
    """(Decoder, tokenizer) of a Hugging Face folder. Raises BadInput."""
    folder = Path(folder)
    read_config(folder)
    tokenizer = load_tokenizer(folder)
    return Decoder(load_model(folder, dtype).to(device)), tokenizer


def load_model(folder, dtype):
    """transformers' own model. Raises BadInput where weights are damaged or do not fill it."""
    try:
        hf, loaded = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, local_files_only=True, output_loading_info=True
        )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise BadInput(
            f"{folder} cannot be loaded by transformers {transformers.__version__} "
            f"({type(error).__name__}: {reason(error)}): fetch the model's files again"
        ) from None
    if missing := sorted(map(str, [*loaded["missing_keys"], *loaded["mismatched_keys"]])):
        raise BadInput(
            f"{folder} lacks {len(missing)} of the weights of a {type(hf).__name__}, such as "
            f"{missing[0]}, which would be random: fetch all of the model's files"
        )
    return hf


def load_tokenizer(folder):
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise BadInput(
            f"{folder} has no tokenizer that transformers {transformers.__version__} can load "
            f"({reason(error)}): fetch the model's tokenizer files, too"
        ) from None


# A model with fewer layers -----------------------------------------------------------------------


def save_without(model, removed, folder):
    """Write the model without the layers `removed`, numbered from 0, as a Hugging Face folder; its
    Decoder is of no more use then. Lists of the config with an entry a layer lose theirs, too."""
    kept = [l for l in range(model.config.n_layer) if l not in removed]
    hf = model.hf
    parent, _, name = model.path.rpartition(".")
    config = hf.config.get_text_config()
    for key, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == model.config.n_layer:
            setattr(config, key, [value[l] for l in kept])
    config.num_hidden_layers = len(kept)
    setattr(hf.get_submodule(parent), name, nn.ModuleList(model.layers[l] for l in kept))
    hf.save_pretrained(folder)


def bytes_of_weights(model):
    """Tied ones once."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.hf.parameters())
