"""Faulty ports of Gemma 4: transformers' model with one mistake, or several, built in, recorded under minigemma's taps.

Each mistake is made in PyTorch, as a porter makes it, and knows nothing of minigemma's own list of mistakes: a
diagnosis that names these is not testing itself. A tap shows what the faulty port computes and passes on; a step that
the port leaves out altogether has no tap.
"""

import copy
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import nn
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.models.gemma4 import modeling_gemma4
from transformers.models.gemma4.modeling_gemma4 import Gemma4RMSNorm

from minigemma.config import GLOBAL, SLIDING
from minigemma.tensors import unused_tensors

from . import reference


@dataclass(frozen=True)
class Fault:
    """One mistake. `install(model, context)` puts it into a built Gemma4ForCausalLM; see Context.

    member: of the family in miniature, one on which it shows. how: the run in which it shows, "whole", "cached", "soft"
    or "packed". first: the tap, of those that both record, at which it shows first in the order of execution.
    """

    id: str
    what: str
    member: str
    how: str
    first: str
    install: Any


@dataclass
class Context:
    """What a mistake may need beside the model: `patches` ends with the run, the other fields are those of the run."""

    patches: ExitStack
    config: Any  # minigemma's Config
    tokens: np.ndarray
    soft_tokens: Any = None
    cache: Any = None  # of a cached run
    start: int = 0  # of the call under way: its first position, its ids [1, T], its soft positions
    ids: Any = None
    where: Any = ()
    attn: Any = None  # the attention module under way and its cos and sin
    angles: Any = None
    query: Any = None  # the tensor that q_norm gave: tells the query from the key where RoPE is applied
    key: Any = None
    turned: Any = None  # a query that has been rotated before it comes to RoPE
    own: dict = field(default_factory=dict)  # taps that only the mistake itself sees right: name -> tensor
    absent: tuple = ()  # endings of the names of taps that hooks would record and the port does not compute
    memory: dict = field(default_factory=dict)

    def patch(self, name, wrapper):
        """Replace a function of modeling_gemma4 by wrapper(the function, ...)."""
        plain = getattr(modeling_gemma4, name)
        self.patches.enter_context(mock.patch.object(modeling_gemma4, name, partial(wrapper, plain)))


SECOND = 11  # where the second prompt of a packed row begins
FAULTS = {}
VARIANTS = []  # Faults of FAULTS, by id, as another engineer makes them: in another place, or with other taps


def fault(name, member, first, what, how="whole"):
    """Enter the function below into FAULTS."""

    def enter(install):
        FAULTS[name] = Fault(name, what, member, how, first, install)
        return install

    return enter


def variant(name, first):
    """Enter the function below into VARIANTS, as another way to make the mistake of this id."""

    def enter(install):
        VARIANTS.append(replace(FAULTS[name], first=first, install=install))
        return install

    return enter


def wrap(owner, name, wrapper):
    """Replace a method of one instance by wrapper(the method, ...)."""
    setattr(owner, name, partial(wrapper, getattr(owner, name)))


def skip(module):
    """The module passes its input on. Its hooks still run."""
    module.forward = lambda x: x


def attentions(model, kind=None, shares=None):
    """The attention modules, of one kind of layer, sharing K and V or having their own."""
    for layer in model.model.layers:
        attn = layer.self_attn
        if kind in (None, attn.layer_type) and shares in (None, attn.is_kv_shared_layer):
            yield attn


def silu(x):
    return x * torch.sigmoid(x)


def gelu_erf(x):
    return 0.5 * x * (1 + torch.erf(x * 0.5**0.5))


# A. Embedding, norms, activations, head


@fault("A1", "E2B", "embed", "the embedding is not scaled by sqrt(D)")
def _(model, context):
    model.model.embed_tokens.embed_scale.fill_(1.0)


@fault("A1b", "E2B", "embed", "the embedding is scaled by sqrt(D) twice")
def _(model, context):
    wrap(model.model.embed_tokens, "forward", lambda plain, ids: plain(ids) * model.config.hidden_size**0.5)


@fault("A2", "E2B", "embed", "soft tokens are scaled by sqrt(D) as well", how="soft")
def _(model, context):
    if context.soft_tokens is not None:
        where, rows = context.soft_tokens
        context.soft_tokens = where, rows * rows.dtype.type(model.config.hidden_size**0.5)


@fault("A3", "E2B", "embed", "sqrt(D) is rounded to bfloat16 for weights that are float32")
def _(model, context):
    scale = model.model.embed_tokens.embed_scale
    scale.copy_(scale.to(torch.bfloat16))


@fault("A4", "E2B", "ple.context", "norms multiply by 1 + weight")
def _(model, context):
    def forward(norm, x):
        return (norm._norm(x.float()) * (1.0 + norm.weight.float())).type_as(x)

    for module in model.modules():
        if isinstance(module, Gemma4RMSNorm) and module.with_scale:
            module.forward = partial(forward, module)


@fault("A5", "E2B", "ple.context", "the mean square of norms is rounded to bfloat16")
def _(model, context):
    def normed(norm, x):
        mean_square = x.pow(2).mean(-1, keepdim=True).to(torch.bfloat16).to(x.dtype)
        return x * torch.rsqrt(mean_square + norm.eps)

    for module in model.modules():
        if isinstance(module, Gemma4RMSNorm):
            module._norm = partial(normed, module)


def head(model, function):
    """The logits become function(the head's output) in place of the softcap."""
    model.config.final_logit_softcapping = None
    wrap(model.lm_head, "forward", lambda plain, x: function(plain(x)))


@fault("A6", "E2B", "logits", "final softcap is x * tanh(x / cap)")
def _(model, context):
    cap = model.config.final_logit_softcapping
    head(model, lambda logits: logits * torch.tanh(logits / cap))


@fault("A7", "E2B", "logits", "no final softcap")
def _(model, context):
    model.config.final_logit_softcapping = None


@fault("A8", "E2B", "layers.*.mlp.act", "SiLU in place of GELU in the MLP")
def _(model, context):
    for layer in model.model.layers:
        layer.mlp.act_fn.forward = silu


@fault("A8b", "E2B", "layers.*.ple.gate", "SiLU in place of GELU at the PLE gate")
def _(model, context):
    for layer in model.model.layers:
        layer.act_fn.forward = silu


@fault("A8c", "26B-A4B", "layers.*.mlp.moe_out", "SiLU in place of GELU in the experts")
def _(model, context):
    for layer in model.model.layers:
        layer.experts.act_fn.forward = silu


@fault("A9", "E2B", "layers.*.mlp.act", "erf form of GELU in the MLP")
def _(model, context):
    for layer in model.model.layers:
        layer.mlp.act_fn.forward = gelu_erf


