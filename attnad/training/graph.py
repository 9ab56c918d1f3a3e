"""A training step as one CUDA graph: recorded once, then launched whole, so that the GPU never waits for Python.

What a step may not do to be recorded: read a value back (`.item()`), make a shape depend on values, or bring values
from the host. `tests/test_graph.py` watches for it on any machine.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

WARM_UP = 3  # steps before the recording: libraries choose their algorithms and reserve memory in the first ones


def capture(
    step: Callable[[Tensor], Tensor], generator: torch.Generator, tensors: Callable[[], dict[str, Tensor]]
) -> Callable[[Tensor], Tensor]:
    """Give a step that does the same, on CUDA as a graph; elsewhere the step itself.

    `step` takes the numbers of a batch's images [n] and returns its losses; it draws from `generator` only and changes
    nothing but what `tensors` names, in place. The graph is recorded at the first call, and all is then as before it.
    The losses it returns are overwritten by the next call.
    """
    return RecordedStep(step, generator, tensors) if generator.device.type == "cuda" else step


class RecordedStep:
    """A step that is recorded at its first call and replayed at each; batches of another size are refused."""

    def __init__(self, step: Callable[[Tensor], Tensor], generator: torch.Generator, tensors: Callable[[], Any]):
        self.step, self.generator, self.tensors = step, generator, tensors
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, chosen: Tensor) -> Tensor:
        graph = self.graph or self.record(chosen)
        if chosen.shape != self.chosen.shape:
            raise ValueError(
                f"this step was recorded for {len(self.chosen)} images, not {len(chosen)}; record another for them"
            )
        self.chosen.copy_(chosen)
        graph.replay()
        return self.losses

    def record(self, chosen: Tensor) -> torch.cuda.CUDAGraph:
        """Record the step for batches of this size, on a stream of its own, as CUDA asks for."""
        self.chosen = chosen.clone()
        before = {name: value.clone() for name, value in self.tensors().items()}
        drawn = self.generator.get_state()
        stream = torch.cuda.Stream(chosen.device)
        stream.wait_stream(torch.cuda.current_stream(chosen.device))
        with torch.cuda.stream(stream), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This instance was constructed with capturable=True")  # it soon is
            for _ in range(WARM_UP):
                self.step(self.chosen)
        torch.cuda.current_stream(chosen.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.generator)
        with torch.cuda.graph(graph, stream=stream):
            self.losses = self.step(self.chosen)
        for name, value in self.tensors().items():
            # In place: the graph knows these addresses. What the warm-up has made is an optimiser's memory, 0 at first.
            value.copy_(before[name]) if name in before else value.zero_()
        self.generator.set_state(drawn)
        self.graph = graph
        return graph
