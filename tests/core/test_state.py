"""A State as a sequence of images: indexing, equality to the bit, moving between devices and dtypes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from odeddim.types import State


@pytest.fixture
def state() -> State:
    numbers = torch.arange(24.0).reshape(4, 2, 3)
    return State(numbers, 2.0, (numbers + 100,), "belm up", {"evaluations": torch.arange(4)})


def rows(state: State) -> list[int]:
    """Which of the images of the fixture a state has, by every part of it."""
    found: list[int] = (state.xbar[:, 0, 0] / 6).int().tolist()
    assert [round(float(part)) for part in (state.aux[0][:, 0, 0] - 100) / 6] == found
    assert state.report["evaluations"].tolist() == found
    assert (state.sigma, state.kept, state.combined) == (2.0, "belm up", False)
    assert state.xbar.shape[1:] == (2, 3)
    return found


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (0, [0]),
        (-1, [3]),
        (torch.tensor(2), [2]),
        (torch.tensor(2).numpy()[()], [2]),
        (slice(1, 3), [1, 2]),
        (slice(-2, None), [2, 3]),
        (slice(0, 4, 2), [0, 2]),
        (slice(2, 2), []),
        ([3, 0], [3, 0]),
        ([-1], [3]),
        ([], []),
        (range(2), [0, 1]),
        (torch.tensor([1, 1]), [1, 1]),
        (torch.tensor([True, False, False, True]), [0, 3]),
        ([True, False, False, True], [0, 3]),
    ],
)
def test_some_images_of_a_state(state: State, images: object, expected: list[int]) -> None:
    assert rows(state[images]) == expected  # type: ignore[index]


@pytest.mark.parametrize(
    ("images", "error"),
    [
        (4, IndexError),
        (-5, IndexError),
        ([4], IndexError),
        (torch.tensor([[0]]), IndexError),
        ((0, 1), TypeError),
        ("a", (IndexError, TypeError)),
        (1.0, TypeError),
        (None, TypeError),
    ],
)
def test_images_that_a_state_does_not_have(state: State, images: object, error: type[Exception]) -> None:
    with pytest.raises(error):
        state[images]  # type: ignore[index]


def test_a_state_is_a_sequence(state: State) -> None:
    assert len(state) == 4
    assert [rows(one) for one in state] == [[0], [1], [2], [3]]
    assert [rows(one) for one in reversed(state)] == [[3], [2], [1], [0]]
    assert state[2] in state
    assert state[1:].xbar.data_ptr() == state.xbar[1:].data_ptr()  # a view


def test_states_are_equal_to_the_bit(state: State) -> None:
    assert state == state[:]
    assert state == replace(state, report={})
    assert state != "state"
    nan = replace(state, xbar=torch.full((4, 2, 3), torch.nan))
    assert nan == nan[[0, 1, 2, 3]]
    assert State(torch.zeros(1, 2), 1.0) != State(-torch.zeros(1, 2), 1.0)
    near = state.xbar.clone()
    near[3, 1, 2] = torch.nextafter(near[3, 1, 2], torch.tensor(torch.inf))
    for other in (
        state.to(torch.float64),
        state[:3],
        replace(state, xbar=near),
        replace(state, xbar=state.xbar.reshape(4, 3, 2)),
        replace(state, sigma=2.5),
        replace(state, aux=()),
        replace(state, aux=(near,)),
        replace(state, kept=""),
        replace(state, combined=True),
    ):
        assert state != other
    with pytest.raises(TypeError, match="unhashable"):
        hash(state)


def test_to_moves_the_state_and_not_its_report(state: State) -> None:
    doubled = state.to(torch.float64)
    assert [part.dtype for part in (doubled.xbar, *doubled.aux)] == [torch.float64, torch.float64]
    assert doubled.report["evaluations"].dtype == torch.int64
    assert doubled.to("cpu", torch.float32) == state
    assert doubled.to("cpu", dtype=torch.float32) == doubled.to(dtype=torch.float32) == state
    assert state.to() == state
    elsewhere = state.to("meta")
    assert {part.device.type for part in (elsewhere.xbar, *elsewhere.aux)} == {"meta"}
    assert elsewhere.report["evaluations"].device.type == "cpu"
    assert elsewhere[torch.tensor([0, 1])].xbar.shape == (2, 2, 3)


def test_a_state_shows_itself_in_a_line(state: State) -> None:
    assert repr(state) == "State(4 × (2, 3) float32, σ = 2, kept by belm)"
    assert repr(State(torch.zeros(1, 2, dtype=torch.float64), 157.40712, combined=True)) == (
        "State(1 × (2,) float64, σ = 157.407, combined)"
    )
    assert repr(state.to("meta")) == "State(4 × (2, 3) float32 on meta, σ = 2, kept by belm)"
