"""The command line refuses hundreds of invalid values with one line on stderr and status 2, and writes no file."""

from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from pckd_nb import catalogue, cli, data, demo, experiments, methods, models, preview, recipes, training
from pckd_nb.cli.console import option_name
from pckd_nb.leaderboard import list_pairs

from .properties import examples, fail_after
from .test_cli import SMALL, teacher  # noqa: F401

COMMANDS = typer.main.get_command(cli.app).commands

# What users type, paste, or pass in a wrong variable.
WEIRD = [
    "", " ", "nan", "-inf", "1e999", "0x10", "-1", "--", "é", "two\nlines", "x" * 5000, "\x1b[31mred", "💥", "None",
    "notes.txt", "mine", "empty", "../..", "/", ".", "/dev/null", "a,b", "a=b", "a-b=c", "\u2028", "%s{}", "\x00",
    "<b>",
]  # fmt: skip
text = st.sampled_from(WEIRD) | st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
NOT_A_NUMBER = [
    " ", "x", "nan", "0x10", "1e999", "--", "é", "1\n2", "1 2", "+-1", "None", "1,5", "x" * 5000, "-1", "-inf", "💥",
    "\x00",
]  # fmt: skip
bad_whole = st.sampled_from([*NOT_A_NUMBER, "", "1.5", "1e3", "9" * 5000, "-" + "9" * 30, "½", "-9223372036854775809"])
bad_float = st.sampled_from([*NOT_A_NUMBER, "", "inf", "9" * 400, "-0.1", "-1e-300"])


def unknown(names, strategy=text):
    """Generate text that is none of these names, ignoring case and surrounding white space."""
    known = {name.lower() for name in names}
    return strategy.filter(lambda value: value.strip().lower() not in known)


def bad_int(lowest: int, strategy=bad_whole):
    """Generate text that is not a whole number from `lowest` on."""
    return strategy | st.integers(-(2**70), lowest - 1).map(str)


def is_valid_arm(value: str) -> bool:
    try:
        return bool(experiments.parse_arm(value).build(recipes.get_recipe("classroom")))
    except ValueError:
        return False


bad_network = unknown(models.MODELS)
bad_recipe = unknown(recipes.RECIPES)
bad_arm = text.filter(lambda value: not is_valid_arm(value))
bad_run = text  # the folder of the test has no runs
bad_data = unknown(data.DATASETS, text.filter(lambda value: not value.startswith("folder:")))
bad_data |= text.map("folder:{}".format)
bad_positive = bad_float | st.sampled_from(["0", "-0.0", "-3"])
bad_path = st.sampled_from(["notes.txt", "notes.txt/x", "/dev/null", "/dev/null/x", "\x00", "x" * 5000])
bad_normalisation = text.filter(lambda value: value not in catalogue.NORMALISATIONS and "/" not in value)
bad_normalisation |= st.sampled_from(["0.5/0", "0.5/-1", "nan/1", "1/inf", "0.5,0.5/1", "1/2/3", "/", "a/b"])

PHOTOS = Path(__file__).parents[1] / "docs" / "images"
PUBLISHED_ON = set(list_pairs()["dataset"])  # data sets

