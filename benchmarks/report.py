"""report.md, made of report.json and nothing else."""

from collections.abc import Iterable
from typing import Any, NamedTuple


class Bar(NamedTuple):
    """A limit for a measured value. elsewhere: the limit on processors that do not compute bfloat16 natively, where
    it is another one."""

    what: str
    key: str
    relation: str
    limit: float
    elsewhere: float | None = None


BARS = (
    Bar("WRN-40-2 → WRN-16-2, live teacher: samples/s over the plain loop's", "wrn_live_ratio", "≥", 3.5, 1.5),
    Bar("WRN-40-2 → WRN-16-2, teacher cache: samples/s over the plain loop's", "wrn_cached_ratio", "≥", 5.5, 2.2),
    Bar("resnet56 → resnet20, live teacher: samples/s over the plain loop's", "resnet_live_ratio", "≥", 2.7, 1.9),
    Bar("resnet56 → resnet20, teacher cache: samples/s over the plain loop's", "resnet_cached_ratio", "≥", 4, 2.9),
    Bar("a whole step over its bare networks, WRN pair, live teacher", "step_over_bare", "≤", 1.10),
    Bar("data path: images/s over a DataLoader's with 2 workers", "data_path_ratio", "≥", 10),
    Bar("folder of 64-pixel JPEG images, 2 workers: images/s over ImageFolder's", "folder_64_ratio", "≥", 1),
    Bar("folder of JPEG images cut to 224 pixels, 2 workers: images/s over ImageFolder's", "folder_224_ratio", "≥", 1),
    Bar("five trials with a shared teacher cache over five single runs: time", "sweep_over_single_runs", "≤", 0.7),
    Bar("contrast, batch 1024: extra memory, GiB", "contrast_extra_gib", "≤", 0.5),
    Bar("contrast: time of a pair at batch 1024 over batch 64", "contrast_pair_ratio", "≤", 1),
    Bar("`import pckd_nb` over `import torch`: time", "import_over_torch", "≤", 1.1),
    Bar("fast teacher's accuracy beside float32, points, the worst seed", "teacher_accuracy_difference", "±", 0.1),
    Bar("long run on digits: growth of memory after the second epoch, %", "memory_growth_digits", "≤", 2),
    Bar("long run on shapes100: growth of memory after the second epoch, %", "memory_growth_shapes100", "≤", 2),
)  # fmt: skip
LINES = {
    "plain": "plain loop",
    "live": "pckd_nb, live teacher",
    "cached": "pckd_nb, teacher cache",
    "bare": "bare: networks alone",
    "bare, eager": "bare, networks not compiled",
}


def limit_of(bar: Bar, native: bool) -> float:
    """The limit on a processor that computes bfloat16 natively, or on another one."""
    return bar.limit if native or bar.elsewhere is None else bar.elsewhere


def met(bar: Bar, value: float, native: bool = True) -> bool:
    """Whether a measured value keeps within the limit for such a processor."""
    limit = limit_of(bar, native)
    return {"≥": value >= limit, "≤": value <= limit, "±": abs(value) <= limit}[bar.relation]


def native_bfloat16(parts: dict[str, Any]) -> bool:
    """Whether the steps were timed on hardware that computes bfloat16 natively.

    Where the report does not say so, because it is older or because a GPU was timed, the precision that the package
    chose tells: it takes bfloat16 only where that is native.
    """
    about = parts.get("steps", next(iter(parts.values()), {})).get("environment", {})
    if about.get("device") == "cpu" and "capabilities" in about:
        return bool(about["capabilities"]["bfloat16"])
    if "steps" not in parts:
        return True
    pairs = parts["steps"]["details"]["pairs"].values()
    return all(found["lines"]["live"]["precision"] == "bfloat16" for sizes in pairs for found in sizes.values())


def render(report: dict[str, Any]) -> str:
    parts = report["parts"]
    sections = {
        "steps": steps, "data": data, "folders": folders, "contrast": contrast, "import": imports, "sweep": sweep,
        "tsne": tsne, "accuracy": accuracy, "memory": memory,
    }  # fmt: skip
    text = [
        "# How fast pckd_nb is",
        "Made by `python -m benchmarks` from report.json. Numbers are medians of rounds in which all variants took "
        "turns; (min – max) of the rounds.",
        *no_gpu(parts),
        *processors(parts),
        "## Bars",
        bars(report),
        *(section(parts[name]) for name, section in sections.items() if name in parts),
        "## Hardware and settings",
        hardware(parts),
    ]
    return "\n\n".join(text) + "\n"


