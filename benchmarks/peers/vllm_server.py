"""Runs in vLLM's environment: loads a model, then answers each line of requests with the time it took.

Questions and answers are one line of JSON each, on stdin and stdout. The first question names the model.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any, TextIO


def main() -> None:
    # vLLM prints to stdout as well; only answers may go there.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    from vllm import LLM

    first = json.loads(sys.stdin.readline())
    llm = LLM(
        model=first["model"],
        dtype=first["dtype"],
        max_num_seqs=first["max_num_seqs"],
        max_model_len=first["max_model_len"],
        max_num_batched_tokens=2048,
        skip_tokenizer_init=True,
        distributed_executor_backend="uni",
        # The same prompts come in every round: no engine may remember them.
        enable_prefix_caching=False,
    )
    _answer(answers, {"ready": True})
    for line in sys.stdin:
        _answer(answers, _serve(llm, json.loads(line)["requests"]))


def _serve(llm: Any, requests: list[dict[str, Any]]) -> dict[str, Any]:
    from vllm import SamplingParams

    prompts = [{"prompt_token_ids": request["prompt"]} for request in requests]
    sampling = [
        SamplingParams(temperature=0, max_tokens=request["max_tokens"], ignore_eos=True, detokenize=False)
        for request in requests
    ]
    start, start_cpu = time.perf_counter(), time.process_time()
    results = llm.generate(prompts, sampling, use_tqdm=False)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    outputs = [list(result.outputs[0].token_ids) for result in results]
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "outputs": outputs}


def _answer(stream: TextIO, value: dict[str, Any]) -> None:
    stream.write(json.dumps(value) + "\n")
    stream.flush()


if __name__ == "__main__":
    main()
