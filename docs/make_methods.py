"""Write the tables of docs/baselines.md from the classes of the methods, and draw its picture.

The costs are those in benchmarks/methods.json, and the results of trials those in benchmarks/trials.json. Run it with
`python docs/make_methods.py`.
"""

import inspect
import json
import re
from pathlib import Path
from typing import Any, cast

import matplotlib.pyplot as plt
import numpy as np
from make_results import fill, rows_of
from matplotlib.axes import Axes

from pckd_nb.catalogue import PAIRS
from pckd_nb.figures.canvas import COLORS, DARK_GRAY, MORE_COLORS, style
from pckd_nb.methods import BASELINE_CLASSES, METHODS
from pckd_nb.methods.baselines.base import StagedBaseline
from pckd_nb.methods.overview import FAMILIES, MethodInfo, method_info, method_names, settings_text

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "baselines.md"
MEASURED = ROOT / "benchmarks" / "methods.json"
TRIED = ROOT / "benchmarks" / "trials.json"
PICTURE = ROOT / "docs" / "images" / "methods_cost.png"
REFERENCES = ROOT / "tests" / "reference" / "methods"
TESTS_BY_HAND = ROOT / "tests" / "test_baselines.py"
PLACES = ("logits", "features_and_relations", "feature_maps", "pckd")  # of the tables of `FAMILIES` in the page
SHOWN_PAIR = "resnet"  # of the sizes and costs in the tables
TRIALS = {  # column of the table of trials → keys of benchmarks/trials.json
    "digits": ("digits",),
    "shapes100": ("shapes100",),
    "resumes": ("resumes",),
    "two ranks": ("two ranks",),
    "three pairs": ("resnet14 → resnet8", "vgg8 → resnet8", "wrn_16_2 → ShuffleV1"),
    "ViT teacher": ("vision transformer",),
}
CIFAR_PAIRS = PAIRS[:-1]  # the last pair is for ImageNet
SOURCE_WORDS = r"\b(paper|authors|torchdistill|mdistiller|published|repository|other implementations|CRD paper)\b"

# What the class does not say in a form that this script can read. A method that is not here has only generated cells.
EQUATIONS = {
    "CRD": r"h(x_s) + h(x_t), \quad h(x) = -\frac{1}{B} \sum_i \left( \log P(x_{i0}) + \sum_k \log (1 - P(x_{ik})) "
    r"\right), \quad P(x) = \frac{x}{x + K/n}",
    "ReviewKD": r"\sum_{\mathrm{maps}} \sum_k w_k \, \mathrm{mean}\left( "
    r"(\mathrm{pool}_k(X_s) - \mathrm{pool}_k(F_t))^2 \right) / \sum_k w_k",
}
TAKES = {
    "supervised": "nothing",
    "kd": "logits",
    "pckd": "logits, features, last layer",
    "HSAKD": "logits, maps",
    "SimKD": "maps, last layer",
    "WKDL": "logits; once also the maps or logits of all training images",
}
NEEDS = {
    "kd": "",
    "pckd": "equal numbers of features for L_CA, which is otherwise left out",
    "CC": "2 images or more",
    "RKD": "3 images or more; memory for B³ values",
    "PKT": "2 images or more",
    "SP": "2 images or more",
    "CRD": "1 KB of memory per training image",
    "DIST": "2 images or more",
    "SKD": "2 images or more",
    "WKDL": "a pass over the training images before the first epoch",
    "MLKD": "2 views of every image, one with strong augmentation",
    "KDSVD": "two or more maps; the same numbers of channels in both networks",
    "FSP": "two or more maps; the same numbers of channels in both networks",
    "AB": "layers if the shapes of two maps differ",
    "OFD": "ResNet, WRN, VGG or MobileNetV2 as the teacher; a student of this package",
    "CATKD": "features that are the mean of the last map",
    "HSAKD": "networks of this package",
    "SimKD": "features that are the mean of the last map; a projector, which becomes a part of the student",
}
# methods with layers of their own, which are counted when their cost is measured
HAVE_LAYERS = {"OFD", "FT", "SSKD", "HSAKD"}


