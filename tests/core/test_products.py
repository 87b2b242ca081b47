"""The one place that calls PyTorch's private operators: each form is tried before use, and can be done without."""

import pytest
import torch
import torch.nn.functional as F

from wavcube_plugins import load_model
from wavcube_plugins.models import products

FORMS = ("plain", "gelu", "add")


@pytest.fixture(autouse=True)
def fresh_probes():
    products._onednn.cache_clear()
    yield
    products._onednn.cache_clear()


def operator(*broken, how="wrong"):
    """What oneDNN's operator computes, with some of its forms broken."""

    def call(x, *arguments):
        if len(arguments) == 4:  # input, other, weight, bias, attribute
            form, result = "add", x @ arguments[1].t() + arguments[0]
        else:
            weight, bias, activation = arguments[:3]
            form, result = ("gelu" if activation == "gelu" else "plain"), F.linear(x, weight, bias)
            result = F.gelu(result) if form == "gelu" else result
        if form not in broken:
            return result
        if how == "wrong":
            return result + 1
        raise how("no such overload")

    return call


def results():
    x, weight, bias = torch.randn(200, 16), torch.randn(24, 16), torch.randn(24)
    with torch.inference_mode():
        return [
            (products.linear(x, weight, bias), F.linear(x, weight, bias)),
            (products.linear(x, weight), F.linear(x, weight)),
            (products.linear(x[None], weight, bias, gelu=True)[0], F.gelu(F.linear(x, weight, bias))),
            (products.linear_add(x, weight, x @ weight.t()), 2 * F.linear(x, weight)),
        ]


def check():
    for result, expected in results():
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)


def test_products_on_this_machine():
    check()


def test_products_without_the_operator(monkeypatch):
    monkeypatch.setattr(products, "_operator", lambda: None)
    assert [products._onednn(form) for form in FORMS] == [None] * 3
    assert not products.has_fast_products(torch.float32)
    check()


@pytest.mark.parametrize("how", ["wrong", RuntimeError, TypeError])
@pytest.mark.parametrize("broken", FORMS)
def test_a_form_that_does_not_work_is_left_out_alone(monkeypatch, broken, how):
    monkeypatch.setattr(products, "_operator", lambda: operator(broken, how=how))
    assert [form for form in FORMS if products._onednn(form) is None] == [broken]
    check()


def test_the_model_without_any_of_them(monkeypatch):
    model = load_model("nano")
    waveforms = 0.1 * torch.randn(1, 48000)
    with torch.inference_mode():
        expected = model.encode(waveforms)[0]
        for missing in (*[(form,) for form in FORMS], FORMS):
            products._onednn.cache_clear()
            monkeypatch.setattr(products, "_operator", lambda missing=missing: operator(*missing))
            latent = model.encode(waveforms)[0]
            assert (latent - expected).abs().max() < 1e-4


def test_gradients_other_types_and_autocast_take_plain_products(monkeypatch):
    def forbidden(*_):
        raise AssertionError("oneDNN was called")

    monkeypatch.setattr(products, "_onednn", lambda form: forbidden)
    x, weight = torch.randn(200, 16), torch.randn(24, 16, requires_grad=True)
    products.linear(x, weight).sum().backward()
    products.linear_add(x, weight, torch.zeros(200, 24)).sum().backward()
    with torch.inference_mode():
        products.linear(x.double(), weight.double())
        products.linear(x[:10], weight)  # too few rows to be worth it
        with torch.autocast("cpu", torch.bfloat16):
            products.linear(x, weight)
