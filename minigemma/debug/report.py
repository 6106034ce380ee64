"""Comparisons, diagnoses and the catalogue as text."""

from collections import Counter

from ..files import table


def _not_understood(unread, comparison):
    """The line that comes before any verdict if arrays of the file were not understood: a list of one, or of none."""
    judged = sum(row.verdict not in ("MISSING", "ELSEWHERE") for row in comparison.rows) if comparison else 0
    what = f"{len(unread)} of {len(unread) + judged} arrays {'was' if len(unread) == 1 else 'were'} not understood"
    return [f"{what}, {judged} {'is' if judged == 1 else 'are'} judged"] if unread else []


def diff_text(comparison, everything=False):
    """A diff.Comparison: the taps in the order of execution (runs of OK in one line), then the finding."""
    head = _not_understood(comparison.unread, comparison)
    if not comparison.rows:
        return "\n".join([*head, *comparison.notes, comparison.sentence])
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
    verdicts = ("OK", "DRIFT", "BROKEN", "POISONED", "ELSEWHERE", "SHAPE")
    summary = ", ".join(f"{counts[name]} {name}" for name in verdicts if counts[name])
    notes = [*comparison.notes, f"{missing} taps were not captured"] if missing else comparison.notes
    lines = [*head, table(heads, rows), f"{summary}; precision {comparison.precision}", *notes, comparison.sentence]
    return "\n".join([*lines, *([comparison.hint] if comparison.hint else [])])


def _diff_row(row):
    if row.own is None:
        return row.name, "" if row.shape is None else str(list(row.shape)), "", "", "", "", "", row.verdict
    away = (f"{row.away.error:.1e}", f"{row.away.cosine:.6f}", f"{row.away.ratio:.4g}") if row.away else ("",) * 3
    return row.name, str(list(row.shape)), f"{row.own.error:.1e}", f"{row.allowed:.1e}", *away, row.verdict


def diagnosis_text(diagnosis):
    """A diagnosis.Diagnosis: the verdict, the faults with evidence and remedy, what came near, what to try next."""
    lines = _not_understood(diagnosis.unread, diagnosis.comparison)
    lines.append(f"{diagnosis.verdict}: {diagnosis.sentence}")
    if diagnosis.first_broken and diagnosis.comparison and diagnosis.comparison.sentence not in diagnosis.sentence:
        lines.append(diagnosis.comparison.sentence)
    if diagnosis.comparison and diagnosis.comparison.hint:
        lines.append(f"what it looks like: {diagnosis.comparison.hint}")
    for fault in diagnosis.faults:
        lines += ["", f"{fault.id}  {fault.title}", f"evidence  {fault.evidence}", f"remedy    {fault.remedy}"]
    for mistake in diagnosis.prompt:
        lines += ["", f"{mistake.id}  {mistake.title}", f"id {mistake.position:<6} {mistake.sentence}"]
        lines += [f"remedy    {mistake.remedy}"]
    if diagnosis.rivals:
        near = [(f"{fault.id}  {fault.title}", f"{100 * fault.explains:.1f} %") for fault in diagnosis.rivals]
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