def tables() -> dict[str, str]:
    """Return the tables of the page in Markdown, each with the name that marks its place in the page."""
    infos = [method_info(name) for name in method_names()]
    measured = json.loads(MEASURED.read_text("utf-8"))
    tried = json.loads(TRIED.read_text("utf-8"))
    found = {
        place: family_table([info for info in infos if info.family == family], measured)
        for place, family in zip(PLACES, FAMILIES, strict=True)
    }
    return {
        "count": f"The package has {len(BASELINE_CLASSES)} other distillation methods besides KD and PCKD.",
        **found,
        "equations": equation_table(infos),
        "published": published_table(infos),
        "references": reference_table(infos),
        "differences": differences(infos),
        "measured": measured_text(measured),
        "trials": trial_table(infos, tried),
        "reasons": trial_reasons(infos, tried),
        "tried": tried_text(tried),
    }


def family_table(infos: list[MethodInfo], measured: dict[str, Any]) -> str:
    """Return the table of one family: what the methods compare, need and cost."""
    header = ["method", "what it compares", "takes from the teacher", "needs", "time × KD", "memory × KD", "paper"]
    lines = [header]
    costs = measured["pairs"][SHOWN_PAIR]["methods"]
    for info in infos:
        cost = costs.get(info.name, {})
        time = (
            "1"
            if info.name == "kd"
            else f"{cost['time']['value']:.1f}"
            if "time" in cost
            else "not for this pair"
            if "refused" in cost
            else ""
        )
        memory = f"{cost['memory']:.2f}" if "memory" in cost else ""
        named = f"[{info.title}]({api_page(info)})"
        named += "" if info.name.lower() == info.title.lower() else f" (`{info.name}`)"
        source = link(info.source) if info.source else "–"
        lines.append([named, info.compares, takes(info), needs(info, cost), time, memory, source])
    return rows_of(lines)


def equation_table(infos: list[MethodInfo]) -> str:
    """Return the equations and the published settings of all methods."""
    lines = [["method", "loss term", "published settings"]]
    for family in FAMILIES:
        lines += [[info.title, equation(info), info.weight] for info in infos if info.family == family]
    return rows_of(lines)


def api_page(info: MethodInfo) -> str:
    """Return the API page of a method, as `api.pages` names it."""
    if info.name in METHODS:
        return "api/methods.rst"
    return f"api/internals/{BASELINE_CLASSES[info.name].__module__.removeprefix('pckd_nb.')}.rst"


def equation(info: MethodInfo) -> str:
    """Return the equation of a method for a cell of a table. A "|" would end the cell."""
    text = EQUATIONS.get(info.name, info.equation)
    text = re.sub(r"^\\mathrm\{term\} = ", "", text.removesuffix("."))
    text = text.replace(r"\|", r"\Vert ").replace("|", r"\vert ")
    return f"${text.strip()}$" if text else "see its API page"


def takes(info: MethodInfo) -> str:
    """Return what the method takes from the teacher: the fields of an `Output` that its code reads."""
    if info.name in TAKES:
        return TAKES[info.name]
    source = inspect.getsource(BASELINE_CLASSES[info.name])
    names = {"logits": "logits", "features": "features", "maps": "maps", "centers": "last layer", "bias": "last layer"}
    fields = re.findall(rf"\b(?:teacher|x)\.({'|'.join(names)})\b", source)
    found = [names[name] for name in names if name in fields]
    return ", ".join(dict.fromkeys(found)) or info.family.lower()


def needs(info: MethodInfo, cost: dict[str, Any]) -> str:
    """Return what the method needs: layers, a training stage, rotated views, torchdistill, and what `NEEDS` says."""
    found = []
    if count := cost.get("own_parameters"):
        found.append(f"layers with {count:,} parameters")
    elif info.name in HAVE_LAYERS:
        found.append("layers")
    if issubclass(BASELINE_CLASSES.get(info.name, object), StagedBaseline):
        found.append("a training stage")
    if (views := info.settings.get("views", 1)) > 1:
        found.append(f"{views} rotated views")
    if text := NEEDS.get(info.name):
        found.append(text)
    if info.name in BASELINE_CLASSES and "torchdistill(" in inspect.getsource(BASELINE_CLASSES[info.name]):
        found.append("torchdistill")
    return "; ".join(found)


def link(source: str) -> str:
    """Return the name of a paper, with a link if it is on arXiv."""
    number = source.removeprefix("arXiv ")
    return source if number == source else f"[{number}](https://arxiv.org/abs/{number})"


def published_table(infos: list[MethodInfo]) -> str:
    """Return the settings that were published for pairs of networks, one row per pair and one column per method."""
    shown = [info for info in infos if info.published]
    lines = [["teacher → student", *(info.title for info in shown)]]
    for teacher, student in CIFAR_PAIRS:
        cells = [settings_text(info.published.get((teacher, student), {})) for info in shown]
        if any(cells):
            lines.append([cell.replace("_", r"\_") for cell in (f"{teacher} → {student}", *cells)])
    return rows_of(lines)


