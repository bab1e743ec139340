"""Write report.md from the measurements in report.json."""

from collections.abc import Iterable
from typing import Any, NamedTuple


class Target(NamedTuple):
    """A limit for a measured value.

    Parameters
    ----------
    description : str
    key : str
        Name of the value in report.json.
    relation : str
        "≥", "≤" or "±".
    limit : float
    limit_without_bfloat16 : float, optional
        Another limit for processors that do not compute bfloat16 natively.
    """

    description: str
    key: str
    relation: str
    limit: float
    limit_without_bfloat16: float | None = None


TARGETS = (
    Target("WRN-40-2 → WRN-16-2, live teacher: speed relative to the plain loop", "wrn_live_ratio", "≥", 3.5, 1.5),
    Target("WRN-40-2 → WRN-16-2, teacher cache: speed relative to the plain loop", "wrn_cached_ratio", "≥", 5.5, 2.2),
    Target("resnet56 → resnet20, live teacher: speed relative to the plain loop", "resnet_live_ratio", "≥", 2.7, 1.9),
    Target("resnet56 → resnet20, teacher cache: speed relative to the plain loop", "resnet_cached_ratio", "≥", 4, 2.9),
    Target("WRN-40-2 → WRN-16-2, live teacher: time relative to the networks alone", "step_over_bare", "≤", 1.10),
    Target("data loading: images/s relative to a DataLoader with 2 workers", "data_path_ratio", "≥", 10),
    Target("folder of 64-pixel JPEG images, 2 workers: images/s relative to ImageFolder", "folder_64_ratio", "≥", 1),
    Target("folder of JPEG images cropped to 224 pixels: images/s relative to ImageFolder", "folder_224_ratio", "≥", 1),
    Target("five runs with one teacher cache: time relative to five separate runs", "sweep_over_single_runs", "≤", 0.7),
    Target("contrast, batch 1024: extra memory, GiB", "contrast_extra_gib", "≤", 0.5),
    Target("contrast: time per pair at batch 1024 relative to batch 64", "contrast_pair_ratio", "≤", 1),
    Target("`import pckd_nb`: time relative to `import torch`", "import_over_torch", "≤", 1.1),
    Target("teacher top-1: format of fast training minus float32, points, worst seed",
           "teacher_accuracy_difference", "±", 0.1),
    Target("long run on digits: memory growth after the second epoch, %", "memory_growth_digits", "≤", 2),
    Target("long run on shapes100: memory growth after the second epoch, %", "memory_growth_shapes100", "≤", 2),
)  # fmt: skip
RATIOS = {
    "live_over_plain": "speed with a live teacher, relative to the plain loop",
    "cached_over_plain": "speed with the teacher cache, relative to the plain loop",
    "step_over_bare": "time with a live teacher, relative to the networks alone",
    "step_over_eager_bare": "time with a live teacher, relative to the networks alone, not compiled",
}
LINES = {
    "plain": "plain loop",
    "live": "pckd_nb, live teacher",
    "cached": "pckd_nb, teacher cache",
    "bare": "networks alone",
    "bare, eager": "networks alone, not compiled",
}


def limit_of(target: Target, native: bool) -> float:
    """Return the limit of a target, for a processor with or without native bfloat16."""
    return target.limit if native or target.limit_without_bfloat16 is None else target.limit_without_bfloat16


def is_met(target: Target, value: float, native: bool = True) -> bool:
    """Return whether a measured value meets a target, on a processor with or without native bfloat16."""
    limit = limit_of(target, native)
    return {"≥": value >= limit, "≤": value <= limit, "±": abs(value) <= limit}[target.relation]


def native_bfloat16(parts: dict[str, Any]) -> bool:
    """Return whether the training steps were timed on hardware with native bfloat16.

    Older reports and reports of a GPU do not record this. There, the precision of the training shows it: the package
    chooses bfloat16 only where it is native.
    """
    environment = parts.get("steps", next(iter(parts.values()), {})).get("environment", {})
    if environment.get("device") == "cpu" and "capabilities" in environment:
        return bool(environment["capabilities"]["bfloat16"])
    if "steps" not in parts:
        return True
    pairs = parts["steps"]["details"]["pairs"].values()
    return all(found["lines"]["live"]["precision"] == "bfloat16" for sizes in pairs for found in sizes.values())


