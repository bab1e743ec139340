"""Every operator and constant of the paper's equations, changed one at a time: does a test notice?

    python -m tests.mutants                               # all of FILES, about five minutes
    python -m tests.mutants --only pckd_nb/losses.py:78   # the mutants of some lines or files
    python -m tests.mutants --list                        # only say what would be changed

torch and the tests are imported once; every mutant is a fork of that, in which the functions of one module get the
code of changed source. What nobody notices is printed, and the exit status is 1. A mutant that can't change behaviour
is in EQUIVALENT with the reason; one that is there and noticed all the same is an error. Annotations, docstrings and
strings are left alone. Needs a system that can fork: Linux or macOS.
"""

import argparse
import ast
import gc
import inspect
import os
import resource
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
FILES = "pckd_nb/losses.py", "pckd_nb/preview.py", "pckd_nb/tensor_checks.py", "pckd_nb/methods/pckd.py"
TESTS = [str(ROOT / "tests" / f"test_{name}.py") for name in ("losses", "preview", "tensor_checks", "methods")]
SECONDS = 90  # of processor time; all tests need about 10
EQUIVALENT = {  # reason: file, scope and changed statement
    "student and teacher enter alike: the loss is symmetric in them": [
        "losses.py: feature_alignment: student, teacher = "
        "(_at_least_float32(teacher_features), _at_least_float32(projected_student_features))",
        "losses.py: category_center_alignment: student, teacher = "
        "(_at_least_float32(teacher_weight), _at_least_float32(student_weight))",
        "losses.py: category_center_contrast_plain: anchors = "
        "_at_least_float32(torch.cat([teacher_scores, student_scores]))",
        "losses.py: category_center_contrast: anchors = _at_least_float32(torch.cat([teacher_scores, student_scores]))",
    ],
    "the matrix is symmetric": [
        "losses.py: category_center_contrast_plain: log_denominator = "
        "similarity.masked_fill(diagonal, -torch.inf).logsumexp(dim=0)",
    ],
    "never false, for a reader and a type checker: biases are there on both sides or the function has ended": [
        "losses.py: category_center_alignment: assert teacher_bias is not 0",
    ],
    "only asked whether something is in it": [
        "tensor_checks.py: FLOAT_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)",
        "tensor_checks.py: LABEL_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)",
    ],
    "both have passed as of one shape and on one device": [
        "losses.py: _check_contrast_arguments: check_labels(labels, teacher_scores)",
    ],
    "which of two wrong tensors is named first is left open": [
        "tensor_checks.py: check_same_shape: for tensor in (teacher, student):",
    ],
    "an integer that overflows is far from 0": [
        f"tensor_checks.py: as_number: return float('inf') if value {other} else -float('inf')"
        for other in (">= 0", "> 1", "> -1")
    ],
    "cross-entropies are not negative, and so is their mean": [
        "preview.py: difficulty: return torch.where(mean <= 0, torch.ones_like(cross_entropy), cross_entropy / mean)",
    ],
    "every caller gives at least one tensor": [
        "tensor_checks.py: check_one_value_per_sample: if len({len(values) for values in tensors.values()}) != 1:",
    ],
    "squared, the sign does not matter": [
        "preview.py: focal: return (torch.exp(-cross_entropy.detach()) - 1) ** 2",
    ],
}
BY_HAND = {  # what takes more than one place, or a wrong idea
    "pckd_nb/methods/pckd.py": [
        ("student.logits[:batch_size]", "student.logits[-batch_size:]"),
        ("teacher.logits[:batch_size]", "teacher.logits[-batch_size:]"),
        ("batch, cross_entropy)}", "batch, v * cross_entropy)}"),
        ("v.repeat(views)", "v.repeat_interleave(views)"),
        ("batch.labels.repeat(views)", "batch.labels.repeat_interleave(views)"),
        ("teacher.features).mean()", "teacher.features).mul(v.repeat(views)).mean()"),
        ("F.normalize(self.embed_student(student.features), dim=1)", "self.embed_student(student.features)"),
        ("F.normalize(self.embed_teacher(student.features), dim=1)", "self.embed_teacher(student.features)"),
        (", self.temperature)\n", ")\n"),
        ("batch.labels.repeat(views), *temperatures)", "batch.labels.repeat(views), self.temperature)"),
        ("preview.threshold(epoch, self.epsilon)", "preview.threshold(epoch)"),
        ("preview.threshold(epoch, self.epsilon)", "preview.threshold(1, self.epsilon)"),
        ("u_s, u_t, batch", "u_s, u_t.detach(), batch"),
        ("student.centers.T", "student.centers.detach().T"),
        ("nn.BatchNorm1d(hidden), ", ""),
        ("nn.ReLU(), ", ""),
        ("gamma, v)\n", "v, gamma)\n"),
        ("self.left_out = {}\n        student_has", "student_has"),
    ],
}

