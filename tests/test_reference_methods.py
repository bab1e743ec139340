"""The loss terms of the other methods against numbers that the authors' code computed, see `pckd_nb.methods.terms`.

A file has inputs, losses and gradients. grad_X is the gradient of the loss with respect to X, and grad_total_X that of
the total. A second case of a method needs only its file: a test finds the function by the name of the file.
"""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pckd_nb.losses import distillation_kl
from pckd_nb.methods.terms import contrast, logits, maps, relations, rotations
from pckd_nb.models.simkd import SimKDProjector

FILES = sorted((Path(__file__).parent / "reference" / "methods").glob("*.npz"))
NETWORKS = "student", "teacher"
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
GRADIENT = re.compile(r"(step\d_)?grad_(total_|stage1_|ttm_|loss_tf_|loss_ss_|)(step\d_)?(.+)")
LOSS = {"": "loss", "ttm_": "loss_ttm", "stage1_": "stage1_loss"}


class Values(dict):
    """The arrays of a file as tensors, also as attributes. Those that have a gradient in the file require one."""

    def __init__(self, path, dtype):
        with np.load(path, allow_pickle=False) as file:
            for key in file.files:
                if not key.startswith("source_"):
                    value = torch.from_numpy(np.array(file[key]))
                    self[key] = value.to(dtype) if value.is_floating_point() else value
        self.gradients = {}  # name: (loss, input, expected gradient)
        for key in self:
            if match := GRADIENT.fullmatch(key):
                first, loss, second, name = (part or "" for part in match.groups())
                self.gradients[key] = (first or second) + LOSS.get(loss, loss.strip("_")), second + name
        for _, name in self.gradients.values():
            if name in self:
                self[name].requires_grad_()

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def several(self, name):
        """Return name0, name1 and so on."""
        return [self[f"{name}{i}"] for i in range(99) if f"{name}{i}" in self]

    def load(self, module, prefix):
        """Give a module the parameters of the file. They become inputs, so that their gradients are compared."""
        module.to(self.dtype).train()
        for name, parameter in module.named_parameters():
            key = f"{prefix}_{name.replace('.', '_')}"
            assert parameter.shape == self[key].shape, key
            parameter.data.copy_(self[key])
            self[key] = parameter
        return module

    @property
    def dtype(self):
        return next(value.dtype for value in self.values() if value.is_floating_point())

    def with_cross_entropy(self, loss, **parts):
        """Return the losses of most files: the total is the weighted sum of cross-entropy and loss."""
        loss_ce = F.cross_entropy(self.student_logits, self.labels)
        return {"loss": loss, "loss_ce": loss_ce, "total": self.weight_ce * loss_ce + self.weight * loss, **parts}


def kd(v):
    return v.with_cross_entropy(distillation_kl(v.student_logits, v.teacher_logits, v.temperature).mean())


def dist(v):
    inter, intra = logits.dist_relations(v.student_logits, v.teacher_logits, v.temperature)
    return v.with_cross_entropy(v.beta * inter + v.gamma * intra, loss_inter=inter, loss_intra=intra)


def mlkd(v):
    views = v.student_logits_weak, v.student_logits_strong, v.teacher_logits_weak, v.teacher_logits_strong
    terms = [v.weight * term for term in logits.mlkd(*views, v.temperatures.tolist())]
    loss_ce = v.weight_ce * sum(F.cross_entropy(z, v.labels) for z in views[:2])
    names = dict(zip(("loss_kd", "loss_class", "loss_batch"), terms, strict=True))
    return {"loss": sum(terms), "total": sum(terms) + loss_ce, "loss_ce": loss_ce, **names}


def wttm(v):
    arguments = v.student_logits, v.teacher_logits, v.exponent
    return v.with_cross_entropy(logits.wttm(*arguments), loss_ttm=logits.ttm(*arguments))


def wkdl_cost(v):
    raw = logits.class_costs(v.class_features)
    return {"cost_matrix_raw": raw, "cost_matrix": logits.sharpened_costs(raw, v.sharpen)}


