"""Opening a bundle: one wrong bit anywhere, or anything that is not a plain file inside, is refused."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from latentc import bundle as module
from latentc.bundle import open_bundle
from latentc.errors import BundleError
from latentc.schema import SCHEMA_VERSION, FileRecord, Manifest

from tests.runtime import toy


def files_of(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def refused(root: Path) -> str:
    with pytest.raises(BundleError) as caught:
        open_bundle(root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_whole_bundle_opens(pristine: Path) -> None:
    opened = open_bundle(pristine)
    assert opened.manifest == toy.read_manifest(pristine)
    assert len(opened.model_hash) == 10
    assert opened.manifest_sha256.startswith(opened.model_hash)
    assert bytes(opened.view("parity.json")) == (pristine / "parity.json").read_bytes()
    assert opened.graph("denoise").weights_name == "denoise.weights"
    assert opened.parity().solver == "sde"


def test_one_flipped_bit_in_any_file_is_refused_before_it_is_parsed(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = files_of(bundle)
    assert {"manifest.json", "manifest.json.sha256", "parity.json", "graphs/denoise.weights"} <= set(names)
    rng = random.Random(0)
    parsed = module._manifest_from_json
    for name in names:
        path = bundle / name
        whole = path.read_bytes()
        manifest = name.startswith("manifest.json")
        monkeypatch.setattr(module, "_manifest_from_json", _never if manifest else parsed)
        for bit in {0, len(whole) * 8 - 1, *(rng.randrange(len(whole) * 8) for _ in range(24))}:
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            message = refused(bundle)
            assert name.removesuffix(".sha256") in message
            assert "damaged" in message
        path.write_bytes(whole)
    monkeypatch.setattr(module, "_manifest_from_json", parsed)
    open_bundle(bundle)


def _never(*_: object) -> Manifest:
    raise AssertionError("parsed what was not hashed")


def test_truncated_extended_emptied_or_missing_files_are_refused(bundle: Path) -> None:
    changes: list[Callable[[bytes], bytes | None]] = [
        lambda whole: whole[:-1],
        lambda whole: whole + b"\0",
        lambda whole: b"",
        lambda whole: None,
    ]
    for name in files_of(bundle):
        path = bundle / name
        whole = path.read_bytes()
        for change in changes:
            changed = change(whole)
            if changed is None:
                path.unlink()
            else:
                path.write_bytes(changed)
            assert name.removesuffix(".sha256") in refused(bundle)
        path.write_bytes(whole)
    open_bundle(bundle)


def test_what_is_no_bundle_says_so(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "none")
    (tmp_path / "file").write_text("x")
    assert "is no directory" in refused(tmp_path / "file")
    assert "has no manifest.json; python -m export makes bundles" in refused(tmp_path)


def rewritten(root: Path, change: Callable[[dict[str, object]], object]) -> str:
    """Changes the manifest's JSON, hashes it again as a tamperer would, and returns the refusal."""
    document: dict[str, object] = msgspec.json.decode((root / "manifest.json").read_bytes())
    change(document)
    toy.seal_bytes(root, msgspec.json.encode(document))
    return refused(root)


def test_the_schema_is_strict(bundle: Path) -> None:
    whole = (bundle / "manifest.json").read_bytes()
    for change, why in (
        (lambda d: d.update(extra=1), "unknown field `extra`"),
        (lambda d: d.pop("family"), "missing required field `family`"),
        (lambda d: d.update(name=7), "`str`"),
        (lambda d: d.update(schema_version=SCHEMA_VERSION + 1), "install a newer latentc"),
        (lambda d: d.update(schema_version=0), "export the bundle again"),
        (lambda d: d.update(schema_version="x"), "does not follow the schema"),
        (lambda d: d["graphs"].pop("decode"), "no graph decode"),
        (lambda d: d["defaults"].update(steps=5), "no table for its own defaults"),
        (lambda d: d["solvers"].pop("heun"), "tables of heun but no such solver"),
        (lambda d: d["latent"].update(width=0), "out of range"),
        (lambda d: d["conditioning"].update(null_label=-1), "out of range"),
        (lambda d: d["conditioning"]["labels"].update(cat=2**64), "out of range"),
        (lambda d: d["files"].pop("parity.json"), "refers to parity.json, which it does not list"),
        (lambda d: d["graphs"]["decode"].update(file="graphs/none.onnx"), "refers to graphs/none.onnx"),
        (lambda d: d["graphs"].update({"../../pwn": d["graphs"]["decode"]}), "has a graph named '../../pwn'"),
    ):
        toy.seal_bytes(bundle, whole)
        assert why in rewritten(bundle, change), why
    toy.seal_bytes(bundle, b"[" * 100_000)
    assert "does not follow the schema" in refused(bundle)