def no_gpu(parts: dict[str, Any]) -> list[str]:
    if any(part["environment"]["gpu_seen"] for part in parts.values()):
        return []
    return ["**No GPU was seen: everything here is of a CPU.**"]


def processors(parts: dict[str, Any]) -> list[str]:
    """One line for each processor: its name, cores, threads, and what it can do."""
    lines: dict[str, None] = {}
    for part in parts.values():
        about = part["environment"]
        able = about.get("capabilities")
        can = ", ".join(f"{name} {'yes' if has else 'no'}" for name, has in able.items()) if able else "not recorded"
        threads = counted(about["torch_threads"], "thread")
        lines[f"Processor: {about['cpu']}, {counted(about['cpu_cores'], 'core')}, {threads}. It can do: {can}."] = None
    return list(lines)


def counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def bars(report: dict[str, Any]) -> str:
    native = native_bfloat16(report["parts"])

    def row(bar: Bar) -> tuple[str, ...]:
        value, limit = report.get(bar.key), f"{bar.relation} {limit_of(bar, native):g}"
        if value is None:
            return (bar.what, "not measured", limit, "")
        return (bar.what, f"{value:.3g}", limit, "met" if met(bar, value, native) else "**not met**")

    which = "computes bfloat16 natively" if native else "does not compute bfloat16 natively"
    text = f"The bars of training steps are those of a processor that {which}."
    return text + "\n\n" + table(("what", "measured", "bar", ""), map(row, BARS))


def steps(part: dict[str, Any]) -> str:
    peak = part["details"]["peaks_flops"]
    text = [
        "## Training steps",
        "Peak of a large matrix product: "
        + ", ".join(f"{value / 1e9:,.0f} GFLOP/s in {name}" for name, value in peak.items())
        + ". A sample is an image with its four views. FLOPs are those of the networks, by torch's counter, a "
        "backward pass counting as two forward ones.",
    ]
    for sizes in part["details"]["pairs"].values():
        for found in sizes.values():
            text += [
                f"### {found['teacher']} → {found['student']}, batch {found['batch_size']}, {found['views']} views",
                f"pckd_nb: student {'' if found['compiled'] else 'not '}compiled, teacher in {found['teacher_form']}, "
                f"its logits off by {found['teacher_logits_error']:.2%}. {prepared(found)}{limits(found, peak)}"
                f"{paid_back(found)}",
                table(
                    ("", "samples/s", "student in", "GFLOP a sample", "share of peak"),
                    (
                        (
                            LINES[name],
                            interval(line["samples_per_second"], ".1f"),
                            line["precision"],
                            f"{line['flops_per_sample'] / 1e9:.2f}",
                            f"{line['share_of_peak']:.0%} of {line['peak']}",
                        )
                        for name, line in found["lines"].items()
                    ),
                ),
                table(
                    ("ratio of medians", "", "rounds"),
                    (
                        (name.replace("_", " "), f"{value['value']:.2f}", f"{value['min']:.2f} – {value['max']:.2f}")
                        for name, value in found["ratios"].items()
                    ),
                ),
                table(
                    ("share of a step's time", *next(iter(found["profile"].values()))),
                    (
                        (LINES[name], *(f"{share:.1%}" for share in shares.values()))
                        for name, shares in found["profile"].items()
                    ),
                ),
                *pieces(found, part["details"]),
            ]
    return "\n\n".join(text)


def prepared(found: dict[str, Any]) -> str:
    """How the teacher was made."""
    epochs = found.get("teacher_epochs")
    if epochs is None:
        return ""
    if epochs:
        return f"The teacher was trained for {counted(epochs, 'epoch')}. "
    return (
        "The teacher was not trained: it has fresh weights with small residual branches, BatchNorm statistics of "
        "training images, and class means as its last layer. "
    )


