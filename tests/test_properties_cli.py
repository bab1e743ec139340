"""The command line with hundreds of wrong words: one line on stderr, status 2, and not a file made."""

from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from pckd_nb import catalogue, cli, data, demo, experiments, models, preview, recipes, training
from pckd_nb.cli.console import option_name

from .properties import examples, fail_after
from .test_cli import SMALL, teacher  # noqa: F401

COMMANDS = typer.main.get_command(cli.app).commands

# What people type, paste and expand from a variable that holds something else.
WEIRD = [
    "",
    " ",
    "nan",
    "-inf",
    "1e999",
    "0x10",
    "-1",
    "--",
    "é",
    "two\nlines",
    "x" * 5000,
    "\x1b[31mred",
    "💥",
    "None",
]
WEIRD += [
    "notes.txt",
    "mine",
    "empty",
    "../..",
    "/",
    ".",
    "/dev/null",
    "a,b",
    "a=b",
    "a-b=c",
    "\u2028",
    "%s{}",
    "\x00",
    "<b>",
]
text = st.sampled_from(WEIRD) | st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
numbers = [
    " ",
    "x",
    "nan",
    "0x10",
    "1e999",
    "--",
    "é",
    "1\n2",
    "1 2",
    "+-1",
    "None",
    "1,5",
    "x" * 5000,
    "-1",
    "-inf",
    "💥",
    "\x00",
]
wholes = st.sampled_from([*numbers, "", "1.5", "1e3", "9" * 5000, "-" + "9" * 30, "½", "-9223372036854775809"])
floats = st.sampled_from([*numbers, "", "inf", "9" * 400, "-0.1", "-1e-300"])


def but(names, strategy=text):
    """Text that is none of these names, in capitals or not, with white space around or not."""
    known = {name.lower() for name in names}
    return strategy.filter(lambda value: value.strip().lower() not in known)


def at_least(one: int, strategy=wholes):
    return strategy | st.integers(-(2**70), one - 1).map(str)


def is_arm(value: str) -> bool:
    try:
        return bool(experiments.parse_arm(value).build(recipes.get_recipe("classroom")))
    except ValueError:
        return False


network = but(models.MODELS)
recipe = but(recipes.RECIPES)
arm = text.filter(lambda value: not is_arm(value))
run = text  # no folder of runs is here
data = but(data.DATASETS, text.filter(lambda value: not value.startswith("folder:"))) | text.map("folder:{}".format)
positive = floats | st.sampled_from(["0", "-0.0", "-3"])
place = st.sampled_from(["notes.txt", "notes.txt/x", "/dev/null", "/dev/null/x", "\x00", "x" * 5000])

constants = text.filter(lambda value: value not in catalogue.NORMALISATIONS and "/" not in value) | st.sampled_from(
    ["0.5/0", "0.5/-1", "nan/1", "1/inf", "0.5,0.5/1", "1/2/3", "/", "a/b"]
)

BAD = {  # of every option
    "--model": network, "--student": network, "--teacher-model": network, "--recipe": recipe, "--data": data,
    "--teacher": run, "--init": run, "source": run, "run_folders": run,
    "--runs": run.filter(lambda value: not value.startswith(("/", ".."))),  # which would be looked through
    "--method": arm, "--methods": arm, "--reference": arm, "--only": text,
    "--strategy": but([*preview.STRATEGIES, "auto", "ddp"]),
    "--split": but(["train", "test", "val"]), "--accelerator": but(["auto", "cpu", "gpu", "cuda", "mps", "tpu"]),
    "--precision": but(["auto", "32-true", "bf16-mixed", "32", "bf16", "16-mixed", "64-true", "16-true", "bf16-true"]),
    "--train-size": at_least(1), "--test-size": at_least(1), "--image-size": at_least(1), "--workers": at_least(0),
    "--epochs": at_least(1) | st.just("9" * 30), "--batch-size": at_least(1), "--lr": positive,
    "--seed": at_least(0) | st.just("2147483648"), "--devices": at_least(1), "--nodes": at_least(1),
    "--weight-decay": floats, "--warmup-epochs": floats, "--clip-norm": positive, "--ema": floats | st.just("1"),
    "--label-smoothing": floats | st.just("1"), "--optimizer": but(recipes.OPTIMIZERS),
    "--schedule": but(recipes.SCHEDULES), "--mix": but(recipes.MIXES), "--augment": text,
    "--val": floats | st.just("1"), "--early-stopping": at_least(1), "--logger": but(["tensorboard", "csv"]),
    **{f"--beta-{term}": floats for term in ("kd", "fa", "ca", "cc")},
    "--temperature": positive, "--epsilon": positive, "--views": at_least(1) | st.integers(5, 99).map(str),
    "--teacher-cache-gb": st.sampled_from(["nan", "-1", "-inf", "x", "", "-0.1", "1,5", "0x10"]),
    "--normalisation": constants, "--teacher-normalisation": constants, "--teacher-image-size": at_least(1),
    "--expect": floats | st.just("100.1"),
    "--seeds": text.filter(lambda value: not value.strip().isdigit()),
    "--jobs": at_least(1), "--size": text.filter(lambda value: value not in demo.SIZES),
    "--shard": text | st.builds("{}/{}".format, st.integers(5, 99), st.integers(0, 4)),
    "--factor": text.filter(lambda value: value.partition("=")[0] not in experiments.SWEEPS),
    "--out": place, "--teacher-cache": place,
}  # fmt: skip
NEVER_WRONG = {"--root"}  # is looked at by data sets that are downloaded