@pytest.mark.parametrize(
    "path",
    ["../secret", "/etc/hostname", "graphs/../../secret", "./parity.json", "graphs//x", "a\\b", "", "graphs/",
     ".hidden", "engines/x/engine.json", "manifest.json", "manifest.json.sha256", "a\nb", "graphs/..", "ü"],
)  # fmt: skip
def test_only_plain_paths_inside_are_listed(bundle: Path, path: str) -> None:
    (bundle.parent / "secret").write_text("secret")
    manifest = toy.read_manifest(bundle)
    files = {**manifest.files, path: FileRecord(sha256="0" * 64, num_bytes=6)}
    toy.seal_bytes(bundle, msgspec.json.encode(msgspec.structs.replace(manifest, files=files)))
    assert "no plain path inside a bundle" in refused(bundle)


def test_links_and_special_files_are_refused_even_if_their_content_is_right(bundle: Path) -> None:
    path = bundle / "graphs/denoise.weights"
    outside = bundle.parent / "outside.weights"
    path.rename(outside)
    path.symlink_to(outside)
    assert "is a link" in refused(bundle)
    path.unlink()
    os.mkfifo(path)  # opening it must not wait for a writer
    assert "no regular file" in refused(bundle)
    path.unlink()
    path.mkdir()
    assert "no regular file" in refused(bundle)
    path.rmdir()
    outside.rename(path)
    shutil.move(bundle / "graphs", bundle.parent / "graphs")
    (bundle / "graphs").symlink_to(bundle.parent / "graphs")
    assert "is a link" in refused(bundle)


def test_manifest_and_its_seal_may_not_be_links(bundle: Path) -> None:
    for name in ("manifest.json", "manifest.json.sha256"):
        (bundle / name).rename(bundle.parent / name)
        (bundle / name).symlink_to(bundle.parent / name)
        assert "is a link" in refused(bundle)
        (bundle / name).unlink()
        (bundle.parent / name).rename(bundle / name)
    open_bundle(bundle)


def test_the_bundle_itself_may_be_reached_through_a_link(pristine: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(pristine)
    open_bundle(tmp_path / "link")


def test_a_file_replaced_after_the_hash_is_not_what_runs(bundle: Path) -> None:
    opened = open_bundle(bundle)
    whole = (bundle / "parity.json").read_bytes()
    (bundle / "other").write_bytes(b"x" * len(whole))
    (bundle / "other").replace(bundle / "parity.json")
    assert bytes(opened.view("parity.json")) == whole


def test_a_damaged_parity_report_with_a_right_hash_is_refused(bundle: Path) -> None:
    (bundle / "parity.json").write_text("{}")
    toy.seal(bundle, toy.read_manifest(bundle))
    with pytest.raises(BundleError, match=r"parity\.json does not follow the schema"):
        open_bundle(bundle).parity()


@pytest.mark.parametrize("file", ["/etc/hostname", "../parity.json", "graphs/../parity.json", ""])
def test_no_path_leads_outside(bundle: Path, file: str) -> None:
    (bundle.parent / "parity.json").write_text("{}")
    with pytest.raises(BundleError, match="is no plain path inside a bundle"):
        module.map_file(bundle, file)
