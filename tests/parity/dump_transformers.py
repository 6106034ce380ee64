"""A transformers model's intermediates in a file that minigemma reads: the README's function, tested as it stands."""

import torch
from safetensors.torch import save_file


def dump(model, input_ids, path, **inputs):
    """Write what goes into and comes out of every module of a transformers model for input_ids [1, T].

    inputs: those of a picture, pixel_values, image_position_ids and mm_token_type_ids, as its processor makes them.
    """
    arrays = {"tokens": input_ids[0].cpu()}

    def watch(name):
        def hook(module, inputs, output):
            for side, values in ("input", inputs), ("output", output):
                for i, value in enumerate(values if isinstance(values, tuple) else [values]):
                    if isinstance(value, torch.Tensor):  # a copy, as the model may change it in place
                        arrays[f"{name}.{side}.{i}"] = value.detach().cpu().contiguous().clone()

        return hook

    hooks = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]
    with torch.no_grad():
        arrays["logits"] = model(input_ids, use_cache=False, **inputs).logits.cpu()
    for hook in hooks:
        hook.remove()
    save_file(arrays, path, {"axes": "T N H"})
