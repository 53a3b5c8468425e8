"""Polynomials: what is refused, the table, and MACE's own couplings."""

import pytest
import torch
from e3nn import o3

from fastmlip.ops.symmetric_contraction import reference
from fastmlip.polynomial import HEADER, Polynomial
from fastmlip.testing import OPERATORS, assert_close
from fastmlip.testing.couplings import couplings, polynomial, symmetric

CASES = OPERATORS["symmetric_contraction"].cases


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 1, ()), r"inputs: expected 0 to 65535, got -1"),
        ((1, 2**16, ()), r"outputs: expected 0 to 65535, got 65536"),
        ((2, 1, ((1, (0,)),)), r"terms\[0\]: expected one of 1 outputs, counted from 0, got 1"),
        ((2, 1, ((0, ()),)), r"terms\[0\]: expected a degree from 1 to 3, got \(\)"),
        ((2, 1, ((0, (0, 0, 0, 0)),)), r"terms\[0\]: expected a degree from 1 to 3"),
        ((2, 1, ((0, (0, 2)),)), r"terms\[0\]: expected inputs from 0 to 1, got \(0, 2\)"),
        ((2, 1, ((0, (-1,)),)), r"terms\[0\]: expected inputs from 0 to 1, got \(-1,\)"),
        ((2, 1, ((0, (1, 0)),)), r"terms\[0\]: expected inputs in ascending order, got \(1, 0\)"),
        ((2, 1, ((0, (1,)), (0, (0, 1)))), r"terms\[1\]: expected ascending order, got"),
        ((2, 1, ((0, (1,)), (0, (1,)))), r"terms\[1\]: expected ascending order, got"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Polynomial(*arguments)


def test_it_is_equal_and_hashes_by_what_it_says():
    one, same = (Polynomial(2, 1, ((0, (0,)), (0, (0, 1)))) for _ in range(2))
    assert one == same and hash(one) == hash(same)
    assert one != Polynomial(2, 1, ((0, (0,)),))
    assert one.monomials == 2


@pytest.mark.parametrize("name", CASES)
def test_a_part_of_the_table_is_the_polynomial_or_its_gradient(name):
    """As the GPU kernels read it, in Python's integers."""
    problem = CASES[name].problem
    words = problem.words
    assert words[:3] == (problem.inputs, problem.outputs, len(problem.terms))
    x, grad = ([1, *range(2, n + 2)] for n in (problem.inputs, problem.outputs))
    coefficients = [3 + 2 * t for t in range(len(problem.terms))]

    def part(start, rows, last):
        totals = []
        for row in range(start, start + rows):
            total = 0
            for group in range(words[row], words[row + 1], 4):
                i, j, factor, begin = words[group : group + 4]
                products = (words[p] for p in range(begin, words[group + 7]))
                inner = sum(coefficients[w >> 16] * last[w & 65535] for w in products)
                total += factor * x[i] * x[j] * inner
            totals.append(total)
        return totals

    values = [0] * problem.outputs
    slopes = [0] * problem.inputs
    for (output, monomial), c in zip(problem.terms, coefficients, strict=True):
        whole = c
        for i in monomial:
            whole *= x[i + 1]
        values[output] += whole
        for i in set(monomial):
            slopes[i] += monomial.count(i) * whole * grad[output + 1] // x[i + 1]
    assert part(words[3], problem.outputs, x) == values
    assert part(words[4], problem.inputs, grad) == slopes
    assert words[3] == HEADER + 4 * len(problem.terms)


def test_terms_and_monomials_of_mace():
    """Of l_max 3 and correlation 3, for models with outputs up to l = 0, 1, 2."""
    found = [polynomial(3, l_out, 3) for l_out in (0, 1, 2)]
    assert [(len(p.terms), p.monomials) for p in found] == [(94, 94), (410, 410), (887, 743)]


@pytest.mark.parametrize("l_out", [0, 1, 2])
def test_couplings_are_equivariant_and_their_polynomial_is_maces_sum(l_out):
    """``sum over nu, i.., k: U_nu[m, i.., k] w_nu[k] x[i] ..``, by einsum and as a polynomial."""
    torch.manual_seed(l_out)
    problem = polynomial(3, l_out, 3)
    number = {term: t for t, term in enumerate(problem.terms)}
    c = torch.zeros(1, len(problem.terms), 2, dtype=torch.float64)
    x = torch.randn(1, problem.inputs, 2, dtype=torch.float64)
    want = torch.zeros(1, problem.outputs, 2, dtype=torch.float64)
    for l3 in range(l_out + 1):
        for degree, letters in ((1, "i"), (2, "ij"), (3, "ijk")):
            u = couplings(3, l3, degree)
            w = torch.randn(u.shape[-1], 2, dtype=torch.float64)
            for (m, monomial), ways in symmetric(3, l3, degree).items():
                c[0, number[l3**2 + m, monomial]] += ways @ w
            factors = ",".join(f"n{i}u" for i in letters)
            term = torch.einsum(f"m{letters}w,wu,{factors}->nmu", u, w, *[x] * degree)
            want[:, l3**2 : (l3 + 1) ** 2] += term
    types = torch.zeros(1, dtype=torch.int64)
    assert_close(reference(x, c, types, problem), want, 1, slack=10)
    rotation = o3.rand_matrix(dtype=torch.float64)
    of_x, of_out = (
        o3.Irreps([(1, (l1, (-1) ** l1)) for l1 in range(top + 1)]).D_from_matrix(rotation).double()
        for top in (3, l_out)
    )
    turned = reference(torch.einsum("ij,nju->niu", of_x, x), c, types, problem)
    torch.testing.assert_close(
        turned, torch.einsum("ij,nju->niu", of_out, want), rtol=1e-5, atol=1e-5 * want.abs().max()
    )