def render(report: dict[str, Any]) -> str:
    """Return the text of report.md.

    Parameters
    ----------
    report : dict
        Content of report.json.

    Returns
    -------
    str
        Markdown.
    """
    parts = report["parts"]
    sections = {
        "steps": steps, "data": data, "folders": folders, "contrast": contrast, "import": imports, "sweep": sweep,
        "tsne": tsne, "accuracy": accuracy, "memory": memory,
    }  # fmt: skip
    text = [
        "# How fast pckd_nb is",
        "This report is made by `python -m benchmarks` from report.json. Most measurements were repeated in several "
        "rounds. In each round, all variants were timed one after the other. Numbers are medians over the rounds, with "
        "(min – max).",
        "- **plain loop**: PCKD as research code is often written, in float32 (`benchmarks/reference.py`)\n"
        "- **live teacher**: training with pckd_nb, where the teacher runs in every step\n"
        "- **teacher cache**: training with pckd_nb, where the features of the teacher are read from disk\n"
        "- **networks alone**: only the forward and backward passes of the networks of pckd_nb, without data, losses "
        "and optimizer\n"
        "- **fast training**: training with pckd_nb in the precision that it chooses for the machine. Plain training "
        "computes in float32",
        *no_gpu(parts),
        *processors(parts),
        "## Targets",
        targets(report),
        *(section(parts[name]) for name, section in sections.items() if name in parts),
        "## Hardware and settings",
        hardware(parts),
    ]
    return "\n\n".join(text) + "\n"


def no_gpu(parts: dict[str, Any]) -> list[str]:
    """Return a note, if all parts were measured on a CPU."""
    if any(part["environment"]["gpu_seen"] for part in parts.values()):
        return []
    return ["**No GPU was found: everything was measured on a CPU.**"]


def processors(parts: dict[str, Any]) -> list[str]:
    """Return one line per processor: its name, cores, threads, and what it supports."""
    lines: dict[str, None] = {}
    for part in parts.values():
        environment = part["environment"]
        capabilities = environment.get("capabilities")
        supported = "not recorded"
        if capabilities:
            supported = ", ".join(f"{name} {'yes' if has else 'no'}" for name, has in capabilities.items())
        size = f"{counted(environment['cpu_cores'], 'core')}, {counted(environment['torch_threads'], 'thread')}"
        lines[f"Processor: {environment['cpu']}, {size}. It supports: {supported}."] = None
    return list(lines)


def counted(number: int, noun: str) -> str:
    """Return a number and a noun, such as "2 cores"."""
    return f"{number} {noun}{'s' * (number != 1)}"


def targets(report: dict[str, Any]) -> str:
    """Return the table of measured values and targets."""
    native = native_bfloat16(report["parts"])

    def row(target: Target) -> tuple[str, ...]:
        value, limit = report.get(target.key), f"{target.relation} {limit_of(target, native):g}"
        if value is None:
            return (target.description, "not measured", limit, "")
        return (target.description, f"{value:.3g}", limit, "met" if is_met(target, value, native) else "**not met**")

    processor = "computes bfloat16 natively" if native else "does not compute bfloat16 natively"
    text = f"The targets for training steps are those of a processor that {processor}."
    return text + "\n\n" + table(("value", "measured", "target", ""), map(row, TARGETS))


def steps(part: dict[str, Any]) -> str:
    """Return the section about training steps."""
    peak = part["details"]["peaks_flops"]
    text = [
        "## Training steps",
        "The peak speed is that of a large matrix product: "
        + ", ".join(f"{value / 1e9:,.0f} GFLOP/s in {name}" for name, value in peak.items())
        + ". A sample is an image with its four views. FLOPs are the operations of the networks, as PyTorch counts "
        "them. A backward pass counts as two forward passes. The share of peak is the speed divided by the peak "
        "speed.",
    ]
    for sizes in part["details"]["pairs"].values():
        for found in sizes.values():
            text += [
                f"### {found['teacher']} → {found['student']}, batch {found['batch_size']}, {found['views']} views",
                f"In pckd_nb, the student is {'' if found['compiled'] else 'not '}compiled, and the teacher runs in "
                f"{found['teacher_form']}. Its logits have a relative error of {found['teacher_logits_error']:.2%}. "
                f"{teacher_origin(found)}{upper_limits(found, peak)}{compile_cost(found)}{same_lines(found)}",
                table(
                    ("", "samples/s", "student in", "GFLOP per sample", "share of peak"),
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
                    ("ratio of medians", "", "min – max"),
                    (
                        (RATIOS[name], f"{value['value']:.2f}", f"{value['min']:.2f} – {value['max']:.2f}")
                        for name, value in found["ratios"].items()
                    ),
                ),
                table(
                    ("share of the time of a step", *next(iter(found["profile"].values()))),
                    (
                        (LINES[name], *(f"{share:.1%}" for share in shares.values()))
                        for name, shares in found["profile"].items()
                    ),
                ),
                *pieces(found, part["details"]),
            ]
    return "\n\n".join(text)


def teacher_origin(found: dict[str, Any]) -> str:
    """Return a sentence about how the teacher was made."""
    epochs = found.get("teacher_epochs")
    if epochs is None:
        return ""
    if epochs:
        return f"The teacher was trained for {counted(epochs, 'epoch')}. "
    return (
        "The teacher was not trained for this measurement. Its weights are random, but its BatchNorm statistics and "
        "its last layer fit the training images. "
    )