def wkdl(v):
    weight = logits.weight_in_epoch(v.weight, v.epoch, v.epochs, v.decay_epoch)
    costs = logits.sharpened_costs(v.cost_matrix_raw, v.sharpen)
    target = logits.wkd_target(v.student_logits, v.teacher_logits, v.labels)
    transport = logits.wkd_transport(
        v.student_logits, v.teacher_logits, v.labels, costs, v.temperature, v.sinkhorn_lambda,
        int(v.sinkhorn_iterations),
    )  # fmt: skip
    loss, loss_ce = target + weight * transport, F.cross_entropy(v.student_logits, v.labels)
    parts = {"loss_target": target, "loss_transport": transport, "weight_at_epoch": weight, "cost_matrix": costs}
    return {"loss": loss, "loss_ce": loss_ce, "total": loss_ce + loss, **parts}


def skd(v):
    kd_term, direction = logits.skd(v.student_logits, v.teacher_logits, v.temperature, v.tikhonov)
    loss, loss_ce = v.weight * (kd_term + direction), v.weight_ce * F.cross_entropy(v.student_logits, v.labels)
    return {
        "loss": loss, "total": loss + loss_ce, "loss_ce": loss_ce, "loss_kd": v.weight * kd_term,
        "loss_direction": v.weight * direction,
        "mahalanobis_unmasked": logits.skd_direction(v.student_logits, v.teacher_logits, v.tikhonov),
        "kl_unmasked": distillation_kl(v.student_logits, v.teacher_logits, v.temperature).mean(),
    }  # fmt: skip


def cc(v):
    embeddings = (F.linear(v[f"{n}_features"], v[f"embed_{n}_weight"], v[f"embed_{n}_bias"]) for n in NETWORKS)
    return v.with_cross_entropy(relations.neighbour_congruence(*embeddings))


def regressed_map(v):
    shapes = v.student_m0.shape[1:], v.teacher_m0.shape[1:]
    return v.load(maps.Regressor(*shapes), "regressor")(v.student_m0)


def fitnet(v):
    regressed = regressed_map(v)
    return v.with_cross_entropy(maps.hint_loss(regressed, v.teacher_m0), regressed=regressed)


def nst(v):
    pairs = zip(v.several("student_m"), v.several("teacher_m"), strict=True)
    terms = [maps.neuron_selectivity(*pair) for pair in pairs]
    return v.with_cross_entropy(sum(terms), **{f"loss_m{i}": term for i, term in enumerate(terms)})


def fsp(v):
    student, teacher = v.several("student_m"), v.several("teacher_m")
    loss, results = 0, {}
    for i in range(len(student) - 1):
        term = maps.fsp_loss(student[i], student[i + 1], teacher[i], teacher[i + 1])
        loss, results[f"loss_pair{i}"] = loss + term, term
        results[f"fsp_student_pair{i}"] = maps.fsp_matrix(student[i], student[i + 1])
    return {"loss": loss, "total": loss, **results}


def ab(v):
    student, teacher = v.several("student_m"), v.several("teacher_m")
    weights, parts = maps.level_weights(len(student), 3 / 1000), {}
    for i, (x, y) in enumerate(zip(student, teacher, strict=True)):
        connector = maps.ab_connector(tuple(x.shape[1:]), tuple(y.shape[1:]))
        x = v.load(connector, f"connector{i}")(x)
        parts[f"loss_m{i}"] = weights[i] * maps.activation_boundary(x, y, v.margin)
    loss = sum(parts.values())
    relative = torch.tensor(maps.level_weights(len(student), 1.0))
    return {"loss": loss, "total": loss, "level_weights": relative, **parts}


def ft(v):
    channels = v.student_m0.shape[1], v.teacher_m0.shape[1]
    paraphraser = v.load(maps.Paraphraser(channels[1], float(v.k)), "paraphraser")
    translator = v.load(maps.Translator(*channels, float(v.k)), "translator")
    factors = translator(v.student_m0), paraphraser.encoder(v.teacher_m0)
    stage1_loss = F.mse_loss(paraphraser(v.teacher_m0), v.teacher_m0)
    parts = {"stage1_loss": stage1_loss, "factor_student": factors[0], "factor_teacher": factors[1]}
    return v.with_cross_entropy(maps.factor_transfer(*factors), **parts)


def kdsvd(v):
    references = [vector[:, :, 0] for vector in v.several("teacher_v")]
    terms = maps.kdsvd_losses(v.several("student_m"), v.several("teacher_m"), references)
    return v.with_cross_entropy(terms.sum(), **{f"loss_pair{i}": term for i, term in enumerate(terms)})


