"""Commands that compute nothing answer at once, and their help fits the terminal."""

import json
import re
import statistics
import subprocess
import sys
import time

import pytest
import typer

from pckd_nb import cli
from pckd_nb.cli.console import GROUPS, print_table, wrap

COMMANDS = typer.main.get_command(cli.app).commands
SLOW_IMPORTS = ["torch", "numpy", "pandas", "lightning_fabric", "matplotlib", "sklearn", "rich"]
TRAIN = ["train", "--data", "digits", "--model", "resnet8", "--out", "x"]
DISTILL = ["distill", "--data", "digits", "--student", "resnet8", "--out", "x"]
GRID = ["--teacher", "t", "--student", "resnet8", "--data", "digits", "--out", "x"]

FAST_COMMANDS = [[], ["--help"], ["--version"], ["datasets"], ["models"], *([name, "--help"] for name in COMMANDS)]
TYPING_ERRORS = {
    "No such command 'trian'. Did you mean 'train'": ["trian"],
    "No such option: --modle": [*TRAIN, "--modle", "resnet8"],
    "No such option: --nonsense": ["--nonsense"],
    "train needs --model, --data and --out": ["train"],
    "distill needs --student, --data and --out": ["distill", "--seed", "1"],
    "distill needs --data": ["distill", "--student", "resnet8", "--out", "x"],
    "compare needs --out and --data": ["compare", "--seeds", "0"],
    "sweep needs --factor and --out": ["sweep", "--teacher", "t", "--data", "digits"],
    "no network to train: use --student, or --pairs with --teachers": ["ablate", "--data", "digits", "--out", "x"],
    "pairs must be TEACHER:STUDENT": ["ablate", "--data", "digits", "--out", "x", "--pairs", "x", "--teachers", "t"],
    "scheduler must be an address such as tcp://node1:8786": ["ablate", *GRID, "--scheduler", "here"],
    "slurm needs cores": ["ablate", *GRID, "--slurm", "memory=4GB"],
    "evaluate needs SOURCE": ["evaluate"],
    "unknown method 'nix'; known: supervised, kd, pckd, FitNet": ["methods", "nix"],
    "transfer needs RUN and --data": ["transfer"],
    "Invalid value for '--epochs'": ["train", "--epochs", "two"],
    "Invalid value for '--lr'": [*TRAIN, "--lr", "fast"],
    "Option '--seed' requires an argument": [*TRAIN, "--seed"],
    "Got unexpected extra argument(s) (more)": [*TRAIN, "more"],
    "unknown data set 'digit': did you mean digits?": [*TRAIN, "--data", "digit"],
    "unknown data set 'cifar': did you mean cifar10 or cifar100?": ["evaluate", "run", "--data", "cifar"],
    "unknown model 'resnet9'; nearest known: resnet": [*TRAIN, "--model", "resnet9"],
    "unknown model 'vgg7'; nearest known: vgg": [*DISTILL, "--teacher", "t.pth", "--teacher-model", "vgg7"],
    "unknown library 'keras'; known: torchvision:NAME, timm:NAME": ["evaluate", "t.pth", "--model", "keras:x"],
    "unknown model 'resnet9'": ["ablate", *GRID, "--student", "resnet9"],
    "unknown method 'pkd'; known: supervised, kd, pckd, FitNet": [*DISTILL, "--method", "pkd"],
    "unknown method 'nothing'": ["compare", *GRID, "--methods", "kd,nothing"],
    "unknown method 'none'": ["ablate", *GRID, "--reference", "none"],
    "unknown method 'cdr'": ["sweep", *GRID, "--factor", "lr=1", "--method", "cdr"],
    "unknown strategy 'easy'; known: preview": [*DISTILL, "--method", "pckd-strategy=easy"],
    "unknown strategy 'hard'": ["sweep", *GRID, "--factor", "strategy=focal,hard"],
    "--strategy must be auto or ddp, got fsdp": [*TRAIN, "--strategy", "fsdp"],
    "unknown recipe 'short'; known: classroom": [*TRAIN, "--recipe", "short"],
    "--seeds must be numbers and ranges": ["compare", *GRID, "--seeds", "one"],
    "--expect must be a percentage": ["evaluate", "run", "--expect", "101"],
    "--split must be test, train or val": ["evaluate", "run", "--split", "both"],
}

CALL = f"""
import contextlib, io, json, sys
from pckd_nb.cli import main
for arguments in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        status = main(arguments)
    loaded = [name for name in {SLOW_IMPORTS} if name in sys.modules]
    print(json.dumps([status, out.getvalue(), err.getvalue(), loaded]))
"""


