"""Draws the bandwidth of each op in % of that of a copy, beside other libraries. It needs matplotlib.

Usage: python -m benchmarks.figure RESULTS.json OUT.svg
"""

import argparse
import json
from pathlib import Path

# The bandwidth of the CUDA kernels of vLLM 0.33 and FlashInfer by (op, case), in % of that of a copy of as many bytes
# in the same process. The kernels were compiled from their sources and ran on an H200 with torch 2.11 and CUDA 13.0.
VLLM, FLASHINFER = "vLLM 0.33", "FlashInfer"
PEERS = {
    ("reshape_and_cache_flash", "NHD/bf16/T=131072"): {VLLM: 38, FLASHINFER: 90},
    ("reshape_and_cache_flash", "NHD/fp8_e4m3/T=131072"): {VLLM: 19},
    ("reshape_and_cache_flash", "HND/bf16/T=131072"): {VLLM: 41},
    ("reshape_and_cache_flash", "HND/fp8_e4m3/T=131072"): {VLLM: 15},
    ("reshape_and_cache", "packed/bf16/T=131072"): {VLLM: 11},
    ("reshape_and_cache", "packed/fp8_e4m3/T=131072"): {VLLM: 8},
    ("concat_and_cache_mla", "bf16/T=131072"): {VLLM: 18, FLASHINFER: 81},
    ("concat_and_cache_mla", "fp8_e4m3/T=131072"): {VLLM: 13},
    ("concat_and_cache_mla", "fp8_ds_mla/T=131072"): {VLLM: 57},
    ("concat_and_cache_mla_rope_fused", "16-heads/bf16/T=131072"): {VLLM: 28},
    ("concat_and_cache_mla_rope_fused", "16-heads/fp8_e4m3/T=131072"): {VLLM: 25},
    ("concat_and_cache_mla_rope_fused", "128-heads/bf16/T=16384"): {VLLM: 52},
    ("indexer_k_quant_and_cache", "ue8m0/T=131072"): {VLLM: 17},
    ("convert_fp8", "bf16-to-fp8_e4m3/2^29"): {VLLM: 37},
    ("convert_fp8", "fp8_e4m3-to-bf16/2^29"): {VLLM: 37},
    ("concat_mla_q", "128-heads/T=16384"): {VLLM: 93},
    ("cp_gather_cache", "bf16/256x512"): {VLLM: 77},
    ("gather_and_maybe_dequant_cache", "fp8_e4m3/256x512"): {VLLM: 59},
    ("cp_gather_and_upconvert_fp8_kv_cache", "256x512"): {VLLM: 34},
    ("cp_gather_indexer_k_quant_cache", "256x512"): {VLLM: 32},
}
_COLOURS = {"multikv": "#1b6ca8", VLLM: "#b8b8b8", FLASHINFER: "#e09f3e"}


def shares(results: dict) -> dict[tuple[str, str], dict[str, float]]:
    """Returns the bandwidth in % of that of a copy, by case and by library, for all cases of PEERS in the results."""
    ours = {(r["op"], r["case"]): r["share_of_copy"] for r in results["results"] if r["contender"] == "multikv"}
    return {case: {"multikv": 100 * ours[case], **peers} for case, peers in PEERS.items() if ours.get(case)}


def draw(results: dict, path: Path) -> None:
    import matplotlib  # noqa: PLC0415  not needed for PEERS

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "multikv"  # makes the file a function of the results alone
    matplotlib.rcParams["svg.fonttype"] = "none"
    from matplotlib import pyplot  # noqa: PLC0415

    rows = shares(results)
    figure, axes = pyplot.subplots(figsize=(9, 0.36 * len(rows) + 1.2), layout="constrained")
    for y, by_whom in enumerate(rows.values()):
        axes.plot([0, 100], [y, y], color="#eeeeee", linewidth=6, zorder=0, solid_capstyle="butt")
        for who, share in by_whom.items():
            axes.plot(share, y, "o", color=_COLOURS[who], markersize=8, label=who)
    axes.set_yticks(range(len(rows)), [f"{op}  {case}" for op, case in rows], fontsize=7)
    axes.invert_yaxis()
    axes.axvline(100, color="black", linewidth=0.8)
    axes.set_xlim(0, 106)
    axes.set_xlabel("% of a device-to-device copy of as many bytes", fontsize=8)
    machine = results["machine"]
    axes.set_title(f"{machine['gpu']}, torch {machine['torch']}; peers on an H200, torch 2.11, CUDA 13.0", fontsize=8)
    handles = {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), fontsize=8, loc="outside lower center", ncols=len(handles))
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    draw(json.loads(options.results.read_text()), options.out)