def reference_table(infos: list[MethodInfo]) -> str:
    """Return for every method the code that the tests compare it with."""
    lines = [["method", "compared with", "test"]]
    by_hand = re.findall(r"^def (test_\w+)", TESTS_BY_HAND.read_text("utf-8"), re.M)
    for info in infos:
        codes, tests = [], []
        for file in sorted(REFERENCES.glob("*.npz")):
            if file.stem.split("_")[0] == info.name.lower():
                codes.append(code_link(file))
                tests.append(f"`{file.stem}`")
        if not codes:
            name = info.name.lower()
            tests = [f"`{test}`" for test in by_hand if test.startswith(f"test_{name}_by_hand")]
            if tests:
                codes = ["the equation, computed in another way"]
        if codes:
            lines.append([info.title, ", ".join(dict.fromkeys(codes)), ", ".join(tests)])
    return rows_of(lines)


def code_link(file: Path) -> str:
    """Return a link to the published code that computed the numbers of a file."""
    with np.load(file, allow_pickle=False) as values:
        repository, commit, paths = (str(values[f"source_{name}"]) for name in ("repository", "commit", "file"))
    path = paths.split(",")[0]
    return f"[{repository}](https://github.com/{repository}/blob/{commit}/{path}), {paths}"


def differences(infos: list[MethodInfo]) -> str:
    """Return the sentences of the docstrings that compare a method with its paper or with other code, as a list."""
    lines = []
    for info in infos:
        cls = cast(dict[str, Any], {**METHODS, **BASELINE_CLASSES})[info.name]
        text = (inspect.getdoc(cls) or "").partition("\nParameters\n")[0]
        prose = [part for part in text.split("\n\n")[1:] if not part.startswith((".. math::", "    ", "- "))]
        sentences = [
            sentence for part in prose for sentence in re.split(r"(?<=[.])\s+(?=[A-Z])", " ".join(part.split()))
        ]
        found = [sentence for sentence in sentences if re.search(SOURCE_WORDS, sentence)]
        if found:
            lines.append(f"- **{info.title}**: {' '.join(found)}")
    return "\n".join(lines)


def measured_text(measured: dict[str, Any]) -> str:
    """Return where and how the costs were measured."""
    machine = measured["environment"]
    costs = [cost for pair in measured["pairs"].values() for cost in pair["methods"].values() if "time" in cost]
    counts = sorted({cost["time"]["repetitions"] for cost in costs})
    rounds = " or ".join(map(str, counts))
    kd_times = [pair["methods"]["kd"]["time"] for pair in measured["pairs"].values()]
    itself = " and ".join(f"{time['value']:.2f}" for time in kd_times)
    lowest, highest = min(time["min"] for time in kd_times), max(time["max"] for time in kd_times)
    channels, height, width = measured["image"]
    threads = machine["torch_threads"]
    return (
        f"Measured on {machine['cpu']}, {threads} thread{'s' * (threads > 1)}, on {machine['date'][:10]}: batches of "
        f"{measured['batch_size']} images of {channels}×{height}×{width}, {measured['classes']} classes, "
        f"{measured['train_images']} training images, {rounds} rounds. Other programs ran on the "
        "machine. So each step was timed right after a step of KD, and only the ratio of the two is shown. "
        f"KD timed in the same way gives {itself} instead of 1, and {lowest:.2f} to {highest:.2f} in single rounds. "
        "So differences of this size mean nothing."
    )


def trial_table(infos: list[MethodInfo], tried: dict[str, Any]) -> str:
    """Return the results of `benchmarks.trials`: one row per method, one column per entry of `TRIALS`."""
    lines = [["method", *TRIALS]]
    for info in infos:
        results = tried["methods"].get(info.name, {"trials": {}})["trials"]
        cells = [[results.get(key, {}) for key in keys] for keys in TRIALS.values()]
        lines.append([info.title, *map(trial_cell, cells)])
    return rows_of(lines)


def trial_cell(results: list[dict[str, str]]) -> str:
    """Return a cell of the table of trials, for the results of one or more trials."""
    passed = [result for result in results if result.get("status") == "passed"]
    if len(passed) == len(results):
        remarks = dict.fromkeys(result["found"] for result in passed if "found" in result)
        return " ".join(["✓", *(f"({remark.replace('_', chr(92) + '_')})" for remark in remarks)])
    if not all(results):
        return "not tried"
    words = dict.fromkeys(result["status"] for result in results if result not in passed)
    text = f"✓ {len(passed)} of {len(results)}, others " if passed else ""
    return text + " and ".join(words)


