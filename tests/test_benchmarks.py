import dataclasses
import json
from pathlib import Path

import pytest
import torch

import pckd_nb as pckd
from benchmarks import __main__ as bench
from benchmarks import measure, methods, pieces, reference, report, steps, studies, work
from benchmarks.measure import Stopwatch, Variant, environment, interleave
from benchmarks.settings import PLANNED, SETTINGS_OF_PART, Settings
from pckd_nb import losses, views
from pckd_nb.methods import Batch

pytestmark = pytest.mark.filterwarnings("ignore:the teacher in")  # their logits differ too much in int8
FOLDER = Path(bench.__file__).parent


@pytest.fixture
def settings(tmp_path) -> Settings:
    return Settings(
        accelerator="cpu", repetitions=1, root=tmp_path,
        teacher_train_size=100, teacher_epochs={"resnet8": 1, "resnet14": 1},
        pairs={"wrn": ("resnet8", "resnet8"), "resnet": ("resnet8", "resnet8")}, batch_sizes=(10,), train_size=100,
        steps=1, peak_side=64, peak_seconds=0.01, data_batches=2, contrast_batches=(2, 8),
        import_repetitions=1, folder_images={"16": 12, "112": 8},
        sweep_networks=("resnet8", "resnet8"), sweep_train_size=100, sweep_epochs=1, sweep_beta_cc=(0.005, 0.01),
        tsne_points=150, tsne_repetitions=1, accuracy_networks=("resnet8", "resnet8"), accuracy_data="shapes100",
        accuracy_train_size=100,
        accuracy_test_size=100, accuracy_epochs=1, accuracy_compile=False, accuracy_seeds=(0, 1),
    )  # fmt: skip


@pytest.fixture
def pair(settings, tmp_path) -> work.Pair:
    return work.Pair(settings, "resnet14", "resnet8", 20, tmp_path)


@pytest.mark.parametrize("epoch", [1, 200])
def test_the_plain_loop_computes_the_loss_of_the_package(pair, epoch):
    method = pckd.PCKD()
    method.bind(pair.student, pair.teacher)
    student, teacher = pair.student.train(), pair.teacher.eval()
    plain = reference.PlainLoop(student, teacher, pair.data, method, pair.recipe, torch.device("cpu"))
    index = torch.arange(20)
    images, labels = pair.data.train.images[index] / 255, pair.data.train.labels[index]

    rows = reference.four_views(images)
    theirs = plain.loss(student(rows), teacher(rows), labels, epoch)
    rows = views.rotate(images)
    ours = method(student(rows), teacher(rows), Batch(labels, index), epoch)
    assert theirs.item() == pytest.approx(ours.total.item(), rel=1e-5)
    assert 0 < (ours.weight == 1).sum() < len(index) or epoch == 200


