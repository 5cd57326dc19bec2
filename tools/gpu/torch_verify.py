#!/usr/bin/env python3
"""Verifies drafts with operations of torch, as engines in Python do, and measures how long it takes.

Shapes, logits and laws are those of benches/cuda_verify.rs, which sets these times beside its own:
K drafts are followed as long as they are the tokens that the target draws, and all of them are.

    torch_verify.py [--json FILE] [--quick]

Exits with 3, after saying why, where there is no torch or no device.
"""

import argparse
import json
import statistics
import sys

try:
    import torch
except ImportError as failure:
    print(f"skipped: {failure}")
    sys.exit(3)

DRAFTS = 5
ROWS = DRAFTS + 1
TEMPERATURE = 0.8
TOP_P = 0.9


class Sizes:
    """What is measured; `memory_bytes` is more than the caches hold."""

    def __init__(self, quick):
        self.vocabulary = 1000 if quick else 128256
        self.batches = [1, 3] if quick else [1, 8, 64]
        self.memory_bytes = 50_000 if quick else 512 << 20
        self.samples = 3 if quick else 41


def logits_and_drafts(sizes, batch, dtype):
    """Copies of a batch's logits, `[copies, B, K + 1, V]`, and the drafts, `[B, K]`."""
    vocabulary = sizes.vocabulary
    generator = torch.Generator(device="cuda").manual_seed(3)
    rows = 2.5 * torch.randn(ROWS, vocabulary, device="cuda", generator=generator)
    tokens = torch.tensor([(row + 1) * vocabulary // (ROWS + 1) for row in range(ROWS)], device="cuda")
    rows.scatter_(1, tokens[:, None], 30.0)
    bytes_per_copy = batch * rows.numel() * dtype.itemsize
    copies = max(-(-sizes.memory_bytes // bytes_per_copy), 2)
    logits = rows.to(dtype).expand(copies, batch, ROWS, vocabulary).contiguous()
    return logits, tokens[:DRAFTS].expand(batch, DRAFTS).contiguous()


def greedy(logits):
    """The target's tokens, `[B, K + 1]`."""
    return logits.argmax(-1)


def top_p(logits):
    """Tokens drawn after temperature and top-p: sorted, cut, and drawn by exponential noise."""
    ordered, order = (logits.float() / TEMPERATURE).sort(-1)
    drop = ordered.softmax(-1).cumsum(-1) <= 1 - TOP_P
    drop[..., -1] = False
    kept = ordered.masked_fill_(drop, float("-inf")).softmax(-1)
    noise = torch.empty_like(kept).exponential_()
    place = (kept / noise).argmax(-1, keepdim=True)
    return order.gather(-1, place).squeeze(-1)


def verify(tokens, drafts):
    """How many drafts are accepted, what is emitted (-1 beyond), and the next root."""
    accepted = (tokens[:, :-1] == drafts).int().cumprod(-1).sum(-1, keepdim=True)
    place = torch.arange(ROWS, device=tokens.device)
    emitted = tokens.masked_fill(place > accepted, -1)
    return accepted, emitted, tokens.gather(-1, accepted)


def median_seconds(run, samples):
    """Seconds of the device from one end of the work to the next."""
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    run()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(samples + 1)]
    events[0].record()
    for event in events[1:]:
        run()
        event.record()
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in zip(events, events[1:])) / 1e3


def captured(run):
    """The same work as a graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def measure(sizes, batch, dtype, law):
    """Microseconds of a verification, launch by launch and in a graph."""
    logits, drafts = logits_and_drafts(sizes, batch, dtype)
    accepted, _, _ = verify(law(logits[0]), drafts)
    assert bool((accepted == DRAFTS).all()), accepted

    def run():
        for copy in logits:
            verify(law(copy), drafts)

    times = [median_seconds(run, sizes.samples)]
    try:
        times.append(median_seconds(captured(run), sizes.samples))
    except RuntimeError as failure:
        print(f"not captured: {failure}", file=sys.stderr)
        times.append(None)
    return [None if time is None else 1e6 * time / len(logits) for time in times]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", help="a file that gets a line for each figure")
    parser.add_argument("--quick", action="store_true", help="small sizes: the times mean nothing")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("skipped: torch finds no device")
        sys.exit(3)
    device, sizes = torch.cuda.get_device_name(), Sizes(options.quick)
    print(f"{device}, torch {torch.__version__}, V = {sizes.vocabulary}, K = {DRAFTS}\n")
    print("| logits | law | B | launches, us | graph, us |\n|---|---|---|---|---|")
    figures = []
    for element, dtype in [("f32", torch.float32), ("bf16", torch.bfloat16)]:
        for name, law in [("greedy", greedy), ("top-p 0.9", top_p)]:
            for batch in sizes.batches:
                launches, graph = measure(sizes, batch, dtype, law)
                shown = "-" if graph is None else f"{graph:.1f}"
                print(f"| {element} | {name} | {batch} | {launches:.1f} | {shown} |", flush=True)
                figures.append({
                    "bench": "torch_verify", "device": device, "torch": torch.__version__,
                    "element": element, "law": name, "batch": batch, "drafts": DRAFTS,
                    "vocabulary": sizes.vocabulary, "launches_us": launches, "graph_us": graph,
                })
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(figure) + "\n" for figure in figures)


if __name__ == "__main__":
    main()