def right(command: str, teacher: Path) -> dict[str, str]:  # noqa: F811
    """Words that the command takes, by option, or by position where the name has no dashes."""
    images = dict(zip(SMALL[::2], SMALL[1::2], strict=True))
    sizes = {name: value for name, value in images.items() if name != "--epochs"}
    alone = {"--out": "new", "--devices": "1"}  # without which --nodes is not looked at
    grid = {**images, "--teacher": str(teacher), "--student": "resnet8", "--seeds": "0", "--out": "new"}
    return {
        "train": {**images, "--model": "resnet8", **alone},
        "distill": {**images, "--teacher": str(teacher), "--student": "resnet8", "--teacher-cache": "cache", **alone},
        "evaluate": {"source": str(teacher)},
        "transfer": {"run_folders": str(teacher), **sizes},
        "compare": {**grid, "--methods": "kd"},
        "ablate": grid,
        "sweep": {**grid, "--factor": "beta_cc=0"},
        "figures": {"--runs": str(teacher.parent), "--out": "new"},
        "demo": {"--out": "new"},
    }.get(command, {})


def words(options: dict[str, str]) -> list[str]:
    positional = [value for name, value in options.items() if not name.startswith("--")]
    named = [word for name, value in options.items() if name.startswith("--") for word in (name, value)]
    return [*named, "--", *positional] if positional else named


@pytest.fixture
def wrong(tmp_path, monkeypatch, capsys):
    """The words are refused with one line and status 2, leave the folder as it was, and train nothing."""

    def trained(*_):
        raise AssertionError("a training has begun")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training.Trainer, "train", trained)
    for name in ("mine", "empty"):
        (tmp_path / name).mkdir()
    for name in ("notes.txt", "mine/thesis.tex"):
        (tmp_path / name).write_text("years of work")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    def check(*arguments: str, says: str = "") -> None:
        with fail_after():
            status = cli.main(list(arguments))
        out, err = capsys.readouterr()
        lines = [line for line in err.splitlines() if not line.startswith("note: ")]
        assert status == 2 and len(lines) == 1 and lines[0].startswith("pckd-nb: "), (arguments, status, err)
        assert "Traceback" not in err and lines[0].isprintable() and len(lines[0]) < 1000, (arguments, err)
        assert says in lines[0], (arguments, err)
        assert not out, (arguments, out)
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before, arguments

    return check


def test_every_option_has_bad_values():
    takes_words = {
        parameter.opts[0]
        for command in COMMANDS.values()
        for parameter in command.params
        if not getattr(parameter, "is_flag", False) or parameter.opts[0] in BAD
    }
    assert takes_words == BAD.keys() | NEVER_WRONG


def attempts(command: str, wrong, teacher: Path, count: int) -> int:  # noqa: F811
    """Try `count` bad words in the place of good ones; how many different ones there were."""
    options = [about.opts[0] for about in COMMANDS[command].params if about.opts[0] in BAD]
    tried = set()

    @examples(count)
    @given(st.data())
    def attempt(data):
        option = data.draw(st.sampled_from(options), label="option")
        value = data.draw(BAD[option], label="value")
        wrong(command, *words({**right(command, teacher), option: value}))
        tried.add((option, value))

    attempt()
    return len(tried)


WITH_OPTIONS = [name for name, about in COMMANDS.items() if any(one.opts[0] in BAD for one in about.params)]


@pytest.mark.parametrize("command", WITH_OPTIONS)
def test_a_wrong_word_is_refused_in_one_line(command, wrong, teacher):  # noqa: F811
    attempts(command, wrong, teacher, 12)


@pytest.mark.slow
def test_five_hundred_wrong_words(wrong, teacher):  # noqa: F811
    counts = {command: attempts(command, wrong, teacher, 100) for command in WITH_OPTIONS}
    assert sum(counts.values()) >= 500, counts


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_words_that_no_command_knows(command, wrong, teacher):  # noqa: F811
    good = words(right(command, teacher))

    @examples(12)
    @given(text)
    def attempt(word):
        if command is None and word not in COMMANDS:
            wrong(word)
        elif command:
            wrong(command, "--x" + word.replace("=", ""), *good)
            if "run_folders" not in right(command, teacher):
                wrong(command, *good, *([] if "--" in good else ["--"]), word)

    attempt()


@pytest.mark.parametrize("command", WITH_OPTIONS)
def test_what_is_missing_is_named(command, wrong, teacher):  # noqa: F811
    for parameter in COMMANDS[command].params:
        if parameter.required:
            kept = {name: value for name, value in right(command, teacher).items() if name != parameter.opts[0]}
            wrong(command, *words(kept), says=option_name(parameter))