def pieces(found: dict[str, Any], details: dict[str, Any]) -> list[str]:
    """What each piece of a live step reaches of the peak of its kind."""
    if "pieces" not in found:
        return []

    def row(name: str, piece: dict[str, Any]) -> tuple[str, ...]:
        if "bytes" in piece:
            amount, peak = f"{piece['bytes'] / 1e9:.3f} GB", f"{details['bytes_per_second'] / 1e9:,.1f} GB/s"
        else:
            amount, peak = f"{piece['flops'] / 1e9:.1f} GFLOP", f"{piece['peak']}"
        return (name, f"{1e3 * piece['seconds']:.1f}", amount, f"{piece['share_of_peak']:.0%} of {peak}")

    rows = [row(name, piece) for name, piece in found["pieces"].items()]
    text = (
        "A small share of the peak says how much faster a piece could be at most. A teacher in int8 is compared with "
        "the fastest matrix product above, so it may pass 100%. The data path is compared with the fastest copy in "
        "memory."
    )
    return [table(("piece of a live step", "ms", "work per step", "share of peak"), rows), text]


def limits(found: dict[str, Any], peak: dict[str, float]) -> str:
    """What the ratios would be if all of the networks' FLOPs ran at the peak of their precision."""
    plain = found["lines"]["plain"]["samples_per_second"]["median"]
    lines = {name: found["lines"][name] for name in ("live", "cached")}
    live, cached = (peak[line["peak"]] / line["flops_per_sample"] / plain for line in lines.values())
    precision = lines["live"]["peak"]
    return f"With both networks at the {precision} peak the ratios would be {live:.2f} live and {cached:.2f} cached. "


def paid_back(found: dict[str, Any]) -> str:
    compiling = found["compiling"]
    if compiling is None:
        return ""
    text = f"Compiling took {compiling['seconds']:.0f} s and saves {1e3 * compiling['saved_per_step']:.0f} ms a step"
    if compiling["paid_back_flops"] is None:
        return f"{text}: it does not pay back."
    return f"{text}: it has paid back after {compiling['paid_back_flops']:.0e} FLOPs of the student's training."


def data(part: dict[str, Any]) -> str:
    found = part["details"]
    names = {"pckd_nb": "pckd_nb", "plain": f"PIL, torchvision and a DataLoader with {found['workers']} workers"}
    speeds = found["images_per_second"].items()
    rows = [(names[name], interval(speed, ",.0f")) for name, speed in speeds]
    return "## Data path\n\n" + table((f"batches of {found['batch_size']} × 4 views", "images/s"), rows)


def folders(part: dict[str, Any]) -> str:
    found = part["details"]
    rows = [
        (f"{side} pixels", *(interval(speed, ",.0f") for speed in by["images_per_second"].values()))
        for side, by in found["sides"].items()
    ]
    heads = f"JPEG files, {found['workers']} workers", "pckd_nb, images/s", "ImageFolder, images/s"
    return "## Folders of images\n\n" + table(heads, rows)


def contrast(part: dict[str, Any]) -> str:
    found = part["details"]
    small, large = map(str, found["batches"])
    anchors = dict(zip((small, large), found["anchors"], strict=True))
    heads = [f"ns a pair, batch {batch} ({anchors[batch]:,} anchors)" for batch in (small, large)]
    rows = [
        (name, *(interval(times[batch], ".3f") for batch in (small, large)), number(found["extra_gib"][name], ".3f"))
        for name, times in found["nanoseconds_per_pair"].items()
    ]
    memory = f"extra GiB, batch {large} ({found['memory_from']})"
    return "## Category-center contrast, forward and backward\n\n" + table(("", *heads, memory), rows)


def imports(part: dict[str, Any]) -> str:
    rows = [(name, interval(seconds, ".2f")) for name, seconds in part["details"]["seconds"].items()]
    return "## Import, in fresh interpreters\n\n" + table(("", "seconds"), rows)


def sweep(part: dict[str, Any]) -> str:
    found = part["details"]
    rows = [
        (name, " + ".join(f"{value:.1f}" for value in times), f"{sum(times):.1f}")
        for name, times in found["seconds"].items()
    ]
    betas = ", ".join(f"{beta:g}" for beta in found["beta_cc"])
    return f"## Sweep\n\nFive values of β_cc: {betas}.\n\n" + table(("", "seconds", "all"), rows)


