"""The accounts as text: each function takes the dict of an account and returns what the command prints."""

from ..files import table

MEDIA = {"pictures": "a picture at the budget of", "sounds": "a sound of so many seconds"}  # of what a row is


def params_text(account):
    """By part, by layer, the candidates for "effective", and a checkpoint's differences where there is a file."""
    total, tensors, sizes = account["total"], account["part_tensors"], account["part_bytes"]
    rows = [(part, tensors[part], size, _percent(size / total), sizes[part]) for part, size in account["parts"].items()]
    rows.append(("all", account["tensors"], total, _percent(1), account["bytes"]))
    paragraphs = [account["name"], table(["part", "tensors", "parameters", "share", "bytes"], rows)]
    lines = [("all but vision and audio", account["text"]), ("active, for one token of text", account["active"])]
    if bounds := account["clip_bounds"]:
        lines.append((f"all but {bounds} scalar clip bounds (the hub's count)", total - bounds))
    paragraphs += [table(["", "parameters"], lines), _layers(account)]
    for part, groups in account["towers"].items():
        paragraphs.append(table([part, "parameters"], [*groups.items(), ("all", sum(groups.values()))]))
    if "PLE table" in sizes:
        paragraphs.append(_effective({account["name"]: account["effective"]}))
    if "differences" in account:
        found = account["differences"] or ["none: every name, shape and dtype is as config.json says"]
        paragraphs.append("\n".join([f"file against table: {len(account['differences'])} differences", *found]))
    return "\n\n".join(paragraphs)


def _layers(account):
    rows = []
    for layer in account["layers"]:
        donor = "its own" if layer["kv_from"] == layer["index"] else f"layer {layer['kv_from']}'s"
        kind = "sliding" if layer["kind"].startswith("sliding") else "global"
        fields = (kind, layer["head_dim"], layer["num_key_value_heads"], donor, layer["intermediate_size"])
        rows.append((*fields, layer["total"], layer["bytes"]))
    outside = sum(account["outside_layers"].values())
    rest = account["bytes"] - sum(layer["bytes"] for layer in account["layers"])
    heads = ["layers", "kind", "head_dim", "kv heads", "K and V", "MLP width", "parameters each", "bytes each"]
    return table(heads, [*_runs(rows), ("no layer", "", "", "", "", "", outside, rest)])


def _runs(rows):
    """Layers' rows with their numbers in front, a run of equal ones as one row: "0 to 3"."""
    runs = []
    for i, row in enumerate(rows):
        if runs and runs[-1][2] == row:
            runs[-1][1] = i
        else:
            runs.append([i, i, row])
    return [(f"{first}" if first == last else f"{first} to {last}", *row) for first, last, row in runs]


def _effective(accounts):
    """name -> Account.effective, side by side."""
    heads, columns = ["candidate"], []
    for name, effective in accounts.items():
        published = effective["published"]
        heads += [name, f"gives {published}" if published else "(none published)"]
        rows = effective["candidates"].values()
        columns += [[row["parameters"] for row in rows], [row["reproduces"] or "no" for row in rows]]
    says = 'Candidates for "effective parameters"; Google publishes no definition, and none is claimed here.'
    return f"{says}\n{table(heads, list(zip(effective['candidates'], *columns, strict=True)))}"


def overview_text(overview):
    """The released models side by side."""
    heads = ["model", "kind", "stored", "resident", "read per token", "computed per token", "computed/stored"]
    lines = []
    for name, row in overview["models"].items():
        sizes = (row["stored"], row["resident"], row["read"], row["computed"])
        lines.append((name, row["kind"], *sizes, _percent(row["computed"] / row["stored"])))
    note = (
        "Parameters of the text model. Resident: all but the PLE table and tensors that nothing reads. Computed:\n"
        "multiplied by one token's vectors, the output head included; attention over the context comes on top."
    )
    return f"{table(heads, lines)}\n\n{note}\n\n{_effective(overview['effective'])}"


