"""The loss terms of the other methods against numbers that the authors' code computed, see `pckd_nb.methods.terms.logits`.

A file has inputs, losses and gradients. grad_X is the gradient of the loss with respect to X, and grad_total_X that of
the total. A second case of a method needs only its file: a test finds the function by the name of the file.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pckd_nb.losses import distillation_kl
from pckd_nb.methods.terms import logits, maps, relations

FILES = sorted((Path(__file__).parent / "reference" / "methods").glob("*.npz"))
NETWORKS = "student", "teacher"
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
# what a gradient is the gradient of, by the start of its name
LOSSES = {
    "grad_loss_ss_": "loss_ss", "grad_loss_tf_": "loss_tf", "grad_stage1_": "stage1_loss", "grad_total_": "total",
    "grad_ttm_": "loss_ttm", "grad_": "loss",
}  # fmt: skip


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
            if start := next((start for start in LOSSES if key.startswith(start)), None):
                self.gradients[key] = LOSSES[start], key.removeprefix(start)
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
    projected = v.load(maps.SimKDProjector(*shapes, int(v.factor)), "projector")(v.student_m0)
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


fitnet_valid, kdsvd_signs, srrl_pooled, ofd_pool = fitnet, kdsvd, srrl, ofd
METHODS = {
    name: globals()[name]
    for name in (
        "kd dist mlkd wttm wkdl_cost wkdl skd cc fitnet fitnet_valid nst fsp ab ft kdsvd kdsvd_signs srrl srrl_pooled "
        "simkd ofd ofd_pool catkd wkdf"
    ).split()
}


def errors(path, dtype):
    """Yield the name and the relative error of everything in a file that the package computes."""
    v = Values(path, dtype)
    teacher = {key for key in v if key.startswith(("teacher", "class"))}
    expected, before = dict(v), {key: value.clone() for key, value in v.items()}
    results = METHODS[path.stem.rsplit("_", 1)[0]](v)
    computed = {key: torch.as_tensor(value, dtype=dtype).detach() for key, value in results.items() if key in expected}
    missing = {key for key in expected if key.startswith(("loss", "total", "stage1_loss"))} - set(results)
    assert missing <= {"loss_float32"}
    for key, (loss, name) in v.gradients.items():
        computed[key] = torch.autograd.grad(results[loss], v[name], retain_graph=True)[0]
    assert all(v[key].grad is None for key in teacher)
    assert all(torch.equal(before[key], expected[key].detach()) for key in before if "memory" not in key)
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