def tsne(part: dict[str, Any]) -> str:
    found = part["details"]
    rows = [
        (
            library,
            interval(by["seconds"], ".1f"),
            interval(by["neighbours_kept"], ".3f"),
            interval(by["purity"], ".3f"),
        )
        for library, by in found["libraries"].items()
    ]
    heads = ("", "seconds", "10 nearest kept on the map", "of the same class among 10 nearest on the map")
    before = (
        f"{found['points']:,} points. Before the map {found['input_purity']:.3f} of 10 nearest are of the same class."
    )
    return f"## t-SNE\n\n{before}\n\n" + table(heads, rows)


def accuracy(part: dict[str, Any]) -> str:
    values, rows = part["values"], part["details"]["rows"]
    columns = ("seed", "fast", "plain", "teacher_fast", "teacher_float32")
    heads = ("seed", "student, fast path", "student, plain float32", "teacher, fast", "teacher, float32")
    difference = f"Fast minus plain: {values['accuracy_difference']:+.2f} points"
    if "accuracy_interval_low" in values:
        low, high = values["accuracy_interval_low"], values["accuracy_interval_high"]
        difference += f", 95 % interval {low:+.2f} to {high:+.2f} (paired t)"
    where = part["settings"].get("accuracy_data", "shapes100")
    difference += f", on {where}. Networks after so few epochs say little about well trained ones"
    shown = ((str(row["seed"]), *(f"{row[name]:.2f}" for name in columns[1:])) for row in rows)
    return f"## Accuracy, top-1 %\n\n{difference}.\n\n" + table(heads, shown)


def memory(part: dict[str, Any]) -> str:
    def span(values: dict[str, float], form: str) -> str:
        return f"{values['settled']:{form}} ({values['min']:{form}} – {values['max']:{form}})"

    rows = [
        (
            name,
            str(found["epochs"]),
            span(found["resident_mib"], ",.1f"),
            f"{part['values'][f'memory_growth_{name}']:+.2f}%",
            f"{found['peak_mib']['max']:,.1f}",
            span(found["tensors"], ","),
            span(found["files"], ","),
        )
        for name, found in part["details"].items()
    ]
    if not rows:
        return "## Memory of long runs\n\nNot seen: it needs Linux."
    teacher, student = part["settings"]["memory_networks"]
    text = (
        f"PCKD, {teacher} → {student}, each in a fresh process, checkpoints written on the way. What the process holds "
        "at the end of epoch 2 (min – max at the ends of later ones); growth is from epoch 2 to the highest of these."
    )
    heads = ("", "epochs", "resident MiB", "growth", "peak MiB (VmHWM)", "tensors", "open files")
    return f"## Memory of long runs\n\n{text}\n\n" + table(heads, rows)


def hardware(parts: dict[str, Any]) -> str:
    def row(name: str, part: dict[str, Any]) -> tuple[str, ...]:
        about = part["environment"]
        load = ", ".join(map(str, about["load_at_start"] or []))
        planned = part.get("planned_seconds")
        seconds = f"{part['seconds']:,.0f}", "" if planned is None else f"{planned:,.0f}"
        return (name, about["date"], *seconds, about["hardware"], str(about["cpu_cores"]), load)

    rows = [row(name, part) for name, part in parts.items()]
    heads = ("part", "date (UTC)", "seconds", "planned", "hardware", "CPU cores", "load at start")
    minutes = sum(part["seconds"] for part in parts.values()) / 60
    text = [table(heads, rows), f"All of these took {minutes:.1f} minutes together."]
    seen: dict[str, list[str]] = {}
    for name, part in parts.items():
        about = part["environment"]
        versions = {"python": about["python"], **about["versions"], "system": about["system"]}
        seen.setdefault(", ".join(f"{key} {value}" for key, value in versions.items()), []).append(name)
    text += [f"Versions ({', '.join(names)}): {versions}." for versions, names in seen.items()]
    text.append(
        table(
            ("part", "settings"),
            ((name, ", ".join(f"{k} {v}" for k, v in part["settings"].items())) for name, part in parts.items()),
        )
    )
    return "\n\n".join(text)


def interval(values: dict[str, float], form: str) -> str:
    return f"{values['median']:{form}} ({values['min']:{form}} – {values['max']:{form}})"


def number(value: float | None, form: str) -> str:
    return "not seen" if value is None else f"{value:{form}}"


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    heads = list(heads)
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