BAD = {  # invalid values of every option
    "--model": bad_network, "--student": bad_network, "--teacher-model": bad_network, "--recipe": bad_recipe,
    "--data": bad_data, "--teacher": bad_run, "--init": bad_run, "source": bad_run, "run_folders": bad_run,
    "first": bad_run, "second": bad_run, "run_folder": bad_run, "folder": bad_run,
    "--runs": bad_run.filter(lambda value: not value.startswith(("/", ".."))),  # these folders would be searched
    "--method": bad_arm, "--methods": bad_arm, "--reference": bad_arm, "--only": text,
    "name": unknown([*methods.METHODS, *methods.BASELINES]),
    "--strategy": unknown([*preview.STRATEGIES, "auto", "ddp"]),
    "--split": unknown(["train", "test", "val"]),
    "--accelerator": unknown(["auto", "cpu", "gpu", "cuda", "mps", "tpu"]),
    "--precision": unknown(
        ["auto", "32-true", "bf16-mixed", "32", "bf16", "16-mixed", "64-true", "16-true", "bf16-true"]
    ),
    "--train-size": bad_int(1), "--test-size": bad_int(1), "--image-size": bad_int(1), "--workers": bad_int(0),
    "--epochs": bad_int(1) | st.just("9" * 30), "--batch-size": bad_int(1), "--lr": bad_positive,
    "--seed": bad_int(0) | st.just("2147483648"), "--devices": bad_int(1), "--nodes": bad_int(1),
    "--weight-decay": bad_float, "--warmup-epochs": bad_float, "--clip-norm": bad_positive,
    "--ema": bad_float | st.just("1"), "--label-smoothing": bad_float | st.just("1"),
    "--optimizer": unknown(recipes.OPTIMIZERS), "--schedule": unknown(recipes.SCHEDULES),
    "--mix": unknown(recipes.MIXES), "--augment": text, "--val": bad_float | st.just("1"),
    "--label-noise": bad_float | st.sampled_from(["1", "20", "1e-9"]), "--noise": unknown(catalogue.NOISE_KINDS),
    "--early-stopping": bad_int(1), "--logger": unknown(["tensorboard", "csv"]),
    **{f"--beta-{term}": bad_float for term in ("kd", "fa", "ca", "cc")},
    "--temperature": bad_positive, "--epsilon": bad_positive, "--views": bad_int(1) | st.integers(5, 99).map(str),
    "--teacher-cache-gb": st.sampled_from(["nan", "-1", "-inf", "x", "", "-0.1", "1,5", "0x10"]),
    "--normalisation": bad_normalisation, "--teacher-normalisation": bad_normalisation,
    "--teacher-image-size": bad_int(1), "--expect": bad_float | st.just("100.1"),
    "--seeds": text.filter(lambda value: not value.strip().isdigit()),
    "--scheduler": text.filter(lambda value: ":" not in value) | st.sampled_from(["a:b", "http://a:1", "a:1/", ":1"]),
    "--slurm": text.filter(lambda value: "cores" not in value) | st.sampled_from(["cores=0,memory=1GB", "cores=1"]),
    "--pairs": text, "--teachers": bad_run,  # valid ones exclude --teacher and --student
    "--jobs": bad_int(1), "--size": text.filter(lambda value: value not in demo.SIZES),
    "--pair": text, "--dataset": text.filter(lambda value: value not in PUBLISHED_ON),
    "--sort": unknown(["own", "reproduced", "gain"]),
    "--shard": text | st.builds("{}/{}".format, st.integers(5, 99), st.integers(0, 4)),
    "--format": unknown(catalogue.TABLE_FORMATS),
    "--factor": text.filter(lambda value: value.partition("=")[0] not in experiments.SWEEPS),
    "--out": bad_path, "--teacher-cache": bad_path,
    "--by": text, "--top": bad_int(1), "--class": text, "--csv": bad_path, "--html": bad_path,
    "--trials": bad_int(1), "--space": text, "--show": bad_run, "--chosen": bad_run,
}  # fmt: skip
NEVER_WRONG = {"--root"}  # only matters for data sets that are downloaded


def valid_arguments(command: str, teacher: Path) -> dict[str, str]:  # noqa: F811
    """Return valid arguments of the command. Names without dashes are positional arguments."""
    images = dict(zip(SMALL[::2], SMALL[1::2], strict=True))
    sizes = {name: value for name, value in images.items() if name != "--epochs"}
    outputs = {"--out": "new", "--devices": "1"}  # --nodes is only checked with these
    grid = {**images, "--teacher": str(teacher), "--student": "resnet8", "--seeds": "0", "--out": "new"}
    searched = {name: value for name, value in grid.items() if name != "--seeds"}
    return {
        "train": {**images, "--model": "resnet8", **outputs},
        "distill": {**images, "--teacher": str(teacher), "--student": "resnet8", "--teacher-cache": "cache", **outputs},
        "evaluate": {"source": str(teacher)},
        "agree": {"first": str(teacher), "second": str(teacher)},
        "report": {"run_folder": str(teacher)},
        "rank": {"run_folder": str(teacher)},
        "diff": {"first": str(teacher), "second": str(teacher)},
        "predict": {"run_folder": str(teacher), "folder": str(PHOTOS), "--workers": "0"},
        "transfer": {"run_folders": str(teacher), **sizes},
        "compare": {**grid, "--methods": "kd"},
        "search": {**searched, "--val": "0.2"},
        "ablate": grid,
        "sweep": {**grid, "--factor": "beta_cc=0"},
        "figures": {"--runs": str(teacher.parent), "--out": "new"},
        "demo": {"--out": "new"},
        "methods": {"name": "kd"},
        "leaderboard": {"--pair": "resnet56,resnet20"},
    }.get(command, {})