def pieces(found: dict[str, Any], details: dict[str, Any]) -> list[str]:
    """Return a table of the pieces of a step with a live teacher, relative to the peak speed, and a note."""
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
        "A piece with a small share of peak could be made faster, at most until it reaches 100%. A teacher in int8 is "
        "compared with the fastest matrix product above, so its share can be more than 100%. Data loading is compared "
        "with the speed at which memory is copied."
    )
    return [table(("piece of a step with a live teacher", "ms", "work per step", "share of peak"), rows), text]


def upper_limits(found: dict[str, Any], peak: dict[str, float]) -> str:
    """Return a sentence about the speed if both networks ran at the peak speed."""
    plain = found["lines"]["plain"]["samples_per_second"]["median"]
    lines = {name: found["lines"][name] for name in ("live", "cached")}
    live, cached = (peak[line["peak"]] / line["flops_per_sample"] / plain for line in lines.values())
    precision = lines["live"]["peak"]
    faster = "A teacher in int8 can be faster than that. " if "int8" in found["teacher_form"] else ""
    return (
        f"If both networks ran at the peak speed of {precision}, pckd_nb with a live teacher would be {live:.2f} times "
        f"as fast as the plain loop, and with the teacher cache {cached:.2f} times as fast. {faster}"
    )


def compile_cost(found: dict[str, Any]) -> str:
    """Return a sentence about the time that compiling takes and saves."""
    compiling = found["compiling"]
    if compiling is None:
        return ""
    text = f"Compiling took {compiling['seconds']:.0f} s and saves {1e3 * compiling['saved_per_step']:.0f} ms per step"
    if compiling["paid_back_flops"] is None:
        return f"{text}, so it does not pay off."
    return f"{text}. It pays off after {compiling['paid_back_flops']:.0e} FLOPs of the student's training."


def same_lines(found: dict[str, Any]) -> str:
    """Return a sentence about the lines of the networks alone, if both of them are not compiled."""
    if found["compiled"]:
        return ""
    same = f'"{LINES["bare"]}" and "{LINES["bare, eager"]}"'
    return f"Because the student is not compiled, {same} time the same computation."


def data(part: dict[str, Any]) -> str:
    """Return the section about data loading."""
    found = part["details"]
    names = {"pckd_nb": "pckd_nb", "plain": f"PIL, torchvision and a DataLoader with {found['workers']} workers"}
    speeds = found["images_per_second"].items()
    rows = [(names[name], interval(speed, ",.0f")) for name, speed in speeds]
    return "## Data loading\n\n" + table((f"batches of {found['batch_size']} × 4 views", "images/s"), rows)


def folders(part: dict[str, Any]) -> str:
    """Return the section about folders of JPEG files."""
    found = part["details"]
    rows = [
        (f"{side} pixels", *(interval(speed, ",.0f") for speed in by["images_per_second"].values()))
        for side, by in found["sides"].items()
    ]
    heads = f"JPEG files, {found['workers']} workers", "pckd_nb, images/s", "ImageFolder, images/s"
    return "## Folders of images\n\n" + table(heads, rows)


def contrast(part: dict[str, Any]) -> str:
    """Return the section about the category center contrast."""
    found = part["details"]
    small, large = map(str, found["batches"])
    anchors = dict(zip((small, large), found["anchors"], strict=True))
    heads = [f"ns per pair, batch {batch} ({anchors[batch]:,} anchors)" for batch in (small, large)]
    rows = [
        (name, *(interval(times[batch], ".3f") for batch in (small, large)), number(found["extra_gib"][name], ".3f"))
        for name, times in found["nanoseconds_per_pair"].items()
    ]
    source = found["memory_from"]
    reported = "by Linux (VmHWM)" if source == "VmHWM" else f"by {source}"
    text = (
        "Anchors are the score vectors of student and teacher: two per row. The loss compares all pairs of anchors. "
        '"plain" is the loss written as in its equation. '
        "Extra memory is the largest memory use during the computation minus the use before it, as reported "
        f"{reported}."
    )
    heads = ["", *heads, f"extra GiB, batch {large}"]
    return f"## Category center contrast, forward and backward\n\n{text}\n\n{table(heads, rows)}"


def imports(part: dict[str, Any]) -> str:
    """Return the section about the time of imports."""
    rows = [(name, interval(seconds, ".2f")) for name, seconds in part["details"]["seconds"].items()]
    text = "`import pckd_nb` does not load torch. torch is loaded when pckd_nb is first used."
    return f"## Import, each in a new Python process\n\n{text}\n\n" + table(("", "seconds"), rows)