def srrl(v):
    student, teacher = (v.get(f"{n}_m0", v.get(f"{n}_features")) for n in NETWORKS)
    connected = v.load(maps.SRRLConnector(student.shape[1], teacher.shape[1]), "connector")(student)
    layer = v.teacher_classifier_weight, v.teacher_classifier_bias
    feature, classifier = maps.srrl_losses(connected, teacher, v.teacher_logits, *layer)
    results = v.with_cross_entropy(feature + classifier, loss_feature=feature, loss_classifier=classifier)
    if "weight_kl" in v:
        results["loss_kl"] = distillation_kl(v.student_logits, v.teacher_logits, v.temperature).mean()
        results["total"] = results["total"] + v.weight_kl * results["loss_kl"]
    return results


def simkd(v):
    shapes = tuple(v.student_m0.shape[1:]), tuple(v.teacher_m0.shape[1:])
    projected = v.load(SimKDProjector(*shapes, int(v.factor)), "projector")(v.student_m0)
    loss = maps.simkd_loss(projected, v.teacher_m0)
    reused = maps.reused_logits(projected, v.teacher_classifier_weight, v.teacher_classifier_bias)
    return {"loss": loss, "total": v.weight * loss, "projected": projected, "student_logits_reused": reused}


def ofd(v):
    student, teacher = v.several("student_m"), v.several("teacher_m")
    weights, parts = maps.level_weights(len(student), float(v.weight)), {}
    for i, (x, y) in enumerate(zip(student, teacher, strict=True)):
        x = v.load(maps.OFDConnector(x.shape[1], y.shape[1]), f"connector{i}")(x)
        parts[f"margin{i}"] = margin = maps.ofd_margin(v[f"teacher_bn{i}_weight"], v[f"teacher_bn{i}_bias"])
        parts[f"loss_m{i}"] = weights[i] * maps.ofd_loss(x, y, margin)
    loss = sum(value for key, value in parts.items() if key.startswith("loss"))
    loss_ce = F.cross_entropy(v.student_logits, v.labels)
    return {"loss": loss, "loss_ce": loss_ce, "total": v.weight_ce * loss_ce + loss, **parts}


def catkd(v):
    results = {"student_logits": v.student_cam.mean((2, 3))}
    loss = maps.catkd_loss(v.student_cam, v.teacher_cam, int(v.resolution), bool(v.normalize))
    loss_ce = F.cross_entropy(results["student_logits"], v.labels)
    return {"loss": loss, "loss_ce": loss_ce, "total": v.weight_ce * loss_ce + v.weight * loss, **results}


def wkdf(v):
    mean, deviation = maps.wkdf_losses(regressed_map(v), v.teacher_m0, int(v.grid))
    weight = logits.weight_in_epoch(v.weight, v.epoch, v.epochs, v.decay_epoch)
    loss, loss_ce = v.mean_ratio * mean + deviation, F.cross_entropy(v.student_logits, v.labels)
    parts = {"loss_mean": mean, "loss_deviation": deviation, "weight_at_epoch": weight}
    return {"loss": loss, "loss_ce": loss_ce, "total": v.weight_ce * loss_ce + weight * loss, **parts}


def crd(v):
    sizes = v.step0_student_features.shape[1], v.step0_teacher_features.shape[1]
    module = contrast.CRD(*sizes, int(v.dataset_size), int(v.embed_dim), float(v.temperature), float(v.momentum))
    module.to(v.dtype).load_state_dict({"memory_student": v.memory_student, "memory_teacher": v.memory_teacher}, False)
    for n in NETWORKS:
        v.load(module.get_submodule(f"embed_{n}"), f"embed_{n}")
    results = {}
    for s in ("step0_", "step1_"):
        index, rows = v[f"{s}indices"], v[f"{s}contrast_indices"]
        anchors = module(v[f"{s}student_features"], v[f"{s}teacher_features"], index, rows[:, 1:])
        results |= {f"{s}loss_{n}_anchor": loss for n, loss in zip(NETWORKS, anchors, strict=True)}
        results |= {f"{s}memory_{n}_after": module.get_buffer(f"memory_{n}").clone() for n in NETWORKS}
        results |= {f"{s}z_{n}": module.get_buffer(f"z_{n}").clone() for n in NETWORKS}
        results[f"{s}loss"] = sum(anchors)
        results[f"{s}loss_ce"] = F.cross_entropy(v[f"{s}student_logits"], v[f"{s}labels"])
        results[f"{s}total"] = v.weight_ce * results[f"{s}loss_ce"] + v.weight * results[f"{s}loss"]
    return {"loss": results["step0_loss"], "total": results["step0_total"], **results}


