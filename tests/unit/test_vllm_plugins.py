"""The plug-ins of the CPU build: LoRA products against the formula, token by token; waiting without
keeping a core busy. Where a test says `when this fails`, the plug-in that it names can go."""

import inspect
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from adapterops.schemas import ROOT

sys.path.insert(0, str(ROOT / "scripts" / "vllm_plugins"))

import cpu_lora
import cpu_wait

WIDTHS = (12, 4, 4)
SLOTS, RANK, WIDE = 3, 4, 8


def stacked():
    """A [slots, 1, r, in] and B [slots, 1, out, r] of three projections, as vLLM stacks them."""
    generator = torch.Generator().manual_seed(0)
    a = tuple(torch.randn(SLOTS, 1, RANK, WIDE, generator=generator) for _ in WIDTHS)
    b = tuple(torch.randn(SLOTS, 1, width, RANK, generator=generator) for width in WIDTHS)
    return a, b


@pytest.mark.parametrize(
    "indices",
    [[1, 1, 1, 1], [-1, -1, -1, -1], [0, -1, 2, 0], [2, 1, 1, -1], [0, 1, 2, 0]],
    ids=["one adapter", "none", "two and none", "two after another and none", "three"],
)
def test_each_token_gets_its_own_adapter_and_tokens_without_one_get_none(indices):
    a, b = stacked()
    x, y = torch.randn(4, WIDE), torch.randn(4, sum(WIDTHS))
    expected = y.clone()
    for token, slot in enumerate(indices):
        if slot >= 0:
            expected[token] += 0.5 * torch.cat(
                [x[token] @ a[part][slot, 0].T @ b[part][slot, 0].T for part in range(len(WIDTHS))]
            )
    wrapper = SimpleNamespace(groups=cpu_lora.groups(torch.tensor(indices)))
    cpu_lora.add_lora_linear(wrapper, y, x, a, b, 0.5, WIDTHS)
    torch.testing.assert_close(y, expected)


def test_logits_get_the_adapters_of_the_tokens_that_are_sampled():
    a, b = (stack[0] for stack in stacked())
    x, y = torch.randn(2, WIDE), torch.zeros(2, WIDTHS[0])
    wrapper = SimpleNamespace(sampled_groups=cpu_lora.groups(torch.tensor([-1, 2])))
    cpu_lora.add_lora_logits(wrapper, y, x, a, b, 1.0)
    torch.testing.assert_close(
        y, torch.stack([torch.zeros(WIDTHS[0]), x[1] @ a[2, 0].T @ b[2, 0].T])
    )


def test_the_operators_replaced_are_those_that_this_vllm_calls():
    """A version that renames them would run its own slow ones without a word."""
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    for name in (
        "update_metadata",
        "add_lora_linear",
        "add_lora_logits",
        "token_lora_indices",
        "sampler_indices",
    ):
        assert hasattr(PunicaWrapperCPU, name)


class LargestRead(torch.overrides.TorchFunctionMode):
    """Elements of the largest tensor that was read out of another by an index."""

    elements = 0

    def __torch_function__(self, function, _types, arguments=(), options=None):
        found = function(*arguments, **(options or {}))
        if function is torch.Tensor.__getitem__:
            self.elements = max(self.elements, found.numel())
        return found


@pytest.mark.parametrize("operator", ["bgmv_shrink", "bgmv_expand"])
def test_the_engine_itself_copies_the_matrices_for_each_token(operator):
    """When this fails, see whether `cpu_lora` can go."""
    from vllm.lora.ops.torch_ops import lora_ops

    tokens, (a, b) = 50, (stack[0] for stack in stacked())
    matrix = {"bgmv_shrink": a, "bgmv_expand": b}[operator]
    inputs, output = torch.randn(tokens, matrix.shape[-1]), torch.zeros(tokens, matrix.shape[-2])
    with LargestRead() as read:
        getattr(lora_ops, operator)(inputs, matrix, output, torch.full((tokens,), -1))
    assert read.elements == tokens * matrix[0].numel()
    assert output.any()  # though index -1 asks for no adapter


def test_the_engine_itself_imports_everything_anew_in_each_process():
    """When this fails, `cpu_start` can go."""
    from vllm.platforms.cpu import CpuPlatform

    said = inspect.getsource(CpuPlatform.check_and_update_config)
    assert 'os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"' in said


@pytest.fixture
def reader(monkeypatch, tmp_path):
    """`ask(since, timeout)`: how long a reader, `since` seconds after its last read, asks its
    sockets to wait; in ms, None for ever."""
    import zmq
    from vllm.distributed.device_communicators.shm_broadcast import SpinCondition

    # When this fails, `cpu_wait` can go, or it replaces something else.
    assert "busy_loop_s" in inspect.signature(SpinCondition).parameters
    monkeypatch.setattr(SpinCondition, "wait", SpinCondition.wait)  # `register` replaces it
    asked = []
    with zmq.Context() as context:
        condition = SpinCondition(
            is_reader=True, context=context, notify_address=f"ipc://{tmp_path}/nobody-writes"
        )
        condition.poller = SimpleNamespace(poll=lambda timeout: asked.append(timeout) or [])

        def ask(since, timeout=None):
            condition.last_read = time.monotonic() - since
            condition.wait(timeout)
            return asked.pop()

        condition.wait(5000)
        assert not asked  # it polls. When this fails, `cpu_wait` can go
        cpu_wait.register()
        yield ask
        for socket in (
            condition.local_notify_socket,
            condition.read_cancel_socket,
            condition.write_cancel_socket,
        ):
            socket.close()


def test_a_reader_sleeps_between_answers_and_looks_for_itself_as_messages_get_lost(reader):
    assert reader(since=0) == reader(since=5, timeout=5000) == cpu_wait.LOOK_AGAIN_MS
    assert reader(since=0, timeout=3) == 3


def test_a_reader_of_an_idle_engine_waits_to_be_woken(reader):
    assert reader(since=60, timeout=5000) == 5000
    assert reader(since=60) is None