@fault("A9b", "E2B", "layers.*.ple.gate", "erf form of GELU at the PLE gate")
def _(model, context):
    for layer in model.model.layers:
        layer.act_fn.forward = gelu_erf


def table_gelu(x):
    """As ggml computes it on the CPU: a table with an entry for each number of 16 bits, for x from -10 to 10."""
    table = nn.functional.gelu(x.half().float(), approximate="tanh").half().to(x.dtype)
    return torch.where(x <= -10, torch.zeros_like(x), torch.where(x >= 10, x, table))


@fault("A9c", "E2B", "layers.*.mlp.act", "GELU from a table of float16")
def _(model, context):
    for layer in model.model.layers:
        layer.mlp.act_fn.forward = layer.act_fn.forward = table_gelu


@fault("A10", "E2B", "logits", "the embedding's scale is in the table, so the tied head is scaled too")
def _(model, context):
    embed = model.model.embed_tokens
    embed.weight.mul_(embed.embed_scale.to(embed.weight.dtype))
    embed.embed_scale.fill_(1.0)
    model.lm_head.weight = embed.weight


@fault("A11", "E2B", "layers.*.mlp.in", "pre_feedforward_layernorm is loaded from post_attention_layernorm")
def _(model, context):
    for layer in model.model.layers:
        layer.pre_feedforward_layernorm.weight.copy_(layer.post_attention_layernorm.weight)


@fault("A12", "26B-A4B", "layers.*.mlp.in", "the dense MLP beside the experts gets its input without a norm")
def _(model, context):
    for layer in model.model.layers:
        skip(layer.pre_feedforward_layernorm)


@fault("A13", "E2B", "final_norm", "the final norm is left out")
def _(model, context):
    skip(model.model.norm)


@fault("A14", "E2B", "ple.context", "hidden_size**-0.5 is folded into per_layer_model_projection, in bfloat16")
def _(model, context):
    text = model.model
    matrix, scale = text.per_layer_model_projection.weight, text.per_layer_model_projection_scale
    matrix.copy_((matrix * scale).to(torch.bfloat16))
    text.per_layer_model_projection_scale = 1.0


@variant("A14", first="embed")
def _(model, context):
    embed, head = model.model.embed_tokens, model.lm_head
    head.weight = nn.Parameter(embed.weight.clone())  # the head keeps the unscaled table
    embed.weight = nn.Parameter((embed.weight * embed.embed_scale).to(torch.bfloat16).to(embed.weight.dtype))
    embed.embed_scale.fill_(1.0)


# B. Per-Layer Embeddings


@fault("B1", "E2B", "layers.*.resid_post", "no per-layer embeddings")
def _(model, context):
    model.model.hidden_size_per_layer_input = 0
    for layer in model.model.layers:
        layer.hidden_size_per_layer_input = 0


@fault("B2", "E2B", "layers.*.resid_post", "no PLE and no layer_scalar while decoding", how="cached")
def _(model, context):
    def forward(plain, layer, x, *args, **kwargs):
        if x.shape[1] > 1:
            return plain(x, *args, **kwargs)
        width, scalar = layer.hidden_size_per_layer_input, layer.layer_scalar
        layer.hidden_size_per_layer_input, layer.layer_scalar = 0, torch.ones_like(scalar)
        out = plain(x, *args, **kwargs)
        layer.hidden_size_per_layer_input, layer.layer_scalar = width, scalar
        return out

    for layer in model.model.layers:
        layer.forward = partial(forward, layer.forward, layer)


@fault("B3", "E2B", "ple.token", "PLE lookup not scaled by sqrt(P)")
def _(model, context):
    model.model.embed_tokens_per_layer.embed_scale.fill_(1.0)


@fault("B3b", "E2B", "ple.token", "PLE lookup scaled by sqrt(P) twice")
def _(model, context):
    P = model.config.hidden_size_per_layer_input
    wrap(model.model.embed_tokens_per_layer, "forward", lambda plain, ids: plain(ids) * P**0.5)


@fault("B4", "E2B", "ple.token", "PLE lookup scaled by sqrt(L * P) instead of sqrt(P)")
def _(model, context):
    table = model.model.embed_tokens_per_layer
    table.embed_scale.fill_(table.embedding_dim**0.5)


@fault("B5", "E2B", "ple.context", "the context projection reads each layer's hidden state, not the embeddings")
def _(model, context):
    text, memory = model.model, context.memory
    shape = text.config.num_hidden_layers, text.hidden_size_per_layer_input

    def token_alone(embeds, token):
        memory["contexts"] = []
        return token

    def combine(i, layer, args):
        x, token, *rest = args
        projected = text.per_layer_model_projection(x) * text.per_layer_model_projection_scale
        here = text.per_layer_projection_norm(projected.unflatten(-1, shape))[:, :, i]
        memory["contexts"].append(here)
        context.own["ple.context"] = torch.stack(memory["contexts"], dim=2)
        return (x, (here + token) * text.per_layer_input_scale, *rest)

    text.project_per_layer_inputs = token_alone
    for i, layer in enumerate(text.layers):
        layer.register_forward_pre_hook(partial(combine, i))


@fault("B6", "E2B", "ple.context", "the constants D**-0.5 and 2**-0.5 of the projection and combination are swapped")
def _(model, context):
    text = model.model
    text.per_layer_model_projection_scale = 2**-0.5
    text.per_layer_input_scale = text.config.hidden_size**-0.5


@fault("B7", "E2B", "ple", "context + lookup without 2**-0.5")
def _(model, context):
    model.model.per_layer_input_scale = 1.0


@fault("B8", "E2B", "ple.context", "context projection not scaled by D**-0.5")
def _(model, context):
    model.model.per_layer_model_projection_scale = 1.0


def change_ple(model, change):
    """What the layers receive, [1, T, L, P], becomes change(it)."""
    wrap(model.model, "project_per_layer_inputs", lambda plain, *args: change(plain(*args)))


@fault("B9", "E2B", "ple", "every layer gets its neighbour's slice of the PLE")
def _(model, context):
    change_ple(model, lambda ple: ple.roll(1, dims=2))


@variant("B1", first="ple")
def _(model, context):
    change_ple(model, torch.zeros_like)


@variant("B9", first="ple.token")
def _(model, context):
    wrap(model.model, "get_per_layer_inputs", lambda plain, ids, embeds=None: plain(ids, embeds).roll(1, dims=2))


@fault("B9b", "E2B", "ple", "every token gets its neighbour's per-layer embedding")
def _(model, context):
    change_ple(model, lambda ple: ple.roll(1, dims=1))


@fault("B9c", "E2B", "ple", "after the prompt, the PLE are still the prompt's first rows", how="cached")
def _(model, context):
    def from_the_buffer(ple):
        buffer = context.memory.setdefault("ple", ple)
        return buffer[:, : ple.shape[1]]

    change_ple(model, from_the_buffer)


