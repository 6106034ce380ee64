"""Random bytes in every layout, and the weights that the layouts' own libraries make of them."""

import numpy as np

from minigemma.layouts import BLOCKS


@np.errstate(invalid="ignore")
def blocks_of_gguf(rng, rows, blocks):
    """(name, (bytes,), weights) for each block type of GGUF; scales that are NaN or infinite are drawn again."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    for number, layout in BLOCKS.items():
        raw = rng.integers(0, 256, (rows, blocks * layout.size), np.uint8)
        while not np.isfinite(weights := dequantize(raw, GGMLQuantizationType(number))).all():
            raw = rng.integers(0, 256, raw.shape, np.uint8)
        yield layout.name, (raw,), weights


def affine(rng, rows, columns):
    """(name, arrays as PackedMatrix has them, weights) for MLX's 4 and 8 bits and its three sizes of group."""
    import mlx.core as mx

    from minigemma.packed import narrow, widen

    for bits in (4, 8):
        for group in (32, 64, 128):
            packed = rng.integers(0, 2**32, (rows, columns * bits // 32), np.uint32)
            scale, bias = (narrow(rng.normal(0, 1, (rows, columns // group)).astype(np.float32)) for _ in range(2))
            wide = [mx.array(widen(part)) for part in (scale, bias)]  # MLX multiplies in their type, here float32
            weights = mx.dequantize(mx.array(packed), *wide, group_size=group, bits=bits)
            yield f"mlx{bits}-{group}", (packed.view(np.uint8), scale, bias), np.array(weights)


def compressed(rng, rows, columns):
    """(name, arrays as PackedMatrix has them, weights) for 4 and 8 bits, two sizes of group, with and without zero
    points. The library multiplies in the scales' type, which is float32 here: in bfloat16 it would round."""
    import torch
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import dequantize

    from minigemma.packed import narrow, widen

    for bits in (4, 8):
        half = 2 ** (bits - 1)
        for group, symmetric in ((32, True), (128, True), (32, False)):
            q = rng.integers(-half, half, (rows, columns)).astype(np.int8)
            scale = narrow(rng.uniform(0.01, 1, (rows, columns // group)).astype(np.float32))
            zero = None if symmetric else rng.integers(-half, half, scale.shape).astype(np.int8)
            args = QuantizationArgs(num_bits=bits, type="int", symmetric=symmetric, strategy="group", group_size=group)
            tensors = [torch.tensor(q), torch.tensor(widen(scale)), None if symmetric else torch.tensor(zero)]
            stored = (q.astype(np.int16) + half).astype(np.uint8)
            parts = [stored if bits == 8 else stored[:, ::2] | stored[:, 1::2] << 4, scale]
            weights = dequantize(*tensors, args).numpy()
            yield f"w{bits}a16-{group}{'' if symmetric else '-zero'}", (*parts, *([] if symmetric else [zero])), weights