def command_line(options: dict[str, str]) -> list[str]:
    positional = [value for name, value in options.items() if not name.startswith("--")]
    named = [word for name, value in options.items() if name.startswith("--") for word in (name, value)]
    return [*named, "--", *positional] if positional else named


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """A function that checks that a call fails with one line and status 2, changes no file and trains nothing."""

    def fail(*_):
        raise AssertionError("training has started")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training.Trainer, "train", fail)
    for name in ("mine", "empty"):
        (tmp_path / name).mkdir()
    for name in ("notes.txt", "mine/thesis.tex"):
        (tmp_path / name).write_text("years of work")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    def check(*arguments: str, expected: str = "") -> None:
        with fail_after():
            status = cli.main(list(arguments))
        out, err = capsys.readouterr()
        lines = [line for line in err.splitlines() if not line.startswith("note: ")]
        assert status == 2 and len(lines) == 1 and lines[0].startswith("pckd-nb: "), (arguments, status, err)
        assert "Traceback" not in err and lines[0].isprintable() and len(lines[0]) < 1000, (arguments, err)
        assert expected in lines[0], (arguments, err)
        assert not out, (arguments, out)
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before, arguments

    return check


def test_every_option_has_invalid_values():
    options_with_values = {
        parameter.opts[0]
        for command in COMMANDS.values()
        for parameter in command.params
        if not getattr(parameter, "is_flag", False) or parameter.opts[0] in BAD
    }
    assert options_with_values == BAD.keys() | NEVER_WRONG


def try_invalid_values(command: str, refused, teacher: Path, count: int) -> int:  # noqa: F811
    """Replace a valid value by an invalid one, `count` times. Return how many different ones were tried."""
    options = [parameter.opts[0] for parameter in COMMANDS[command].params if parameter.opts[0] in BAD]
    tried = set()

    @examples(count)
    @given(st.data())
    def attempt(data):
        option = data.draw(st.sampled_from(options), label="option")
        value = data.draw(BAD[option], label="value")
        refused(command, *command_line({**valid_arguments(command, teacher), option: value}))
        tried.add((option, value))

    attempt()
    return len(tried)


WITH_OPTIONS = [
    name for name, command in COMMANDS.items() if any(parameter.opts[0] in BAD for parameter in command.params)
]


@pytest.mark.parametrize("command", WITH_OPTIONS)
def test_invalid_values_are_refused(command, refused, teacher):  # noqa: F811
    try_invalid_values(command, refused, teacher, 12)


@pytest.mark.slow
def test_hundreds_of_invalid_values_are_refused(refused, teacher):  # noqa: F811
    counts = {command: try_invalid_values(command, refused, teacher, 100) for command in WITH_OPTIONS}
    assert sum(counts.values()) >= 500, counts


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_unknown_commands_options_and_arguments_are_refused(command, refused, teacher):  # noqa: F811
    good = command_line(valid_arguments(command, teacher))

    @examples(12)
    @given(text)
    def attempt(word):
        if command is None and word not in COMMANDS:
            refused(word)
        elif command:
            refused(command, "--x" + word.replace("=", ""), *good)
            if "run_folders" not in valid_arguments(command, teacher):
                refused(command, *good, *([] if "--" in good else ["--"]), word)

    attempt()


@pytest.mark.parametrize("command", WITH_OPTIONS)
def test_a_missing_argument_is_named(command, refused, teacher):  # noqa: F811
    for parameter in COMMANDS[command].params:
        if parameter.required:
            kept = valid_arguments(command, teacher)
            positional = [name for name in kept if not name.startswith("--")]
            own = parameter.opts[0]
            for name in positional[positional.index(own) :] if own in positional else [own]:
                kept.pop(name, None)  # with A missing, the value of B would be read as A
            refused(command, *command_line(kept), expected=option_name(parameter))
