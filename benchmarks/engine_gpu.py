"""How fast the engine is on a GPU: `python -m benchmarks.engine_gpu --out DIR`.

Dummy-weight Llama-3.1-8B in bf16 on one GPU. Every part writes its raw figures to
DIR/<part>.json as soon as it is done, then a table of goals and figures is printed. Times are
medians of CUDA events; the ceilings are measured in the same run. The KV pool is filled with random
numbers, never zeros: a GPU computes zeros faster.

`--small` runs every part that can run on a tiny model, on whatever device there is: it proves the
script, not the engine, and judges no goal. On a CPU set TRITON_INTERPRET=1 to check the kernels.

Needs pydantic besides PyTorch, Triton, transformers, safetensors and tokenizers. On a machine
without network: `pip download --only-binary :all: --platform manylinux2014_x86_64
--python-version 3.12 -d build/wheels pydantic` elsewhere, and `pip install --no-index --find-links
build/wheels pydantic` there.
"""

import argparse
import datetime
import json
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, Final

import torch

from engine.config import EngineSettings
from engine.execution.ceilings import measure_ceilings
from engine.execution.executor import TorchExecutor, load_executor
from engine.execution.inputs import StepInput
from engine.execution.kernels.decode import DecodeConfig, attend_decodes
from engine.execution.kvcache import KvPool
from engine.execution.ops import load_ops
from engine.kvformats import block_layout
from engine.llm import LLMEngine
from engine.sequence import Sequence
from engine.shapes import ModelShape
from engine.work import Generation, Share, Work
from traces.request import Request

Figures = dict[str, Any]

H200_BYTES_PER_S: Final = 4.8e12
"""Of the H200's data sheet: what shares of bandwidth are told of."""

LLAMA: Final = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
}
"""The sizes of Llama-3.1-8B's config.json (its RoPE scaling costs nothing and is left out)."""

TINY: Final = {
    **LLAMA,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 512,
    "max_position_embeddings": 4096,
}

FORMATS: Final = ("bf16", "fp8", "fp8_token_head", "int8", "int4", "k8v4", "int4_channel")
ATTENTION_GOALS: Final = {"bf16": 0.85, "fp8": 0.7, "fp8_token_head": 0.7, "int8": 0.7, "int4": 0.5}
"""Least share of 4.8 TB/s, counting the bytes the format needs."""
STEP_GOALS_MS: Final = {(1, 1024): 4.7, (64, 1024): 7.3, (256, 1024): 14.7, (128, 4096): 20.5}
"""Sums of vLLM 0.24's operators on an H200, by (sequences, context); goal 1.15 times them."""


class Bench:
    """What the parts share: the model's config, the device, and the size of it all."""

    def __init__(self, folder: Path, small: bool) -> None:
        self.small = small
        self.config = TINY if small else LLAMA
        self.shape = ModelShape.from_hf_config(self.config, "tiny" if small else "llama-3.1-8b")
        self.cuda = torch.cuda.is_available()
        self.device = torch.device("cuda", 0) if self.cuda else torch.device("cpu")
        self.dtype = torch.bfloat16 if self.cuda else torch.float32
        self.model = folder / "model"
        self.model.mkdir()
        (self.model / "config.json").write_text(json.dumps(self.config))

    @contextmanager
    def executor(self, **settings: Any) -> Iterator[TorchExecutor]:
        """The model loaded with dummy weights, and all its memory given back afterwards."""
        chosen = {"model": str(self.model), "weights": "dummy", **settings}
        if not self.cuda:
            chosen.setdefault("num_blocks", 600)
        executor = load_executor(EngineSettings.model_validate(chosen))
        try:
            randomise(executor.runner.pool)
            yield executor
        finally:
            executor.close()
            if self.cuda:
                torch.cuda.empty_cache()

    def seconds(self, run: Callable[[int], object], repeats: int = 20) -> float:
        """Median time of `run(i)`; i changes so that no run finds the one before in a cache."""
        for i in range(3):
            run(i)
        if not self.cuda:
            times: list[float] = []
            for i in range(3):
                began = time.perf_counter()
                run(i)
                times.append(time.perf_counter() - began)
            return median(times)
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
        marks[0].record()
        for i in range(repeats):
            run(i)
            marks[i + 1].record()
        torch.cuda.synchronize()
        return median(marks[i].elapsed_time(marks[i + 1]) for i in range(repeats)) / 1000