def test_the_plain_contrast_matches_the_package():
    u_s, u_t = torch.randn(2, 24, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.arange(24) % 5
    theirs = reference.contrast(u_s, u_t, labels)
    torch.testing.assert_close(theirs, losses.category_center_contrast_plain(u_s, u_t, labels), rtol=1e-6, atol=1e-6)


def test_the_four_views_of_an_image_follow_each_other():
    images = torch.arange(2 * 3 * 16.0).view(2, 3, 4, 4)
    assert torch.equal(reference.four_views(images)[1::4], views.rotate(images)[2:4])


def test_interleave_alternates_variants_and_ignores_warm_up():
    calls = []
    variants = {
        "a": Variant(lambda: calls.append("a"), calls=2),
        "b": Variant(lambda: calls.append("b"), before=lambda: calls.append("-")),
    }
    seconds = interleave(variants, repetitions=3, warmup=1)
    assert "".join(calls) == "ab" + 3 * "aa-b"
    assert [len(times) for times in seconds.values()] == [3, 3]


def test_interleave_starts_no_round_that_would_end_too_late(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(measure, "timer", lambda: now[0])
    variants = {"a": Variant(lambda: now.__setitem__(0, now[0] + 2))}
    for seconds, rounds in ((0, 3), (11, 5), (12, 6), (1000, 9)):
        assert interleave(variants, repetitions=9, seconds=seconds) == {"a": rounds * [2]}


def test_a_stopwatch_restores_the_watched_method():
    network, watch = torch.nn.Linear(2, 2), Stopwatch()
    with watch.watch([("network", network, "forward")]):
        network(torch.zeros(1, 2))
    assert watch.seconds["network"] > 0
    assert "forward" not in vars(network)


def run(parts: list[str], settings: Settings, folder: Path) -> dict:
    for part in parts:
        bench.measure(part, settings, folder, environment(settings.device))
    bench.assemble(folder)
    found = json.loads((folder / "report.json").read_text())
    assert (folder / "report.md").read_text() == report.render(found)
    return found


@pytest.mark.slow
def test_quick_parts_appear_in_the_report(settings, tmp_path, monkeypatch):
    monkeypatch.delitem(pieces.CONTRASTS, "plain")  # saves a process
    monkeypatch.setattr(pieces, "IMPORTS", {"pckd_nb": "import json", "torch": "import csv"})
    monkeypatch.setattr(pieces, "FIRST_USE", {"first use": "import json"})
    found = run(["data", "folders", "contrast", "import"], settings, tmp_path)
    keys = {"data_path_ratio", "contrast_extra_gib", "contrast_pair_ratio", "import_over_torch", "help_seconds"}
    keys |= {"first_use_over_torch", "folder_16_ratio", "folder_112_ratio"}
    assert keys <= found.keys()
    assert found["parts"]["data"]["environment"]["versions"]["torch"]
    assert found["data_path_ratio"] > 0 and found["import_over_torch"] > 0
    assert found["help_seconds"] == found["parts"]["import"]["details"]["seconds"][pieces.HELP]["median"] > 0
    text = (tmp_path / "report.md").read_text()
    assert "not measured" in text and str(tmp_path) not in text
    assert "| import | 20" in text and text.count("Processor: ") == 1


def test_the_tsne_part_compares_two_libraries(settings, tmp_path):
    pytest.importorskip("openTSNE")
    found = run(["tsne"], settings, tmp_path)
    libraries = found["parts"]["tsne"]["details"]["libraries"]
    assert set(libraries) == {"scikit-learn", "openTSNE"} and found["tsne_ratio"] > 0
    assert all(0 < by["neighbours_kept"]["median"] <= 1 for by in libraries.values())


@pytest.mark.slow
def test_training_parts_appear_in_the_report(settings, tmp_path):
    found = run(["steps", "sweep"], settings, tmp_path)
    assert {f"{pair}_{kind}_ratio" for pair in ("wrn", "resnet") for kind in ("live", "cached")} <= found.keys()
    assert {"step_over_bare", "step_over_bare_resnet", "sweep_over_single_runs"} <= found.keys()
    for shares in found["parts"]["steps"]["details"]["pairs"]["wrn"]["10"]["profile"].values():
        assert sum(shares.values()) == pytest.approx(1) and shares["student forward"] > 0 and shares["backward"] > 0
    check_pieces(found["parts"]["steps"]["details"], "wrn", "10")
    assert "The teacher was trained for 1 epoch." in (tmp_path / "report.md").read_text()


def check_pieces(details, pair, batch):
    """Check the seconds of each piece of a step and its share of the peak."""
    found = details["pairs"][pair][batch]
    step = found["lines"]["live"]["seconds_per_step"]["median"]
    assert set(found["pieces"]) == {"teacher", "student forward", "loss terms", "backward", "data"}
    for name, piece in found["pieces"].items():
        assert piece["seconds"] == pytest.approx(found["profile"]["live"][name] * step)
        peak = details["bytes_per_second"] if name == "data" else details["peaks_flops"][piece["peak"]]
        amount = piece["bytes"] if name == "data" else piece["flops"]
        assert piece["share_of_peak"] == pytest.approx(amount / piece["seconds"] / peak) and amount > 0
    flops = found["pieces"]["student forward"]["flops"], found["pieces"]["backward"]["flops"]
    assert flops[1] == 2 * flops[0]


def test_a_profile_names_every_call_of_a_step(pair):
    shares = steps.profile(pair.live(), 1)
    assert list(shares) == list(steps.PARTS)
    assert all(share > 0 for share in shares.values())


def test_accuracy_continues_after_an_interruption(settings, tmp_path, monkeypatch):
    seeds = []

    def accuracy_or_interrupt(settings, seed):
        seeds.append(seed)
        if len(seeds) == 2:
            raise KeyboardInterrupt
        return {"fast": 60 + seed, "plain": 59.0, "teacher_fast": 70.0, "teacher_float32": 70.1}

    monkeypatch.setattr(studies, "accuracy_of_seed", accuracy_or_interrupt)
    with pytest.raises(KeyboardInterrupt):
        bench.measure("accuracy", settings, tmp_path, environment(settings.device))
    found = run(["accuracy"], settings, tmp_path)
    assert seeds == [0, 1, 1]
    assert found["accuracy_difference"] == pytest.approx(1.5)
    assert found["accuracy_interval_low"] < 1.5 < found["accuracy_interval_high"]
    monkeypatch.undo()
    settings = dataclasses.replace(settings, accuracy_seeds=(0,))
    row = studies.accuracy_of_seed(settings, 0)
    assert all(0 <= value <= 100 for value in row.values())


def test_the_stored_report_matches_its_json():
    if not (FOLDER / "report.json").exists():
        pytest.skip("nothing measured yet")
    assert (FOLDER / "report.md").read_text() == report.render(json.loads((FOLDER / "report.json").read_text()))


def test_the_costs_of_methods_are_measured_relative_to_kd(settings, monkeypatch, tmp_path):
    settings = dataclasses.replace(settings, pairs={"unequal": ("resnet14", "wrn_16_1")}, repetitions=2)
    monkeypatch.setattr(methods, "Settings", lambda **_: settings)
    monkeypatch.setattr(methods, "ARMS", (*methods.ARMS[:2], "SRRL", "CRD-negatives=20", "KDSVD"))
    threads, file = torch.get_num_threads(), tmp_path / "methods.json"
    bench.methods.main(["--threads", str(threads), "--out", str(file)])
    found = json.loads(file.read_text())
    assert (found["batch_size"], found["classes"], found["image"]) == (10, 100, [3, 32, 32])
    costs = found["pairs"]["unequal"]["methods"]
    assert list(costs) == list(methods.ARMS)
    assert all(cost["time"]["value"] > 0 and cost["time"]["repetitions"] == 2 for cost in costs.values())
    assert costs["kd"]["memory"] == 1 and costs["kd"]["own_bytes"] == 0 and costs["supervised"]["teacher_form"] is None
    assert costs["SRRL"]["own_bytes"] >= 4 * costs["SRRL"]["own_parameters"] > 0
    assert costs["CRD-negatives=20"]["own_bytes"] > 100 * 2 * 128 * 4  # the memories of 100 images


def test_a_method_that_refuses_a_pair_has_no_costs(settings, tmp_path):
    pair = work.Pair(settings, "wrn_16_2", "wrn_16_1", 10, tmp_path)
    found = methods.measure_pair(pair, ["kd", "KDSVD"])
    assert found["KDSVD"].keys() == {"refused"} and "choose networks of the same width" in found["KDSVD"]["refused"]
    assert found["kd"]["saved_bytes"] > 10 * 3 * 32 * 32 * 4


def test_saved_storages_count_once(settings, tmp_path):
    class Loop:
        def step(self):
            x = torch.ones(5, requires_grad=True)
            y = x.exp()  # saved for the gradient, and once more by the product
            (y * y).sum().backward()

    assert methods.saved_bytes(Loop()) == 5 * 4


def test_at_most_20_minutes_are_planned():
    assert PLANNED.keys() == SETTINGS_OF_PART.keys() == bench.PARTS.keys()
    assert sum(PLANNED.values()) <= 20 * 60
    assert Settings().planned == PLANNED and not Settings().full().planned
    assert len(Settings().accuracy_seeds) == len(Settings().full().accuracy_seeds) == 5


@pytest.mark.parametrize("name", ["resnet14", "wrn_16_1"])
def test_a_teacher_for_timing_has_nearly_the_same_logits_in_bfloat16(name, settings):
    settings = dataclasses.replace(settings, teacher_epochs={}, teacher_train_size=200)
    teacher = work.make_teacher(settings, name)
    assert not teacher.training
    data = work.load_shapes(settings, 200)
    images = views.normalise(data.train.images[:64], torch.tensor(data.mean), torch.tensor(data.std))
    x = images.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        logits = teacher(x).logits
        with torch.autocast("cpu", torch.bfloat16):
            low_precision = teacher(x).logits.float()
    error = (low_precision - logits).norm() / logits.norm()
    assert 0 < error < 0.02 / 2
    # its head classifies by the nearest class mean, and its features still vary
    right = (logits.argmax(1) == data.train.labels[:64]).float().mean()
    assert right > 0.1 and logits.std(0).min() > 1e-3
    again = work.make_teacher(settings, name)
    assert all(torch.equal(x, again.state_dict()[key]) for key, x in teacher.state_dict().items())


def report_for_processor(bfloat16: bool | None, precision: str = "float32") -> dict:
    """Return a report of training steps only, with what the targets need."""
    capabilities = {} if bfloat16 is None else {"capabilities": {"AVX2": True, "bfloat16": bfloat16}}
    details = {"pairs": {"wrn": {"64": {"lines": {"live": {"precision": precision}}}}}}
    part = {"environment": {"device": "cpu", **capabilities}, "details": details}
    measured = {"wrn_live_ratio": 1.6, "resnet_live_ratio": 2.65, "resnet_cached_ratio": 2.8, "import_over_torch": 1.2}
    return {**measured, "parts": {"steps": part}}


def test_targets_depend_on_the_features_of_the_processor():
    for found, native in (
        (report_for_processor(True), True),
        (report_for_processor(False), False),
        (report_for_processor(None, "bfloat16"), True),
        (report_for_processor(None, "float32"), False),
    ):
        rows = {line.split(" | ")[0][2:]: line for line in report.targets(found).splitlines() if line.startswith("| ")}
        row = {target.key: rows[target.description] for target in report.TARGETS}
        assert row["wrn_live_ratio"].endswith("| ≥ 3.5 | **not met** |" if native else "| ≥ 1.5 | met |")
        assert row["resnet_live_ratio"].endswith("| ≥ 2.7 | **not met** |" if native else "| ≥ 1.9 | met |")
        assert row["wrn_cached_ratio"].endswith(f"| not measured | ≥ {5.5 if native else 2.2} |  |")
        limit = "≥ 4" if native else "≥ 2.9"
        assert row["resnet_cached_ratio"].endswith(f"| {limit} | **not met** |")
        assert row["import_over_torch"].endswith("| ≤ 1.1 | **not met** |")


def test_a_report_names_the_processor_and_its_features(monkeypatch):
    monkeypatch.setattr(
        measure.hardware, "cpu_features", lambda: {"avx2": True, "avx512_f": True, "avx512_vnni": False}
    )
    machine = {**environment(torch.device("cpu")), "cpu": "EPYC", "cpu_cores": 2, "torch_threads": 1}
    (line,) = report.processors({"data": {"environment": machine}, "tsne": {"environment": machine}})
    supported = "AVX2 yes, AVX-512 yes, bfloat16 no, VNNI no"
    assert line == f"Processor: EPYC, 2 cores, 1 thread. It supports: {supported}."


def test_an_int8_teacher_is_compared_with_the_fastest_product():
    peak = {"float32": 2.0, "bfloat16": 1.0}
    forms = {"int8": "float32", "folded": "float32", "float32": "float32", "bfloat16": "bfloat16"}
    assert {form: steps.teacher_peak(form, peak) for form in forms} == forms


def test_bfloat16_is_only_measured_if_the_processor_supports_it(settings, monkeypatch):
    for native in (True, False):
        monkeypatch.setattr(steps.hardware, "computes_in_bfloat16", lambda device, native=native: native)
        assert ("bfloat16" in steps.peaks(settings)) == native


def test_unknown_parts_are_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmarks", "stesp"])
    with pytest.raises(SystemExit):
        bench.main()
    assert "there is no part 'stesp'" in capsys.readouterr().err