def call(*commands: list[str]) -> list[tuple[int, str, str, list[str]]]:
    """Run commands in one new process. Return status, stdout, stderr and the slow imports so far, per command."""
    done = subprocess.run(
        [sys.executable, "-c", CALL], input=json.dumps(commands), capture_output=True, text=True, check=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_help_and_lists_import_no_slow_packages():
    for command, (status, out, err, loaded) in zip(FAST_COMMANDS, call(*FAST_COMMANDS), strict=True):
        assert (status, err, loaded) == (0, "", []) and out, command


def test_typing_errors_import_no_slow_packages(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results = call(*TYPING_ERRORS.values())
    for (message, command), (status, out, err, loaded) in zip(TYPING_ERRORS.items(), results, strict=True):
        assert (status, out, loaded) == (2, "", []), (command, err)
        assert err.startswith(f"pckd-nb: {message}") and err.count("\n") == 1, err
    assert not list(tmp_path.iterdir())


def test_version_option(capsys):
    from pckd_nb import __version__

    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"pckd-nb {__version__}\n"


def help_text(capsys, monkeypatch, *arguments: str, columns: int = 80) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert cli.main(list(arguments)) == 0
    return capsys.readouterr().out


def join_lines(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["datasets"], ["models"], ["methods"], ["methods", "dkd"], *([name, "--help"] for name in COMMANDS)],
)
def test_help_fits_the_terminal_without_cut_words(arguments, columns, capsys, monkeypatch):
    text = help_text(capsys, monkeypatch, *arguments, columns=columns)
    assert max(map(len, text.splitlines())) <= columns, text
    assert not re.search(r"…|(?<!{RUN})(?<!\[ARGS\])\.\.\.", text)
    words = set(text.split())
    wide = set(help_text(capsys, monkeypatch, *arguments, columns=10_000).split())
    assert words == wide, "words must not be cut at any width"


def test_commands_are_in_learning_order(capsys, monkeypatch):
    text = help_text(capsys, monkeypatch, "--help")
    names = re.findall(r"^  (\w+)", text.partition("Commands:")[2], re.M)
    assert names == list(COMMANDS) and names[0] == "demo"
    order = [
        names.index(name)
        for name in ("datasets", "models", "methods", "train", "distill", "evaluate", "compare", "figures")
    ]
    assert order == sorted(order)
    for command in COMMANDS.values():
        sentence = re.split(r"(?<=\.)\s", join_lines(command.help))[0]
        assert sentence.rstrip(".") in join_lines(text)


def groups(text: str) -> dict[str, list[str]]:
    """Return the options of a help page by group."""
    sections = re.split(r"^(\w+):\n", text, flags=re.M)[1:]
    found = zip(sections[::2], sections[1::2], strict=True)
    return {name: re.findall(r"^  (\S+)", section, re.M) for name, section in found}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_in_a_help_group(command, capsys, monkeypatch):
    found = groups(help_text(capsys, monkeypatch, command, "--help"))
    assert list(found) == [name for name in GROUPS if name in found]
    options = [parameter for parameter in COMMANDS[command].params if parameter.param_type_name == "option"]
    shown = [option for group, names in found.items() if group != "Arguments" for option in names]
    assert sorted(shown) == sorted([*(parameter.opts[0] for parameter in options), "--help"])
    assert found["Options"][-1] == "--help" and len(found["Options"]) <= 4


def test_help_groups_of_distill_and_grid_commands(capsys, monkeypatch):
    found = groups(help_text(capsys, monkeypatch, "distill", "--help"))
    assert list(found) == ["Networks", "Data", "Method", "Training", "Machine", "Options"]
    some = {"Networks": "--teacher", "Data": "--root", "Method": "--beta-cc", "Training": "--lr"}
    assert all(option in found[group] for group, option in some.items())
    for command in ("compare", "ablate", "sweep"):
        expected = {"--out", "--seeds", "--jobs", "--shard", "--scheduler", "--slurm", "--dry-run"}
        expected |= {"--format", "--pivot"}
        assert set(groups(help_text(capsys, monkeypatch, command, "--help"))["Grid"]) == expected


def test_the_last_column_of_a_table_is_wrapped_between_words(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    rows = [("name", "n", "what"), ("first", "1,000", "one two-three four five six seven eight")]
    print_table(rows, right=(1,), fit=True)
    assert capsys.readouterr().out.splitlines() == [
        "name       n  what",
        "first  1,000  one two-three four five",
        "              six seven eight",
    ]
    print_table(rows)
    assert capsys.readouterr().out.splitlines()[1] == "first  1,000  one two-three four five six seven eight"
    assert wrap("--debug-all of-it", 20) == ["--debug-all of-it"]


def median_start_seconds(*commands: tuple[str, ...]) -> list[float]:
    """Return the median time of five starts per command. Commands alternate, so that other load slows all of them."""
    taken: list[list[float]] = [[] for _ in commands]
    for _ in range(5):
        for times, command in zip(taken, commands, strict=True):
            started = time.perf_counter()
            subprocess.run([sys.executable, *command], check=True, capture_output=True)
            times.append(time.perf_counter() - started)
    return [statistics.median(times) for times in taken]


@pytest.mark.slow
@pytest.mark.alone
def test_commands_and_imports_start_fast():
    answers = [("-m", "pckd_nb", *command) for command in (["--help"], ["datasets"], ["models"], ["distill", "--help"])]
    code = ("-c", "pass"), ("-c", "import torch"), ("-c", "import pckd_nb"), ("-c", "import pckd_nb.losses")
    nothing, torch, package, equations, *answered = median_start_seconds(*code, *answers)
    for command, took in zip(answers, answered, strict=True):
        assert took - nothing < (torch - nothing) / 3, command
    assert package - nothing < (torch - nothing) / 10
    assert equations < 1.5 * torch  # on an idle machine it takes at most 10 % more