@fault("B10", "E2B", "ple.token", "soft tokens look up the placeholder's PLE row, not the pad token's", how="soft")
def _(model, context):
    wrap(model.model, "get_per_layer_inputs", lambda plain, ids, embeds=None: plain(context.ids))


@fault("B10b", "E2B", "ple.context", "the context projection reads the pad token's embedding", how="soft")
def _(model, context):
    text = model.model

    def project(plain, embeds, token):
        pad = text.embed_tokens(torch.tensor([text.config.pad_token_id]))
        embeds = embeds.clone()
        embeds[:, context.where] = pad
        return plain(embeds, token)

    wrap(text, "project_per_layer_inputs", project)


@fault("B11", "E2B", "layers.*.resid_post", "the second half of the layers gets no PLE")
def _(model, context):
    layers = model.model.layers
    for layer in layers[len(layers) // 2 :]:
        layer.hidden_size_per_layer_input = 0


@fault("B13", "E2B", "ple.token", "the PLE table is rounded to 4 bits")
def _(model, context):
    weight = model.model.embed_tokens_per_layer.weight
    step = weight.abs().amax(dim=1, keepdim=True) / 7
    weight.copy_(torch.where(step > 0, torch.round(weight / step) * step, weight))


@fault("B15", "E2B", "ple.token", "soft tokens have no PLE lookup", how="soft")
def _(model, context):
    def lookup(plain, ids, embeds=None):
        token = plain(ids, embeds).clone()
        token[:, context.where] = 0.0
        return token

    wrap(model.model, "get_per_layer_inputs", lookup)


@fault("B16", "E2B", "ple.context", "no RMSNorm on the context projection")
def _(model, context):
    skip(model.model.per_layer_projection_norm)


@fault("B17", "E2B", "layers.*.ple.gate", "the PLE gate has no activation")
def _(model, context):
    for layer in model.model.layers:
        skip(layer.act_fn)


@fault("B18", "E2B", "ple", "only the context projection is used: no table lookup")
def _(model, context):
    text = model.model
    text.get_per_layer_inputs = lambda ids, embeds=None: None  # then the projection comes back alone, not scaled
    change_ple(model, lambda ple: ple * text.per_layer_input_scale)


@fault("B19", "E2B", "ple", "only the table lookup is used: no context projection")
def _(model, context):
    text = model.model
    text.project_per_layer_inputs = lambda embeds, token: token * text.per_layer_input_scale


@fault("B20", "E2B", "layers.*.ple_out", "post_per_layer_input_norm is left out")
def _(model, context):
    for layer in model.model.layers:
        skip(layer.post_per_layer_input_norm)


# C. layer_scalar


@fault("C1", "E2B", "layers.*.resid_post", "layer_scalar left out")
def _(model, context):
    for layer in model.model.layers:
        layer.layer_scalar.fill_(1.0)


@fault("C1b", "E2B", "layers.*.resid_post", "the last layer's scalar is left out")
def _(model, context):
    model.model.layers[-1].layer_scalar.fill_(1.0)


@fault("C2", "E2B", "layers.*.resid_ffn", "layer_scalar applied before the PLE add")
def _(model, context):
    # the line that scales stands above the PLE block: its gate and its residual both read the scaled sum
    def scale(scalar, gate, args):
        args[0].mul_(scalar)  # in place: the layer keeps this very tensor as the residual

    for layer in model.model.layers:
        layer.per_layer_input_gate.register_forward_pre_hook(partial(scale, layer.layer_scalar.clone()))
        layer.layer_scalar.fill_(1.0)


@variant("C2", first="layers.*.resid_post")
def _(model, context):
    # the scale stands between the PLE block's gate and its addition: the gate still reads the right sum
    def keep(gate, args):
        context.memory["residual"] = args[0]

    def scale(scalar, norm, args, out):
        context.memory["residual"].mul_(scalar)  # in place, as above

    for layer in model.model.layers:
        layer.per_layer_input_gate.register_forward_pre_hook(keep)
        layer.post_per_layer_input_norm.register_forward_hook(partial(scale, layer.layer_scalar.clone()))
        layer.layer_scalar.fill_(1.0)


@fault("C2b", "E2B", "layers.*.resid_post", "layer_scalar applied to what the layer adds, not to the whole residual")
def _(model, context):
    def forward(plain, scalar, x, *args, **kwargs):
        added = plain(x, *args, **kwargs) - x
        return x + scalar * added

    for layer in model.model.layers:
        layer.forward = partial(forward, layer.forward, layer.layer_scalar.clone())
        layer.layer_scalar.fill_(1.0)


@fault("C3", "E2B", "layers.*.resid_post", "each layer has the scalar of the next")
def _(model, context):
    layers = model.model.layers
    scalars = [layer.layer_scalar.clone() for layer in layers]
    for i, layer in enumerate(layers):
        layer.layer_scalar.copy_(scalars[(i + 1) % len(layers)])


# D. Attention


@fault("D1", "E2B", "layers.*.attn.scores", "scores divided by sqrt(head_dim)")
def _(model, context):
    for attn in attentions(model):
        attn.scaling = attn.head_dim**-0.5


@fault("D2", "E2B", "layers.*.attn.v", "V not normed")
def _(model, context):
    for attn in attentions(model, shares=False):
        skip(attn.v_norm)


@fault("D3", "12B", "layers.*.attn.v_raw", "k_eq_v: V of global layers made from k_norm's output")
def _(model, context):
    def remember(norm, args, out):
        context.memory["normed"] = out

    for attn in attentions(model, GLOBAL, shares=False):
        attn.k_norm.register_forward_hook(remember)
        attn.v_norm.register_forward_pre_hook(lambda norm, args: (context.memory["normed"],))


@fault("D3b", "12B", "layers.*.attn.v_raw", "k_eq_v: V of global layers made from K after RoPE")
def _(model, context):
    for attn in attentions(model, GLOBAL, shares=False):
        attn.v_norm.register_forward_pre_hook(lambda norm, args: (context.key,))


@fault("D5", "E4B", "layers.*.attn.v", "K (normed, rotated) used as V")
def _(model, context):
    for attn in attentions(model, shares=False):
        attn.v_norm.forward = lambda v: context.key


@fault("D6", "31B", "layers.*.attn.q_raw", "the queries of global layers are dealt to heads in the wrong order")
def _(model, context):
    def dealt(attn, plain, x):
        heads = model.config.num_attention_heads
        return plain(x).unflatten(-1, (attn.head_dim, heads)).transpose(-1, -2).flatten(-2)

    for attn in attentions(model, GLOBAL):
        attn.q_proj.forward = partial(dealt, attn, attn.q_proj.forward)


@fault("D6b", "E4B", "layers.*.attn.scores", "query head n reads kv head n mod K")
def _(model, context):
    eager_only(model)
    context.patch("repeat_kv", lambda plain, x, times: x.repeat(1, times, 1, 1))


@fault("D7", "E2B", "layers.1.attn.rot_q", "layer 1 taken for a global one: no window, the global RoPE")
def _(model, context):
    layer, rope = model.model.layers[1], model.config.rope_parameters[GLOBAL]
    H = layer.self_attn.head_dim
    rotating = int(rope["partial_rotary_factor"] * H) // 2
    inv_freq = frequencies(rope["rope_theta"], H, H // 2, rotating)

    def keep(plain, *args, **kwargs):
        context.memory["global mask"] = plain(*args, **kwargs)
        return context.memory["global mask"]

    def as_global(layer, args, kwargs):
        angles = torch.outer(kwargs["position_ids"][0].to(inv_freq.dtype), inv_freq)[None]  # [1, T, H/2]
        angles = torch.cat([angles, angles], dim=-1)
        kwargs["position_embeddings"] = angles.cos().type_as(args[0]), angles.sin().type_as(args[0])
        kwargs["attention_mask"] = context.memory["global mask"]
        return args, kwargs

    if context.cache is not None:
        context.cache.layers[1] = DynamicLayer()
    context.patch("create_causal_mask", keep)
    layer.register_forward_pre_hook(as_global, with_kwargs=True)


@fault("D8", "E2B", "layers.*.attn.pattern", "every softmax uniform over visible keys")
def _(model, context):
    eager_only(model)

    def attend(plain, module, query, *args, **kwargs):
        return plain(module, torch.zeros_like(query), *args, **kwargs)

    context.patch("eager_attention_forward", attend)


@fault("D9", "E2B", "layers.*.attn.q", "queries not normed")
def _(model, context):
    for attn in attentions(model):
        skip(attn.q_norm)


@fault("D9b", "E2B", "layers.*.attn.k", "keys not normed")
def _(model, context):
    for attn in attentions(model, shares=False):
        skip(attn.k_norm)


@fault("D10", "E2B", "layers.*.attn.q", "queries rotated first, then normed")
def _(model, context):
    def norm(plain, q):
        context.query = q
        context.turned = plain(modeling_gemma4.apply_rotary_pos_emb(q, *context.angles, unsqueeze_dim=2))
        return context.turned

    for attn in attentions(model):
        wrap(attn.q_norm, "forward", norm)


@fault("D11", "E2B", "layers.*.attn.pattern", "no causal mask")
def _(model, context):
    window = model.config.sliding_window
    mask(context, "create_causal_mask", lambda q, k: torch.ones_like(q - k, dtype=torch.bool))
    mask(context, "create_sliding_window_causal_mask", lambda q, k: (q - k).abs() < window)


@variant("D11", first="layers.*.attn.pattern")
def _(model, context):
    window = model.config.sliding_window
    mask(context, "create_causal_mask", lambda q, k: torch.ones_like(q - k, dtype=torch.bool))
    mask(context, "create_sliding_window_causal_mask", lambda q, k: q - k < window)  # all that comes later is visible


def soften(context, change):
    """Attention is written out; the softmax's input becomes change(the scores, the mask), both [1, N, T, S]."""

    def attend(plain, module, query, key, value, mask, **kwargs):
        k, v = (modeling_gemma4.repeat_kv(x, module.num_key_value_groups) for x in (key, value))
        pattern = change(query @ k.transpose(2, 3) * module.scaling, mask).softmax(-1, dtype=torch.float32)
        return (pattern.to(v.dtype) @ v).transpose(1, 2).contiguous(), pattern

    context.patch("eager_attention_forward", attend)


@fault("D12", "E2B", "layers.*.attn.pattern", "scores are soft-capped at 50")
def _(model, context):
    soften(context, lambda scores, mask: 50 * torch.tanh(scores / 50) + mask)


@fault("D13", "E2B", "layers.*.attn.pattern", "K and V are stored in float8")
def _(model, context):
    store_in(context, lambda x: x.to(torch.float8_e4m3fn).to(x.dtype))


@variant("D13", first="layers.*.attn.pattern")
def _(model, context):
    def rounded(x):
        step = x.abs().amax(-1, keepdim=True) / 127
        return torch.round(x / step) * step

    store_in(context, rounded)


def store_in(context, rounded):
    """Attention reads K and V as rounded(x) makes them."""
    context.patch(
        "eager_attention_forward",
        lambda plain, module, query, key, value, *args, **kwargs: plain(
            module, query, rounded(key), rounded(value), *args, **kwargs
        ),
    )


@fault("D14", "E2B", "layers.*.attn.pattern", "a mask of True and False is added to the scores")
def _(model, context):
    soften(context, lambda scores, mask: scores + (mask == 0))


# E. RoPE


def frequencies(theta, denominator, pairs, rotating):
    """The inverse frequencies of `pairs` pairs, the first `rotating` of which turn, with exponents 2j/denominator."""
    inv_freq = torch.zeros(pairs, dtype=torch.float32)
    inv_freq[:rotating] = theta ** -(2 * torch.arange(rotating, dtype=torch.float32) / denominator)
    return inv_freq


def on_rope(context, wrapper):
    """x [1, T, N, H] is rotated by wrapper(the plain rotation, x, cos, sin), cos and sin [1, T, H]."""

    def rotated(plain, x, cos, sin, unsqueeze_dim):
        return wrapper(partial(plain, unsqueeze_dim=unsqueeze_dim), x, cos, sin)

    context.patch("apply_rotary_pos_emb", rotated)


def retune(model, kind, theta, partial_factor=1.0, denominator_factor=1.0):
    """Other frequencies for the layers of one kind."""
    name = f"{kind}_inv_freq"
    pairs = len(getattr(model.model.rotary_emb, name))
    inv_freq = frequencies(theta, 2 * pairs * denominator_factor, pairs, int(partial_factor * pairs))
    getattr(model.model.rotary_emb, name).copy_(inv_freq)


@fault("E1", "E2B", "layers.*.attn.rot_q", "global layers: rotating pairs are (j, j + n_rot), not (j, j + H/2)")
def _(model, context):
    rotating = int((model.model.rotary_emb.full_attention_inv_freq > 0).sum())

    def rotate(plain, x, cos, sin):
        if context.attn.is_sliding:
            return plain(x, cos, sin)
        cos, sin = (torch.cat([part[..., :rotating]] * 2, dim=-1) for part in (cos, sin))
        turned, still = x.split([2 * rotating, x.shape[-1] - 2 * rotating], dim=-1)
        return torch.cat([plain(turned, cos, sin), still], dim=-1)

    on_rope(context, rotate)


@fault("E2", "E2B", "layers.*.attn.rot_q", "global layers: exponents divided by the rotating part, not H")
def _(model, context):
    retune(model, GLOBAL, 1e6, partial_factor=0.25, denominator_factor=0.25)


@fault("E3", "E2B", "layers.*.attn.rot_q", "all pairs of global heads rotate")
def _(model, context):
    retune(model, GLOBAL, 1e6)


@fault("E5", "E2B", "layers.*.attn.rot_q", "global layers have theta 1e4")
def _(model, context):
    retune(model, GLOBAL, 1e4, partial_factor=0.25)


@fault("E5b", "E2B", "layers.*.attn.rot_q", "sliding layers have theta 1e6")
def _(model, context):
    retune(model, SLIDING, 1e6)


@fault("E6", "E2B", "layers.*.attn.rot_q", "sliding layers rotate a quarter of their pairs")
def _(model, context):
    retune(model, SLIDING, 1e4, partial_factor=0.25)


@fault("E7", "E2B", "layers.*.attn.rot_q", "RoPE's positions begin at 0 again in every call", how="cached")
def _(model, context):
    def restart(plain, x, position_ids, layer_type):
        return plain(x, position_ids - position_ids[:, :1], layer_type)

    wrap(model.model.rotary_emb, "forward", restart)


@fault("E8", "E2B", "layers.*.attn.rot_q", "RoPE rotates adjacent pairs (2j, 2j+1)")
def _(model, context):
    def rotate(plain, x, cos, sin):
        cos, sin = (part[..., None, : x.shape[-1] // 2] for part in (cos, sin))
        even, odd = x[..., 0::2], x[..., 1::2]
        return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)

    on_rope(context, rotate)


@fault("E9", "E2B", "layers.*.attn.rot_q", "RoPE turns the other way in q only")
def _(model, context):
    on_rope(context, lambda plain, x, cos, sin: plain(x, cos, -sin if x is context.query else sin))


def at_positions(model, place):
    """RoPE gets place(positions) in place of each call's positions [1, T]."""
    wrap(model.model.rotary_emb, "forward", lambda plain, x, positions, *args: plain(x, place(positions), *args))


def started_again(positions):
    """Positions that start again at the second prompt of a packed row."""
    return torch.where(positions >= SECOND, positions - SECOND, positions)


@fault("E10", "E2B", "layers.*.attn.rot_q", "positions start again at the second <bos>, without a mask", how="packed")
def _(model, context):
    at_positions(model, started_again)


@fault("E11", "E2B", "layers.*.attn.rot_q", "a cache counts five positions too many", how="cached")
def _(model, context):
    at_positions(model, lambda positions: positions + 5 * (context.start > 0))


# F. Sharing of K and V


def unused_weights(config, seed=0):
    """k_proj, v_proj and k_norm of the KV-sharing layers, as Google's files hold them, random: name -> array."""
    rng = np.random.default_rng([5, seed])
    arrays = {}
    for tensor in unused_tensors(config):
        if len(tensor.shape) == 1:
            array = rng.uniform(0.5, 1.5, tensor.shape)
        else:
            array = rng.standard_normal(tensor.shape) * tensor.shape[-1] ** -0.5
        arrays[f"model.{tensor.name}"] = array.astype(np.float32)
    return arrays


def own_kv(model, context):
    """A sharing layer's own K and V, from the weights that its file holds for nothing: layer -> modules."""
    arrays, modules = unused_weights(context.config), {}
    like = model.model.norm.weight
    for attn in attentions(model, shares=True):

        def weight(name, i=attn.layer_idx):
            return nn.Parameter(torch.from_numpy(arrays[f"model.layers.{i}.self_attn.{name}.weight"]).to(like.dtype))

        parts = {"k_norm": Gemma4RMSNorm(attn.head_dim, eps=attn.q_norm.eps)}
        parts["v_norm"] = Gemma4RMSNorm(attn.head_dim, eps=attn.q_norm.eps, with_scale=False)
        parts["k_norm"].weight = weight("k_norm")
        for name in ("k_proj", "v_proj"):
            matrix = weight(name)
            parts[name] = nn.Linear(*matrix.shape[::-1], bias=False)
            parts[name].weight = matrix
        modules[attn.layer_idx] = parts
    return modules


@fault("F1", "E2B", "layers.*.attn.scores", "without a cache nothing is shared: the unused K and V weights are used")
def _(model, context):
    if context.cache is not None:
        return
    for i, parts in own_kv(model, context).items():
        attn = model.model.layers[i].self_attn
        attn.is_kv_shared_layer = False
        for name, module in parts.items():
            setattr(attn, name, module)


def write_into_the_donor(model, context, then_read):
    """Sharing layers write this call's K and V over the donor's, before they attend to them or with no effect on it."""
    donor = {attn.layer_type: attn.layer_idx for attn in attentions(model, shares=False) if attn.store_full_length_kv}

    def written(rows, new):  # the slots of this call's positions, [1, K, S, H]
        count = min(rows.shape[2], new.shape[2])
        return torch.cat([rows[:, :, : rows.shape[2] - count], new[:, :, new.shape[2] - count :]], dim=2)

    def write(parts, attn, args, kwargs):
        if context.cache is None:
            return
        x, (cos, sin) = kwargs["hidden_states"], kwargs["position_embeddings"]
        heads = *x.shape[:-1], -1, attn.head_dim
        k = parts["k_norm"](parts["k_proj"](x).view(heads))
        k = modeling_gemma4.apply_rotary_pos_emb(k, cos, sin, unsqueeze_dim=2).transpose(1, 2)
        v = parts["v_norm"](parts["v_proj"](x).view(heads)).transpose(1, 2)
        shared, slots = kwargs["shared_kv_states"], context.cache.layers[donor[attn.layer_type]]
        keys, values = shared[attn.layer_type]
        if then_read:
            shared[attn.layer_type] = written(keys, k), written(values, v)
        slots.keys, slots.values = written(slots.keys, k), written(slots.values, v)

    for i, parts in own_kv(model, context).items():
        model.model.layers[i].self_attn.register_forward_pre_hook(partial(write, parts), with_kwargs=True)


@fault("F3", "E2B", "layers.*.attn.z", "sharing layers write their own K and V into the donor's cache", how="cached")
def _(model, context):
    write_into_the_donor(model, context, then_read=True)


@variant("F3", first="layers.*.attn.z")
def _(model, context):
    write_into_the_donor(model, context, then_read=False)


def donate(model, kind, index):
    """The layers of a kind read K and V from the index-th layer of that kind that has some."""
    owners = list(attentions(model, kind, shares=False))
    for attn in owners:
        attn.store_full_length_kv = attn is owners[index]


@fault("F5", "E2B", "layers.*.attn.scores", "sharing layers read from the first layer of their kind")
def _(model, context):
    donate(model, SLIDING, 0)
    donate(model, GLOBAL, 0)


@fault("F5b", "E2B", "layers.*.attn.scores", "sliding sharing layers read from the sliding layer before the donor")
def _(model, context):
    donate(model, SLIDING, -2)


@fault("F9", "E2B", "layers.*.mlp.gate", "the MLP of sharing layers is not double-wide")
def _(model, context):
    for layer in model.model.layers:
        mlp, width = layer.mlp, model.config.intermediate_size
        for matrix in (mlp.gate_proj, mlp.up_proj):
            matrix.weight = nn.Parameter(matrix.weight[:width].clone())
        mlp.down_proj.weight = nn.Parameter(mlp.down_proj.weight[:, :width].clone())


@fault("F11", "E2B", "layers.*.attn.scores", "sharing sliding layers read only what the donor keeps for its next call")
def _(model, context):
    kept = model.config.sliding_window - 1

    def trim(attn, args, kwargs):
        shared = {kind: tuple(kv) for kind, kv in kwargs["shared_kv_states"].items()}
        shared[SLIDING] = tuple(rows[:, :, -kept:] for rows in shared[SLIDING])
        kwargs |= {"shared_kv_states": shared, "attention_mask": kwargs["attention_mask"][..., -kept:]}
        return args, kwargs

    for attn in attentions(model, SLIDING, shares=True):
        attn.register_forward_pre_hook(trim, with_kwargs=True)


def turn_ahead(model, context):
    """In KV-sharing layers q stands where the next call begins."""
    rotary = model.model.rotary_emb

    def rotate(plain, x, cos, sin):
        if not context.attn.is_kv_shared_layer:
            return plain(x, cos, sin)
        T = x.shape[1]
        ahead = torch.arange(context.start + T, context.start + 2 * T)[None]
        return plain(x, *rotary(x, ahead, context.attn.layer_type))

    on_rope(context, rotate)


@fault("F12", "E2B", "layers.*.attn.rot_q", "sharing layers rotate q by the positions after the call")
def _(model, context):
    turn_ahead(model, context)


@fault("F12b", "E2B", "layers.*.attn.rot_q", "while decoding, sharing layers rotate q one position ahead", how="cached")
def _(model, context):
    turn_ahead(model, context)


# G. The window


def mask(context, name, sees):
    """The mask of one kind of layer becomes sees(query position [T, 1], key position [S]), of any length of cache."""

    def create(plain, *, inputs_embeds, **kwargs):
        usual, T = plain(inputs_embeds=inputs_embeds, **kwargs), inputs_embeds.shape[1]
        end, S = context.start + T, T if usual is None else usual.shape[-1]
        seen = sees(torch.arange(context.start, end)[:, None], torch.arange(end - S, end))
        blocked = torch.finfo(inputs_embeds.dtype).min
        return torch.zeros(seen.shape, dtype=inputs_embeds.dtype).masked_fill(~seen, blocked)[None, None]

    context.patch(name, create)


def window(model, context, sees):
    """Another rule for sliding layers: sees(query position, key position, window)."""
    width = model.config.sliding_window
    mask(context, "create_sliding_window_causal_mask", lambda q, k: sees(q, k, width))


@fault("G1", "E2B", "layers.*.attn.pattern", "no window in sliding layers")
def _(model, context):
    window(model, context, lambda q, k, width: k <= q)


@fault("G2", "E2B", "layers.*.attn.pattern", "window one key too many")
def _(model, context):
    window(model, context, lambda q, k, width: (k <= q) & (q - k <= width))


@fault("G2b", "E2B", "layers.*.attn.pattern", "window one key too few")
def _(model, context):
    window(model, context, lambda q, k, width: (k <= q) & (q - k < width - 1))


@fault("G2c", "E2B", "layers.*.attn.z", "the cache of sliding layers is cut one key too short", how="cached")
def _(model, context):
    for layer in context.cache.layers if context.cache is not None else ():
        if isinstance(layer, DynamicSlidingWindowLayer):
            layer.sliding_window -= 1  # of the cache alone: it keeps one less, and the mask has its width


@fault("G3", "E2B", "layers.*.attn.pattern", "the sliding mask is built from position + 1")
def _(model, context):
    window(model, context, lambda q, k, width: (k <= q + 1) & (q + 1 - k < width))


@fault("G4", "E2B", "layers.*.attn.pattern", "sliding layers read only the last keys of a call, as many as the window")
def _(model, context):
    def last_keys(plain, module, query, key, value, mask, **kwargs):
        kept = torch.arange(key.shape[2]) >= key.shape[2] - model.config.sliding_window
        if module.layer_type == SLIDING:
            mask = mask.masked_fill(~kept, -torch.inf)  # the keys are not there; those hidden have a finite value
        return plain(module, query, key, value, mask, **kwargs)

    context.patch("eager_attention_forward", last_keys)


# H. Mixture of experts


def route(model, probabilities=None, renormalise=True):
    """Write the routers out: probabilities(scores), and whether the chosen ones are made to sum to 1."""

    def softmax(scores):
        return scores.softmax(-1, dtype=torch.float32)

    def forward(router, x):
        x = router.norm(x) * router.scale * router.scalar_root_size
        probs = (probabilities or softmax)(router.proj(x))
        weights, chosen = probs.topk(router.config.top_k_experts, dim=-1)
        if renormalise:
            weights = weights / weights.sum(-1, keepdim=True)
        return probs, weights * router.per_expert_scale[chosen], chosen

    for layer in model.model.layers:
        layer.router.forward = partial(forward, layer.router)


@fault("H1", "26B-A4B", "layers.*.router.probs", "the router reads the experts' normed input and norms it again")
def _(model, context):
    def read(layer, router, args):
        return (layer.pre_feedforward_layernorm_2(args[0]),)

    for layer in model.model.layers:
        layer.router.register_forward_pre_hook(partial(read, layer))


@fault("H1b", "26B-A4B", "layers.*.router.probs", "the router's norm is left out")
def _(model, context):
    for layer in model.model.layers:
        skip(layer.router.norm)


@fault("H2", "26B-A4B", "layers.*.router.probs", "router.scale left out")
def _(model, context):
    for layer in model.model.layers:
        layer.router.scale.fill_(1.0)


@fault("H2b", "26B-A4B", "layers.*.router.weights", "per_expert_scale left out")
def _(model, context):
    for layer in model.model.layers:
        layer.router.per_expert_scale.fill_(1.0)


@fault("H3", "26B-A4B", "layers.*.mlp.moe_out", "per_expert_scale applied twice")
def _(model, context):
    for layer in model.model.layers:  # folded into the experts' output, and still applied by the router
        layer.experts.down_proj.mul_(layer.router.per_expert_scale[:, None, None])


@variant("H3", first="layers.*.router.weights")
def _(model, context):
    for layer in model.model.layers:
        layer.router.per_expert_scale.square_()


@fault("H4", "26B-A4B", "layers.*.mlp_out", "the experts replace the dense MLP")
def _(model, context):
    context.absent += ("mlp.dense_out",)
    for layer in model.model.layers:
        layer.mlp.forward = torch.zeros_like
        layer.post_feedforward_layernorm_1.forward = torch.zeros_like


@fault("H4b", "26B-A4B", "layers.*.mlp_out", "only the dense MLP is read")
def _(model, context):
    context.absent += ("mlp.moe_out", "router.probs", "router.weights", "router.experts")
    for layer in model.model.layers:
        layer.router.forward = lambda x: (x, x, x)
        layer.experts.forward = lambda x, chosen, weights: torch.zeros_like(x)
        layer.post_feedforward_layernorm_2.forward = torch.zeros_like


@fault("H5", "26B-A4B", "layers.*.router.weights", "one expert too few")
def _(model, context):
    for layer in model.model.layers:
        layer.router.config = copy.copy(layer.router.config)
        layer.router.config.top_k_experts -= 1


@fault("H6", "26B-A4B", "layers.*.router.probs", "the router works in float16")
def _(model, context):
    def half(matrix, x):
        return nn.functional.linear(x.half(), matrix.weight.half())

    route(model, probabilities=lambda scores: scores.softmax(-1))
    for layer in model.model.layers:
        layer.router.proj.forward = partial(half, layer.router.proj)


@variant("H6", first="layers.*.router.probs")
def _(model, context):
    route(model, probabilities=lambda scores: scores.softmax(-1, dtype=torch.float32).half())


@fault("H7", "26B-A4B", "layers.*.router.probs", "the router's probabilities are taken for logits (softmax twice)")
def _(model, context):
    route(model, probabilities=lambda scores: scores.softmax(-1, dtype=torch.float32).softmax(-1))


@fault("H8", "26B-A4B", "layers.*.router.weights", "the chosen experts' weights are not renormalised")
def _(model, context):
    route(model, renormalise=False)


# J. The prompt; L, M. Matrices and norms in the wrong place


def shift(context, tokens, by):
    """Other tokens; soft tokens move along."""
    context.tokens = np.asarray(tokens)
    if context.soft_tokens is not None:
        where, rows = context.soft_tokens
        context.soft_tokens = np.asarray(where) + by, rows


@fault("J1", "E2B", "embed", "BOS missing")
def _(model, context):
    shift(context, context.tokens[1:], -1)


@fault("J2", "E2B", "embed", "double BOS")
def _(model, context):
    shift(context, [model.config.bos_token_id, *context.tokens], 1)


@fault("L6", "E2B", "layers.*.attn.q_raw", "q_proj, k_proj, o_proj scaled by 2")
def _(model, context):
    for attn in attentions(model):
        for matrix in (attn.q_proj, attn.o_proj) + (() if attn.is_kv_shared_layer else (attn.k_proj,)):
            matrix.weight.mul_(2)


@fault("L10", "E2B", "layers.*.attn.rot_q", "two prompts in one row, which transformers masks apart", how="packed")
def _(model, context):
    positions = started_again(torch.arange(len(context.tokens)))[None]
    wrap(model, "forward", lambda plain, **inputs: plain(**inputs, position_ids=positions))


@fault("M1", "E2B", "layers.*.mlp.gate", "gate_proj and up_proj swapped in the MLP")
def _(model, context):
    for layer in model.model.layers:
        layer.mlp.gate_proj, layer.mlp.up_proj = layer.mlp.up_proj, layer.mlp.gate_proj


@fault("M2", "E2B", "layers.*.attn_out", "post_attention_layernorm left out")
def _(model, context):
    for layer in model.model.layers:
        skip(layer.post_attention_layernorm)


@fault("M3", "E2B", "layers.*.mlp_out", "post_feedforward_layernorm left out")
def _(model, context):
    for layer in model.model.layers:
        skip(layer.post_feedforward_layernorm)


# A mistake that no list has

FLIPS = {
    "input_layernorm": "attn.in",
    "self_attn.q_proj": "attn.q_raw",
    "self_attn.q_norm": "attn.q",
    "self_attn.k_proj": "attn.k_raw",
    "self_attn.v_proj": "attn.v_raw",
    "self_attn.k_norm": "attn.k",
    "self_attn.v_norm": "attn.v",
    "self_attn.o_proj": "attn.o",
    "post_attention_layernorm": "attn_out",
    "pre_feedforward_layernorm": "mlp.in",
    "mlp.gate_proj": "mlp.gate",
    "mlp.up_proj": "mlp.up",
    "mlp.down_proj": "mlp.down",
    "router.proj": "router.probs",
    "post_feedforward_layernorm_1": "mlp.dense_out",
    "pre_feedforward_layernorm_2": "mlp.moe_out",
    "post_feedforward_layernorm_2": "mlp.moe_out",
    "post_feedforward_layernorm": "mlp_out",
    "per_layer_input_gate": "ple.gate",
    "per_layer_projection": "ple.proj",
    "post_per_layer_input_norm": "ple_out",
}
FLIPS_OUTSIDE = {
    "embed_tokens": "embed",
    "embed_tokens_per_layer": "ple.token",
    "per_layer_model_projection": "ple.context",
    "per_layer_projection_norm": "ple.context",
    "norm": "final_norm",
}


def sign_flip(name, seed=0, how="whole"):
    """A random half of the output channels of a matrix or norm, such as "layers.2.self_attn.o_proj", has its sign
    turned."""
    at, _, op = name.removeprefix("layers.").partition(".")
    first = FLIPS_OUTSIDE[name] if name in FLIPS_OUTSIDE else f"layers.{at}.{FLIPS[op]}"

    def install(model, context):
        def flip(module, args, out):
            width = out.shape[-1]
            sign = torch.ones(width, dtype=out.dtype)
            sign[np.random.default_rng([6, seed]).permutation(width)[: max(1, width // 2)]] = -1
            return out * sign

        model.model.get_submodule(name).register_forward_hook(flip)

    return Fault(f"flip {name}", f"half of the output of {name} has its sign turned", None, how, first, install)


def random_flip(config, seed):
    """A sign_flip of any op of a model with this Config -> the Fault and the tap at which it shows first."""
    P, moe = config.hidden_size_per_layer_input, config.enable_moe_block
    names = [name for name, tap in FLIPS_OUTSIDE.items() if P or not tap.startswith("ple")]
    for layer in config.layers:
        for op, tap in FLIPS.items():
            if layer.shares_kv and tap.startswith(("attn.k", "attn.v")):
                continue
            if layer.k_eq_v and op == "self_attn.v_proj":
                continue
            if not P and tap.startswith("ple"):
                continue
            if not moe and tap.startswith(("router", "mlp.dense", "mlp.moe")):
                continue
            names.append(f"layers.{layer.index}.{op}")
    chosen = sign_flip(names[np.random.default_rng([7, seed]).integers(len(names))], seed)
    return chosen, chosen.first


# Running and recording


def eager_only(model):
    """For mistakes inside the attention function: transformers' sdpa has its own, where they would do nothing."""
    if model.config._attn_implementation != "eager":
        raise ValueError("this mistake is made in eager attention")


def packed(tokens):
    """The ids of two prompts in one row: a second <bos>, which is id 2, at SECOND."""
    return np.where(np.arange(len(tokens)) == SECOND, 2, tokens)


def record_port(
    raw,
    config,
    weights,
    tokens,
    faults=(),
    dtype=np.float32,
    how="whole",
    soft_tokens=None,
    precision="float32",
    attention="eager",
    prefill=None,
):
    """Every tap of the port with these mistakes (ids of FAULTS, or Faults) -> name: array.

    how: "whole", "soft" or "packed" (a second <bos> at SECOND), one call; "cached", a call of `prefill` tokens (half of
    them), then one of each token, its taps put together along T, without those that have an axis S. precision: what the
    whole model runs in, with dtype float32; a tap is then a float32 array of the values. attention "sdpa" shows no
    scores and no pattern.
    """
    model = reference.build(raw, config, weights, dtype)
    model.config._attn_implementation = attention
    if precision != "float32":
        cast(model, {"bfloat16": torch.bfloat16, "float16": torch.float16}[precision])
    with ExitStack() as patches, torch.no_grad(), reference.precision(dtype):
        context = Context(patches, config, packed(tokens) if how == "packed" else np.asarray(tokens), soft_tokens)
        if how == "cached":
            context.cache = DynamicCache(config=model.config)
        for chosen in faults:
            (FAULTS[chosen] if isinstance(chosen, str) else chosen).install(model, context)
        watch_attention(model, context)
        watch_ple(model.model, context)
        T = len(context.tokens)
        if how == "cached":
            half = prefill or T // 2
            calls = [one_call(model, context, *span) for span in [(0, half), *((t, t + 1) for t in range(half, T))]]
            return joined(calls)
        return one_call(model, context, 0, T)


def cast(model, dtype):
    """The model in 16 bits; RoPE's frequencies stay float32, as when transformers loads it so."""
    rotary = model.model.rotary_emb
    kept = dict(rotary.named_buffers())
    model.to(dtype)
    for name, buffer in kept.items():
        setattr(rotary, name, buffer)


def watch_attention(model, context):
    """Tell mistakes which layer is under way, which tensors are its query and its key. Record what RoPE makes of them:

    with a cache, attention itself gets the keys of all positions.
    """

    def enter(attn, args, kwargs):
        context.attn, context.angles = attn, kwargs["position_embeddings"]

    def query(norm, args, out):
        context.query = out

    def rotated(plain, x, cos, sin):
        out, at = x if x is context.turned else plain(x, cos, sin), f"layers.{context.attn.layer_idx}.attn."
        if x is context.query:
            context.own[at + "rot_q"] = out
        elif not context.attn.is_kv_shared_layer:
            context.own[at + "rot_k"] = context.key = out
        return out

    on_rope(context, rotated)
    for attn in attentions(model):
        attn.register_forward_pre_hook(enter, with_kwargs=True, prepend=True)
        attn.q_norm.register_forward_hook(query)


def watch_ple(text, context):
    """The lookup as it enters the combination, which is where a mistake may have changed it."""

    def project(plain, embeds, token):
        if token is not None:
            context.own["ple.token"] = token
        return plain(embeds, token)

    if text.hidden_size_per_layer_input:
        wrap(text, "project_per_layer_inputs", project)


def one_call(model, context, start, end):
    """The taps of the tokens from start to end."""
    text = model.model
    ids = torch.tensor(context.tokens[start:end])[None]
    inputs = {"input_ids": ids}
    context.start, context.ids, context.where, context.own = start, ids, [], {}
    options = {"use_cache": context.cache is not None, "past_key_values": context.cache}
    if text.config.num_kv_shared_layers and not text.hidden_size_per_layer_input:
        options["output_hidden_states"] = True  # see reference.record
    with readable(), reference.recording(text) as taps, watching_values(text, taps):
        if context.soft_tokens is not None:
            where, rows = (np.asarray(part) for part in context.soft_tokens)
            here = (where >= start) & (where < end)
            context.where = where[here] - start
            inputs = soft_inputs(text, ids, context.where, rows[here])
        taps["logits"] = model(**inputs, **options).logits[0].numpy()
        for name, tensor in context.own.items():
            taps[name] = tensor[0].clone().numpy()
        for i, layer in enumerate(text.layers):
            complete(taps, f"layers.{i}.", layer)
    if context.soft_tokens is not None:
        taps["embed"] = taps["layers.0.resid_pre"]
    return {name: array for name, array in taps.items() if not name.endswith(context.absent)}


def soft_inputs(text, ids, where, rows):
    """reference.soft_inputs in any precision."""
    ids = ids.clone()
    ids[0, where] = text.config.pad_token_id
    embeds = text.embed_tokens(ids)
    embeds[0, where] = torch.from_numpy(rows).to(embeds.dtype)
    if not text.hidden_size_per_layer_input:
        return {"inputs_embeds": embeds}
    return {"inputs_embeds": embeds, "per_layer_inputs": text.get_per_layer_inputs(ids)}


@contextmanager
def readable():
    """NumPy has no bfloat16: inside, a tensor of 16 bits becomes a float32 array."""
    plain = torch.Tensor.numpy

    def numpy(tensor):
        return plain(tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor)

    with mock.patch.object(torch.Tensor, "numpy", numpy):
        yield


@contextmanager
def watching_values(text, taps):
    """V before its norm is what goes into the norm, not what comes out of a matrix."""
    handles = []

    def keep(name, norm, args):
        taps[name] = args[0][0].clone().numpy()

    for i, layer in enumerate(text.layers):
        if not layer.self_attn.is_kv_shared_layer:
            hook = partial(keep, f"layers.{i}.attn.v_raw")
            handles.append(layer.self_attn.v_norm.register_forward_pre_hook(hook))
    yield
    for handle in handles:
        handle.remove()


def complete(taps, at, layer):
    """What hooks alone do not see of a faulty layer."""
    if at + "attn.scores" in taps:
        taps[at + "attn.scores"] *= layer.self_attn.scaling
    if at + "ple.gate" not in taps:
        total = torch.from_numpy(taps[at + "resid_mid"] + taps[at + "mlp_out"])
        taps[at + "resid_ffn"] = total.to(layer.layer_scalar.dtype).numpy()


def joined(calls):
    """The taps of several calls as of one, without those that some call lacks or that have an axis of all positions."""
    names = [name for name in calls[0] if not name.endswith(("attn.scores", "attn.pattern"))]
    return {name: np.concatenate([taps[name] for taps in calls]) for name in names if all(name in c for c in calls)}
