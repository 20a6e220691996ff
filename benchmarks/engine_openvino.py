"""OpenVINO as `engine.py` measures it: the model as Optimum Intel exports it for OpenVINO GenAI, the cache inside,
logits of the last token alone as GenAI's stateful pipeline has it, greedy."""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
import openvino
from engine_work import Work, answer, command, prompts
from openvino import opset13
from optimum.exporters.openvino import main_export


class OpenVino:
    def __init__(self) -> None:
        folder, threads = command(sys.argv[1:])
        exported = folder / "openvino"
        main_export(
            str(folder),
            output=exported,
            task="text-generation-with-past",
            library_name="transformers",
            convert_tokenizer=False,
        )
        core = openvino.Core()
        model: Any = core.read_model(exported / "openvino_model.xml")
        _want_last_token_alone(model)
        options = {"INFERENCE_NUM_THREADS": str(threads), "PERFORMANCE_HINT": "LATENCY"}
        compiled: Any = core.compile_model(model, "CPU", options)
        self._request = compiled.create_infer_request()

    def burst(self, work: Work, repetitions: int) -> list[float]:
        ids = np.array(prompts(work), dtype=np.int64)
        if work.kind == "prefill":
            return [self._prefill(ids)[1] for _ in range(repetitions + 1)][1:]
        ids, _ = self._prefill(ids)
        seconds = []
        for position in range(work.tokens, work.tokens + repetitions + 1):
            ids, step_s = self._compute(ids, position)
            seconds.append(step_s)
        return seconds[1:]

    def _prefill(self, ids: Any) -> tuple[Any, float]:
        self._request.reset_state()
        return self._compute(ids, 0)

    def _compute(self, ids: Any, past: int) -> tuple[Any, float]:
        """The next tokens, int64 [batch, 1], of tokens [batch, T] behind `past` others; seconds that this took."""
        batch, tokens = ids.shape
        positions = np.tile(np.arange(past, past + tokens), (batch, 1))
        inputs = {
            "input_ids": ids,
            "attention_mask": np.ones((batch, past + tokens), dtype=np.int64),
            "position_ids": positions,
            "beam_idx": np.arange(batch, dtype=np.int32),
        }
        start = time.perf_counter()
        self._request.infer(inputs)
        chosen = self._request.get_output_tensor(0).data[:, -1].argmax(-1)[:, None]
        return chosen, time.perf_counter() - start


def _want_last_token_alone(model: Any) -> None:
    head = model.output("logits").node.input_value(0).node
    while head.get_type_name() != "MatMul":
        head = head.input_value(0).node
    first, after, step, axis = (np.array([number]) for number in (-1, np.iinfo(np.int64).max, 1, 1))
    last = opset13.slice(head.input_value(0), first, after, step, axis)
    head.input(0).replace_source_output(last.output(0))
    model.validate_nodes_and_infer_types()


if __name__ == "__main__":
    answer(OpenVino())