def view_major(x, images):
    """Reorder rows: in the files, the views of an image are neighbours."""
    return x.unflatten(0, (images, -1)).transpose(0, 1).flatten(0, 1)


def sskd(v):
    images, rows = len(v.labels), ("student_logits", "teacher_logits", "student_ss", "teacher_ss")
    x = {name: view_major(v[name], images) for name in rows}
    settings = v.temperature_kd, v.temperature_ss, v.ratio_tf, v.ratio_ss
    parts = rotations.sskd_losses(*x.values(), v.labels, *settings)
    loss = v.weight_kd * parts.kd + v.weight_tf * parts.transformed + v.weight_ss * parts.self_supervised
    loss_ce = F.cross_entropy(x["student_logits"][:images], v.labels)

    similarities = rotations.view_similarities(x["teacher_ss"], images)
    ss_rank = rotations.answer_ranks(similarities, torch.arange(images).repeat(3))
    tf_rank = rotations.answer_ranks(x["teacher_logits"][images:], v.labels.repeat(3))
    kept = {}
    for name, rank, ratio in (("kept_tf", tf_rank, v.ratio_tf), ("kept_ss", ss_rank, v.ratio_ss)):
        kept[name] = view_major(rotations.rows_to_keep(rank, ratio), 3).nonzero()[:, 0]  # back to the order of the file
    return {
        "loss": loss, "loss_ce": loss_ce, "total": v.weight_ce * loss_ce + loss, "loss_kd": parts.kd,
        "loss_tf": parts.transformed, "loss_ss": parts.self_supervised,
        "stage1_loss": rotations.contrast_loss(x["teacher_ss"], images),
        "teacher_similarity_rank": view_major(ss_rank, 3), **kept,
    }  # fmt: skip


def hsakd(v):
    images = len(v.labels)
    student, teacher = (view_major(v[f"{n}_logits"], images) for n in NETWORKS)
    heads = [[view_major(head, images) for head in v.several(f"{n}_head")] for n in NETWORKS]
    of_logits, of_heads = rotations.hsakd_losses(student, teacher, *heads, v.temperature)
    loss, loss_ce = of_logits + sum(of_heads), F.cross_entropy(student[:images], v.labels)
    return {
        "loss": loss, "loss_ce": loss_ce, "total": v.weight_ce * loss_ce + v.weight * loss, "loss_logits": of_logits,
        "stage1_loss": loss_ce + rotations.joint_cross_entropy(heads[0], v.labels),
        "joint_labels": view_major(rotations.joint_labels(v.labels), 4),
        **{f"loss_head{i}": term for i, term in enumerate(of_heads)},
    }  # fmt: skip


fitnet_valid, kdsvd_signs, srrl_pooled, ofd_pool = fitnet, kdsvd, srrl, ofd
METHODS = {
    name: globals()[name]
    for name in (
        "kd dist mlkd wttm wkdl_cost wkdl skd cc fitnet fitnet_valid nst fsp ab ft kdsvd kdsvd_signs srrl srrl_pooled "
        "simkd ofd ofd_pool catkd wkdf crd sskd hsakd"
    ).split()
}


def errors(path, dtype):
    """Yield the name and the relative error of everything in a file that the package computes."""
    v = Values(path, dtype)
    expected, before = dict(v), {key: value.clone() for key, value in v.items()}
    results = METHODS[path.stem.rsplit("_", 1)[0]](v)
    computed = {key: torch.as_tensor(value, dtype=dtype).detach() for key, value in results.items() if key in expected}
    missing = {key for key in expected if re.match(r"(step\d_|stage1_)?(loss|total)", key)} - set(results)
    assert missing <= {"loss_float32"} and v.gradients.keys() == {key for key in expected if "grad_" in key}
    for key, (loss, name) in v.gradients.items():
        computed[key] = torch.autograd.grad(results[loss], v[name], retain_graph=True)[0]
    assert all(torch.equal(before[key], expected[key].detach()) for key in before)
    for key, value in computed.items():
        largest = expected[key].abs().max().item()
        scale = largest if largest > 1e-13 else 1  # the gradient of a bias before BatchNorm is only rounding
        assert value.shape == expected[key].shape, key
        yield key, (value.double() - expected[key].double()).abs().max().item() / scale


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_agrees_with_the_authors(path, dtype):
    wrong = {key: error for key, error in errors(path, dtype) if not error <= TOLERANCE[dtype]}
    assert not wrong


