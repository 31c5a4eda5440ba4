"""Random workloads for the scheduler: every setting, nasty shapes, exaggerated costs."""

from typing import Any

from hypothesis import strategies as st

Record = dict[str, Any]


@st.composite
def params(draw: st.DrawFn, asynchronous: bool | None = None) -> Record:
    """Settings of a recorded case, at their extremes more often than not."""
    block = draw(st.one_of(st.sampled_from([1, 2, 4, 16]), st.integers(1, 32)))
    return {
        "block_size": block,
        "num_blocks": draw(st.integers(3, 40)),
        "max_num_seqs": draw(st.one_of(st.integers(1, 4), st.integers(1, 16))),
        "max_num_batched_tokens": draw(
            st.one_of(st.integers(1, 12), st.integers(4, 80), st.just(4096))
        ),
        "no_prefix_caching": draw(st.integers(0, 4)) == 0,
        "chunked": draw(st.integers(0, 3)) > 0,
        "policy": draw(st.sampled_from(["fcfs", "fcfs", "priority"])),
        "long_prefill_token_threshold": draw(st.sampled_from([0, 0, 0, 1, 2, 3, 7, 20])),
        "watermark": draw(st.sampled_from([0.0, 0.0, 0.01, 0.1, 0.3])),
        "no_reserve_full_isl": draw(st.booleans()),
        "async_scheduling": draw(st.booleans()) if asynchronous is None else asynchronous,
        "max_model_len": 10**6,
        "dump_blocks": True,
        "step_time_ns": {
            "a": draw(st.sampled_from([0, 40, 40_000, 3_000_000])),
            "b": draw(st.sampled_from([0, 20, 20_000, 2_000_000])),
            "c": draw(st.sampled_from([0, 12, 5_000, 900_000])),
            "d": draw(st.sampled_from([1_000, 1_000_000, 5_000_000])),
        },
    }


@st.composite
def requests(draw: st.DrawFn, max_requests: int = 14) -> list[Record]:
    """Recorded-case requests: unlike prompts, hash chains, or token ids with known outputs."""
    kind = draw(st.sampled_from(["unlike", "hashes", "hashes", "tokens", "tokens", "echo"]))
    count = draw(st.integers(1, max_requests))
    gap_us = draw(st.sampled_from([0, 3, 3000, 40_000]))
    long = draw(st.sampled_from([12, 60, 200]))
    hash_block = draw(st.integers(1, 40))
    arrival_us = 0
    rows: list[Record] = []
    for i in range(count):
        arrival_us += draw(st.integers(0, gap_us)) if gap_us else 0
        output = draw(st.one_of(st.integers(1, 4), st.integers(1, 70)))
        row: Record = {
            "id": f"r{i}",
            "arrival": arrival_us / 1e6,
            "output_tokens": output,
            "priority": draw(st.integers(0, 2)),
        }
        if kind == "unlike":
            row["input_tokens"] = draw(st.integers(1, long))
        elif kind == "hashes":
            length = draw(st.integers(1, long))
            covered = draw(st.integers(0, -(-length // hash_block)))
            row["input_tokens"] = length
            row["hash_block_size"] = hash_block
            # one character differs: chains of zeros with a branch somewhere
            ids = [0] * covered
            if covered and draw(st.booleans()):
                at = draw(st.integers(0, covered - 1))
                ids[at:] = [draw(st.integers(1, 2))] * (covered - at)
            row["hash_ids"] = ids
        elif kind == "echo":
            # the same few prompts again and again: many compute the same content at once
            row["prompt_token_ids"] = [7] * draw(st.sampled_from([long // 2, long - 3, long]))
            if draw(st.integers(0, 3)) == 0:
                row["output_token_ids"] = [7] * output
        else:
            # a conversation everybody has: prompts are prefixes of it, outputs continue it or not
            length = draw(st.integers(1, long))
            if rows and draw(st.integers(0, 2)) == 0:
                length = len(rows[-1]["prompt_token_ids"])
            branch = draw(st.one_of(st.just(10**9), st.integers(0, length + output)))
            name = draw(st.integers(1, 2))
            story = [7 if j < branch else 1000 * name + j for j in range(length + output)]
            row["prompt_token_ids"] = story[:length]
            if draw(st.booleans()):
                row["output_token_ids"] = story[length:]
        rows.append(row)
    return rows


@st.composite
def cases(draw: st.DrawFn, asynchronous: bool | None = None) -> tuple[Record, list[Record]]:
    """Settings and requests every one of which can be served, if perhaps only alone."""
    settings, rows = draw(params(asynchronous)), draw(requests())
    longest = max(
        len(row.get("prompt_token_ids", ())) + row.get("input_tokens", 0) + row["output_tokens"]
        for row in rows
    )
    least = -(-longest // settings["block_size"]) + 1
    settings["num_blocks"] = max(settings["num_blocks"], least, draw(st.integers(least, 3 * least)))
    if draw(st.booleans()):
        settings["num_blocks"] = least + draw(st.integers(0, 2))
    if draw(st.integers(0, 3)) == 0:  # outputs are cut short
        prompts = [row.get("input_tokens") or len(row["prompt_token_ids"]) for row in rows]
        settings["max_model_len"] = max(prompts) + draw(st.integers(1, 20))
    if not settings["chunked"]:
        settings["max_num_batched_tokens"] = max(settings["max_num_batched_tokens"], longest)
    return settings, rows