def memory_text(account):
    """Weights by scheme, the KV cache four ways and by layer, activations, published footprints."""
    unit, scale = ("GB", 1e9) if account["weights"]["bfloat16"]["file"] >= 1e9 else ("MB", 1e6)

    def big(size):
        return f"{size / scale:,.3f}"

    rows = [(scheme, *map(big, sizes.values())) for scheme, sizes in account["weights"].items()]
    paragraphs = [
        f"{account['name']} at {account['context']:,} tokens, in {unit} of {scale:,.0f} bytes",
        table(["weights", "file", "resident", "can stay on disk"], rows),
        "Scales of quantised formats are not counted. On disk: the PLE table (one row a token), vision, audio, unused\n"
        "tensors. Mixed: MLP and experts at 2 bits, other matrices at 4; Google's own is not public.",
        table(["KV cache, bfloat16", unit], [(way, big(size)) for way, size in account["kv_cache"].items()]),
    ]
    layers = account["kv_cache_layers"]
    rows = [tuple(map(_mb, sizes)) for sizes in zip(*layers.values(), strict=True)]
    paragraphs.append(table(["MB by layer", *layers], _runs(rows)))
    sizes = dict(account["activations"])
    heads = [f"activations, chunk of {sizes.pop('chunk')}", "MB in float32"]
    paragraphs.append(table(heads, [(name, _mb(size)) for name, size in sizes.items()]))
    for kind, each in MEDIA.items():
        if account[kind]:
            heads = [each, "soft tokens, MB", "encoder, MB", "KV cache, MB", f"{kind} that fit"]
            rows = [
                (key, *(size if name == kind else _mb(size) for name, size in sizes.items()))
                for key, sizes in account[kind].items()
            ]
            paragraphs.append(table(heads, rows))
    if account["published"]:
        rows = []
        for row in account["published"]:
            difference = f"{row['difference'] / scale:+.3f}"
            sizes = (big(row["published"]), row["ours"], big(row["bytes"]), difference)
            rows.append((row["claim"], *sizes, row["remark"]))
        paragraphs.append(table(["published", unit, "our sum", unit, "differs", "remark"], rows))
    return "\n\n".join(paragraphs)


def compute_text(account):
    """Multiply-adds by part in decode and prefill, and what PLE costs against what it stores."""
    decode, prefill, tokens = account["decode"], account["prefill"], account["context"]
    with_it, without = prefill["with shortcut"], prefill["without shortcut"]
    rows = [(part, decode[part] / 1e6, with_it[part] / tokens / 1e6, without[part] / tokens / 1e6) for part in decode]
    rows.append(("all", *(sum(column) for column in list(zip(*rows, strict=True))[1:])))
    rows = [(name, *(f"{value:,.3f}" for value in values)) for name, *values in rows]
    heads = ["millions of multiply-adds per token", "decode", "prefill", "prefill without shortcut"]
    shares = [(name, row["ple"], row["of"], _percent(row["ple"] / row["of"])) for name, row in account["ple"].items()]
    paragraphs = [
        f"{account['name']}: one token after {tokens - 1:,}, and a prompt of {tokens:,}",
        table(heads, rows),
        "The shortcut: KV-sharing layers run for the prompt's last position only.",
        table(["PLE's share", "PLE", "text model", "share"], shares),
    ]
    if account["pictures"]:
        rows = []
        for budget, picture in account["pictures"].items():
            share = picture["encode"].get("attention over patches", 0) / sum(picture["encode"].values())
            encode, read = _billions(picture)
            rows.append((budget, encode, _percent(share), read))
        heads = [MEDIA["pictures"], "encode", "of it attention over patches", "read"]
        paragraphs.append(f"Billions of multiply-adds, if the picture fills the budget:\n{table(heads, rows)}")
    if account["sounds"]:
        rows = [(seconds, *_billions(sound)) for seconds, sound in account["sounds"].items()]
        heads = [MEDIA["sounds"], "encode", "read"]
        paragraphs.append(f"Billions of multiply-adds:\n{table(heads, rows)}")
    return "\n\n".join(paragraphs)


def _billions(medium):
    return [f"{sum(medium[part].values()) / 1e9:,.3f}" for part in ("encode", "read")]


def _percent(share):
    return f"{100 * share:.1f} %"


def _mb(size):
    return f"{size / 1e6:,.3f}"
