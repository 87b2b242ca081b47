"""Lengths beside padded batches: masks and checks."""

import numpy as np
import pytest
import torch

from wavcube_plugins.models.lengths import check_waveforms, length_mask, pad_batch


def test_batches_are_padded_at_their_ends():
    batch, lengths = pad_batch([torch.ones(3), torch.ones(5), torch.ones(1)])
    assert batch.tolist() == [[1, 1, 1, 0, 0], [1] * 5, [1, 0, 0, 0, 0]]
    assert lengths.tolist() == [3, 5, 1]
    assert torch.equal(length_mask(lengths, 5), batch.bool())


def test_good_waveforms_pass_the_check():
    assert check_waveforms(torch.zeros(2, 5), None).tolist() == [5, 5]
    assert check_waveforms(torch.zeros(2, 5), torch.tensor([5, 1], dtype=torch.int32)).dtype == torch.int64
    assert check_waveforms(torch.zeros(2, 5), [3, 5]).tolist() == [3, 5]
    # What lies beyond an item's length is nobody's business.
    padded = torch.tensor([[0.0, 0.0, float("nan")]])
    assert check_waveforms(padded, torch.tensor([2])).tolist() == [2]
    # Loud half precision overflows its own sum; it is finite nevertheless.
    assert check_waveforms(torch.full((1, 100), 60000.0, dtype=torch.float16), None).tolist() == [100]


@pytest.mark.parametrize(
    ("waveforms", "lengths", "reason"),
    [
        ([[0.0]], None, "torch.Tensor, got list"),
        (np.zeros((1, 5), dtype=np.float32), None, "torch.Tensor, got ndarray"),
        (torch.zeros(5), None, r"\(batch, samples\), got \(5,\)"),
        (torch.zeros(1, 1, 5), None, r"got \(1, 1, 5\)"),
        (torch.zeros(1, 5, dtype=torch.int16), None, "floating point.*got torch.int16"),
        (torch.zeros(1, 5, dtype=torch.complex64), None, "floating point.*got torch.complex64"),
        (torch.zeros(0, 5), None, r"not be empty, got shape \(0, 5\)"),
        (torch.zeros(2, 0), None, r"not be empty, got shape \(2, 0\)"),
        (torch.tensor([[0.0, 0.0], [0.0, float("inf")]]), None, "waveform 1 .*NaN or infinite"),
        (torch.tensor([[float("nan"), 0.0]]), torch.tensor([1]), "waveform 0 .*NaN or infinite"),
        (torch.zeros(2, 5), torch.tensor([5]), r"shape \(2,\), one per item, got \(1,\)"),
        (torch.zeros(2, 5), torch.tensor([0.5, 1.0]), "whole numbers of samples, got torch.float32"),
        (torch.zeros(2, 5), torch.tensor([True, True]), "whole numbers of samples, got torch.bool"),
        (torch.zeros(2, 5), torch.tensor([5, 6]), r"1 … 5 samples, got 5 … 6"),
        (torch.zeros(2, 5), torch.tensor([5, 0]), r"1 … 5 samples, got 0 … 5"),
    ],
)
def test_bad_waveforms_are_refused(waveforms, lengths, reason):
    with pytest.raises(ValueError, match=reason):
        check_waveforms(waveforms, lengths)