ARITHMETIC = ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow
COMPARISONS = (
    (ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq),
    (ast.Is, ast.IsNot),
    (ast.In, ast.NotIn),
)
NAMES = {
    "min": "max", "sum": "mean", "ones_like": "zeros_like", "log_softmax": "softmax", "logsumexp": "amax",
    "logaddexp": "maximum", "exp": "exp2", "exp_": "exp2_", "is_grad_enabled": "is_inference_mode_enabled",
    "beta_kd": "beta_fa", "beta_ca": "beta_cc", "student": "teacher", "embed_student": "embed_teacher",
    "student_scores": "teacher_scores", "temperature": "base_temperature",
}  # fmt: skip
NAMES |= {new: old for old, new in NAMES.items()}


class Mutant(NamedTuple):
    """file and line in the repository · function · its statement before and after · source of the whole module."""

    file: str
    line: int
    scope: str
    before: str
    after: str
    source: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.scope}{self.before}  →  {self.after}"

    @property
    def key(self) -> str:
        """What EQUIVALENT calls it: without the line, which moves."""
        return f"{Path(self.file).name}: {self.scope}{self.after}"


def instead_of(node: ast.AST, field: str) -> Iterator[ast.AST]:
    """What could stand by mistake where `node` is, in the field of that name."""
    if field == "test" and not isinstance(node, (ast.Compare, ast.UnaryOp)):
        yield ast.UnaryOp(ast.Not(), node)
    match node:
        case ast.BinOp(left, op, right):
            kinds = ARITHMETIC if isinstance(op, ARITHMETIC) else (ast.MatMult, ast.Mult)
            yield from (ast.BinOp(left, kind(), right) for kind in kinds if not isinstance(op, kind))
            yield from (left, right)
            if isinstance(op, (ast.Sub, ast.Div, ast.Pow, ast.MatMult)):
                yield ast.BinOp(right, op, left)
        case ast.AugAssign(target, op, value):
            yield from (ast.AugAssign(target, kind(), value) for kind in ARITHMETIC if not isinstance(op, kind))
            yield ast.Assign([target], value)
        case ast.Compare(left, ops, right):
            for i, op in enumerate(ops):
                kinds = next(kinds for kinds in COMPARISONS if isinstance(op, kinds))
                others = (kind() for kind in kinds if not isinstance(op, kind))
                yield from (ast.Compare(left, [*ops[:i], other, *ops[i + 1 :]], right) for other in others)
        case ast.BoolOp(op, values):
            yield ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), values)
            yield from (ast.BoolOp(op, values[:i] + values[i + 1 :]) for i in range(len(values)))
        case ast.UnaryOp(_, operand):
            yield operand
        case ast.Constant(bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(int(value)):
            yield from (ast.Constant(other) for other in {value + 1, value - 1, 1} - {value})
        case ast.Constant(float(value)):
            yield from (ast.Constant(other) for other in (value + 1, value * 1.01))
        case ast.Constant(None):
            yield ast.Constant(0)
        case ast.Constant("inf"):
            yield from (ast.Constant("-inf"), ast.Constant("nan"))
        case ast.Slice(lower, upper) if lower or upper:
            for bound, slices in ((lower, lambda x: ast.Slice(x, upper)), (upper, lambda x: ast.Slice(lower, x))):
                if bound:
                    yield from (slices(None), slices(ast.BinOp(bound, ast.Add(), ast.Constant(1))))
        case ast.List(items) | ast.Tuple(items, ast.Load()) if len(items) > 1:
            kind = type(node)
            yield from (kind(items[:i] + items[i + 1 :], ast.Load()) for i in range(len(items)))
            if field not in ("comparators", "type"):  # x in (a, b), except (A, B)
                yield kind(items[::-1], ast.Load())
        case ast.Call(ast.Attribute(value, "detach" | "float" | "exp_" | "sum" | "mean" | "exp")):
            if not (isinstance(value, ast.Name) and value.id == "torch"):
                yield value
        case ast.Expr(ast.Call()):
            yield ast.Pass()
    match node:  # one name for another
        case ast.Attribute(value, name, ast.Load()) if name in NAMES:
            yield ast.Attribute(value, NAMES[name], ast.Load())
        case ast.Name(name, ast.Load()) if name in NAMES:
            yield ast.Name(NAMES[name], ast.Load())


def places(node: ast.AST, scope: str = "", statement: ast.stmt | None = None) -> Iterator[tuple]:
    """Every node below, with a function that puts another in its place, its statement and the names around it."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        scope = f"{scope}{node.name}: "
    statement = node if isinstance(node, (ast.stmt, ast.ExceptHandler)) else statement
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list"):
            continue
        for i, child in enumerate(value if isinstance(value, list) else [value]):
            text = isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
            type_alias = isinstance(child, ast.Subscript) and ast.unparse(child.value) == "Callable"
            if not isinstance(child, ast.AST) or isinstance(child, ast.JoinedStr) or text or type_alias:
                continue

            def put(new, value=value, i=i, field=field):
                if isinstance(value, list):
                    value[i] = new
                else:
                    setattr(node, field, new)

            yield child, field, put, child if isinstance(child, ast.stmt) else statement, scope
            yield from places(child, scope, statement)


def headline(statement: ast.stmt) -> str:
    if isinstance(statement, ast.FunctionDef):
        return f"def {statement.name}({ast.unparse(statement.args)})"
    return ast.unparse(statement).split("\n")[0]


def mutants(file: str) -> Iterator[Mutant]:
    text = (ROOT / file).read_text()
    tree = ast.parse(text)
    seen = {ast.unparse(tree)}
    for node, field, put, statement, scope in places(tree):
        before = headline(statement)
        for new in instead_of(node, field):
            put(ast.copy_location(new, node))
            source = ast.unparse(tree)
            after = headline(new if node is statement else statement)
            put(node)
            if source not in seen:
                seen.add(source)
                yield Mutant(file, statement.lineno, scope, before, after, source)
    for old, new in BY_HAND.get(file, ()):
        if text.count(old) != 1:
            raise ValueError(f"{file} must hold this once, to be changed by hand: {old}")
        line = text[: text.index(old)].count("\n") + 1
        yield Mutant(file, line, "by hand: ", old.strip(), new.strip(), text.replace(old, new))


def become(old: Any, new: dict[str, Any], package: str) -> None:
    """Give functions and values of a module or class, `old`, the code and values of its changed self.

    The functions stay the same objects: who imported them by name gets the mutant too.
    """
    for name, value in new.items():
        before = inspect.getattr_static(old, name, None)
        if inspect.isclass(value) and value.__module__ == package:
            become(before, dict(vars(value)), package)
            continue
        theirs, ours = (inspect.unwrap(getattr(x, "__func__", x)) for x in (value, before))
        if inspect.isfunction(theirs) and theirs.__module__ == package:
            if len(theirs.__code__.co_freevars) == len(ours.__code__.co_freevars):
                ours.__code__, ours.__defaults__ = theirs.__code__, theirs.__defaults__
            else:
                setattr(old, name, value)
        elif not name.startswith("_") and not inspect.ismodule(value):
            setattr(old, name, value)


class Mutation:
    """A plugin of pytest: where it would run the tests once, they run for every mutant, in a fork of its own."""

    def __init__(self, mutants: list[Mutant], verbose: bool):
        self.mutants, self.verbose = mutants, verbose
        self.counts = {"noticed": 0, "equivalent": 0, "wrong": 0}
        self.pipe = None

    def pytest_runtestloop(self, session) -> bool:
        if session.testsfailed:
            raise session.Interrupted("the tests can't be collected")
        gc.freeze()
        items = list(session.items)
        for file in dict.fromkeys(mutant.file for mutant in self.mutants):
            unchanged = Mutant(file, 0, "", "", "", ast.unparse(ast.parse((ROOT / file).read_text())))
            if failed := self.noticed(unchanged, items):
                raise session.Failed(f"the tests fail without any change of {file}: {failed}")
        for mutant in self.mutants:
            self.judge(mutant, self.noticed(mutant, items))
            test = self.last
            items.sort(key=lambda item, test=test: item.nodeid != test)  # likely to notice the next one too
        return True

    def judge(self, mutant: Mutant, test: str) -> None:
        reason = next((reason for reason, listed in EQUIVALENT.items() if mutant.key in listed), "")
        verdict = test or reason or "NOBODY NOTICES"
        if test and reason:
            verdict = f"{test} FAILS, BUT IT IS LISTED AS EQUIVALENT"
        right = bool(test) != bool(reason)
        self.counts["wrong" if not right else "noticed" if test else "equivalent"] += 1
        if self.verbose or not right:
            print(f"{mutant}\n    {verdict}", flush=True)

    def noticed(self, mutant: Mutant, items: list) -> str:
        """The first test that fails, "" where none does. In a fork: nothing of it stays."""
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            self.pipe = write
            try:
                self.run(mutant, items)
            except BaseException as error:
                self.fails(f"{type(error).__name__} on import")
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as pipe:
            self.last = pipe.read()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return self.last or (f"exit status {status}" if status else "")

    def run(self, mutant: Mutant, items: list) -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        module = import_module(mutant.file.removesuffix(".py").replace("/", "."))
        names = {"__name__": module.__name__, "__package__": module.__package__}
        exec(compile(mutant.source, mutant.file, "exec"), names)
        become(module, names, module.__name__)
        for item, following in zip(items, [*items[1:], None], strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)

    def pytest_runtest_logreport(self, report) -> None:
        if report.failed and self.pipe:
            self.fails(report.nodeid)

    def fails(self, test: str) -> None:
        os.write(self.pipe, test.encode())
        os._exit(1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", metavar="FILE[:LINE]", nargs="+", default=FILES, help="the mutants of these alone")
    parser.add_argument("--list", action="store_true", help="only say what would be changed")
    parser.add_argument("--verbose", action="store_true", help="say of every mutant which test notices it")
    chosen = parser.parse_args()
    for only in chosen.only:
        if only.split(":")[0] not in FILES:
            parser.error(f"--only knows {', '.join(FILES)}, not {only}")
    everything = [mutant for file in FILES for mutant in mutants(file)]
    if unknown := {x for listed in EQUIVALENT.values() for x in listed} - {mutant.key for mutant in everything}:
        parser.error(f"EQUIVALENT lists what is no mutant: {sorted(unknown)}")
    some = [mutant for mutant in everything if {mutant.file, f"{mutant.file}:{mutant.line}"} & set(chosen.only)]
    if not some:
        parser.error(f"nothing can be changed in {', '.join(chosen.only)}")
    if chosen.list:
        print(*some, sep="\n")
        return 0
    begin = time.monotonic()
    mutation = Mutation(some, chosen.verbose)
    options = ["-s", "-q", "-p", "no:cacheprovider", "-m", "not slow and not alone", "--rootdir", str(ROOT)]
    pytest.main([*options, *TESTS], plugins=[mutation])
    counts = ", ".join(f"{number} {kind}" for kind, number in mutation.counts.items())
    print(f"{len(some)} mutants: {counts}; {(time.monotonic() - begin) / 60:.1f} minutes")
    return int(mutation.counts["wrong"] > 0 or sum(mutation.counts.values()) < len(some))


if __name__ == "__main__":
    sys.exit(main())