LABELS = torch.tensor([0, 2, 1, 0, 4, 3])
COSTS = 0.5 * (1 - torch.eye(5))
FLAT, MAP, VIEWS = (6, 5), (3, 4, 8, 8), (8, 5)
# name: (term of student and teacher, shape of both)
TERMS = {
    "DIST": (lambda s, t: sum(logits.dist_relations(s, t)), FLAT),
    "MLKD": (lambda s, t: sum(logits.mlkd(s, s.flip(0), t, t.flip(0))), FLAT),
    "TTM": (lambda s, t: logits.ttm(s, t, 1.0), FLAT),
    "WTTM": (lambda s, t: logits.wttm(s, t, 1.0), FLAT),
    "WKD-L target": (lambda s, t: logits.wkd_target(s, t, LABELS.to(s.device)), FLAT),
    "WKD-L": (lambda s, t: logits.wkd_transport(s, t, LABELS.to(s.device), COSTS.to(s)), FLAT),
    "SKD": (lambda s, t: sum(logits.skd(s, t)), FLAT),
    "CC": (relations.neighbour_congruence, FLAT),
    "FitNet": (maps.hint_loss, MAP),
    "NST": (maps.neuron_selectivity, MAP),
    "FSP": (lambda s, t: maps.fsp_loss(s, s[..., ::2, ::2], t, t[..., ::2, ::2]), MAP),
    "AB": (maps.activation_boundary, MAP),
    "FT": (maps.factor_transfer, MAP),
    "KDSVD": (lambda s, t: maps.kdsvd_losses([s, s[:, 1:]], [t, t[:, 1:]]).sum(), MAP),
    "SRRL": (lambda s, t: sum(maps.srrl_losses(s, t, t[:, :, 0, 0], torch.eye(4).to(s), None)), MAP),
    "SimKD": (maps.simkd_loss, MAP),
    "OFD": (lambda s, t: maps.ofd_loss(s, t, torch.full((4,), -0.1).to(s)), MAP),
    "CAT-KD": (lambda s, t: maps.catkd_loss(s, t, 4, normalize=True), MAP),
    "WKD-F": (lambda s, t: sum(maps.wkdf_losses(s, t, 2)), MAP),
    "SSKD": (lambda s, t: sum(rotations.sskd_losses(s, t, s[:, 1:], t[:, 1:], LABELS[:2].to(s.device))), VIEWS),
    "HSAKD": (lambda s, t: sum(rotations.hsakd_losses(s, t, [s], [t])[1]), VIEWS),
}
NOT_ZERO = {"WKD-L target", "WKD-L", "AB", "SRRL"}  # for student = teacher


