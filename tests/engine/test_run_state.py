"""Where a run stood: its random numbers go on, unless it has another number of processes."""

import torch

from aligndetr.engine.run_state import gather_run_state, restore_run_state

CPU = torch.device("cpu")


def test_random_numbers_go_on(caplog):
    state = gather_run_state([], CPU)
    expected = torch.rand(3)
    restore_run_state(state, [], CPU)
    assert torch.equal(torch.rand(3), expected)
    assert "list cannot say where it stood" in caplog.text


def test_of_another_number_of_processes_they_do_not_and_it_is_said(caplog):
    state = gather_run_state([], CPU) | {"world_size": 2}
    numbers = torch.rand(3)
    restore_run_state(state, [], CPU)
    assert not torch.equal(torch.rand(3), numbers)
    assert "The run had 2 processes and has 1 now" in caplog.text
