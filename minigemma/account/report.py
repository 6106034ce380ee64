"""The accounts as text: each function takes what accounting.py gives as a dict and returns what the command prints."""

from collections import Counter


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
    heads = ["model", "kind", "stored", "resident", "read a token", "computed a token", "computed/stored"]
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
    heads = ["millions of multiply-adds a token", "decode", "prefill", "prefill without shortcut"]
    shares = [(name, row["ple"], row["of"], _percent(row["ple"] / row["of"])) for name, row in account["ple"].items()]
    return "\n\n".join([
        f"{account['name']}: one token after {tokens - 1:,}, and a prompt of {tokens:,}",
        table(heads, rows),
        "The shortcut: KV-sharing layers run for the prompt's last position only.",
        table(["PLE's share", "PLE", "text model", "share"], shares),
    ])  # fmt: skip


def diff_text(comparison, everything=False):
    """A diff.Comparison: the taps in the order of execution (runs of OK in one line), then the finding."""
    if not comparison.rows:
        return "\n".join([*comparison.notes, comparison.sentence])
    rows, calm = [], []

    def flush():
        if len(calm) > 2:
            worst = max(row.own.error for row in calm)
            name = f"{calm[0].name} to {calm[-1].name}"
            rows.append((name, f"{len(calm)} taps", f"at most {worst:.1e}", "", "", "", "", "OK"))
        else:
            rows.extend(map(_diff_row, calm))
        calm.clear()

    for row in comparison.rows:
        if row.verdict == "MISSING" and not everything:
            continue
        if row.verdict == "OK" and not everything:
            calm.append(row)
            continue
        flush()
        rows.append(_diff_row(row))
    flush()
    missing = sum(row.verdict == "MISSING" for row in comparison.rows)
    heads = ["tap", "shape", "own error", "allowed", "error", "cosine", "ratio", "verdict"]
    counts = Counter(row.verdict for row in comparison.rows)
    summary = ", ".join(f"{counts[name]} {name}" for name in ("OK", "DRIFT", "BROKEN", "SHAPE") if counts[name])
    notes = [*comparison.notes, f"{missing} taps were not captured"] if missing else comparison.notes
    lines = [table(heads, rows), f"{summary}; precision {comparison.precision}", *notes, comparison.sentence]
    return "\n".join([*lines, *([comparison.hint] if comparison.hint else [])])


def _diff_row(row):
    if row.own is None:
        return row.name, "" if row.shape is None else str(list(row.shape)), "", "", "", "", "", row.verdict
    away = (f"{row.away.error:.1e}", f"{row.away.cosine:.6f}", f"{row.away.ratio:.4g}") if row.away else ("",) * 3
    return row.name, str(list(row.shape)), f"{row.own.error:.1e}", f"{row.allowed:.1e}", *away, row.verdict


def diagnosis_text(diagnosis):
    """A diagnosis.Diagnosis: the verdict, the faults with evidence and remedy, what came near, what to try next."""
    lines = [f"{diagnosis.verdict}: {diagnosis.sentence}"]
    if diagnosis.first_broken and diagnosis.comparison:
        lines.append(diagnosis.comparison.sentence)
    if diagnosis.comparison and diagnosis.comparison.hint:
        lines.append(f"what it looks like: {diagnosis.comparison.hint}")
    for fault in diagnosis.faults:
        lines += ["", f"{fault.id}  {fault.title}", f"evidence  {fault.evidence}", f"remedy    {fault.remedy}"]
    if diagnosis.rivals:
        near = [(f"{fault.id}  {fault.title}", _percent(fault.explains)) for fault in diagnosis.rivals]
        lines += ["", table(["runners-up", "explains"], near)]
    lines += ["", diagnosis.next_probe] if diagnosis.next_probe else []
    return "\n".join([*lines, *(["", *diagnosis.notes] if diagnosis.notes else [])])


def faults_text(faults, probes):
    """The catalogue, an entry a paragraph."""
    paragraphs = []
    for fault in faults:
        lines = [f"{fault.id}  {fault.title}", f"    shows    {fault.symptom}", f"    remedy   {fault.remedy}"]
        if fault.first:
            lines.append(f"    first    {fault.first}")
        lines.append(f"    probe    {probes[fault.probe]}")
        if fault.benign:
            lines.append(f"    harmless {fault.benign}")
        paragraphs.append("\n".join([*lines, f"    seen     {fault.seen}"]))
    return "\n\n".join(paragraphs)


def table(heads, rows):
    """Columns as wide as their widest cell; numbers to the right, text to the left."""
    cells = [heads, *[[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    numbers = [all(cell[:1] in "+-0123456789" for cell in column[1:]) for column in zip(*cells, strict=True)]
    aligns = [str.ljust, *(str.rjust if number else str.ljust for number in numbers[1:])]
    lines = []
    for row in cells:
        line = "  ".join(align(cell, width) for align, cell, width in zip(aligns, row, widths, strict=True))
        lines.append(line.rstrip())
    return "\n".join(lines)


def _percent(share):
    return f"{100 * share:.1f} %"


def _mb(size):
    return f"{size / 1e6:,.3f}"
