"""Kernels are broken on purpose, in every way that comes to mind: a named check must see it."""

import importlib
from functools import cache

import pytest
import torch
from nequip_cases import build, rattled

import fastmlip
from fastmlip import ops
from fastmlip.integrations.nequip import edge_embedding, edges, per_type_scale_shift
from fastmlip.ops.edge_order import EdgeOrder
from fastmlip.problem import Path, clebsch_gordan

pytestmark = pytest.mark.usefixtures("nequip_state")

CONV, EDGES, LINEAR, PAIRS, SCALE, ZBL = (
    importlib.import_module(f"fastmlip.ops.{name}")
    for name in (
        "tensor_product_conv", "edge_embedding", "irreps_linear", "pair_linear", "scale_shift",
        "zbl",
    )
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The models are too small for more, which would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def model(dtype="float64"):
    return build("tiny", dtype, avg_num_neighbors=8.0)


@cache
def atoms():
    crystal = rattled()
    crystal.symbols[:] = ["Na", "Cl", "O", "Cl"]
    return crystal


def replace_triples(patch, change):
    """Each path's Clebsch-Gordan triples through ``change(path, triples)``."""

    def cg(path):
        triples = clebsch_gordan(path.l1, path.l2, path.l3)
        scaled = [(m1, m2, m3, path.path_weight * c) for m1, m2, m3, c in triples]
        return tuple(change(path, scaled))

    patch.setattr(Path, "cg", property(cg))


def flipped_sign(patch):
    def flip(path, triples):
        if (path.l1, path.l2, path.l3) == (1, 1, 0):
            m1, m2, m3, c = triples[0]
            triples[0] = m1, m2, m3, -c
        return triples

    replace_triples(patch, flip)


def dropped_path(patch):
    def drop(path, triples):
        lost = (path.l1, path.l2, path.l3) == (1, 1, 0)
        return [(*m, 0.0) for *m, _ in triples] if lost else triples

    replace_triples(patch, drop)


def missing_normalisation(patch):
    replace_triples(patch, lambda path, triples: [(*m, c / path.path_weight) for *m, c in triples])


def missing_number_of_neighbours(patch):
    """The factor 1 / sqrt(avg_num_neighbors) that the edge embedding takes over."""
    run = ops.edge_embedding
    patch.setattr(ops, "edge_embedding", lambda *a, **k: run(*a, **{**k, "factor": 1.0}))


def swapped_index(patch):
    run = edges.edge_order
    patch.setattr(edges, "edge_order", lambda dst, src, *more: run(src, dst, *more))


def unsorted_taken_as_sorted(patch):
    right = edges.edge_order

    def order(edge_dst, edge_src, nodes, positions):
        table = right(edge_dst, edge_src, nodes).clone()
        parts = EdgeOrder(table, nodes, len(edge_dst))
        parts.dst_edge.copy_(torch.arange(len(edge_dst)))
        parts.dst_src.copy_(edge_src)
        return table

    patch.setattr(edges, "edge_order", order)


def through_float32(patch):
    run = CONV._CPP["forward"]
    patch.setitem(
        CONV._CPP, "forward", lambda x, *more: run(x.float().double(), *more)
    )  # fmt: skip


def scaled(rungs, rung, which, factor):
    """One output of one rung, or (None) its only one, is off by a factor."""

    def fault(patch):
        run = rungs[rung]

        def wrong(*operands):
            out = run(*operands)
            if which is None:
                return out * factor
            return (*out[:which], out[which] * factor, *out[which + 1 :])

        patch.setitem(rungs, rung, wrong)

    return fault


def lost_term(patch):
    """The double backward forgets what the gradient of edge_weight depends on."""
    run = CONV._CPP["double_backward"]

    def wrong(hx, ha, hw, *more):
        return run(hx, ha, torch.zeros_like(hw), *more)

    patch.setitem(CONV._CPP, "double_backward", wrong)


def cell_without_gradient(patch):
    run = edge_embedding.FastEdgeLengthNormalizer.forward

    def forward(self, data):
        data["cell"] = data["cell"].detach()
        return run(self, data)

    patch.setattr(edge_embedding.FastEdgeLengthNormalizer, "forward", forward)


def bessel(patch, factor):
    """The embedding of edges times ``factor(data)``."""
    run = edge_embedding.FastBesselEdgeLengthEncoding.forward

    def forward(self, data):
        data = run(self, data)
        data[self.edge_invariant_field] = data[self.edge_invariant_field] * factor(data)
        return data

    patch.setattr(edge_embedding.FastBesselEdgeLengthEncoding, "forward", forward)


def depends_on_the_origin(patch):
    bessel(patch, lambda data: 1 + 1e-6 * data["pos"].norm())


def depends_on_axes(patch):
    bessel(patch, lambda data: 1 + 1e-6 * data["edge_vectors"][:, :1].square().to(torch.float64))


def depends_on_the_hand(patch):
    """A pseudoscalar: the edges of an atom as a triple product."""

    def hand(data):
        vectors, centre = data["edge_vectors"], data["edge_index"][0]
        atoms = len(data["pos"])
        lengths = vectors.norm(dim=1, keepdim=True)
        zeros = vectors.new_zeros(atoms, 3)
        sums = [zeros.index_add(0, centre, vectors * lengths**k) for k in range(3)]
        product = torch.linalg.det(torch.stack(sums, 1))
        return 1 + 1e-3 * product[centre][:, None]

    bessel(patch, hand)


def shared_by_all(patch):
    """Edges take the radial weights of others."""
    run = ops.edge_pair
    patch.setattr(ops, "edge_pair", lambda *operands: torch.zeros_like(run(*operands)))


def depends_on_the_batch(patch):
    run = ops.radial_conv

    def wrong(*operands):
        out = run(*operands)
        return out * (1 + 1e-6 * out.square().mean())

    patch.setattr(ops, "radial_conv", wrong)


def types_by_number(patch):
    """Scales and shifts by the numbers of atoms, not by their types."""
    run = per_type_scale_shift.apply

    def wrong(module, values, types):
        return run(module, values, torch.arange(len(types)) % len(module.type_names))

    patch.setattr(per_type_scale_shift, "apply", wrong)


def race(patch):
    run = CONV._CPP["forward"]

    def wrong(*operands):
        out = run(*operands)
        return out + 1e-15 * torch.rand_like(out) * out

    patch.setitem(CONV._CPP, "forward", wrong)


def unwritten_rows(patch):
    """Rows of atoms without edges are what the memory held before: most often zeros."""
    run = ops.radial_conv

    def wrong(x, attr, radial, weight, dst, *more):
        out = run(x, attr, radial, weight, dst, *more)
        lonely = torch.bincount(dst, minlength=len(x)) == 0
        return torch.where(lonely[:, None], torch.empty_like(out), out)

    patch.setattr(ops, "radial_conv", wrong)


def raises(patch):
    def wrong(*operands):
        raise RuntimeError("launch failed")

    patch.setattr(ops, "radial_conv", wrong)


# a fault, the checks that must see it, and some that it must pass: a fault is not just noise
FAULTS = {
    "flipped CG sign": (flipped_sign, ["energies", "rotations"], ["edge order"]),
    "dropped path": (dropped_path, ["energies", "forces"], ["rotations", "force differences"]),
    "missing normalisation": (missing_normalisation, ["energies"], ["rotations"]),
    "missing 1/sqrt(neighbours)": (missing_number_of_neighbours, ["energies"], ["rotations"]),
    "swapped src and dst": (swapped_index, ["one-sided edges"], ["rotations", "edge order"]),
    "unsorted edges": (unsorted_taken_as_sorted, ["edge order", "atom order"], ["energies"]),
    "float32 inside": (through_float32, ["energies"], ["edge order"]),
    "types": (types_by_number, ["energies", "atom order"], ["force differences"]),
    "conv backward, x": (
        scaled(CONV._CPP, "backward", 0, 1.001),
        ["forces", "stress", "force differences", "stress differences", "parameter gradients"],
        ["energies", "rotations"],
    ),
    "conv backward, edge_attr": (
        scaled(CONV._CPP, "backward", 1, -1.0), ["forces", "force differences"], ["energies"],
    ),
    "conv backward, edge_weight": (
        scaled(CONV._CPP, "backward", 2, -1.0), ["forces", "force differences"], ["energies"],
    ),
    "conv double backward": (
        scaled(CONV._CPP, "double_backward", 3, 1.001),
        ["parameter gradients", "gradient differences", "Hessian", "Hessian differences"],
        ["energies", "forces", "force differences"],
    ),
    "conv double backward, a term": (
        lost_term,
        ["parameter gradients", "gradient differences", "Hessian symmetry"],
        ["forces", "force differences"],
    ),
    "pairs": (shared_by_all, ["energies", "forces"], ["rotations", "force differences"]),
    "radial network backward": (
        scaled(PAIRS._LADDER, "dx", None, 1.001),
        ["forces", "stress", "force differences", "parameter gradients"],
        ["energies", "rotations"],
    ),
    "radial network, gradient of weights": (
        scaled(PAIRS._LADDER, "dweight", None, 1.001),
        ["parameter gradients", "gradient differences"],
        ["energies", "forces", "Hessian"],
    ),
    "linear maps, gradient of weights": (
        scaled(LINEAR._LADDER, "dweight", None, 1.001),
        ["parameter gradients", "gradient differences"],
        ["energies", "forces", "Hessian"],
    ),
    "embedding double backward": (
        scaled(EDGES._CPP, "double_backward", 5, 1.01), ["Hessian", "Hessian differences"],
        ["forces", "stress"],
    ),
    "cell gradient": (
        cell_without_gradient, ["stress", "stress differences"], ["forces", "energies"],
    ),
    "origin": (depends_on_the_origin, ["translations"], ["atom order", "force differences"]),
    "axes": (depends_on_axes, ["rotations"], ["translations", "inversion"]),
    "handedness": (depends_on_the_hand, ["inversion"], ["rotations", "translations"]),
    "batch": (depends_on_the_batch, ["batches"], ["rotations", "edge order"]),
    "race": (race, ["repeatability"], ["energies", "forces"]),
    "unwritten rows": (unwritten_rows, ["repeatability"], []),
    "raises": (raises, ["energies", "repeatability"], []),
}  # fmt: skip

EVERYWHERE = ("batch", "unwritten rows", "types")  # seen in batches, or with a lone atom


def test_a_healthy_model_passes():
    report = fastmlip.check(model())
    assert report.passed, report.failed
    assert {row.status for row in report.results} == {"passed", "skipped"}
    assert [row.name for row in report.results if row.status == "skipped"] == ["Jacobian symmetry"]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen(fault, monkeypatch):
    inject, seen, unseen = FAULTS[fault]
    inject(monkeypatch)
    structures = None if fault in EVERYWHERE else atoms()
    report = fastmlip.check(model(), structures, only=[*seen, *unseen])
    assert not report.passed
    status = {name: report[name].status for name in [*seen, *unseen]}
    assert status == {**dict.fromkeys(seen, "failed"), **dict.fromkeys(unseen, "passed")}


@pytest.mark.parametrize(
    "fault",
    ["flipped CG sign", "swapped src and dst", "conv double backward, a term", "unwritten rows"],
)
def test_a_fault_is_seen_in_float32(fault, monkeypatch):
    inject, seen, _ = FAULTS[fault]
    inject(monkeypatch)
    structures = None if fault in EVERYWHERE else atoms()
    report = fastmlip.check(model("float32"), structures, only=seen)
    assert [row.name for row in report.failed] == [row.name for row in report.results[1:]]


@pytest.mark.parametrize(
    ("rungs", "rung", "seen", "unseen"),
    [
        (ZBL._CPP, "edges", ["forces", "stress", "force differences"], ["energies"]),
        (ZBL._CPP, "nodes", ["energies", "forces"], ["rotations"]),
        (SCALE._CPP, "sums", ["parameter gradients", "gradient differences"], ["forces"]),
        (SCALE._CPP, "apply", ["energies", "parameter gradients"], ["rotations"]),
    ],
    ids=["zbl backward", "zbl", "scale_shift gradients", "scale_shift"],
)
def test_a_fault_of_a_smaller_operator_is_seen(rungs, rung, seen, unseen, monkeypatch):
    zbl = {"units": "metal", "chemical_species": ["Na", "Cl", "O"]}
    whole = build(
        "tiny", "float64", avg_num_neighbors=8.0, per_type_energy_scales_trainable=True,
        pair_potential={"_target_": "nequip.nn.pair_potential.ZBL", **zbl},
    )  # fmt: skip
    run = rungs[rung]

    def wrong(*operands):
        out = run(*operands)
        return tuple(1.01 * o for o in out) if isinstance(out, tuple) else 1.01 * out

    monkeypatch.setitem(rungs, rung, wrong)
    report = fastmlip.check(whole, atoms(), only=[*seen, *unseen])
    status = {name: report[name].status for name in [*seen, *unseen]}
    assert status == {**dict.fromkeys(seen, "failed"), **dict.fromkeys(unseen, "passed")}