def pair(name, dtype=torch.float64, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    both = torch.randn(2, *TERMS[name][1], generator=generator).to(dtype) * scale
    return both[0].clone().requires_grad_(), both[1].clone().requires_grad_()


@pytest.mark.parametrize("name", TERMS)
class TestEveryTerm:
    def test_the_teacher_gets_no_gradient(self, name):
        student, teacher = pair(name)
        TERMS[name][0](student, teacher).backward()
        assert student.grad.abs().max() > 0
        assert teacher.grad is None or name == "CC"  # there the embedding of the teacher is trained

    @pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
    def test_of_zeros_value_and_gradient_are_finite(self, name, dtype):
        student, teacher = pair(name, dtype, scale=0)
        loss = TERMS[name][0](student, teacher)
        loss.backward()
        assert loss.isfinite() and student.grad.isfinite().all() and student.grad.abs().max() < 10

    @pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
    def test_a_channel_of_zeros_gives_finite_gradients(self, name, dtype):
        student, teacher = (x.detach().clone() for x in pair(name, dtype))
        student[:, 0] = teacher[:, 1] = student[1] = 0
        student.requires_grad_()
        loss = TERMS[name][0](student, teacher)
        loss.backward()
        assert loss.isfinite() and student.grad.isfinite().all()
        assert student.grad.abs().max() < 1e4 or name == "DIST"  # it divides by 1e-8 there

    @pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
    def test_the_same_network_twice_costs_nothing(self, name, dtype):
        student, teacher = pair(name, dtype)[0], pair(name, dtype)[0]
        loss = TERMS[name][0](student, teacher)
        loss.backward()
        assert name in NOT_ZERO or (loss.abs() < 1e-4 and student.grad.abs().max() < 1e-4)
        assert student.grad.isfinite().all()

    def test_half_precision_and_autocast_compute_in_float32(self, name):
        term, (student, teacher) = TERMS[name][0], (x.detach().bfloat16() for x in pair(name))
        if name not in ("WKD-L", "SRRL", "OFD"):  # they have other arguments, which are rounded too
            assert torch.equal(term(student, teacher), term(student.float(), teacher.float()))
        student, teacher = student.float(), teacher.float()
        with torch.autocast("cpu", torch.bfloat16):
            inside = term(student, teacher)
        assert inside.dtype == torch.float32 and torch.equal(inside, term(student, teacher))

    def test_it_mixes_no_devices_and_does_not_wait_for_values(self, name):
        student, teacher = (x.detach().to("meta") for x in pair(name))  # a device without values
        loss = TERMS[name][0](student.requires_grad_(), teacher)
        loss.backward()
        assert loss.device.type == student.grad.device.type == "meta"

    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    def test_a_value_that_is_not_finite_is_not_hidden(self, name, value):
        student, teacher = (x.detach().float() for x in pair(name))
        student[1] = value
        assert not TERMS[name][0](student, teacher).isfinite()

    def test_the_gradient_is_that_of_the_value(self, name):
        student, teacher = pair(name)
        assert torch.autograd.gradcheck(lambda x: TERMS[name][0](x, teacher), student, fast_mode=True)

    def test_wrong_arguments_are_refused(self, name):
        student, teacher = pair(name)
        with pytest.raises(ValueError):
            TERMS[name][0](student, teacher[:1])
        with pytest.raises(ValueError):
            TERMS[name][0](student[None], teacher[None])


def test_dist_ignores_scale_and_shift_of_the_probabilities():
    a, b = torch.rand(2, 4, 6, dtype=torch.float64)
    same = logits.pearson_correlation(a, b)
    torch.testing.assert_close(logits.pearson_correlation(3 * a + 1, b), same, rtol=0, atol=1e-7)


def test_with_exponent_one_ttm_and_wttm_are_kd_at_temperature_one():
    student, teacher = pair("TTM")
    kl = distillation_kl(student, teacher, 1.0).mean()
    torch.testing.assert_close(logits.ttm(student, teacher, 1.0), kl)
    torch.testing.assert_close(logits.wttm(student, teacher, 1.0), kl)


def test_both_ways_to_compute_the_costs_of_classes_agree():
    few, features = torch.rand(3, 5, 9, dtype=torch.float64), torch.rand(3, 9, 5, dtype=torch.float64)
    for x in (few, features):
        centered = x - x.mean(1, keepdim=True)
        cka = [[((a.T @ b).norm() ** 2 / (a.T @ a).norm() / (b.T @ b).norm()) for b in centered] for a in centered]
        torch.testing.assert_close(logits.class_costs(x), 1 - torch.tensor(cka, dtype=x.dtype))
    few[1] = 1  # all samples of a class are equal
    assert logits.class_costs(few)[1].tolist() == [1, 1, 1]


def test_the_transport_moves_the_students_probabilities():
    student, teacher = (x.detach().softmax(1) for x in pair("WKD-L"))
    free = logits.sinkhorn_costs(student, teacher, torch.zeros(5, 5, dtype=torch.float64))
    assert (free < 1e-7).all()  # only the 1e-8 that is added to every cost
    exact = (student - teacher).clamp_min(0).sum(1) * 0.5  # every move costs 0.5
    costs = logits.sinkhorn_costs(student, teacher, COSTS.double(), iterations=1000)
    torch.testing.assert_close(costs, exact, rtol=0.01, atol=1e-3)


@pytest.mark.parametrize(
    "student, teacher",
    [
        ((4, 8, 8), (6, 4, 4)),
        ((4, 4, 4), (6, 8, 8)),
        ((4, 7, 9), (6, 4, 9)),
        ((4, 5, 5), (6, 8, 8)),
        ((4, 2, 2), (6, 1, 1)),
    ],
)
def test_a_regressor_reaches_the_teachers_size_or_the_teacher_is_pooled(student, teacher):
    regressed = maps.Regressor(student, teacher)(torch.rand(2, *student))
    smaller = teacher if student != (4, 5, 5) else (6, 5, 5)
    assert regressed.shape == (2, *smaller)
    assert maps.hint_loss(regressed, torch.rand(2, *teacher)).isfinite()


def test_networks_of_other_widths_and_sizes():
    a, b = torch.rand(2, 3, 8, 8), torch.rand(2, 5, 4, 4)
    for x, y in ((a, b), (b, a)):
        assert maps.neuron_selectivity(x, y).isfinite() and maps.factor_transfer(x, y).isfinite()
    wide = torch.rand(2, 3, 4, 4)
    assert maps.kdsvd_losses([a, b], [wide, torch.rand(2, 5, 8, 8)]).isfinite().all()
    tiny = [torch.rand(2, 8, 1, 1), torch.rand(2, 6, 1, 2)]  # fewer positions than vectors
    assert maps.kdsvd_losses(tiny, tiny).sum() < 1e-9


def test_the_sign_of_a_singular_vector_is_fixed():
    x = torch.rand(4, 5, 6, 6)
    vector = maps.first_singular_vector(x)
    assert (vector.sum(1) > 0).all()
    assert torch.equal(maps.first_singular_vector(x, -vector), -vector)
    _, _, expected = torch.linalg.svd(x.flatten(2).mT)
    torch.testing.assert_close(vector.abs(), expected[:, 0].abs())


def test_cells_of_one_position_have_no_deviation():
    x = torch.rand(2, 3, 4, 4)
    for grid in (3, 4):
        with pytest.raises(ValueError, match="equal cells of two or more positions, got a map of 4×4"):
            maps.wkdf_losses(x, x, grid)


class TestCRD:
    labels = torch.arange(40) % 4

    def module(self, **settings):
        torch.manual_seed(0)
        return contrast.CRD(6, 7, 40, embed_dim=8, **settings)

    def batch(self, index):
        torch.manual_seed(1)
        rows = len(index)
        return torch.rand(rows, 6), torch.rand(rows, 7), torch.tensor(index), torch.randint(40, (rows, 5))

    def test_of_a_repeated_image_the_last_embedding_counts(self):
        crd = self.module()
        student, teacher, index, negatives = self.batch([3, 9, 3, 3])
        before = crd.memory_student.clone()
        embedding = crd.embed(student, teacher)[0]
        crd(student, teacher, index, negatives)
        torch.testing.assert_close(crd.memory_student[3], F.normalize(before[3] + embedding[3], dim=0))
        unchanged = [row for row in range(40) if row not in (3, 9)]
        assert torch.equal(crd.memory_student[unchanged], before[unchanged])

    def test_in_eval_mode_nothing_changes(self):
        crd = self.module().eval()
        before = {key: value.clone() for key, value in crd.state_dict().items()}
        assert all(loss.isfinite() for loss in crd(*self.batch([1, 2])))
        assert all(torch.equal(value, before[key]) for key, value in crd.state_dict().items())

    def test_a_checkpoint_continues_the_same_training(self):
        first = self.module()
        first(*self.batch([1, 2]))
        second = contrast.CRD(6, 7, 40, embed_dim=8)
        second.load_state_dict(first.state_dict())
        assert first.z_student > 0
        for a, b in zip(first(*self.batch([4, 5])), second(*self.batch([4, 5])), strict=True):
            assert torch.equal(a, b)

    def test_both_embeddings_are_trained_but_not_the_teacher(self):
        crd, (student, teacher, index, negatives) = self.module(), self.batch([1, 2])
        sum(crd(student.requires_grad_(), teacher.requires_grad_(), index, negatives)).backward()
        assert teacher.grad is None and student.grad.abs().max() > 0
        assert all(parameter.grad.abs().max() > 0 for parameter in crd.parameters())

    def test_it_does_not_wait_for_values(self):
        crd, batch = self.module().to("meta"), self.batch([1, 2])
        assert sum(crd(*(tensor.to("meta") for tensor in batch))).device.type == "meta"

    def test_features_of_zeros_have_finite_gradients(self):
        crd, (student, teacher, index, negatives) = self.module(), self.batch([1, 2])
        torch.nn.init.zeros_(crd.embed_student.bias)
        sum(crd((0 * student).requires_grad_(), teacher, index, negatives)).backward()
        assert all(parameter.grad.isfinite().all() for parameter in crd.parameters())
        assert crd.memory_student.isfinite().all()

    def test_negatives_are_of_other_classes_and_without_replacement(self):
        index = torch.arange(40)
        drawn = contrast.draw_negatives(self.labels, index, 30, seed=0, epoch=1, step=2)
        assert (self.labels[drawn] != self.labels[:, None]).all()
        assert all(len(row.unique()) == 30 for row in drawn)  # all images of other classes
        few = contrast.draw_negatives(self.labels, index, 5, seed=0, epoch=1, step=2)
        assert all(len(row.unique()) == 5 for row in few) and len(few.unique()) == 40
        many = contrast.draw_negatives(self.labels, index, 31, seed=0, epoch=1, step=2)
        assert (self.labels[many] != self.labels[:, None]).all()

    def test_negatives_depend_on_the_arguments_alone(self):
        def draw(index, **changes):
            settings = {"count": 9, "seed": 0, "epoch": 1, "step": 2} | changes
            return contrast.draw_negatives(self.labels, torch.tensor(index), **settings)

        whole = draw([5, 6, 7])
        assert torch.equal(draw([6]), whole[1:2])  # the rest of the batch does not matter
        for change in ({"seed": 1}, {"epoch": 2}, {"step": 3}):
            assert not torch.equal(draw([5, 6, 7], **change), whole)

    def test_wrong_arguments_are_refused(self):
        for labels, index, error in (
            (torch.zeros(4, dtype=torch.int64), [1], "no negatives: all training images have the label 0"),
            (self.labels, [40], "index must be from 0 to 39"),
            (self.labels, [0.5], "index must be whole numbers"),
        ):
            with pytest.raises(ValueError, match=error):
                contrast.draw_negatives(labels, torch.tensor(index), 2, 0, 1, 0)
        with pytest.raises(ValueError, match="momentum must be at least 0 and less than 1, got 1"):
            self.module(momentum=1)


def test_ranks_are_those_of_a_stable_sort():
    scores = torch.randint(3, (50, 6)).double()
    answers = torch.randint(6, (50,))
    order = scores.argsort(dim=1, descending=True, stable=True)
    assert torch.equal(rotations.answer_ranks(scores, answers), (order == answers[:, None]).int().argmax(1))


@pytest.mark.parametrize("ratio", [0, 0.7, 1])
def test_rows_are_kept_in_the_order_of_their_ranks(ratio):
    ranks = torch.tensor([3, 0, 1, 0, 2, 1, 1, 4, 9, 5, 0, 1])  # 9 wrong rows
    kept = rotations.rows_to_keep(ranks, ratio)
    best = sorted(range(12), key=lambda row: ranks[row])[: 3 + int(ratio * 9)]
    assert kept.nonzero()[:, 0].tolist() == sorted(best)


def test_sskd_without_kept_rows_is_zero():
    student, teacher = pair("SSKD")
    answers = torch.tensor([0, 0])
    teacher = torch.zeros_like(teacher).index_fill(1, torch.tensor([4]), 5.0)  # always the same wrong answer
    parts = rotations.sskd_losses(student, teacher, student, student, answers, tf_ratio=0)
    assert parts.transformed == 0 and parts.kd > 0


if __name__ == "__main__":  # the largest errors, as a table
    for path in FILES:
        if path.stem.rsplit("_", 1)[0] in METHODS:
            found = {dtype: list(errors(path, dtype)) for dtype in TOLERANCE}
            worst = [
                max((e for k, e in items if k.startswith("grad") == gradient), default=0)
                for items in found.values()
                for gradient in (False, True)
            ]
            print(f"{path.stem:16}", len(found[torch.float64]), *(f"{error:.1e}" for error in worst))
