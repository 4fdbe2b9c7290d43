"""--dump DIR: the graphs of every phase, what was cut where and why, and what half precision did.

1-trace/ 2-clean/ 4-final/   NAME.onnx, weights left out
3-hoist/                     partition.txt and .json, nodes.tsv, the whole and its parts
4-final/NAME.half.tsv        every float32 island with its reason, and weights that half holds badly
4-final/decode.int8.tsv      the same of the decoder's convolutions
4-final/denoise.int8.tsv     every layer's errors in int8, and why it stayed in float32 if it did
"""

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from export.compile import HoistedStep, NarrowedStep
from export.hoist import write_dump
from export.hoist.dump import without_weights
from export.int8 import DecoderReport, Int8Report
from export.precision import HalfReport
from export.trace import TracedStep


def dump_clean(directory: Path, traced: TracedStep, clean: HoistedStep) -> None:
    """Writes the first two phases; files of an older dump are replaced."""
    _write_graphs(directory / "1-trace", traced.graphs)
    _write_graphs(directory / "2-clean", clean.graphs)


def dump_final(directory: Path, narrowed: NarrowedStep) -> None:
    """Writes the last two."""
    if narrowed.hoisted.partition is not None:
        write_dump(directory / "3-hoist", narrowed.hoisted.partition)
    _write_graphs(directory / "4-final", narrowed.graphs)
    for name, report in narrowed.half.items():
        (directory / "4-final" / f"{name}.half.tsv").write_text(_half_table(report), encoding="utf-8")

    if narrowed.int8 is not None:
        (directory / "4-final" / "denoise.int8.tsv").write_text(_int8_table(narrowed.int8), encoding="utf-8")
        if narrowed.int8.decoder is not None:
            table = _decoder_table(narrowed.int8.decoder)
            (directory / "4-final" / "decode.int8.tsv").write_text(table, encoding="utf-8")


def _write_graphs(directory: Path, graphs: Mapping[str, ir.Model]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, model in graphs.items():
        ir.save(without_weights(model, name), directory / f"{name}.onnx")


def _half_table(report: HalfReport) -> str:
    lines = [f"# {report.num_half_nodes} nodes in float16, {len(report.islands)} in float32, {report.num_casts} casts"]
    lines += ["node\toperator\tpeak\treason"]
    lines += [f"{i.node}\t{i.op_type}\t{'' if i.peak is None else f'{i.peak:.4g}'}\t{i.reason}" for i in report.islands]
    lines += [f"weight {fit.name}\t\t\t{fit}" for fit in report.weights]
    return "\n".join(lines) + "\n"


def _int8_table(report: Int8Report) -> str:
    kept = {layer.name: layer.reason for layer in report.kept}
    lines = [f"# {report.num_int8} of {len(report.local)} layers in int8"]
    if report.psnr_db is not None:
        lines[0] += f"; prediction off by {report.prediction:.3g}, picture {report.psnr_db:.1f} dB from float32's"
    lines += ["layer\town output\tprediction\treason to stay"]
    for name, error in report.local.items():
        effect = f"{report.effects[name]:.3g}" if name in report.effects else ""
        lines.append(f"{name}\t{error:.3g}\t{effect}\t{kept.get(name, '')}")
    return "\n".join(lines) + "\n"


def _decoder_table(report: DecoderReport) -> str:
    kept = {layer.name: layer.reason for layer in report.kept}
    lines = [f"# {report.num_int8} of {len(report.errors)} convolutions in int8"]
    if report.psnr_db is not None:
        lines[0] += f"; with the int8 loop the picture is {report.psnr_db:.1f} dB from float32's"
    lines += ["convolution\town output\tthe sum it goes into\treason to stay"]
    for name, error in report.errors.items():
        lines.append(f"{name}\t{error:.3g}\t{report.carried[name]:.3g}\t{kept.get(name, '')}")
    return "\n".join(lines) + "\n"