def trial_reasons(infos: list[MethodInfo], tried: dict[str, Any]) -> str:
    """Return the reason of every trial that did not pass, as a list."""
    lines = []
    for info in infos:
        results = tried["methods"].get(info.name, {"trials": {}})["trials"]
        reasons = {trial: result["found"] for trial, result in results.items() if result["status"] != "passed"}
        lines += [f"- **{info.title}**, {trial}: `{reason}`" for trial, reason in reasons.items()]
    return "\n".join(lines) or "All methods passed all trials."


def tried_text(tried: dict[str, Any]) -> str:
    """Return where and when the methods were tried."""
    machine, dates = tried["environment"], sorted(method["date"][:10] for method in tried["methods"].values())
    when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    versions = machine["versions"]
    return f"Tried on {machine['cpu']} with torch {versions['torch']}, {when}, with `python -m benchmarks trials`."


def draw(measured: dict[str, Any], file: Path) -> None:
    """Draw time and memory of all methods relative to KD.

    Parameters
    ----------
    measured : dict
        The content of benchmarks/methods.json.
    file : Path
        The picture to write.
    """
    pairs = list(measured["pairs"].values())
    order = {info.name: FAMILIES.index(info.family) for info in map(method_info, method_names())}
    arms = [arm for arm in pairs[0]["methods"] if arm != "kd"]
    arms.sort(key=lambda arm: order[arm.partition("-")[0]])
    with style():
        figure, axes = plt.subplots(1, 2, figsize=(5.6, 0.235 * len(arms) + 1.5), sharey=True, layout="constrained")
        for ax, key, label in zip(axes, ("time", "memory"), ("time of a step", "memory of a step"), strict=True):
            panel(ax, pairs, arms, key)
            ax.set_title(label)
            ax.set_xlabel("× KD")
        families = [order[arm.partition("-")[0]] for arm in arms]
        axes[0].set_yticks(range(len(arms)), [arm_label(arm) for arm in arms])
        axes[0].set_ylim(len(arms) - 0.4, -0.6)
        for border in [row - 0.5 for row in range(1, len(arms)) if families[row] != families[row - 1]]:
            for ax in axes:
                ax.axhline(border, color=DARK_GRAY, linewidth=0.6)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=2)
        figure.savefig(file, dpi=800 / 5.6, metadata={"Title": file.stem, "Software": None})
        plt.close(figure)


def panel(ax: Axes, pairs: list[dict[str, Any]], arms: list[str], key: str) -> None:
    """Draw one panel: one row per method, one marker per pair of networks."""
    looks = ((COLORS["KD"], "o", -0.17), (MORE_COLORS[1], "s", 0.17))
    ax.axvline(1, color=DARK_GRAY, linewidth=1)
    for pair, (color, marker, shift) in zip(pairs, looks, strict=True):
        label = f"{pair['teacher']} → {pair['student']}"
        for row, arm in enumerate(arms):
            cost = pair["methods"][arm]
            if "refused" in cost:
                ax.text(
                    1.05,
                    row + shift,
                    "not for this pair",
                    color=color,
                    fontsize=6.5,
                    va="center",
                    backgroundcolor="white",
                )
                continue
            value = cost["time"]["value"] if key == "time" else cost["memory"]
            if key == "time":
                ax.hlines(row + shift, cost["time"]["min"], cost["time"]["max"], color=color, linewidth=1)
            ax.plot(value, row + shift, marker, color=color, markersize=4.5, label=label if row == 0 else None)
    ax.set_xscale("log")
    highest = ax.get_xlim()[1]
    ticks = [tick for tick in (0.5, 1, 2, 4, 8) if ax.get_xlim()[0] <= tick <= highest]
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
    ax.tick_params(axis="y", labelsize=8)


def arm_label(arm: str) -> str:
    """Return the name of an arm for the picture, such as "PCKD, views=1"."""
    name, _, settings = arm.partition("-")
    title = method_info(name).title
    return f"{title}, {settings}" if settings else title


def main() -> None:
    """Write the tables of docs/baselines.md, and draw its picture."""
    PAGE.write_text(fill(PAGE.read_text("utf-8"), tables()), "utf-8")
    draw(json.loads(MEASURED.read_text("utf-8")), PICTURE)


if __name__ == "__main__":
    main()
