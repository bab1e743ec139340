"""Mutation tests of the paper's equations: change one operator or constant at a time and check that a test fails.

    python -m tests.mutants                               # all mutants of FILES, about five minutes
    python -m tests.mutants --only pckd_nb/losses.py:78   # only those of some lines or files
    python -m tests.mutants --list                        # list the mutants without running the tests

torch and the tests are imported once. Each mutant runs in a fork of that process, where the functions of one module get
the code of the changed source. A mutant for which no test fails is printed, and the exit status is 1. Mutants that
cannot change behaviour are listed in EQUIVALENT with the reason. It is an error if a test fails for one of them.
Annotations, docstrings and strings are not changed. Needs a system that can fork: Linux or macOS.
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
SECONDS = 90  # of processor time per mutant; all tests together need about 10
EQUIVALENT = {  # reason → mutants: file, function and changed statement
    "the loss is symmetric in student and teacher": [
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
    "the assertion is always true here; it only informs readers and the type checker": [
        "losses.py: category_center_alignment: assert teacher_bias is not 0",
    ],
    "the order of the tuple does not matter: it is only used with `in`": [
        "tensor_checks.py: FLOAT_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)",
        "tensor_checks.py: LABEL_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)",
    ],
    "an earlier check ensures that both tensors have the same shape and device": [
        "losses.py: _check_contrast_arguments: check_labels(labels, teacher_scores)",
    ],
    "either of two wrong tensors may be named first": [
        "tensor_checks.py: check_same_shape: for tensor in (teacher, student):",
    ],
    "an integer that overflows float is far from 0": [
        f"tensor_checks.py: as_number: return float('inf') if value {other} else -float('inf')"
        for other in (">= 0", "> 1", "> -1")
    ],
    "cross-entropies and their mean are never negative": [
        "preview.py: difficulty: return torch.where(mean <= 0, torch.ones_like(cross_entropy), cross_entropy / mean)",
    ],
    "every caller passes at least one tensor": [
        "tensor_checks.py: check_one_value_per_sample: if len({len(values) for values in tensors.values()}) != 1:",
    ],
    "the sign does not matter, since the value is squared": [
        "preview.py: focal: return (torch.exp(-cross_entropy.detach()) - 1) ** 2",
    ],
}
BY_HAND = {  # plausible mistakes that no single operator or constant covers: file → (old, new)
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
    """One change: file and line, function, statement before and after, and the changed source of the whole module."""

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
        """Its name in EQUIVALENT. It has no line number, because lines move."""
        return f"{Path(self.file).name}: {self.scope}{self.after}"


def replacements(node: ast.AST, field: str) -> Iterator[ast.AST]:
    """Yield the nodes that replace `node`. field: its field in the parent node."""
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
    match node:  # replace a name by another
        case ast.Attribute(value, name, ast.Load()) if name in NAMES:
            yield ast.Attribute(value, NAMES[name], ast.Load())
        case ast.Name(name, ast.Load()) if name in NAMES:
            yield ast.Name(NAMES[name], ast.Load())


def nodes_with_context(node: ast.AST, scope: str = "", statement: ast.stmt | None = None) -> Iterator[tuple]:
    """Yield every node below `node`, with its field, a function that replaces it, its statement and its scope."""
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
            yield from nodes_with_context(child, scope, statement)


def first_line(statement: ast.stmt) -> str:
    if isinstance(statement, ast.FunctionDef):
        return f"def {statement.name}({ast.unparse(statement.args)})"
    return ast.unparse(statement).split("\n")[0]


def mutants(file: str) -> Iterator[Mutant]:
    text = (ROOT / file).read_text()
    tree = ast.parse(text)
    seen = {ast.unparse(tree)}
    for node, field, put, statement, scope in nodes_with_context(tree):
        before = first_line(statement)
        for new in replacements(node, field):
            put(ast.copy_location(new, node))
            source = ast.unparse(tree)
            after = first_line(new if node is statement else statement)
            put(node)
            if source not in seen:
                seen.add(source)
                yield Mutant(file, statement.lineno, scope, before, after, source)
    for old, new in BY_HAND.get(file, ()):
        if text.count(old) != 1:
            raise ValueError(f"BY_HAND needs text that {file} contains exactly once, got: {old}")
        line = text[: text.index(old)].count("\n") + 1
        yield Mutant(file, line, "by hand: ", old.strip(), new.strip(), text.replace(old, new))


def replace_code(old: Any, new: dict[str, Any], package: str) -> None:
    """Give the functions and values of a module or class, `old`, their changed code and values.

    The function objects stay the same, so that modules that imported them by name run the mutant, too.
    """
    for name, value in new.items():
        old_value = inspect.getattr_static(old, name, None)
        if inspect.isclass(value) and value.__module__ == package:
            replace_code(old_value, dict(vars(value)), package)
            continue
        new_function, old_function = (inspect.unwrap(getattr(x, "__func__", x)) for x in (value, old_value))
        if inspect.isfunction(new_function) and new_function.__module__ == package:
            if len(new_function.__code__.co_freevars) == len(old_function.__code__.co_freevars):
                old_function.__code__, old_function.__defaults__ = new_function.__code__, new_function.__defaults__
            else:
                setattr(old, name, value)
        elif not name.startswith("_") and not inspect.ismodule(value):
            setattr(old, name, value)


class MutationPlugin:
    """A pytest plugin that runs the tests once per mutant, each time in a fork."""

    def __init__(self, mutants: list[Mutant], verbose: bool):
        self.mutants, self.verbose = mutants, verbose
        self.counts = {"killed": 0, "equivalent": 0, "wrong": 0}
        self.pipe = None

    def pytest_runtestloop(self, session) -> bool:
        if session.testsfailed:
            raise session.Interrupted("the tests can't be collected")
        gc.freeze()
        items = list(session.items)
        for file in dict.fromkeys(mutant.file for mutant in self.mutants):
            unchanged = Mutant(file, 0, "", "", "", ast.unparse(ast.parse((ROOT / file).read_text())))
            if failed := self.first_failing_test(unchanged, items):
                raise session.Failed(f"the tests fail without any change of {file}: {failed}")
        for mutant in self.mutants:
            self.judge(mutant, self.first_failing_test(mutant, items))
            test = self.last
            # this test will probably fail for the next mutant, too
            items.sort(key=lambda item, test=test: item.nodeid != test)
        return True

    def judge(self, mutant: Mutant, test: str) -> None:
        reason = next((reason for reason, listed in EQUIVALENT.items() if mutant.key in listed), "")
        verdict = test or reason or "NO TEST FAILS"
        if test and reason:
            verdict = f"{test} FAILS, BUT IT IS LISTED AS EQUIVALENT"
        right = bool(test) != bool(reason)
        self.counts["wrong" if not right else "killed" if test else "equivalent"] += 1
        if self.verbose or not right:
            print(f"{mutant}\n    {verdict}", flush=True)

    def first_failing_test(self, mutant: Mutant, items: list) -> str:
        """Run the tests in a fork. Return the first test that fails, or ""."""
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
        replace_code(module, names, module.__name__)
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
    parser.add_argument(
        "--only", metavar="FILE[:LINE]", nargs="+", default=FILES, help="run only the mutants of these files or lines"
    )
    parser.add_argument("--list", action="store_true", help="list the mutants without running the tests")
    parser.add_argument("--verbose", action="store_true", help="print for each mutant the test that fails")
    arguments = parser.parse_args()
    for only in arguments.only:
        if only.split(":")[0] not in FILES:
            parser.error(f"--only must be one of {', '.join(FILES)}, got {only}")
    all_mutants = [mutant for file in FILES for mutant in mutants(file)]
    if unknown := {x for listed in EQUIVALENT.values() for x in listed} - {mutant.key for mutant in all_mutants}:
        parser.error(f"EQUIVALENT lists mutants that do not exist: {sorted(unknown)}")
    selected = [mutant for mutant in all_mutants if {mutant.file, f"{mutant.file}:{mutant.line}"} & set(arguments.only)]
    if not selected:
        parser.error(f"nothing can be changed in {', '.join(arguments.only)}")
    if arguments.list:
        print(*selected, sep="\n")
        return 0
    begin = time.monotonic()
    plugin = MutationPlugin(selected, arguments.verbose)
    options = ["-s", "-q", "-p", "no:cacheprovider", "-m", "not slow and not alone", "--rootdir", str(ROOT)]
    pytest.main([*options, *TESTS], plugins=[plugin])
    counts = ", ".join(f"{number} {kind}" for kind, number in plugin.counts.items())
    print(f"{len(selected)} mutants: {counts}; {(time.monotonic() - begin) / 60:.1f} minutes")
    return int(plugin.counts["wrong"] > 0 or sum(plugin.counts.values()) < len(selected))


if __name__ == "__main__":
    sys.exit(main())