def sweep(part: dict[str, Any]) -> str:
    """Return the section about a sweep with a shared teacher cache."""
    found = part["details"]
    names = {
        "a process each, live teacher": "five processes, each with a live teacher",
        "one process, cache": "one process with a teacher cache",
    }
    rows = [
        (names[name], " + ".join(f"{value:.1f}" for value in times), f"{sum(times):.1f}")
        for name, times in found["seconds"].items()
    ]
    betas = ", ".join(f"{beta:g}" for beta in found["beta_cc"])
    return f"## Sweep\n\nFive values of β_cc: {betas}.\n\n" + table(("", "seconds", "sum"), rows)


def tsne(part: dict[str, Any]) -> str:
    """Return the section about t-SNE."""
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
    heads = ("", "seconds", "share of the 10 nearest neighbours kept", "share of neighbours with the same class")
    text = (
        f"A map of {found['points']:,} points was made with each library. The table is about the 10 nearest neighbours "
        f"of each point. Before the mapping, a share of {found['input_purity']:.3f} of these "
        "neighbours has the same class as the point."
    )
    return f"## t-SNE\n\n{text}\n\n" + table(heads, rows)


def accuracy(part: dict[str, Any]) -> str:
    """Return the section about the accuracy of fast and plain training."""
    values, rows = part["values"], part["details"]["rows"]
    columns = ("seed", "fast", "plain", "teacher_fast", "teacher_float32")
    heads = ("seed", "student, fast", "student, plain float32", "teacher, format of fast training", "teacher, float32")
    difference = (
        f"Top-1 of the student, fast training minus plain training: {values['accuracy_difference']:+.2f} points"
    )
    if "accuracy_interval_low" in values:
        low, high = values["accuracy_interval_low"], values["accuracy_interval_high"]
        difference += f", 95 % interval {low:+.2f} to {high:+.2f} (paired t)"
    where = part["settings"].get("accuracy_data", "shapes100")
    difference += (
        f", on {where}. The networks are trained for few epochs only, so this says little about longer trainings"
    )
    shown = ((str(row["seed"]), *(f"{row[name]:.2f}" for name in columns[1:])) for row in rows)
    return f"## Accuracy, top-1 %\n\n{difference}.\n\n" + table(heads, shown)


def memory(part: dict[str, Any]) -> str:
    """Return the section about the memory of long runs."""

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
        return "## Memory of long runs\n\nNot measured: it needs Linux."
    teacher, student = part["settings"]["memory_networks"]
    text = (
        f"PCKD, {teacher} → {student}, each in a new process that also writes checkpoints. The table shows what the "
        "process uses at the end of epoch 2, with (min – max) over the ends of later epochs. Growth is the change from "
        "epoch 2 to the largest later value. Resident memory is what the process has in RAM."
    )
    heads = ("", "epochs", "resident MiB", "growth", "peak MiB", "tensors", "open files")
    return f"## Memory of long runs\n\n{text}\n\n" + table(heads, rows)


def hardware(parts: dict[str, Any]) -> str:
    """Return the section about hardware, versions and settings."""

    def row(name: str, part: dict[str, Any]) -> tuple[str, ...]:
        environment = part["environment"]
        load = ", ".join(map(str, environment["load_at_start"] or []))
        planned = part.get("planned_seconds")
        seconds = f"{part['seconds']:,.0f}", "" if planned is None else f"{planned:,.0f}"
        return (name, environment["date"], *seconds, environment["hardware"], str(environment["cpu_cores"]), load)

    rows = [row(name, part) for name, part in parts.items()]
    heads = ("part", "date (UTC)", "seconds", "planned seconds", "hardware", "CPU cores", "load average at start")
    minutes = sum(part["seconds"] for part in parts.values()) / 60
    text = [table(heads, rows), f"All parts together took {minutes:.1f} minutes."]
    parts_by_versions: dict[str, list[str]] = {}
    for name, part in parts.items():
        environment = part["environment"]
        versions = {"python": environment["python"], **environment["versions"], "system": environment["system"]}
        parts_by_versions.setdefault(", ".join(f"{key} {value}" for key, value in versions.items()), []).append(name)
    text += [f"Versions ({', '.join(names)}): {versions}." for versions, names in parts_by_versions.items()]
    text.append(
        table(
            ("part", "settings"),
            ((name, ", ".join(f"{k} {v}" for k, v in part["settings"].items())) for name, part in parts.items()),
        )
    )
    return "\n\n".join(text)


def interval(values: dict[str, float], form: str) -> str:
    """Return median, min and max as text. `form` is a format specification, such as ".1f"."""
    return f"{values['median']:{form}} ({values['min']:{form}} – {values['max']:{form}})"


def number(value: float | None, form: str) -> str:
    """Return a number as text, or "not measured"."""
    return "not measured" if value is None else f"{value:{form}}"


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table in Markdown."""
    heads = list(heads)
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