def randomise(pool: KvPool) -> None:
    """Fill a pool with numbers as real keys and values might be, in its format."""
    generator = torch.Generator(device=pool.buffer.device).manual_seed(1)
    for layer in range(pool.layout.layers):
        for part in (pool.keys(layer), pool.values(layer)):
            if part.is_floating_point():
                part.normal_(generator=generator)
            elif part.dtype == torch.int8:
                part.random_(-127, 128, generator=generator)
            elif pool.kv_dtype.startswith("fp8"):
                part.random_(0, 112, generator=generator)  # below 2 in e4m3: no NaN among them
            else:
                part.random_(0, 256, generator=generator)
        for scales in (pool.key_scales(layer), pool.value_scales(layer)):
            if scales is not None:
                scales.uniform_(0.005, 0.015, generator=generator)
    if pool.tail is not None:
        pool.tail.normal_(generator=generator)


def decode_step(bench: Bench, pool: KvPool, sequences: int, context: int) -> StepInput:
    """A step of equal decodes, whose blocks lie scattered in the pool."""
    columns = -(-context // pool.block_tokens)
    names = torch.randperm(pool.num_blocks - 1, device=bench.device)[: sequences * columns] + 1
    tables = torch.zeros((sequences + 1, columns), dtype=torch.int32, device=bench.device)
    tables[1:] = names.view(sequences, columns)

    def int32(values: Any) -> torch.Tensor:
        return torch.as_tensor(values, dtype=torch.int32, device=bench.device)

    rows = torch.arange(1, sequences + 1, dtype=torch.int32, device=bench.device)
    return StepInput(
        tokens=torch.zeros(sequences, dtype=torch.int64, device=bench.device),
        positions=int32([context - 1] * sequences),
        token_rows=rows,
        tables=tables,
        rows=rows,
        context=int32([context] * sequences),
        starts=int32([0]),
        decodes=sequences,
        max_chunk=0,
        max_context=context,
    )


# ---- the parts


def ceilings(bench: Bench) -> Figures:
    """What the device can do at best."""
    found = measure_ceilings(bench.device, bench.dtype)
    return {
        "device": found.device,
        "bytes_per_s": found.bytes_per_s,
        "flops_per_s": found.flops_per_s,
        "dtype": found.dtype,
    }


def check(bench: Bench) -> Figures:
    """Triton kernels against plain torch in fp32, on fresh random keys, values and queries."""
    shape, errors = bench.shape, {}
    layout_of = {"block_tokens": 16, "layers": 1, "kv_heads": shape.kv_heads}
    for kv_dtype in FORMATS:
        kv = kv_dtype if bench.cuda or kv_dtype != "bf16" else "fp32"
        layout = block_layout(kv, head_dim=shape.head_dim, **layout_of)
        pools = [
            KvPool(layout, 200, device=bench.device, dtype=bench.dtype, rows=8) for _ in range(2)
        ]
        context = 70 if bench.small else 500
        step = decode_step(bench, pools[0], 5, context)
        size = (5, shape.heads, shape.head_dim)
        q, k, v = (
            torch.randn(5, heads, shape.head_dim, device=bench.device).to(bench.dtype)
            for heads in (shape.heads, shape.kv_heads, shape.kv_heads)
        )
        randomise(pools[0])
        pools[1].buffer.copy_(pools[0].buffer)
        if pools[0].tail is not None and pools[1].tail is not None:
            pools[1].tail.copy_(pools[0].tail)
        outs = []
        for name, pool in zip(("triton", "torch"), pools, strict=True):
            ops = load_ops(name)
            ops.append(k, v, pool, 0, step)
            queries = q if name == "triton" else q.float()
            outs.append(ops.attend(queries, pool, 0, step, size[2] ** -0.5, 0).double())
        errors[kv] = float((outs[0] - outs[1]).norm() / outs[1].norm())
    return {"relative_error": errors, "context": context}


def attention(bench: Bench) -> Figures:
    """Paged decode attention alone: share of the bandwidth, by format, batch and context."""
    loads = [(1, 131072), (8, 16384), (32, 4096), (128, 1024), (128, 4096)]
    if bench.small:
        loads = [(2, 96), (5, 33)]
    rows = [
        measure_attention(bench, kv_dtype, block_tokens, sequences, context)
        for kv_dtype in FORMATS
        for block_tokens in ((16, 64) if not bench.small else (16,))
        for sequences, context in loads
    ]
    return {"rows": rows}


def measure_attention(
    bench: Bench,
    kv_dtype: str,
    block_tokens: int,
    sequences: int,
    context: int,
    config: DecodeConfig | None = None,
) -> Figures:
    """One row: the median over layers, so that no keys are found in a cache. `config`: how to
    launch the kernel, if not as usual."""
    shape, layers = bench.shape, 4
    if not bench.cuda and kv_dtype == "bf16":
        kv_dtype = "fp32"
    layout = block_layout(kv_dtype, layers, shape.kv_heads, shape.head_dim, block_tokens)
    columns = -(-context // block_tokens)
    pool = KvPool(
        layout, sequences * columns + 1, device=bench.device, dtype=bench.dtype, rows=sequences + 1
    )
    randomise(pool)
    step = decode_step(bench, pool, sequences, context)
    q = torch.randn(sequences, shape.heads, shape.head_dim, device=bench.device).to(bench.dtype)
    out, scale = torch.empty_like(q), shape.head_dim**-0.5
    seconds = bench.seconds(
        lambda i: attend_decodes(q, out, pool, i % layers, step, scale, 0, config)
    )
    moved = sequences * context * layout.block_bytes / block_tokens / layers
    return {
        "kv_dtype": kv_dtype,
        "block_tokens": block_tokens,
        "sequences": sequences,
        "context_tokens": context,
        "seconds": seconds,
        "bytes": moved,
        "share_of_h200": moved / seconds / H200_BYTES_PER_S,
    }


def sweep(bench: Bench) -> Figures:
    """Launch parameters of decode attention: which are best, format by format."""
    load = (5, 33) if bench.small else (128, 4096)
    tiles, warps, stages, programs = (64, 128), (4, 8), (2, 3, 4), (2, 3)
    if bench.small:
        tiles, warps, stages, programs = (16, 32), (4,), (2,), (2,)
    rows: list[Figures] = []
    for kv_dtype in ("bf16", "fp8_token_head", "int8", "int4"):
        for tried in product(tiles, warps, stages, programs):
            config = DecodeConfig(*tried)
            try:
                row = measure_attention(bench, kv_dtype, 16, *load, config)
            except Exception as error:  # too much shared memory, say
                row = {"kv_dtype": kv_dtype, "error": f"{type(error).__name__}: {error}"[:200]}
            rows.append({**row, "config": config._asdict()})
    return {"rows": rows}


def steps(bench: Bench) -> Figures:
    """Whole decode steps from captured graphs: device time by sequences and context."""
    loads = list(STEP_GOALS_MS) if not bench.small else [(1, 64), (4, 64)]
    with bench.executor(scheduler={"max_num_seqs": 256}) as executor:
        return {
            "rows": [
                {
                    "sequences": sequences,
                    "context_tokens": context,
                    **measure_decodes(executor, sequences, context),
                }
                for sequences, context in loads
            ]
        }


def held_decodes(executor: TorchExecutor, sequences: int, context: int) -> list[Generation]:
    """Sequences that have `context` tokens, those before the last of them never computed."""
    block_tokens = executor.runner.pool.block_tokens
    columns = -(-(context + 64) // block_tokens)
    if sequences * columns >= executor.num_blocks:
        raise ValueError(f"{sequences} x {context} tokens do not fit {executor.num_blocks} blocks")
    generations: list[Generation] = []
    for i in range(sequences):
        seq = Sequence(Request(i, 0.0, context, 64), i, 0)
        seq.table = list(range(1 + i * columns, 1 + (i + 1) * columns))
        seq.prefill_end = context
        generations.append(Generation(seq, [1] * context))
    for begin in range(0, sequences, 64):  # a row each, by a chunk of one token
        some = generations[begin : begin + 64]
        executor.launch(Work(prefills=[Share(one, context, 1) for one in some])).wait()
    return generations


def measure_decodes(executor: TorchExecutor, sequences: int, context: int) -> Figures:
    """Median device time of a decode step, the next always launched before the last is done."""
    generations = held_decodes(executor, sequences, context)
    flights, outputs = [], []
    began = time.perf_counter()
    for k in range(1, 41):
        work = Work(decodes=[Share(one, context + k, 1) for one in generations])
        flights.append(executor.launch(work))
        if len(flights) > 1:
            outputs.append(flights[-2].wait())
    outputs.append(flights[-1].wait())
    wall_s = time.perf_counter() - began
    for one in generations:
        executor.drop(one.seq)
    device = [output.device_s for output in outputs[5:]]
    return {
        "device_s": median(device),
        "least_device_s": min(device),
        "wall_s_per_step": wall_s / len(outputs),
        "graph_bucket": outputs[-1].graph_bucket,
    }


def prefill(bench: Bench) -> Figures:
    """A prompt of 8,192 tokens in one step: FLOP/s of the whole model."""
    tokens = 8192 if not bench.small else 256
    limits = {"max_num_batched_tokens": tokens, "max_num_seqs": 16, "max_model_len": tokens + 64}
    shape = bench.shape
    with bench.executor(scheduler=limits, cuda_graphs=False) as executor:
        columns = -(-tokens // executor.runner.pool.block_tokens)
        times: list[float] = []
        for i in range(8):
            seq = Sequence(Request(i, 0.0, tokens, 1), i, 0)
            seq.table = list(range(1, 1 + columns))
            seq.prefill_end = tokens
            ids = torch.randint(0, shape.vocab, (tokens,)).tolist()
            share = Share(Generation(seq, ids), tokens, tokens)
            times.append(executor.launch(Work(prefills=[share])).wait().device_s)
            executor.drop(seq)
    pairs = tokens * (tokens + 1) // 2
    flops = (
        tokens * shape.gemm_flops_per_token()
        + pairs * shape.attention_flops_per_pair()
        + shape.lm_head_flops_per_row()
    )
    seconds = median(times[2:])
    return {"tokens": tokens, "device_s": seconds, "flops": flops, "flops_per_s": flops / seconds}


def serve(engine: LLMEngine, prompts: list[list[int]], output: int) -> Figures:
    """Serve prompts to the end: tokens a second, and how busy the device was."""
    generations = [engine.add(prompt, output) for prompt in prompts]
    began = time.perf_counter()
    engine.run()
    wall_s = time.perf_counter() - began
    busy_s = sum(record["device_s"] for record in engine.records)
    made = sum(len(one.output) for one in generations)
    blocks = engine.scheduler.blocks
    if blocks.free != blocks.usable:
        raise RuntimeError("blocks leaked")
    return {
        "requests": len(prompts),
        "wall_s": wall_s,
        "device_s": busy_s,
        "busy_share": busy_s / wall_s,
        "output_tokens": made,
        "output_tokens_per_s": made / wall_s,
        "steps": engine.steps,
        "host_s": sum(record["host_s"] for record in engine.records),
        "scheduler_s": sum(record["scheduler_s"] for record in engine.records),
        "preemptions": sum(record["preempted"] for record in engine.records),
    }


def prompts_of(bench: Bench, count: int, tokens: int) -> list[list[int]]:
    """Random prompts that share nothing."""
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(0, bench.shape.vocab, (count, tokens), generator=generator)
    return ids.tolist()


def saturated(bench: Bench) -> Figures:
    """More requests than fit at once: the GPU should never wait for the host."""
    count, tokens, output = (768, 1024, 256) if not bench.small else (12, 40, 12)
    with bench.executor(scheduler={"max_num_seqs": 256}) as executor:
        engine = LLMEngine(executor, executor.settings)
        warm = [engine.add(prompt, 4) for prompt in prompts_of(bench, 4, tokens)]
        engine.run()
        assert all(one.outcome == 0 for one in warm)
        again = LLMEngine(executor, executor.settings)
        return serve(again, prompts_of(bench, count, tokens), output)


def formats(bench: Bench) -> Figures:
    """Decode tokens a second with the pool full of long contexts: what a smaller cache gains."""
    context = 16384 if not bench.small else 128
    rows: list[Figures] = []
    for kv_dtype in ("bf16", "int8", "fp8_token_head", "int4"):
        kv = kv_dtype if bench.cuda or kv_dtype != "bf16" else "fp32"
        limits = {"max_num_seqs": 512 if not bench.small else 16}
        with bench.executor(kv_dtype=kv, scheduler=limits) as executor:
            columns = -(-(context + 64) // executor.runner.pool.block_tokens)
            fits = min((executor.num_blocks - 1) // columns, limits["max_num_seqs"])
            row = measure_decodes(executor, fits, context)
            rows.append(
                {
                    "kv_dtype": kv,
                    "blocks": executor.num_blocks,
                    "sequences": fits,
                    "context_tokens": context,
                    **row,
                    "tokens_per_s": fits / row["device_s"],
                }
            )
    return {"rows": rows}


def transformers(bench: Bench) -> Figures:
    """The same job on the engine and on transformers' continuous batching, one after the other."""
    count, tokens, output = (256, 512, 128) if not bench.small else (6, 20, 8)
    prompts = prompts_of(bench, count, tokens)
    with bench.executor(scheduler={"max_num_seqs": 256}) as executor:
        serve(LLMEngine(executor, executor.settings), prompts[:4], 4)
        ours = serve(LLMEngine(executor, executor.settings), prompts, output)
    if not bench.cuda:
        return {"engine": ours, "transformers": None}
    return {"engine": ours, "transformers": theirs(bench, prompts, output)}


def theirs(bench: Bench, prompts: list[list[int]], output: int) -> Figures:
    """transformers' `generate_batch`: greedy, no stop token, all of its defaults."""
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    with bench.device:
        model = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(bench.model), dtype=bench.dtype
        ).eval()
    chosen = GenerationConfig(max_new_tokens=output, do_sample=False, eos_token_id=-1)
    model.generate_batch(prompts[:4], generation_config=chosen)
    torch.cuda.synchronize()
    began = time.perf_counter()
    done = model.generate_batch(prompts, generation_config=chosen)
    torch.cuda.synchronize()
    wall_s = time.perf_counter() - began
    made = sum(len(one.generated_tokens) for one in done.values())
    return {"wall_s": wall_s, "output_tokens": made, "output_tokens_per_s": made / wall_s}


PARTS: Final[dict[str, Callable[[Bench], Figures]]] = {
    "ceilings": ceilings,
    "check": check,
    "attention": attention,
    "steps": steps,
    "prefill": prefill,
    "saturated": saturated,
    "formats": formats,
    "transformers": transformers,
    "sweep": sweep,
}


# ---- judgement


def judged(found: dict[str, Figures]) -> list[tuple[str, str, str, bool]]:
    """(what, goal, figure, reached) for every goal whose figures are there."""
    rows: list[tuple[str, str, str, bool]] = []

    def add(what: str, goal: str, value: float, unit: str, reached: bool) -> None:
        rows.append((what, goal, f"{value:.3g}{unit}", reached))

    for kv_dtype, goal in ATTENTION_GOALS.items():
        shares = [
            row["share_of_h200"]
            for row in found.get("attention", {}).get("rows", [])
            if row["kv_dtype"] == kv_dtype
            and row["sequences"] * row["context_tokens"] >= 131072
            and row["block_tokens"] == 16
        ]
        if shares:
            least = min(shares)
            add(f"attention {kv_dtype}, least", f">= {goal:.0%}", 100 * least, " %", least >= goal)
    for row in found.get("steps", {}).get("rows", []):
        goal = 1.15 * STEP_GOALS_MS[row["sequences"], row["context_tokens"]]
        got = row["device_s"] * 1000
        what = f"decode B{row['sequences']} x {row['context_tokens']}"
        add(what, f"<= {goal:.1f} ms", got, " ms", got <= goal)
    if "prefill" in found and "ceilings" in found:
        share = found["prefill"]["flops_per_s"] / found["ceilings"]["flops_per_s"]
        add("prefill of 8k", ">= 60 % of the matrix ceiling", 100 * share, " %", share >= 0.6)
    if "saturated" in found:
        busy = found["saturated"]["busy_share"]
        add("GPU busy", ">= 95 %", 100 * busy, " %", busy >= 0.95)
    both = found.get("transformers", {})
    if both.get("transformers"):
        ratio = both["engine"]["output_tokens_per_s"] / both["transformers"]["output_tokens_per_s"]
        add("tokens/s over transformers", ">= 5x", ratio, "x", ratio >= 5)
    rates = {
        row["kv_dtype"]: row["tokens_per_s"] for row in found.get("formats", {}).get("rows", [])
    }
    for kv_dtype in ("int8", "fp8_token_head"):
        if kv_dtype in rates and "bf16" in rates:
            ratio = rates[kv_dtype] / rates["bf16"]
            add(f"{kv_dtype} over bf16, full memory", ">= 1.5x", ratio, "x", ratio >= 1.5)
    return rows


def environment(command: str, commit: str) -> Figures:
    """Where the figures are from."""
    found: Figures = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
        "commit": commit,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    for module in ("triton", "transformers"):
        try:
            found[module] = __import__(module).__version__
        except ImportError:
            found[module] = None
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name(0)
        found["gpu_memory_bytes"] = torch.cuda.get_device_properties(0).total_memory
        found["cuda"] = torch.version.cuda
    return found


def head_commit() -> str:
    """The commit that is checked out, if git can tell."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def main() -> int:
    """Run the parts asked for; 1 if one failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the raw figures")
    usual = ",".join(name for name in PARTS if name != "sweep")
    parser.add_argument("--parts", default=usual, help=f"of {', '.join(PARTS)}; all but sweep")
    parser.add_argument("--small", action="store_true", help="a tiny model, on any device")
    parser.add_argument("--commit", default=None, help="if git is not there to tell")
    asked = parser.parse_args()
    names = asked.parts.split(",")
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        parser.error(f"unknown part {unknown[0]}; known: {', '.join(PARTS)}")
    if not asked.small and not torch.cuda.is_available():
        parser.error("no CUDA device: only --small runs here")
    asked.out.mkdir(parents=True, exist_ok=True)
    where = environment(" ".join(sys.argv), asked.commit or head_commit())
    where["small"] = asked.small
    found: dict[str, Figures] = {}
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), asked.small)
        for name in names:
            began = time.perf_counter()
            try:
                found[name] = PARTS[name](bench)
            except Exception:  # a later part may still give its figures
                failed += 1
                traceback.print_exc()
                continue
            took_s = time.perf_counter() - began
            content = {"environment": where, "part_s": took_s, **found[name]}
            (asked.out / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
            print(f"{name}: {took_s:.1f} s", flush=True)
    if not asked.small:
        for what, goal, figure, reached in judged(found):
            print(f"{what:34} {goal:32} {figure:>10}  {'reached' if reached else 'MISSED'}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
